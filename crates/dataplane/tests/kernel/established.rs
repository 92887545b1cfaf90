//! What becomes of connections and flows that are there already when their endpoint terminates, leaves, or changes its port.

use podnet_core::cluster::{Family, InternalPolicy, Routing};

use crate::common::{BackEnd, Machine, answerers, ask};
use crate::services::{BOTH, Scene, local, set, ways};
use crate::talk::Talk;

on_every_back_end!(
    a_connection_goes_on_to_an_endpoint_that_terminates_and_new_ones_go_elsewhere,
    a_flow_is_kept_as_long_as_its_terminating_endpoint_serves,
    a_flow_follows_its_endpoint_to_another_target_port,
    slices_of_one_service_have_their_own_target_ports,
    internal_policy_local_takes_this_nodes_endpoints_and_drops_where_none_is,
);

const A: (usize, u8) = BOTH[0];
const B: (usize, u8) = BOTH[1];

fn cluster_ips(host: u8) -> [String; 2] {
    [format!("10.96.0.{host}:80"), format!("[fd00:10:96::{host}]:80")]
}

/// Who asks where: a pod, the node and the outside by every way they have to the service HOST.
fn askers(scene: &Scene, host: u8) -> Vec<(&Machine, String)> {
    let mut askers = Vec::new();
    for machine in [&scene.client, &scene.lab.nodes[0]] {
        let all = cluster_ips(host).into_iter().chain(ways(host));
        askers.extend(all.map(|to| (machine, to)));
    }
    askers.extend(ways(host).into_iter().map(|to| (scene.outside(), to)));
    askers
}

fn publish(scene: &mut Scene, ready: &[(usize, u8)], terminating: &[(usize, u8)]) {
    for host in [1, 2] {
        scene.lab.endpoints(host, ready, terminating);
    }
    scene.lab.apply_all();
}

/// A scene with one service of each external policy, both of which `a` serves.
fn two_policies(on: BackEnd) -> (Scene, Machine) {
    let mut scene = Scene::followed(Routing::default(), on);
    let other = scene.lab.pod(0, 3);
    other.serve("c", 8080);
    scene.expose(1, &[A], |_| {});
    scene.expose(2, &[A], local);
    (scene, other)
}

/// Beside `a`, on the same node.
const C: (usize, u8) = (0, 3);

fn a_connection_goes_on_to_an_endpoint_that_terminates_and_new_ones_go_elsewhere(on: BackEnd) {
    let (mut scene, _other) = two_policies(on);
    let mut talks = Vec::new();
    for host in [1, 2] {
        for (from, to) in askers(&scene, host) {
            talks.push((Talk::begin(from, &to), to));
        }
    }
    let mut all_answer = |when: &str| {
        for (talk, to) in &mut talks {
            assert_eq!(talk.ask(), "a", "{to} {when}");
        }
    };
    all_answer("at first");
    let steps: [(&str, &[_], &[_]); 3] = [
        ("while it terminates", &[B, C], &[A]),
        ("when it has left the slices", &[B, C], &[]),
        ("when nobody is left", &[], &[]),
    ];
    for (when, ready, terminating) in steps {
        publish(&mut scene, ready, terminating);
        all_answer(when);
        for host in [1, 2] {
            for (from, to) in askers(&scene, host) {
                match ready {
                    [] => assert!(from.tcp(&to).is_err(), "{to}"),
                    _ => {
                        let who = answerers(6, || from.tcp(&to));
                        assert!(!who.contains("a"), "{to} {when}: {who:?}");
                    }
                }
            }
        }
        all_answer(when);
    }
}

fn a_flow_is_kept_as_long_as_its_terminating_endpoint_serves(on: BackEnd) {
    let (mut scene, _other) = two_policies(on);
    let flows = |scene: &Scene| {
        let mut flows = Vec::new();
        for host in [1, 2] {
            for (from, to) in askers(scene, host) {
                flows.push((from.udp_socket(&to), to));
            }
        }
        flows
    };
    let old = flows(&scene);
    let all = |flows: &[(std::net::UdpSocket, String)], name: &str, when: &str| {
        for (flow, to) in flows {
            assert_eq!(ask(flow).unwrap().0, name, "{to} {when}");
        }
    };
    all(&old, "a", "at first");
    publish(&mut scene, &[C], &[A]);
    all(&old, "a", "while it terminates");
    let new = flows(&scene);
    all(&new, "c", "that began since");
    publish(&mut scene, &[C], &[]);
    all(&old, "c", "when it serves no more");
    all(&new, "c", "that began since");
}

fn a_flow_follows_its_endpoint_to_another_target_port(on: BackEnd) {
    let (mut scene, _other) = two_policies(on);
    scene.a.serve("moved", 8081);
    for (port, name) in [(8080, "a"), (8081, "moved"), (8080, "a")] {
        let both = [1, 2].into_iter().flat_map(|host| askers(&scene, host));
        let flows: Vec<_> = both.map(|(from, to)| (from.udp_socket(&to), to)).collect();
        for (flow, to) in &flows {
            assert!(ask(flow).is_ok(), "{to}");
        }
        for host in [1, 2] {
            for family in [Family::V4, Family::V6] {
                scene.lab.target_port(host, family, port);
            }
        }
        scene.lab.apply_all();
        for (flow, to) in &flows {
            assert_eq!(ask(flow).unwrap().0, name, "{to}");
        }
        for host in [1, 2] {
            for (from, to) in askers(&scene, host) {
                assert_eq!(from.tcp(&to).unwrap().0, name, "{to}");
                assert_eq!(from.udp(&to).unwrap().0, name, "{to}");
            }
        }
    }
}

/// As the named target port of pods that give it different numbers is published.
fn slices_of_one_service_have_their_own_target_ports(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    scene.b.serve("other", 9090);
    scene.expose(1, &[A], |_| {});
    // The slices of another service become the first one's, beside those that it has.
    scene.lab.service(2, &[B]);
    for family in [Family::V4, Family::V6] {
        scene.lab.target_port(2, family, 9090);
        scene.lab.lend_slice(2, 1, family);
    }
    scene.lab.apply_all();
    for (from, to) in askers(&scene, 1) {
        assert_eq!(answerers(40, || from.tcp(&to)), set(&["a", "other"]), "{to}");
        assert_eq!(answerers(40, || from.udp(&to)), set(&["a", "other"]), "{to}");
    }
    for to in cluster_ips(2) {
        assert!(scene.client.tcp(&to).is_err(), "{to}");
    }
}

fn internal_policy_local_takes_this_nodes_endpoints_and_drops_where_none_is(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    let far = scene.lab.pod(1, 9);
    let internal = |service: &mut podnet_core::cluster::Service| {
        service.internal_policy = InternalPolicy::Local;
    };
    scene.expose(1, &BOTH, internal);
    scene.expose(2, &[B], internal);
    scene.expose(3, &[], internal);
    let here = [&scene.client, &scene.a, &scene.lab.nodes[0]];
    let there = [&far, &scene.b, &scene.lab.nodes[1]];
    for to in cluster_ips(1) {
        for (askers, name) in [(here, "a"), (there, "b")] {
            for from in askers {
                assert_eq!(answerers(15, || from.tcp(&to)), set(&[name]), "{to}");
                assert_eq!(answerers(15, || from.udp(&to)), set(&[name]), "{to}");
            }
        }
    }
    for to in cluster_ips(2) {
        for from in there {
            assert_eq!(from.tcp(&to).unwrap().0, "b", "{to}");
            assert_eq!(from.udp(&to).unwrap().0, "b", "{to}");
        }
    }
    // The others wait for nothing, all at once.
    std::thread::scope(|scope| {
        for to in cluster_ips(2) {
            for from in here {
                let to = to.clone();
                scope.spawn(move || {
                    let kind = from.tcp(&to).unwrap_err().kind();
                    let silence = [std::io::ErrorKind::TimedOut, std::io::ErrorKind::WouldBlock];
                    assert!(silence.contains(&kind), "{to}: {kind}");
                    assert_ne!(
                        from.udp(&to).unwrap_err().kind(),
                        std::io::ErrorKind::ConnectionRefused
                    );
                });
            }
        }
    });
    // Where nobody is anywhere, it is told at once.
    for to in cluster_ips(3) {
        for from in here.into_iter().chain(there) {
            let refusal = from.tcp(&to).unwrap_err().kind();
            assert_eq!(refusal, std::io::ErrorKind::ConnectionRefused, "{to}");
        }
    }
    // By its other addresses it is reached all the same: they have a policy of their own.
    for to in ways(2) {
        assert_eq!(scene.outside().tcp(&to).unwrap().0, "b", "{to}");
    }
}
