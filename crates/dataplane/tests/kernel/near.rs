//! Which endpoints are near enough: hints of zones and nodes.

use std::sync::atomic::{AtomicU16, Ordering};

use podnet_core::cluster::{Endpoint, EndpointSlice, Family, Hints, Routing};

use crate::common::{BackEnd, answerers, node_name, slice_name};
use crate::services::{BOTH, Scene, set};

on_every_back_end!(hints_keep_clients_near_where_every_endpoint_has_one);

const ZONE: &str = "topology.kubernetes.io/zone";
const ZONES: [&str; 2] = ["east", "west"];

/// Every endpoint gets the hints that are chosen by the number of the node it is on.
fn hint(scene: &mut Scene, hints: impl Fn(usize) -> Hints) {
    for family in [Family::V4, Family::V6] {
        let name = slice_name(1, family);
        let found = scene.lab.cluster.slices[&name].clone().unwrap();
        let endpoints = found.endpoints().iter().map(|endpoint| Endpoint {
            hints: hints(usize::from(endpoint.node == Some(node_name(1)))),
            ..endpoint.clone()
        });
        let hinted = EndpointSlice::new(
            found.service.clone(),
            found.family(),
            found.ports.clone(),
            endpoints.collect(),
        );
        scene.lab.cluster.slices.insert(name, Ok(hinted.unwrap()));
    }
}

fn zone(scene: &mut Scene, node: usize, zone: &str) {
    let node = scene.lab.cluster.nodes.get_mut(&node_name(node)).unwrap();
    let labels = &mut node.as_mut().unwrap().labels;
    labels.insert(ZONE.into(), zone.into());
}

/// One that nobody has asked by: a flow that is there goes on to its endpoint as long as that serves.
fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A pod of the first node, the first node and the second get these.
fn get(scene: &Scene, expected: [&[&str]; 2], when: &str) {
    scene.lab.apply_all();
    let clients = [
        (&scene.client, 0),
        (&scene.lab.nodes[0], 0),
        (&scene.lab.nodes[1], 1),
    ];
    for (client, node) in clients {
        for to in ["10.96.0.1:80", "[fd00:10:96::1]:80"] {
            let seen = [
                answerers(24, || client.tcp_by(port(), to)),
                answerers(24, || client.udp_by(port(), to)),
            ];
            let expected = set(expected[node]);
            assert_eq!(seen, [expected.clone(), expected], "{to} from node {node} {when}");
        }
    }
}

fn hints_keep_clients_near_where_every_endpoint_has_one(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    scene.expose(1, &BOTH, |_| {});
    for (node, name) in ZONES.into_iter().enumerate() {
        zone(&mut scene, node, name);
    }
    let zones = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
    let own = |node: usize| Hints {
        zones: zones(&[ZONES[node]]),
        ..Hints::default()
    };
    get(&scene, [&["a", "b"], &["a", "b"]], "without hints");
    hint(&mut scene, own);
    get(&scene, [&["a"], &["b"]], "by zone");
    // The near ones go: one that is far and ready is better than one that is near and on its way out.
    scene.lab.endpoints(1, &BOTH[1..], &BOTH[..1]);
    hint(&mut scene, own);
    get(&scene, [&["b"], &["b"]], "when the near one is going");
    scene.lab.endpoints(1, &BOTH[1..], &[]);
    hint(&mut scene, own);
    get(&scene, [&["b"], &["b"]], "when the near one is gone");
    scene.lab.endpoints(1, &BOTH, &[]);
    hint(&mut scene, own);
    get(&scene, [&["a"], &["b"]], "when it is back");
    // Who comes from outside is where the node is that it asked.
    for (to, who) in [("172.30.0.11:30001", "a"), ("[fd30::12]:30001", "b")] {
        assert_eq!(answerers(24, || scene.outside().tcp(to)), set(&[who]), "{to}");
    }
    hint(&mut scene, |_| Hints {
        zones: zones(&["east"]),
        ..Hints::default()
    });
    get(
        &scene,
        [&["a", "b"], &["a", "b"]],
        "where no hint is for the west",
    );
    hint(&mut scene, |node| Hints {
        nodes: [node_name(1 - node)].into(),
        ..own(node)
    });
    get(&scene, [&["b"], &["a"]], "by node, which is nearer than the zone");
    hint(
        &mut scene,
        |node| if node == 0 { own(node) } else { Hints::default() },
    );
    get(&scene, [&["a", "b"], &["a", "b"]], "where an endpoint has none");
    hint(&mut scene, own);
    zone(&mut scene, 0, "north");
    get(&scene, [&["a", "b"], &["b"]], "in a zone that nobody is for");
}
