//! What Linux 6.12 has and the kernel that tests run on may lack: `cargo xtask vm` runs these.

use std::net::SocketAddr;

use podnet_agent::cni_server::Wiring;
use podnet_agent::wiring::Pair;
use podnet_linux::netlink::{LinkKind, Netlink};

use crate::node::{self, Node, Pod, answer};
use crate::{addresses, answer_nothing, wiring};

const NETKIT: Wiring = Wiring::Routed(Pair::Netkit);

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn auto_wires_with_netkit() {
    assert_eq!(Pair::probe(), Pair::Netkit);
}

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn netkit_pairs_join_pods_with_each_other_and_their_node() {
    let mut node = Node::wired(NETKIT);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let results = [&one, &two].map(|pod| answer(&node.cni("ADD", pod, "1.1.0", None)));
    for (pod, result) in [&one, &two].into_iter().zip(&results) {
        let far = pod
            .netns
            .run(|| Netlink::open().unwrap().link("eth0").unwrap().unwrap());
        assert_eq!(far.unwrap().kind, LinkKind::Netkit);
        let name = result["interfaces"][0]["name"].as_str().unwrap();
        let near = node
            .netns
            .run(|| Netlink::open().unwrap().link(name).unwrap().unwrap());
        assert_eq!(near.unwrap().kind, LinkKind::Netkit);
    }
    let (first, second) = (addresses(&results[0]), addresses(&results[1]));
    for family in 0..2 {
        let server = SocketAddr::new(second[family], 8080);
        let from = first[family];
        assert_eq!(node::connect(&one.netns, &two.netns, server), from, "pod to pod");
        let own = node.addresses()[family];
        assert_eq!(node::connect(&node.netns, &two.netns, server), own, "node to pod");
        let server = SocketAddr::new(own, 8080);
        assert_eq!(
            node::connect(&one.netns, &node.netns, server),
            from,
            "pod to node"
        );
    }
    node.stop();
    node.restart();
    for (pod, result) in [&one, &two].into_iter().zip(&results) {
        answer_nothing(&node.cni("CHECK", pod, "1.1.0", Some(result)));
        answer_nothing(&node.cni("DEL", pod, "1.1.0", None));
    }
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn host_ports_lead_to_pods_behind_netkit() {
    wiring::host_ports(NETKIT);
}

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn limits_hold_behind_netkit() {
    wiring::limits(NETKIT);
}
