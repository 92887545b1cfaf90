//! Real sockets through what was applied, between network namespaces.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Instant;

use crate::common::{BackEnd, Lab, answerers, ask};
use podnet_core::cluster::{Family, Routing};
use podnet_linux::netlink::LinkChange;

on_every_back_end!(
    services_over_vxlan,
    services_over_direct_routes,
    a_udp_client_that_keeps_its_port_moves_to_an_endpoint_that_is_left,
);

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pods_reach_each_other(routing: Routing, primary: Family) {
    let lab = Lab::new(2, routing, primary, 1500);
    let pods = [lab.pod(0, 2), lab.pod(0, 3), lab.pod(1, 2)];
    for (pod, name) in pods.iter().zip(["a", "b", "c"]) {
        pod.serve(name, 8080);
    }
    lab.apply_all();
    let at = [
        ("10.244.0.2", "fd00:10:244:0::2"),
        ("10.244.0.3", "fd00:10:244:0::3"),
        ("10.244.1.2", "fd00:10:244:1::2"),
    ];
    for (from, (v4, v6)) in pods.iter().zip(at) {
        for ((to_v4, to_v6), name) in at.iter().zip(["a", "b", "c"]) {
            for (to, source) in [(format!("{to_v4}:8080"), v4), (format!("[{to_v6}]:8080"), v6)] {
                assert_eq!(
                    from.tcp(&to).unwrap(),
                    (name.into(), address(source)),
                    "{source} to {to}"
                );
                assert_eq!(
                    from.udp(&to).unwrap(),
                    (name.into(), address(source)),
                    "{source} to {to}"
                );
            }
        }
    }
    // The node itself reaches pods everywhere, too.
    for to in ["10.244.1.2:8080", "[fd00:10:244:1::2]:8080"] {
        assert_eq!(lab.nodes[0].tcp(to).unwrap().0, "c", "{to}");
    }
    // An address nobody has is refused at once, on this node and in the cluster's ranges.
    for to in [
        "10.244.0.99:1",
        "10.244.77.1:1",
        "[fd00:10:244:0::99]:1",
        "[fd00:10:244:77::1]:1",
    ] {
        let refusal = pods[0].tcp(to).unwrap_err().kind();
        assert!(
            matches!(
                refusal,
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            ),
            "{to}: {refusal}"
        );
    }
}

#[test]
fn vxlan_over_ipv4_carries_both_families() {
    pods_reach_each_other(Routing::default(), Family::V4);
}

#[test]
fn vxlan_over_ipv6_carries_both_families() {
    pods_reach_each_other(Routing::default(), Family::V6);
}

#[test]
fn direct_routes_carry_both_families() {
    pods_reach_each_other(Routing::Direct, Family::V4);
}

#[test]
fn the_mtu_is_the_underlays_less_the_overhead() {
    for (routing, primary, mtu) in [
        (Routing::default(), Family::V4, 1400 - 50),
        (Routing::default(), Family::V6, 1400 - 70),
        (Routing::Direct, Family::V4, 1400),
    ] {
        let lab = Lab::new(1, routing, primary, 1400);
        assert_eq!(lab.apply(0).pod_mtu, Some(mtu), "{routing} {primary:?}");
        if routing != Routing::Direct {
            assert_eq!(lab.nodes[0].link("podnet.vxlan").mtu, mtu);
        }
    }
}

#[test]
fn the_mtu_follows_the_underlays() {
    for (routing, overhead) in [(Routing::default(), 50), (Routing::Direct, 0)] {
        let lab = Lab::new(1, routing, Family::V4, 1500);
        for underlay in [1500, 1400, 1450] {
            let change = LinkChange::named("eth0").mtu(underlay).apply();
            lab.nodes[0].netlink(|netlink| netlink.request(change).unwrap());
            assert_eq!(lab.apply(0).pod_mtu, Some(underlay - overhead), "{routing}");
            if routing != Routing::Direct {
                assert_eq!(lab.nodes[0].link("podnet.vxlan").mtu, underlay - overhead);
            }
        }
    }
}

fn services(routing: Routing, on: BackEnd) {
    let mut lab = Lab::new(2, routing, Family::V4, 1500).carried_by(on);
    let (a, b, client) = (lab.pod(0, 2), lab.pod(1, 2), lab.pod(0, 9));
    a.serve("a", 8080);
    b.serve("b", 8080);
    lab.service(1, &[(0, 2), (1, 2)]);
    lab.service(2, &[]);
    lab.service(3, &[(0, 2)]);
    lab.apply_all();

    for (to, source) in [
        ("10.96.0.1:80", "10.244.0.9"),
        ("[fd00:10:96::1]:80", "fd00:10:244:0::9"),
    ] {
        // From a pod: all endpoints are chosen, and see the pod's address.
        assert_eq!(answerers(40, || client.tcp(to)), set(&["a", "b"]), "{to}");
        assert_eq!(answerers(40, || client.udp(to)), set(&["a", "b"]), "{to}");
        let own = |answer: (String, IpAddr)| on.seen((String::new(), answer.1));
        assert_eq!(
            own(client.tcp(to).unwrap()),
            own((String::new(), address(source)))
        );
        assert_eq!(
            own(client.udp(to).unwrap()),
            own((String::new(), address(source)))
        );
        // From the node.
        assert_eq!(answerers(40, || lab.nodes[0].tcp(to)), set(&["a", "b"]), "{to}");
        assert_eq!(answerers(40, || lab.nodes[0].udp(to)), set(&["a", "b"]), "{to}");
        // From an endpoint, which sometimes is sent back to itself.
        assert_eq!(answerers(40, || a.tcp(to)), set(&["a", "b"]), "{to}");
        assert_eq!(answerers(40, || a.udp(to)), set(&["a", "b"]), "{to}");
    }
    for to in ["10.96.0.3:80", "[fd00:10:96::3]:80"] {
        assert_eq!(answerers(5, || a.tcp(to)), set(&["a"]), "{to}");
    }
    // No endpoint, and no such port: refused at once, to pods and to the node.
    for from in [&client, &lab.nodes[0]] {
        for to in [
            "10.96.0.2:80",
            "[fd00:10:96::2]:80",
            "10.96.0.1:81",
            "[fd00:10:96::1]:81",
        ] {
            let before = Instant::now();
            assert_eq!(
                from.tcp(to).unwrap_err().kind(),
                ErrorKind::ConnectionRefused,
                "{to}"
            );
            // The node's own datagram is refused on its way out already, which is EPERM.
            let refusal = from.udp(to).unwrap_err().kind();
            assert!(
                matches!(
                    refusal,
                    ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied
                ),
                "{to}: {refusal}"
            );
            assert!(before.elapsed().as_millis() < 500);
        }
        // An address no service has: silence, though the node's own datagram is dropped before it leaves, which is EPERM.
        let silence = from.udp("10.96.0.99:80").unwrap_err().kind();
        let expected = [
            ErrorKind::WouldBlock,
            ErrorKind::TimedOut,
            ErrorKind::PermissionDenied,
        ];
        assert!(expected.contains(&silence), "{silence}");
        // A cluster IP answers pings.
        assert!(from.ping("10.96.0.1"));
        assert!(from.ping("fd00:10:96::1"));
    }
}

fn services_over_vxlan(on: BackEnd) {
    services(Routing::default(), on);
}

fn services_over_direct_routes(on: BackEnd) {
    services(Routing::Direct, on);
}

fn a_udp_client_that_keeps_its_port_moves_to_an_endpoint_that_is_left(on: BackEnd) {
    let mut lab = Lab::new(1, Routing::default(), Family::V4, 1500).carried_by(on);
    let (a, b, client) = (lab.pod(0, 2), lab.pod(0, 3), lab.pod(0, 9));
    a.serve("a", 8080);
    b.serve("b", 8080);
    lab.service(1, &[]);
    lab.apply_all();
    for to in ["10.96.0.1:80", "[fd00:10:96::1]:80"] {
        lab.service(1, &[]);
        lab.apply_all();
        let socket = client.udp_socket(to);
        assert!(ask(&socket).is_err());
        lab.service(1, &[(0, 2)]);
        lab.apply_all();
        assert_eq!(ask(&socket).unwrap().0, "a");
        lab.service(1, &[(0, 3)]);
        lab.apply_all();
        assert_eq!(ask(&socket).unwrap().0, "b");
        // One more endpoint takes no flow away.
        lab.service(1, &[(0, 2), (0, 3)]);
        lab.apply_all();
        assert_eq!(answerers(10, || ask(&socket)), set(&["b"]));
    }
}
