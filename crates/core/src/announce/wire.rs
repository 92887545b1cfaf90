//! Frames: heartbeats, ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Standing;
use crate::cluster::NodeName;

/// The EtherType of heartbeats: the first of the two for local experiments (IEEE 802, clause 9.2.3).
pub const ETHERTYPE: u16 = 0x88b5;
/// The group that heartbeats are sent to: locally administered, so nobody else's. Hosts that are not in it need not look at
/// them.
pub const ALL_AGENTS: Mac = Mac([0x03, b'p', b'o', b'd', b'n', b't']);

const BROADCAST: Mac = Mac([0xff; 6]);
/// 33:33 and the last four octets of ff02::1 (RFC 2464, section 7).
const ALL_HOSTS: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const ETHERNET: usize = 14;
/// Ethernet and IPv4 addresses, and their lengths: hardware type 1, protocol type 0x0800.
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_LENGTH: usize = 28;
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const IPV6_HEADER: usize = 40;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Type, code, checksum, four octets of flags or nothing, target.
const NEIGHBOUR_MESSAGE: usize = 24;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

/// What begins every heartbeat; the last octet is the format's version.
const MAGIC: [u8; 7] = *b"podnet\x01";

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A node says that it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heartbeat {
    pub(super) node: NodeName,
    /// Its own address, by which it is told from its namesake in another cluster.
    pub(super) address: IpAddr,
    /// Nothing: it goes.
    pub(super) standing: Option<Standing>,
    /// How often it has taken over addresses, whoever was to notice.
    pub(super) taken: u32,
}

impl Heartbeat {
    /// The whole frame.
    pub(super) fn write(&self, from: Mac) -> Vec<u8> {
        let mut frame = ethernet(ALL_AGENTS, from, ETHERTYPE);
        frame.extend(MAGIC);
        frame.push(match self.standing {
            None => 0,
            Some(Standing::Behind) => 1,
            Some(Standing::InForce) => 2,
        });
        frame.extend(self.taken.to_be_bytes());
        let address = match self.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        frame.extend(address.octets());
        let name = self.node.as_str().as_bytes();
        // A DNS subdomain has 253 octets at most.
        frame.push(name.len() as u8);
        frame.extend(name);
        frame
    }

    /// Reads what follows the Ethernet header. What follows the name is padding, or a later version's.
    fn read(payload: &[u8]) -> Option<Self> {
        let rest = payload.strip_prefix(&MAGIC)?;
        let (standing, rest) = rest.split_first()?;
        let (taken, rest) = rest.split_first_chunk::<4>()?;
        let (address, rest) = rest.split_first_chunk::<16>()?;
        let address = Ipv6Addr::from(*address);
        let (length, rest) = rest.split_first()?;
        let name = std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
        Some(Heartbeat {
            node: NodeName::new(name).ok()?,
            address: address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4),
            standing: match standing {
                0 => None,
                1 => Some(Standing::Behind),
                2 => Some(Standing::InForce),
                _ => return None,
            },
            taken: u32::from_be_bytes(*taken),
        })
    }
}

/// What somebody on the link says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// A node is there.
    Heartbeat(Heartbeat),
    /// Somebody asks who has an address.
    Question(Question),
}

/// Somebody asks who has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    /// The address that is asked for.
    pub(super) target: IpAddr,
    /// Who asks; unspecified where it only wants to know whether anybody has it.
    asker: IpAddr,
    asker_mac: Mac,
}

/// Reads a whole frame; nothing if it is none that matters.
pub(super) fn read(frame: &[u8]) -> Option<Heard> {
    let from = Mac(*frame.get(6..)?.first_chunk()?);
    let kind = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
    let payload = frame.get(ETHERNET..)?;
    match kind {
        ETHERTYPE => Heartbeat::read(payload).map(Heard::Heartbeat),
        ARP => arp_request(payload).map(Heard::Question),
        IPV6 => solicitation(payload, from).map(Heard::Question),
        _ => None,
    }
}

fn arp_request(payload: &[u8]) -> Option<Question> {
    let message = payload.first_chunk::<ARP_LENGTH>()?;
    let rest = message.strip_prefix(&ARP_KIND)?.strip_prefix(&[0, REQUEST])?;
    let address = |at: usize| Some(Ipv4Addr::from(*rest.get(at..)?.first_chunk::<4>()?));
    let (asker, target) = (address(6)?, address(16)?);
    // Whoever tells its own address (RFC 5227, section 3) asks nothing.
    (asker != target).then_some(Question {
        target: target.into(),
        asker: asker.into(),
        asker_mac: Mac(*rest.first_chunk()?),
    })
}

/// RFC 4861, section 7.1.1.
fn solicitation(packet: &[u8], from: Mac) -> Option<Question> {
    let header = packet.first_chunk::<IPV6_HEADER>()?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let message = packet.get(IPV6_HEADER..IPV6_HEADER + length)?;
    let address = |at: usize| Some(Ipv6Addr::from(*header.get(at..)?.first_chunk::<16>()?));
    let (source, destination) = (address(8)?, address(24)?);
    let never_routed = header[7] == 255;
    let asks = header[0] >> 4 == 6 && header[6] == ICMPV6 && message.starts_with(&[SOLICITATION, 0]);
    if !asks || !never_routed || length < NEIGHBOUR_MESSAGE || checksum(source, destination, message) != 0 {
        return None;
    }
    let target = Ipv6Addr::from(*message.get(8..)?.first_chunk::<16>()?);
    let (mut rest, mut asker_mac) = (message.get(NEIGHBOUR_MESSAGE..)?, from);
    while let [kind, units, ..] = *rest {
        let option = rest
            .get(..usize::from(units) * 8)
            .filter(|option| !option.is_empty())?;
        if kind == SOURCE_LINK_ADDRESS {
            asker_mac = Mac(*option.get(2..)?.first_chunk()?);
        }
        rest = &rest[option.len()..];
    }
    (!target.is_multicast()).then_some(Question {
        target: target.into(),
        asker: source.into(),
        asker_mac,
    })
}

/// What answers a question: the address is at `own`.
pub(super) fn answer(question: &Question, own: Mac) -> Option<Vec<u8>> {
    match (question.target, question.asker) {
        (IpAddr::V4(target), IpAddr::V4(asker)) => Some(arp(
            REPLY,
            question.asker_mac,
            own,
            target,
            question.asker_mac,
            asker,
        )),
        // Who has no address yet hears it with all others (section 7.2.4).
        (IpAddr::V6(target), IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => {
            Some(advertisement(ALL_HOSTS, own, target, ALL_NODES, OVERRIDE))
        }
        (IpAddr::V6(target), IpAddr::V6(asker)) => Some(advertisement(
            question.asker_mac,
            own,
            target,
            asker,
            SOLICITED | OVERRIDE,
        )),
        _ => None,
    }
}

/// What tells everybody that the address is at `own` now: an ARP announcement (RFC 5227, section 3), or an unsolicited
/// advertisement (RFC 4861, section 7.2.6).
pub(super) fn announcement(address: IpAddr, own: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(REQUEST, BROADCAST, own, address, Mac([0; 6]), address),
        IpAddr::V6(address) => advertisement(ALL_HOSTS, own, address, ALL_NODES, OVERRIDE),
    }
}

/// The group to which solicitations for an address are sent (RFC 4291, section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let high = u16::from_be_bytes([0xff, a]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, u16::from_be_bytes([b, c]))
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(to.0);
    frame.extend(from.0);
    frame.extend(kind.to_be_bytes());
    frame
}

fn arp(operation: u8, to: Mac, own: Mac, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(to, own, ARP);
    frame.extend(ARP_KIND);
    frame.extend([0, operation]);
    frame.extend(own.0);
    frame.extend(sender.octets());
    frame.extend(target_mac.0);
    frame.extend(target.octets());
    frame
}

fn advertisement(to: Mac, own: Mac, target: Ipv6Addr, destination: Ipv6Addr, flags: u8) -> Vec<u8> {
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    // One unit of eight octets.
    message.extend([TARGET_LINK_ADDRESS, 1]);
    message.extend(own.0);
    let sum = checksum(target, destination, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = ethernet(to, own, IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    frame.extend([ICMPV6, 255]);
    // The address itself is the sender: it is this link's as much as any.
    frame.extend(target.octets());
    frame.extend(destination.octets());
    frame.extend(message);
    frame
}

/// RFC 4443, section 2.3; 0 over a message whose checksum is right.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let all = [
        &source.octets()[..],
        &destination.octets(),
        &length,
        &[0, 0, 0, ICMPV6],
        message,
    ]
    .concat();
    let (pairs, odd) = all.as_chunks::<2>();
    let last = odd.first().map(|byte| [*byte, 0]);
    let words = pairs.iter().copied().chain(last);
    let mut sum: u32 = words.map(|pair| u32::from(u16::from_be_bytes(pair))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests;
