//! How long policies take to be in force: `cargo xtask bench` runs it.
//!
//! 10,000 policies about 30,000 pods with 5,000 label sets, 110 of the pods on the node, in a network namespace of its own:
//! everything from nothing; and changes of one pod elsewhere, and of one policy, from the changed object to the kernel's
//! having it. Prints milliseconds as JSON.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot be made should stop")]

#[path = "../tests/kernel/common/mod.rs"]
#[expect(dead_code, unused_imports, reason = "most of it is for tests")]
mod common;

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::time::Instant;

use common::Machine;
use podnet_core::cluster::{
    Cluster, ClusterConfig, DataplaneName, Existing, Namespace, NetworkPolicy, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicyRule, Node, NodeName, ObjectName, Pod, PodRanges, PolicyPort, PortRange,
};
use podnet_core::{Incremental, compute};
use podnet_dataplane::{Dataplane, Kernel};

const NAMESPACES: u32 = 500;
/// Label sets in a namespace.
const APPS: u32 = 10;
const PODS: u32 = 30_000;
const POLICIES: u32 = 10_000;
const LOCAL: u32 = 110;
const CHANGES: u32 = 101;

fn me() -> NodeName {
    NodeName::new("node1").unwrap()
}

fn namespace(number: u32) -> String {
    format!("team-{number}")
}

fn pod(number: u32) -> Pod {
    let (space, app) = (number % NAMESPACES, number / NAMESPACES % APPS);
    let mut pod = Pod::new(ObjectName::new(namespace(space), format!("pod-{number}")));
    let node = if number.is_multiple_of(PODS / LOCAL) {
        me()
    } else {
        NodeName::new("elsewhere").unwrap()
    };
    pod.node = Some(node);
    pod.labels = [("app", format!("app-{app}")), ("team", format!("{space}"))]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
    pod.addresses = vec![Ipv4Addr::from(0x0af4_0001 + number).into()];
    pod
}

/// About one app of a namespace: lets in another one on a port, and a whole namespace on another.
fn policy(number: u32, first: u16) -> (ObjectName, NetworkPolicy) {
    let (space, app) = (number % NAMESPACES, number / NAMESPACES % APPS);
    let peers = |namespaces: Option<u32>, app: Option<u32>| {
        let namespaces = namespaces.map(|other| format!("kubernetes.io/metadata.name={}", namespace(other)));
        let pods = app.map(|app| format!("app=app-{app}"));
        let selector = |text: Option<String>| text.map(|text| text.parse().unwrap());
        vec![Ok(NetworkPolicyPeer::Pods {
            namespaces: selector(namespaces),
            pods: selector(pods),
        })]
    };
    let ports = |port: u16| {
        let port = NonZeroU16::new(port).unwrap();
        vec![Ok(NetworkPolicyPort {
            protocol: None,
            port: Some(PolicyPort::Numbers(PortRange::one(port))),
        })]
    };
    let rules = vec![
        NetworkPolicyRule {
            peers: peers(None, Some((app + 1) % APPS)),
            ports: ports(first),
        },
        NetworkPolicyRule {
            peers: peers(Some((space + 1) % NAMESPACES), None),
            ports: ports(9000),
        },
    ];
    let policy = NetworkPolicy {
        pods: Ok(format!("app=app-{app}").parse().unwrap()),
        types: None,
        ingress: Some(rules),
        egress: None,
        existing: Ok(Existing::Cut),
    };
    (
        ObjectName::new(namespace(space), format!("policy-{number}")),
        policy,
    )
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::new(ClusterConfig {
        cluster_cidrs: vec!["10.244.0.0/14".parse().unwrap()],
        ..ClusterConfig::default()
    });
    let ranges = PodRanges::new(["10.240.0.0/24".parse().unwrap()]).unwrap();
    let node = Node::new(me(), &["172.30.0.11".parse().unwrap()], ranges);
    cluster.nodes.insert(me(), Ok(node));
    for number in 0..NAMESPACES {
        let name = namespace(number);
        let labels = [("team".to_owned(), format!("{number}"))].into();
        cluster
            .namespaces
            .insert(name.clone(), Namespace::new(&name, labels));
    }
    for number in 0..PODS {
        let pod = pod(number);
        cluster.pods.insert(pod.name.clone(), Ok(pod));
    }
    for number in 0..POLICIES {
        let (name, policy) = policy(number, 80);
        cluster.network_policies.insert(name, Ok(policy));
    }
    cluster
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

/// From a change to its being in force: the median and nearly the worst.
fn changes(
    kernel: &mut Kernel,
    wanted: &mut Incremental,
    mut change: impl FnMut(&mut Cluster, u32),
) -> (f64, f64) {
    let mut all: Vec<f64> = (1..=CHANGES)
        .map(|round| {
            let begin = Instant::now();
            change(&mut wanted.cluster, round);
            let applied = kernel.follow(&wanted.compute()).unwrap();
            assert!(applied.service_changes > 0);
            milliseconds(begin)
        })
        .collect();
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() - 2])
}

fn measure() -> String {
    let before = resident();
    let cluster = cluster();
    let mut kernel = Kernel::open(None, DataplaneName::Nftables).unwrap();
    let begin = Instant::now();
    let state = compute(&cluster, &me());
    let computed = milliseconds(begin);
    kernel.apply(&state).unwrap();
    let full = milliseconds(begin);
    drop((kernel, state));
    let mut kernel = Kernel::open(None, DataplaneName::Nftables).unwrap();
    let mut wanted = Incremental::new(cluster, me());
    kernel.apply(&wanted.compute()).unwrap();
    // A pod elsewhere that those of the node know as a peer, comes and goes.
    let peer = pod(500 + 1);
    let (pod_p50, pod_p99) = changes(&mut kernel, &mut wanted, |cluster, round| match round % 2 {
        0 => _ = cluster.pods.insert(peer.name.clone(), Ok(peer.clone())),
        _ => _ = cluster.pods.remove(&peer.name),
    });
    let (policy_p50, policy_p99) = changes(&mut kernel, &mut wanted, |cluster, round| {
        let (name, policy) = policy(0, 80 + (round % 2) as u16);
        cluster.network_policies.insert(name, Ok(policy));
    });
    let mebibytes = resident() - before;
    kernel.clean().unwrap();
    format!(
        "{{\"policies\": {POLICIES}, \"pods\": {PODS}, \"compute\": {computed:.2}, \"full\": {full:.2}, \
         \"pod_p50\": {pod_p50:.3}, \"pod_p99\": {pod_p99:.3}, \"policy_p50\": {policy_p50:.3}, \"policy_p99\": {policy_p99:.3}, \
         \"mebibytes\": {mebibytes:.1}}}"
    )
}

fn main() {
    let node = Machine::alone(&["172.30.0.11/24"]);
    println!("{}", node.run(measure));
}
