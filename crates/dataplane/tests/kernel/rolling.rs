//! Rolling updates under load: pods are replaced one after the other while clients go on connecting, and not one
//! connection fails.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{Lab, Machine, node_name};
use podnet_core::cluster::{ExternalPolicy, Family, Routing};
use podnet_core::compute;
use podnet_dataplane::{Dataplane, Kernel};

/// So many connections are made while pods are replaced.
const CONNECTIONS: usize = 10_000;
const CLUSTER: u8 = 1;
const LOCAL: u8 = 2;

/// Which node a pod is on, and its number.
type Pod = (usize, u8);

struct Deployment {
    lab: Lab,
    kernels: Vec<Kernel>,
    pods: Vec<(Pod, Machine)>,
    /// The next pod's number.
    next: u8,
}

impl Deployment {
    /// Two pods on the first of two nodes, one on the second; a service of each external policy in front of them.
    fn new() -> Self {
        let lab = Lab::new(2, Routing::default(), Family::V4, 1500);
        let kernels = lab.nodes.iter();
        let kernels = kernels.map(|node| node.run(|| Kernel::open(None).unwrap()));
        let mut deployment = Deployment {
            kernels: kernels.collect(),
            lab,
            pods: Vec::new(),
            next: 2,
        };
        for node in [0, 0, 1] {
            deployment.start(node);
        }
        let pods = deployment.names();
        deployment.lab.exposed(CLUSTER, &pods, |_| {});
        deployment.lab.exposed(LOCAL, &pods, |service| {
            service.external.policy = ExternalPolicy::Local
        });
        deployment.apply();
        deployment
    }

    fn names(&self) -> Vec<Pod> {
        self.pods.iter().map(|(pod, _)| *pod).collect()
    }

    fn start(&mut self, node: usize) {
        let pod = self.lab.pod(node, self.next);
        pod.serve(&format!("pod{}", self.next), 8080);
        self.pods.push(((node, self.next), pod));
        // 1 is for clients.
        self.next = if self.next == 200 { 2 } else { self.next + 1 };
    }

    fn apply(&mut self) {
        for (index, kernel) in self.kernels.iter_mut().enumerate() {
            let state = compute(&self.lab.cluster, &node_name(index));
            let applied = self.lab.nodes[index].run(|| kernel.follow(&state).unwrap());
            assert_eq!(applied.refused, Vec::<String>::new());
        }
    }

    fn publish(&mut self, terminating: &[Pod]) {
        let ready = self.names();
        for host in [CLUSTER, LOCAL] {
            self.lab.endpoints(host, &ready, terminating);
        }
        self.apply();
    }

    /// Replaces the oldest pod, as a Deployment does: the new one is ready before the old one terminates, which goes on
    /// serving until its connections have ended.
    fn replace(&mut self) {
        let node = self.pods[0].0.0;
        self.start(node);
        self.publish(&[]);
        let (old, machine) = self.pods.remove(0);
        self.publish(&[old]);
        // What is under way ends: an exchange takes milliseconds.
        std::thread::sleep(Duration::from_millis(100));
        self.publish(&[]);
        self.lab.unplug(node, old.1);
        drop(machine);
    }
}

/// Connects again and again until told to stop.
fn load(client: &Machine, targets: &[String], stop: &AtomicBool, made: &AtomicUsize) -> Vec<String> {
    let mut failures = Vec::new();
    for target in targets.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if let Err(error) = client.tcp(target) {
            failures.push(format!("{target}: {error}"));
        }
        made.fetch_add(1, Ordering::Relaxed);
    }
    failures
}

#[test]
fn no_connection_fails_while_pods_are_replaced_under_cluster_and_local() {
    let mut deployment = Deployment::new();
    let inside = deployment.lab.pod(0, 1);
    let of = |host: u8| {
        [
            format!("172.30.0.11:{}", 30_000 + u16::from(host)),
            format!("[fd30::11]:{}", 30_000 + u16::from(host)),
        ]
    };
    let outside: Vec<String> = [of(CLUSTER), of(LOCAL)].concat();
    let cluster_ips =
        [CLUSTER, LOCAL].map(|host| [format!("10.96.0.{host}:80"), format!("[fd00:10:96::{host}]:80")]);
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let underlay = deployment.lab.underlay.again();
    let (failures, replaced) = std::thread::scope(|scope| {
        let clients = [
            (&underlay, outside.clone()),
            (&underlay, outside),
            (&inside, cluster_ips.concat()),
        ];
        let clients = clients.map(|(client, targets)| {
            let (stop, made) = (&stop, &made);
            scope.spawn(move || load(client, &targets, stop, made))
        });
        let mut replaced = 0;
        while made.load(Ordering::Relaxed) < CONNECTIONS {
            deployment.replace();
            replaced += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let failures: Vec<String> = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect();
        (failures, replaced)
    });
    assert!(replaced > 3, "{replaced} pods were replaced");
    println!("{} connections, {replaced} pods replaced", made.into_inner());
    assert_eq!(failures, Vec::<String>::new());
}
