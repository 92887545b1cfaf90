//! From a rule's clauses to the kernel's expressions.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use podnet_core::cluster::Family;
use podnet_ebpf_abi::path::TRANSLATED;
use podnet_linux::netfilter::expression::Comparison::{Equal, NotEqual};
use podnet_linux::netfilter::expression::{
    Comparison, Expressions, META_IIFNAME, META_L4PROTO, META_MARK, META_OIFNAME, NETWORK_HEADER,
    NFPROTO_IPV4, NFPROTO_IPV6, REGISTER, TRANSPORT_HEADER, VERDICT,
};
use podnet_linux::netfilter::wire::Attributes;

use super::model::Verdict;
use super::rule::{Asked, Choice, Clause, Draw, SEED, octets};
use crate::services::OURS;

const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
/// IPS_SRC_NAT.
const SOURCE: u32 = 1 << 4;
/// IPS_DST_NAT.
const DESTINATION: u32 = 1 << 5;

/// A rule's expressions in the making.
#[derive(Default)]
pub(super) struct Program(Expressions);

impl Program {
    pub(super) fn into_expressions(self) -> Attributes {
        self.0.into_attributes()
    }

    pub(super) fn clause(&mut self, clause: &Clause) {
        match clause {
            Clause::Family(family) => self.0.family(nfproto(*family)),
            Clause::DestinationIn(family, set) => self.destination_in(*family, set),
            Clause::DestinationWithin(range) => self.within(*range, End::Destination, Equal),
            Clause::DestinationNotWithin(range) => self.within(*range, End::Destination, NotEqual),
            Clause::SourceWithin(range) => self.within(*range, End::Source, Equal),
            Clause::DestinationIsLocal => self.local(End::Destination),
            Clause::PairIn(family, set) => self.pair_in(*family, set),
            Clause::SourceIsNot(address) => self.source_is_not(*address),
            Clause::SourceIsLocal => self.local(End::Source),
            Clause::Leaves(link) => self.0.link(META_OIFNAME, Equal, link),
            Clause::CameNotBy(link) => self.0.link(META_IIFNAME, NotEqual, link),
            Clause::Translated => self.translated(DESTINATION),
            Clause::TranslatedAtAll => self.translated(SOURCE | DESTINATION),
            Clause::Marked => self.marked(),
            Clause::Mark => self.mark(OURS, OURS),
            Clause::Unmark => self.mark(OURS, 0),
            Clause::Note => self.mark(TRANSLATED, TRANSLATED),
            Clause::Answers => self.answers(),
            Clause::Protocol(number) => self.0.protocol(*number),
            Clause::EchoRequest(family) => self.echo_request(*family),
            Clause::NotASyn => {
                const TCP: u8 = 6;
                const FLAGS: usize = 13;
                const FIN_SYN_RST_ACK: u8 = 0x17;
                const SYN: u8 = 0x02;
                self.0.protocol(TCP);
                self.0.payload(TRANSPORT_HEADER, FLAGS, 1, REGISTER);
                self.0.mask(&[FIN_SYN_RST_ACK]);
                self.0.compare(NotEqual, &[SYN]);
            }
            Clause::NotAnInit => {
                const SCTP: u8 = 132;
                // RFC 9260, 3.2: the first chunk's type follows the common header.
                const FIRST_CHUNK: usize = 12;
                const INIT: u8 = 1;
                self.0.protocol(SCTP);
                self.0.payload(TRANSPORT_HEADER, FIRST_CHUNK, 1, REGISTER);
                self.0.compare(NotEqual, &[INIT]);
            }
            Clause::Unplaced => self.unplaced(),
            Clause::Icmpv6(first, last) => {
                const ICMPV6: u8 = 58;
                self.0.protocol(ICMPV6);
                self.0.payload(TRANSPORT_HEADER, 0, 1, REGISTER);
                self.0.within(&[*first], &[*last]);
            }
            Clause::CameByNone => self.0.link(META_IIFNAME, Equal, ""),
            Clause::LeavesByNone => self.0.link(META_OIFNAME, Equal, ""),
            Clause::LeavesBySome => self.0.link(META_OIFNAME, NotEqual, ""),
            Clause::PortIn(set) => {
                self.0.payload(TRANSPORT_HEADER, 2, 2, REGISTER);
                self.0.lookup(set, None);
            }
            Clause::SocketIn(family, set) => {
                self.asked(*family, Asked::Address);
                self.0.lookup(set, None);
            }
            Clause::SourceVerdict(family, map) => self.verdict_by(*family, End::Source, map),
            Clause::DestinationVerdict(family, map) => self.verdict_by(*family, End::Destination, map),
            Clause::PortVerdict(map) => {
                self.0.payload(TRANSPORT_HEADER, 2, 2, REGISTER);
                self.0.lookup(map, Some(VERDICT));
            }
            Clause::ServiceVerdict(family, asked, map) => self.service_verdict(*family, *asked, map),
            Clause::TranslateToOneOf(family, choice) => {
                self.choose(*family, choice);
                self.nat(*family, Some(REGISTER + words(*family)));
            }
            Clause::VerdictByNumber(draw, count, map) => {
                self.number(REGISTER, *draw, *count, 0);
                self.0.lookup(map, Some(VERDICT));
            }
            Clause::SourceIn(family, set) => {
                self.0.family(nfproto(*family));
                self.address(*family, End::Source, REGISTER);
                self.0.lookup(set, None);
            }
            Clause::KeepSource(family, set, seconds) => self.keep_source(*family, set, *seconds),
            Clause::TranslateToSocket(socket) => self.translate_to_socket(*socket),
            Clause::TranslateByPort(family, map) => self.translate_by_port(*family, map),
            Clause::TranslateTo(address) => self.translate_to(*address),
            Clause::Masquerade => self.0.add("masq", Attributes::new()),
            Clause::Reset => self.reject(1, 0),
            Clause::PortUnreachable => self.reject(2, 1),
            Clause::Verdict(verdict) => self.0.immediate(VERDICT, encode_verdict(verdict)),
        }
    }

    fn within(&mut self, range: IpNet, end: End, comparison: Comparison) {
        let family = Family::of(range.addr());
        self.0.family(nfproto(family));
        self.address(family, end, REGISTER);
        self.0.mask(&octets(range.netmask()));
        self.0.compare(comparison, &octets(range.network()));
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
        self.0.add("fib", data);
        self.0.compare(Equal, &LOCAL.to_ne_bytes());
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
        self.0.payload(NETWORK_HEADER, offset, length, register);
    }

    /// What is asked for, field by field side by side; returns the register after them.
    fn asked(&mut self, family: Family, asked: Asked) -> u32 {
        self.0.family(nfproto(family));
        let next = match asked {
            Asked::Port => REGISTER,
            Asked::Address => {
                self.address(family, End::Destination, REGISTER);
                REGISTER + words(family)
            }
        };
        self.0.meta(META_L4PROTO, next);
        self.0.payload(TRANSPORT_HEADER, 2, 2, next + 1);
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
        self.0.add("nat", data);
    }

    fn destination_in(&mut self, family: Family, set: &str) {
        self.0.family(nfproto(family));
        self.address(family, End::Destination, REGISTER);
        self.0.lookup(set, None);
    }

    fn verdict_by(&mut self, family: Family, end: End, map: &str) {
        self.0.family(nfproto(family));
        self.address(family, end, REGISTER);
        self.0.lookup(map, Some(VERDICT));
    }

    fn unplaced(&mut self) {
        const INVALID_OR_UNTRACKED: u32 = 1 | 1 << 6;
        self.0.connection(CT_STATE);
        self.0.mask(&INVALID_OR_UNTRACKED.to_ne_bytes());
        self.0.compare(NotEqual, &[0; 4]);
    }

    fn pair_in(&mut self, family: Family, set: &str) {
        self.0.family(nfproto(family));
        self.address(family, End::Source, REGISTER);
        self.address(family, End::Destination, REGISTER + words(family));
        self.0.lookup(set, None);
    }

    fn source_is_not(&mut self, address: IpAddr) {
        let family = Family::of(address);
        self.0.family(nfproto(family));
        self.address(family, End::Source, REGISTER);
        self.0.compare(NotEqual, &octets(address));
    }

    fn translated(&mut self, which: u32) {
        self.0.connection(CT_STATUS);
        self.0.mask(&which.to_ne_bytes());
        self.0.compare(NotEqual, &[0; 4]);
    }

    fn marked(&mut self) {
        self.0.meta(META_MARK, REGISTER);
        self.0.mask(&OURS.to_ne_bytes());
        self.0.compare(NotEqual, &[0; 4]);
    }

    /// All of the packet's mark stays as it is but that bit.
    fn mark(&mut self, bit: u32, to: u32) {
        self.0.meta(META_MARK, REGISTER);
        self.0.bitwise(&(!bit).to_ne_bytes(), &to.to_ne_bytes());
        self.0.set_meta(META_MARK, REGISTER);
    }

    fn answers(&mut self) {
        const REPLY: u8 = 1;
        self.0.connection(CT_DIRECTION);
        self.0.compare(Equal, &[REPLY]);
    }

    fn echo_request(&mut self, family: Family) {
        let (protocol, kind) = match family {
            Family::V4 => (1, 8),
            Family::V6 => (58, 128),
        };
        self.0.protocol(protocol);
        self.0.payload(TRANSPORT_HEADER, 0, 1, REGISTER);
        self.0.compare(Equal, &[kind]);
    }

    fn service_verdict(&mut self, family: Family, asked: Asked, map: &str) {
        self.asked(family, asked);
        self.0.lookup(map, Some(VERDICT));
    }

    /// An endpoint's address and port side by side.
    fn choose(&mut self, family: Family, choice: &Choice) {
        let next = self.asked(family, choice.asked);
        self.number(next, choice.draw, choice.count, choice.first);
        self.0.lookup(&choice.map, Some(REGISTER));
    }

    /// One of so many numbers from `first`.
    fn number(&mut self, register: u32, draw: Draw, count: u32, first: u32) {
        match draw {
            Draw::Lot => self.lot(register, count, first),
            Draw::Client(family) => self.hash(register, (family, false), count, first),
            Draw::ClientAndPort(family) => self.hash(register, (family, true), count, first),
        }
    }

    /// By a hash of the client's address, and port if so.
    fn hash(&mut self, register: u32, (family, with_port): (Family, bool), count: u32, first: u32) {
        const JENKINS: u32 = 0;
        /// Length of a register in bytes; what is shorter is filled with zeros.
        const WORD: u32 = 4;
        let hashed = register + 1;
        self.address(family, End::Source, hashed);
        let mut length = words(family);
        if with_port {
            self.0.payload(TRANSPORT_HEADER, 0, 2, hashed + length);
            length += 1;
        }
        let data = Attributes::new()
            .u32(1, hashed)
            .u32(2, register)
            .u32(3, length * WORD)
            .u32(4, count)
            .u32(5, SEED)
            .u32(6, first)
            .u32(7, JENKINS);
        self.0.add("hash", data);
    }

    fn lot(&mut self, register: u32, count: u32, first: u32) {
        const RANDOM: u32 = 1;
        let number = Attributes::new()
            .u32(1, register)
            .u32(2, count)
            .u32(3, RANDOM)
            .u32(4, first);
        self.0.add("numgen", number);
    }

    /// When the set is full, the rule ends here.
    fn keep_source(&mut self, family: Family, set: &str, seconds: u32) {
        const UPDATE: u32 = 1;
        self.0.family(nfproto(family));
        self.address(family, End::Source, REGISTER);
        let milliseconds = u64::from(seconds) * 1000;
        let data = Attributes::new()
            .text(1, set)
            .u32(3, UPDATE)
            .u32(4, REGISTER)
            .bytes(6, &milliseconds.to_be_bytes());
        self.0.add("dynset", data);
    }

    fn translate_to_socket(&mut self, socket: SocketAddr) {
        let family = Family::of(socket.ip());
        let port = REGISTER + words(family);
        self.0.load(REGISTER, &octets(socket.ip()));
        self.0.load(port, &socket.port().to_be_bytes());
        self.nat(family, Some(port));
    }

    fn translate_by_port(&mut self, family: Family, map: &str) {
        self.asked(family, Asked::Port);
        self.0.lookup(map, Some(REGISTER));
        self.nat(family, Some(REGISTER + words(family)));
    }

    fn translate_to(&mut self, address: IpAddr) {
        self.0.load(REGISTER, &octets(address));
        self.nat(Family::of(address), None);
    }

    /// `kind` is NFT_REJECT_*, `code` nftables' own number for that of ICMP in both families.
    fn reject(&mut self, kind: u32, code: u8) {
        self.0
            .add("reject", Attributes::new().u32(1, kind).bytes(2, &[code]));
    }
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
        Verdict::Return => (-5, None),
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
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

fn words(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}
