//! Headers around packets in a tunnel, which are put together here once more as RFC 7348 draws them.

use std::mem::{align_of, size_of};
use std::net::IpAddr;

use podnet_ebpf_abi::packet::{Headers, ordinary};
use podnet_ebpf_abi::path::Way;
use podnet_ebpf_abi::tunnel::{
    Around, INNER_AT, OVERHEAD, Tunnel, UDP_AT, VXLAN_AT, around, can_be_taken_out, inside, is_in,
};
use podnet_ebpf_abi::{Address, Protocol};
use proptest::prelude::*;

const ETHERNET: usize = 14;
const VNI: u32 = 0x0a_0b0c;
const PORT: u16 = 4789;
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// The two ends, each as the one has it that sends from it.
fn ends() -> [Tunnel; 2] {
    let end = |local, mac| Tunnel::new(address(local), VNI, PORT, mac);
    [end("192.0.2.1", OUR_MAC), end("192.0.2.2", THEIR_MAC)]
}

fn way() -> Way {
    Way::by(5, 1450, address("10.244.2.0")).inside(2, address("192.0.2.2"), THEIR_MAC)
}

/// A packet of a pod: by family, with that class of traffic, ports and payload.
fn packet(family: u8, class: u8, ports: [u16; 2], payload: usize) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET];
    let length = (8 + payload) as u16;
    if family == 4 {
        bytes[12..].copy_from_slice(&[0x08, 0x00]);
        bytes.extend([0x45, class]);
        bytes.extend((20 + length).to_be_bytes());
        bytes.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 244, 1, 2, 10, 244, 2, 3]);
    } else {
        bytes[12..].copy_from_slice(&[0x86, 0xdd]);
        bytes.extend([0x60 | class >> 4, class << 4, 0, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend([17, 64]);
        bytes.extend([0xfd; 16]);
        bytes.extend([0xfe; 16]);
    }
    ports.iter().for_each(|port| bytes.extend(port.to_be_bytes()));
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(std::iter::repeat_n(7, payload));
    bytes
}

fn read(packet: &[u8]) -> Headers {
    ordinary(packet).unwrap()
}

/// As it leaves: an outer Ethernet header, what is around it, and the packet from its network header on.
fn sent(packet: &[u8]) -> Vec<u8> {
    let carried = (packet.len() - ETHERNET) as u32;
    let Around {
        ip,
        udp,
        vxlan,
        ethernet,
    } = around(&ends()[0], &way(), &read(packet), carried, 0x1234).unwrap();
    let mut bytes = vec![0xee; 12];
    bytes.extend([0x08, 0x00]);
    bytes.extend(ip);
    assert_eq!(bytes.len(), UDP_AT);
    bytes.extend(udp);
    assert_eq!(bytes.len(), VXLAN_AT);
    bytes.extend(vxlan);
    assert_eq!(bytes.len(), INNER_AT);
    bytes.extend(ethernet);
    bytes.extend(&packet[ETHERNET..]);
    bytes
}

fn received(packet: &[u8]) -> Option<Headers> {
    let (outer, tunnel) = (ordinary(packet)?, &ends()[1]);
    is_in(&outer, tunnel).then(|| inside(packet, &outer, tunnel))?
}

/// RFC 1071, of a whole header: what a sound one adds up to.
fn sum(header: &[u8]) -> u32 {
    let words = header.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16)
}

#[test]
fn layouts_have_no_bytes_that_nobody_sets() {
    assert_eq!((size_of::<Tunnel>(), align_of::<Tunnel>()), (28, 1));
    assert_eq!(OVERHEAD, 50);
}

#[test]
fn headers_are_those_of_the_rfc() {
    let packet = packet(4, 0, [40_000, 80], 100);
    let sent = sent(&packet);
    let (ip, rest) = sent[ETHERNET..].split_at(20);
    // 50 bytes around 20 + 8 + 100.
    assert_eq!(ip[..10], [0x45, 0, 0, 178, 0x12, 0x34, 0, 0, 64, 17]);
    assert_eq!(ip[12..], [192, 0, 2, 1, 192, 0, 2, 2]);
    assert_eq!(sum(ip), 0xffff);
    let (udp, rest) = rest.split_at(8);
    assert_eq!(udp[2..], [0x12, 0xb5, 0, 158, 0, 0]);
    let (vxlan, rest) = rest.split_at(8);
    assert_eq!(vxlan, [0x08, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0]);
    assert_eq!((&rest[..6], &rest[6..12]), (&THEIR_MAC[..], &OUR_MAC[..]));
    assert_eq!(rest[12..], packet[12..]);
}

#[test]
fn what_one_end_sends_the_other_takes() {
    for family in [4, 6] {
        for class in 0..=255 {
            let packet = packet(family, class, [40_000, 80], 100);
            let headers = read(&packet);
            let sent = sent(&packet);
            // Nothing of the class but what is about congestion (RFC 6040, 4.1).
            assert_eq!(sent[ETHERNET + 1], class & 3);
            assert_eq!(sum(&sent[ETHERNET..UDP_AT]), 0xffff, "{class}");
            assert_eq!(received(&sent), Some(headers), "{family} {class}");
        }
    }
}

/// RFC 6040, 4.2: only one that had no congestion on its way is taken as it is, or that says so already.
#[test]
fn what_met_congestion_is_the_devices() {
    for (outer, inner) in (0..4).flat_map(|outer| (0..4).map(move |inner| (outer, inner))) {
        let mut sent = sent(&packet(6, inner, [40_000, 80], 100));
        sent[ETHERNET + 1] = outer;
        assert_eq!(
            received(&sent).is_some(),
            outer != 3 || inner == 3,
            "{outer} {inner}"
        );
    }
}

#[test]
fn what_is_not_quite_so_is_the_devices() {
    let whole = sent(&packet(4, 0, [40_000, 80], 100));
    assert!(received(&whole).is_some());
    let another_way: [(usize, u8); 16] = [
        // Of another protocol, to another node, to another port, and fragments.
        (ETHERNET + 9, 6),
        (ETHERNET + 19, 3),
        (UDP_AT + 3, 0xb6),
        (ETHERNET + 6, 0x20),
        // Of another length than they say, in one header or the other, and with a checksum.
        (ETHERNET + 3, 177),
        (UDP_AT + 5, 157),
        (UDP_AT + 6, 1),
        (UDP_AT + 7, 1),
        // Without the flag, with another one, with something where nothing is to be, of another network.
        (VXLAN_AT, 0),
        (VXLAN_AT, 0x0c),
        (VXLAN_AT + 1, 1),
        (VXLAN_AT + 7, 1),
        (VXLAN_AT + 6, 1),
        // To another device, and nothing of ours to read.
        (INNER_AT + 5, 3),
        (INNER_AT - 1, 0x06),
        (OVERHEAD + ETHERNET, 0x46),
    ];
    for (at, byte) in another_way {
        let mut other = whole.clone();
        other[at] = byte;
        assert_eq!(received(&other), None, "{at} {byte}");
    }
    // Up to the ports everything is read.
    let least = ETHERNET + OVERHEAD + 20 + 4;
    for length in ETHERNET..whole.len() {
        assert_eq!(received(&whole[..length]).is_some(), length >= least, "{length}");
    }
}

#[test]
fn several_datagrams_in_one_are_the_devices_and_segments_are_not() {
    let datagrams = read(&packet(4, 0, [40_000, 80], 100));
    let mut segments = datagrams;
    segments.tuple.protocol = Protocol::TCP;
    for (headers, piece, can) in [
        (&datagrams, 0, true),
        (&datagrams, 1200, false),
        (&segments, 0, true),
        (&segments, 1400, true),
    ] {
        assert_eq!(can_be_taken_out(headers, piece), can, "{headers:?} {piece}");
    }
}

#[test]
fn nothing_is_taken_where_there_is_no_tunnel() {
    let mut packet = sent(&packet(4, 0, [40_000, 80], 100));
    packet[UDP_AT + 2..UDP_AT + 4].copy_from_slice(&[0, 0]);
    let outer = read(&packet);
    assert!(!is_in(&outer, &Tunnel::NONE));
}

#[test]
fn what_is_too_long_for_one_packet_is_not_put_into_one() {
    let headers = read(&packet(4, 0, [40_000, 80], 100));
    let length = |carried| {
        let around = around(&ends()[0], &way(), &headers, carried, 0)?;
        Some(u16::from_be_bytes([around.ip[2], around.ip[3]]))
    };
    assert_eq!(length(65_485), Some(65_535));
    for carried in [65_486, 65_536, 1 << 20, u32::MAX] {
        assert_eq!(length(carried), None, "{carried}");
    }
}

#[test]
fn over_ipv6_the_device_does_it() {
    let headers = read(&packet(6, 0, [40_000, 80], 100));
    let six = address("fd00::1");
    let [ours, _] = ends();
    let local = Tunnel { local: six, ..ours };
    let to = way().inside(2, six, THEIR_MAC);
    assert_eq!(around(&local, &way(), &headers, 200, 0), None);
    assert_eq!(around(&ours, &to, &headers, 200, 0), None);
}

/// RFC 7348, 5: flows are divided by the outer source port.
#[test]
fn each_flow_has_its_own_source_port() {
    let port = |family, ports| {
        let packet = packet(family, 0, ports, 1);
        let udp = around(&ends()[0], &way(), &read(&packet), 100, 0).unwrap().udp;
        u16::from_be_bytes([udp[0], udp[1]])
    };
    for family in [4, 6] {
        let ports: Vec<u16> = (0..1000)
            .map(|source| port(family, [20_000 + source, 80]))
            .collect();
        assert!(ports.iter().all(|port| *port >= 49_152));
        // By four, as links in a bundle are chosen.
        for bits in [0, 2, 8, 12] {
            let mut shares = [0; 4];
            ports
                .iter()
                .for_each(|port| shares[usize::from(port >> bits & 3)] += 1);
            assert!(
                shares.iter().all(|share| (180..320).contains(share)),
                "{bits} {shares:?}"
            );
        }
        assert_eq!(port(family, [20_000, 80]), ports[0]);
        assert_ne!(port(family, [20_000, 81]), ports[0]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn any_bytes_are_taken_or_left(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..120_usize) {
        let mut packet = sent(&packet(4, 0, [40_000, 80], 60));
        let end = packet.len().min(at + bytes.len());
        packet[at..end].copy_from_slice(&bytes[..end - at]);
        if let Some(headers) = received(&packet) {
            prop_assert_eq!(Some(headers), ordinary(&packet[OVERHEAD..]));
            prop_assert_eq!(&packet[VXLAN_AT..INNER_AT + 6], &sent(&self::packet(4, 0, [40_000, 80], 60))[VXLAN_AT..INNER_AT + 6]);
            prop_assert_eq!(read(&packet).tuple.protocol, Protocol::UDP);
        }
    }
}
