//! One table of packets for every back end: services of every kind, asked from everywhere by every address they have, and
//! what comes back is what the oracle says.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

use podnet_core::cluster::{
    AddressFamily, Affinity, Algorithm, Endpoint, EndpointSlice, Family, Hints, InternalPolicy, NodeName,
    Protocol, Routing, Service,
};
use podnet_core::oracle::{Fate, connect, keeps_source};
use podnet_core::service::NodePort;

use crate::common::{BackEnd, Lack, Machine, node_name, slice_name};
use crate::services::{BOTH, Scene, address, local};

on_every_back_end!(packets_meet_the_fate_the_oracle_says);

type Pod = (usize, u8);

const A: Pod = BOTH[0];
const B: Pod = BOTH[1];

/// A service of the table.
#[derive(Clone, Copy)]
struct Kind {
    ready: &'static [Pod],
    unready: &'static [Pod],
    terminating: &'static [Pod],
    change: fn(&mut Service),
    /// What clients each endpoint is meant for, by the node it is on.
    hints: Option<fn(usize) -> Hints>,
    /// Whoever asks twice is answered by the same endpoint.
    steady: bool,
    /// It has addresses of this family only.
    family: Option<Family>,
    /// A program of the nodes has its TCP node port.
    busy: bool,
    /// It is not asked of who lacks that.
    lack: Option<Lack>,
}

const PLAIN: Kind = Kind {
    ready: &BOTH,
    unready: &[],
    terminating: &[],
    change: |_| {},
    hints: None,
    steady: false,
    family: None,
    busy: false,
    lack: None,
};

const ZONES: [&str; 2] = ["east", "west"];

fn for_own_node(node: usize) -> Hints {
    Hints {
        nodes: [node_name(node)].into(),
        ..Hints::default()
    }
}

fn for_own_zone(node: usize) -> Hints {
    Hints {
        zones: [ZONES[node].into()].into(),
        ..Hints::default()
    }
}

fn internal(service: &mut Service) {
    service.internal_policy = InternalPolicy::Local;
}

fn both_local(service: &mut Service) {
    internal(service);
    local(service);
}

/// From outside, one node and its pods, in one family each; from the other node, and its pods in the other.
fn guarded(service: &mut Service) {
    let ranges = [
        "172.30.0.1/32",
        "10.244.1.0/24",
        "fd00:10:244::/64",
        "fd30::11/128",
    ];
    service.external.sources = Some(ranges.map(|range| range.parse().unwrap()).into());
}

fn stay(service: &mut Service) {
    service.affinity = Affinity::ClientIp { seconds: 600 };
}

fn kinds() -> Vec<Kind> {
    let of = |ready, change| Kind {
        ready,
        change,
        ..PLAIN
    };
    let ending = |ready, terminating, change| Kind {
        terminating,
        ..of(ready, change)
    };
    let steady = |change| Kind {
        steady: true,
        ..of(&BOTH, change)
    };
    let unready = |ready, unready, change| Kind {
        unready,
        ..of(ready, change)
    };
    let hinted = |hints: fn(usize) -> Hints, change| Kind {
        hints: Some(hints),
        ..of(&BOTH, change)
    };
    let single = |family| Kind {
        family: Some(family),
        ..PLAIN
    };
    vec![
        PLAIN,
        of(&[A], |_| {}),
        of(&BOTH, local),
        of(&[A], local),
        of(&[B], local),
        of(&[A], internal),
        of(&[B], both_local),
        // Only what terminates is left: everywhere, here, there.
        ending(&[], &BOTH, |_| {}),
        ending(&[B], &[A], both_local),
        ending(&[], &[B], both_local),
        of(&[], |_| {}),
        of(&[], both_local),
        unready(&[A], &[B], |_| {}),
        unready(&[], &BOTH, |_| {}),
        unready(&[B], &[A], both_local),
        of(&BOTH, guarded),
        of(&[B], |service| {
            guarded(service);
            local(service);
        }),
        Kind {
            lack: Some(Lack::SilentRefusal),
            ..of(&[], guarded)
        },
        steady(stay),
        steady(|service| {
            stay(service);
            both_local(service);
        }),
        steady(|service| {
            stay(service);
            service.external.algorithm = Algorithm::Maglev;
        }),
        hinted(for_own_node, |_| {}),
        hinted(for_own_zone, |_| {}),
        // Policies that keep to a node do not ask for hints.
        hinted(|node| for_own_zone(1 - node), both_local),
        single(Family::V4),
        single(Family::V6),
        Kind { busy: true, ..PLAIN },
    ]
}

fn node_port(host: u8) -> u16 {
    30_000 + u16::from(host)
}

/// The numbers of the services: the first, and the one after the last.
fn hosts() -> std::ops::Range<u8> {
    1..1 + kinds().len() as u8
}

/// Gives the service HOST the external IPs 203.0.113.HOST and 2001:db8::HOST, the load balancer's addresses
/// 203.0.113.1HOST and 2001:db8::1HOST (with two digits), and what its kind has.
fn put(scene: &mut Scene, host: u8, kind: Kind) {
    let both = |host: u8| {
        vec![
            address(&format!("203.0.113.{host}")),
            address(&format!("2001:db8::{host}")),
        ]
    };
    scene.lab.exposed(host, &[], |service| {
        if let Some(family) = kind.family {
            let addresses = service.cluster_ips().iter().copied();
            let addresses = addresses.filter(|address| Family::of(*address) == family);
            *service = Service::new(addresses.collect(), service.ports().to_vec()).unwrap();
        }
        service.external.ips = both(host);
        service.external.load_balancer = both(100 + host);
        (kind.change)(service);
    });
    scene
        .lab
        .endpoints(host, &[kind.ready, kind.unready].concat(), kind.terminating);
    for family in [Family::V4, Family::V6] {
        let port = NodePort {
            family,
            protocol: Protocol::Tcp,
            port: node_port(host).try_into().unwrap(),
        };
        let busy = &mut scene.lab.cluster.local.busy_ports;
        match kind.busy {
            true => busy.insert(port),
            false => busy.remove(&port),
        };
    }
    for family in [Family::V4, Family::V6] {
        let name = slice_name(host, family);
        let slices = &mut scene.lab.cluster.slices;
        let old = slices[&name].clone().unwrap();
        let endpoints = old.endpoints().iter().map(|endpoint| {
            let node = usize::from(endpoint.node == Some(node_name(1)));
            let is_ready = !kind.unready.iter().any(|(of, _)| *of == node);
            Endpoint {
                hints: kind.hints.map_or_else(Hints::default, |hints| hints(node)),
                ready: endpoint.ready && is_ready,
                serving: is_ready,
                ..endpoint.clone()
            }
        });
        let (family, endpoints) = (AddressFamily::Ip(family), endpoints.collect());
        let slice = EndpointSlice::new(old.service, family, old.ports, endpoints).unwrap();
        slices.insert(name, Ok(slice));
    }
}

/// Who asks.
struct Asker<'a> {
    name: &'static str,
    machine: &'a Machine,
    /// The node it is, or is on; `None` is outside.
    node: Option<usize>,
    addresses: [IpAddr; 2],
    /// Each question is asked by a port of its own, from this one on, where no port may be used again.
    next_port: Option<AtomicU16>,
}

impl Asker<'_> {
    /// 0 for any.
    fn port(&self) -> u16 {
        let next = self.next_port.as_ref();
        next.map_or(0, |next| next.fetch_add(1, Ordering::Relaxed))
    }

    fn address_for(&self, to: SocketAddr) -> IpAddr {
        self.addresses[usize::from(to.is_ipv6())]
    }

    fn is_node(&self) -> bool {
        self.addresses[0].to_string().starts_with("172.30.0.1") && self.node.is_some()
    }
}

/// One question of the table.
struct Question<'a> {
    asker: &'a Asker<'a>,
    protocol: Protocol,
    /// By a socket that is connected.
    connected: bool,
    to: SocketAddr,
    fate: Fate,
    /// The endpoints that see the client's own address, by name; `None` where that cannot be told.
    kept: Option<BTreeSet<String>>,
    steady: bool,
    /// The kernel says only so often a second to one host that it refuses datagrams, and a proxy's own network has a limit
    /// of its own.
    limited: bool,
    /// The asker may have got itself without a packet that anybody could translate.
    may_meet_itself: Option<String>,
}

/// What was said to a question.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    By(String, IpAddr),
    Refused,
    Silence,
}

impl Question<'_> {
    fn ask(&self) -> io::Result<Said> {
        let (to, port) = (self.to.to_string(), self.asker.port());
        let answer = match self.protocol {
            Protocol::Tcp => self.asker.machine.tcp_by(port, &to),
            Protocol::Udp if !self.connected => self.asker.machine.udp_unconnected_by(port, &to),
            _ => self.asker.machine.udp_by(port, &to),
        };
        let error = match answer {
            Ok((who, client)) => return Ok(Said::By(who, client)),
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::ConnectionRefused => Ok(Said::Refused),
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(Said::Silence),
            _ => Err(error),
        }
    }

    /// What is wrong with what comes back.
    fn judge(&self) -> Result<(), String> {
        let wrong = |said: &dyn std::fmt::Debug| {
            Err(format!(
                "{} asks {} {}: {said:?}, the oracle says {:?}, with the client's address by {:?}",
                self.asker.name, self.protocol, self.to, self.fate, self.kept
            ))
        };
        let own = self.asker.address_for(self.to);
        let is_seen_right = |who: &str, client: IpAddr| {
            let kept = self.kept.as_ref().map(|kept| kept.contains(who));
            let met_itself = client == own && self.may_meet_itself.as_deref() == Some(who);
            met_itself || kept.is_none_or(|kept| kept == (client == own))
        };
        let expected: BTreeSet<String> = match &self.fate {
            Fate::OneOf(endpoints) => endpoints.iter().map(|endpoint| name_of(endpoint.ip())).collect(),
            _ => BTreeSet::new(),
        };
        let mut seen = BTreeSet::new();
        // That one of two never comes by chance has a probability of 1 in 2^59; that who does not stay comes to one of
        // two always, of 1 in 2^9.
        for tries in 0..if self.steady { 10 } else { 60 } {
            match (self.ask(), &self.fate) {
                (Ok(Said::By(who, client)), Fate::OneOf(_))
                    if expected.contains(&who) && is_seen_right(&who, client) =>
                {
                    seen.insert(who)
                }
                (Ok(Said::Refused), Fate::Refused) | (Ok(Said::Silence), Fate::Dropped) => return Ok(()),
                (Ok(Said::Silence), Fate::Refused) if self.limited && tries < 3 => continue,
                (said, _) => return wrong(&said),
            };
            if seen == expected && !self.steady {
                return Ok(());
            }
        }
        match self.steady && seen.len() == 1 {
            true => Ok(()),
            false => wrong(&seen),
        }
    }
}

fn name_of(endpoint: IpAddr) -> String {
    let names = [
        ("10.244.0.2", "a"),
        ("fd00:10:244:0::2", "a"),
        ("10.244.1.2", "b"),
    ];
    let found = names.iter().find(|(at, _)| address(at) == endpoint);
    found.map_or("b", |(_, name)| name).to_owned()
}

/// Where everybody is asked: every address of the services, ports that they do not have, and a cluster IP that nobody has.
fn places() -> Vec<(SocketAddr, Option<u8>)> {
    let mut places = Vec::new();
    let mut add = |text: String, host| places.push((text.parse().unwrap(), host));
    for host in hosts() {
        for to in [
            format!("10.96.0.{host}:80"),
            format!("[fd00:10:96::{host}]:80"),
            format!("203.0.113.{host}:80"),
            format!("[2001:db8::{host}]:80"),
            format!("203.0.113.{}:80", 100 + host),
            format!("[2001:db8::{}]:80", 100 + host),
        ] {
            add(to, Some(host));
        }
        for node in ["172.30.0.11", "[fd30::11]", "172.30.0.12", "[fd30::12]"] {
            add(format!("{node}:{}", node_port(host)), Some(host));
        }
    }
    for to in [
        "10.96.0.1:81",
        "[fd00:10:96::1]:81",
        "10.96.0.99:80",
        "[fd00:10:96::99]:80",
        "172.30.0.11:30099",
        "[fd30::12]:30099",
    ] {
        add(to.to_owned(), None);
    }
    places
}

/// What the oracle says, and of which node: first of the one where the packet begins, or comes in, and then of the one it
/// goes to. Nothing, where the address is nobody's.
fn fate(
    scene: &Scene,
    asker: &Asker<'_>,
    protocol: Protocol,
    to: SocketAddr,
) -> Option<(Fate, Option<NodeName>)> {
    let nodes = 0..scene.lab.nodes.len();
    let has = |node: &usize| {
        let node = scene.lab.cluster.node(&node_name(*node)).unwrap();
        node.all_addresses.contains(&to.ip())
    };
    let owner = nodes.into_iter().find(has);
    let from = asker.address_for(to);
    // The outside's routes to services go by the first node.
    let first = asker.node.or(owner).unwrap_or(0);
    for node in [Some(first), owner].into_iter().flatten().map(node_name) {
        let fate = connect(&scene.lab.cluster, &node, from, protocol, to);
        if fate != Fate::NotAService {
            return Some((fate, Some(node)));
        }
    }
    // Nobody listens on the nodes themselves.
    owner.is_some().then_some((Fate::Refused, None))
}

/// The endpoints that see the client's address, where a connection goes on from `node`.
fn kept(scene: &Scene, asker: &Asker<'_>, to: SocketAddr, fate: &Fate, node: &NodeName) -> BTreeSet<String> {
    let Fate::OneOf(endpoints) = fate else {
        return BTreeSet::new();
    };
    let kept = |endpoint: &IpAddr| keeps_source(&scene.lab.cluster, node, asker.address_for(to), *endpoint);
    let endpoints = endpoints.iter().map(SocketAddr::ip).filter(kept);
    endpoints.map(name_of).collect()
}

/// All that is wrong. Silence takes its time: who expects it waits beside the others.
fn wrong(scene: &Scene, kinds: &[Kind], askers: &[Asker<'_>]) -> Vec<String> {
    let (mut silent, mut others) = (Vec::new(), Vec::new());
    for asker in askers {
        for (to, host) in places() {
            // Nobody outside has a way to cluster IPs.
            let internal = ["10.96.", "[fd00:10:96:"];
            let internal = internal.iter().any(|range| to.to_string().starts_with(range));
            if asker.node.is_none() && internal {
                continue;
            }
            for (protocol, connected) in [
                (Protocol::Tcp, true),
                (Protocol::Udp, true),
                (Protocol::Udp, false),
            ] {
                let Some((fate, node)) = fate(scene, asker, protocol, to) else {
                    continue;
                };
                // A socket that is not connected hears of no refusal.
                if !connected && !matches!(fate, Fate::OneOf(_)) {
                    continue;
                }
                // A node asks from the address that the way has.
                let is_told = !asker.is_node() && !scene.lab.on.lacks(Lack::ClientsAddress);
                let kept = node.filter(|_| is_told);
                let question = Question {
                    asker,
                    protocol,
                    connected,
                    to,
                    may_meet_itself: (scene.lab.on == BackEnd::Ebpf).then(|| name_of(asker.address_for(to))),
                    kept: kept.map(|node| self::kept(scene, asker, to, &fate, &node)),
                    fate,
                    limited: scene.lab.on == BackEnd::Userspace && protocol == Protocol::Udp,
                    steady: host.is_some_and(|host| kinds[usize::from(host) - 1].steady),
                };
                match question.fate {
                    Fate::Dropped => silent.push(question),
                    _ => others.push(question),
                }
            }
        }
    }
    assert!(silent.len() > 50 && others.len() > 500);
    println!("{} answers, {} silences", others.len(), silent.len());
    // Of two first connections at once each may choose for itself: whom a client stays with is settled before.
    for question in others.iter().filter(|question| question.steady) {
        let _settled = question.ask();
    }
    let next = Mutex::new(others.iter());
    let wrong = Mutex::new(Vec::new());
    let judge = |question: &Question<'_>| {
        if let Err(why) = question.judge() {
            wrong.lock().unwrap().push(why);
        }
    };
    std::thread::scope(|scope| {
        for question in &silent {
            let judge = &judge;
            scope.spawn(move || judge(question));
        }
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(question) = next.lock().unwrap().next() else {
                        break;
                    };
                    judge(question);
                }
            });
        }
    });
    wrong.into_inner().unwrap()
}

pub(crate) fn packets_meet_the_fate_the_oracle_says(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    let far = scene.lab.pod(1, 9);
    for node in &scene.lab.nodes {
        // Everything is refused in the same second here.
        node.command("sysctl -qw net.ipv4.icmp_ratemask=0 net.ipv6.icmp.ratelimit=0");
    }
    for (node, zone) in ZONES.into_iter().enumerate() {
        let node = scene.lab.cluster.nodes.get_mut(&node_name(node)).unwrap();
        let labels = &mut node.as_mut().unwrap().labels;
        labels.insert("topology.kubernetes.io/zone".into(), zone.into());
    }
    // Twice: what is there already becomes something else the second time, and one node has no node ports of IPv6.
    for (rotated, first_port, client_ports) in [(0, 32_768, "32768 44999"), (7, 45_000, "45000 60999")] {
        let mut kinds = kinds();
        kinds.rotate_left(rotated);
        let lacked = |kind: &&mut Kind| kind.lack.is_some_and(|lack| on.lacks(lack));
        kinds.iter_mut().filter(lacked).for_each(|kind| *kind = PLAIN);
        let some = ["172.30.0.0/24", "fd30::11/128"].map(|range| range.parse().unwrap());
        scene.lab.cluster.config.node_port_addresses = (rotated > 0).then(|| some.into());
        for (host, kind) in hosts().zip(&kinds) {
            put(&mut scene, host, *kind);
        }
        scene.lab.apply_all();
        let asker = |name, machine, node, addresses: [&str; 2]| Asker {
            name,
            machine,
            node,
            addresses: addresses.map(address),
            next_port: on.lacks(Lack::PortsUsedAgain).then(|| AtomicU16::new(first_port)),
        };
        let askers = [
            asker(
                "a pod",
                &scene.client,
                Some(0),
                ["10.244.0.9", "fd00:10:244:0::9"],
            ),
            asker("a far pod", &far, Some(1), ["10.244.1.9", "fd00:10:244:1::9"]),
            asker(
                "endpoint a",
                &scene.a,
                Some(0),
                ["10.244.0.2", "fd00:10:244:0::2"],
            ),
            asker(
                "the node",
                &scene.lab.nodes[0],
                Some(0),
                ["172.30.0.11", "fd30::11"],
            ),
            asker("the outside", scene.outside(), None, ["172.30.0.1", "fd30::1"]),
        ];
        for asker in &askers {
            // A flow that is there already may go on to its endpoint as long as that serves: none is taken up again.
            let range = format!("sysctl -qw net.ipv4.ip_local_port_range='{client_ports}'");
            asker.machine.command(&range);
        }
        let wrong = wrong(&scene, &kinds, &askers);
        assert!(
            wrong.is_empty(),
            "{} are wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
    }
}
