//! How long services take to be in force: `cargo xtask bench` runs it.
//!
//! For 1, 1,000 and 10,000 services of five endpoints each, in a network namespace of its own: everything from nothing;
//! a restart, which reads all back and finds nothing to do; and the change of one endpoint, from the changed object to
//! the kernel's having it. Then what it costs a pod to reach one more service among them, beside reaching its endpoint
//! directly: a first packet's way there and back, and connections. The same for every back end that the kernel has, or
//! the one that an argument names (`nftables`, `ipvs`, `iptables-legacy`, `iptables-nft`, `userspace`). Prints
//! milliseconds as JSON. The proxy in user space is a process of its own here, too (`proxy SOCKET`), and its memory is
//! told apart.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made should stop")]

#[path = "../tests/kernel/common/mod.rs"]
#[expect(dead_code, unused_imports, reason = "most of it is for tests")]
mod common;
#[path = "services/packets.rs"]
mod packets;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use common::{BackEnd, Lab, Machine};
use podnet_core::cluster::{
    AddressFamily, Cluster, ClusterConfig, DataplaneName, Endpoint, EndpointPort, EndpointSlice, Family,
    Node, NodeName, ObjectName, PodRanges, Protocol, Routing, Service, ServicePort, Wired,
};
use podnet_core::{Incremental, compute};
use podnet_dataplane::userspace::{SOCKET, Site, proxy};
use podnet_dataplane::{Dataplane, Kernel};

use packets::Server;

const ENDPOINTS: u32 = 5;

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

/// The size of a process in MiB.
fn resident(process: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap();
    let pages: f64 = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / f64::from(1 << 20)
}

/// What carries services, and how many changes of one endpoint are timed.
const BACK_ENDS: [(&str, BackEnd, u32); 6] = [
    ("nftables", BackEnd::Nftables, 101),
    ("ebpf", BackEnd::Ebpf, 101),
    ("ipvs", BackEnd::Ipvs, 101),
    ("iptables-legacy", BackEnd::IptablesLegacy, 21),
    ("iptables-nft", BackEnd::IptablesNft, 21),
    ("userspace", BackEnd::Userspace, 101),
];

/// The proxy that runs, if any.
static PROXY: AtomicU32 = AtomicU32::new(0);

/// A data plane of the node whose proxy is this executable once more.
fn open(node: &Machine, name: DataplaneName) -> Kernel {
    let start = |socket: &Path| {
        let mut proxy = Command::new("/proc/self/exe").arg("proxy").arg(socket).spawn()?;
        PROXY.store(proxy.id(), Ordering::Relaxed);
        std::thread::spawn(move || {
            proxy.wait().unwrap();
            PROXY.store(0, Ordering::Relaxed);
        });
        Ok(())
    };
    let site = Site {
        socket: node.run_dir.path().join(SOCKET),
        identity: Arc::new(String::new),
        start: Arc::new(start),
    };
    let kernel = Kernel::open(None, name).unwrap().with_proxy(site).unwrap();
    match name {
        DataplaneName::Ebpf => kernel.with_programs(node.programs()).unwrap(),
        _ => kernel,
    }
}

/// One more service, which a pod of the node serves over TCP and UDP. It comes last, by its address.
fn add_probe(cluster: &mut Cluster, address: IpAddr, endpoint: SocketAddr) {
    let name = ObjectName::new("default", "probe");
    let named = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    let ports = named.map(|(name, protocol)| ServicePort::new(name, protocol, port()));
    let service = Service::new(vec![address], ports.into()).unwrap();
    cluster.services.insert(name.clone(), Ok(service));
    let ports = named.map(|(name, protocol)| EndpointPort {
        name: name.into(),
        protocol,
        port: NonZeroU16::new(endpoint.port()),
    });
    let endpoints = vec![Endpoint::ready(endpoint.ip(), Some(me()))];
    let slice = EndpointSlice::new(
        Some(name.clone()),
        AddressFamily::Ip(Family::V4),
        ports.into(),
        endpoints,
    );
    cluster.slices.insert(name, Ok(slice.unwrap()));
}

/// The node, and two of its pods.
struct Scene {
    lab: Lab,
    client: Machine,
    server: Machine,
}

fn measure(scene: &Scene, services: u32, (label, on, changes): (&str, BackEnd, u32)) -> String {
    let node = &scene.lab.nodes[0];
    let name_of = on.name();
    let before = resident("self");
    let cluster = cluster(services);
    let mut kernel = open(node, name_of);
    let begin = Instant::now();
    let state = compute(&cluster, &me());
    let computed = milliseconds(begin);
    kernel.apply(&state).unwrap();
    let full = milliseconds(begin);
    drop((kernel, state));
    let mut kernel = open(node, name_of);
    let begin = Instant::now();
    let again = kernel.apply(&compute(&cluster, &me())).unwrap();
    let restart = milliseconds(begin);
    assert!(again.is_nothing(), "{again:?}");
    let mut wanted = Incremental::new(cluster, me());
    kernel.apply(&wanted.compute()).unwrap();
    let mut changes: Vec<f64> = (1..=changes)
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
    let mebibytes = resident("self") - before;
    let proxy = PROXY.load(Ordering::Relaxed);
    let of_proxy = if proxy == 0 {
        0.0
    } else {
        resident(&proxy.to_string())
    };
    let address = IpAddr::from(Ipv4Addr::from(0x0a60_0001 + services));
    let endpoint: SocketAddr = "10.244.0.251:8080".parse().unwrap();
    add_probe(&mut wanted.cluster, address, endpoint);
    let client = Wired {
        namespace: Some(scene.client.cookie()),
        ..Wired::default()
    };
    let pods = &mut wanted.cluster.local.pods;
    pods.insert(ObjectName::new("default", "client"), vec![client]);
    kernel.follow(&wanted.compute()).unwrap();
    let server = Server::start(&scene.server, endpoint);
    let [service, direct] = packets::measure(&scene.client, [SocketAddr::new(address, 80), endpoint]);
    drop(server);
    kernel.clean().unwrap();
    format!(
        "{{\"dataplane\": \"{label}\", \"services\": {services}, \"compute\": {computed:.2}, \"full\": {full:.2}, \"restart\": {restart:.2}, \
         \"change_p50\": {p50:.3}, \"change_p99\": {p99:.3}, \"mebibytes\": {mebibytes:.1}, \"proxy_mebibytes\": {of_proxy:.1}, \
         \"service\": {service}, \"direct\": {direct}}}"
    )
}

fn main() {
    let only = std::env::args().nth(1);
    if only.as_deref() == Some("proxy") {
        let socket = std::env::args().nth(2).unwrap();
        return proxy::run(Path::new(&socket), "").unwrap();
    }
    let has_ipvs = podnet_linux::ipvs::Ipvs::open().is_ok();
    let chosen = BACK_ENDS.into_iter().filter(|(label, on, _)| match &only {
        Some(only) => only == label,
        None => *on != BackEnd::Ipvs || has_ipvs,
    });
    let figures: Vec<String> = chosen
        .flat_map(|back_end| {
            let lab = Lab::new(1, Routing::Direct, Family::V4, 1500).carried_by(back_end.1);
            let [client, server] = [250, 251].map(|host| lab.pod(0, host));
            let scene = Scene { lab, client, server };
            [1, 1000, 10_000].map(|services| scene.lab.nodes[0].run(|| measure(&scene, services, back_end)))
        })
        .collect();
    println!("[{}]", figures.join(", "));
}
