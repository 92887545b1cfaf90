//! Rules as data: clauses that print as nft writes them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use podnet_core::cluster::Family;
use podnet_ebpf_abi::path::TRANSLATED;
use podnet_linux::netfilter::wire::Attributes;

use super::model::{SetName, Verdict, digit};
use super::program::Program;
use crate::services::OURS;

/// A rule: its clauses from left to right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule(pub Vec<Clause>);

/// A part of a rule: a condition, or what is done when all conditions before it hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clause {
    /// The packet's family.
    Family(Family),
    /// The destination is in a set.
    DestinationIn(Family, SetName),
    /// The destination is in a range.
    DestinationWithin(IpNet),
    /// The destination is not in a range.
    DestinationNotWithin(IpNet),
    /// The source is in a range.
    SourceWithin(IpNet),
    /// The destination is an address of this node.
    DestinationIsLocal,
    /// Source and destination together are in a set.
    PairIn(Family, SetName),
    /// The source is in a set.
    SourceIn(Family, SetName),
    /// Keep the source in a set for so many seconds from now.
    KeepSource(Family, SetName, u32),
    /// The source is another one.
    SourceIsNot(IpAddr),
    /// The source is an address of this node.
    SourceIsLocal,
    /// The packet leaves by this link.
    Leaves(&'static str),
    /// The packet came by another link than this one.
    CameNotBy(&'static str),
    /// The connection's destination was translated.
    Translated,
    /// The connection's destination or source was translated, by whomever.
    TranslatedAtAll,
    /// The packet carries [`OURS`].
    Marked,
    /// Put [`OURS`] on the packet.
    Mark,
    /// Take [`OURS`] off the packet.
    Unmark,
    /// `meta mark set`: the bit by which programs at links know that the flow is translated.
    Note,
    /// The packet answers one that began the connection.
    Answers,
    /// The transport protocol, by number.
    Protocol(u8),
    /// An ICMP echo request.
    EchoRequest(Family),
    /// A TCP segment that does not begin a connection.
    NotASyn,
    /// An SCTP packet that does not begin an association.
    NotAnInit,
    /// Connection tracking cannot place the packet, or does not look at it.
    Unplaced,
    /// ICMPv6 of these types, first and last.
    Icmpv6(u8, u8),
    /// The packet came by no link: it is the node's own. (Frames between ports of a bridge seem so, too.)
    CameByNone,
    /// The packet leaves by no link: it is for the node itself.
    LeavesByNone,
    /// The packet leaves by some link.
    LeavesBySome,
    /// The destination's port is in a set.
    PortIn(SetName),
    /// Destination, protocol and port together are in a set.
    SocketIn(Family, SetName),
    /// Verdict by the source,
    SourceVerdict(Family, SetName),
    /// or by the destination,
    DestinationVerdict(Family, SetName),
    /// or by the destination's port.
    PortVerdict(SetName),
    /// Verdict by what was asked for.
    ServiceVerdict(Family, Asked, SetName),
    /// Verdict by number: that of one of so many.
    VerdictByNumber(Draw, u32, SetName),
    /// Translate to one of some endpoints.
    TranslateToOneOf(Family, Choice),
    /// Translate to what a map has for protocol and port.
    TranslateByPort(Family, SetName),
    /// Translate to an address and port.
    TranslateToSocket(SocketAddr),
    /// Translate to an address.
    TranslateTo(IpAddr),
    /// Give the packet the address of the link it leaves by.
    Masquerade,
    /// Refuse with a TCP reset.
    Reset,
    /// Refuse with ICMP port unreachable.
    PortUnreachable,
    /// Go on there.
    Verdict(Verdict),
}

/// What of a packet says which service is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// Destination, protocol and port.
    Address,
    /// Protocol and port: the destination is the node's.
    Port,
}

/// How one of some numbers is found for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Draw {
    /// By lot.
    Lot,
    /// By a hash of the client's address.
    Client(Family),
    /// By a hash of the client's address and port.
    ClientAndPort(Family),
}

/// What hashes begin with: every node's with the same.
pub(crate) const SEED: u32 = 0x706f_646e;

impl Draw {
    fn of(self, count: u32) -> String {
        match self {
            Draw::Lot => format!("numgen random mod {count}"),
            Draw::Client(family) => format!("jhash {} saddr mod {count} seed {SEED:#x}", ip(family)),
            Draw::ClientAndPort(family) => {
                format!("jhash {} saddr . th sport mod {count} seed {SEED:#x}", ip(family))
            }
        }
    }
}

/// A choice among some numbered endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What an endpoint is found by, besides its number.
    pub asked: Asked,
    /// How the number is found.
    pub draw: Draw,
    /// Where endpoints are found.
    pub map: SetName,
    /// How many numbers there are.
    pub count: u32,
    /// The first one; the others follow.
    pub first: u32,
}

impl Rule {
    /// The kernel's list of expressions.
    pub(crate) fn expressions(&self) -> Attributes {
        let mut program = Program::default();
        self.0.iter().for_each(|clause| program.clause(clause));
        program.into_expressions()
    }

    /// A short fingerprint of the rule's text and program, kept as its comment in the kernel: so that we recognise our
    /// own rules there without guessing how the kernel writes an expression back.
    pub(crate) fn fingerprint(&self) -> String {
        // FNV-1a, 64 bits: stable over builds and machines.
        let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let text = self.to_string();
        let hash = text
            .as_bytes()
            .iter()
            .chain(self.expressions().as_slice())
            .fold(0xcbf2_9ce4_8422_2325, fold);
        format!("podnet {hash:016x}")
    }
}

impl Clause {
    /// The set that a condition of policies looks into.
    pub(crate) fn set(&self) -> Option<&str> {
        match self {
            Clause::DestinationIn(_, set)
            | Clause::SourceIn(_, set)
            | Clause::PairIn(_, set)
            | Clause::PortIn(set)
            | Clause::SocketIn(_, set)
            | Clause::SourceVerdict(_, set)
            | Clause::DestinationVerdict(_, set)
            | Clause::PortVerdict(set) => Some(set),
            _ => None,
        }
    }
}

/// An address as it stands in packets.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

impl Asked {
    fn of(self, family: Family) -> String {
        match self {
            Asked::Address => format!("{} daddr . meta l4proto . th dport", ip(family)),
            Asked::Port => "meta l4proto . th dport".into(),
        }
    }
}

impl Choice {
    fn of(&self, family: Family) -> String {
        let (asked, number, map) = (self.asked.of(family), self.draw.of(self.count), &self.map);
        let offset = match self.first {
            0 => String::new(),
            first => format!(" offset {first}"),
        };
        format!("{asked} . {number}{offset} map @{map}")
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Clause::Family(family) => write!(f, "meta nfproto ipv{}", digit(*family)),
            Clause::DestinationIn(family, set) => write!(f, "{} daddr @{set}", ip(*family)),
            Clause::DestinationWithin(range) => write!(f, "{} daddr {range}", ip(Family::of(range.addr()))),
            Clause::DestinationNotWithin(range) => {
                write!(f, "{} daddr != {range}", ip(Family::of(range.addr())))
            }
            Clause::SourceWithin(range) => write!(f, "{} saddr {range}", ip(Family::of(range.addr()))),
            Clause::DestinationIsLocal => f.write_str("fib daddr type local"),
            Clause::PairIn(family, set) => write!(f, "{0} saddr . {0} daddr @{set}", ip(*family)),
            Clause::SourceIsNot(address) => write!(f, "{} saddr != {address}", ip(Family::of(*address))),
            Clause::SourceIsLocal => f.write_str("fib saddr type local"),
            Clause::Leaves(link) => write!(f, "oifname \"{link}\""),
            Clause::CameNotBy(link) => write!(f, "iifname != \"{link}\""),
            Clause::Translated => f.write_str("ct status dnat"),
            Clause::TranslatedAtAll => f.write_str("ct status snat,dnat"),
            Clause::Marked => write!(f, "meta mark & {OURS:#010x} != 0x00000000"),
            Clause::Mark => write!(f, "meta mark set meta mark | {OURS:#010x}"),
            Clause::Unmark => write!(f, "meta mark set meta mark & {:#010x}", !OURS),
            Clause::Note => write!(f, "meta mark set meta mark | {TRANSLATED:#010x}"),
            Clause::Answers => f.write_str("ct direction reply"),
            Clause::Protocol(6) => f.write_str("meta l4proto tcp"),
            Clause::Protocol(number) => write!(f, "meta l4proto {number}"),
            Clause::EchoRequest(Family::V4) => f.write_str("icmp type echo-request"),
            Clause::EchoRequest(Family::V6) => f.write_str("icmpv6 type echo-request"),
            Clause::NotASyn => f.write_str("meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn"),
            Clause::NotAnInit => f.write_str("meta l4proto sctp @th,96,8 != 1"),
            Clause::Unplaced => f.write_str("ct state invalid,untracked"),
            Clause::Icmpv6(first, last) => write!(f, "icmpv6 type {first}-{last}"),
            Clause::CameByNone => f.write_str("iifname \"\""),
            Clause::LeavesByNone => f.write_str("oifname \"\""),
            Clause::LeavesBySome => f.write_str("oifname != \"\""),
            Clause::PortIn(set) => write!(f, "th dport @{set}"),
            Clause::SocketIn(family, set) => write!(f, "{} @{set}", Asked::Address.of(*family)),
            Clause::SourceVerdict(family, map) => write!(f, "{} saddr vmap @{map}", ip(*family)),
            Clause::DestinationVerdict(family, map) => write!(f, "{} daddr vmap @{map}", ip(*family)),
            Clause::PortVerdict(map) => write!(f, "th dport vmap @{map}"),
            Clause::ServiceVerdict(family, asked, map) => write!(f, "{} vmap @{map}", asked.of(*family)),
            Clause::TranslateToOneOf(family, choice) => {
                write!(f, "dnat {} to {}", ip(*family), choice.of(*family))
            }
            Clause::VerdictByNumber(draw, count, map) => write!(f, "{} vmap @{map}", draw.of(*count)),
            Clause::SourceIn(family, set) => write!(f, "{} saddr @{set}", ip(*family)),
            Clause::KeepSource(family, set, seconds) => {
                write!(f, "update @{set} {{ {} saddr timeout {seconds}s }}", ip(*family))
            }
            Clause::TranslateToSocket(socket) => {
                write!(f, "dnat {} to {socket}", ip(Family::of(socket.ip())))
            }
            Clause::TranslateByPort(family, map) => {
                write!(f, "dnat {} to meta l4proto . th dport map @{map}", ip(*family))
            }
            Clause::TranslateTo(address) => write!(f, "dnat {} to {address}", ip(Family::of(*address))),
            Clause::Masquerade => f.write_str("masquerade"),
            Clause::Reset => f.write_str("reject with tcp reset"),
            Clause::PortUnreachable => f.write_str("reject with icmpx port-unreachable"),
            Clause::Verdict(verdict) => write!(f, "{verdict}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, clause) in self.0.iter().enumerate() {
            let space = if index > 0 { " " } else { "" };
            write!(f, "{space}{clause}")?;
        }
        Ok(())
    }
}
