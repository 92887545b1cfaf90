//! Host ports where a service wants the same port: every back end gives it to the pod.

use std::num::NonZeroU16;

use crate::common::{BackEnd, answerers, ask};
use crate::services::{BOTH, Scene, address, set};
use podnet_core::cluster::{Family, Protocol, Routing};
use podnet_core::service::{HostAddress, HostPort};

on_every_back_end!(
    a_host_port_of_one_address_comes_before_the_node_port_of_its_number,
    a_host_port_comes_before_a_services_external_address,
);

/// The host ports of a pod `p` on the first node, beside a service on both.
fn scene(on: BackEnd) -> (Scene, crate::common::Machine) {
    let scene = Scene::new(Routing::default(), on);
    let pod = scene.lab.pod(0, 3);
    pod.serve("p", 8080);
    (scene, pod)
}

fn open(scene: &mut Scene, at: HostAddress, protocol: Protocol, port: u16) {
    let host_port = HostPort {
        address: at,
        protocol,
        port: NonZeroU16::new(port).unwrap(),
    };
    let target = match at.family() {
        Family::V4 => "10.244.0.3:8080",
        Family::V6 => "[fd00:10:244:0::3]:8080",
    };
    scene
        .lab
        .cluster
        .host_ports
        .insert(host_port, target.parse().unwrap());
}

fn one(text: &str) -> HostAddress {
    HostAddress::One(address(text))
}

fn problems(scene: &Scene) -> Vec<String> {
    let state = scene.lab.state(0);
    state.problems.iter().map(ToString::to_string).collect()
}

fn a_host_port_of_one_address_comes_before_the_node_port_of_its_number(on: BackEnd) {
    let (mut scene, _pod) = scene(on);
    scene.expose(1, &BOTH, |_| {});
    let both = ["172.30.0.11:30001", "[fd30::11]:30001"];
    let flow = scene.outside().udp_socket(both[0]);
    let services = set(&["a", "b"]);
    assert!(services.contains(&ask(&flow).unwrap().0));
    for of in ["172.30.0.11", "fd30::11"] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            open(&mut scene, one(of), protocol, 30_001);
        }
    }
    scene.lab.apply(0);
    assert_eq!(problems(&scene).len(), 4, "{:?}", problems(&scene));
    assert_eq!(ask(&flow).unwrap().0, "p", "a flow that there was");
    for to in both {
        for from in [&scene.lab.nodes[0], &scene.client, scene.outside()] {
            assert_eq!(answerers(8, || from.tcp(to)), set(&["p"]), "{to} over TCP");
            assert_eq!(answerers(8, || from.udp(to)), set(&["p"]), "{to} over UDP");
        }
    }
    // Only that: other nodes and the service's other addresses are the service's.
    for to in ["172.30.0.12:30001", "203.0.113.1:80"] {
        assert_eq!(answerers(40, || scene.outside().tcp(to)), services, "{to}");
    }

    scene.lab.cluster.host_ports.clear();
    scene.lab.apply(0);
    assert_eq!(problems(&scene), Vec::<String>::new());
    assert!(services.contains(&ask(&flow).unwrap().0), "a flow to the pod");
    for to in both {
        assert_eq!(answerers(40, || scene.outside().tcp(to)), services, "{to}");
    }
}

fn a_host_port_comes_before_a_services_external_address(on: BackEnd) {
    let (mut scene, _pod) = scene(on);
    let to = "172.30.0.11:80";
    scene.expose(1, &BOTH[..1], |service| {
        service.external.ips = vec![address("172.30.0.11")];
    });
    let services = set(&["a"]);
    for at in [one("172.30.0.11"), HostAddress::Any(Family::V4)] {
        assert_eq!(answerers(8, || scene.outside().tcp(to)), services, "{at:?}");
        open(&mut scene, at, Protocol::Tcp, 80);
        scene.lab.apply(0);
        assert_eq!(problems(&scene).len(), 1, "{:?}", problems(&scene));
        for from in [&scene.lab.nodes[0], &scene.client, scene.outside()] {
            assert_eq!(answerers(8, || from.tcp(to)), set(&["p"]), "{at:?}");
        }
        assert_eq!(answerers(8, || scene.outside().udp(to)), services, "{at:?}");
        scene.lab.cluster.host_ports.clear();
        scene.lab.apply(0);
    }
    assert_eq!(answerers(8, || scene.outside().tcp(to)), services);
}
