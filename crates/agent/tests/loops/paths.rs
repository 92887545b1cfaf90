//! Agents that probe the paths between their nodes, over a wire that is made bad: real packets, a real kernel.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podnet_agent::node::NodeLoop;
use podnet_agent::paths::Paths;
use podnet_agent::watch::{Change, Update};
use podnet_core::cluster::{ClusterConfig, DataplaneName, Family, Node, NodeName, PodRanges, Routing};
use podnet_core::path::{Checksums, Reach, Report, Settings};
use podnet_dataplane::{Dataplane, Kernel};
use podnet_linux::ethtool;
use podnet_linux::netlink::{Address, LinkChange, Neighbour, Netlink, NewLink, Route};
use podnet_linux::ns::{Kind, Namespace};
use podnet_linux::sysctl;
use tokio::sync::{mpsc, watch};

use crate::agent::{self, Files, nothing_but_nodes};

const NODES: usize = 2;

/// Two nodes on two subnets, and the router between them. With direct routes, which know no router, the nodes take each
/// other for neighbours, and the router's address for the other's.
struct World {
    router: Namespace,
    nodes: Vec<Namespace>,
    agents: Vec<Option<Agent>>,
    routing: Routing,
}

/// An agent whose reports on its paths are seen.
type Agent = agent::Agent<watch::Receiver<Arc<Vec<Report>>>>;

fn node_name(index: usize) -> NodeName {
    NodeName::new(format!("node{}", index + 1)).unwrap()
}

fn node_address(index: usize) -> IpAddr {
    [172, 30, index as u8, 11].into()
}

fn object(index: usize) -> Node {
    let ranges = [
        format!("10.244.{index}.0/24"),
        format!("fd00:10:244:{index}::/64"),
    ];
    let ranges = PodRanges::new(ranges.iter().map(|text| text.parse().unwrap())).unwrap();
    let six: IpAddr = format!("fd30:0:0:{index}::11").parse().unwrap();
    Node::new(node_name(index), &[node_address(index), six], ranges)
}

impl World {
    fn new(routing: Routing) -> World {
        let router = Namespace::create(Kind::Net).unwrap();
        let up = |link: &str| LinkChange::named(link).up(true).apply();
        router
            .run(|| {
                sysctl::set("net/ipv4/ip_forward", "1").unwrap();
                sysctl::set("net/ipv6/conf/all/forwarding", "1").unwrap();
                sysctl::set("net/ipv6/conf/default/accept_dad", "0").unwrap();
            })
            .unwrap();
        let mut world = World {
            router,
            nodes: Vec::new(),
            agents: Vec::new(),
            routing,
        };
        for index in 0..NODES {
            let node = Namespace::create(Kind::Net).unwrap();
            node.run(|| sysctl::set("net/ipv6/conf/default/accept_dad", "0").unwrap())
                .unwrap();
            let port = format!("port{index}");
            let address = |netlink: &mut Netlink, link: &str, nets: [String; 2]| {
                let link = netlink.link(link).unwrap().unwrap();
                for net in nets {
                    let mut address = Address::new(link.index, net.parse().unwrap());
                    address.flags.nodad = true;
                    netlink.request(address.add()).unwrap();
                }
            };
            let router = world
                .router
                .run(|| {
                    let mut netlink = Netlink::open().unwrap();
                    let veth = NewLink::veth(&port, "eth0", Some(node.as_fd()));
                    netlink.apply([veth.create(), up(&port), up("lo")]).unwrap();
                    let nets = [format!("172.30.{index}.1/24"), format!("fd30:0:0:{index}::1/64")];
                    address(&mut netlink, &port, nets);
                    if routing == Routing::Direct {
                        // What the network between the nodes must know.
                        for range in object(index).pod_ranges.iter() {
                            let via = object(index).address(Family::of(range.addr())).unwrap();
                            netlink.request(Route::via(range, via, None, 4).add()).unwrap();
                        }
                    }
                    netlink.link(&port).unwrap().unwrap().mac.unwrap()
                })
                .unwrap();
            node.run(|| {
                let mut netlink = Netlink::open().unwrap();
                netlink.apply([up("lo"), up("eth0")]).unwrap();
                let nets = [
                    format!("172.30.{index}.11/24"),
                    format!("fd30:0:0:{index}::11/64"),
                ];
                address(&mut netlink, "eth0", nets);
                for (all, via) in [
                    ("0.0.0.0/0", format!("172.30.{index}.1")),
                    ("::/0", format!("fd30:0:0:{index}::1")),
                ] {
                    let route = Route::via(all.parse().unwrap(), via.parse().unwrap(), None, 4);
                    netlink.request(route.add()).unwrap();
                }
                if routing == Routing::Direct {
                    let link = netlink.link("eth0").unwrap().unwrap().index;
                    for family in [Family::V4, Family::V6] {
                        let other = object(1 - index).address(family).unwrap();
                        let there = Route::on_link(other.into(), link, 4).add();
                        let neighbour = Neighbour::permanent(link, other, router).replace();
                        netlink.apply([there, neighbour]).unwrap();
                    }
                }
            })
            .unwrap();
            world.nodes.push(node);
        }
        for index in 0..NODES {
            let agent = world.agent(index);
            world.agents.push(Some(agent));
        }
        world
    }

    /// Starts an agent on a node and tells it of the cluster.
    fn agent(&self, index: usize) -> Agent {
        let files = Files::new();
        let cluster = ClusterConfig {
            cluster_cidrs: ["10.244.0.0/16", "fd00:10:244::/56"]
                .map(|net| net.parse().unwrap())
                .into(),
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            routing: self.routing,
            ..ClusterConfig::default()
        };
        let config = files.config(node_name(index), cluster);
        let agent = Agent::start(&self.nodes[index], files, |out| {
            let mut kernel = Kernel::open(None, DataplaneName::Nftables).unwrap();
            let mut monitor = kernel.monitor().unwrap();
            let (disturb, disturbed) = mpsc::channel(1);
            std::thread::spawn(move || {
                while monitor.wait().is_ok() && !disturb.is_closed() {
                    let _ = disturb.try_send(());
                }
            });
            let settings = Settings {
                interval: Duration::from_millis(300),
                ..Settings::default()
            };
            let paths = Paths::start(settings).unwrap();
            let reports = paths.reports.clone();
            let node = NodeLoop::new(config, kernel, Default::default(), out).probing(paths);
            (node, disturbed, reports)
        });
        let all = (0..NODES).map(|index| (node_name(index), Ok(object(index))));
        agent.tell([Update::Nodes(Change::All(all.collect()))]);
        agent.tell(nothing_but_nodes());
        agent
    }

    fn of(&self, index: usize) -> &Agent {
        self.agents[index].as_ref().unwrap()
    }

    /// Waits until an agent's paths, one of each family, are all so.
    fn until(&self, index: usize, what: &str, wanted: impl Fn(&Report) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let reports = self.of(index).seen.borrow().clone();
            if reports.len() == 2 && reports.iter().all(&wanted) {
                return;
            }
            assert!(
                Instant::now() < end,
                "node {index}: {what} is not seen: {reports:#?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn until_well(&self, link_mtu: u32) {
        for index in 0..NODES {
            self.until(index, "a good path", |report| {
                let well = (Reach::Reachable, None, Checksums::Right);
                report.verdict() == well && report.mtu == Some(link_mtu) && report.latency.is_some()
            });
        }
    }

    fn nft(&self, namespace: &Namespace, rules: &str) {
        let run = || Command::new("nft").arg(rules).output().unwrap();
        let output = namespace.run(run).unwrap();
        assert!(
            output.status.success(),
            "{rules}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// A table that the router has until it is taken away again.
    fn spoil(&self, rule: &str) {
        let table = "table inet spoil { chain forward { type filter hook forward priority 0; RULE; }; }";
        self.nft(&self.router, &table.replace("RULE", rule));
    }

    fn mend(&self) {
        self.nft(&self.router, "delete table inet spoil");
    }

    /// The limits that an agent's routes have, waiting for `wanted`.
    fn until_limits(&self, index: usize, wanted: &[u32]) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let known = self.nodes[index]
                .run(|| {
                    Kernel::open(None, DataplaneName::Nftables)
                        .unwrap()
                        .path_mtu()
                        .unwrap()
                })
                .unwrap();
            let known: Vec<u32> = known.into_values().collect();
            if known == wanted {
                return;
            }
            assert!(Instant::now() < end, "limits are {known:?}, not {wanted:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_path_that_breaks_is_seen_and_so_is_its_return() {
    for (routing, link_mtu, rule) in [
        (Routing::default(), 1450, "udp dport 4789 drop"),
        (Routing::Direct, 1500, "drop"),
    ] {
        let mut world = World::new(routing);
        world.until_well(link_mtu);
        world.spoil(rule);
        for index in 0..NODES {
            world.until(index, "the break", |report| report.reach == Reach::Unreachable);
        }
        world.mend();
        world.until_well(link_mtu);
        // An agent that is away breaks no path.
        world.agents[1] = None;
        world.until(0, "the agent's absence", |report| report.reach == Reach::NoAgent);
        world.agents[1] = Some(world.agent(1));
        world.until_well(link_mtu);
    }
}

#[test]
fn a_hole_for_large_packets_is_found_and_told_to_senders() {
    let mut world = World::new(Routing::default());
    world.until_well(1450);
    // The outer packet has 20 + 8 + 8 + 14 bytes more, and no ICMP tells of the loss.
    world.spoil("meta length > 1400 drop");
    for index in 0..NODES {
        world.until(index, "the largest packet", |report| report.mtu == Some(1350));
        world.until_limits(index, &[1350, 1350]);
    }
    // An agent that starts goes on with what the last one found.
    world.agents[0] = None;
    world.until_limits(0, &[1350, 1350]);
    world.agents[0] = Some(world.agent(0));
    world.until(0, "the largest packet, again", |report| {
        assert_eq!(report.mtu.unwrap_or(1350), 1350);
        report.reach == Reach::Reachable
    });
    world.until_limits(0, &[1350, 1350]);
    world.mend();
    world.until_well(1450);
    for index in 0..NODES {
        world.until_limits(index, &[]);
    }
    // A smaller link is a smaller link, and its agent hears of it at once.
    world.nodes[0]
        .run(|| {
            let smaller = LinkChange::named("eth0").mtu(1400).apply();
            Netlink::open().unwrap().request(smaller).unwrap();
        })
        .unwrap();
    world.until(0, "the link's size", |report| {
        (report.link_mtu, report.mtu) == (1350, Some(1350))
    });
    assert_eq!(world.of(0).status.borrow().pod_mtu, Some(1350));
    world.until_limits(0, &[]);
}

/// What a UDP packet has in place of its checksum while that is left to the device: the sum of the pseudo-header.
fn partial(from: [u8; 4], to: [u8; 4], length: u16) -> u16 {
    let words = |address: [u8; 4]| {
        u32::from(u16::from_be_bytes([address[0], address[1]]))
            + u32::from(u16::from_be_bytes([address[2], address[3]]))
    };
    let sum = words(from) + words(to) + 17 + u32::from(length);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[test]
fn checksums_that_the_device_gets_wrong_are_computed_before() {
    let world = World::new(Routing::default());
    world.until_well(1450);
    // A device that computes checksums of encapsulated packets, and wrongly: the kernel does it in the device's place,
    // from a beginning that is spoilt. Packets that have their checksum already are left alone, as they do not begin so.
    for node in &world.nodes {
        node.run(|| ethtool::set_tx_checksum("eth0", false).unwrap())
            .unwrap();
    }
    let begun = partial([10, 244, 0, 0], [10, 244, 1, 0], 8 + 20);
    let spoilt = begun ^ 0x5555;
    let rule = format!(
        "table ip broken {{ chain sent {{ type filter hook postrouting priority 0; \
         udp dport 4789 @th,448,16 {begun} @th,448,16 set {spoilt} counter; }}; }}"
    );
    world.nft(&world.nodes[0], &rule);
    let end = Instant::now() + Duration::from_secs(60);
    let offloads = || {
        world.nodes[0]
            .run(|| ethtool::tx_checksum("podnet.vxlan").unwrap())
            .unwrap()
    };
    while offloads() {
        assert!(
            Instant::now() < end,
            "offload stays on: {:#?}",
            world.of(0).seen.borrow()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    world.until_well(1450);
    assert!(!world.of(0).status.borrow().checksum_offload);
    assert!(
        world.of(1).status.borrow().checksum_offload,
        "the other node's is left alone"
    );
    // It was that, and it would be again.
    world.nodes[0]
        .run(|| ethtool::set_tx_checksum("podnet.vxlan", true).unwrap())
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while offloads() {
        assert!(Instant::now() < end, "offload stays on");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_node_whose_object_is_deleted_goes_on_and_follows_the_others() {
    let world = World::new(Routing::default());
    world.until_well(1450);
    let dump = || {
        world.nodes[0]
            .run(|| {
                Kernel::open(None, DataplaneName::Nftables)
                    .unwrap()
                    .dump()
                    .unwrap()
                    .to_string()
            })
            .unwrap()
    };
    let before = dump();
    let agent = world.of(0);
    let nodes = |change| agent.tell([Update::Nodes(change)]);
    nodes(Change::Gone(node_name(0)));
    // Back, without a range at first, as a node registers.
    let bare = Node::new(node_name(0), &[node_address(0)], PodRanges::default());
    nodes(Change::Set(node_name(0), Box::new(Ok(bare))));
    nodes(Change::Gone(node_name(0)));
    // A third comes meanwhile.
    nodes(Change::Set(node_name(2), Box::new(Ok(object(2)))));
    let end = Instant::now() + Duration::from_secs(20);
    while !dump().contains("10.244.2.0/24 via") {
        assert!(Instant::now() < end, "{}", dump());
        std::thread::sleep(Duration::from_millis(10));
    }
    nodes(Change::Gone(node_name(2)));
    while dump() != before {
        assert!(Instant::now() < end, "{}\nbefore:\n{before}", dump());
        std::thread::sleep(Duration::from_millis(10));
    }
    nodes(Change::Set(node_name(0), Box::new(Ok(object(0)))));
    world.until_well(1450);
    assert_eq!(dump(), before);
}
