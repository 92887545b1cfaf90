//! Rules as data: clauses that print as nft writes them and encode into the kernel's expressions.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use podnet_core::cluster::Family;

use super::model::{Verdict, digit};
use super::wire::Attributes;

/// A rule: its clauses from left to right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule(pub Vec<Clause>);

/// A part of a rule: a condition, or what is done when all conditions before it hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clause {
    /// The packet's family.
    Family(Family),
    /// The destination is in a set.
    DestinationIn(Family, &'static str),
    /// The destination is in a range.
    DestinationWithin(IpNet),
    /// The source is in a range.
    SourceWithin(IpNet),
    /// The destination is an address of this node.
    DestinationIsLocal,
    /// Source and destination together are in a set.
    PairIn(Family, &'static str),
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
    /// The packet answers one that began the connection.
    Answers,
    /// The connection is in one of these states.
    State(State),
    /// The transport protocol, by number.
    Protocol(u8),
    /// An ICMP echo request.
    EchoRequest(Family),
    /// Verdict by destination, protocol and port.
    ServiceVerdict(Family, &'static str),
    /// Translate to one of so many endpoints, found by destination, protocol, port and a random number.
    TranslateToOneOf(Family, &'static str, u32),
    /// Translate to what a map has for protocol and port.
    TranslateByPort(Family, &'static str),
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

/// States of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Known, or expected by one that is.
    EstablishedOrRelated,
    /// What connection tracking cannot place.
    Invalid,
}

impl State {
    /// The kernel's bits (NF_CT_STATE_BIT).
    fn bits(self) -> u32 {
        match self {
            State::Invalid => 1,
            State::EstablishedOrRelated => 2 | 4,
        }
    }
}

/// 32-bit registers; a 16-byte one overlays four of them.
const REGISTER: u32 = 8;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
/// IPS_DST_NAT.
const DESTINATION_TRANSLATED: u32 = 1 << 5;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const IFNAMSIZ: usize = 16;

impl Rule {
    /// The kernel's list of expressions.
    pub(crate) fn expressions(&self) -> Attributes {
        let mut program = Program(Attributes::new());
        self.0.iter().for_each(|clause| program.clause(clause));
        program.0
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

/// A rule's expressions in the making.
struct Program(Attributes);

impl Program {
    fn expression(&mut self, name: &str, data: Attributes) {
        let expression = Attributes::new().text(1, name).nest(2, data);
        self.0 = std::mem::take(&mut self.0).nest(1, expression);
    }

    fn payload(&mut self, base: u32, offset: usize, length: usize, register: u32) {
        let data = Attributes::new()
            .u32(1, register)
            .u32(2, base)
            .u32(3, offset as u32)
            .u32(4, length as u32);
        self.expression("payload", data);
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.expression("meta", Attributes::new().u32(1, register).u32(2, key));
    }

    fn compare(&mut self, operator: u32, value: &[u8]) {
        let data = Attributes::new()
            .u32(1, REGISTER)
            .u32(2, operator)
            .nest(3, Attributes::new().bytes(1, value));
        self.expression("cmp", data);
    }

    fn mask(&mut self, mask: &[u8]) {
        let data = Attributes::new()
            .u32(1, REGISTER)
            .u32(2, REGISTER)
            .u32(3, mask.len() as u32)
            .nest(4, Attributes::new().bytes(1, mask))
            .nest(5, Attributes::new().bytes(1, &vec![0; mask.len()]));
        self.expression("bitwise", data);
    }

    fn lookup(&mut self, set: &str, destination: Option<u32>) {
        let data = Attributes::new().text(1, set).u32(2, REGISTER);
        let data = match destination {
            Some(register) => data.u32(3, register),
            None => data,
        };
        self.expression("lookup", data);
    }

    fn connection(&mut self, key: u32) {
        self.expression("ct", Attributes::new().u32(1, REGISTER).u32(2, key));
    }

    fn within(&mut self, range: IpNet, end: End) {
        let family = Family::of(range.addr());
        self.family(family);
        self.address(family, end, REGISTER);
        self.mask(&octets(range.netmask()));
        self.compare(EQUAL, &octets(range.network()));
    }

    /// Whether an address is one of this node's.
    fn local(&mut self, end: End) {
        const ADDRESS_TYPE: u32 = 3;
        const LOCAL: u32 = 2;
        let by = match end {
            End::Source => 1,
            End::Destination => 2,
        };
        let data = Attributes::new().u32(1, REGISTER).u32(2, ADDRESS_TYPE).u32(3, by);
        self.expression("fib", data);
        self.compare(EQUAL, &LOCAL.to_ne_bytes());
    }

    fn family(&mut self, family: Family) {
        self.meta(META_NFPROTO, REGISTER);
        self.compare(EQUAL, &[nfproto(family)]);
    }

    fn address(&mut self, family: Family, end: End, register: u32) {
        let (source, length) = match family {
            Family::V4 => (12, 4),
            Family::V6 => (8, 16),
        };
        let offset = if end == End::Destination {
            source + length
        } else {
            source
        };
        self.payload(NETWORK_HEADER, offset, length, register);
    }

    /// Destination, protocol and port side by side; returns the register after them.
    fn frontend(&mut self, family: Family) -> u32 {
        self.family(family);
        self.address(family, End::Destination, REGISTER);
        let next = REGISTER + words(family);
        self.meta(META_L4PROTO, next);
        self.payload(TRANSPORT_HEADER, 2, 2, next + 1);
        next + 2
    }

    fn nat(&mut self, family: Family, port_register: Option<u32>) {
        const DESTINATION: u32 = 1;
        let data = Attributes::new()
            .u32(1, DESTINATION)
            .u32(2, u32::from(nfproto(family)))
            .u32(3, REGISTER);
        let data = match port_register {
            Some(register) => data.u32(5, register),
            None => data,
        };
        self.expression("nat", data);
    }

    fn clause(&mut self, clause: &Clause) {
        match clause {
            Clause::Family(family) => self.family(*family),
            Clause::DestinationIn(family, set) => {
                self.family(*family);
                self.address(*family, End::Destination, REGISTER);
                self.lookup(set, None);
            }
            Clause::DestinationWithin(range) => self.within(*range, End::Destination),
            Clause::SourceWithin(range) => self.within(*range, End::Source),
            Clause::DestinationIsLocal => self.local(End::Destination),
            Clause::PairIn(family, set) => {
                self.family(*family);
                self.address(*family, End::Source, REGISTER);
                self.address(*family, End::Destination, REGISTER + words(*family));
                self.lookup(set, None);
            }
            Clause::SourceIsNot(address) => {
                let family = Family::of(*address);
                self.family(family);
                self.address(family, End::Source, REGISTER);
                self.compare(NOT_EQUAL, &octets(*address));
            }
            Clause::SourceIsLocal => self.local(End::Source),
            Clause::Leaves(link) => {
                self.meta(META_OIFNAME, REGISTER);
                self.compare(EQUAL, &link_name(link));
            }
            Clause::CameNotBy(link) => {
                self.meta(META_IIFNAME, REGISTER);
                self.compare(NOT_EQUAL, &link_name(link));
            }
            Clause::Translated => {
                self.connection(CT_STATUS);
                self.mask(&DESTINATION_TRANSLATED.to_ne_bytes());
                self.compare(NOT_EQUAL, &[0; 4]);
            }
            Clause::Answers => {
                const REPLY: u8 = 1;
                self.connection(CT_DIRECTION);
                self.compare(EQUAL, &[REPLY]);
            }
            Clause::State(state) => {
                self.connection(CT_STATE);
                self.mask(&state.bits().to_ne_bytes());
                self.compare(NOT_EQUAL, &[0; 4]);
            }
            Clause::Protocol(number) => {
                self.meta(META_L4PROTO, REGISTER);
                self.compare(EQUAL, &[*number]);
            }
            Clause::EchoRequest(family) => {
                let (protocol, kind) = match family {
                    Family::V4 => (1, 8),
                    Family::V6 => (58, 128),
                };
                self.clause(&Clause::Protocol(protocol));
                self.payload(TRANSPORT_HEADER, 0, 1, REGISTER);
                self.compare(EQUAL, &[kind]);
            }
            Clause::ServiceVerdict(family, map) => {
                self.frontend(*family);
                self.lookup(map, Some(0));
            }
            Clause::TranslateToOneOf(family, map, count) => {
                const RANDOM: u32 = 1;
                let next = self.frontend(*family);
                self.expression(
                    "numgen",
                    Attributes::new().u32(1, next).u32(2, *count).u32(3, RANDOM),
                );
                self.lookup(map, Some(REGISTER));
                self.nat(*family, Some(REGISTER + words(*family)));
            }
            Clause::TranslateByPort(family, map) => {
                self.family(*family);
                self.meta(META_L4PROTO, REGISTER);
                self.payload(TRANSPORT_HEADER, 2, 2, REGISTER + 1);
                self.lookup(map, Some(REGISTER));
                self.nat(*family, Some(REGISTER + words(*family)));
            }
            Clause::TranslateTo(address) => {
                let value = Attributes::new().bytes(1, &octets(*address));
                self.expression("immediate", Attributes::new().u32(1, REGISTER).nest(2, value));
                self.nat(Family::of(*address), None);
            }
            Clause::Masquerade => self.expression("masq", Attributes::new()),
            Clause::Reset => self.expression("reject", Attributes::new().u32(1, 1).bytes(2, &[0])),
            Clause::PortUnreachable => self.expression("reject", Attributes::new().u32(1, 2).bytes(2, &[1])),
            Clause::Verdict(verdict) => {
                let data = Attributes::new().u32(1, 0).nest(2, encode_verdict(verdict));
                self.expression("immediate", data);
            }
        }
    }
}

/// A link's name as the kernel compares it.
fn link_name(link: &str) -> Vec<u8> {
    let mut name = link.as_bytes().to_vec();
    name.resize(IFNAMSIZ, 0);
    name
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Source,
    Destination,
}

/// NFTA_DATA_VERDICT: how verdicts stand in rules and in elements.
pub(crate) fn encode_verdict(verdict: &Verdict) -> Attributes {
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    let inner = Attributes::new().u32(1, i32::cast_unsigned(code));
    let inner = match chain {
        Some(chain) => inner.text(2, chain),
        None => inner,
    };
    Attributes::new().nest(2, inner)
}

fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn words(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
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

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Clause::Family(family) => write!(f, "meta nfproto ipv{}", digit(*family)),
            Clause::DestinationIn(family, set) => write!(f, "{} daddr @{set}", ip(*family)),
            Clause::DestinationWithin(range) => write!(f, "{} daddr {range}", ip(Family::of(range.addr()))),
            Clause::SourceWithin(range) => write!(f, "{} saddr {range}", ip(Family::of(range.addr()))),
            Clause::DestinationIsLocal => f.write_str("fib daddr type local"),
            Clause::PairIn(family, set) => write!(f, "{0} saddr . {0} daddr @{set}", ip(*family)),
            Clause::SourceIsNot(address) => write!(f, "{} saddr != {address}", ip(Family::of(*address))),
            Clause::SourceIsLocal => f.write_str("fib saddr type local"),
            Clause::Leaves(link) => write!(f, "oifname \"{link}\""),
            Clause::CameNotBy(link) => write!(f, "iifname != \"{link}\""),
            Clause::Translated => f.write_str("ct status dnat"),
            Clause::Answers => f.write_str("ct direction reply"),
            Clause::State(State::EstablishedOrRelated) => f.write_str("ct state established,related"),
            Clause::State(State::Invalid) => f.write_str("ct state invalid"),
            Clause::Protocol(6) => f.write_str("meta l4proto tcp"),
            Clause::Protocol(number) => write!(f, "meta l4proto {number}"),
            Clause::EchoRequest(Family::V4) => f.write_str("icmp type echo-request"),
            Clause::EchoRequest(Family::V6) => f.write_str("icmpv6 type echo-request"),
            Clause::ServiceVerdict(family, map) => {
                write!(f, "{} daddr . meta l4proto . th dport vmap @{map}", ip(*family))
            }
            Clause::TranslateToOneOf(family, map, count) => {
                let ip = ip(*family);
                write!(
                    f,
                    "dnat {ip} to {ip} daddr . meta l4proto . th dport . numgen random mod {count} map @{map}"
                )
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
