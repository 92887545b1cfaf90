//! Rolling updates under load: pods are replaced one after the other while clients go on connecting, and not one
//! connection fails.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{BackEnd, Lab, Machine, node_name};
use podnet_core::cluster::{ExternalPolicy, Family, Routing};
use podnet_core::compute;
use podnet_dataplane::{Dataplane, Kernel};

on_every_back_end!(no_connection_fails_while_pods_are_replaced_under_cluster_and_local);

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
    fn new(on: BackEnd) -> Self {
        let lab = Lab::new(2, Routing::default(), Family::V4, 1500).carried_by(on);
        let kernels = lab.nodes.iter();
        let kernels = kernels.map(|node| node.run(|| Kernel::open(None, on.name()).unwrap()));
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
    /// serving until its connections have ended: `settle` waits for that.
    fn replace(&mut self, settle: impl Fn()) {
        let node = self.pods[0].0.0;
        self.start(node);
        self.publish(&[]);
        let (old, machine) = self.pods.remove(0);
        self.publish(&[old]);
        settle();
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

fn no_connection_fails_while_pods_are_replaced_under_cluster_and_local(on: BackEnd) {
    let mut deployment = Deployment::new(on);
    // So many connections are made meanwhile. A change through iptables' programs takes longer than one by netlink.
    let connections = if on == BackEnd::Nftables { 10_000 } else { 3000 };
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
    let stop = AtomicBool::new(false);
    let made = [const { AtomicUsize::new(0) }; 3];
    let underlay = deployment.lab.underlay.again();
    let (failures, replaced) = std::thread::scope(|scope| {
        let clients = [
            (&underlay, outside.clone()),
            (&underlay, outside),
            (&inside, cluster_ips.concat()),
        ];
        let made = &made;
        let clients = std::array::from_fn::<_, 3, _>(|index| {
            let (client, targets) = &clients[index];
            let (client, targets, stop) = (*client, targets.clone(), &stop);
            scope.spawn(move || load(client, &targets, stop, &made[index]))
        });
        // Every client has ended what it was at, and what it began before it could know.
        let settle = || {
            for made in made {
                let before = made.load(Ordering::Relaxed);
                while made.load(Ordering::Relaxed) < before + 2 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        let all = || {
            made.iter()
                .map(|made| made.load(Ordering::Relaxed))
                .sum::<usize>()
        };
        let mut replaced = 0;
        while all() < connections || replaced < 4 {
            deployment.replace(settle);
            replaced += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let failures: Vec<String> = clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect();
        (failures, replaced)
    });
    let made: usize = made.into_iter().map(AtomicUsize::into_inner).sum();
    println!("{made} connections, {replaced} pods replaced");
    assert_eq!(failures, Vec::<String>::new());
}
