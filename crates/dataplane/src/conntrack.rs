//! Connection tracking: how strict it is, what is taken out of it, and what it is told of.
//!
//! A connection that a policy begins to deny is taken out: its next packet is judged as a new connection's is.
//!
//! A UDP client that keeps its port stays with the endpoint that connection tracking once gave it, for as long as it
//! sends. So when an endpoint goes, its flows are taken out of the table, and the next datagram chooses anew.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podnet_ebpf_abi::{self as abi, packet};
use podnet_linux::netfilter::wire::{Attributes, Reader, Received};
use podnet_linux::netfilter::{Message, Netfilter, NetfilterError, SUBSYSTEM_CONNTRACK};
use podnet_linux::sysctl;
use rustix::thread::{MembarrierCommand, membarrier};

use crate::settings::{SettingError, Settings};

const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL: u16 = 4;
const TIMEOUT: u16 = 7;
const ZONE: u16 = 18;
const STATUS_MASK: u16 = 26;
/// Of [`PROTOCOL`].
const TCP: u16 = 1;
/// Of that.
const STATE: u16 = 1;
/// TCP_CONNTRACK_ESTABLISHED.
const ESTABLISHED: u8 = 3;
const UDP: u8 = 17;

/// Has segments outside a connection's window translated like all others, so that the socket they are for judges them.
/// As the kernel comes they would go on untranslated, and the client, which knows no connection to the endpoint's own
/// address, would reset it (kubernetes/kubernetes#74839). Dropping them by a rule would cost every packet a look at it.
/// Returns whether this changed anything.
pub(crate) fn be_liberal(settings: &Settings) -> Result<bool, SettingError> {
    settings.ensure("net/netfilter/nf_conntrack_tcp_be_liberal", "1")
}

/// Whether the kernel tracks connections.
pub(crate) fn is_there() -> bool {
    sysctl::get("net/netfilter/nf_conntrack_max").is_ok()
}

/// Removes the UDP flows for which `stale(sent to, answered from)` holds; says how many there were.
pub(crate) fn forget(
    socket: &mut Netfilter,
    stale: impl Fn(SocketAddr, SocketAddr) -> bool,
) -> Result<usize, NetfilterError> {
    cut(socket, |connection| {
        let ends = connection.sent_to.zip(connection.answered_from);
        connection.protocol == UDP && ends.is_some_and(|(to, from)| stale(to, from))
    })
}

/// A connection as tracking knows it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// The transport protocol.
    pub(crate) protocol: u8,
    /// Who began it.
    pub(crate) client: IpAddr,
    /// Where it was sent, before any translation; ports only where the protocol has them.
    pub(crate) destination: IpAddr,
    sent_to: Option<SocketAddr>,
    /// Who answers.
    pub(crate) server: IpAddr,
    /// The same with its port.
    pub(crate) answered_from: Option<SocketAddr>,
}

/// Removes the connections for which `condemned` holds; says how many there were.
pub(crate) fn cut(
    socket: &mut Netfilter,
    mut condemned: impl FnMut(&Connection) -> bool,
) -> Result<usize, NetfilterError> {
    // A packet that met the rules of before has its connection in the table when the processor that handles it is through
    // with it, which this waits for (RCU). Where the kernel does not offer that, it takes less time than asking.
    let _ = membarrier(MembarrierCommand::Global);
    let mut deletions = Vec::new();
    socket.dump(
        SUBSYSTEM_CONNTRACK,
        GET,
        0,
        &Attributes::new(),
        "list connections",
        |message| {
            deletions.extend(deletion(&message, &mut condemned));
        },
    )?;
    let mut forgotten = 0;
    for message in &deletions {
        match socket.request(SUBSYSTEM_CONNTRACK, message) {
            Ok(()) => forgotten += 1,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

fn deletion(message: &Received<'_>, condemned: impl FnOnce(&Connection) -> bool) -> Option<Message> {
    let attributes = message.attributes();
    let original = Tuple::read(attributes.nested(ORIGINAL)?)?;
    let reply = Tuple::read(attributes.nested(REPLY)?)?;
    let connection = Connection {
        protocol: original.protocol,
        client: original.source,
        destination: original.destination,
        sent_to: original
            .to_port
            .map(|port| SocketAddr::new(original.destination, port)),
        server: reply.source,
        answered_from: reply.from_port.map(|port| SocketAddr::new(reply.source, port)),
    };
    if !condemned(&connection) {
        return None;
    }
    let which = Attributes::new().bytes(ORIGINAL | 0x8000, attributes.get(ORIGINAL)?);
    let which = match attributes.get(ZONE) {
        Some(zone) => which.bytes(ZONE, zone),
        None => which,
    };
    let what = format!("forget the connection to {}", connection.destination);
    Some(Message {
        kind: DELETE,
        flags: 0,
        family: message.family(),
        attributes: which,
        what,
    })
}

/// What tracking knows of flows.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Those that were translated, by whomever: as they were before it, and as they are after it, in the direction in which
    /// they were begun.
    pub(crate) translated: BTreeSet<packet::Tuple>,
    /// Established connections of TCP that were not.
    pub(crate) established: BTreeSet<packet::Tuple>,
}

/// Reads it.
pub(crate) fn known(socket: &mut Netfilter) -> Result<Known, NetfilterError> {
    /// IPS_ASSURED, IPS_SRC_NAT and IPS_DST_NAT: what was never answered, of which there may be very much, is nobody's.
    const STATUSES: [u32; 3] = [1 << 2, 1 << 4, 1 << 5];
    let mut known = Known::default();
    for status in STATUSES {
        // Since Linux 5.15 the kernel leaves out the others.
        let which = Attributes::new().u32(STATUS, status).u32(STATUS_MASK, status);
        dump(socket, &which, |original, reply, is_established| {
            let (before, after) = (original.flow(), reply.flow().map(|flow| flow.reversed()));
            if before != after {
                known.translated.extend(before.into_iter().chain(after));
            } else if is_established {
                known.established.extend(before);
            }
        })?;
    }
    Ok(known)
}

/// Has tracking know TCP connections that it has not seen begin, in the direction in which they were begun: as
/// established, since both ends have spoken. One for which it has no room stays unknown.
pub(crate) fn take_up(
    socket: &mut Netfilter,
    connections: &BTreeSet<packet::Tuple>,
) -> Result<(), NetfilterError> {
    /// Packets go on meanwhile, and each may have it know one the wrong way round.
    const ROUNDS: usize = 4;
    let timeout = sysctl::get("net/netfilter/nf_conntrack_tcp_timeout_established");
    let timeout = timeout.ok().and_then(|text| text.parse().ok());
    for _ in 0..ROUNDS {
        let (mut unknown, mut wrong) = (connections.clone(), Vec::new());
        dump(socket, &Attributes::new(), |original, reply, is_established| {
            let (Some(began), Some(answered)) = (original.flow(), reply.flow()) else {
                return;
            };
            let is_plain = began.reversed() == answered;
            if connections.contains(&answered.reversed()) && (is_established || !is_plain) {
                unknown.remove(&answered.reversed());
            } else if is_plain && (connections.contains(&began) || connections.contains(&answered)) {
                // Half begun, over, or taken up in the middle by a packet of who was asked.
                wrong.push(began);
            }
        })?;
        if unknown.is_empty() && wrong.is_empty() {
            break;
        }
        for began in wrong {
            let message = about(DELETE, 0, &began, Attributes::new());
            match socket.request(SUBSYSTEM_CONNTRACK, &message) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        for connection in unknown {
            // What is refused is asked for once more in the next round.
            let _ = socket.request(
                SUBSYSTEM_CONNTRACK,
                &established(&connection, timeout.unwrap_or(DAYS)),
            );
        }
    }
    Ok(())
}

/// Five days in seconds, after which the kernel as it comes forgets a connection that says nothing.
const DAYS: u32 = 432_000;

fn established(connection: &packet::Tuple, timeout: u32) -> Message {
    const CREATE_EXCLUSIVELY: u16 = 0x400 | 0x200;
    /// IPS_SEEN_REPLY, IPS_ASSURED and IPS_CONFIRMED.
    const BOTH_SPOKE: u32 = 0b1110;
    let state = Attributes::new().nest(TCP, Attributes::new().bytes(STATE, &[ESTABLISHED]));
    let rest = Attributes::new()
        .nest(REPLY, written(&connection.reversed()))
        .u32(STATUS, BOTH_SPOKE)
        .nest(PROTOCOL, state)
        .u32(TIMEOUT, timeout);
    about(NEW, CREATE_EXCLUSIVELY, connection, rest)
}

/// A message about the connection that began so.
fn about(kind: u16, flags: u16, began: &packet::Tuple, rest: Attributes) -> Message {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let family = match IpAddr::from(began.source) {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    };
    let [from, to] = began.ends().map(SocketAddr::from);
    Message {
        kind,
        flags,
        family,
        attributes: Attributes::new().nest(ORIGINAL, written(began)).and(rest),
        what: format!("track the connection from {from} to {to}"),
    }
}

fn written(tuple: &packet::Tuple) -> Attributes {
    let ends = [tuple.source, tuple.destination].map(IpAddr::from);
    let addresses = match ends {
        [IpAddr::V4(from), IpAddr::V4(to)] => {
            Attributes::new().bytes(1, &from.octets()).bytes(2, &to.octets())
        }
        [from, to] => Attributes::new().bytes(3, &six(from)).bytes(4, &six(to)),
    };
    let abi::Protocol(protocol) = tuple.protocol;
    let ports = Attributes::new()
        .bytes(1, &[protocol])
        .bytes(2, &tuple.source_port)
        .bytes(3, &tuple.destination_port);
    Attributes::new().nest(1, addresses).nest(2, ports)
}

fn six(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Connections, in the direction in which they were begun and in the other, and whether they are established ones of TCP.
fn dump(
    socket: &mut Netfilter,
    which: &Attributes,
    mut connection: impl FnMut(Tuple, Tuple, bool),
) -> Result<(), NetfilterError> {
    socket.dump(
        SUBSYSTEM_CONNTRACK,
        GET,
        0,
        which,
        "list connections",
        |message| {
            let attributes = message.attributes();
            let read = |kind| attributes.nested(kind).and_then(Tuple::read);
            let tcp = attributes.nested(PROTOCOL).and_then(|of| of.nested(TCP));
            let is_established = tcp.and_then(|tcp| tcp.get(STATE)) == Some(&[ESTABLISHED]);
            if let (Some(original), Some(reply)) = (read(ORIGINAL), read(REPLY)) {
                connection(original, reply, is_established);
            }
        },
    )
}

struct Tuple {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    from_port: Option<u16>,
    to_port: Option<u16>,
}

impl Tuple {
    /// As programs see it; none where it has no ports.
    fn flow(&self) -> Option<packet::Tuple> {
        let end = |address, port: Option<u16>| Some(abi::Endpoint::from(SocketAddr::new(address, port?)));
        let from = end(self.source, self.from_port)?;
        let to = end(self.destination, self.to_port)?;
        Some(packet::Tuple::new(from, to, abi::Protocol(self.protocol)))
    }

    fn read(tuple: Reader<'_>) -> Option<Tuple> {
        let (addresses, ports) = (tuple.nested(1)?, tuple.nested(2)?);
        let address = |v4, v6| addresses.get(v4).or_else(|| addresses.get(v6)).and_then(ip);
        let port = |kind| Some(u16::from_be_bytes(ports.get(kind)?.try_into().ok()?));
        Some(Tuple {
            protocol: *ports.get(1)?.first()?,
            source: address(1, 3)?,
            destination: address(2, 4)?,
            from_port: port(2),
            to_port: port(3),
        })
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}
