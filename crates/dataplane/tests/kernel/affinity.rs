//! How long a client stays with its endpoint.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use podnet_core::cluster::{Affinity, Routing};

use crate::common::{BackEnd, PATIENCE, ask};
use crate::services::{BOTH, Scene};

on_every_back_end!(each_use_lets_a_client_stay_anew);

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
    let mut clients = Vec::new();
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
            } else {
                assert_eq!(Some(&who), client.by.as_ref(), "{}", client.address);
            }
            (client.used, client.by) = (now, Some(who));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
