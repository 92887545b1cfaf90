//! What clients of a service are told.

use super::*;

/// What clients from outside are told of the service `web` as it is in the cluster.
fn explained(cluster: &Cluster) -> String {
    let Some(Ok(web)) = cluster.services.get(&name("web")) else {
        panic!("it is there");
    };
    let (served, _) = served(cluster, &me());
    let explanations = explain(cluster, &me(), &name("web"), web, Client::Outside, &served);
    explanations.iter().map(ToString::to_string).collect()
}

#[test]
fn an_explanation_says_by_which_addresses_only_some_may_come() {
    let web = outer(ExternalPolicy::Cluster);
    let slices = vec![slice("web", 8080, &[("10.244.0.2", "node1", "rs")])];
    let text = |service: &Service| explained(&cluster_of(vec![("web", service.clone())], slices.clone()));
    let guarded = "  by 198.51.100.7:80 only clients from 192.0.2.0/24\n";
    assert!(text(&web).contains(guarded), "{}", text(&web));
    let mut open = web.clone();
    open.external.sources = Some(["0.0.0.0/0".parse().unwrap()].into());
    assert!(!text(&open).contains("only clients"), "{}", text(&open));
    let mut closed = web;
    closed.external.sources = Some(["fd00::/8".parse().unwrap()].into());
    assert!(
        text(&closed).contains("only clients from nowhere"),
        "{}",
        text(&closed)
    );
}

#[test]
fn an_explanation_has_only_the_addresses_that_the_service_is_served_by() {
    let slices = vec![slice("web", 8080, &[("10.244.0.2", "node1", "rs")])];
    let web = outer(ExternalPolicy::Cluster);
    let mut cluster = cluster_of(vec![("web", web.clone())], slices);
    let all = explained(&cluster);
    assert!(all.contains("198.51.100.7:80"), "{all}");
    // Another has the same external address and comes first.
    let mut another = Service::new(vec!["10.96.0.99".parse().unwrap()], web.ports().to_vec()).unwrap();
    another.external = web.external.clone();
    cluster.services.insert(name("a"), Ok(another));
    let its = explained(&cluster);
    assert!(
        !its.contains("198.51.100.7:80") && its.contains("10.96.0.7:80"),
        "{its}"
    );
}

#[test]
fn an_explanation_says_why_nobody_serves() {
    let web = vec![("web", outer(ExternalPolicy::Cluster))];
    let endpoints = [("10.244.0.2", "node1", "")];
    let mut other_port = slice("web", 8080, &endpoints);
    other_port.ports[0].name = "other".into();
    for (slices, why) in [
        (vec![], "refused: it has no endpoint of this family"),
        (
            vec![slice("web", 8080, &endpoints)],
            "refused: none of its endpoints is ready",
        ),
        (vec![other_port], "refused: no EndpointSlice of it has this port"),
    ] {
        let text = explained(&cluster_of(web.clone(), slices));
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn only_services_that_claim_the_same_are_rivals() {
    let web = outer(ExternalPolicy::Cluster);
    let other = |change: &dyn Fn(&mut Service)| {
        let mut other = service("10.96.0.99", InternalPolicy::Cluster);
        change(&mut other);
        other
    };
    let mut health = web.clone();
    health.external.health_check = Some(port(31234));
    for (web, other, is_rival) in [
        (&web, other(&|_| {}), false),
        (&web, service("10.96.0.7", InternalPolicy::Cluster), true),
        (
            &web,
            other(&|other| other.external.ips = web.external.load_balancer.clone()),
            true,
        ),
        (
            &health,
            other(&|other| other.external.health_check = Some(port(31234))),
            true,
        ),
    ] {
        let mut cluster = cluster_of(vec![("web", web.clone()), ("other", other.clone())], vec![]);
        keep_rivals(&mut cluster, web);
        assert!(cluster.services.contains_key(&name("web")));
        assert_eq!(
            cluster.services.contains_key(&name("other")),
            is_rival,
            "{other:?}"
        );
    }
}
