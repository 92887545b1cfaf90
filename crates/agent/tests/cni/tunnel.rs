//! Pods of two nodes, and the VXLAN tunnel that the data plane makes between these.

use std::net::SocketAddr;
use std::process::Command;

use ipnet::IpNet;
use podnet_cni::WiringName;
use podnet_core::cluster::{
    Cluster, ClusterConfig, DataplaneName, Node as NodeObject, NodeName, PodRanges, Routing,
};
use podnet_core::compute;
use podnet_dataplane::{Dataplane, Kernel};
use serde_json::Value;

use crate::node::{self, Node, Pod, answer};
use crate::{addresses, wiring};

#[test]
fn pods_of_two_nodes_reach_each_other_through_the_tunnel() {
    tunnel_of(WiringName::Ptp);
}

#[test]
fn pods_on_bridges_reach_each_other_through_the_tunnel() {
    tunnel_of(WiringName::Bridge);
}

pub(crate) fn tunnel_of(wired: WiringName) {
    let nodes = Node::pair(wired);
    let cluster = cluster(&nodes);
    for node in &nodes {
        let state = compute(&cluster, &NodeName::new(node.name()).unwrap());
        assert_eq!(state.problems, []);
        let applied = node.netns.run(|| {
            Kernel::open(None, DataplaneName::Nftables)
                .unwrap()
                .apply(&state)
                .unwrap()
        });
        let applied = applied.unwrap();
        assert_eq!((applied.pod_mtu, applied.refused), (Some(1450), Vec::new()));
    }
    let pods = ["one", "two"].map(Pod::new);
    let [one, two] = &pods;
    let results = [0, 1].map(|n| answer(&nodes[n].cni("ADD", &pods[n], "1.1.0", None)));
    let (first, second) = (addresses(&results[0]), addresses(&results[1]));
    for family in 0..2 {
        let (from, to) = (first[family], second[family]);
        let seen = |client: &Pod, server: &Pod, address| {
            node::connect(&client.netns, &server.netns, SocketAddr::new(address, 8080))
        };
        assert_eq!(seen(one, two, to), from, "pod to pod of another node");
        assert_eq!(seen(two, one, from), to, "and back");
        one.netns.run(|| node::ping(to)).unwrap();
        // Whole segments, and what the kernel leaves to the device: their cutting, and their checksums.
        wiring::transfer(&one.netns, &two.netns, to, 300_000);
        wiring::transfer(&two.netns, &one.netns, from, 300_000);
        let server = SocketAddr::new(to, 8080);
        let from_node = node::connect(&nodes[0].netns, &two.netns, server);
        let range: IpNet = nodes[0].ranges()[family].parse().unwrap();
        assert!(
            range.contains(&from_node),
            "node to pod of another node: {from_node}"
        );
    }
    for node in &nodes {
        let sent = tunnelled(node);
        assert!(
            // The kernel counts many segments as one.
            sent > 20,
            "{sent} packets of {} went through the tunnel",
            node.name()
        );
    }
}

/// How many packets a node has sent through its tunnel.
fn tunnelled(node: &Node) -> u64 {
    let list = || {
        Command::new("ip")
            .args(["-json", "-statistics", "link", "show", "podnet.vxlan"])
            .output()
            .unwrap()
    };
    let output = node.netns.run(list).unwrap();
    let links: Value = serde_json::from_slice(&output.stdout).unwrap();
    links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

fn cluster(nodes: &[Node]) -> Cluster {
    let mut cluster = Cluster::new(ClusterConfig {
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/56".parse().unwrap(),
        ],
        routing: Routing::default(),
        masquerade: Some(Vec::new()),
        ..ClusterConfig::default()
    });
    for node in nodes {
        let name = NodeName::new(node.name()).unwrap();
        let ranges = PodRanges::new(node.ranges().iter().map(|range| range.parse().unwrap())).unwrap();
        let object = NodeObject::new(name.clone(), &node.addresses(), ranges);
        cluster.nodes.insert(name, Ok(object));
    }
    cluster
}
