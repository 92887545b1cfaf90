//! Pods' packets to other nodes inside UDP (VXLAN, RFC 7348), as the node's tunnel device sends and takes them.
//!
//! Over IPv4 only. Over IPv6 the outer header of UDP needs a checksum of all that follows it (RFC 8200, 8.1), which nobody
//! here has summed up; that it may be left out (RFC 6935) is for both ends to agree on, and the device does not.

use crate::packet::{Bytes, ETHERNET, Headers, Tuple, ordinary};
use crate::path::Way;
use crate::{Address, Protocol};

/// This node's end: 28 bytes. Where there is none, all are 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Tunnel {
    /// The node's address, of IPv4.
    pub local: Address,
    /// The network's identifier as it stands in the header, where a byte follows that is 0.
    pub vni: [u8; 4],
    /// UDP's port at both ends, in network byte order.
    pub port: [u8; 2],
    /// The MAC address of the tunnel's device, to which peers address what they send.
    pub mac: [u8; 6],
}

impl Tunnel {
    /// Of an identifier and a port as people write them.
    pub const fn new(local: Address, vni: u32, port: u16, mac: [u8; 6]) -> Self {
        Tunnel {
            local,
            vni: (vni << 8).to_be_bytes(),
            port: port.to_be_bytes(),
            mac,
        }
    }

    /// As where there is none.
    pub const NONE: Tunnel = Tunnel::new(Address([0; 16]), 0, 0, [0; 6]);
}

const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// RFC 7348, 5.
const VXLAN_HEADER: usize = 8;
/// Which all implementations set, and no other: the identifier is valid.
const VXLAN_FLAGS: [u8; 4] = [0x08, 0, 0, 0];

/// Where the headers around a packet are, after the outer ones of Ethernet and IPv4.
pub const UDP_AT: usize = ETHERNET + IPV4_HEADER;
/// Of VXLAN.
pub const VXLAN_AT: usize = UDP_AT + UDP_HEADER;
/// The packet's own Ethernet header.
pub const INNER_AT: usize = VXLAN_AT + VXLAN_HEADER;
/// What comes between an outer Ethernet header and the network header of a packet inside, in bytes.
pub const OVERHEAD: usize = INNER_AT;

/// The headers around a packet, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Around {
    /// IPv4 (RFC 791).
    pub ip: [u8; IPV4_HEADER],
    /// UDP, without a checksum (RFC 7348, 4.1).
    pub udp: [u8; UDP_HEADER],
    /// VXLAN.
    pub vxlan: [u8; VXLAN_HEADER],
    /// The packet's own Ethernet header.
    pub ethernet: [u8; ETHERNET],
}

/// "Congestion experienced" (RFC 3168, 5).
const CONGESTED: u8 = 3;

/// The headers around a packet to another node. Its network header and all after it are `carried` bytes. None where these
/// are too many for one packet.
#[inline(always)]
pub fn around(
    tunnel: &Tunnel,
    way: &Way,
    inner: &Headers,
    carried: u32,
    identification: u16,
) -> Option<Around> {
    /// How many routers it may pass (as the kernel has it by default).
    const HOPS: u8 = 64;
    let length = u16::try_from(carried.checked_add(OVERHEAD as u32)?).ok()?;
    let ([a, b, c, d], [e, f, g, h]) = (tunnel.local.as_v4()?, way.router.as_v4()?);
    let [high, low] = length.to_be_bytes();
    let [id_high, id_low] = identification.to_be_bytes();
    // Whether a router may say that it is congested is for the ends to say (RFC 6040, 4.1).
    let ecn = inner.ecn;
    // Routers may cut it into fragments, as they may what the device sends: no flags.
    let mut ip = [
        0x45,
        ecn,
        high,
        low,
        id_high,
        id_low,
        0,
        0,
        HOPS,
        Protocol::UDP.0,
        0,
        0,
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
    ];
    [ip[10], ip[11]] = checksum(&ip);
    let [high, low] = (length - IPV4_HEADER as u16).to_be_bytes();
    let [port_high, port_low] = source_port(&inner.tuple).to_be_bytes();
    let [to_high, to_low] = tunnel.port;
    let [flags, _, _, _] = VXLAN_FLAGS;
    let [vni_high, vni_middle, vni_low, zero] = tunnel.vni;
    let [t, u, v, w, x, y] = way.mac;
    let [k, l, m, n, o, p] = tunnel.mac;
    let [type_high, type_low] = inner.ether_type();
    Some(Around {
        ip,
        udp: [port_high, port_low, to_high, to_low, high, low, 0, 0],
        vxlan: [flags, 0, 0, 0, vni_high, vni_middle, vni_low, zero],
        ethernet: [t, u, v, w, x, y, k, l, m, n, o, p, type_high, type_low],
    })
}

/// Where datagrams of a flow come from: the same port for all of them, and others for others, so that what divides packets
/// by their outer headers divides flows (RFC 7348, 5).
#[inline(always)]
fn source_port(flow: &Tuple) -> u16 {
    /// The ports that are nobody's (RFC 6335, 6).
    const FIRST: u16 = 0xc000;
    /// 2^64 by the golden ratio, whose multiples are spread evenly.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (source, destination) = (flow.source.words(), flow.destination.words());
    let ([a, b], [c, d]) = (flow.source_port, flow.destination_port);
    let ports = u64::from(u32::from_be_bytes([a, b, c, d]));
    let addresses = (source.0 ^ source.1)
        .wrapping_mul(SPREAD)
        .wrapping_add(destination.0 ^ destination.1);
    let mixed = (addresses ^ ports).wrapping_mul(SPREAD);
    FIRST | (mixed >> 48) as u16
}

/// Of an IPv4 header without options, whose own checksum is 0 in it (RFC 1071).
#[inline(always)]
fn checksum(header: &[u8; IPV4_HEADER]) -> [u8; 2] {
    let mut sum = 0;
    let mut at = 0;
    while at < IPV4_HEADER {
        sum += u16::from_be_bytes([header[at], header[at + 1]]) as u32;
        at += 2;
    }
    // Of ten words there is no more to carry after the second time.
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!(folded as u16)).to_be_bytes()
}

/// A packet that is in another one: its bytes from its own Ethernet header on.
struct Inside<'a, P: ?Sized>(&'a P);

impl<P: Bytes + ?Sized> Bytes for Inside<'_, P> {
    #[inline(always)]
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.bytes(at + OVERHEAD)
    }
}

/// Whether a packet is for this end of the tunnel, whatever is in it.
#[inline(always)]
pub fn is_in(outer: &Headers, tunnel: &Tunnel) -> bool {
    let tuple = &outer.tuple;
    tuple.protocol == Protocol::UDP
        && tuple.destination_port == tunnel.port
        && tuple.destination == tunnel.local
}

/// Whether a packet in the tunnel, whose payload is cut into pieces of `piece` bytes or not at all (0), can be taken out by a
/// program. Several datagrams in one stay marked as in a tunnel (up to Linux 6.18 at least), and whoever divides them then
/// finds none. Segments are not divided where they end.
#[inline(always)]
pub fn can_be_taken_out(inner: &Headers, piece: u32) -> bool {
    piece == 0 || inner.tuple.protocol == Protocol::TCP
}

/// The headers of a packet that another node has put into this one, which [is in](is_in) `tunnel`; none where it takes the
/// stack to say what it is.
#[inline(always)]
pub fn inside(packet: &(impl Bytes + ?Sized), outer: &Headers, tunnel: &Tunnel) -> Option<Headers> {
    // A sum over all of it is the stack's to check (RFC 7348, 4.1).
    let [high, low, sums @ ..] = packet.bytes::<4>(UDP_AT + 4)?;
    let datagram = u32::from(u16::from_be_bytes([high, low]));
    if sums != [0, 0] || datagram + IPV4_HEADER as u32 != outer.length {
        return None;
    }
    let [flags @ .., a, b, c, d] = packet.bytes::<VXLAN_HEADER>(VXLAN_AT)?;
    let packet = Inside(packet);
    if flags != VXLAN_FLAGS || [a, b, c, d] != tunnel.vni || packet.bytes::<6>(0)? != tunnel.mac {
        return None;
    }
    let inner = ordinary(&packet)?;
    // What it has to say of congestion on the way is the device's to add, and to judge (RFC 6040, 4.2).
    if outer.ecn == CONGESTED && inner.ecn != CONGESTED {
        return None;
    }
    Some(inner)
}
