//! From a rule's clauses to the kernel's expressions.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use podnet_core::cluster::Family;
use podnet_linux::netfilter::wire::Attributes;

use super::model::Verdict;
use super::rule::{Asked, Choice, Clause, octets};

/// 32-bit registers; a 16-byte one overlays four of them.
const REGISTER: u32 = 8;
/// The register whose value decides where evaluation goes on.
const VERDICT: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const IFNAMSIZ: usize = 16;

/// A rule's expressions in the making.
#[derive(Default)]
pub(super) struct Program(Attributes);

impl Program {
    pub(super) fn into_expressions(self) -> Attributes {
        self.0
    }

    pub(super) fn clause(&mut self, clause: &Clause) {
        match clause {
            Clause::Family(family) => self.family(*family),
            Clause::DestinationIn(family, set) => self.destination_in(*family, set),
            Clause::DestinationWithin(range) => self.within(*range, End::Destination, EQUAL),
            Clause::DestinationNotWithin(range) => self.within(*range, End::Destination, NOT_EQUAL),
            Clause::SourceWithin(range) => self.within(*range, End::Source, EQUAL),
            Clause::DestinationIsLocal => self.local(End::Destination),
            Clause::PairIn(family, set) => self.pair_in(*family, set),
            Clause::SourceIsNot(address) => self.source_is_not(*address),
            Clause::SourceIsLocal => self.local(End::Source),
            Clause::Leaves(link) => self.link(META_OIFNAME, EQUAL, link),
            Clause::CameNotBy(link) => self.link(META_IIFNAME, NOT_EQUAL, link),
            Clause::Translated => self.translated(),
            Clause::Answers => self.answers(),
            Clause::Protocol(number) => self.protocol(*number),
            Clause::EchoRequest(family) => self.echo_request(*family),
            Clause::ServiceVerdict(family, asked, map) => self.service_verdict(*family, *asked, map),
            Clause::TranslateToOneOf(family, choice) => {
                self.choose(*family, choice);
                self.nat(*family, Some(REGISTER + words(*family)));
            }
            Clause::VerdictByLot(count, map) => {
                self.lot(REGISTER, *count, 0);
                self.lookup(map, Some(VERDICT));
            }
            Clause::SourceIn(family, set) => {
                self.family(*family);
                self.address(*family, End::Source, REGISTER);
                self.lookup(set, None);
            }
            Clause::KeepSource(family, set, seconds) => self.keep_source(*family, set, *seconds),
            Clause::TranslateToSocket(socket) => self.translate_to_socket(*socket),
            Clause::TranslateByPort(family, map) => self.translate_by_port(*family, map),
            Clause::TranslateTo(address) => self.translate_to(*address),
            Clause::Masquerade => self.expression("masq", Attributes::new()),
            Clause::Reset => self.reject(1, 0),
            Clause::PortUnreachable => self.reject(2, 1),
            Clause::Verdict(verdict) => self.immediate(VERDICT, encode_verdict(verdict)),
        }
    }

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

    fn within(&mut self, range: IpNet, end: End, operator: u32) {
        let family = Family::of(range.addr());
        self.family(family);
        self.address(family, end, REGISTER);
        self.mask(&octets(range.netmask()));
        self.compare(operator, &octets(range.network()));
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

    /// What is asked for, field by field side by side; returns the register after them.
    fn asked(&mut self, family: Family, asked: Asked) -> u32 {
        self.family(family);
        let next = match asked {
            Asked::Port => REGISTER,
            Asked::Address => {
                self.address(family, End::Destination, REGISTER);
                REGISTER + words(family)
            }
        };
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

    fn destination_in(&mut self, family: Family, set: &str) {
        self.family(family);
        self.address(family, End::Destination, REGISTER);
        self.lookup(set, None);
    }

    fn pair_in(&mut self, family: Family, set: &str) {
        self.family(family);
        self.address(family, End::Source, REGISTER);
        self.address(family, End::Destination, REGISTER + words(family));
        self.lookup(set, None);
    }

    fn source_is_not(&mut self, address: IpAddr) {
        let family = Family::of(address);
        self.family(family);
        self.address(family, End::Source, REGISTER);
        self.compare(NOT_EQUAL, &octets(address));
    }

    fn link(&mut self, key: u32, operator: u32, name: &str) {
        let mut name = name.as_bytes().to_vec();
        name.resize(IFNAMSIZ, 0);
        self.meta(key, REGISTER);
        self.compare(operator, &name);
    }

    fn translated(&mut self) {
        /// IPS_DST_NAT.
        const DESTINATION: u32 = 1 << 5;
        self.connection(CT_STATUS);
        self.mask(&DESTINATION.to_ne_bytes());
        self.compare(NOT_EQUAL, &[0; 4]);
    }

    fn answers(&mut self) {
        const REPLY: u8 = 1;
        self.connection(CT_DIRECTION);
        self.compare(EQUAL, &[REPLY]);
    }

    fn protocol(&mut self, number: u8) {
        self.meta(META_L4PROTO, REGISTER);
        self.compare(EQUAL, &[number]);
    }

    fn echo_request(&mut self, family: Family) {
        let (protocol, kind) = match family {
            Family::V4 => (1, 8),
            Family::V6 => (58, 128),
        };
        self.protocol(protocol);
        self.payload(TRANSPORT_HEADER, 0, 1, REGISTER);
        self.compare(EQUAL, &[kind]);
    }

    fn service_verdict(&mut self, family: Family, asked: Asked, map: &str) {
        self.asked(family, asked);
        self.lookup(map, Some(VERDICT));
    }

    /// An endpoint's address and port side by side.
    fn choose(&mut self, family: Family, choice: &Choice) {
        let next = self.asked(family, choice.asked);
        self.lot(next, choice.count, choice.first);
        self.lookup(&choice.map, Some(REGISTER));
    }

    /// One of so many numbers from `first`.
    fn lot(&mut self, register: u32, count: u32, first: u32) {
        const RANDOM: u32 = 1;
        let number = Attributes::new()
            .u32(1, register)
            .u32(2, count)
            .u32(3, RANDOM)
            .u32(4, first);
        self.expression("numgen", number);
    }

    /// When the set is full, the rule ends here.
    fn keep_source(&mut self, family: Family, set: &str, seconds: u32) {
        const UPDATE: u32 = 1;
        self.family(family);
        self.address(family, End::Source, REGISTER);
        let milliseconds = u64::from(seconds) * 1000;
        let data = Attributes::new()
            .text(1, set)
            .u32(3, UPDATE)
            .u32(4, REGISTER)
            .bytes(6, &milliseconds.to_be_bytes());
        self.expression("dynset", data);
    }

    fn translate_to_socket(&mut self, socket: SocketAddr) {
        let family = Family::of(socket.ip());
        let port = REGISTER + words(family);
        self.immediate(REGISTER, Attributes::new().bytes(1, &octets(socket.ip())));
        self.immediate(port, Attributes::new().bytes(1, &socket.port().to_be_bytes()));
        self.nat(family, Some(port));
    }

    fn translate_by_port(&mut self, family: Family, map: &str) {
        self.asked(family, Asked::Port);
        self.lookup(map, Some(REGISTER));
        self.nat(family, Some(REGISTER + words(family)));
    }

    fn translate_to(&mut self, address: IpAddr) {
        self.immediate(REGISTER, Attributes::new().bytes(1, &octets(address)));
        self.nat(Family::of(address), None);
    }

    fn immediate(&mut self, register: u32, value: Attributes) {
        self.expression("immediate", Attributes::new().u32(1, register).nest(2, value));
    }

    /// `kind` is NFT_REJECT_*, `code` nftables' own number for that of ICMP in both families.
    fn reject(&mut self, kind: u32, code: u8) {
        self.expression("reject", Attributes::new().u32(1, kind).bytes(2, &[code]));
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
