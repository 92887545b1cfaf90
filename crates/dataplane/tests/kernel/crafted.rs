//! Crafted packets through the very programs in the kernel (BPF_PROG_TEST_RUN), which must decide as the same code does here.

use std::collections::BTreeMap;
use std::path::Path;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use podnet_core::cluster::{Family, Routing};
use podnet_ebpf_abi::Address;
use podnet_ebpf_abi::packet::{Headers, Tuple, ordinary};
use podnet_ebpf_abi::path::{Next, Paths, Pod, Way, from_node, from_pod, from_tunnel};
use podnet_ebpf_abi::tunnel::{Around, OVERHEAD, Tunnel, around, inside, is_in};
use podnet_linux::MacAddr;
use podnet_linux::netlink::Link;

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
    tunnel: Option<Tunnel>,
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

    fn tunnel(&self) -> Option<Tunnel> {
        self.tunnel
    }

    fn is_translated(&self, _: &Tuple) -> bool {
        false
    }

    fn begin(&self, _: &Tuple) {}

    fn accept(&self, _: &Tuple) {}

    fn end(&self, _: &Tuple) {}
}

/// A node's programs and links, and what its maps have.
struct Scene {
    lab: Lab,
    _pods: [Machine; 2],
    tables: Tables,
    pod_sends: SchedClassifier,
    node_sends: SchedClassifier,
    /// The links that packets come by for the one and the other.
    links: [Link; 2],
}

impl Scene {
    /// Pods 2 and 9 on a node that another one is beside.
    fn new(routing: Routing) -> Self {
        let lab = Lab::new(2, routing, Family::V4, 1500).carried_by(BackEnd::Ebpf);
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
        let [here, there] = [11, 12].map(|host| Address::v4([172, 30, 0, host]));
        for family in [4, 6] {
            let way = match (routing, family) {
                (Routing::Direct, 4) => Way::by(eth0.index, eth0.mtu, there),
                (Routing::Direct, _) => {
                    let router = Address("fd30::12".parse::<std::net::Ipv6Addr>().unwrap().octets());
                    Way::by(eth0.index, eth0.mtu, router)
                }
                (Routing::Vxlan(_), _) => {
                    let device = node.link("podnet.vxlan");
                    let MacAddr(mac) = lab.nodes[1].link("podnet.vxlan").mac.unwrap();
                    Way::by(device.index, device.mtu, there).inside(eth0.index, there, mac)
                }
            };
            tables.ways.insert([family, 0], Way::HERE);
            tables.ways.insert([family, 1], way);
        }
        if let Routing::Vxlan(vxlan) = routing {
            let MacAddr(mac) = node.link("podnet.vxlan").mac.unwrap();
            tables.tunnel = Some(Tunnel::new(here, vxlan.vni, vxlan.port, mac));
        }
        let path = node.programs().bpffs.join("podnet/path");
        let mut pins = std::fs::read_dir(&path).unwrap().map(|pin| pin.unwrap().path());
        let is_programs = |pin: &std::path::PathBuf| pin.to_str().unwrap().contains("programs-");
        let programs = pins.find(is_programs).unwrap();
        let open = |directory: &Path, name: &str| SchedClassifier::from_pin(directory.join(name)).unwrap();
        Scene {
            pod_sends: open(&programs, "pod_sends"),
            node_sends: open(&programs, "node_sends"),
            links: [node.link("pod9"), eth0],
            lab,
            _pods: pods,
            tables,
        }
    }

    /// What the program does with a packet that comes by a link; none where the kernel does not even make a packet of it.
    fn run(&self, program: &SchedClassifier, link: u32, packet: &[u8]) -> Option<(u32, Vec<u8>)> {
        /// Of `struct __sk_buff`.
        const LENGTH: usize = 192;
        const IFINDEX: usize = 40;
        let mut context = [0; LENGTH];
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&link.to_ne_bytes());
        let mut out = vec![0; 2048];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.ctx_in = Some(&context);
        options.data_out = Some(&mut out);
        let run = || program.test_run(options);
        let result = self.lab.nodes[0].run(run).ok()?;
        out.truncate(result.data_size_out as usize);
        Some((result.return_value, out))
    }

    /// Where the same code sends a packet here, and its headers: those of the one inside, with what is around that, where
    /// it came in the tunnel.
    fn decide(&self, is_from_pod: bool, packet: &[u8]) -> Option<(Next, Headers, usize)> {
        let headers = ordinary(packet)?;
        let length = packet.len() as u32 - 14;
        let [pod, eth0] = &self.links;
        if is_from_pod {
            let next = from_pod(&self.tables, pod.index, &headers, headers.largest(0, length));
            return Some((next, headers, 0));
        }
        let tunnel = self.tables.tunnel;
        let tunnel = tunnel.filter(|tunnel| is_in(&headers, tunnel));
        let Some(inner) = tunnel.and_then(|tunnel| inside(packet, &headers, &tunnel)) else {
            let next = from_node(&self.tables, eth0.index, &headers, headers.largest(0, length));
            return Some((next, headers, 0));
        };
        let largest = inner.largest(0, length - OVERHEAD as u32);
        let pod = from_tunnel(&self.tables, eth0.index, &headers.tuple.source, &inner, largest);
        Some((pod.map_or(Next::Stack, Next::Pod), inner, OVERHEAD))
    }

    /// Says so where the kernel's program and the same code here differ.
    fn compare(&self, packet: &[u8]) -> Option<Next> {
        let mut last = None;
        let [pod, eth0] = &self.links;
        for (program, link, is_from_pod) in [(&self.pod_sends, pod, true), (&self.node_sends, eth0, false)] {
            let mut sent = packet.to_vec();
            // For this host by its Ethernet address, or the stack's alone.
            if let (Some(to), Some(MacAddr(mac))) = (sent.first_chunk_mut::<6>(), link.mac) {
                *to = mac;
            }
            let Some((verdict, out)) = self.run(program, link.index, &sent) else {
                continue;
            };
            let decided = self.decide(is_from_pod, &sent);
            let Some((next, headers, around)) = decided.filter(|(next, ..)| *next != Next::Stack) else {
                assert_eq!(verdict, STACK, "{sent:02x?}");
                assert_eq!(out, sent, "the stack gets it as it came");
                continue;
            };
            assert_eq!(verdict, PAST, "{next:?} {sent:02x?}");
            let before = &sent[around..];
            let after = match next {
                Next::Stack | Next::Node(_) => out,
                Next::Pod(pod) => {
                    assert_eq!((&out[..6], &out[6..12]), (&pod.mac[..], &pod.gateway[..]));
                    out
                }
                Next::Tunnel(way) => self.taken_out(&out, &way, &headers),
            };
            assert_eq!(after.len(), before.len());
            let left = ordinary(after.as_slice()).unwrap();
            let hops = headers.hops - 1;
            assert_eq!(left, Headers { hops, ..headers });
            assert_eq!(after[12..14], before[12..14]);
            // All that is no Ethernet address, hop limit or checksum is as it came.
            let same = |bytes: &[u8]| match headers.tuple.source.as_v4() {
                Some(_) => [&bytes[14..22], &bytes[23..24], &bytes[26..]].concat(),
                None => [&bytes[14..21], &bytes[22..]].concat(),
            };
            assert_eq!(same(&after), same(before));
            assert_eq!(is_sound(before), is_sound(&after), "{sent:02x?}");
            last = Some(next);
        }
        last
    }

    /// The same of all its beginnings, too; whether as a whole it goes past the stack.
    fn compare_whole_and_cut(&self, packet: &[u8]) -> bool {
        for cut in 14..packet.len() {
            self.compare(&packet[..cut]);
        }
        self.compare(packet).is_some()
    }

    /// A packet without what the program has put around it, which is what the same code puts there.
    fn taken_out(&self, out: &[u8], way: &Way, headers: &Headers) -> Vec<u8> {
        let carried = (out.len() - OVERHEAD - 14) as u32;
        let identification = u16::from_be_bytes([out[18], out[19]]);
        let wanted = around(
            &self.tables.tunnel.unwrap(),
            way,
            headers,
            carried,
            identification,
        )
        .unwrap();
        let Around {
            ip,
            udp,
            vxlan,
            ethernet,
        } = wanted;
        let wanted = [&[8, 0][..], &ip, &udp, &vxlan, &ethernet].concat();
        assert_eq!(out[12..14 + OVERHEAD], wanted);
        out[OVERHEAD..].to_vec()
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

/// The same in the tunnel from the other node to this one.
fn tunnelled(scene: &Scene, packet: &[u8]) -> Vec<u8> {
    let [here, there] = [11, 12].map(|host| Address::v4([172, 30, 0, host]));
    let ours = scene.tables.tunnel.unwrap();
    let theirs = Tunnel { local: there, ..ours };
    let way = Way::by(1, 1450, here).inside(1, here, ours.mac);
    let headers = ordinary(packet).unwrap();
    let Around {
        ip,
        udp,
        vxlan,
        ethernet,
    } = around(&theirs, &way, &headers, packet.len() as u32 - 14, 7).unwrap();
    let whole = [&[0; 12], &[8, 0][..], &ip, &udp, &vxlan, &ethernet, &packet[14..]];
    whole.concat()
}

#[test]
fn whole_and_cut_packets_go_where_the_same_code_sends_them_here() {
    for routing in [Routing::Direct, Routing::default()] {
        let scene = Scene::new(routing);
        let is_direct = routing == Routing::Direct;
        for family in [4, 6] {
            for protocol in [TCP, UDP, 1, 58, 132] {
                let is_led = [TCP, UDP].contains(&protocol);
                let ends = [
                    ((0, 9), (0, 2), is_led),
                    ((0, 9), (1, 7), is_led),
                    // Of the other program; in the tunnel's place it is nobody's.
                    ((1, 7), (0, 2), is_led && is_direct),
                    // From somebody else's address, to nobody, between others.
                    ((0, 2), (0, 9), false),
                    ((0, 9), (0, 77), false),
                    ((2, 7), (0, 2), false),
                    ((1, 7), (1, 8), false),
                ];
                for (from, to, wanted) in ends {
                    let whole = packet(family, protocol, from, to);
                    let is_led = scene.compare_whole_and_cut(&whole);
                    assert_eq!(is_led, wanted, "{routing:?} {family} {protocol} {from:?} {to:?}");
                }
            }
        }
    }
}

#[test]
fn whole_and_cut_packets_in_the_tunnel_go_where_the_same_code_sends_them_here() {
    let scene = Scene::new(Routing::default());
    for (family, protocol) in [(4, TCP), (4, UDP), (6, TCP), (6, UDP)] {
        let ends = [
            ((1, 7), (0, 2), true),
            // To nobody, from a node's own range or another's than the sender's, and to others.
            ((1, 7), (0, 77), false),
            ((0, 9), (0, 2), false),
            ((2, 7), (0, 2), false),
            ((1, 7), (1, 8), false),
        ];
        for (from, to, wanted) in ends {
            let whole = tunnelled(&scene, &packet(family, protocol, from, to));
            let is_led = scene.compare_whole_and_cut(&whole);
            assert_eq!(is_led, wanted, "{family} {from:?} {to:?}");
        }
    }
}

/// Each byte of the headers as everything that it can be.
#[test]
fn packets_with_any_header_go_where_the_same_code_sends_them_here() {
    let direct = Scene::new(Routing::Direct);
    let tunnel = Scene::new(Routing::default());
    let mut past = 0;
    for (family, protocol, to) in [
        (4, TCP, (0, 2)),
        (6, UDP, (1, 7)),
        (6, TCP, (0, 2)),
        (4, UDP, (1, 7)),
    ] {
        past += changed(&direct, &packet(family, protocol, (0, 9), to), 80);
        past += changed(&tunnel, &packet(family, protocol, (0, 9), to), 80);
        let inner = packet(family, protocol, (1, 7), (0, 2));
        past += changed(&tunnel, &tunnelled(&tunnel, &inner), 14 + OVERHEAD + 66);
    }
    assert!(past > 1000, "{past}");
}

/// Compares a packet with each of its bytes changed, and says how many of them go past the stack.
fn changed(scene: &Scene, whole: &[u8], headers: usize) -> usize {
    let mut past = 0;
    for at in 12..whole.len().min(headers) {
        for value in [
            0, 1, 2, 3, 4, 6, 17, 0x20, 0x40, 0x45, 0x46, 0x4f, 0x60, 0x7f, 0x81, 0xff,
        ] {
            let mut changed = whole.to_vec();
            changed[at] = value;
            past += usize::from(scene.compare(&changed).is_some());
            // With a tag of a VLAN, too.
            let tagged = [&changed[..12], &[0x81, 0, 0, 1], &changed[12..]].concat();
            assert_eq!(scene.compare(&tagged), None);
        }
    }
    past
}
