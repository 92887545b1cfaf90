//! Nodes that come and go: what follows, and what is left alone.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Lab, Machine, ask, node_name};
use podnet_core::NodeState;
use podnet_core::cluster::{Cluster, Family, Node, NodeName, PodRanges, Routing};
use podnet_core::compute;
use podnet_dataplane::{Applied, Dataplane, Kernel};
use podnet_linux::netlink::{LinkChange, Netlink, Route};
use podnet_linux::{ethtool, sysctl};

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

#[test]
fn only_what_changed_is_touched_and_nobody_else_loses_a_packet() {
    for routing in [Routing::default(), Routing::Direct] {
        let lab = Lab::new(2, routing, Family::V4, 1500);
        let (client, server) = (lab.pod(0, 2), lab.pod(1, 2));
        server.serve("server", 8080);
        lab.apply_all();
        let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for to in ["10.244.1.2:8080", "[fd00:10:244:1::2]:8080"] {
                let (client, stop, asked) = (&client, &stop, &asked);
                scope.spawn(move || talk(client, to, stop, asked));
            }
            come_and_go(&lab, routing);
            stop.store(true, Ordering::Relaxed);
        });
        assert!(asked.load(Ordering::Relaxed) > 100);
    }
}

/// A third node, in the eyes of the first, over its life. The wire between the others is in use meanwhile.
fn come_and_go(lab: &Lab, routing: Routing) {
    let node = &lab.nodes[0];
    let mut kernel = node.run(|| Kernel::open(None).unwrap());
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
        let said: Vec<String> = announced.lines();
        assert_eq!(applied.route_changes, changes, "{what}: {said:#?}");
        for line in &said {
            // Its ranges, its address, or (for a name) the MACs of the two names; what another pod's neighbour entry
            // does is none of ours.
            let macs = [&born.0, &renamed.0].map(|name| podnet_core::route::Mac::of_node(name).to_string());
            let about_third = line.contains("10.244.7.0")
                || line.contains("fd00:10:244:7::")
                || macs.iter().any(|mac| line.contains(mac.as_str()));
            let underlay_learning =
                line.contains("dev eth0 lladdr") || line.contains("dev eth0 ") && line.contains("FAILED");
            assert!(about_third || underlay_learning, "{what}: {line}");
        }
        let ours = said
            .iter()
            .filter(|line| !line.contains("dev eth0 lladdr") && !line.contains("FAILED"));
        assert!(ours.count() >= changes, "{what}: {said:#?}");
        assert!(apply(node, &mut kernel, &state).is_nothing(), "{what}");
        assert_eq!(
            announced
                .lines()
                .iter()
                .filter(|line| !line.contains("dev eth0"))
                .count(),
            0,
            "{what}"
        );
    }
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
    let state = compute(&lab.cluster, &node_name(0));
    let (told, disturbed) = mpsc::channel();
    lab.nodes[0].run(move || {
        let mut kernel = Kernel::open(None).unwrap();
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
fn routes_change_between_tunnel_and_subnet() {
    let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500);
    let (here, there) = (lab.pod(0, 2), lab.pod(1, 2));
    there.serve("there", 8080);
    lab.cluster.config.cross_subnet = true;
    for near in [false, true, false, true] {
        let subnets: BTreeSet<_> = ["172.30.0.0/24", "fd30::/64"]
            .iter()
            .map(|net| net.parse().unwrap())
            .collect();
        let seen = lab.nodes[0].run(|| {
            let local: IpAddr = "172.30.0.11".parse().unwrap();
            Kernel::open(None).unwrap().subnets(Some(local)).unwrap()
        });
        assert_eq!(seen, subnets);
        lab.cluster.local.subnets = if near { subnets } else { BTreeSet::new() };
        lab.apply_all();
        let dump = lab.dump(0).to_string();
        let hop = if near {
            "via 172.30.0.12"
        } else {
            "via 10.244.1.0 on the tunnel"
        };
        assert!(dump.contains(&format!("route 10.244.1.0/24 {hop}\n")), "{dump}");
        let hop = if near {
            "via fd30::12"
        } else {
            "via fd00:10:244:1:: on the tunnel"
        };
        assert!(
            dump.contains(&format!("route fd00:10:244:1::/64 {hop}\n")),
            "{dump}"
        );
        for to in ["10.244.1.2:8080", "[fd00:10:244:1::2]:8080"] {
            assert_eq!(here.udp(to).unwrap().0, "there", "near: {near}");
        }
    }
}

/// What a pod is told when it sends that many bytes, not to be fragmented.
fn refused_size(pod: &Machine, to: &str, size: u32) -> bool {
    let payload = size - if to.contains(':') { 48 } else { 28 };
    let ping = || {
        let args = ["-c", "1", "-W", "2", "-M", "do", "-s", &payload.to_string(), to];
        Command::new("ping").args(args).output().unwrap()
    };
    let said = pod.run(ping);
    let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    text.contains("too long") || text.contains("Frag needed") || text.contains("too big")
}

#[test]
fn a_narrow_path_is_told_to_the_sender() {
    for routing in [Routing::default(), Routing::Direct] {
        let mut lab = Lab::new(2, routing, Family::V4, 1500);
        let (here, _there) = (lab.pod(0, 2), lab.pod(1, 2));
        lab.apply_all();
        let ranges = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|range| range.parse().unwrap());
        let targets = ["10.244.1.2", "fd00:10:244:1::2"];
        for to in targets {
            assert!(here.ping(to));
            assert!(!refused_size(&here, to, 1400), "{to}");
        }
        lab.cluster.local.path_mtu = ranges.map(|range| (range, 1340)).into();
        assert_eq!(lab.apply(0).route_changes, 2);
        assert!(lab.apply(0).is_nothing());
        let known = lab.nodes[0].run(|| Kernel::open(None).unwrap().path_mtu().unwrap());
        assert_eq!(known, lab.cluster.local.path_mtu, "an agent that starts knows it");
        for to in targets {
            assert!(refused_size(&here, to, 1400), "{to}");
            assert!(!refused_size(&here, to, 1340), "{to}");
        }
        lab.cluster.local.path_mtu.clear();
        assert_eq!(lab.apply(0).route_changes, 2);
        assert!(
            lab.nodes[0]
                .run(|| Kernel::open(None).unwrap().path_mtu().unwrap())
                .is_empty()
        );
    }
}

#[test]
fn checksum_offload_is_switched_off_and_stays_off() {
    let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500);
    let offloads = |lab: &Lab| lab.nodes[0].run(|| ethtool::tx_checksum("podnet.vxlan").unwrap());
    lab.apply_all();
    assert!(offloads(&lab));
    lab.cluster.local.broken_checksums = true;
    assert_eq!(lab.apply(0).route_changes, 1);
    assert!(!offloads(&lab));
    // An agent that starts does not know why, and leaves it.
    lab.cluster.local.broken_checksums = false;
    assert!(lab.apply(0).is_nothing());
    assert!(!offloads(&lab));
}

#[test]
fn settings_are_put_back() {
    let lab = Lab::new(1, Routing::default(), Family::V4, 1500);
    let state = compute(&lab.cluster, &node_name(0));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state/settings");
    let keys = [
        "net/ipv4/ip_forward",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/eth0/forwarding",
        "net/ipv6/conf/eth0/accept_ra",
        "net/ipv6/conf/lo/forwarding",
    ];
    let settings = || keys.map(|key| sysctl::get(key).unwrap());
    lab.nodes[0].run(|| {
        // One link forwarded already.
        sysctl::set("net/ipv6/conf/lo/forwarding", "1").unwrap();
        let before = settings();
        assert_eq!(before, ["0", "0", "0", "1", "1"]);
        let open = || {
            let mut kernel = Kernel::open(None).unwrap();
            kernel.keep_settings_in(&file).unwrap();
            kernel
        };
        open().apply(&state).unwrap();
        assert_eq!(settings(), ["1", "1", "1", "2", "1"]);
        // Another agent finds what the first has written, and does not take it for what was before.
        open().apply(&state).unwrap();
        let present = open().present().unwrap();
        for text in [
            "setting net/ipv4/ip_forward = 1, which was 0",
            "setting net/ipv6/conf/all/forwarding = 1, which was 0",
            "setting net/ipv6/conf/eth0/accept_ra = 2, which was 1",
        ] {
            assert!(present.contains(&text.to_owned()), "{present:?}");
        }
        open().clean().unwrap();
        assert_eq!(settings(), before);
        assert_eq!(open().clean().unwrap(), Vec::<String>::new());
        // What somebody else has changed since is theirs.
        open().apply(&state).unwrap();
        sysctl::set("net/ipv6/conf/eth0/accept_ra", "0").unwrap();
        open().clean().unwrap();
        assert_eq!(settings(), ["0", "0", "0", "0", "1"]);
    });
}

/// A cluster of 500 other nodes, both families.
fn crowd(lab: &Lab) -> Cluster {
    let mut cluster = lab.cluster.clone();
    for number in 0..500_u16 {
        let [high, low] = (number + 256).to_be_bytes();
        let (name, node) = peer(
            &format!("peer{number}"),
            &format!("172.30.{high}.{low}"),
            &format!("10.244.{}.{}/26", high * 64 + low / 4, (low % 4) * 64),
            "fd00:10:244:ff::/64",
        );
        let ranges = [
            format!("10.244.{}.{}/26", high * 64 + low / 4, (low % 4) * 64),
            format!("fd00:10:244:ff:{number:x}::/80"),
        ];
        let ranges = PodRanges::new(ranges.iter().map(|text| text.parse().unwrap())).unwrap();
        let addresses: Vec<IpAddr> = node.address(Family::V4).into_iter().collect();
        cluster
            .nodes
            .insert(name.clone(), Ok(Node::new(name, &addresses, ranges)));
    }
    cluster
}

#[test]
fn five_hundred_peers_come_and_go_in_one_pass() {
    let lab = Lab::new(1, Routing::default(), Family::V4, 1500);
    let node = &lab.nodes[0];
    let mut times = Vec::new();
    let few = compute(&lab.cluster, &node_name(0));
    let cluster = crowd(&lab);
    for round in 0..5 {
        let mut kernel = node.run(|| Kernel::open(None).unwrap());
        apply(node, &mut kernel, &few);
        let begin = Instant::now();
        let many = compute(&cluster, &node_name(0));
        assert_eq!(many.problems, [], "round {round}");
        let applied = apply(node, &mut kernel, &many);
        let took = begin.elapsed();
        assert_eq!(applied.route_changes, 500 * 5);
        let begin = Instant::now();
        assert!(apply(node, &mut kernel, &many).is_nothing());
        times.push((took, begin.elapsed()));
        if round == 0 {
            // One of them moves: one entry.
            let mut moved = cluster.clone();
            let name = NodeName::new("peer77").unwrap();
            let old = moved.node(&name).unwrap().clone();
            let new = Node::new(name.clone(), &["172.30.0.250".parse().unwrap()], old.pod_ranges);
            moved.nodes.insert(name, Ok(new));
            assert_eq!(
                apply(node, &mut kernel, &compute(&moved, &node_name(0))).route_changes,
                1
            );
        }
        apply(node, &mut kernel, &few);
        assert_eq!(
            node.netlink(|netlink| netlink
                .routes(Default::default())
                .unwrap()
                .iter()
                .filter(|route: &&Route| route.protocol == 112)
                .count()),
            4
        );
    }
    times.sort();
    let (first, again) = times[times.len() / 2];
    println!(
        "500 peers: applied in {:.1} ms, compared in {:.1} ms",
        first.as_secs_f64() * 1e3,
        again.as_secs_f64() * 1e3
    );
}
