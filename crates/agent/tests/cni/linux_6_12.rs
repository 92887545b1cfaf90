//! Netkit, which Linux has since 6.7, and the kernel that tests run on may not have: `cargo xtask vm` runs these.

use std::net::SocketAddr;

use podnet_agent::wiring::Pair;
use podnet_cni::WiringName;
use podnet_linux::netlink::{LinkKind, Netlink};
use serde_json::json;

use crate::bridge::{self, kind};
use crate::node::{self, Node, Pod, answer, error_code};
use crate::{addresses, answer_nothing, tunnel, wiring};

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn auto_wires_with_netkit() {
    assert_eq!(Pair::probe(), Pair::Netkit);
    let node = Node::wired(WiringName::Auto);
    let pod = Pod::new("auto");
    let result = answer(&node.cni("ADD", &pod, "1.1.0", None));
    assert_eq!(kind(&node, &result), (LinkKind::Netkit, false));
}

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn netkit_pairs_join_pods_with_each_other_and_their_node() {
    let mut node = Node::wired(WiringName::Netkit);
    let pods = [Pod::new("one"), Pod::new("two")];
    let [one, two] = &pods;
    let results = [one, two].map(|pod| answer(&node.cni("ADD", pod, "1.1.0", None)));
    for (pod, result) in pods.iter().zip(&results) {
        let far = pod
            .netns
            .run(|| Netlink::open().unwrap().link("eth0").unwrap().unwrap());
        let far = far.unwrap();
        assert_eq!((far.kind, far.mtu), (LinkKind::Netkit, 1450));
        assert_eq!(kind(&node, result), (LinkKind::Netkit, false));
    }
    let (first, second) = (addresses(&results[0]), addresses(&results[1]));
    for family in 0..2 {
        let (from, to) = (first[family], second[family]);
        let own = node.addresses()[family];
        // At once, with nothing sent before: the carrier, the routes and the neighbours are there.
        let seen = |client, server, address| node::connect(client, server, SocketAddr::new(address, 8080));
        assert_eq!(seen(&one.netns, &two.netns, to), from, "pod to pod");
        assert_eq!(seen(&two.netns, &one.netns, from), to, "and back");
        assert_eq!(seen(&node.netns, &two.netns, to), own, "node to pod");
        assert_eq!(seen(&one.netns, &node.netns, own), from, "pod to node");
        one.netns.run(|| node::ping(to)).unwrap();
    }
    // An agent that starts later knows them all the same.
    node.stop();
    node.restart();
    for (pod, result) in pods.iter().zip(&results) {
        answer_nothing(&node.cni("CHECK", pod, "1.1.0", Some(result)));
        answer_nothing(&node.cni("DEL", pod, "1.1.0", None));
    }
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn check_sees_a_netkit_link_without_its_route() {
    let node = Node::wired(WiringName::Netkit);
    let pod = Pod::new("changed");
    let result = answer(&node.cni("ADD", &pod, "1.1.0", None));
    answer_nothing(&node.cni("CHECK", &pod, "1.1.0", Some(&result)));
    wiring::sh(&pod.netns, "ip route delete default");
    assert_eq!(error_code(&node.cni("CHECK", &pod, "1.1.0", Some(&result))), 101);
}

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn garbage_collection_and_a_pod_that_is_gone_leave_no_netkit_link() {
    let node = Node::wired(WiringName::Netkit);
    let pods = ["alive", "dead", "vanishing"].map(Pod::new);
    for pod in &pods {
        answer(&node.cni("ADD", pod, "1.1.0", None));
    }
    let [alive, _dead, vanishing] = pods;
    // Its namespace goes, and the link with it.
    drop(vanishing);
    node.wait_until("the lease is freed", || node.leases() == 2);
    let valid = json!([{ "containerID": alive.id, "ifname": "eth0" }]);
    answer_nothing(&node.bare("GC", "1.1.0", json!({ "cni.dev/valid-attachments": valid })));
    node.settle();
    assert_eq!((node.leases(), node.pod_links()), (1, 1));
    answer_nothing(&node.bare("GC", "1.1.0", json!({ "cni.dev/valid-attachments": [] })));
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn host_ports_lead_to_pods_behind_netkit() {
    wiring::host_ports_of(WiringName::Netkit);
}

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn a_pod_behind_netkit_reaches_itself_through_a_host_port() {
    bridge::hairpin_of(WiringName::Netkit);
}

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn limits_hold_behind_netkit() {
    wiring::limits_of(WiringName::Netkit);
}

#[test]
#[ignore = "needs Linux 6.12: cargo xtask vm"]
fn netkit_pods_of_two_nodes_reach_each_other_through_the_tunnel() {
    tunnel::tunnel_of(WiringName::Netkit);
}
