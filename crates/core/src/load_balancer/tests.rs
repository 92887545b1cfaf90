//! Assignments, as examples and held against a naive judge.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::cluster::{Cluster, LoadBalancerPool, Namespace};
use crate::oracle::load_balancer as oracle;

fn pool(cluster: &mut Cluster, name: &str, spec: serde_json::Value) {
    let created = cluster.load_balancer_pools.len() as i64;
    let pool = LoadBalancerPool::read(name, created, &spec);
    cluster.load_balancer_pools.insert(name.into(), Ok(pool));
}

fn cluster(pools: &[(&str, serde_json::Value)]) -> Cluster {
    let mut cluster = Cluster::default();
    for (name, spec) in pools {
        pool(&mut cluster, name, spec.clone());
    }
    for (name, team) in [("default", "a"), ("shop", "b")] {
        let labels = BTreeMap::from([("team".to_owned(), team.to_owned())]);
        cluster
            .namespaces
            .insert(name.into(), Namespace::new(name, labels));
    }
    cluster
}

fn claim(name: &str, created: i64) -> Claim {
    Claim {
        service: ObjectName::new("default", name),
        created,
        labels: Labels::new(),
        families: vec![Family::V4],
        all_families: true,
        ports: [(Protocol::Tcp, NonZeroU16::new(80).unwrap())].into(),
        policy: ExternalPolicy::Cluster,
        selector: [("app".to_owned(), name.to_owned())].into(),
        sharing_key: None,
        wish: Ok(Wish::default()),
        held: Vec::new(),
    }
}

fn on_port(mut claim: Claim, port: u16) -> Claim {
    claim.ports = [(Protocol::Tcp, NonZeroU16::new(port).unwrap())].into();
    claim
}

fn wishing(mut claim: Claim, addresses: &[&str]) -> Claim {
    claim.wish = Ok(Wish {
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        pool: None,
    });
    claim
}

fn holding(mut claim: Claim, addresses: &[&str]) -> Claim {
    claim.held = addresses.iter().map(|text| text.parse().unwrap()).collect();
    claim
}

fn sharing(mut claim: Claim, key: &str) -> Claim {
    claim.sharing_key = Some(key.into());
    claim
}

/// The addresses of each claim, and the reasons for what it lacks.
fn given(cluster: &Cluster, claims: &[Claim]) -> Vec<String> {
    let assignment = assign(cluster, claims);
    let text = |claim: &Claim| {
        let assigned = &assignment.services[&claim.service];
        let addresses = assigned.addresses.iter().map(ToString::to_string);
        let lacks = assigned.lacks.iter().map(|lack| lack.reason().to_owned());
        addresses.chain(lacks).collect::<Vec<_>>().join(" ")
    };
    claims.iter().map(text).collect()
}

#[test]
fn the_lowest_free_address_is_given_and_kept() {
    let cluster = cluster(&[("p", json!({"ranges": ["192.0.2.0/30"]}))]);
    let young = holding(claim("young", 9), &["192.0.2.1"]);
    assert_eq!(
        given(&cluster, &[claim("old", 1), young.clone()]),
        ["192.0.2.0", "192.0.2.1"]
    );
    // What is not in a pool any more is given back.
    let moved = holding(claim("moved", 5), &["198.51.100.1"]);
    assert_eq!(
        given(&cluster, &[claim("old", 1), moved, young]),
        ["192.0.2.0", "192.0.2.2", "192.0.2.1"]
    );
}

#[test]
fn an_exhausted_pool_says_so_and_the_oldest_have_what_there_is() {
    let cluster = cluster(&[("p", json!({"ranges": ["192.0.2.0/31"]}))]);
    let claims: Vec<Claim> = (0..3).map(|n| claim(&format!("s{n}"), n)).collect();
    assert_eq!(
        given(&cluster, &claims),
        ["192.0.2.0", "192.0.2.1", "PoolExhausted"]
    );
    let assignment = assign(&cluster, &claims);
    assert_eq!(
        assignment.pools["p"].v4,
        Usage {
            assigned: 2,
            available: 0
        }
    );
    let lack = &assignment.services[&claims[2].service].lacks[0];
    assert_eq!(
        lack.to_string(),
        "all IPv4 addresses are given of LoadBalancerPool p; add a range to spec.ranges"
    );
}

#[test]
fn pools_choose_services_and_namespaces_and_those_that_choose_come_first() {
    let cluster = cluster(&[
        ("all", json!({"ranges": ["192.0.2.0/30"]})),
        (
            "shop",
            json!({"ranges": ["198.51.100.0/30"], "namespaceSelector": {"matchLabels": {"team": "b"}}}),
        ),
        (
            "gold",
            json!({"ranges": ["203.0.113.0/30"], "serviceSelector": {"matchLabels": {"tier": "gold"}}}),
        ),
        (
            "asked",
            json!({"ranges": ["203.0.113.64/30"], "autoAssign": false}),
        ),
    ]);
    let mut shop = claim("web", 2);
    shop.service.namespace = "shop".into();
    let mut gold = claim("gold", 3);
    gold.labels.insert("tier".into(), "gold".into());
    let mut asked = claim("asked", 4);
    asked.wish = Ok(Wish {
        addresses: Vec::new(),
        pool: Some("asked".into()),
    });
    let by_address = wishing(claim("by-address", 5), &["203.0.113.66"]);
    let mut foreign = claim("foreign", 6);
    foreign.wish = Ok(Wish {
        addresses: Vec::new(),
        pool: Some("gold".into()),
    });
    let wrong = wishing(claim("wrong", 7), &["198.51.100.1"]);
    assert_eq!(
        given(
            &cluster,
            &[claim("plain", 1), shop, gold, asked, by_address, foreign, wrong]
        ),
        [
            "192.0.2.0",
            "198.51.100.0",
            "203.0.113.0",
            "203.0.113.64",
            "203.0.113.66",
            "NoPool",
            "AddressNotInPool"
        ]
    );
}

#[test]
fn services_share_an_address_when_key_and_ports_and_policy_allow_it() {
    let cluster = cluster(&[("p", json!({"ranges": ["192.0.2.0/29"]}))]);
    let web = sharing(on_port(claim("web", 1), 80), "k");
    let tls = sharing(on_port(claim("tls", 2), 443), "k");
    let again = sharing(on_port(claim("again", 3), 80), "k");
    let other = sharing(on_port(claim("other", 4), 90), "q");
    assert_eq!(
        given(&cluster, &[web.clone(), tls.clone(), again, other]),
        ["192.0.2.0", "192.0.2.0", "192.0.2.1", "192.0.2.2"]
    );
    // Asked for by name, it says why not.
    let (web, tls) = (holding(web, &["192.0.2.0"]), holding(tls, &["192.0.2.0"]));
    let asked = wishing(sharing(on_port(claim("asked", 5), 80), "k"), &["192.0.2.0"]);
    let assignment = assign(&cluster, &[web.clone(), tls, asked.clone()]);
    assert_eq!(
        assignment.services[&asked.service].lacks[0].to_string(),
        "192.0.2.0 is the address of service default/tls: both have tcp port 80".replace("tls", "web")
    );
    // Local needs the same pods.
    let mut local = wishing(sharing(on_port(claim("local", 5), 81), "k"), &["192.0.2.0"]);
    local.policy = ExternalPolicy::Local;
    let same = Claim {
        selector: web.selector.clone(),
        ..local.clone()
    };
    assert_eq!(
        given(&cluster, &[web.clone(), local]),
        ["192.0.2.0", "AddressInUse"]
    );
    assert_eq!(given(&cluster, &[web, same]), ["192.0.2.0", "192.0.2.0"]);
}

#[test]
fn wishes_come_before_chance_but_not_before_what_somebody_has() {
    let cluster = cluster(&[("p", json!({"ranges": ["192.0.2.0/30"]}))]);
    let wishing_one = wishing(claim("late", 9), &["192.0.2.0"]);
    assert_eq!(
        given(&cluster, &[claim("old", 1), wishing_one.clone()]),
        ["192.0.2.1", "192.0.2.0"]
    );
    let holder = holding(claim("old", 1), &["192.0.2.0"]);
    assert_eq!(
        given(&cluster, &[holder, wishing_one.clone()]),
        ["192.0.2.0", "AddressInUse"]
    );
    // Who has another one keeps that while it waits, and two may swap.
    let holder = holding(claim("old", 1), &["192.0.2.0"]);
    let waiting = holding(wishing_one, &["192.0.2.3"]);
    assert_eq!(
        given(&cluster, &[holder, waiting]),
        ["192.0.2.0", "192.0.2.3 AddressInUse"]
    );
    let a = holding(wishing(claim("a", 1), &["192.0.2.2"]), &["192.0.2.1"]);
    let b = holding(wishing(claim("b", 2), &["192.0.2.1"]), &["192.0.2.2"]);
    assert_eq!(given(&cluster, &[a, b]), ["192.0.2.2", "192.0.2.1"]);
}

#[test]
fn two_families_get_an_address_each() {
    let cluster = cluster(&[
        ("four", json!({"ranges": ["192.0.2.0/31"]})),
        ("six", json!({"ranges": ["2001:db8::10-2001:db8::11"]})),
    ]);
    let dual = |name: &str, created| Claim {
        families: vec![Family::V6, Family::V4],
        ..claim(name, created)
    };
    assert_eq!(
        given(
            &cluster,
            &[dual("a", 1), wishing(dual("b", 2), &["2001:db8::10"])]
        ),
        ["2001:db8::11 192.0.2.0", "2001:db8::10 192.0.2.1"]
    );
    let four = crate::cluster::Cluster {
        load_balancer_pools: cluster
            .load_balancer_pools
            .iter()
            .filter(|(name, _)| *name == "four")
            .map(|(name, pool)| (name.clone(), pool.clone()))
            .collect(),
        ..cluster.clone()
    };
    let prefers = Claim {
        all_families: false,
        ..dual("prefers", 2)
    };
    assert_eq!(
        given(&four, &[dual("needs", 1), prefers]),
        ["192.0.2.0 NoPool", "192.0.2.1"]
    );
}

#[test]
fn a_disabled_pool_keeps_its_services_and_takes_no_more() {
    let spec = json!({"ranges": ["192.0.2.0/30"], "disabled": true});
    let cluster = cluster(&[("p", spec)]);
    let holder = holding(claim("old", 1), &["192.0.2.1"]);
    assert_eq!(
        given(
            &cluster,
            &[holder, claim("new", 2), wishing(claim("asks", 3), &["192.0.2.2"])]
        ),
        ["192.0.2.1", "NoPool", "AddressNotInPool"]
    );
}

#[test]
fn ranges_that_are_somebody_elses_are_not_in_force() {
    let mut cluster = cluster(&[
        ("older", json!({"ranges": ["192.0.2.0/28"]})),
        ("younger", json!({"ranges": ["192.0.2.8-192.0.2.20"]})),
        ("pods", json!({"ranges": ["10.244.7.0/24"]})),
        ("nodes", json!({"ranges": ["198.51.100.1-198.51.100.2"]})),
    ]);
    cluster.config.cluster_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let node = crate::cluster::Node::new(
        "n1".parse().unwrap(),
        &["198.51.100.1".parse().unwrap()],
        Default::default(),
    );
    cluster.nodes.insert(node.name.clone(), Ok(node));
    let assignment = assign(&cluster, &[wishing(claim("a", 1), &["198.51.100.1"])]);
    let standing = |name: &str| format!("{:?}", assignment.pools[name].standing);
    assert_eq!(standing("older"), "Open");
    assert!(standing("younger").contains("192.0.2.0/28, of the older LoadBalancerPool older"));
    assert!(standing("pods").contains("overlaps 10.244.0.0/16, the cluster's range"));
    // A node's own address is given to nobody.
    assert_eq!(assignment.pools["nodes"].v4.available, 1);
    let assigned = assignment.services.values().next().unwrap();
    assert_eq!(assigned.addresses, Vec::<IpAddr>::new());
    let told: Vec<String> = assigned.lacks.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["198.51.100.1 is an address of node n1, which no service gets; ask for another"]
    );
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        4 => (0u8..8).prop_map(|n| IpAddr::from([192, 0, 2, n])),
        2 => (0u8..4).prop_map(|n| IpAddr::from([198, 51, 100, n])),
        2 => (0u16..5).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])),
        1 => Just(IpAddr::from([10, 0, 0, 1])),
    ]
}

fn any_claim(number: usize) -> impl Strategy<Value = Claim> {
    let families = prop_oneof![
        3 => Just(vec![Family::V4]),
        1 => Just(vec![Family::V6]),
        2 => Just(vec![Family::V4, Family::V6]),
    ];
    let wish = prop_oneof![
        6 => Just(Ok(Wish::default())),
        3 => any_address().prop_map(|address| Ok(Wish { addresses: vec![address], pool: None })),
        1 => prop_oneof![Just("p"), Just("q"), Just("none")]
            .prop_map(|pool| Ok(Wish { addresses: Vec::new(), pool: Some(pool.into()) })),
        1 => Just(Err("unreadable".to_owned())),
    ];
    let held = proptest::collection::vec(any_address(), 0..3);
    let key = proptest::option::of(prop_oneof![Just("k".to_owned()), Just("l".to_owned())]);
    (
        (0i64..3, any::<bool>(), families, any::<bool>(), wish, held),
        (1u16..4, key, any::<bool>(), 0..2usize, any::<bool>()),
    )
        .prop_map(
            move |((created, shop, families, all, wish, held), (port, key, local, app, gold))| Claim {
                service: ObjectName::new(if shop { "shop" } else { "default" }, format!("s{number}")),
                created,
                labels: gold
                    .then(|| ("tier".to_owned(), "gold".to_owned()))
                    .into_iter()
                    .collect(),
                families,
                all_families: all,
                ports: [(Protocol::Tcp, NonZeroU16::new(port).unwrap())].into(),
                policy: if local {
                    ExternalPolicy::Local
                } else {
                    ExternalPolicy::Cluster
                },
                selector: [("app".to_owned(), format!("a{app}"))].into(),
                sharing_key: key,
                wish,
                held,
            },
        )
}

fn any_claims() -> impl Strategy<Value = Vec<Claim>> {
    (0..8usize).prop_flat_map(|count| (0..count).map(any_claim).collect::<Vec<_>>())
}

fn any_cluster() -> impl Strategy<Value = Cluster> {
    let flags = (any::<bool>(), any::<bool>(), 0..4u8, 0..4u8);
    flags.prop_map(|(avoid, disabled, request, overlap)| {
        let mut pools = vec![
            (
                "p",
                json!({"ranges": ["192.0.2.0-192.0.2.5", "2001:db8::/126"], "avoidFirstAndLast": avoid}),
            ),
            (
                "q",
                json!({"ranges": ["198.51.100.0/30"], "disabled": disabled, "autoAssign": request != 0,
                       "namespaceSelector": {"matchLabels": {"team": "b"}}}),
            ),
        ];
        if overlap == 0 {
            let selector = json!({"matchLabels": {"tier": "gold"}});
            pools.push((
                "r",
                json!({"ranges": ["192.0.2.4-192.0.2.7"], "serviceSelector": selector}),
            ));
        }
        cluster(&pools)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_address_is_two_services_and_nothing_is_lost(cluster in any_cluster(), claims in any_claims()) {
        let assignment = assign(&cluster, &claims);
        if let Err(why) = oracle::judge(&cluster, &claims, &assignment) {
            return Err(TestCaseError::fail(format!("{why}\n{claims:#?}\n{assignment:#?}")));
        }
    }

    #[test]
    fn what_was_assigned_stays(cluster in any_cluster(), mut claims in any_claims(), new in any_claim(99)) {
        let before = assign(&cluster, &claims);
        for claim in &mut claims {
            claim.held = before.services[&claim.service].addresses.clone();
        }
        let again = assign(&cluster, &claims);
        prop_assert_eq!(&before, &again);
        // Whoever comes later takes nothing from those that ask for nothing else.
        claims.push(Claim { created: 9, held: Vec::new(), ..new });
        let more = assign(&cluster, &claims);
        for claim in &claims {
            if claim.wish.as_ref().is_ok_and(|wish| wish.addresses.is_empty()) && claim.created < 9 {
                let had = &before.services[&claim.service].addresses;
                prop_assert_eq!(had, &more.services[&claim.service].addresses);
            }
        }
    }

    #[test]
    fn the_order_of_the_objects_does_not_matter(cluster in any_cluster(), claims in any_claims()) {
        let mut reversed = claims.clone();
        reversed.reverse();
        prop_assert_eq!(assign(&cluster, &claims), assign(&cluster, &reversed));
    }
}
