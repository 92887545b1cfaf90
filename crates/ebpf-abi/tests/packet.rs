//! What is read of packets, which are built here byte by byte from the RFCs, and the checksum after a hop.

use std::mem::{align_of, size_of};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use podnet_ebpf_abi::packet::{ETHERNET, Flags, Headers, Tuple, Whose, checksum_after_hop, ordinary, whose};
use podnet_ebpf_abi::{Address, Endpoint, Protocol};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const OPTIONS: u8 = 60;
const EXTENSIONS: [u8; 5] = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, OPTIONS];

/// A segment or a datagram, and who sends it to whom.
#[derive(Debug, Clone, Copy)]
struct Sent {
    ends: (IpAddr, IpAddr),
    ports: (u16, u16),
    protocol: u8,
    hops: u8,
    flags: u8,
    /// Words of TCP's options.
    options: u8,
    payload: u16,
    /// What all fields are filled with that nobody is to read.
    noise: u8,
}

/// An extension header: its kind, and its length as its second byte says it.
type Extension = (u8, u8);

impl Sent {
    fn tuple(&self) -> Tuple {
        let (source, destination) = self.ends;
        Tuple::new(
            SocketAddr::new(source, self.ports.0).into(),
            SocketAddr::new(destination, self.ports.1).into(),
            Protocol(self.protocol),
        )
    }

    fn network_header(&self) -> u32 {
        if self.ends.0.is_ipv4() { 20 } else { 40 }
    }

    fn transport_header(&self) -> u32 {
        match self.protocol {
            TCP => 20 + 4 * u32::from(self.options),
            _ => 8,
        }
    }

    fn headers(&self) -> Headers {
        let overhead = self.network_header() + self.transport_header();
        Headers {
            tuple: self.tuple(),
            hops: self.hops,
            // In the byte after the version's, or across its middle.
            ecn: match self.ends.0 {
                IpAddr::V4(_) => self.noise & 3,
                IpAddr::V6(_) => self.noise >> 4 & 3,
            },
            flags: Flags(if self.protocol == TCP { self.flags } else { 0 }),
            length: overhead + u32::from(self.payload),
            overhead,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = vec![self.noise; (self.transport_header() + u32::from(self.payload)) as usize];
        bytes[..2].copy_from_slice(&self.ports.0.to_be_bytes());
        bytes[2..4].copy_from_slice(&self.ports.1.to_be_bytes());
        if self.protocol == TCP {
            // Below the length are bits that are reserved.
            bytes[12] = (5 + self.options) << 4 | self.noise & 0x0f;
            bytes[13] = self.flags;
        }
        bytes
    }

    fn packet(&self) -> Vec<u8> {
        match self.ends {
            (IpAddr::V4(_), _) => self.v4(0, 0x4000),
            (IpAddr::V6(_), _) => self.v6(&[]),
        }
    }

    /// With words of options, and flags and offset of a fragment.
    fn v4(&self, options: u8, fragment: u16) -> Vec<u8> {
        let transport = self.transport();
        let header = 20 + 4 * usize::from(options);
        let mut bytes = vec![self.noise; header];
        bytes[0] = 0x40 | (5 + options);
        bytes[2..4].copy_from_slice(&((header + transport.len()) as u16).to_be_bytes());
        bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
        bytes[8..10].copy_from_slice(&[self.hops, self.protocol]);
        if let (IpAddr::V4(source), IpAddr::V4(destination)) = self.ends {
            bytes[12..16].copy_from_slice(&source.octets());
            bytes[16..20].copy_from_slice(&destination.octets());
        }
        bytes.extend(transport);
        framed(IPV4, &bytes)
    }

    fn v6(&self, extensions: &[Extension]) -> Vec<u8> {
        let kinds = extensions.iter().map(|(kind, _)| *kind);
        let mut kinds = kinds.chain([self.protocol]);
        let mut bytes = vec![self.noise; 40];
        bytes[0] = 0x60 | self.noise & 0x0f;
        bytes[6..8].copy_from_slice(&[kinds.next().unwrap(), self.hops]);
        if let (IpAddr::V6(source), IpAddr::V6(destination)) = self.ends {
            bytes[8..24].copy_from_slice(&source.octets());
            bytes[24..40].copy_from_slice(&destination.octets());
        }
        for ((kind, length), next) in extensions.iter().zip(kinds) {
            bytes.extend(extension((*kind, *length), next, self.noise));
        }
        bytes.extend(self.transport());
        let length = (bytes.len() - 40) as u16;
        bytes[4..6].copy_from_slice(&length.to_be_bytes());
        framed(IPV6, &bytes)
    }
}

fn framed(kind: u16, bytes: &[u8]) -> Vec<u8> {
    [&[0xee; 12], &kind.to_be_bytes()[..], bytes].concat()
}

/// RFC 8200, 4.3 to 4.6, and RFC 4302, 2; of fragments the first, of which there are more.
fn extension((kind, length): Extension, next: u8, noise: u8) -> Vec<u8> {
    let words = usize::from(length);
    let mut bytes = match kind {
        FRAGMENT => vec![noise, length, 0, 0x01, noise, noise, noise, noise],
        AUTHENTICATION => vec![noise; 4 * words + 8],
        _ => vec![noise; 8 * words + 8],
    };
    bytes[..2].copy_from_slice(&[next, length]);
    bytes
}

fn sent(source: &str, destination: &str, protocol: u8) -> Sent {
    let (source, destination): (SocketAddr, SocketAddr) =
        (source.parse().unwrap(), destination.parse().unwrap());
    Sent {
        ends: (source.ip(), destination.ip()),
        ports: (source.port(), destination.port()),
        protocol,
        hops: 64,
        flags: 0x10,
        options: 3,
        payload: 32,
        noise: 0xa5,
    }
}

/// One of each kind.
fn samples() -> Vec<Sent> {
    let families = [
        ("10.244.1.2:40000", "10.244.2.3:80"),
        ("[fd00:10:244:1::2]:40000", "[fd00:10:244:2::3]:80"),
    ];
    let of = |protocol| families.map(|(source, destination)| sent(source, destination, protocol));
    [of(TCP), of(UDP)].concat()
}

/// Of bytes, and so never a mapped one.
fn any_v6() -> impl Strategy<Value = IpAddr> {
    any::<[u8; 16]>().prop_map(IpAddr::from)
}

fn any_ends() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(source, destination)| (source.into(), destination.into())),
        (any_v6(), any_v6()),
    ]
}

fn any_sent() -> impl Strategy<Value = Sent> {
    let ports = any::<(u16, u16)>();
    let numbers = (any::<u8>(), any::<u8>(), 0..=10_u8, 0..1400_u16, any::<u8>());
    (any_ends(), ports, select(vec![TCP, UDP]), numbers).prop_map(
        |(ends, ports, protocol, (hops, flags, options, payload, noise))| Sent {
            ends,
            ports,
            protocol,
            hops,
            flags,
            options,
            payload,
            noise,
        },
    )
}

fn any_sent_v6() -> impl Strategy<Value = Sent> {
    (any_sent(), any_v6(), any_v6()).prop_map(|(sent, source, destination)| Sent {
        ends: (source, destination),
        ..sent
    })
}

fn any_extensions(
    count: impl Into<proptest::collection::SizeRange>,
) -> impl Strategy<Value = Vec<Extension>> {
    // Mostly short ones, so that a packet is no longer than real ones are.
    vec(
        (
            select(EXTENSIONS.to_vec()),
            prop_oneof![9 => 0..4_u8, 1 => any::<u8>()],
        ),
        count,
    )
}

/// Where a packet's ports end.
fn end_of_ports(packet: &[u8], sent: &Sent) -> usize {
    packet.len() - (sent.transport_header() + u32::from(sent.payload)) as usize + 4
}

#[test]
fn layouts_have_no_bytes_that_nobody_sets() {
    assert_eq!((size_of::<Tuple>(), align_of::<Tuple>()), (40, 1));
}

#[test]
fn a_connection_of_ipv4_is_accepted_by_bytes_as_they_are_on_the_wire() {
    let packet = [
        "0a58 0af4 0102 0a58 0af4 0101 0800",
        "4500 003c 0000 4000 3f06 22d0 0af4 0203 0af4 0102",
        "0050 9c40 1122 3344 5566 7788 a012 fe88 abcd 0000",
        "0204 0582 0402 080a 0000 0001 0000 0002 0103 0307",
    ];
    let headers = ordinary(&bytes(&packet)[..]).unwrap();
    let accepting = sent("10.244.2.3:80", "10.244.1.2:40000", TCP);
    assert_eq!(headers.tuple, accepting.tuple());
    assert_eq!((headers.hops, headers.flags), (63, Flags(0x12)));
    assert_eq!((headers.length, headers.overhead), (60, 60));
}

#[test]
fn a_question_by_ipv6_is_read_by_bytes_as_they_are_on_the_wire() {
    let packet = [
        "0a58 0af4 0102 0a58 0af4 0101 86dd",
        "6012 3456 000d 1140 fd00 0010 0244 0001 0000 0000 0000 0002",
        "fd00 0010 0244 0002 0000 0000 0000 0003 d431 0035 000d 1234 68656c6c6f",
    ];
    let headers = ordinary(&bytes(&packet)[..]).unwrap();
    let asking = sent("[fd00:10:244:1::2]:54321", "[fd00:10:244:2::3]:53", UDP);
    assert_eq!(headers.tuple, asking.tuple());
    assert_eq!((headers.hops, headers.flags), (64, Flags(0)));
    assert_eq!((headers.length, headers.overhead), (53, 48));
}

fn bytes(lines: &[&str]) -> Vec<u8> {
    let digits: Vec<char> = lines.concat().chars().filter(|of| *of != ' ').collect();
    let byte = |pair: &[char]| u8::from_str_radix(&String::from_iter(pair), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn options_of_ipv4_are_not_ordinary() {
    for sent in samples().iter().filter(|sent| sent.ends.0.is_ipv4()) {
        for options in 1..=10 {
            assert_eq!(ordinary(&sent.v4(options, 0)[..]), None, "{options} words");
        }
    }
}

#[test]
fn another_version_than_the_type_says_is_not_ordinary() {
    for sent in samples() {
        let mut packet = sent.packet();
        let own = packet[ETHERNET];
        for version in (0..16).filter(|version| *version != own >> 4) {
            packet[ETHERNET] = version << 4 | own & 0x0f;
            assert_eq!(ordinary(&packet[..]), None, "{sent:?} of version {version}");
        }
    }
}

#[test]
fn fragments_are_not_ordinary() {
    const DONT: u16 = 0x4000;
    const MORE: u16 = 0x2000;
    for sent in samples().iter().filter(|sent| sent.ends.0.is_ipv4()) {
        for whole in [0, DONT] {
            assert_eq!(ordinary(&sent.v4(0, whole)[..]), Some(sent.headers()));
            assert_eq!(ordinary(&sent.v4(0, whole | MORE)[..]), None);
            for offset in (0..13).map(|bit| 1 << bit) {
                assert_eq!(ordinary(&sent.v4(0, whole | offset)[..]), None, "{offset}");
                assert_eq!(ordinary(&sent.v4(0, whole | MORE | offset)[..]), None, "{offset}");
            }
        }
    }
}

#[test]
fn extension_headers_are_not_ordinary() {
    for sent in samples().iter().filter(|sent| sent.ends.0.is_ipv6()) {
        for kind in EXTENSIONS {
            assert_eq!(ordinary(&sent.v6(&[(kind, 0)])[..]), None, "{kind}");
        }
    }
}

#[test]
fn other_protocols_are_not_ordinary_and_nobodys() {
    for sample in samples() {
        let others = (0..=u8::MAX).filter(|protocol| ![TCP, UDP].contains(protocol));
        for protocol in others {
            let packet = Sent { protocol, ..sample }.packet();
            assert_eq!(ordinary(&packet[..]), None, "{protocol}");
            if sample.ends.0.is_ipv4() || !EXTENSIONS.contains(&protocol) {
                assert_eq!(whose(&packet[..]), Whose::Nobodys, "{protocol}");
            }
        }
    }
}

#[test]
fn other_types_are_not_ordinary_and_unreadable() {
    for sent in samples() {
        let mut packet = sent.packet();
        let own = u16::from_be_bytes([packet[12], packet[13]]);
        // What says it is of the other family does not get past its version.
        for other in (0..=u16::MAX).filter(|kind| *kind != own) {
            packet[12..14].copy_from_slice(&other.to_be_bytes());
            assert_eq!(ordinary(&packet[..]), None, "{other:#06x}");
            if ![IPV4, IPV6].contains(&other) {
                assert_eq!(whose(&packet[..]), Whose::Unreadable, "{other:#06x}");
            }
        }
    }
}

#[test]
fn tags_of_vlans_are_not_ordinary() {
    for sent in samples() {
        for tag in [0x8100_u16, 0x88a8] {
            let mut packet = sent.packet();
            let [high, low] = tag.to_be_bytes();
            packet.splice(12..12, [high, low, 0x00, 0x07]);
            assert_eq!(ordinary(&packet[..]), None);
        }
    }
}

/// They would be read as the addresses of IPv4 that they are not.
#[test]
fn ipv6_with_mapped_addresses_is_not_ordinary() {
    for protocol in [TCP, UDP] {
        let (mapped, other) = ("[::ffff:10.244.1.2]:40000", "[fd00:10:244:2::3]:80");
        for (source, destination) in [(mapped, mapped), (mapped, other), (other, mapped)] {
            let packet = sent(source, destination, protocol).packet();
            assert_eq!(ordinary(&packet[..]), None, "{source} to {destination}");
        }
    }
}

#[test]
fn only_what_accepts_a_connection_accepts_it_and_what_ends_it_ends_it() {
    let [fin, syn, rst, ack] = [1, 1 << 1, 1 << 2, 1 << 4];
    for flags in 0..=u8::MAX {
        let has = |flag: u8| flags & flag == flag;
        let accepts = has(syn) && has(ack) && !has(rst) && !has(fin);
        assert_eq!(Flags(flags).accepts(), accepts, "{flags:#04x}");
        assert_eq!(Flags(flags).ends(), has(fin) || has(rst), "{flags:#04x}");
    }
}

#[test]
fn pieces_have_the_headers_of_the_whole() {
    let table = [
        // Family's header, transport's, and a piece.
        (TCP, 0, [20 + 20 + 1448, 40 + 20 + 1448]),
        (TCP, 3, [20 + 32 + 1448, 40 + 32 + 1448]),
        (TCP, 10, [20 + 60 + 1448, 40 + 60 + 1448]),
        (UDP, 0, [20 + 8 + 1448, 40 + 8 + 1448]),
    ];
    for (protocol, options, largest) in table {
        for (sample, largest) in samples().iter().zip(largest) {
            let sent = Sent {
                protocol,
                options,
                payload: 200,
                ..*sample
            };
            let headers = ordinary(&sent.packet()[..]).unwrap();
            let whole = largest - 1448 + 200;
            assert_eq!(headers.largest(1448, whole), largest);
            // What it says of itself may be less than what it carries.
            assert_eq!(headers.largest(0, 60), whole);
            assert_eq!(headers.largest(0, whole + 1), whole + 1);
        }
    }
}

#[test]
fn options_of_ipv4_are_passed_over() {
    for sent in samples().iter().filter(|sent| sent.ends.0.is_ipv4()) {
        for options in 0..=10 {
            let whose = whose(&sent.v4(options, 0)[..]);
            assert_eq!(whose, Whose::Flow(sent.tuple()), "{options} words");
        }
    }
}

/// RFC 791, 3.1: five words are the least. Whatever were read instead of ports would be parts of the header.
#[test]
fn a_header_of_ipv4_that_is_too_short_is_unreadable() {
    for sent in samples().iter().filter(|sent| sent.ends.0.is_ipv4()) {
        for words in 0..5 {
            let mut packet = sent.packet();
            packet[ETHERNET] = 0x40 | words;
            assert_eq!(ordinary(&packet[..]), None, "{words} words");
            assert_eq!(whose(&packet[..]), Whose::Unreadable, "{words} words");
        }
    }
}

#[test]
fn the_first_of_fragments_of_ipv4_has_the_flow_and_a_later_one_is_nobodys() {
    const MORE: u16 = 0x2000;
    for sent in samples().iter().filter(|sent| sent.ends.0.is_ipv4()) {
        for options in [0, 1, 10] {
            assert_eq!(
                whose(&sent.v4(options, MORE)[..]),
                Whose::Flow(sent.tuple()),
                "{options}"
            );
            for offset in (0..13).map(|bit| 1 << bit) {
                assert_eq!(whose(&sent.v4(options, MORE | offset)[..]), Whose::Nobodys);
                assert_eq!(whose(&sent.v4(options, offset)[..]), Whose::Nobodys);
            }
        }
    }
}

#[test]
fn extension_headers_of_all_lengths_are_passed_over() {
    for sent in samples().iter().filter(|sent| sent.ends.0.is_ipv6()) {
        for (kind, length) in EXTENSIONS
            .iter()
            .flat_map(|kind| (0..=u8::MAX).map(|length| (*kind, length)))
        {
            let whose = whose(&sent.v6(&[(kind, length)])[..]);
            assert_eq!(whose, Whose::Flow(sent.tuple()), "{length} of {kind}");
        }
    }
}

#[test]
fn a_later_fragment_of_ipv6_is_nobodys() {
    for sent in samples().iter().filter(|sent| sent.ends.0.is_ipv6()) {
        let packet = sent.v6(&[(FRAGMENT, 0)]);
        // Below the offset are two bits that are reserved, and whether there are more.
        for (bit, expected) in (0..16).map(|bit| {
            (
                bit,
                if bit < 3 {
                    Whose::Flow(sent.tuple())
                } else {
                    Whose::Nobodys
                },
            )
        }) {
            let mut packet = packet.clone();
            packet[ETHERNET + 42..ETHERNET + 44].copy_from_slice(&(1_u16 << bit).to_be_bytes());
            assert_eq!(whose(&packet[..]), expected, "bit {bit}");
        }
    }
}

#[test]
fn what_is_not_there_at_all_is_unreadable() {
    assert_eq!(ordinary(&[][..]), None);
    assert_eq!(whose(&[][..]), Whose::Unreadable);
}

/// RFC 1071, 1.
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

fn with_checksum(mut header: Vec<u8>) -> Vec<u8> {
    header[10..12].fill(0);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn hop(header: &mut [u8]) {
    header[8] -= 1;
    let after = checksum_after_hop([header[10], header[11]]);
    header[10..12].copy_from_slice(&after);
}

/// Of all that a header can have: the identification takes the sum to every value that there is.
#[test]
fn every_checksum_after_a_hop_is_what_it_would_be_from_scratch() {
    let mut seen = vec![false; 0x1_0000];
    for identification in 0..=u16::MAX {
        let [high, low] = identification.to_be_bytes();
        for hops in [2, 64, 255] {
            let header = [
                0x45, 0, 0, 60, high, low, 0x40, 0, hops, TCP, 0, 0, 10, 244, 1, 2, 10, 244, 2, 3,
            ];
            let before = with_checksum(header.to_vec());
            seen[usize::from(u16::from_be_bytes([before[10], before[11]]))] = true;
            let mut after = before.clone();
            hop(&mut after);
            assert_eq!(
                after[10..12],
                with_checksum(after.clone())[10..12],
                "from {:02x?}",
                &before[10..12]
            );
        }
    }
    // No sum of what is not all zero is zero.
    assert!(seen[..0xffff].iter().all(|is_seen| *is_seen));
}

#[test]
fn sums_that_wrap_do_so_once() {
    // Both 0x0000 and 0xffff are zero; the latter is what others may have written.
    let table = [
        (0x0000, 0x0100),
        (0xffff, 0x0100),
        (0xfe00, 0xff00),
        (0xfefe, 0xfffe),
        (0xff00, 0x0001),
        (0xfffe, 0x00ff),
    ];
    for (before, after) in table {
        let sum: u16 = before;
        let found = u16::from_be_bytes(checksum_after_hop(sum.to_be_bytes()));
        assert_eq!(found, after, "{before:#06x}");
    }
}

fn is_either(one: &Tuple, other: &Tuple) -> bool {
    other == one || *other == one.reversed()
}

/// Addresses that differ at either end of either half, and ports at either end.
#[test]
fn flows_between_like_ends_are_told_apart() {
    let at = |places: &[usize]| {
        let mut octets = [1; 16];
        places.iter().for_each(|place| octets[*place] = 2);
        Address(octets)
    };
    let addresses = [&[][..], &[0], &[7], &[8], &[15], &[0, 15], &[7, 8]].map(at);
    let ports = [[0, 1], [1, 0], [1, 1]];
    let ends = addresses.map(|address| ports.map(|port| Endpoint::new(address, port)));
    let pairs = ends
        .iter()
        .flatten()
        .flat_map(|one| ends.iter().flatten().map(|other| (*one, *other)));
    let tuples: Vec<Tuple> = pairs
        .flat_map(|(one, other)| [Protocol::TCP, Protocol::UDP].map(|of| Tuple::new(one, other, of)))
        .collect();
    assert_eq!(tuples.len(), 21 * 21 * 2);
    let either: Vec<Tuple> = tuples.iter().map(Tuple::either).collect();
    for (tuple, own) in tuples.iter().zip(&either) {
        assert!(is_either(tuple, own), "{tuple:?}");
        for (other, its) in tuples.iter().zip(&either) {
            assert_eq!(own == its, is_either(tuple, other), "{tuple:?} and {other:?}");
        }
    }
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    let end = || (any::<[u8; 16]>(), any::<[u8; 2]>());
    (end(), end(), select(vec![Protocol::TCP, Protocol::UDP])).prop_map(|(source, destination, protocol)| {
        let end = |(address, port)| Endpoint::new(Address(address), port);
        Tuple::new(end(source), end(destination), protocol)
    })
}

/// Bytes that are not turned down at the first look: types, versions, protocols and kinds are often ones that there are.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let kinds = prop_oneof![Just(0x45), 0x40..=0x4f_u8, Just(0x60), any::<u8>()];
    let next = select([&EXTENSIONS[..], &[TCP, UDP, 58]].concat());
    let types = prop_oneof![4 => Just(IPV4), 6 => Just(IPV6), 1 => any::<u16>()];
    let likely = (types, kinds, next.clone(), vec(next, 30));
    (vec(any::<u8>(), 0..=200), likely).prop_map(|(mut bytes, (kind, first, next, later))| {
        let [high, low] = kind.to_be_bytes();
        let fixed = [(12, high), (13, low), (14, first), (20, next), (23, next)];
        // Where extension headers may begin, and be short.
        let later = later
            .iter()
            .enumerate()
            .flat_map(|(number, next)| [(54 + 8 * number, *next), (55 + 8 * number, next % 3)]);
        for (at, byte) in fixed.into_iter().chain(later) {
            if let Some(there) = bytes.get_mut(at) {
                *there = byte;
            }
        }
        bytes
    })
}

/// Bytes of the transport's header, and its protocol, by the RFCs; none where it is cut off, or too many headers precede.
fn transport_of(packet: &[u8]) -> Option<(u8, Range<usize>)> {
    let end = packet.len();
    if u16::from_be_bytes([packet[12], packet[13]]) == IPV4 {
        return Some((packet[23], ETHERNET + 4 * usize::from(packet[14] & 0x0f)..end));
    }
    let (mut kind, mut at) = (packet[20], ETHERNET + 40);
    for passed in 0.. {
        if !EXTENSIONS.contains(&kind) {
            return Some((kind, at..end));
        }
        if passed == 6 {
            return None;
        }
        let length = usize::from(*packet.get(at + 1)?);
        let next = packet[at];
        at += match kind {
            FRAGMENT => 8,
            AUTHENTICATION => 8 + 4 * length,
            _ => 8 + 8 * length,
        };
        kind = next;
    }
    None
}

proptest! {
    #[test]
    fn ordinary_packets_are_read(sent in any_sent()) {
        let packet = sent.packet();
        prop_assert_eq!(ordinary(&packet[..]), Some(sent.headers()));
        prop_assert_eq!(whose(&packet[..]), Whose::Flow(sent.tuple()));
    }

    #[test]
    fn a_packet_needs_no_more_than_its_headers_in_place(sent in any_sent()) {
        let packet = sent.packet();
        for cut in 0..=packet.len() {
            let headers = ordinary(&packet[..cut]);
            if cut < end_of_ports(&packet, &sent) {
                prop_assert_eq!(headers, None, "{} bytes", cut);
            } else if cut >= packet.len() - usize::from(sent.payload) {
                prop_assert_eq!(headers, Some(sent.headers()), "{} bytes", cut);
            } else {
                prop_assert!([None, Some(sent.headers())].contains(&headers), "{} bytes", cut);
            }
        }
    }

    #[test]
    fn extension_headers_are_passed_over(sent in any_sent_v6(), extensions in any_extensions(0..=6)) {
        prop_assert_eq!(whose(&sent.v6(&extensions)[..]), Whose::Flow(sent.tuple()));
    }

    #[test]
    fn too_many_extension_headers_are_unreadable(sent in any_sent_v6(), extensions in any_extensions(7..=8)) {
        prop_assert_eq!(whose(&sent.v6(&extensions)[..]), Whose::Unreadable);
    }

    #[test]
    fn other_protocols_behind_extension_headers_are_nobodys(
        sent in any_sent_v6(),
        protocol in any::<u8>().prop_filter("another", |of| ![TCP, UDP].contains(of) && !EXTENSIONS.contains(of)),
        extensions in any_extensions(0..=6),
    ) {
        let packet = Sent { protocol, ..sent }.v6(&extensions);
        prop_assert_eq!(whose(&packet[..]), Whose::Nobodys);
    }

    #[test]
    fn a_later_fragment_is_nobodys_behind_and_before_extension_headers(
        sent in any_sent_v6(),
        before in any_extensions(0..=4),
        after in any_extensions(0..=4),
        offset in 1..0x2000_u16,
        more: bool,
    ) {
        let mut packet = sent.v6(&[&before[..], &[(FRAGMENT, 0)], &after[..]].concat());
        let passed: usize = before.iter().map(|of| extension(*of, 0, 0).len()).sum();
        let at = ETHERNET + 40 + passed + 2;
        packet[at..at + 2].copy_from_slice(&(offset << 3 | u16::from(more)).to_be_bytes());
        prop_assert_eq!(whose(&packet[..]), Whose::Nobodys);
    }

    /// Whoever were nobody's would not be missed where it is not noted.
    #[test]
    fn what_is_cut_off_before_its_ports_is_unreadable(
        sent in any_sent(),
        options in 0..=10_u8,
        extensions in any_extensions(0..=6),
    ) {
        let packet = if sent.ends.0.is_ipv4() { sent.v4(options, 0x2000) } else { sent.v6(&extensions) };
        for cut in 0..=packet.len() {
            let is_there = cut >= end_of_ports(&packet, &sent);
            let expected = if is_there { Whose::Flow(sent.tuple()) } else { Whose::Unreadable };
            prop_assert_eq!(whose(&packet[..cut]), expected, "{} bytes", cut);
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(noise in vec(any::<u8>(), 0..=200), bytes in any_bytes()) {
        for bytes in [noise, bytes] {
            let whose = whose(&bytes[..]);
            if let Some(headers) = ordinary(&bytes[..]) {
                prop_assert_eq!(whose, Whose::Flow(headers.tuple));
            }
            if let Whose::Flow(tuple) = whose {
                let (protocol, transport) = transport_of(&bytes).unwrap();
                prop_assert_eq!(Protocol(protocol), tuple.protocol);
                prop_assert!([TCP, UDP].contains(&protocol));
                let ports = [tuple.source_port, tuple.destination_port].concat();
                prop_assert_eq!(Some(&ports[..]), bytes[transport].get(..4));
            }
        }
    }

    #[test]
    fn a_header_has_the_right_checksum_all_the_way(mut header in vec(any::<u8>(), 20..=60), words in 5..=15_usize) {
        header.resize(4 * words, 0);
        header[0] = 0x40 | words as u8;
        header[8] = u8::MAX;
        let mut header = with_checksum(header);
        while header[8] > 1 {
            hop(&mut header);
            // As the receiver has it, to whom both zeros are one.
            prop_assert_eq!(checksum(&header), 0, "at {}", header[8]);
        }
    }

    #[test]
    fn both_directions_have_one_name(tuple in any_tuple(), other in any_tuple()) {
        prop_assert_eq!(tuple.either(), tuple.reversed().either());
        prop_assert!(is_either(&tuple, &tuple.either()));
        prop_assert_eq!(tuple.either() == other.either(), is_either(&tuple, &other));
    }

    #[test]
    fn the_other_direction_has_the_ends_exchanged(tuple in any_tuple()) {
        let [source, destination] = tuple.ends();
        prop_assert_eq!(Tuple::new(source, destination, tuple.protocol), tuple);
        prop_assert_eq!(tuple.reversed().ends(), [destination, source]);
        prop_assert_eq!(tuple.reversed().reversed(), tuple);
    }
}
