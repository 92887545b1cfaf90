//! How long services take to be in force: `cargo xtask bench` runs it.
//!
//! For 1, 1,000 and 10,000 services of five endpoints each, in a network namespace of its own: everything from nothing;
//! a restart, which reads all back and finds nothing to do; and the change of one endpoint, from the changed object to
//! the kernel's having it. Prints milliseconds as JSON.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made should stop")]

#[path = "../tests/kernel/common/mod.rs"]
#[expect(dead_code, reason = "most of it is for tests")]
mod common;

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::time::Instant;

use common::Machine;
use podnet_core::cluster::{
    AddressFamily, Cluster, ClusterConfig, Endpoint, EndpointPort, EndpointSlice, Family, Node, NodeName,
    ObjectName, PodRanges, Protocol, Service, ServicePort,
};
use podnet_core::{Incremental, compute};
use podnet_dataplane::{Dataplane, Kernel};

const ENDPOINTS: u32 = 5;
const CHANGES: u32 = 101;

fn name(index: u32) -> ObjectName {
    ObjectName::new(format!("team-{}", index % 100), format!("backend-{index}"))
}

fn port() -> NonZeroU16 {
    NonZeroU16::new(80).unwrap()
}

/// The slice of a service, whose endpoints are of the given round: the last one's address changes with it.
fn slice(index: u32, round: u32) -> EndpointSlice {
    let endpoints = (0..ENDPOINTS).map(|number| {
        let own = if number == 0 { round % 2 * 0x0040_0000 } else { 0 };
        let address = Ipv4Addr::from(0x0af4_0001 + index * ENDPOINTS + number + own);
        Endpoint::ready(address.into(), None)
    });
    let ports = vec![EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: Some(port()),
    }];
    let family = AddressFamily::Ip(Family::V4);
    EndpointSlice::new(Some(name(index)), family, ports, endpoints.collect()).unwrap()
}

fn cluster(services: u32) -> Cluster {
    let mut cluster = Cluster::new(ClusterConfig {
        cluster_cidrs: vec!["10.244.0.0/14".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        ..ClusterConfig::default()
    });
    let ranges = PodRanges::new(["10.240.0.0/24".parse().unwrap()]).unwrap();
    let node = Node::new(me(), &["172.30.0.11".parse().unwrap()], ranges);
    cluster.nodes.insert(me(), Ok(node));
    for index in 0..services {
        let address = Ipv4Addr::from(0x0a60_0001 + index).into();
        let ports = vec![ServicePort::new("http", Protocol::Tcp, port())];
        cluster
            .services
            .insert(name(index), Ok(Service::new(vec![address], ports).unwrap()));
        cluster.slices.insert(name(index), Ok(slice(index, 0)));
    }
    cluster
}

fn me() -> NodeName {
    NodeName::new("node1").unwrap()
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// The size of the process in MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / f64::from(1 << 20)
}

fn measure(services: u32) -> String {
    let before = resident();
    let cluster = cluster(services);
    let mut kernel = Kernel::open(None).unwrap();
    let begin = Instant::now();
    let state = compute(&cluster, &me());
    let computed = milliseconds(begin);
    kernel.apply(&state).unwrap();
    let full = milliseconds(begin);
    drop((kernel, state));
    let mut kernel = Kernel::open(None).unwrap();
    let begin = Instant::now();
    let again = kernel.apply(&compute(&cluster, &me())).unwrap();
    let restart = milliseconds(begin);
    assert!(again.is_nothing(), "{again:?}");
    let mut wanted = Incremental::new(cluster, me());
    kernel.apply(&wanted.compute()).unwrap();
    let mut changes: Vec<f64> = (1..=CHANGES)
        .map(|round| {
            let changed = slice(services / 2, round);
            let begin = Instant::now();
            wanted.cluster.slices.insert(name(services / 2), Ok(changed));
            let applied = kernel.follow(&wanted.compute()).unwrap();
            assert!(applied.service_changes > 0);
            milliseconds(begin)
        })
        .collect();
    changes.sort_by(f64::total_cmp);
    let (p50, p99) = (changes[changes.len() / 2], changes[changes.len() - 2]);
    let mebibytes = resident() - before;
    kernel.clean().unwrap();
    format!(
        "{{\"services\": {services}, \"compute\": {computed:.2}, \"full\": {full:.2}, \"restart\": {restart:.2}, \
         \"change_p50\": {p50:.3}, \"change_p99\": {p99:.3}, \"mebibytes\": {mebibytes:.1}}}"
    )
}

fn main() {
    let node = Machine::alone(&["172.30.0.11/24"]);
    let figures = [1, 1000, 10_000].map(|services| node.run(|| measure(services)));
    println!("[{}]", figures.join(", "));
}
