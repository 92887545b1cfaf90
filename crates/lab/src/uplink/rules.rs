//! The nftables rules of the underlay that lead packets to our sockets, whoever they are addressed to.

use podnet_linux::netfilter::expression::Comparison::{self, Equal, NotEqual};
use podnet_linux::netfilter::expression::{
    Expressions, META_IIFNAME, META_MARK, NFPROTO_IPV4, NFPROTO_IPV6, REGISTER, TRANSPORT_HEADER, VERDICT,
};
use podnet_linux::netfilter::wire::Attributes;
use podnet_linux::netfilter::{Message, Netfilter, NetfilterError};

use super::underlay::{LINK, MARK};

/// Our table, of the family inet.
const TABLE: &str = "podnet-uplink";
const CHAIN: &str = "prerouting";

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NFPROTO_INET: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// NF_IP_PRI_MANGLE: after fragments are put together, before routing.
const MANGLE: i32 = -150;

/// After an address of either family.
const AFTER_ADDRESS: u32 = REGISTER + 4;

/// Puts the rules in place of what is there. `port` is where our two listeners are, on the loopback addresses.
pub(super) fn install(port: u16) -> Result<(), NetfilterError> {
    let mut messages = vec![
        message("make the uplink's table", NEW_TABLE, table()),
        message("empty the uplink's table", DELETE_TABLE, table()),
        message("make the uplink's table", NEW_TABLE, table()),
        message("make the uplink's chain", NEW_CHAIN, chain()),
    ];
    messages.extend(rules(port).map(|(what, rule)| {
        let attributes = table().text(2, CHAIN).nest(4, rule.0.into_attributes());
        message(what, NEW_RULE, attributes)
    }));
    // Ours alone are the namespace's rules, so that no generation needs to be held on to.
    Netfilter::open()?.transaction(0, &messages)
}

/// As nft writes them:
///
/// ```text
/// tcp flags & (syn | ack) != syn socket transparent 1 meta mark set 1 accept
/// meta l4proto udp socket transparent 1 meta mark set 1 accept
/// meta l4proto icmp socket transparent 1 meta mark set 1 accept
/// meta l4proto ipv6-icmp socket transparent 1 meta mark set 1 accept
/// iifname "uplink" meta nfproto ipv4 tcp flags & (syn | ack) == syn tproxy ip to 127.0.0.1:PORT meta mark set 1 accept
/// iifname "uplink" meta nfproto ipv6 tcp flags & (syn | ack) == syn tproxy ip6 to [::1]:PORT meta mark set 1 accept
/// ```
///
/// A SYN always goes to the gate first, even if there is a socket for it: that may be one that waits for stragglers of
/// an earlier connection, which tproxy knows to pass over. Nothing else that comes by the gate is for a listener: the
/// resets among it are answers, on their way to a client. Of ICMP, errors have a socket: that of what they are about.
fn rules(port: u16) -> [(&'static str, Rule); 6] {
    let segments = Rule::default()
        .protocol(TCP)
        .opening(NotEqual)
        .has_socket()
        .deliver();
    let [datagrams, errors, errors_v6] =
        [UDP, ICMP, ICMPV6].map(|protocol| Rule::default().protocol(protocol).has_socket().deliver());
    let [v4, v6] = [NFPROTO_IPV4, NFPROTO_IPV6].map(|family| {
        let rule = Rule::default()
            .came_by_gate()
            .family(family)
            .protocol(TCP)
            .opening(Equal);
        rule.listener(family, port).deliver()
    });
    [
        ("match packets with sockets (nft_socket)", segments),
        ("match packets with sockets (nft_socket)", datagrams),
        ("match packets with sockets (nft_socket)", errors),
        ("match packets with sockets (nft_socket)", errors_v6),
        ("lead connections to a listener (nft_tproxy)", v4),
        ("lead connections to a listener (nft_tproxy)", v6),
    ]
}

fn message(what: &str, kind: u16, attributes: Attributes) -> Message {
    let flags = match kind {
        NEW_RULE => NLM_F_CREATE | NLM_F_APPEND,
        DELETE_TABLE => 0,
        _ => NLM_F_CREATE,
    };
    Message {
        kind,
        flags,
        family: NFPROTO_INET,
        attributes,
        what: what.into(),
    }
}

fn table() -> Attributes {
    Attributes::new().text(1, TABLE)
}

fn chain() -> Attributes {
    const PREROUTING: u32 = 0;
    const ACCEPT: u32 = 1;
    let hook = Attributes::new()
        .u32(1, PREROUTING)
        .u32(2, i32::cast_unsigned(MANGLE));
    table()
        .text(3, CHAIN)
        .nest(4, hook)
        .u32(5, ACCEPT)
        .text(7, "filter")
}

/// A rule in the making.
#[derive(Default)]
struct Rule(Expressions);

impl Rule {
    fn protocol(mut self, number: u8) -> Self {
        self.0.protocol(number);
        self
    }

    fn family(mut self, number: u8) -> Self {
        self.0.family(number);
        self
    }

    fn came_by_gate(mut self) -> Self {
        self.0.link(META_IIFNAME, Equal, LINK);
        self
    }

    /// A SYN without ACK, or anything else.
    fn opening(mut self, comparison: Comparison) -> Self {
        const FLAGS: usize = 13;
        self.0.payload(TRANSPORT_HEADER, FLAGS, 1, REGISTER);
        self.0.mask(&[SYN | ACK]);
        self.0.compare(comparison, &[SYN]);
        self
    }

    /// There is a socket of ours for the packet.
    fn has_socket(mut self) -> Self {
        const TRANSPARENT: u32 = 0;
        let socket = Attributes::new().u32(1, TRANSPARENT).u32(2, REGISTER);
        self.0.add("socket", socket);
        self.0.compare(Equal, &[1]);
        self
    }

    fn listener(mut self, family: u8, port: u16) -> Self {
        let address = match family {
            NFPROTO_IPV4 => std::net::Ipv4Addr::LOCALHOST.octets().to_vec(),
            _ => std::net::Ipv6Addr::LOCALHOST.octets().to_vec(),
        };
        let to = Attributes::new()
            .u32(1, family.into())
            .u32(2, REGISTER)
            .u32(3, AFTER_ADDRESS);
        self.0.load(REGISTER, &address);
        self.0.load(AFTER_ADDRESS, &port.to_be_bytes());
        self.0.add("tproxy", to);
        self
    }

    /// The mark has it routed to this machine.
    fn deliver(mut self) -> Self {
        const ACCEPT: u32 = 1;
        let verdict = Attributes::new().nest(2, Attributes::new().u32(1, ACCEPT));
        self.0.load(REGISTER, &MARK.to_ne_bytes());
        self.0.set_meta(META_MARK, REGISTER);
        self.0.immediate(VERDICT, verdict);
        self
    }
}
