//! Rolling updates under load: pods are replaced one after the other while clients go on. Not one connection fails, and
//! flows of datagrams follow the endpoints.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{BackEnd, Lab, Machine, ask};
use podnet_core::cluster::{ExternalPolicy, Family, Routing};
use podnet_dataplane::{Dataplane, Kernel};

on_every_back_end!(
    no_connection_fails_while_pods_are_replaced_under_cluster_and_local,
    datagram_flows_follow_while_pods_are_replaced_under_cluster_and_local,
);

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
        let kernels = kernels.map(|node| node.run(|| node.kernel(on.name())));
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
            let state = self.lab.state(index);
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

/// One exchange of a client that goes on with it; or what was wrong.
type Exchange<'a> = Box<dyn FnMut() -> Result<(), String> + Send + 'a>;

/// Replaces pods until the clients have made so many exchanges, and no pod is left of those that were there; what failed.
fn replace_under(deployment: &mut Deployment, clients: Vec<Exchange<'_>>, enough: usize) -> Vec<String> {
    let stop = AtomicBool::new(false);
    let made: Vec<AtomicUsize> = clients.iter().map(|_| AtomicUsize::new(0)).collect();
    let go_on = |mut exchange: Exchange<'_>, made: &AtomicUsize| {
        let mut failures = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            failures.extend(exchange().err());
            made.fetch_add(1, Ordering::Relaxed);
        }
        failures
    };
    let (failures, replaced) = std::thread::scope(|scope| {
        let (go_on, stop) = (&go_on, &stop);
        let clients: Vec<_> = (clients.into_iter().zip(&made))
            .map(|(exchange, made)| scope.spawn(move || go_on(exchange, made)))
            .collect();
        // Every client has ended what it was at, and what it began before it could know.
        let settle = || {
            for made in &made {
                let before = made.load(Ordering::Relaxed);
                while made.load(Ordering::Relaxed) < before + 2 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        let all = || -> usize { made.iter().map(|made| made.load(Ordering::Relaxed)).sum() };
        let mut replaced = 0;
        while all() < enough || replaced < 4 {
            deployment.replace(settle);
            replaced += 1;
        }
        settle();
        stop.store(true, Ordering::Relaxed);
        let failures = clients.into_iter().flat_map(|client| client.join().unwrap());
        (failures.collect(), replaced)
    });
    let made: usize = made.into_iter().map(AtomicUsize::into_inner).sum();
    println!("{made} exchanges, {replaced} pods replaced");
    failures
}

/// How the outside and pods reach the services, by either family.
fn from_outside(host: u8) -> [String; 2] {
    let port = 30_000 + u16::from(host);
    [format!("172.30.0.11:{port}"), format!("[fd30::11]:{port}")]
}

fn from_pods(host: u8) -> [String; 2] {
    [format!("10.96.0.{host}:80"), format!("[fd00:10:96::{host}]:80")]
}

fn no_connection_fails_while_pods_are_replaced_under_cluster_and_local(on: BackEnd) {
    let mut deployment = Deployment::new(on);
    // So many connections are made meanwhile. A change through iptables' programs takes longer than one by netlink.
    let connections = match on {
        BackEnd::Nftables => 10_000,
        // In the virtual machine.
        BackEnd::Ipvs => 400,
        _ => 3000,
    };
    let (inside, underlay) = (deployment.lab.pod(0, 1), deployment.lab.underlay.again());
    let outside = [CLUSTER, LOCAL].map(from_outside).concat();
    let cluster_ips = [CLUSTER, LOCAL].map(from_pods).concat();
    let clients = [
        (&underlay, &outside),
        (&underlay, &outside),
        (&inside, &cluster_ips),
    ];
    let clients = clients.map(|(client, targets)| -> Exchange<'_> {
        let mut targets = targets.iter().cycle();
        Box::new(move || {
            let target = targets.next().unwrap();
            let answer = client.tcp(target);
            answer.map(|_| ()).map_err(|error| format!("{target}: {error}"))
        })
    });
    let failures = replace_under(&mut deployment, clients.into(), connections);
    assert_eq!(failures, Vec::<String>::new());
}

fn datagram_flows_follow_while_pods_are_replaced_under_cluster_and_local(on: BackEnd) {
    let mut deployment = Deployment::new(on);
    let (inside, underlay) = (deployment.lab.pod(0, 1), deployment.lab.underlay.again());
    let flows: Vec<(&Machine, String)> = [CLUSTER, LOCAL]
        .into_iter()
        .flat_map(|host| {
            let outside = from_outside(host).map(|to| (&underlay, to));
            [outside, from_pods(host).map(|to| (&inside, to))].concat()
        })
        .collect();
    // Who answered each flow.
    let answered: Vec<Mutex<BTreeSet<String>>> = flows.iter().map(|_| Mutex::default()).collect();
    let clients = flows
        .iter()
        .zip(&answered)
        .map(|((client, to), answered)| -> Exchange<'_> {
            let socket = client.udp_socket(to);
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            Box::new(move || {
                // What is under way in the moment in which its flow ends is lost, as on any network: a client asks again.
                let answer = ask(&socket).or_else(|_| ask(&socket));
                let (who, _) = answer.map_err(|error| format!("{to}: {error}"))?;
                answered.lock().unwrap().insert(who);
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            })
        });
    let failures = replace_under(&mut deployment, clients.collect(), 0);
    assert_eq!(failures, Vec::<String>::new());
    let first: BTreeSet<String> = ["pod2", "pod3", "pod4"].map(str::to_owned).into();
    for ((_, to), answered) in flows.iter().zip(answered) {
        let answered = answered.into_inner().unwrap();
        assert!(!answered.is_subset(&first), "{to}: {answered:?}");
    }
}
