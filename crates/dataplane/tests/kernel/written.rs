//! Endpoints that somebody wrote by hand, and ports with names of their own.

use std::io::ErrorKind;
use std::num::NonZeroU16;

use podnet_core::cluster::{
    AddressFamily, Endpoint, EndpointPort, EndpointSlice, Family, ObjectName, PodRanges, Protocol, Routing,
    Service, ServicePort,
};

use crate::common::{BackEnd, answerers, node_name};
use crate::services::{Scene, address, local, set};

on_every_back_end!(
    endpoints_may_be_nodes_and_hosts_outside_over_vxlan,
    endpoints_may_be_nodes_and_hosts_outside_over_direct_routes,
    a_pod_that_is_named_without_its_node_reaches_itself,
    who_has_no_pods_takes_all_others_for_outside,
    ports_of_one_protocol_lead_to_their_own_targets_which_differ_by_endpoint,
);

fn port(number: u16) -> NonZeroU16 {
    number.try_into().unwrap()
}

fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

/// A slice of the service svc1, whose ports have the names of the service's.
fn slice(
    scene: &mut Scene,
    named: &str,
    endpoints: &[(&str, Option<usize>)],
    ports: &[(&str, Protocol, u16)],
) {
    let family = AddressFamily::Ip(Family::of(address(endpoints[0].0)));
    let endpoints = endpoints
        .iter()
        .map(|(at, node)| Endpoint::ready(address(at), node.map(node_name)));
    let ports = ports.iter().map(|(name, protocol, number)| EndpointPort {
        name: (*name).into(),
        protocol: *protocol,
        port: Some(port(*number)),
    });
    let slice = EndpointSlice::new(Some(name("svc1")), family, ports.collect(), endpoints.collect());
    scene.lab.cluster.slices.insert(name(named), Ok(slice.unwrap()));
}

/// A program of the first node, one of the second, and one outside the cluster.
fn endpoints_may_be_nodes_and_hosts_outside(routing: Routing, on: BackEnd) {
    let mut scene = Scene::new(routing, on);
    let ports = [("tcp", Protocol::Tcp, 8080), ("udp", Protocol::Udp, 8080)];
    let all = [
        ("here", ["172.30.0.11", "fd30::11"], Some(0)),
        ("there", ["172.30.0.12", "fd30::12"], Some(1)),
        ("outside", ["172.30.0.1", "fd30::1"], None),
    ];
    for (who, addresses, node) in all {
        let machine = node.map_or(scene.outside(), |node| &scene.lab.nodes[node]);
        for at in addresses {
            machine.serve_at(who, (address(at), 8080).into());
        }
    }
    for (who, [v4, v6], node) in all {
        scene.expose(1, &[], |_| {});
        slice(&mut scene, "written4", &[(v4, node)], &ports);
        slice(&mut scene, "written6", &[(v6, node)], &ports);
        scene.lab.apply_all();
        let pods = ["10.244.0.9", "fd00:10:244:0::9"];
        // Who is outside sees the node that a pod is on.
        let seen = if who == "outside" { all[0].1 } else { pods };
        for (to, seen) in ["10.96.0.1:80", "[fd00:10:96::1]:80"].into_iter().zip(seen) {
            let expected = on.seen((who.into(), address(seen)));
            assert_eq!(on.seen(scene.client.tcp(to).unwrap()), expected, "{to}");
            assert_eq!(on.seen(scene.client.udp(to).unwrap()), expected, "{to}");
        }
        for to in [
            "10.96.0.1:80",
            "[fd00:10:96::1]:80",
            "203.0.113.1:80",
            "[2001:db8::1]:80",
        ] {
            for from in [&scene.lab.nodes[0], &scene.lab.nodes[1], &scene.b] {
                assert_eq!(from.tcp(to).unwrap().0, who, "{to}");
                assert_eq!(from.udp(to).unwrap().0, who, "{to}");
            }
        }
        for to in [
            "172.30.0.11:30001",
            "[fd30::11]:30001",
            "172.30.0.12:30001",
            "[2001:db8::1]:80",
        ] {
            assert_eq!(scene.outside().tcp(to).unwrap().0, who, "{to}");
            assert_eq!(scene.outside().udp(to).unwrap().0, who, "{to}");
        }
    }
}

fn endpoints_may_be_nodes_and_hosts_outside_over_vxlan(on: BackEnd) {
    endpoints_may_be_nodes_and_hosts_outside(Routing::default(), on);
}

fn endpoints_may_be_nodes_and_hosts_outside_over_direct_routes(on: BackEnd) {
    endpoints_may_be_nodes_and_hosts_outside(Routing::Direct, on);
}

fn a_pod_that_is_named_without_its_node_reaches_itself(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    scene.expose(1, &[], |_| {});
    let ports = [("tcp", Protocol::Tcp, 8080), ("udp", Protocol::Udp, 8080)];
    slice(&mut scene, "written4", &[("10.244.0.2", None)], &ports);
    slice(&mut scene, "written6", &[("fd00:10:244:0::2", None)], &ports);
    scene.lab.apply_all();
    for to in [
        "10.96.0.1:80",
        "[fd00:10:96::1]:80",
        "203.0.113.1:80",
        "[2001:db8::1]:80",
    ] {
        for from in [&scene.a, &scene.client, &scene.b] {
            assert_eq!(from.tcp(to).unwrap().0, "a", "{to}");
            assert_eq!(from.udp(to).unwrap().0, "a", "{to}");
        }
    }
}

/// In a family of which it has no range.
fn who_has_no_pods_takes_all_others_for_outside(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    let [v4, v6] = ["172.30.0.12", "fd30::12"];
    for at in [v4, v6] {
        scene.lab.nodes[1].serve_at("there", (address(at), 8080).into());
    }
    // For pods alone it would not forward.
    scene.lab.nodes[0].command("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let ports = [("tcp", Protocol::Tcp, 8080), ("udp", Protocol::Udp, 8080)];
    let ways = [
        "172.30.0.11:30001",
        "[fd30::11]:30001",
        "203.0.113.1:80",
        "[2001:db8::1]:80",
    ];
    for range in ["10.244.0.0/24", "fd00:10:244:0::/64"] {
        let node = scene.lab.cluster.nodes.get_mut(&node_name(0)).unwrap();
        node.as_mut().unwrap().pod_ranges = PodRanges::new([range.parse().unwrap()]).unwrap();
        for is_local in [false, true] {
            scene.expose(1, &[], |service| {
                if is_local {
                    local(service);
                }
            });
            slice(&mut scene, "written4", &[(v4, Some(1))], &ports);
            slice(&mut scene, "written6", &[(v6, Some(1))], &ports);
            scene.lab.apply_all();
            std::thread::scope(|scope| {
                for to in ways {
                    let scene = &scene;
                    scope.spawn(move || match (scene.outside().tcp(to), is_local) {
                        (Ok((who, _)), false) => assert_eq!(who, "there", "{to}"),
                        (Err(error), true) => assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{to}"),
                        (answer, _) => panic!("{to}, local: {is_local}: {answer:?}"),
                    });
                }
            });
            // The node itself is not outside.
            assert_eq!(scene.lab.nodes[0].tcp("172.30.0.11:30001").unwrap().0, "there");
        }
    }
}

fn ports_of_one_protocol_lead_to_their_own_targets_which_differ_by_endpoint(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    scene.a.serve("a-admin", 9090);
    scene.b.serve("b-admin", 7070);
    let ports = [("web", 80, 30_001), ("admin", 81, 30_002)].map(|(name, number, node_port)| ServicePort {
        node_port: Some(port(node_port)),
        ..ServicePort::new(name, Protocol::Tcp, port(number))
    });
    let addresses = ["10.96.0.1", "fd00:10:96::1"].map(address);
    let mut service = Service::new(addresses.into(), ports.into()).unwrap();
    service.external.ips = ["203.0.113.1", "2001:db8::1"].map(address).into();
    scene.lab.cluster.services.insert(name("svc1"), Ok(service));
    // One slice for each number that a name stands for.
    for (named, at, node, admin) in [
        ("svc1-a4", "10.244.0.2", 0, 9090),
        ("svc1-a6", "fd00:10:244::2", 0, 9090),
        ("svc1-b4", "10.244.1.2", 1, 7070),
        ("svc1-b6", "fd00:10:244:1::2", 1, 7070),
    ] {
        let ports = [("web", Protocol::Tcp, 8080), ("admin", Protocol::Tcp, admin)];
        slice(&mut scene, named, &[(at, Some(node))], &ports);
    }
    scene.lab.apply_all();
    for (web, admin) in [
        ("10.96.0.1:80", "10.96.0.1:81"),
        ("[fd00:10:96::1]:80", "[fd00:10:96::1]:81"),
        ("203.0.113.1:80", "203.0.113.1:81"),
        ("[2001:db8::1]:80", "[2001:db8::1]:81"),
        ("172.30.0.11:30001", "172.30.0.11:30002"),
        ("[fd30::11]:30001", "[fd30::11]:30002"),
    ] {
        for from in [&scene.client, &scene.lab.nodes[0]] {
            assert_eq!(answerers(40, || from.tcp(web)), set(&["a", "b"]), "{web}");
            assert_eq!(
                answerers(40, || from.tcp(admin)),
                set(&["a-admin", "b-admin"]),
                "{admin}"
            );
        }
    }
    for (web, admin) in [
        ("203.0.113.1:80", "203.0.113.1:81"),
        ("172.30.0.12:30001", "172.30.0.12:30002"),
    ] {
        assert_eq!(
            answerers(40, || scene.outside().tcp(web)),
            set(&["a", "b"]),
            "{web}"
        );
        assert_eq!(
            answerers(40, || scene.outside().tcp(admin)),
            set(&["a-admin", "b-admin"]),
            "{admin}"
        );
    }
    // One slice more of both numbers, and one less.
    slice(
        &mut scene,
        "svc1-a4",
        &[("10.244.0.2", Some(0))],
        &[("web", Protocol::Tcp, 8080)],
    );
    scene.lab.apply_all();
    assert_eq!(
        answerers(20, || scene.client.tcp("10.96.0.1:81")),
        set(&["b-admin"])
    );
    assert_eq!(
        answerers(40, || scene.client.tcp("10.96.0.1:80")),
        set(&["a", "b"])
    );
}
