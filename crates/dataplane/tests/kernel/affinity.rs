//! How long a client stays with its endpoint.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use podnet_core::cluster::{Affinity, Routing, Service};

use crate::common::{BackEnd, PATIENCE, answerers, ask};
use crate::services::{BOTH, Scene, ways};

on_every_back_end!(
    each_use_lets_a_client_stay_anew,
    each_port_of_a_service_has_its_own_endpoint_for_a_client,
    a_client_leaves_an_endpoint_that_terminates,
);

const TIMEOUT: u32 = 3;
/// Two uses that are further apart prove nothing.
const PAUSE: Duration = Duration::from_millis(2500);

/// A client, and what it saw since it last was idle for long.
struct Client {
    address: String,
    used: Instant,
    since: Instant,
    by: Option<String>,
}

fn each_use_lets_a_client_stay_anew(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    scene.expose(1, &BOTH, |service| {
        service.affinity = Affinity::ClientIp { seconds: TIMEOUT }
    });
    let outside = scene.outside();
    let (mut clients, mut first) = (Vec::new(), BTreeSet::new());
    for host in 100..108 {
        for (address, length) in [(format!("172.30.0.{host}"), 24), (format!("fd30::{host}"), 64)] {
            let nodad = if length == 64 { "nodad" } else { "" };
            outside.command(&format!("ip address add {address}/{length} dev br0 {nodad}"));
            let now = Instant::now();
            clients.push(Client {
                address,
                used: now,
                since: now,
                by: None,
            });
        }
    }
    // Each use is from another port: it is no flow that is kept. That who chooses anew comes to the same one each time has
    // a probability of 1 in 2^16 at most.
    let enough = Duration::from_secs(u64::from(2 * TIMEOUT)) + Duration::from_millis(500);
    let stayed = |client: &Client| client.used - client.since > enough;
    while clients.iter().filter(|client| stayed(client)).count() < clients.len() / 2 {
        for client in &mut clients {
            let Client { address, .. } = &client;
            let (from, to) = match address.contains(':') {
                true => (format!("[{address}]:0"), "[fd30::11]:30001"),
                false => (format!("{address}:0"), "172.30.0.11:30001"),
            };
            let socket = outside.run(|| {
                let socket = UdpSocket::bind(from).unwrap();
                socket.connect(to).unwrap();
                socket
            });
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let who = ask(&socket).unwrap().0;
            let now = Instant::now();
            if now - client.used > PAUSE || client.by.is_none() {
                client.since = now;
                first.extend(client.by.is_none().then(|| who.clone()));
            } else {
                assert_eq!(Some(&who), client.by.as_ref(), "{}", client.address);
            }
            (client.used, client.by) = (now, Some(who));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    // Each chose for itself: that all came to one has a probability of 1 in 2^15.
    assert_eq!(first.len(), 2);
}

fn stay(service: &mut Service) {
    service.affinity = Affinity::ClientIp { seconds: 600 };
}

fn each_port_of_a_service_has_its_own_endpoint_for_a_client(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    // Each time they are the same by chance: one in 2^20 that they always are.
    for host in 1..=20 {
        scene.expose(host, &BOTH, stay);
        let address = format!("10.96.0.{host}:80");
        let tcp = answerers(1, || scene.client.tcp(&address));
        let udp = answerers(1, || scene.client.udp(&address));
        if tcp != udp {
            assert_eq!(answerers(10, || scene.client.tcp(&address)), tcp);
            assert_eq!(answerers(10, || scene.client.udp(&address)), udp);
            return;
        }
    }
    panic!("both ports had the same endpoint every time");
}

fn a_client_leaves_an_endpoint_that_terminates(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    let [node_port, _, external, _] = ways(1).try_into().unwrap();
    for (from, to) in [
        ("inside", "10.96.0.1:80"),
        ("outside", &node_port),
        ("outside", &external),
    ] {
        scene.expose(1, &BOTH, |_| {});
        scene.expose(1, &BOTH, stay);
        let asks = |scene: &Scene, times| {
            let client = if from == "inside" {
                &scene.client
            } else {
                scene.outside()
            };
            let mut who = answerers(times, || client.tcp(to));
            assert_eq!(who.len(), 1, "{to}");
            who.pop_first().unwrap()
        };
        let before = asks(&scene, 10);
        let (going, left) = if before == "a" {
            (BOTH[0], BOTH[1])
        } else {
            (BOTH[1], BOTH[0])
        };
        scene.lab.endpoints(1, &[left], &[going]);
        scene.lab.apply_all();
        let after = asks(&scene, 10);
        assert_ne!(after, before, "{to}");
        // And does not come back.
        scene.lab.endpoints(1, &BOTH, &[]);
        scene.lab.apply_all();
        assert_eq!(asks(&scene, 10), after, "{to}");
    }
}
