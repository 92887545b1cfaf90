//! Pods on a bridge, and beside others.

use std::net::{IpAddr, SocketAddr};

use podnet_agent::wiring::Pair;
use podnet_cni::WiringName;
use podnet_linux::netlink::{LinkKind, Netlink};
use serde_json::{Value, json};

use crate::node::{self, Node, Pod, answer, error_code};
use crate::wiring::{sh, through, with};
use crate::{addresses, answer_nothing};

#[test]
fn a_bridge_joins_pods_with_each_other_and_their_node() {
    let mut node = Node::wired(WiringName::Bridge);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let results = [&one, &two].map(|pod| answer(&node.cni("ADD", pod, "1.1.0", None)));
    assert_eq!(results[0]["ips"][0]["gateway"], "10.244.1.1");
    assert!(results[0]["ips"][0]["address"].as_str().unwrap().ends_with("/24"));
    assert_eq!(results[0]["ips"][1]["gateway"], "fd00:10:244:1::1");
    let (first, second) = (addresses(&results[0]), addresses(&results[1]));
    for family in 0..2 {
        let (from, to) = (first[family], second[family]);
        let server = SocketAddr::new(to, 8080);
        assert_eq!(node::connect(&one.netns, &two.netns, server), from, "pod to pod");
        let gateway: IpAddr = ["10.244.1.1", "fd00:10:244:1::1"][family].parse().unwrap();
        assert_eq!(
            node::connect(&node.netns, &two.netns, server),
            gateway,
            "node to pod"
        );
        let server = SocketAddr::new(node.addresses()[family], 8080);
        assert_eq!(
            node::connect(&one.netns, &node.netns, server),
            from,
            "pod to node"
        );
    }
    // Between two pods no router is on the way: one knows the other as a neighbour.
    let other = format!("ip neigh show dev eth0 | grep -q '{} lladdr'", second[0]);
    sh(&one.netns, &other);
    node.stop();
    node.restart();
    for (pod, result) in [&one, &two].into_iter().zip(&results) {
        answer_nothing(&node.cni("CHECK", pod, "1.1.0", Some(result)));
        answer_nothing(&node.cni("DEL", pod, "1.1.0", None));
    }
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
    let known = node.netns.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let bridge = netlink.link("cbr0").unwrap().unwrap();
        let known = netlink.neighbours(Some(bridge.index)).unwrap();
        known.into_iter().filter(|known| known.permanent).count()
    });
    assert_eq!(known.unwrap(), 0, "the bridge knows no pod any more");
}

#[test]
fn a_pod_on_a_bridge_reaches_itself_through_a_host_port() {
    hairpin_of(WiringName::Bridge);
}

/// Its own host port, from the pod itself, from another pod and from the node.
pub(crate) fn hairpin_of(wiring: WiringName) {
    let node = Node::wired(wiring);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let wishes = json!({ "portMappings": [{ "hostPort": 8081, "containerPort": 8080, "protocol": "tcp" }] });
    let own = addresses(&answer(&node.cni_with("ADD", &one, "1.1.0", with(&wishes))));
    answer(&node.cni("ADD", &two, "1.1.0", None));
    for (family, to) in ["172.30.0.10:8081", "[fd30::a]:8081"].into_iter().enumerate() {
        let serving = SocketAddr::new(own[family], 8080);
        for from in [&one, &two] {
            through(&from.netns, to, &one.netns, serving);
        }
        through(&node.netns, to, &one.netns, serving);
    }
    through(
        &node.netns,
        "127.0.0.1:8081",
        &one.netns,
        SocketAddr::new(own[0], 8080),
    );
}

/// The kind of the link that an ADD made on the node, and the bridge that it is a port of.
pub(crate) fn kind(node: &Node, result: &Value) -> (LinkKind, bool) {
    let name = result["interfaces"][0]["name"].as_str().unwrap();
    let link = node
        .netns
        .run(|| Netlink::open().unwrap().link(name).unwrap().unwrap());
    let link = link.unwrap();
    (link.kind, link.master.is_some())
}

#[test]
fn a_network_chooses_its_wiring_and_pods_of_all_wirings_reach_each_other() {
    let node = Node::start();
    // Some are there before the bridge is, some come after it.
    let wanted = [None, Some("bridge"), Some("ptp"), Some("bridge"), Some("auto")];
    let pods: Vec<(Pod, Vec<IpAddr>)> = wanted
        .iter()
        .enumerate()
        .map(|(n, wiring)| {
            let pod = Pod::new(&format!("mixed-{n}"));
            let result = answer(&node.cni_with("ADD", &pod, "1.1.0", json!({ "wiring": wiring })));
            let pair = match Pair::probe() {
                Pair::Netkit => LinkKind::Netkit,
                Pair::Veth => LinkKind::Veth,
            };
            let expected = match *wiring {
                Some("auto") => (pair, false),
                wiring => (LinkKind::Veth, wiring == Some("bridge")),
            };
            assert_eq!(kind(&node, &result), expected, "{wiring:?}");
            answer_nothing(&node.cni("CHECK", &pod, "1.1.0", Some(&result)));
            (pod, addresses(&result))
        })
        .collect();
    for (from, own) in &pods {
        for (to, theirs) in pods.iter().filter(|(to, _)| to.id != from.id) {
            for family in 0..2 {
                let server = SocketAddr::new(theirs[family], 8080);
                let seen = node::connect(&from.netns, &to.netns, server);
                assert_eq!(seen, own[family], "{} to {}", from.id, to.id);
            }
        }
    }
    for (pod, _) in &pods {
        answer_nothing(&node.cni("DEL", pod, "1.1.0", None));
    }
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
    let answered = node
        .netns
        .run(|| Netlink::open().unwrap().proxy_neighbours(None).unwrap());
    assert_eq!(answered.unwrap(), [], "the node answers for nobody any more");
}

#[test]
fn netkit_is_wired_where_the_kernel_has_it_and_else_refused_with_the_cause() {
    let node = Node::start();
    let pod = Pod::new("netkit");
    let output = node.cni_with("ADD", &pod, "1.1.0", json!({ "wiring": "netkit" }));
    if Pair::probe() == Pair::Netkit {
        assert_eq!(kind(&node, &answer(&output)), (LinkKind::Netkit, false));
    } else {
        assert_eq!(error_code(&output), 100);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains("CONFIG_NETKIT") && text.contains("choose the wiring ptp or auto"),
            "{text}"
        );
        assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
    }
}
