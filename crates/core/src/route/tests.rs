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

#[test]
fn within_a_subnet_there_is_no_tunnel() {
    let mut cluster = three(Routing::default());
    cluster.config.cross_subnet = true;
    // node3 has no IPv6 address, and node4 is on another subnet.
    let ranges = &["10.244.3.0/24", "fd00:10:244:3::/64"];
    let far = node("node4", &["172.30.1.14", "fd30::1:0:0:0:14"], ranges);
    cluster.nodes.insert(far.name.clone(), Ok(far));
    cluster.local.subnets = ["172.30.0.0/24", "fd30::/64"]
        .map(|net| net.parse().unwrap())
        .into();
    let state = crate::compute(&cluster, &NodeName::new("node1").unwrap());
    insta::assert_snapshot!(state);
}

#[test]
fn what_the_path_does_not_carry_is_on_its_route() {
    let mut cluster = three(Routing::default());
    let range: IpNet = "10.244.1.0/24".parse().unwrap();
    // The second is nobody's any longer.
    cluster.local.path_mtu = [(range, 1350), ("10.244.77.0/24".parse().unwrap(), 1300)].into();
    let state = crate::compute(&cluster, &NodeName::new("node1").unwrap());
    assert_eq!(state.routing.path_mtu, [(range, 1350)].into());
    assert!(
        state
            .to_string()
            .contains("route 10.244.1.0/24 via 10.244.1.0 on the tunnel mtu 1350\n")
    );
}

#[test]
fn a_node_without_its_object_goes_on_as_before() {
    let me = NodeName::new("node1").unwrap();
    let mut cluster = three(Routing::default());
    let before = crate::compute(&cluster, &me);
    cluster.local.node = cluster.node(&me).cloned();
    cluster.nodes.remove(&me);
    assert_eq!(crate::compute(&cluster, &me).routing, before.routing);
    // It comes back, and has no range yet.
    let bare = node("node1", &["172.30.0.11"], &[]);
    cluster.nodes.insert(me.clone(), Ok(bare));
    let meanwhile = crate::compute(&cluster, &me);
    assert_eq!(meanwhile.routing, before.routing);
    assert!(
        meanwhile
            .problems
            .iter()
            .any(|problem| problem.why.contains("goes on with 10.244.0.0/24"))
    );
    // One that never knew itself must not touch what another agent has made.
    cluster.local.node = None;
    assert!(!crate::compute(&cluster, &me).routing.known);
    cluster.nodes.remove(&me);
    assert!(!crate::compute(&cluster, &me).routing.known);
}

/// The problems of a cluster of three into which a fourth came, and whether the other three are as before.
fn intruder(intruder: Node) -> Vec<String> {
    let me = NodeName::new("node1").unwrap();
    let mut cluster = three(Routing::default());
    for (age, parsed) in cluster.nodes.values_mut().enumerate() {
        parsed.as_mut().unwrap().created = Some(age as i64);
    }
    let before = crate::compute(&cluster, &me);
    let name = intruder.name.clone();
    cluster.nodes.insert(
        name.clone(),
        Ok(Node {
            created: Some(9),
            ..intruder
        }),
    );
    let state = crate::compute(&cluster, &me);
    for (destination, hop) in &before.routing.routes {
        assert_eq!(state.routing.routes.get(destination), Some(hop), "{destination}");
    }
    for (mac, remote) in &before.routing.forwarding {
        assert_eq!(state.routing.forwarding.get(mac), Some(remote));
    }
    assert_eq!(state.routing.routes.len(), before.routing.routes.len(), "{state}");
    state
        .problems
        .into_iter()
        .inspect(|problem| assert_eq!(problem.object, ObjectRef::node(&name)))
        .map(|problem| problem.why)
        .collect()
}

#[test]
fn a_node_that_claims_what_is_not_its_own_hurts_itself_only() {
    // By name it would come first.
    for (range, why) in [
        (
            "10.244.0.0/16",
            "its range 10.244.0.0/16 overlaps 10.244.0.0/24 of node node1",
        ),
        (
            "10.244.2.128/25",
            "its range 10.244.2.128/25 overlaps 10.244.2.0/24 of node node3",
        ),
        (
            "172.30.0.0/24",
            "its range 172.30.0.0/24 is not within --cluster-cidr",
        ),
    ] {
        let problems = intruder(node("a", &["172.30.0.66"], &[range]));
        assert_eq!(problems, [format!("{why}; no route to its pods")]);
    }
    for (address, why) in [
        (
            "172.30.0.11",
            "its InternalIP 172.30.0.11 is that of node node1; no way to it",
        ),
        (
            "10.244.1.9",
            "its InternalIP 10.244.1.9 is within 10.244.0.0/16, which is pods' or services'; no way to it",
        ),
    ] {
        assert_eq!(intruder(node("a", &[address], &["10.244.9.0/24"])), [why]);
    }
}

#[test]
fn without_a_cluster_range_a_peer_still_gets_neither_the_underlay_nor_services() {
    let me = NodeName::new("node1").unwrap();
    let nodes = ["172.30.0.0/24", "192.168.7.0/25", "10.96.0.0/24", "10.244.1.0/24"];
    let peers = (2..).zip(nodes).map(|(number, range)| {
        node(
            &format!("node{number}"),
            &[&format!("172.30.0.{number}")],
            &[range],
        )
    });
    let own = node("node1", &["172.30.0.11"], &["10.244.0.0/24"]);
    let mut cluster = cluster(Routing::Direct, peers.chain([own]).collect());
    cluster.config.cluster_cidrs.clear();
    cluster.config.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    cluster.local.subnets = ["192.168.0.0/16".parse().unwrap()].into();
    let state = crate::compute(&cluster, &me);
    let ways = state.routing.routes.iter().filter(|(_, hop)| **hop != Hop::Sink);
    let ways: Vec<String> = ways.map(|(range, _)| range.to_string()).collect();
    assert_eq!(ways, ["10.244.0.0/24", "10.244.1.0/24"]);
    assert_eq!(state.problems.len(), 3, "{state}");
}
