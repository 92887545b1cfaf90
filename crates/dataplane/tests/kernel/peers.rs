//! Nodes that come and go: what follows, and what is left alone.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::common::{Lab, Machine, ask, node_name, peers};
use podnet_core::NodeState;
use podnet_core::cluster::{Cluster, DataplaneName, Family, Node, NodeName, PodRanges, Routing};
use podnet_core::compute;
use podnet_dataplane::route::ROUTE_PROTOCOL;
use podnet_dataplane::{Applied, Dataplane, Kernel};
use podnet_linux::netlink::{LinkChange, Netlink, RouteFilter};
use podnet_linux::sysctl;

/// What the kernel announces of routes, neighbours and tunnel entries in a machine.
struct Announced {
    children: Vec<Child>,
    lines: mpsc::Receiver<String>,
}

impl Announced {
    fn by(machine: &Machine) -> Self {
        let (tell, lines) = mpsc::channel();
        let commands: [&[&str]; 2] = [
            &["ip", "-o", "monitor", "link", "address", "route", "neigh"],
            &["bridge", "monitor", "fdb"],
        ];
        let children = commands.map(|words| {
            let mut child = machine.run(|| {
                Command::new(words[0])
                    .args(&words[1..])
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            });
            let reader = BufReader::new(child.stdout.take().unwrap());
            let tell = tell.clone();
            std::thread::spawn(move || {
                for line in reader.lines().map_while(Result::ok) {
                    let _ = tell.send(line);
                }
            });
            child
        });
        let announced = Announced {
            children: children.into(),
            lines,
        };
        // Both hear something that is nobody's before they are believed to hear all.
        let (mut heard_route, mut heard_fdb) = (false, false);
        let end = Instant::now() + Duration::from_secs(20);
        while !(heard_route && heard_fdb) {
            assert!(Instant::now() < end, "the monitors hear nothing");
            for line in [
                "ip route replace 192.0.2.0/24 dev lo",
                "ip route del 192.0.2.0/24 dev lo",
                "bridge fdb replace 02:00:00:00:00:77 dev podnet.vxlan dst 192.0.2.7",
                "bridge fdb del 02:00:00:00:00:77 dev podnet.vxlan dst 192.0.2.7",
            ] {
                command(machine, line);
            }
            for line in announced.lines() {
                heard_route |= line.contains("192.0.2.0/24");
                heard_fdb |= line.contains("02:00:00:00:00:77");
            }
        }
        announced.lines();
        announced
    }

    /// All that was said, until nothing more is.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(300)) {
            lines.push(line);
        }
        lines
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn command(machine: &Machine, line: &str) {
    let mut words = line.split(' ');
    let status = machine.run(|| Command::new(words.next().unwrap()).args(words).status().unwrap());
    assert!(status.success(), "{line}");
}

fn apply(machine: &Machine, kernel: &mut Kernel, state: &NodeState) -> Applied {
    let applied = machine.run(|| kernel.apply(state).unwrap());
    assert_eq!(applied.refused, Vec::<String>::new());
    applied
}

fn peer(name: &str, address: &str, range: &str, range6: &str) -> (NodeName, Node) {
    let name = NodeName::new(name).unwrap();
    let ranges = PodRanges::new([range, range6].map(|text| text.parse().unwrap())).unwrap();
    (name.clone(), Node::new(name, &[address.parse().unwrap()], ranges))
}

/// Asks without end; panics at the first answer that does not come.
fn talk(from: &Machine, to: &str, stop: &AtomicBool, asked: &AtomicUsize) {
    let socket = from.udp_socket(to);
    while !stop.load(Ordering::Relaxed) {
        ask(&socket).expect("a packet to a node that did not change was lost");
        asked.fetch_add(1, Ordering::Relaxed);
    }
}

/// Ends what runs beside, however what it runs beside ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Keeps UDP exchanges going from one pod to the server of another, on both families, while something happens. Not one
/// may be lost.
fn while_they_talk(from: &Machine, meanwhile: impl FnOnce()) {
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for to in ["10.244.1.2:8080", "[fd00:10:244:1::2]:8080"] {
            let (stop, asked) = (&stop, &asked);
            scope.spawn(move || talk(from, to, stop, asked));
        }
        let _stop = Stop(&stop);
        meanwhile();
    });
    assert!(asked.load(Ordering::Relaxed) > 100);
}

#[test]
fn only_what_changed_is_touched_and_nobody_else_loses_a_packet() {
    for routing in [Routing::default(), Routing::Direct] {
        let lab = Lab::new(2, routing, Family::V4, 1500);
        let (client, server) = (lab.pod(0, 2), lab.pod(1, 2));
        server.serve("server", 8080);
        lab.apply_all();
        while_they_talk(&client, || come_and_go(&lab, routing));
    }
}

/// A third node, in the eyes of the other two, over its life.
fn come_and_go(lab: &Lab, routing: Routing) {
    let open = |machine: &Machine| machine.run(|| Kernel::open(None, DataplaneName::Nftables).unwrap());
    let (node, other) = (&lab.nodes[0], &lab.nodes[1]);
    let (mut kernel, mut others) = (open(node), open(other));
    // The monitors listen with the help of the tunnel; without one any other device does.
    if routing == Routing::Direct {
        command(
            node,
            "ip link add podnet.vxlan type vxlan id 9 dstport 9 local 172.30.0.11",
        );
    }
    let announced = Announced::by(node);
    if routing == Routing::Direct {
        command(node, "ip link del podnet.vxlan");
        announced.lines();
    }
    let tunnel = routing != Routing::Direct;
    // What happens to the third node; and how many announcements may speak of what.
    let born = peer("node3", "172.30.0.13", "10.244.7.0/24", "fd00:10:244:7::/64");
    let moved = peer("node3", "172.30.0.99", "10.244.7.0/24", "fd00:10:244:7::/64");
    let renamed = peer("other", "172.30.0.99", "10.244.7.0/24", "fd00:10:244:7::/64");
    for (what, third, changes) in [
        ("born", Some(&born), if tunnel { 5 } else { 1 }),
        ("moved", Some(&moved), 1),
        ("renamed", Some(&renamed), if tunnel { 4 } else { 0 }),
        ("gone", None, if tunnel { 5 } else { 1 }),
        ("back", Some(&born), if tunnel { 5 } else { 1 }),
    ] {
        let mut cluster = lab.cluster.clone();
        cluster
            .nodes
            .extend(third.map(|(name, node)| (name.clone(), Ok(node.clone()))));
        let state = compute(&cluster, &node_name(0));
        let applied = apply(node, &mut kernel, &state);
        let there = apply(other, &mut others, &compute(&cluster, &node_name(1)));
        assert_eq!(there.route_changes, changes, "{what}");
        let said: Vec<String> = announced.lines();
        assert_eq!(applied.route_changes, changes, "{what}: {said:#?}");
        let macs = [&born.0, &renamed.0].map(|name| podnet_core::route::Mac::of_node(name).to_string());
        let [first, second] = &macs;
        let its_own = ["10.244.7.0", "fd00:10:244:7::", first, second];
        let (about_it, others): (Vec<&String>, Vec<&String>) = said
            .iter()
            .partition(|line| its_own.iter().any(|part| line.contains(part)));
        assert!(about_it.len() >= changes, "{what}: {said:#?}");
        assert!(others.iter().all(|line| is_own_accord(line)), "{what}: {said:#?}");
        assert!(apply(node, &mut kernel, &state).is_nothing(), "{what}");
        let said = announced.lines();
        assert!(said.iter().all(|line| is_own_accord(line)), "{what}: {said:#?}");
    }
}

/// What the kernel says of its own accord: of neighbours that it asks for, and of the addresses that links give
/// themselves.
fn is_own_accord(line: &str) -> bool {
    let asking = ["REACHABLE", "STALE", "DELAY", "PROBE", "FAILED", "INCOMPLETE"];
    line.contains("fe80::") || asking.iter().any(|state| line.trim_end().ends_with(state))
}

#[test]
fn a_node_that_gets_another_address_keeps_its_tunnel_and_all_its_entries() {
    let mut lab = Lab::new(3, Routing::default(), Family::V4, 1500);
    let (here, there) = (lab.pod(0, 2), lab.pod(1, 2));
    there.serve("there", 8080);
    lab.apply_all();
    assert!(here.udp("10.244.1.2:8080").is_ok());
    let index = lab.nodes[0].link("podnet.vxlan").index;
    let announced = Announced::by(&lab.nodes[0]);
    // First the node has the address, then the world knows it.
    command(&lab.nodes[0], "ip address add 172.30.0.77/24 dev eth0");
    announced.lines();
    let ranges = lab.cluster.node(&node_name(0)).unwrap().pod_ranges;
    let moved = Node::new(node_name(0), &["172.30.0.77".parse().unwrap()], ranges);
    lab.cluster.nodes.insert(node_name(0), Ok(moved));
    lab.apply_all();
    assert_eq!(lab.nodes[0].link("podnet.vxlan").index, index, "the same link");
    let said = announced.lines();
    let lost: Vec<&String> = said.iter().filter(|line| line.contains("Deleted")).collect();
    assert!(lost.is_empty(), "{lost:#?}");
    for to in ["10.244.1.2:8080", "[fd00:10:244:1::2]:8080"] {
        assert_eq!(here.udp(to).unwrap().0, "there");
    }
}

#[test]
fn what_the_kernel_forgets_with_a_link_comes_back_with_it() {
    let lab = Lab::new(2, Routing::Direct, Family::V4, 1500);
    lab.apply_all();
    let state = lab.state(0);
    let (told, disturbed) = mpsc::channel();
    lab.nodes[0].run(move || {
        let mut kernel = Kernel::open(None, DataplaneName::Nftables).unwrap();
        kernel.apply(&state).unwrap();
        let before = kernel.dump().unwrap().to_string();
        let mut monitor = kernel.monitor().unwrap();
        std::thread::spawn(move || while monitor.wait().is_ok() && told.send(()).is_ok() {});
        let mut netlink = Netlink::open().unwrap();
        let mut set = |up: bool| netlink.request(LinkChange::named("eth0").up(up).apply()).unwrap();
        // Its IPv6 address would not survive, which is for whoever manages the link to mend.
        sysctl::set("net/ipv6/conf/eth0/keep_addr_on_down", "1").unwrap();
        set(false);
        disturbed
            .recv_timeout(Duration::from_secs(10))
            .expect("a link that goes down is heard of");
        assert_ne!(
            kernel.dump().unwrap().to_string(),
            before,
            "the kernel forgot the routes"
        );
        set(true);
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            disturbed
                .recv_timeout(Duration::from_secs(10))
                .expect("and so is one that comes up");
            // IPv6's next hop takes a moment.
            let applied = kernel.apply(&state).unwrap();
            if applied.refused.is_empty() && kernel.dump().unwrap().to_string() == before {
                return;
            }
            assert!(Instant::now() < end, "{:?}", applied.refused);
            std::thread::sleep(Duration::from_millis(50));
            if let Ok(applied) = kernel.apply(&state)
                && applied.refused.is_empty()
                && kernel.dump().unwrap().to_string() == before
            {
                return;
            }
        }
    });
}

#[test]
fn a_node_without_its_object_keeps_what_it_has() {
    let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500);
    lab.apply_all();
    let before = lab.dump(0).to_string();
    lab.cluster.nodes.remove(&node_name(0));
    // An agent that starts now, and never saw the object.
    assert_eq!(lab.apply(0).route_changes, 0);
    assert_eq!(lab.dump(0).to_string(), before);
}

#[test]
fn routes_change_between_tunnel_and_subnet_without_a_moment_in_between() {
    let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500);
    let (here, there) = (lab.pod(0, 2), lab.pod(1, 2));
    there.serve("there", 8080);
    lab.cluster.config.cross_subnet = true;
    lab.apply_all();
    let subnets: BTreeSet<_> = ["172.30.0.0/24", "fd30::/64"]
        .iter()
        .map(|net| net.parse().unwrap())
        .collect();
    let seen = lab.nodes[0].run(|| {
        let local: IpAddr = "172.30.0.11".parse().unwrap();
        Kernel::open(None, DataplaneName::Nftables)
            .unwrap()
            .subnets(Some(local))
            .unwrap()
    });
    assert_eq!(seen, subnets);
    let announced = Announced::by(&lab.nodes[0]);
    let far = [
        "10.244.1.0/24 via 10.244.1.0 on the tunnel",
        "fd00:10:244:1::/64 via fd00:10:244:1:: on the tunnel",
    ];
    let near = ["10.244.1.0/24 via 172.30.0.12", "fd00:10:244:1::/64 via fd30::12"];
    while_they_talk(&here, || {
        for _ in 0..5 {
            for (subnets, hops) in [(subnets.clone(), near), (BTreeSet::new(), far)] {
                lab.cluster.local.subnets = subnets;
                lab.apply_all();
                let dump = lab.dump(0).to_string();
                for hop in hops {
                    assert!(dump.contains(&format!("route {hop}\n")), "{hop}: {dump}");
                }
            }
        }
    });
    let said = announced.lines();
    let of_peer = |line: &&String| line.contains("10.244.1.0/24") || line.contains("fd00:10:244:1::/64");
    assert_eq!(said.iter().filter(of_peer).count(), 20, "{said:#?}");
    let gone = said
        .iter()
        .filter(of_peer)
        .filter(|line| line.contains("Deleted"));
    assert_eq!(gone.count(), 0, "{said:#?}");
}

/// Ours among the routes of a machine.
fn routes(machine: &Machine) -> usize {
    let routes = machine.netlink(|netlink| netlink.routes(RouteFilter::default()).unwrap());
    routes
        .iter()
        .filter(|route| route.protocol == ROUTE_PROTOCOL)
        .count()
}

#[test]
fn five_hundred_peers_come_and_go_in_one_pass() {
    const PEERS: u16 = 500;
    let lab = Lab::new(1, Routing::default(), Family::V4, 1500);
    let node = &lab.nodes[0];
    let mut kernel = node.run(|| Kernel::open(None, DataplaneName::Nftables).unwrap());
    let mut cluster = lab.cluster.clone();
    let mut becomes = |cluster: &Cluster| {
        let state = compute(cluster, &node_name(0));
        assert_eq!(state.problems, []);
        let changes = apply(node, &mut kernel, &state).route_changes;
        assert!(apply(node, &mut kernel, &state).is_nothing());
        changes
    };
    becomes(&cluster);
    let alone = routes(node);
    cluster.nodes.extend(peers(PEERS));
    // Of each a forwarding entry, and of each of its ranges a neighbour and a route.
    assert_eq!(becomes(&cluster), 5 * usize::from(PEERS));
    assert_eq!(routes(node), alone + 2 * usize::from(PEERS));

    let (name, parsed) = peers(PEERS).nth(77).unwrap();
    let mut one = parsed.unwrap();
    one.addresses.v4 = Some([172, 31, 0, 99].into());
    cluster.nodes.insert(name.clone(), Ok(one));
    assert_eq!(becomes(&cluster), 1, "one that moves is one entry");
    cluster.nodes.remove(&name);
    assert_eq!(becomes(&cluster), 5, "one that goes takes its own along");
    cluster.nodes.extend(peers(PEERS + 1));
    assert_eq!(becomes(&cluster), 10, "and two that come bring theirs");

    assert_eq!(becomes(&lab.cluster), 5 * (usize::from(PEERS) + 1));
    assert_eq!(routes(node), alone);
}
