//! Kernel settings and routes of pods.

use podnet_linux::netlink::{Netlink, RouteFilter};
use podnet_linux::sysctl;
use serde_json::{Value, json};

use crate::answer_nothing;
use crate::node::{Node, Pod, answer, error_code};
use crate::wiring::sh;

fn annotated(text: &str) -> Value {
    json!({ "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { "podnet.io/sysctls": text } } })
}

#[test]
fn a_network_gives_its_pods_settings_and_routes() {
    let node = Node::start();
    let pod = Pod::new("tuned");
    let more = json!({
        "sysctl": { "net.core.somaxconn": "77", "net.ipv4.conf.IFNAME.arp_filter": "1" },
        "routes": [{ "dst": "192.0.2.0/24" }, { "dst": "198.51.100.0/24", "gw": "169.254.1.1" }, { "dst": "2001:db8::/32" }],
    });
    let result = answer(&node.cni_with("ADD", &pod, "1.1.0", more));
    assert_eq!(result["routes"].as_array().unwrap().len(), 5);
    let seen = pod.netns.run(|| {
        let routes = Netlink::open().unwrap().routes(RouteFilter::default()).unwrap();
        let to = |text: &str| {
            let route = routes
                .iter()
                .find(|route| route.destination == text.parse().unwrap());
            route.and_then(|route| route.via).unwrap().to_string()
        };
        let routes = ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"].map(to);
        let setting = |key| sysctl::get(key).unwrap();
        (
            routes,
            setting("net/core/somaxconn"),
            setting("net/ipv4/conf/eth0/arp_filter"),
        )
    });
    let (routes, queue, filter) = seen.unwrap();
    assert_eq!(routes, ["169.254.1.1", "169.254.1.1", "fe80::1"]);
    assert_eq!((queue.as_str(), filter.as_str()), ("77", "1"));
    answer_nothing(&node.cni("CHECK", &pod, "1.1.0", Some(&result)));

    let wrong = node.cni_with(
        "ADD",
        &Pod::new("wrong"),
        "1.1.0",
        json!({ "sysctl": { "kernel.panic": "1" } }),
    );
    assert_eq!(error_code(&wrong), 7);
    let none = node.cni_with(
        "ADD",
        &Pod::new("none"),
        "1.1.0",
        json!({ "sysctl": { "net.no.such": "1" } }),
    );
    assert_eq!(error_code(&none), 100);
    assert!(
        String::from_utf8_lossy(&none.stdout).contains("net/no/such"),
        "{none:?}"
    );
    assert_eq!(node.leases(), 1, "a failed ADD leaves nothing");
}

#[test]
fn a_pods_annotation_makes_safe_settings_and_those_that_the_agent_allows() {
    let node = Node::start();
    let pod = Pod::new("annotated");
    // The agent of these tests allows net.core.*; the network's own settings give way to the pod's.
    let mut more = annotated("net.ipv4.tcp_rmem=4096 8192 16384,net.core.somaxconn=78");
    more["sysctl"] = json!({ "net.core.somaxconn": "77", "net.ipv4.conf.IFNAME.arp_filter": "1" });
    let result = answer(&node.cni_with("ADD", &pod, "1.1.0", more.clone()));
    let keys = [
        "net/ipv4/tcp_rmem",
        "net/core/somaxconn",
        "net/ipv4/conf/eth0/arp_filter",
    ];
    let seen = pod.netns.run(|| keys.map(|key| sysctl::get(key).unwrap()));
    assert_eq!(seen.unwrap(), ["4096\t8192\t16384", "78", "1"]);
    more["prevResult"] = result;
    answer_nothing(&node.cni_with("CHECK", &pod, "1.1.0", more));
}

#[test]
fn a_setting_that_pods_may_not_make_is_code_7_and_says_how_to_allow_it() {
    let node = Node::start();
    let output = node.cni_with(
        "ADD",
        &Pod::new("p"),
        "1.1.0",
        annotated("net.ipv4.conf.IFNAME.forwarding=1"),
    );
    assert_eq!(error_code(&output), 7);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in [
        "podnet.io/sysctls",
        "--allowed-unsafe-sysctls net.ipv4.conf.eth0.forwarding",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn check_sees_a_setting_or_a_route_that_is_changed() {
    let node = Node::start();
    let pod = Pod::new("changed");
    let mut more = annotated("net.core.somaxconn=78");
    more["sysctl"] = json!({ "net.ipv4.conf.IFNAME.arp_filter": "1" });
    more["routes"] = json!([{ "dst": "192.0.2.0/24" }]);
    let result = answer(&node.cni_with("ADD", &pod, "1.1.0", more.clone()));
    more["prevResult"] = result;
    let check = || node.cni_with("CHECK", &pod, "1.1.0", more.clone());
    for (broken, whole, part) in [
        (
            "ip route del 192.0.2.0/24",
            "ip route add 192.0.2.0/24 via 169.254.1.1 dev eth0 onlink",
            "no route to 192.0.2.0/24",
        ),
        (
            "echo 79 >/proc/sys/net/core/somaxconn",
            "echo 78 >/proc/sys/net/core/somaxconn",
            "net/core/somaxconn is",
        ),
        (
            "echo 0 >/proc/sys/net/ipv4/conf/eth0/arp_filter",
            "echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_filter",
            "net/ipv4/conf/eth0/arp_filter is",
        ),
    ] {
        answer_nothing(&check());
        sh(&pod.netns, broken);
        let output = check();
        assert_eq!(error_code(&output), 101, "{broken}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(part),
            "{output:?}"
        );
        sh(&pod.netns, whole);
    }
    answer_nothing(&check());
}
