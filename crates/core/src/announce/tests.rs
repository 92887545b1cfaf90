//! What is announced as examples, and whole networks of announcers with everything that can happen to them.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::cluster::{Endpoint, EndpointSlice, LoadBalancerPool, Node, PodRanges, Protocol, ServicePort};

mod network;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

/// Three nodes and a pool.
fn cluster(spec: serde_json::Value) -> Cluster {
    let mut cluster = Cluster::default();
    for number in 1..=3 {
        let mut node = Node::new(
            name(&format!("n{number}")),
            &[IpAddr::from([10, 0, 0, number])],
            PodRanges::default(),
        );
        node.labels.insert("number".into(), number.to_string());
        cluster.nodes.insert(node.name.clone(), Ok(node));
    }
    let pool = LoadBalancerPool::read("p", 0, &spec);
    cluster.load_balancer_pools.insert("p".into(), Ok(pool));
    cluster
}

fn service(cluster: &mut Cluster, name: &str, addresses: &[&str], policy: ExternalPolicy) {
    let ports = vec![ServicePort::new("", Protocol::Tcp, std::num::NonZeroU16::MIN)];
    let mut service = Service::new(vec![ip("10.96.0.1"), ip("fd00::1")], ports).unwrap();
    service.external.load_balancer = addresses.iter().map(|text| ip(text)).collect();
    service.external.policy = policy;
    cluster
        .services
        .insert(ObjectName::new("default", name), Ok(service));
}

fn slice(cluster: &mut Cluster, service: &str, endpoints: Vec<Endpoint>) {
    let family = AddressFamily::Ip(Family::of(endpoints[0].address));
    let service = ObjectName::new("default", service);
    let slice = EndpointSlice::new(Some(service.clone()), family, Vec::new(), endpoints).unwrap();
    cluster.slices.insert(service, Ok(slice));
}

fn on(node: &str) -> Endpoint {
    Endpoint::ready(ip("10.1.0.1"), Some(name(node)))
}

/// Who may have each address.
fn may(cluster: &Cluster) -> Vec<String> {
    let announcements = compute(cluster);
    let line = |(address, announcement): (&IpAddr, &Announcement)| {
        let nodes: Vec<&str> = announcement.nodes.iter().map(NodeName::as_str).collect();
        format!("{address} {}", nodes.join(" "))
    };
    announcements.addresses.iter().map(line).collect()
}

#[test]
fn every_node_may_have_an_address_under_cluster_policy_and_those_with_ready_endpoints_under_local() {
    let mut cluster = cluster(json!({"ranges": ["192.0.2.0/24"]}));
    service(&mut cluster, "a", &["192.0.2.1"], ExternalPolicy::Cluster);
    service(&mut cluster, "b", &["192.0.2.2"], ExternalPolicy::Local);
    let unready = Endpoint {
        ready: false,
        ..on("n3")
    };
    let ending = Endpoint {
        ready: false,
        terminating: true,
        ..on("n1")
    };
    slice(&mut cluster, "b", vec![on("n2"), unready.clone(), ending.clone()]);
    assert_eq!(may(&cluster), ["192.0.2.1 n1 n2 n3", "192.0.2.2 n2"]);
    slice(&mut cluster, "b", vec![unready, ending]);
    assert_eq!(may(&cluster)[1], "192.0.2.2 n1");
}

#[test]
fn nodes_are_chosen_by_the_pool_and_by_the_label_that_excludes_them() {
    let selector = json!({"matchExpressions": [{"key": "number", "operator": "In", "values": ["2", "3"]}]});
    let mut cluster =
        cluster(json!({"ranges": ["192.0.2.0/24"], "announcement": {"nodeSelector": selector}}));
    service(&mut cluster, "a", &["192.0.2.1"], ExternalPolicy::Cluster);
    assert_eq!(may(&cluster), ["192.0.2.1 n2 n3"]);
    let node = cluster.nodes.get_mut(&name("n2")).unwrap().as_mut().unwrap();
    node.labels.insert(EXCLUDED.into(), String::new());
    assert_eq!(may(&cluster), ["192.0.2.1 n3"]);
}

#[test]
fn no_machines_own_address_is_announced() {
    let mut cluster = cluster(json!({"ranges": ["192.0.2.0/24", "10.1.0.0/24"]}));
    let own = cluster
        .valid_nodes()
        .next()
        .unwrap()
        .all_addresses
        .iter()
        .next()
        .copied();
    let own = own.unwrap().to_string();
    // The endpoint of slices here: as the API server's it is one of its addresses.
    slice(&mut cluster, "kubernetes", vec![on("n2")]);
    let all = ["192.0.2.1", "10.1.0.1", own.as_str()];
    service(&mut cluster, "a", &all, ExternalPolicy::Cluster);
    assert_eq!(may(&cluster), ["192.0.2.1 n1 n2 n3"]);
}

#[test]
fn only_addresses_of_pools_that_say_so_are_announced() {
    let spec = json!({"ranges": ["192.0.2.0/24"], "announcement": {"interfaces": ["lan*"]}});
    let mut cluster = cluster(spec.clone());
    service(
        &mut cluster,
        "a",
        &["192.0.2.1", "203.0.113.1", "10.0.0.1"],
        ExternalPolicy::Cluster,
    );
    assert_eq!(may(&cluster), ["192.0.2.1 n1 n2 n3"]);
    let announcements = compute(&cluster);
    let announcement = &announcements.addresses[&ip("192.0.2.1")];
    assert!(announcement.is_on("lan0", false) && !announcement.is_on("eth0", true));
    assert_eq!(
        announcements.to_string(),
        "announce 192.0.2.1 on lan*, by one of n1 n2 n3\n"
    );
    let mut routed = spec;
    routed["announcement"]["localNetwork"] = json!(false);
    let pool = LoadBalancerPool::read("p", 0, &routed);
    cluster.load_balancer_pools.insert("p".into(), Ok(pool));
    assert_eq!(compute(&cluster), Announcements::default());
}

#[test]
fn an_address_that_services_share_is_where_all_of_them_are_served() {
    let mut cluster = cluster(json!({"ranges": ["192.0.2.0/24"]}));
    service(&mut cluster, "a", &["192.0.2.1"], ExternalPolicy::Cluster);
    service(&mut cluster, "b", &["192.0.2.1"], ExternalPolicy::Local);
    slice(&mut cluster, "b", vec![on("n2")]);
    assert_eq!(may(&cluster), ["192.0.2.1 n2"]);
}

fn any_nodes() -> impl Strategy<Value = BTreeMap<NodeName, Standing>> {
    let standing = prop_oneof![1 => Just(Standing::Behind), 3 => Just(Standing::InForce)];
    proptest::collection::btree_map("[a-z]{1,5}".prop_map(|text| name(&text)), standing, 1..8)
}

fn chosen(address: IpAddr, nodes: &BTreeMap<NodeName, Standing>) -> Option<&NodeName> {
    speaker(address, nodes.iter().map(|(name, standing)| (name, *standing)))
}

proptest! {
    #[test]
    fn whoever_goes_leaves_only_its_own_addresses_and_whoever_comes_takes_only_its_own(
        nodes in any_nodes(), at in any::<prop::sample::Index>(), address in any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
    ) {
        let before = chosen(address, &nodes).unwrap();
        prop_assert!(nodes.contains_key(before));
        // Somebody whose kernel is right, where there is one.
        let best = nodes.values().max().unwrap();
        prop_assert_eq!(&nodes[before], best);
        let goes = nodes.keys().nth(at.index(nodes.len())).unwrap();
        let mut fewer = nodes.clone();
        fewer.remove(goes);
        if goes != before {
            prop_assert_eq!(chosen(address, &fewer), Some(before));
        }
    }
}

#[test]
fn addresses_are_spread_evenly() {
    let nodes: BTreeMap<NodeName, Standing> = (1..=5)
        .map(|number| (name(&format!("worker-{number}")), Standing::InForce))
        .collect();
    let mut counts: BTreeMap<&NodeName, usize> = BTreeMap::new();
    for low in 0..=255 {
        for high in 0..4 {
            *counts
                .entry(chosen(IpAddr::from([192, 168, high, low]), &nodes).unwrap())
                .or_default() += 1;
        }
    }
    // 1,024 addresses over 5 nodes: 205 each, and a standard deviation of 13.
    assert!(
        counts.len() == 5 && counts.values().all(|count| (140..270).contains(count)),
        "{counts:?}"
    );
}
