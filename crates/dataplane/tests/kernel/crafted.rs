//! Crafted packets through the very programs in the kernel (BPF_PROG_TEST_RUN), which must decide as the same code does here.

use std::collections::BTreeMap;
use std::path::Path;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use podnet_core::cluster::{Family, Routing};
use podnet_ebpf_abi::Address;
use podnet_ebpf_abi::packet::{Headers, Tuple, ordinary};
use podnet_ebpf_abi::path::{Next, Paths, Pod, Way, from_node, from_pod};
use podnet_linux::MacAddr;

use crate::common::{BackEnd, Lab, Machine};

/// TC_ACT_UNSPEC: the stack's.
const STACK: u32 = u32::MAX;
/// TC_ACT_REDIRECT.
const PAST: u32 = 7;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What the programs have in their maps, as the lab below makes them.
#[derive(Default)]
struct Tables {
    pods: BTreeMap<Address, Pod>,
    ways: BTreeMap<[u8; 2], Way>,
}

impl Paths for Tables {
    fn pod(&self, address: &Address) -> Option<Pod> {
        self.pods.get(address).copied()
    }

    /// The lab's ranges are told apart by one octet of either family.
    fn way(&self, Address(octets): &Address) -> Option<Way> {
        let by = match octets {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 244, node, _] => [4, *node],
            [0xfd, 0, 0, 0x10, 2, 0x44, 0, node, ..] => [6, *node],
            _ => return None,
        };
        self.ways.get(&by).copied()
    }

    fn is_translated(&self, _: &Tuple) -> bool {
        false
    }

    fn begin(&self, _: &Tuple) {}

    fn accept(&self, _: &Tuple) {}

    fn end(&self, _: &Tuple) {}
}

struct Scene {
    lab: Lab,
    _pods: [Machine; 2],
    tables: Tables,
    pod_sends: SchedClassifier,
    node_sends: SchedClassifier,
}

impl Scene {
    /// Pods 2 and 9 on a node that routes to another one.
    fn new() -> Self {
        let lab = Lab::new(2, Routing::Direct, Family::V4, 1500).carried_by(BackEnd::Ebpf);
        let pods = [lab.pod(0, 2), lab.pod(0, 9)];
        lab.apply_all();
        let node = &lab.nodes[0];
        let mut tables = Tables::default();
        for (host, pod) in [2, 9].into_iter().zip(&pods) {
            let link = node.link(&format!("pod{host}"));
            let [MacAddr(gateway), MacAddr(mac)] = [link.mac, pod.link("eth0").mac].map(Option::unwrap);
            for family in [4, 6] {
                let row = Pod::new(link.index, link.mtu, mac, gateway);
                tables.pods.insert(address(family, 0, host), row);
            }
        }
        let eth0 = node.link("eth0");
        for family in [4, 6] {
            let router = match family {
                4 => Address::v4([172, 30, 0, 12]),
                _ => Address("fd30::12".parse::<std::net::Ipv6Addr>().unwrap().octets()),
            };
            tables.ways.insert([family, 0], Way::HERE);
            tables.ways.insert(
                [family, 1],
                Way {
                    link: eth0.index,
                    mtu: eth0.mtu,
                    router,
                },
            );
        }
        let path = node.programs().bpffs.join("podnet/path");
        let mut pins = std::fs::read_dir(&path).unwrap().map(|pin| pin.unwrap().path());
        let is_programs = |pin: &std::path::PathBuf| pin.to_str().unwrap().contains("programs-");
        let programs = pins.find(is_programs).unwrap();
        let open = |directory: &Path, name: &str| SchedClassifier::from_pin(directory.join(name)).unwrap();
        Scene {
            pod_sends: open(&programs, "pod_sends"),
            node_sends: open(&programs, "node_sends"),
            lab,
            _pods: pods,
            tables,
        }
    }

    /// What the program does with a packet that comes by a link; none where the kernel does not even make a packet of it.
    fn run(&self, program: &SchedClassifier, link: u32, packet: &[u8], out: &mut [u8]) -> Option<u32> {
        /// Of `struct __sk_buff`.
        const LENGTH: usize = 192;
        const IFINDEX: usize = 40;
        let mut context = [0; LENGTH];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&link.to_ne_bytes());
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.ctx_in = Some(&context);
        options.data_out = Some(out);
        let run = || program.test_run(options);
        self.lab.nodes[0].run(run).ok().map(|result| result.return_value)
    }

    /// Says so where the kernel's program and the same code here differ.
    fn compare(&self, packet: &[u8]) -> Option<Next> {
        let node = &self.lab.nodes[0];
        let (pod, eth0) = (
            self.tables.pod(&address(4, 0, 9)).unwrap().link,
            node.link("eth0").index,
        );
        let mut last = None;
        for (program, link, decide) in [
            (
                &self.pod_sends,
                pod,
                from_pod as fn(&Tables, u32, &Headers, u32) -> Next,
            ),
            (&self.node_sends, eth0, from_node),
        ] {
            let mut sent = packet.to_vec();
            // For this host by its Ethernet address, or the stack's alone.
            if let Some(to) = sent.first_chunk_mut::<6>() {
                let MacAddr(mac) = node
                    .netlink(|netlink| netlink.link_by_index(link))
                    .unwrap()
                    .unwrap()
                    .mac
                    .unwrap();
                *to = mac;
            }
            let here = match ordinary(sent.as_slice()) {
                Some(headers) => decide(
                    &self.tables,
                    link,
                    &headers,
                    headers.largest(0, sent.len() as u32 - 14),
                ),
                None => Next::Stack,
            };
            let mut out = vec![0; 2048];
            let Some(there) = self.run(program, link, &sent, &mut out) else {
                continue;
            };
            let wanted = if here == Next::Stack { STACK } else { PAST };
            assert_eq!(there, wanted, "{here:?} {sent:02x?}");
            match here {
                Next::Stack => assert_eq!(out[..sent.len()], sent, "the stack gets it as it came"),
                Next::Pod(pod) => assert_eq!((&out[..6], &out[6..12]), (&pod.mac[..], &pod.gateway[..])),
                Next::Node(_) => {}
            }
            if here != Next::Stack {
                let (before, after) = (
                    ordinary(sent.as_slice()).unwrap(),
                    ordinary(&out[..sent.len()]).unwrap(),
                );
                assert_eq!(after.hops + 1, before.hops);
                assert_eq!((after.tuple, after.length), (before.tuple, before.length));
                assert_eq!(is_sound(&sent), is_sound(&out[..sent.len()]), "{sent:02x?}");
                last = Some(here);
            }
        }
        last
    }
}

/// Whether an IPv4 header's checksum is right (RFC 1071); one of IPv6 has none.
fn is_sound(packet: &[u8]) -> bool {
    if packet[14] >> 4 != 4 {
        return true;
    }
    let words = packet[14..34].chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}

fn address(family: u8, node: u8, host: u8) -> Address {
    match family {
        4 => Address::v4([10, 244, node, host]),
        _ => Address([0xfd, 0, 0, 0x10, 2, 0x44, 0, node, 0, 0, 0, 0, 0, 0, 0, host]),
    }
}

/// From one pod's address to another's.
fn packet(family: u8, protocol: u8, from: (u8, u8), to: (u8, u8)) -> Vec<u8> {
    let (Address(from), Address(to)) = (address(family, from.0, from.1), address(family, to.0, to.1));
    let mut transport = vec![0x30, 0x39, 0x1f, 0x90];
    match protocol {
        TCP => transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]),
        _ => transport.extend([0, 13, 0, 0]),
    }
    transport.extend(b"hello");
    let mut packet = vec![0; 12];
    let length = transport.len() as u16;
    if family == 4 {
        packet.extend([8, 0, 0x45, 0]);
        packet.extend((20 + length).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        packet.extend(&from[12..]);
        packet.extend(&to[12..]);
        let words = packet[14..34].chunks_exact(2);
        let sum: u32 = words
            .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
            .sum();
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        packet[24..26].copy_from_slice(&checksum.to_be_bytes());
    } else {
        packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend(from);
        packet.extend(to);
    }
    packet.extend(transport);
    packet
}

#[test]
fn whole_and_cut_packets_go_where_the_same_code_sends_them_here() {
    let scene = Scene::new();
    for family in [4, 6] {
        for protocol in [TCP, UDP, 1, 58, 132] {
            let is_led = [TCP, UDP].contains(&protocol);
            let ends = [
                ((0, 9), (0, 2), is_led),
                ((0, 9), (1, 7), is_led),
                // Of the other program.
                ((1, 7), (0, 2), is_led),
                // From somebody else's address, to nobody, between others.
                ((0, 2), (0, 9), false),
                ((0, 9), (0, 77), false),
                ((2, 7), (0, 2), false),
                ((1, 7), (1, 8), false),
            ];
            for (from, to, wanted) in ends {
                let whole = packet(family, protocol, from, to);
                let next = scene.compare(&whole);
                assert_eq!(next.is_some(), wanted, "{family} {protocol} {from:?} {to:?}");
                for cut in 14..whole.len() {
                    scene.compare(&whole[..cut]);
                }
            }
        }
    }
}

/// Each byte of the headers as everything that it can be, and pairs of them by chance.
#[test]
fn packets_with_any_header_go_where_the_same_code_sends_them_here() {
    let scene = Scene::new();
    let mut past = 0;
    for (family, protocol, to) in [
        (4, TCP, (0, 2)),
        (6, UDP, (1, 7)),
        (6, TCP, (0, 2)),
        (4, UDP, (1, 7)),
    ] {
        let whole = packet(family, protocol, (0, 9), to);
        for at in 12..whole.len().min(80) {
            for value in [
                0, 1, 2, 4, 6, 17, 0x20, 0x40, 0x45, 0x46, 0x4f, 0x60, 0x7f, 0x81, 0xff,
            ] {
                let mut changed = whole.clone();
                changed[at] = value;
                past += usize::from(scene.compare(&changed).is_some());
                // With a tag of a VLAN, too.
                let tagged = [&changed[..12], &[0x81, 0, 0, 1], &changed[12..]].concat();
                assert_eq!(scene.compare(&tagged), None);
            }
        }
    }
    assert!(past > 100, "{past}");
}
