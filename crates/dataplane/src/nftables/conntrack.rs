//! Connection tracking: how strict it is, and UDP flows whose endpoint is gone.
//!
//! A UDP client that keeps its port stays with the endpoint that connection tracking once gave it, for as long as it
//! sends. So when an endpoint goes, its flows are taken out of the table, and the next datagram chooses anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podnet_linux::netfilter::wire::{Attributes, Reader, Received};
use podnet_linux::netfilter::{Message, Netfilter, NetfilterError, SUBSYSTEM_CONNTRACK};

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

/// Removes the UDP flows for which `stale(sent to, answered from)` holds; says how many there were.
pub(crate) fn forget(
    socket: &mut Netfilter,
    stale: impl Fn(SocketAddr, SocketAddr) -> bool,
) -> Result<usize, NetfilterError> {
    let mut deletions = Vec::new();
    socket.dump(
        SUBSYSTEM_CONNTRACK,
        GET,
        0,
        &Attributes::new(),
        "list connections",
        |message| {
            deletions.extend(deletion(&message, &stale));
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

fn deletion(message: &Received<'_>, stale: impl Fn(SocketAddr, SocketAddr) -> bool) -> Option<Message> {
    let attributes = message.attributes();
    let sent_to = Tuple::read(attributes.nested(ORIGINAL)?)?;
    let answered_from = Tuple::read(attributes.nested(REPLY)?)?;
    if sent_to.protocol != UDP || !stale(sent_to.destination, answered_from.source) {
        return None;
    }
    let which = Attributes::new().bytes(ORIGINAL | 0x8000, attributes.get(ORIGINAL)?);
    let which = match attributes.get(ZONE) {
        Some(zone) => which.bytes(ZONE, zone),
        None => which,
    };
    let what = format!("forget the UDP flow to {}", sent_to.destination);
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
    source: SocketAddr,
    destination: SocketAddr,
}

impl Tuple {
    fn read(tuple: Reader<'_>) -> Option<Tuple> {
        let (addresses, ports) = (tuple.nested(1)?, tuple.nested(2)?);
        let address = |v4, v6| addresses.get(v4).or_else(|| addresses.get(v6)).and_then(ip);
        let port = |kind| Some(u16::from_be_bytes(ports.get(kind)?.try_into().ok()?));
        Some(Tuple {
            protocol: *ports.get(1)?.first()?,
            source: SocketAddr::new(address(1, 3)?, port(2)?),
            destination: SocketAddr::new(address(2, 4)?, port(3)?),
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
