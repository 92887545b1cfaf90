//! Policies, as the kernel enforces them: what real sockets in pods' namespaces can do, held against the oracle.

mod clusterwide;
mod existing;
mod matrix;
mod network;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use podnet_core::cluster::{
    ClusterNetworkPolicy, Existing, Family, IpBlock, NamedPort, Namespace, NetworkPolicy, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicyRule, ObjectName, Pod, PolicyPort, PortRange, Protocol, Routing,
    Selector,
};
use podnet_core::flow::{Flow, Traffic};
use podnet_core::oracle;
use podnet_dataplane::{Applied, Dataplane, Kernel};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::common::{BackEnd, Lab, Machine, node_name};

/// How long what is allowed may take, which on a busy machine is long.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is denied is given so long to come through nevertheless. It was sent before what has come through by then.
const GRACE: Duration = Duration::from_millis(20);
const AGAIN: Duration = Duration::from_millis(300);
/// The ports that every pod serves.
pub(crate) const PORTS: [u16; 3] = [80, 81, 8080];

/// A node or a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Who {
    Node(usize),
    Pod(usize),
}

/// One attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Probe {
    pub(crate) from: Who,
    /// A pod.
    pub(crate) to: usize,
    pub(crate) family: Family,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

pub(crate) struct TestPod {
    pub(crate) name: ObjectName,
    pub(crate) node: usize,
    pub(crate) host: u8,
    pub(crate) machine: Machine,
    tcp: Vec<TcpListener>,
    udp: Vec<(u16, UdpSocket)>,
    clients: [UdpSocket; 2],
}

/// This module is there twice: without programs in front of the table, and with them.
pub(crate) fn on() -> BackEnd {
    match module_path!().ends_with("policy_by_programs") {
        true => BackEnd::Ebpf,
        false => BackEnd::Nftables,
    }
}

/// Nodes whose pods serve, and the policies about them.
pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) pods: Vec<TestPod>,
    pub(crate) kernels: Vec<Kernel>,
    node_clients: Vec<[UdpSocket; 2]>,
    round: std::cell::Cell<u32>,
}

/// Of everything, where the text is empty.
pub(crate) fn selector(text: &str) -> Selector {
    match text {
        "" => Selector::everything(),
        text => text.parse().unwrap(),
    }
}

pub(crate) fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

/// A policy about those pods that says nothing yet.
pub(crate) fn policy(pods: &str) -> NetworkPolicy {
    NetworkPolicy {
        pods: Ok(selector(pods)),
        types: None,
        ingress: None,
        egress: None,
        existing: Ok(Existing::Cut),
    }
}

pub(crate) fn rule(peers: Vec<NetworkPolicyPeer>, ports: Vec<NetworkPolicyPort>) -> NetworkPolicyRule {
    NetworkPolicyRule {
        peers: peers.into_iter().map(Ok).collect(),
        ports: ports.into_iter().map(Ok).collect(),
    }
}

/// Pods of the policy's own namespace.
pub(crate) fn pods(labels: &str) -> NetworkPolicyPeer {
    NetworkPolicyPeer::Pods {
        namespaces: None,
        pods: Some(selector(labels)),
    }
}

pub(crate) fn namespaces(labels: &str) -> NetworkPolicyPeer {
    NetworkPolicyPeer::Pods {
        namespaces: Some(selector(labels)),
        pods: None,
    }
}

pub(crate) fn block(cidr: &str, except: &[&str]) -> NetworkPolicyPeer {
    let except = except.iter().map(|text| text.parse().unwrap());
    NetworkPolicyPeer::Block(IpBlock::new(cidr.parse().unwrap(), except).unwrap())
}

pub(crate) fn range(first: u16, last: u16) -> PortRange {
    PortRange::new(port(first), port(last)).unwrap()
}

pub(crate) fn tcp(first: u16, last: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(Protocol::Tcp),
        port: Some(PolicyPort::Numbers(range(first, last))),
    }
}

impl World {
    /// Three pods in each of the namespaces a, b and c, spread over two nodes. A namespace has the label team=NAME; the
    /// pods are called 0 to 2 and have the labels app=x, app=y, app=z; `http` is port 80 of the first and 81 of the others.
    pub(crate) fn new() -> Self {
        World::of(&["a", "b", "c"], 3)
    }

    pub(crate) fn of(names: &[&str], pods_each: u8) -> Self {
        let mut world = World {
            lab: Lab::new(2, Routing::Direct, Family::V4, 1500).carried_by(on()),
            pods: Vec::new(),
            kernels: Vec::new(),
            node_clients: Vec::new(),
            round: std::cell::Cell::new(0),
        };
        for node in &world.lab.nodes {
            world.kernels.push(node.run(|| node.kernel(on().name())));
            world.node_clients.push(clients(node));
        }
        for name in names {
            let labels = [("team".to_owned(), (*name).to_owned())].into();
            let namespace = Namespace::new(name, labels);
            world.lab.cluster.namespaces.insert((*name).into(), namespace);
            for number in 0..pods_each {
                let name = ObjectName::new(*name, number.to_string());
                world.add(name, ["x", "y", "z"][usize::from(number)]);
            }
        }
        world.apply();
        world
    }

    /// Adds a pod with the label app=`app`.
    pub(crate) fn add(&mut self, name: ObjectName, app: &str) -> usize {
        let index = self.pods.len();
        let (node, host) = (index % 2, 2 + index as u8);
        let machine = self.lab.pod(node, host);
        let any = |port: &u16| SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
        let tcp = machine.run(|| PORTS.map(|port| TcpListener::bind(any(&port)).unwrap()));
        let udp = machine.run(|| PORTS.map(|port| (port, UdpSocket::bind(any(&port)).unwrap())));
        tcp.iter()
            .for_each(|socket| socket.set_nonblocking(true).unwrap());
        udp.iter()
            .for_each(|(_, socket)| socket.set_nonblocking(true).unwrap());
        let mut object = Pod::new(name.clone());
        object.node = Some(node_name(node));
        object.labels = [("app".to_owned(), app.to_owned())].into();
        let number = if name.name == "0" { 80 } else { 81 };
        object.ports = [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| NamedPort {
                name: "http".into(),
                protocol,
                port: port(number),
            })
            .into();
        let clients = clients(&machine);
        self.pods.push(TestPod {
            name: name.clone(),
            node,
            host,
            machine,
            tcp: tcp.into(),
            udp: udp.into(),
            clients,
        });
        object.addresses = [Family::V4, Family::V6]
            .map(|family| self.address(Who::Pod(index), family))
            .into();
        self.lab.cluster.pods.insert(name, Ok(object));
        index
    }

    pub(crate) fn address(&self, who: Who, family: Family) -> IpAddr {
        let text = match (who, family) {
            (Who::Node(node), Family::V4) => format!("172.30.0.{}", 11 + node),
            (Who::Node(node), Family::V6) => format!("fd30::{}", 11 + node),
            (Who::Pod(pod), Family::V4) => format!("10.244.{}.{}", self.pods[pod].node, self.pods[pod].host),
            (Who::Pod(pod), Family::V6) => {
                format!("fd00:10:244:{}::{}", self.pods[pod].node, self.pods[pod].host)
            }
        };
        text.parse().unwrap()
    }

    pub(crate) fn pod(&self, namespace: &str, name: u8) -> usize {
        let name = ObjectName::new(namespace, name.to_string());
        self.pods.iter().position(|pod| pod.name == name).unwrap()
    }

    /// The pod's object.
    pub(crate) fn object(&mut self, pod: usize) -> &mut Pod {
        let name = &self.pods[pod].name;
        self.lab.cluster.pods.get_mut(name).unwrap().as_mut().unwrap()
    }

    /// There is no policy but these.
    pub(crate) fn set(&mut self, policies: impl IntoIterator<Item = (&'static str, NetworkPolicy)>) {
        let numbered = policies.into_iter().enumerate();
        self.lab.cluster.network_policies = numbered
            .map(|(index, (namespace, policy))| {
                (ObjectName::new(namespace, format!("policy{index}")), Ok(policy))
            })
            .collect();
        self.apply();
    }

    /// There is no cluster network policy but these.
    pub(crate) fn set_clusterwide(&mut self, policies: impl IntoIterator<Item = ClusterNetworkPolicy>) {
        let numbered = policies.into_iter().enumerate();
        self.lab.cluster.cluster_network_policies = numbered
            .map(|(index, policy)| (format!("policy{index}"), Ok(policy)))
            .collect();
        self.apply();
    }

    /// Has every node's kernel follow the cluster.
    pub(crate) fn apply(&mut self) -> Vec<Applied> {
        let (lab, kernels) = (&self.lab, &mut self.kernels);
        let applied = kernels.iter_mut().enumerate().map(|(node, kernel)| {
            let state = lab.state(node);
            lab.nodes[node].run(move || kernel.follow(&state).unwrap())
        });
        applied.collect()
    }

    /// What the oracle says.
    pub(crate) fn is_allowed(&self, probe: &Probe) -> bool {
        let [from, to] = [probe.from, Who::Pod(probe.to)].map(|who| self.address(who, probe.family));
        let flow = Flow::new(from, to, Traffic::Port(probe.protocol, port(probe.port)));
        let (egress, ingress) = oracle::policy::verdict(&self.lab.cluster, &flow);
        egress.allowed && ingress.allowed
    }

    /// Every attempt of a pod to reach a port of a pod.
    pub(crate) fn all(&self) -> Vec<Probe> {
        let count = self.pods.len();
        let ends = (0..count).flat_map(|from| (0..count).map(move |to| (Who::Pod(from), to)));
        ends.flat_map(|(from, to)| each(from, to)).collect()
    }

    /// Tries everything that pods can try, and holds it against the oracle.
    pub(crate) fn agrees(&self) {
        let wanted: BTreeMap<Probe, bool> = self
            .all()
            .into_iter()
            .map(|probe| (probe, self.is_allowed(&probe)))
            .collect();
        self.expect(&wanted);
    }

    /// Holds all attempts between two against one answer, and against the oracle.
    pub(crate) fn reach(&self, from: Who, to: usize, wanted: impl Fn(&Probe) -> bool) {
        let wanted: BTreeMap<Probe, bool> = each(from, to).map(|probe| (probe, wanted(&probe))).collect();
        for (probe, wanted) in &wanted {
            assert_eq!(self.is_allowed(probe), *wanted, "the oracle of {probe:?}");
        }
        self.expect(&wanted);
    }

    /// Tries all at once, what is denied first. What is allowed must come through, and nothing else.
    pub(crate) fn expect(&self, wanted: &BTreeMap<Probe, bool>) {
        let round = self.round.get() + 1;
        self.round.set(round);
        let mut by_source: BTreeMap<Who, Vec<(u32, Probe)>> = BTreeMap::new();
        let mut order: Vec<(&Probe, &bool)> = wanted.iter().collect();
        order.sort_by_key(|(_, allowed)| **allowed);
        for (index, (probe, _)) in order.iter().enumerate() {
            by_source
                .entry(probe.from)
                .or_default()
                .push((index as u32, **probe));
        }
        let mut connecting: Vec<(u32, OwnedFd)> = Vec::new();
        for (who, probes) in by_source {
            connecting.extend(self.send(who, round, &probes));
        }
        let allowed: BTreeSet<u32> = (0..order.len() as u32)
            .filter(|index| *order[*index as usize].1)
            .collect();
        let mut through = BTreeSet::new();
        let end = Instant::now() + PATIENCE;
        let mut again = Instant::now() + AGAIN;
        while !allowed.is_subset(&through) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
            self.collect(round, &connecting, &mut through);
            // Nobody else sends a datagram again that got lost on a busy machine.
            if Instant::now() > again {
                again += AGAIN;
                let lost = allowed
                    .difference(&through)
                    .map(|index| (*index, *order[*index as usize].0));
                for one in lost.filter(|(_, probe)| probe.protocol == Protocol::Udp) {
                    self.send(one.1.from, round, &[one]);
                }
            }
        }
        std::thread::sleep(GRACE);
        self.collect(round, &connecting, &mut through);
        let wrong: Vec<String> = (0..order.len() as u32)
            .filter(|index| allowed.contains(index) != through.contains(index))
            .map(|index| {
                format!(
                    "{:?} should be {}",
                    order[index as usize].0, order[index as usize].1
                )
            })
            .collect();
        assert!(
            wrong.is_empty(),
            "{} wrong: {}\n{}",
            wrong.len(),
            wrong.join("\n"),
            self.describe()
        );
    }

    fn describe(&self) -> String {
        let states = (0..self.lab.nodes.len()).map(|node| {
            let state = self.lab.state(node);
            format!("{}\n{}", state.policy, self.lab.nodes[node].nft())
        });
        states.collect()
    }

    fn send(&self, who: Who, round: u32, probes: &[(u32, Probe)]) -> Vec<(u32, OwnedFd)> {
        let (machine, clients) = match who {
            Who::Node(node) => (&self.lab.nodes[node], &self.node_clients[node]),
            Who::Pod(pod) => (&self.pods[pod].machine, &self.pods[pod].clients),
        };
        let targets: Vec<_> = probes
            .iter()
            .map(|(index, probe)| (*index, probe, self.address(Who::Pod(probe.to), probe.family)))
            .collect();
        machine.run(move || {
            let mut connecting = Vec::new();
            for (index, probe, address) in targets {
                let to = SocketAddr::new(address, probe.port);
                if probe.protocol == Protocol::Udp {
                    let datagram = [round.to_be_bytes(), index.to_be_bytes()].concat();
                    match clients[usize::from(address.is_ipv6())].send_to(&datagram, to) {
                        Ok(_) => {}
                        // A node's own datagram that is dropped on its way out.
                        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                        Err(error) => panic!("{probe:?}: {error}"),
                    }
                } else {
                    connecting.push((index, connect(to)));
                }
            }
            connecting
        })
    }

    fn collect(&self, round: u32, connecting: &[(u32, OwnedFd)], through: &mut BTreeSet<u32>) {
        for (index, socket) in connecting {
            if !through.contains(index) && rustix::net::getpeername(socket).is_ok() {
                through.insert(*index);
            }
        }
        for pod in &self.pods {
            for listener in &pod.tcp {
                while listener.accept().is_ok() {}
            }
            for (_, socket) in &pod.udp {
                let mut datagram = [0; 8];
                while let Ok((8, _)) = socket.recv_from(&mut datagram) {
                    let [of, index] = [&datagram[..4], &datagram[4..]]
                        .map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
                    if of == round {
                        through.insert(index);
                    }
                }
            }
        }
    }
}

fn clients(machine: &Machine) -> [UdpSocket; 2] {
    machine.run(|| {
        [
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap(),
            UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap(),
        ]
    })
}

fn connect(to: SocketAddr) -> OwnedFd {
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap();
    // Closing resets: nothing of one round is left in the next.
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        // A node's own packet that is dropped on its way out.
        Err(rustix::io::Errno::PERM) => {}
        Err(error) => panic!("{to}: {error}"),
    }
    socket
}

/// All ports, protocols and families between two.
pub(crate) fn each(from: Who, to: usize) -> impl Iterator<Item = Probe> {
    let of_family = [Family::V4, Family::V6].into_iter();
    of_family.flat_map(move |family| {
        let protocols = [Protocol::Tcp, Protocol::Udp].into_iter();
        protocols.flat_map(move |protocol| {
            PORTS.into_iter().map(move |port| Probe {
                from,
                to,
                family,
                protocol,
                port,
            })
        })
    })
}
