//! What connects pods with the world beyond the cluster: host ports into them, the node's address out of them.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::process::Command;

use crate::common::{BackEnd, Lab, Machine, ask};
use podnet_core::cluster::{Family, Protocol, Routing};
use podnet_core::service::{HostAddress, HostPort};
use podnet_linux::netlink::Route;
use podnet_linux::sysctl;

// The table has host ports, whatever carries services.
on_every_back_end_here!(
    a_host_port_works_from_the_node_from_pods_and_from_outside,
    two_pods_share_a_host_port_on_different_host_ips_or_protocols,
    udp_flows_of_a_host_port_leave_with_its_pod,
    a_host_port_on_loopback_opens_nothing_else_there_to_pods,
    pods_leave_the_cluster_with_their_nodes_address_and_nowhere_else,
);

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn host_port(lab: &mut Lab, bound_to: HostAddress, protocol: Protocol, port: u16, pod: &str) {
    let host_port = HostPort {
        address: bound_to,
        protocol,
        port: NonZeroU16::new(port).unwrap(),
    };
    let target: SocketAddr = SocketAddr::new(address(pod), 8080);
    lab.cluster.host_ports.insert(host_port, target);
}

fn one(text: &str) -> HostAddress {
    HostAddress::One(address(text))
}

const ANY: [(HostAddress, &str, &str); 2] = [
    (HostAddress::Any(Family::V4), "10.244.0.2", "10.244.0.3"),
    (
        HostAddress::Any(Family::V6),
        "fd00:10:244:0::2",
        "fd00:10:244:0::3",
    ),
];

/// Two nodes; on the first the servers `a` (.2) and `b` (.3) and a client (.9), on the second a client (.9).
fn lab(on: BackEnd) -> (Lab, Vec<Machine>) {
    let lab = Lab::new(2, Routing::default(), Family::V4, 1500).carried_by(on);
    let pods = vec![lab.pod(0, 2), lab.pod(0, 3), lab.pod(0, 9), lab.pod(1, 9)];
    pods[0].serve("a", 8080);
    pods[1].serve("b", 8080);
    // As the wiring does for the links of pods with host ports.
    for pod in ["pod2", "pod3"] {
        let key = format!("net/ipv4/conf/{pod}/route_localnet");
        lab.nodes[0].run(|| sysctl::set(&key, "1").unwrap());
    }
    (lab, pods)
}

fn a_host_port_works_from_the_node_from_pods_and_from_outside(on: BackEnd) {
    let (mut lab, pods) = lab(on);
    lab.apply_all();
    for (any, a, _) in ANY {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            host_port(&mut lab, any, protocol, 8081, a);
        }
    }
    lab.apply(0);
    let (near, far) = (&pods[2], &pods[3]);
    for (to, sources) in [
        (
            "172.30.0.11:8081",
            ["172.30.0.11", "10.244.0.9", "10.244.1.9", "172.30.0.1"],
        ),
        (
            "[fd30::11]:8081",
            ["fd30::11", "fd00:10:244:0::9", "fd00:10:244:1::9", "fd30::1"],
        ),
    ] {
        for (from, source) in [&lab.nodes[0], near, far, &lab.underlay].into_iter().zip(sources) {
            let expected = ("a".to_owned(), address(source));
            assert_eq!(from.tcp(to).unwrap(), expected, "{to} over TCP");
            assert_eq!(from.udp(to).unwrap(), expected, "{to} over UDP");
        }
        // A pod that reaches itself through its node.
        assert_eq!(pods[0].tcp(to).unwrap().0, "a", "{to}");
        assert_eq!(pods[0].udp(to).unwrap().0, "a", "{to}");
    }
    // As kubelet's users expect. In IPv6 the kernel sends nothing from ::1 to another link.
    assert_eq!(lab.nodes[0].tcp("127.0.0.1:8081").unwrap().0, "a");
    assert_eq!(lab.nodes[0].udp("127.0.0.1:8081").unwrap().0, "a");
    // No other node has it, nor does any address that is not a node's.
    assert!(near.tcp("172.30.0.12:8081").is_err());
    assert!(near.tcp("10.244.0.3:8081").is_err());

    lab.cluster.host_ports.clear();
    lab.apply_all();
    for to in ["172.30.0.11:8081", "127.0.0.1:8081", "[fd30::11]:8081"] {
        assert!(lab.nodes[0].tcp(to).is_err(), "{to} is closed again");
    }
}

fn two_pods_share_a_host_port_on_different_host_ips_or_protocols(on: BackEnd) {
    let (mut lab, pods) = lab(on);
    host_port(&mut lab, one("172.30.0.11"), Protocol::Tcp, 9090, "10.244.0.2");
    host_port(&mut lab, one("127.0.0.1"), Protocol::Tcp, 9090, "10.244.0.3");
    host_port(
        &mut lab,
        HostAddress::Any(Family::V4),
        Protocol::Udp,
        9090,
        "10.244.0.3",
    );
    host_port(&mut lab, one("fd30::11"), Protocol::Tcp, 9090, "fd00:10:244:0::3");
    lab.apply_all();
    let node = &lab.nodes[0];
    for from in [node, &pods[2], &lab.underlay] {
        assert_eq!(from.tcp("172.30.0.11:9090").unwrap().0, "a");
        assert_eq!(from.udp("172.30.0.11:9090").unwrap().0, "b");
        assert_eq!(from.tcp("[fd30::11]:9090").unwrap().0, "b");
    }
    assert_eq!(node.tcp("127.0.0.1:9090").unwrap().0, "b");
    let dump = lab.dump(0).to_string();
    for line in [
        "service tcp 172.30.0.11:9090 to 10.244.0.2:8080",
        "service tcp 127.0.0.1:9090 to 10.244.0.3:8080",
        "host port udp 0.0.0.0:9090 to 10.244.0.3:8080",
    ] {
        assert!(dump.contains(line), "{line} is missing in {dump}");
    }
}

fn udp_flows_of_a_host_port_leave_with_its_pod(on: BackEnd) {
    let (mut lab, _pods) = lab(on);
    let bound = [
        (ANY[0].0, "172.30.0.11:8081"),
        (one("fd30::11"), "[fd30::11]:8081"),
    ];
    for ((bound_to, to), (_, a, b)) in bound.into_iter().zip(ANY) {
        let client = lab.underlay.udp_socket(to);
        lab.apply_all();
        // Nobody is there yet, and connection tracking notes it.
        assert!(ask(&client).is_err());
        host_port(&mut lab, bound_to, Protocol::Udp, 8081, a);
        lab.apply_all();
        assert_eq!(ask(&client).unwrap().0, "a", "{to}");
        host_port(&mut lab, bound_to, Protocol::Udp, 8081, b);
        lab.apply_all();
        assert_eq!(ask(&client).unwrap().0, "b", "{to}");
        lab.cluster.host_ports.clear();
        lab.apply_all();
        assert!(ask(&client).is_err(), "{to}");
    }
}

fn sh(machine: &Machine, script: &str) {
    let output = machine.run(|| Command::new("sh").args(["-ec", script]).output().unwrap());
    assert!(output.status.success(), "{script}: {output:?}");
}

fn a_host_port_on_loopback_opens_nothing_else_there_to_pods(on: BackEnd) {
    let (mut lab, pods) = lab(on);
    host_port(
        &mut lab,
        HostAddress::Any(Family::V4),
        Protocol::Tcp,
        8081,
        "10.244.0.2",
    );
    lab.apply_all();
    lab.nodes[0].serve("node", 7777);
    // A pod that sends what is for 127.0.0.1 to its node.
    sh(
        &pods[0],
        "sysctl -qw net.ipv4.conf.all.route_localnet=1; ip address del 127.0.0.1/8 dev lo; \
         ip route add 127.0.0.1 via 169.254.1.1 dev eth0 onlink",
    );
    assert_eq!(
        lab.nodes[0].tcp("127.0.0.1:8081").unwrap().0,
        "a",
        "answers come in"
    );
    assert!(pods[0].tcp("127.0.0.1:7777").is_err());
    // It is the guard that keeps it out, and nothing else.
    sh(&lab.nodes[0], "nft flush chain inet podnet loopback-guard");
    assert_eq!(pods[0].tcp("127.0.0.1:7777").unwrap().0, "node");
}

fn pods_leave_the_cluster_with_their_nodes_address_and_nowhere_else(on: BackEnd) {
    let (mut lab, pods) = lab(on);
    lab.underlay.serve("world", 8080);
    lab.nodes.iter().for_each(|node| node.serve("node", 7000));
    lab.apply_all();
    let from = |pod: &Machine, to: &str| pod.tcp(to).unwrap().1.to_string();
    assert_eq!(pods[2].udp("172.30.0.1:8080").unwrap().1, address("172.30.0.11"));
    assert_eq!(from(&pods[2], "172.30.0.1:8080"), "172.30.0.11");
    assert_eq!(from(&pods[2], "[fd30::1]:8080"), "fd30::11");
    assert_eq!(from(&pods[3], "172.30.0.1:8080"), "172.30.0.12");
    // Nodes and pods see the pod itself.
    for (to, seen) in [
        ("172.30.0.11:7000", "10.244.0.9"),
        ("172.30.0.12:7000", "10.244.0.9"),
        ("[fd30::12]:7000", "fd00:10:244::9"),
        ("10.244.0.2:8080", "10.244.0.9"),
    ] {
        assert_eq!(from(&pods[2], to), seen, "{to}");
    }
    assert_eq!(from(&pods[3], "10.244.0.2:8080"), "10.244.1.9");

    // Where the world is configured to know pods, it does.
    lab.cluster.config.masquerade = Some(vec![
        "172.30.0.0/24".parse().unwrap(),
        "fd30::/64".parse().unwrap(),
    ]);
    lab.apply_all();
    let bridge = lab.underlay.link("br0").index;
    lab.underlay.netlink(|netlink| {
        for (range, node) in [("10.244.0.0/24", "172.30.0.11"), ("fd00:10:244::/64", "fd30::11")] {
            let route = Route::via(range.parse().unwrap(), address(node), Some(bridge), 3);
            netlink.request(route.add()).unwrap();
        }
    });
    assert_eq!(from(&pods[2], "172.30.0.1:8080"), "10.244.0.9");
    assert_eq!(from(&pods[2], "[fd30::1]:8080"), "fd00:10:244::9");
}
