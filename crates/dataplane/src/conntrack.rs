//! Connection tracking: how strict it is, and what is taken out of it.
//!
//! A connection that a policy begins to deny is taken out: its next packet is judged as a new connection's is.
//!
//! A UDP client that keeps its port stays with the endpoint that connection tracking once gave it, for as long as it
//! sends. So when an endpoint goes, its flows are taken out of the table, and the next datagram chooses anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podnet_linux::netfilter::wire::{Attributes, Reader, Received};
use podnet_linux::netfilter::{Message, Netfilter, NetfilterError, SUBSYSTEM_CONNTRACK};
use podnet_linux::sysctl;
use rustix::thread::{MembarrierCommand, membarrier};

use crate::settings::{SettingError, Settings};

const GET: u16 = 1;
const DELETE: u16 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ZONE: u16 = 18;
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

struct Tuple {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    from_port: Option<u16>,
    to_port: Option<u16>,
}

impl Tuple {
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
