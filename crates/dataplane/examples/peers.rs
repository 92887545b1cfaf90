//! How long it takes until a node's kernel has what it needs to reach 500 others, beside the bare netlink work:
//! `cargo xtask bench` runs it. It works in a network namespace of its own, and prints JSON.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made should stop")]

#[path = "../tests/kernel/common/mod.rs"]
#[expect(dead_code, unused_imports, reason = "most of it is for tests")]
mod common;

use std::time::{Duration, Instant};

use common::{Lab, node_name, peers};
use podnet_core::cluster::{Cluster, DataplaneName, Family, Routing};
use podnet_core::route::Hop;
use podnet_core::{NodeState, compute};
use podnet_dataplane::route::{ROUTE_PROTOCOL, TUNNEL_LINK};
use podnet_dataplane::{Dataplane, Kernel};
use podnet_linux::netlink::{FdbEntry, MacAddr, Neighbour, Netlink, Request, Route};

const PEERS: u16 = 500;
/// Of each a forwarding entry, and of each of its two ranges a neighbour and a route.
const ENTRIES: usize = 5 * PEERS as usize;
const ROUNDS: usize = 15;

fn main() {
    let lab = Lab::new(1, Routing::default(), Family::V4, 1500);
    let figures = lab.nodes[0].run(|| measure(&lab.cluster));
    println!("{figures}");
}

fn measure(alone: &Cluster) -> String {
    let mut kernel = Kernel::open(None, DataplaneName::Nftables).unwrap();
    let mut netlink = Netlink::open().unwrap();
    let mut crowd = alone.clone();
    crowd.nodes.extend(peers(PEERS));
    let mut moved = crowd.clone();
    let one = moved.nodes.values_mut().last().unwrap().as_mut().unwrap();
    one.addresses.v4 = Some([172, 31, 0, 99].into());
    kernel.apply(&compute(alone, &node_name(0))).unwrap();
    let tunnel = netlink.link(TUNNEL_LINK).unwrap().unwrap().index;

    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let applied = pass(&mut kernel, &crowd, ENTRIES);
        let unchanged = pass(&mut kernel, &crowd, 0);
        let one_moved = pass(&mut kernel, &moved, 1);
        pass(&mut kernel, alone, ENTRIES);

        let requests = entries(&compute(&crowd, &node_name(0)), tunnel);
        let begin = Instant::now();
        netlink.apply(requests).unwrap();
        let bare = begin.elapsed();
        // It was the same work: nothing is left to do.
        pass(&mut kernel, &crowd, 0);
        pass(&mut kernel, alone, ENTRIES);
        for (times, took) in times.iter_mut().zip([applied, bare, unchanged, one_moved]) {
            times.push(took);
        }
    }
    let [applied, bare, unchanged, one_moved] = times.map(|mut times| {
        times.sort();
        times[ROUNDS / 2].as_secs_f64() * 1e3
    });
    format!(
        r#"{{"peers": {PEERS}, "applied": {applied}, "bare": {bare}, "unchanged": {unchanged}, "one_moved": {one_moved}}}"#
    )
}

/// The time from the objects to the last entry, which takes so many changes.
fn pass(kernel: &mut Kernel, cluster: &Cluster, changes: usize) -> Duration {
    let begin = Instant::now();
    let applied = kernel.apply(&compute(cluster, &node_name(0))).unwrap();
    let took = begin.elapsed();
    assert_eq!((applied.route_changes, applied.refused), (changes, Vec::new()));
    took
}

/// What other nodes are reached by, ready to be sent.
fn entries(state: &NodeState, tunnel: u32) -> Vec<Request<'static>> {
    let routing = &state.routing;
    let forwarding = routing.forwarding.iter();
    let forwarding = forwarding.map(|(mac, to)| FdbEntry::vxlan(tunnel, MacAddr(mac.0), *to).replace());
    let neighbours = routing.neighbours.iter();
    let neighbours = neighbours.map(|(of, mac)| Neighbour::permanent(tunnel, *of, MacAddr(mac.0)).replace());
    let routes = routing.routes.iter().filter_map(|(destination, hop)| {
        let Hop::Tunnel(gateway) = hop else {
            return None;
        };
        let route = Route {
            onlink: true,
            ..Route::via(*destination, *gateway, Some(tunnel), ROUTE_PROTOCOL)
        };
        Some(route.add())
    });
    forwarding.chain(neighbours).chain(routes).collect()
}
