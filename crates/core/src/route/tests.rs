use super::*;
use crate::cluster::{ClusterConfig, Node, PodRanges};

fn node(name: &str, addresses: &[&str], ranges: &[&str]) -> Node {
    let addresses: Vec<IpAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let ranges = PodRanges::new(ranges.iter().map(|text| text.parse().unwrap())).unwrap();
    Node::new(NodeName::new(name).unwrap(), &addresses, ranges)
}

fn cluster(routing: Routing, nodes: Vec<Node>) -> Cluster {
    let cluster_cidrs = vec![
        "10.244.0.0/16".parse().unwrap(),
        "fd00:10:244::/56".parse().unwrap(),
    ];
    let mut cluster = Cluster::new(ClusterConfig {
        cluster_cidrs,
        routing,
        ..ClusterConfig::default()
    });
    cluster.nodes = nodes
        .into_iter()
        .map(|node| (node.name.clone(), Ok(node)))
        .collect();
    cluster
}

fn three(routing: Routing) -> Cluster {
    cluster(
        routing,
        vec![
            node(
                "node1",
                &["172.30.0.11", "fd30::11"],
                &["10.244.0.0/24", "fd00:10:244::/64"],
            ),
            node(
                "node2",
                &["172.30.0.12", "fd30::12"],
                &["10.244.1.0/24", "fd00:10:244:1::/64"],
            ),
            node("node3", &["172.30.0.13"], &["10.244.2.0/24"]),
        ],
    )
}

#[test]
fn vxlan_leads_to_every_peer_through_the_network_address_of_its_range() {
    let state = crate::compute(&three(Routing::default()), &NodeName::new("node1").unwrap());
    insta::assert_snapshot!(state);
}

#[test]
fn direct_routes_go_by_the_node_of_the_ranges_family() {
    let state = crate::compute(&three(Routing::Direct), &NodeName::new("node2").unwrap());
    insta::assert_snapshot!(state);
}

#[test]
fn a_node_that_lacks_something_is_left_out_and_named() {
    let cluster = cluster(
        Routing::default(),
        vec![
            node("node1", &["172.30.0.11"], &["10.244.0.0/24"]),
            node("node2", &["172.30.0.12"], &[]),
            node("node3", &["fd30::13"], &["10.244.2.0/24"]),
            node("node4", &["172.30.0.14"], &["10.244.0.128/25"]),
            node("node5", &["172.30.0.15"], &["10.244.5.0/24"]),
        ],
    );
    let state = crate::compute(&cluster, &NodeName::new("node1").unwrap());
    insta::assert_snapshot!(state);
}

#[test]
fn macs_are_local_unicast_and_differ_by_name() {
    let macs: BTreeSet<Mac> = (0..1000)
        .map(|i| Mac::of_node(&NodeName::new(format!("n{i}")).unwrap()))
        .collect();
    assert_eq!(macs.len(), 1000);
    assert!(macs.iter().all(|mac| mac.0[0] & 0b11 == 0b10));
}
