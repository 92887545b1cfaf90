use super::*;

fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

fn me() -> NodeName {
    NodeName::new("node1").unwrap()
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn service(address: &str, policy: InternalPolicy) -> Service {
    let ports = vec![ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: port(80),
    }];
    let mut service = Service::new(vec![address.parse().unwrap()], ports).unwrap();
    service.internal_policy = policy;
    service
}

/// `(address, node, conditions)`, conditions of `r`eady, `s`erving, `t`erminating.
fn slice(of: &str, number: u16, endpoints: &[(&str, &str, &str)]) -> EndpointSlice {
    let ports = vec![EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: Some(port(number)),
    }];
    let endpoints = endpoints.iter().map(|(address, node, conditions)| Endpoint {
        hostname: None,
        address: address.parse().unwrap(),
        ready: conditions.contains('r'),
        serving: conditions.contains('s'),
        terminating: conditions.contains('t'),
        node: Some(NodeName::new(*node).unwrap()),
    });
    EndpointSlice::new(
        Some(name(of)),
        AddressFamily::Ip(Family::V4),
        ports,
        endpoints.collect(),
    )
    .unwrap()
}

fn backend(policy: InternalPolicy, slices: Vec<EndpointSlice>) -> String {
    let mut cluster = Cluster::default();
    cluster
        .services
        .insert(name("web"), Ok(service("10.96.0.7", policy)));
    for (index, slice) in slices.into_iter().enumerate() {
        cluster.slices.insert(name(&format!("web-{index}")), Ok(slice));
    }
    let state = compute(&cluster, &me(), &mut Vec::new());
    state.frontends.values().next().unwrap().to_string()
}

use crate::cluster::EndpointPort;

#[test]
fn ready_endpoints_of_all_slices_are_merged_each_with_its_own_port() {
    let slices = vec![
        slice(
            "web",
            8080,
            &[("10.244.1.2", "node2", "rs"), ("10.244.0.2", "node1", "rs")],
        ),
        slice(
            "web",
            9090,
            &[("10.244.2.2", "node3", "rs"), ("10.244.2.3", "node3", "")],
        ),
        slice("other", 8080, &[("10.244.9.9", "node3", "rs")]),
    ];
    let backend = backend(InternalPolicy::Cluster, slices);
    assert_eq!(backend, "to 10.244.0.2:8080 10.244.1.2:8080 10.244.2.2:9090");
}

#[test]
fn terminating_endpoints_serve_only_when_none_is_ready() {
    let ending = ("10.244.1.2", "node2", "st");
    let with_ready = vec![slice("web", 8080, &[ending, ("10.244.0.2", "node1", "rs")])];
    assert_eq!(
        backend(InternalPolicy::Cluster, with_ready),
        "to 10.244.0.2:8080 (draining 10.244.1.2:8080)"
    );
    assert_eq!(
        backend(InternalPolicy::Cluster, vec![slice("web", 8080, &[ending])]),
        "to 10.244.1.2:8080"
    );
    let gone = vec![slice("web", 8080, &[("10.244.1.2", "node2", "t")])];
    assert_eq!(backend(InternalPolicy::Cluster, gone), "refuse");
}

#[test]
fn local_policy_takes_this_nodes_endpoints_or_drops() {
    let there = ("10.244.1.2", "node2", "rs");
    let here = ("10.244.0.2", "node1", "rs");
    assert_eq!(
        backend(InternalPolicy::Local, vec![slice("web", 80, &[there, here])]),
        "to 10.244.0.2:80"
    );
    assert_eq!(
        backend(InternalPolicy::Local, vec![slice("web", 80, &[there])]),
        "drop"
    );
    assert_eq!(backend(InternalPolicy::Local, vec![]), "refuse");
}

#[test]
fn of_two_services_with_one_address_the_first_by_name_has_it() {
    let mut cluster = Cluster::default();
    cluster
        .services
        .insert(name("b"), Ok(service("10.96.0.7", InternalPolicy::Cluster)));
    cluster
        .services
        .insert(name("a"), Ok(service("10.96.0.7", InternalPolicy::Cluster)));
    cluster
        .slices
        .insert(name("a-1"), Ok(slice("a", 80, &[("10.244.0.2", "node1", "rs")])));
    let mut problems = Vec::new();
    let state = compute(&cluster, &me(), &mut problems);
    assert_eq!(
        state.frontends.values().next().unwrap().to_string(),
        "to 10.244.0.2:80"
    );
    assert_eq!(problems.len(), 1);
    assert_eq!(
        problems[0].to_string(),
        "Service default/b: its cluster IP 10.96.0.7 belongs to service default/a; it is not served"
    );
}
