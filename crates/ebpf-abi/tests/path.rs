//! Where packets of pods go, over maps of the standard library and against a judge that reads the documentation its own
//! way.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::{align_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podnet_ebpf_abi::packet::{Flags, Headers, Tuple};
use podnet_ebpf_abi::path::{Next, Paths, Pod, Range, Way, from_node, from_pod, from_tunnel, is_noteworthy};
use podnet_ebpf_abi::tunnel::Tunnel;
use podnet_ebpf_abi::{Address, Endpoint, Protocol};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

#[derive(Debug, Clone, Default)]
struct Tables {
    pods: BTreeMap<Address, Pod>,
    ways: BTreeMap<Range, Way>,
    /// In one direction or the other.
    translated: BTreeSet<Tuple>,
    all_translated: bool,
    /// And whether they were accepted.
    begun: RefCell<BTreeMap<Tuple, bool>>,
}

impl Paths for Tables {
    fn pod(&self, address: &Address) -> Option<Pod> {
        self.pods.get(address).copied()
    }

    fn way(&self, address: &Address) -> Option<Way> {
        let around = self.ways.iter().filter(|(range, _)| {
            let differ = bits(&range.address) ^ bits(address);
            differ.leading_zeros() >= range.length
        });
        around.max_by_key(|(range, _)| range.length).map(|(_, way)| *way)
    }

    fn tunnel(&self) -> Option<Tunnel> {
        None
    }

    fn is_translated(&self, ends: &Tuple) -> bool {
        let mut noted = self.translated.iter().map(Tuple::either);
        self.all_translated || noted.any(|flow| flow == ends.either())
    }

    fn begin(&self, connection: &Tuple) {
        self.begun.borrow_mut().insert(*connection, false);
    }

    fn accept(&self, connection: &Tuple) {
        if let Some(is_accepted) = self.begun.borrow_mut().get_mut(connection) {
            *is_accepted = true;
        }
    }

    fn end(&self, connection: &Tuple) {
        self.begun.borrow_mut().remove(connection);
    }
}

fn bits(address: &Address) -> u128 {
    u128::from_be_bytes(address.0)
}

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

fn range(text: &str) -> Range {
    let (first, length) = text.split_once('/').unwrap();
    Range::new(address(first), length.parse().unwrap())
}

fn pod(link: u32, mtu: u32) -> Pod {
    Pod::new(
        link,
        mtu,
        [2, 0, 0, 0, 0, link as u8],
        [2, 0, 0, 0, 1, link as u8],
    )
}

fn way(link: u32, mtu: u32, router: &str) -> Way {
    Way::by(link, mtu, address(router))
}

/// A node with two pods of both families, a third that takes less, and other nodes behind two links.
fn node() -> Tables {
    let pods = [
        ("10.244.1.2", pod(11, 1450)),
        ("fd00:244:1::2", pod(11, 1450)),
        ("10.244.1.3", pod(12, 1450)),
        ("fd00:244:1::3", pod(12, 1450)),
        ("10.244.1.4", pod(13, 1280)),
        ("fd00:244:1::4", pod(13, 1280)),
    ];
    let ways = [
        ("10.244.1.0/24", Way::HERE),
        ("10.244.2.0/24", way(2, 1450, "192.0.2.2")),
        ("10.244.2.64/26", way(3, 1400, "192.0.2.3")),
        ("10.244.2.96/32", Way::HERE),
        // Whatever else it says, without a link it is here.
        ("10.244.4.0/24", way(0, 1450, "192.0.2.4")),
        ("fd00:244:1::/64", Way::HERE),
        ("fd00:244:2::/64", way(2, 1450, "fd00::2")),
        ("fd00:244:2:0:8000::/66", way(3, 1400, "fd00::3")),
        ("fd00:244:2:0:a000::1/128", Way::HERE),
    ];
    Tables {
        pods: pods.map(|(of, pod)| (address(of), pod)).into(),
        ways: ways.map(|(of, way)| (range(of), way)).into(),
        ..Tables::default()
    }
}

/// What goes from one to another: the same in both families.
const LOCAL: [(&str, &str); 2] = [("10.244.1.2", "10.244.1.3"), ("fd00:244:1::2", "fd00:244:1::3")];
const OUT: [(&str, &str); 2] = [("10.244.1.2", "10.244.2.3"), ("fd00:244:1::2", "fd00:244:2::3")];
const IN: [(&str, &str); 2] = [("10.244.2.3", "10.244.1.2"), ("fd00:244:2::3", "fd00:244:1::2")];

fn tuple(source: &str, destination: &str) -> Tuple {
    let end = |of: &str, port| SocketAddr::new(of.parse().unwrap(), port).into();
    Tuple::new(end(source, 40_000), end(destination, 80), Protocol::TCP)
}

fn headers(tuple: Tuple) -> Headers {
    Headers {
        tuple,
        hops: 64,
        ecn: 0,
        flags: Flags(ACK),
        length: 1000,
        overhead: 52,
    }
}

fn between((source, destination): (&str, &str)) -> Headers {
    headers(tuple(source, destination))
}

/// What a packet comes by: a pod's link, one to other nodes, or the tunnel from another node.
#[derive(Debug, Clone, Copy)]
enum By {
    Pod(u32),
    Nodes(u32),
    Tunnel(u32, Address),
}

fn decide(tables: &Tables, by: By, headers: &Headers, largest: u32) -> Next {
    match by {
        By::Pod(link) => from_pod(tables, link, headers, largest),
        By::Nodes(link) => from_node(tables, link, headers, largest),
        By::Tunnel(link, node) => {
            let pod = from_tunnel(tables, link, &node, headers, largest);
            pod.map_or(Next::Stack, Next::Pod)
        }
    }
}

/// Each of the ways past the stack.
fn past() -> Vec<(By, Headers, Next)> {
    let local = LOCAL.map(|ends| (By::Pod(11), between(ends), Next::Pod(pod(12, 1450))));
    let routers = ["192.0.2.2", "fd00::2"].map(|router| Next::Node(way(2, 1450, router)));
    let out = OUT.iter().zip(routers);
    let out = out.map(|(ends, next)| (By::Pod(11), between(*ends), next));
    let from_others = IN.map(|ends| (By::Nodes(2), between(ends), Next::Pod(pod(11, 1450))));
    local.into_iter().chain(out).chain(from_others).collect()
}

#[test]
fn layouts_have_no_bytes_that_nobody_sets() {
    assert_eq!((size_of::<Pod>(), align_of::<Pod>()), (24, 4));
    assert_eq!((size_of::<Range>(), align_of::<Range>()), (20, 4));
    assert_eq!((size_of::<Way>(), align_of::<Way>()), (36, 4));
}

#[test]
fn from_pods_and_nodes_to_pods_and_nodes_goes_past_the_stack() {
    for (by, headers, next) in past() {
        assert_eq!(decide(&node(), by, &headers, headers.length), next, "{headers:?}");
    }
}

#[test]
fn datagrams_go_where_segments_go() {
    for (by, mut headers, next) in past() {
        let [source, destination] = headers.tuple.ends();
        headers.tuple = Tuple::new(source, destination, Protocol::UDP);
        headers.flags = Flags(0);
        assert_eq!(decide(&node(), by, &headers, headers.length), next, "{headers:?}");
    }
}

#[test]
fn somebody_elses_address_is_the_stacks() {
    let strangers = [
        "10.244.1.9",
        "10.244.2.3",
        "192.0.2.1",
        "fd00:244:1::9",
        "2001:db8::1",
    ];
    for (_, destination) in LOCAL.iter().chain(&OUT) {
        // The first pod's, from others' links.
        for link in [1, 2, 3, 12, 13] {
            for source in ["10.244.1.2", "fd00:244:1::2"] {
                let headers = between((source, destination));
                let next = from_pod(&node(), link, &headers, headers.length);
                assert_eq!(next, Next::Stack, "{headers:?} by {link}");
            }
        }
        for source in strangers {
            let headers = between((source, destination));
            let next = from_pod(&node(), 11, &headers, headers.length);
            assert_eq!(next, Next::Stack, "{headers:?}");
        }
    }
}

#[test]
fn whoever_a_policy_is_about_is_the_stacks() {
    for (by, headers, _) in past() {
        for end in [headers.tuple.source, headers.tuple.destination] {
            let mut tables = node();
            if tables.pods.remove(&end).is_some() {
                let next = decide(&tables, by, &headers, headers.length);
                assert_eq!(next, Next::Stack, "{headers:?} without {end:?}");
            }
        }
    }
}

#[test]
fn what_is_for_no_pod_is_the_stacks() {
    let others = [
        "10.244.1.9",
        "10.96.0.1",
        "192.0.2.2",
        "fd00:244:1::9",
        "2001:db8::1",
    ];
    for other in others {
        for (source, link) in [("10.244.1.2", 11), ("fd00:244:1::3", 12)] {
            let headers = between((source, other));
            assert_eq!(from_pod(&node(), link, &headers, 1000), Next::Stack, "{other}");
        }
        for source in ["10.244.2.3", "fd00:244:2::3"] {
            let headers = between((source, other));
            assert_eq!(from_node(&node(), 2, &headers, 1000), Next::Stack, "{other}");
        }
    }
}

#[test]
fn what_has_come_too_far_is_the_stacks() {
    for (by, mut headers, next) in past() {
        for (hops, next) in [(0, Next::Stack), (1, Next::Stack), (2, next), (255, next)] {
            headers.hops = hops;
            assert_eq!(decide(&node(), by, &headers, headers.length), next, "{headers:?}");
        }
    }
}

#[test]
fn what_is_too_large_is_the_stacks() {
    let ways = [
        (("10.244.1.3", "10.244.1.4"), By::Pod(12), 1280),
        (("10.244.1.4", "10.244.1.3"), By::Pod(13), 1450),
        (("10.244.1.4", "10.244.2.3"), By::Pod(13), 1450),
        (("10.244.1.3", "10.244.2.65"), By::Pod(12), 1400),
        (("10.244.2.3", "10.244.1.4"), By::Nodes(2), 1280),
        // How large a packet may be that goes there does not bound what comes from there.
        (("10.244.2.65", "10.244.1.3"), By::Nodes(3), 1450),
        (("fd00:244:1::3", "fd00:244:1::4"), By::Pod(12), 1280),
        (("fd00:244:1::3", "fd00:244:2:0:8000::1"), By::Pod(12), 1400),
        (("fd00:244:2::3", "fd00:244:1::4"), By::Nodes(2), 1280),
    ];
    for (ends, by, mtu) in ways {
        let next = |largest| decide(&node(), by, &between(ends), largest);
        assert_ne!(next(mtu), Next::Stack, "{ends:?}");
        assert_eq!(next(mtu + 1), Next::Stack, "{ends:?}");
    }
}

#[test]
fn what_is_cut_into_pieces_may_be_larger_as_a_whole() {
    let mut headers = between(LOCAL[0]);
    headers.length = 65_000;
    let by = |piece| from_pod(&node(), 11, &headers, headers.largest(piece, 65_000));
    assert_eq!(by(0), Next::Stack);
    assert_eq!(by(1450 - 52), Next::Pod(pod(12, 1450)));
    assert_eq!(by(1450 - 51), Next::Stack);
}

#[test]
fn what_the_table_translated_is_the_stacks_in_both_directions() {
    for (by, headers, next) in past() {
        for noted in [headers.tuple, headers.tuple.reversed()] {
            let mut tables = node();
            tables.translated.insert(noted);
            let to_stack = decide(&tables, by, &headers, headers.length);
            assert_eq!(to_stack, Next::Stack, "{headers:?}");
            // Another connection of the same pods is none of its business.
            let mut other = headers;
            other.tuple.source_port = [0, 1];
            assert_eq!(decide(&tables, by, &other, other.length), next, "{other:?}");
        }
    }
}

#[test]
fn everything_is_the_stacks_while_everything_may_be_translated() {
    let mut tables = node();
    tables.all_translated = true;
    for (by, headers, _) in past() {
        assert_eq!(
            decide(&tables, by, &headers, headers.length),
            Next::Stack,
            "{headers:?}"
        );
    }
}

#[test]
fn other_nodes_are_reached_by_the_longest_range() {
    let table = [
        ("10.244.2.63", Some((2, 1450, "192.0.2.2"))),
        ("10.244.2.64", Some((3, 1400, "192.0.2.3"))),
        ("10.244.2.95", Some((3, 1400, "192.0.2.3"))),
        ("10.244.2.96", None),
        ("10.244.2.127", Some((3, 1400, "192.0.2.3"))),
        ("10.244.2.128", Some((2, 1450, "192.0.2.2"))),
        ("10.244.3.0", None),
        ("10.244.4.1", None),
        ("fd00:244:2:0:7fff::", Some((2, 1450, "fd00::2"))),
        ("fd00:244:2:0:8000::", Some((3, 1400, "fd00::3"))),
        ("fd00:244:2:0:a000::", Some((3, 1400, "fd00::3"))),
        ("fd00:244:2:0:a000::1", None),
        ("fd00:244:2:0:c000::", Some((2, 1450, "fd00::2"))),
        ("fd00:244:3::", None),
    ];
    for (destination, expected) in table {
        let source = if destination.contains(':') {
            LOCAL[1].0
        } else {
            LOCAL[0].0
        };
        let next = from_pod(&node(), 11, &between((source, destination)), 1000);
        let expected = expected.map_or(Next::Stack, |(link, mtu, router)| {
            Next::Node(way(link, mtu, router))
        });
        assert_eq!(next, expected, "{destination}");
    }
}

#[test]
fn what_comes_from_other_nodes_is_from_the_pods_behind_that_very_link() {
    let table = [
        ("10.244.2.3", Some(2)),
        ("10.244.2.64", Some(3)),
        ("10.244.2.96", None),
        ("10.244.1.3", None),
        ("10.244.3.1", None),
        ("192.0.2.2", None),
        ("fd00:244:2::3", Some(2)),
        ("fd00:244:2:0:8000::3", Some(3)),
        ("fd00:244:2:0:a000::1", None),
        ("fd00:244:1::3", None),
        ("fd00::2", None),
    ];
    for (source, behind) in table {
        let destination = if source.contains(':') {
            LOCAL[1].0
        } else {
            LOCAL[0].0
        };
        for link in [1, 2, 3, 11, 12] {
            let next = from_node(&node(), link, &between((source, destination)), 1000);
            let expected = match behind == Some(link) {
                true => Next::Pod(pod(11, 1450)),
                false => Next::Stack,
            };
            assert_eq!(next, expected, "{source} by {link}");
        }
    }
}

#[test]
fn nothing_goes_from_other_nodes_to_other_nodes() {
    for (source, destination) in [
        ("10.244.2.3", "10.244.2.65"),
        ("fd00:244:2::3", "fd00:244:2:0:8000::1"),
    ] {
        let headers = between((source, destination));
        assert_eq!(from_node(&node(), 2, &headers, 1000), Next::Stack);
        assert_eq!(from_pod(&node(), 2, &headers, 1000), Next::Stack);
    }
}

#[test]
fn whoever_asks_begins_a_connection_and_who_accepts_it_does_not() {
    for (by, mut headers, _) in past() {
        for more in [0, PSH, 0x40, 0xc0] {
            headers.flags = Flags(SYN | more);
            let tables = node();
            decide(&tables, by, &headers, headers.length);
            assert_eq!(tables.begun.into_inner(), [(headers.tuple, false)].into());
            headers.flags = Flags(SYN | ACK | more);
            // What nobody asked for is accepted by nobody.
            let tables = node();
            decide(&tables, by, &headers, headers.length);
            assert!(tables.begun.borrow().is_empty());
            let asked = headers.tuple.reversed();
            tables
                .begun
                .replace([(asked, false), (headers.tuple, false)].into());
            decide(&tables, by, &headers, headers.length);
            let begun = [(asked, true), (headers.tuple, false)].into();
            assert_eq!(tables.begun.into_inner(), begun, "{headers:?}");
        }
    }
}

#[test]
fn what_neither_begins_nor_ends_a_connection_leaves_it_alone() {
    for (by, mut headers, _) in past() {
        for flags in [0, ACK, PSH, PSH | ACK, 0xe8] {
            headers.flags = Flags(flags);
            let tables = node();
            decide(&tables, by, &headers, headers.length);
            assert_eq!(tables.begun.borrow().len(), 0, "{headers:?}");
            let begun = BTreeMap::from([(headers.tuple, false), (headers.tuple.reversed(), true)]);
            tables.begun.replace(begun.clone());
            decide(&tables, by, &headers, headers.length);
            assert_eq!(tables.begun.into_inner(), begun, "{headers:?}");
        }
    }
}

#[test]
fn a_connection_is_over_once_either_side_ends_it() {
    for (by, mut headers, _) in past() {
        for flags in [
            FIN,
            FIN | ACK,
            RST,
            RST | ACK,
            SYN | FIN,
            SYN | ACK | RST,
            SYN | ACK | FIN,
        ] {
            headers.flags = Flags(flags);
            let mut other = headers.tuple;
            other.source_port = [0, 1];
            for connection in [headers.tuple, headers.tuple.reversed()] {
                let tables = node();
                tables.begun.replace([(connection, true), (other, true)].into());
                decide(&tables, by, &headers, headers.length);
                assert_eq!(tables.begun.into_inner(), [(other, true)].into(), "{headers:?}");
            }
        }
    }
}

#[test]
fn what_goes_to_the_stack_begins_and_ends_nothing() {
    for (by, headers, _) in past() {
        let is_far = Headers { hops: 1, ..headers };
        let is_large = Headers {
            length: 1451,
            ..headers
        };
        let mut translated = node();
        translated.translated.insert(headers.tuple);
        let mut unknown = node();
        unknown.pods.clear();
        let cases = [
            (node(), by, is_far),
            (node(), by, is_large),
            (node(), By::Pod(13), headers),
            (node(), By::Nodes(1), headers),
            (translated, by, headers),
            (unknown, by, headers),
        ];
        for (tables, by, mut headers) in cases {
            let begun = BTreeMap::from([(headers.tuple.reversed(), false)]);
            tables.begun.replace(begun.clone());
            for flags in [SYN, SYN | ACK, FIN | ACK, RST] {
                headers.flags = Flags(flags);
                assert_eq!(decide(&tables, by, &headers, headers.length), Next::Stack);
                assert_eq!(*tables.begun.borrow(), begun, "{headers:?}");
            }
        }
    }
}

#[test]
fn a_flow_is_noteworthy_whose_answers_go_to_a_pod() {
    let tables = node();
    for (source, is_noted) in [
        ("10.244.1.2", true),
        // A policy is about it now, and may not be later.
        ("10.244.1.9", true),
        ("10.244.2.3", true),
        ("192.0.2.1", false),
        ("fd00:244:1::9", true),
        ("fd00:244:2::3", true),
        ("fd00::2", false),
    ] {
        for destination in ["10.244.1.3", "10.244.2.3", "fd00:244:1::3"] {
            let flow = tuple(source, destination);
            assert_eq!(is_noteworthy(&tables, &flow), is_noted, "{flow:?}");
        }
    }
}

#[test]
fn a_range_is_counted_as_its_own_family_is() {
    let table = [
        ("10.244.3.7", 24, 120, "10.244.3.0"),
        ("10.244.3.7", 32, 128, "10.244.3.7"),
        ("10.244.3.7", 30, 126, "10.244.3.4"),
        ("10.255.3.7", 9, 105, "10.128.0.0"),
        ("10.244.3.7", 0, 96, "0.0.0.0"),
        ("fd00:244:1:ffff::7", 52, 52, "fd00:244:1:f000::"),
        ("fd00:244:1::7", 128, 128, "fd00:244:1::7"),
        ("fd00:244:1::7", 127, 127, "fd00:244:1::6"),
        ("fd00:244:1::7", 0, 0, "::"),
    ];
    for (of, own, length, first) in table {
        let expected = Range {
            length,
            address: address(first),
        };
        assert_eq!(Range::new(address(of), own), expected, "{of}/{own}");
        assert_eq!(Range::around(address(of), length), expected, "{of}/{length}");
    }
}

/// The documentation's answer, and the connections that are known afterwards.
fn judge(tables: &Tables, by: By, headers: &Headers, largest: u32) -> (Next, BTreeMap<Tuple, bool>) {
    let begun = tables.begun.borrow().clone();
    let to_stack = (Next::Stack, begun.clone());
    let Tuple {
        source, destination, ..
    } = headers.tuple;
    let pod_at = |address| {
        tables
            .pods
            .iter()
            .find(|(of, _)| **of == address)
            .map(|(_, pod)| *pod)
    };
    // From the narrowest range to the widest.
    let way_to = |address: Address| {
        let way_of = |length: u32| {
            let first = bits(&address) >> (128 - length) << (128 - length);
            let address = Address(first.to_be_bytes());
            tables.ways.get(&Range { length, address }).copied()
        };
        (1..=128).rev().find_map(way_of)
    };
    let (is_sender, next, mtu) = match (by, pod_at(destination), way_to(destination)) {
        (By::Pod(link), Some(pod), _) => (
            pod_at(source).map(|pod| pod.link) == Some(link),
            Next::Pod(pod),
            pod.mtu,
        ),
        (By::Pod(link), None, Some(way)) if way.link != 0 => (
            pod_at(source).map(|pod| pod.link) == Some(link),
            if way.underlay == 0 {
                Next::Node(way)
            } else {
                Next::Tunnel(way)
            },
            way.mtu,
        ),
        (By::Tunnel(link, node), Some(pod), _) => (
            way_to(source).is_some_and(|way| way.underlay == link && way.router == node),
            Next::Pod(pod),
            pod.mtu,
        ),
        (By::Nodes(link), Some(pod), _) => (
            way_to(source).map(|way| way.link) == Some(link),
            Next::Pod(pod),
            pod.mtu,
        ),
        _ => return to_stack,
    };
    let same_ends = [headers.tuple, headers.tuple.reversed()];
    let is_translated =
        tables.all_translated || same_ends.iter().any(|ends| tables.translated.contains(ends));
    if !is_sender || headers.hops < 2 || largest > mtu || is_translated {
        return to_stack;
    }
    let mut after = begun;
    match [FIN, SYN, RST, ACK].map(|flag| headers.flags.0 & flag != 0) {
        [false, true, false, false] => drop(after.insert(headers.tuple, false)),
        [false, true, false, true] => {
            let asked = after
                .iter_mut()
                .filter(|(of, _)| **of == headers.tuple.reversed());
            asked.for_each(|(_, is_accepted)| *is_accepted = true);
        }
        [true, ..] | [_, _, true, _] => after.retain(|connection, _| !same_ends.contains(connection)),
        _ => {}
    }
    (next, after)
}

/// Few of them, which are near each other, so that tables and packets often mean the same.
fn any_address() -> impl Strategy<Value = Address> {
    (any::<bool>(), 0..4_u16, 0..3_u16).prop_map(|(is_v4, node, pod)| {
        let address: IpAddr = match is_v4 {
            true => Ipv4Addr::new(10, 244, node as u8, pod as u8).into(),
            false => Ipv6Addr::new(0xfd00, 0x244, node, 0, 0, 0, 0, pod).into(),
        };
        address.into()
    })
}

fn any_range() -> impl Strategy<Value = Range> {
    (any_address(), 0..4_usize).prop_map(|(address, choice)| {
        let lengths = match address.as_v4() {
            Some(_) => [16, 23, 24, 32],
            None => [32, 47, 48, 128],
        };
        Range::new(address, lengths[choice])
    })
}

fn any_way() -> impl Strategy<Value = Way> {
    let away =
        (0..4_u32, 999..1002_u32, any_address()).prop_map(|(link, mtu, router)| Way::by(link, mtu, router));
    let inside =
        (1..4_u32, 999..1002_u32, 5..7_u32, any_address()).prop_map(|(link, mtu, underlay, node)| {
            Way::by(link, mtu, Address([0; 16])).inside(underlay, node, [7; 6])
        });
    prop_oneof![
        1 => Just(Way::HERE),
        3 => away,
        3 => inside,
    ]
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    let end = || (any_address(), select(vec![[0, 80], [80, 0]]));
    (end(), end(), select(vec![Protocol::TCP, Protocol::UDP])).prop_map(|(source, destination, protocol)| {
        let end = |(address, port)| Endpoint::new(address, port);
        Tuple::new(end(source), end(destination), protocol)
    })
}

fn any_headers() -> impl Strategy<Value = Headers> {
    let flags = prop_oneof![select(vec![SYN, SYN | ACK, ACK, FIN | ACK, RST]), any::<u8>()];
    let hops = prop_oneof![1 => 0..3_u8, 3 => Just(64)];
    (any_tuple(), hops, flags).prop_map(|(tuple, hops, flags)| Headers {
        hops,
        flags: Flags(flags),
        ..headers(tuple)
    })
}

fn any_tables() -> impl Strategy<Value = Tables> {
    let pod = (11..14_u32, 999..1002_u32).prop_map(|(link, mtu)| pod(link, mtu));
    (
        btree_map(any_address(), pod, 0..16),
        btree_map(any_range(), any_way(), 0..10),
        btree_set(any_tuple(), 0..20),
        prop::bool::weighted(0.05),
        btree_map(any_tuple(), any::<bool>(), 0..20),
    )
        .prop_map(|(pods, ways, translated, all_translated, begun)| Tables {
            pods,
            ways,
            translated,
            all_translated,
            begun: RefCell::new(begun),
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn packets_go_where_the_documentation_has_them_go(
        tables in any_tables(),
        all in vec((any_headers(), 999..1002_u32), 8),
    ) {
        for (headers, largest) in all {
            let nodes = (0..4).flat_map(|node| [5, 6].map(|link| By::Tunnel(link, Address::v4([10, 244, node, 1]))));
            for by in (1..4).map(By::Nodes).chain((11..14).map(By::Pod)).chain(nodes) {
                let (expected, begun) = judge(&tables, by, &headers, largest);
                let after = tables.clone();
                let next = decide(&after, by, &headers, largest);
                prop_assert_eq!(next, expected, "{:?} {:?}", by, headers);
                prop_assert_eq!(after.begun.into_inner(), begun, "{:?} {:?}", by, headers);
            }
        }
    }

    #[test]
    fn addresses_are_in_the_same_range_as_far_as_they_share_bits(
        one: [u8; 16],
        other: [u8; 16],
        shared in 0..=16_usize,
        length in 0..=128_u32,
    ) {
        let mut near = other;
        near[..shared].copy_from_slice(&one[..shared]);
        let ranges = [one, near].map(|octets| Range::around(Address(octets), length));
        let differ = bits(&Address(one)) ^ bits(&Address(near));
        prop_assert_eq!(ranges[0] == ranges[1], differ.leading_zeros() >= length);
        for range in ranges {
            prop_assert_eq!(range.length, length);
            prop_assert_eq!(bits(&range.address).checked_shl(length).unwrap_or(0), 0);
            prop_assert_eq!(Range::around(range.address, length), range);
        }
        prop_assert!((bits(&ranges[0].address) ^ bits(&Address(one))).leading_zeros() >= length);
    }

    #[test]
    fn ranges_of_ipv4_are_those_of_its_mapped_addresses(octets: [u8; 4], length in 0..=32_u8) {
        let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
        let first = Ipv4Addr::from(u32::from_be_bytes(octets) & mask);
        let expected = Range { length: 96 + u32::from(length), address: IpAddr::V4(first).into() };
        prop_assert_eq!(Range::new(Address::v4(octets), length), expected);
    }
}
