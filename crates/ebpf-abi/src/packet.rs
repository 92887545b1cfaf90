//! What a packet's headers say, as far as a router and a table of flows want to know.

use crate::{Address, Endpoint, Protocol};

/// Bytes of a packet, from its Ethernet header on.
pub trait Bytes {
    /// So many of them from there; none where the packet ends before.
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]>;
}

impl Bytes for [u8] {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

/// The length of an Ethernet header (IEEE 802.3), in bytes.
pub const ETHERNET: usize = 14;
/// Where its type is.
pub const ETHER_TYPE: usize = 12;
/// IPv4, as an Ethernet header calls it.
pub const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// The bits of a class of traffic that are about congestion (RFC 3168, 5).
const ECN: u8 = 3;
/// The length of an IPv4 header without options (RFC 791, 3.1).
const IPV4_HEADER: usize = 20;
/// The length of an IPv6 header (RFC 8200, 3).
const IPV6_HEADER: usize = 40;
/// Where the hop limit is in it.
pub const IPV6_HOPS: usize = ETHERNET + 7;
/// Where an IPv4 header's time to live is.
pub const IPV4_HOPS: usize = ETHERNET + 8;
/// Where its checksum is.
pub const IPV4_CHECKSUM: usize = ETHERNET + 10;

/// The ends of a flow and how they speak, in one direction: 40 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Tuple {
    /// Who sends.
    pub source: Address,
    /// Who is to receive.
    pub destination: Address,
    /// In network byte order.
    pub source_port: [u8; 2],
    /// In network byte order.
    pub destination_port: [u8; 2],
    /// TCP or UDP.
    pub protocol: Protocol,
    zero: [u8; 3],
}

impl Tuple {
    /// From one end to another.
    #[inline(always)]
    pub const fn new(source: Endpoint, destination: Endpoint, protocol: Protocol) -> Self {
        Tuple {
            source: source.address,
            destination: destination.address,
            source_port: source.port,
            destination_port: destination.port,
            protocol,
            zero: [0; 3],
        }
    }

    /// The other direction.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Tuple {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            zero: [0; 3],
        }
    }

    /// The same for both directions.
    #[inline(always)]
    pub fn either(&self) -> Self {
        let (source, destination) = (self.source.words(), self.destination.words());
        let is_reversed = match source.0 == destination.0 {
            false => source.0 > destination.0,
            true if source.1 == destination.1 => self.source_port > self.destination_port,
            true => source.1 > destination.1,
        };
        if is_reversed { self.reversed() } else { *self }
    }

    /// Both ends: source and destination.
    pub const fn ends(&self) -> [Endpoint; 2] {
        [
            Endpoint::new(self.source, self.source_port),
            Endpoint::new(self.destination, self.destination_port),
        ]
    }
}

/// The flags of a TCP header (RFC 9293, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u8);

impl Flags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// Asks for a connection.
    #[inline(always)]
    pub const fn asks(self) -> bool {
        self.0 & (Flags::SYN | Flags::ACK | Flags::RST | Flags::FIN) == Flags::SYN
    }

    /// Accepts a connection.
    #[inline(always)]
    pub const fn accepts(self) -> bool {
        self.0 & (Flags::SYN | Flags::ACK | Flags::RST | Flags::FIN) == Flags::SYN | Flags::ACK
    }

    /// Ends a connection, or one direction of it.
    #[inline(always)]
    pub const fn ends(self) -> bool {
        self.0 & (Flags::FIN | Flags::RST) != 0
    }
}

/// The headers of an ordinary packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Whose it is.
    pub tuple: Tuple,
    /// How many routers it may still pass.
    pub hops: u8,
    /// What it has to say of congestion, in the lowest two bits (RFC 3168, 5).
    pub ecn: u8,
    /// No flags where it is not TCP.
    pub flags: Flags,
    /// Of the whole packet, in bytes from the network header on.
    pub length: u32,
    /// Of its network and transport headers, in bytes.
    pub overhead: u32,
}

impl Headers {
    /// The type in the Ethernet header before it.
    #[inline(always)]
    pub fn ether_type(&self) -> [u8; 2] {
        match self.tuple.source.as_v4() {
            Some(_) => IPV4,
            None => IPV6,
        }
    }

    /// The largest packet that this one is sent in, in bytes from the network header on, where its payload is cut into
    /// pieces of `piece` bytes; where it is not cut, which 0 says, all that it carries, whatever its header says of that.
    #[inline(always)]
    pub const fn largest(&self, piece: u32, carried: u32) -> u32 {
        match piece {
            0 if carried > self.length => carried,
            0 => self.length,
            piece => self.overhead + piece,
        }
    }
}

/// Reads an ordinary packet: TCP or UDP, whole, without options of IPv4 and extension headers of IPv6. None where it is
/// anything else, which the host's stack is to make something of.
#[inline(always)]
pub fn ordinary(packet: &(impl Bytes + ?Sized)) -> Option<Headers> {
    match packet.bytes::<2>(ETHER_TYPE)? {
        IPV4 => ordinary_v4(packet),
        IPV6 => ordinary_v6(packet),
        _ => None,
    }
}

#[inline(always)]
fn ordinary_v4(packet: &(impl Bytes + ?Sized)) -> Option<Headers> {
    let [
        version,
        class,
        high,
        low,
        _,
        _,
        fragment,
        offset,
        hops,
        protocol,
        _,
        _,
        ends @ ..,
    ] = packet.bytes::<IPV4_HEADER>(ETHERNET)?;
    // More fragments, or an offset; "don't fragment" is nobody's concern here.
    let is_whole = fragment & 0x3f == 0 && offset == 0;
    if version != 0x45 || !is_whole {
        return None;
    }
    let [a, b, c, d, e, f, g, h] = ends;
    let ends = (Address::v4([a, b, c, d]), Address::v4([e, f, g, h]));
    let length = u32::from(u16::from_be_bytes([high, low]));
    let network = Network {
        ends,
        protocol: Protocol(protocol),
        hops,
        ecn: class & ECN,
        length,
        header: IPV4_HEADER,
    };
    transport(packet, network)
}

#[inline(always)]
fn ordinary_v6(packet: &(impl Bytes + ?Sized)) -> Option<Headers> {
    let [version, class, _, _, high, low, next, hops] = packet.bytes::<8>(ETHERNET)?;
    if version >> 4 != 6 {
        return None;
    }
    let ends = ends_v6(packet)?;
    // Which no packet may have (RFC 4942, 2.2): here they would be somebody's of IPv4.
    if ends.0.as_v4().is_some() || ends.1.as_v4().is_some() {
        return None;
    }
    let length = IPV6_HEADER as u32 + u32::from(u16::from_be_bytes([high, low]));
    let network = Network {
        ends,
        protocol: Protocol(next),
        hops,
        ecn: (class >> 4) & ECN,
        length,
        header: IPV6_HEADER,
    };
    transport(packet, network)
}

#[inline(always)]
fn ends_v6(packet: &(impl Bytes + ?Sized)) -> Option<(Address, Address)> {
    let source = packet.bytes::<16>(ETHERNET + 8)?;
    let destination = packet.bytes::<16>(ETHERNET + 24)?;
    Some((Address(source), Address(destination)))
}

/// What a network header says.
struct Network {
    ends: (Address, Address),
    protocol: Protocol,
    hops: u8,
    ecn: u8,
    length: u32,
    /// Its own length in bytes.
    header: usize,
}

#[inline(always)]
fn transport(packet: &(impl Bytes + ?Sized), network: Network) -> Option<Headers> {
    let Network {
        ends,
        protocol,
        hops,
        ecn,
        length,
        header,
    } = network;
    const UDP_HEADER: u32 = 8;
    // Without options.
    const TCP_HEADER: u32 = 20;
    let tuple = ported(packet, ends, protocol, ETHERNET + header)?;
    let (flags, own) = if protocol == Protocol::TCP {
        let [offset, flags] = packet.bytes::<2>(ETHERNET + header + 12)?;
        let own = u32::from(offset >> 4) * 4;
        if own < TCP_HEADER {
            return None;
        }
        (Flags(flags), own)
    } else {
        (Flags(0), UDP_HEADER)
    };
    Some(Headers {
        tuple,
        hops,
        ecn,
        flags,
        length,
        overhead: header as u32 + own,
    })
}

/// Of TCP and UDP, whose ports are at the same place.
#[inline(always)]
fn ported(
    packet: &(impl Bytes + ?Sized),
    (source, destination): (Address, Address),
    protocol: Protocol,
    at: usize,
) -> Option<Tuple> {
    if protocol != Protocol::TCP && protocol != Protocol::UDP {
        return None;
    }
    let [a, b, c, d] = packet.bytes::<4>(at)?;
    Some(Tuple::new(
        Endpoint::new(source, [a, b]),
        Endpoint::new(destination, [c, d]),
        protocol,
    ))
}

/// Whose a packet is, ordinary or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// A flow's of TCP or UDP.
    Flow(Tuple),
    /// No flow's of these: another protocol's, or a later fragment, whose first one came by before.
    Nobodys,
    /// That cannot be read; what is not IP among it.
    Unreadable,
}

/// Reads whose a packet is, with options, extension headers and as the first of fragments, too.
#[inline(always)]
pub fn whose(packet: &(impl Bytes + ?Sized)) -> Whose {
    match packet.bytes::<2>(ETHER_TYPE) {
        Some(IPV4) => whose_v4(packet),
        Some(IPV6) => whose_v6(packet),
        _ => Whose::Unreadable,
    }
}

#[inline(always)]
fn of(packet: &(impl Bytes + ?Sized), ends: (Address, Address), protocol: Protocol, at: usize) -> Whose {
    if protocol != Protocol::TCP && protocol != Protocol::UDP {
        return Whose::Nobodys;
    }
    match ported(packet, ends, protocol, at) {
        Some(tuple) => Whose::Flow(tuple),
        None => Whose::Unreadable,
    }
}

#[inline(always)]
fn whose_v4(packet: &(impl Bytes + ?Sized)) -> Whose {
    let Some(header) = packet.bytes::<IPV4_HEADER>(ETHERNET) else {
        return Whose::Unreadable;
    };
    let [version, _, _, _, _, _, high, low, _, protocol, _, _, ends @ ..] = header;
    if u16::from_be_bytes([high, low]) & 0x1fff != 0 {
        return Whose::Nobodys;
    }
    let [a, b, c, d, e, f, g, h] = ends;
    let ends = (Address::v4([a, b, c, d]), Address::v4([e, f, g, h]));
    let length = usize::from(version & 0x0f) * 4;
    if length < IPV4_HEADER {
        return Whose::Unreadable;
    }
    of(packet, ends, Protocol(protocol), ETHERNET + length)
}

/// How many extension headers are passed over: as many as RFC 8200 (4.1) has before the transport's, with destination
/// options twice.
const EXTENSIONS: usize = 6;

#[inline(always)]
fn whose_v6(packet: &(impl Bytes + ?Sized)) -> Whose {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const OPTIONS: u8 = 60;
    let (Some([next]), Some(ends)) = (packet.bytes::<1>(ETHERNET + 6), ends_v6(packet)) else {
        return Whose::Unreadable;
    };
    let (mut next, mut at) = (next, ETHERNET + IPV6_HEADER);
    let mut passed = 0;
    while passed < EXTENSIONS {
        let is_extension = matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | OPTIONS);
        if !is_extension {
            return of(packet, ends, Protocol(next), at);
        }
        let Some([after, length, high, low]) = packet.bytes::<4>(at) else {
            return Whose::Unreadable;
        };
        at += match next {
            FRAGMENT if u16::from_be_bytes([high, low]) & 0xfff8 != 0 => return Whose::Nobodys,
            FRAGMENT => 8,
            // RFC 4302, 2.2: in words of four bytes, less two.
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            // In words of eight bytes, without the first.
            _ => (usize::from(length) + 1) * 8,
        };
        next = after;
        passed += 1;
    }
    match next {
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | OPTIONS => Whose::Unreadable,
        _ => of(packet, ends, Protocol(next), at),
    }
}

/// The checksum of an IPv4 header whose time to live has gone down by one (RFC 1624, of the sum as it stands there).
#[inline(always)]
pub const fn checksum_after_hop(checksum: [u8; 2]) -> [u8; 2] {
    // ~m + m' of the word that has the time to live in its upper half is -0x0100; the checksum is the sum's complement. All
    // ones are the zero that a sum from scratch does not give.
    let sum = u16::from_be_bytes(checksum) as u32 + 0x0100;
    let folded = sum + (sum >= 0xffff) as u32;
    (folded as u16).to_be_bytes()
}
