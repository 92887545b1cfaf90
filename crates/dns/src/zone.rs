//! Where a name stands in the cluster's zones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podnet_core::cluster::PodRecords;
use podnet_core::names::{NamedService, Names, address_of};

use crate::name::Name;

/// What is at a name.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found<'a> {
    /// Nothing of ours.
    Outside,
    /// In a zone of ours.
    In {
        /// The first label of the zone's own name.
        apex: usize,
        /// What is there.
        node: Node<'a>,
    },
}

/// What is at a name in a zone of ours.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Node<'a> {
    /// Nothing, and nothing below (NXDOMAIN).
    Nothing,
    /// No records; names below may have some.
    Empty,
    /// The zone itself.
    Apex,
    /// The version of the names' specification.
    Version,
    /// The name server.
    NameServer,
    /// A service's name.
    Service(&'a NamedService),
    /// `_port._protocol` of a service: the first two labels.
    Port(&'a NamedService),
    /// The endpoints of a service that have the first label.
    Endpoint(&'a NamedService),
    /// An address.
    Address(IpAddr),
    /// What has an address.
    Pointer(IpAddr),
}

/// Finds a name.
pub(crate) fn find<'a>(names: &'a Names, name: &Name) -> Found<'a> {
    if let Some(apex) = name.before(names.config().zone.wire()) {
        return Found::In {
            apex,
            node: forward(names, name, apex),
        };
    }
    reverse(names, name).unwrap_or(Found::Outside)
}

/// A name in the cluster's zone, of which `count` labels are its own.
fn forward<'a>(names: &'a Names, name: &Name, count: usize) -> Node<'a> {
    let Some(last) = count.checked_sub(1) else {
        return Node::Apex;
    };
    match name.label(last) {
        b"svc" => service(names, name, last),
        b"pod" => pod(names, name, last),
        b"dns-version" if last == 0 => Node::Version,
        b"dns" if last == 0 => Node::Empty,
        b"dns" if last == 1 && name.label(0) == b"ns" => Node::NameServer,
        _ => Node::Nothing,
    }
}

/// A name below `svc.ZONE`; `end` labels stand before that.
fn service<'a>(names: &'a Names, name: &Name, end: usize) -> Node<'a> {
    match end {
        0 => Node::Empty,
        1 if names.has_namespace(name.labels(0, 1)) => Node::Empty,
        1 => Node::Nothing,
        _ => names
            .service(name.labels(end - 2, end))
            .map_or(Node::Nothing, |service| below(service, name, end - 2)),
    }
}

/// A name below a service's; `end` labels stand before that.
fn below<'a>(service: &'a NamedService, name: &Name, end: usize) -> Node<'a> {
    if end == 0 {
        return Node::Service(service);
    }
    if service.alias().is_some() {
        return Node::Nothing;
    }
    let underscored = |label: usize| name.label(label).strip_prefix(b"_");
    match (end, underscored(0), underscored(end - 1)) {
        (1, Some(protocol), _) if service.speaks(protocol) => Node::Empty,
        (2, Some(port), Some(protocol)) if service.has_port(port, protocol) => Node::Port(service),
        (1, None, _) if service.endpoints_labelled(name.label(0)).next().is_some() => Node::Endpoint(service),
        _ => Node::Nothing,
    }
}

/// A name below `pod.ZONE`; `end` labels stand before that.
fn pod<'a>(names: &Names, name: &Name, end: usize) -> Node<'a> {
    let mode = names.config().pods;
    match (mode, end) {
        (PodRecords::Off, _) => Node::Nothing,
        (_, 0) => Node::Empty,
        // Every namespace has all addresses.
        (PodRecords::Insecure, 1) => Node::Empty,
        (PodRecords::Verified, 1) if names.has_namespace(name.labels(0, 1)) => Node::Empty,
        (_, 2) => match address_of(name.label(0)) {
            Some(address) if mode == PodRecords::Insecure || names.has_pod(address, name.labels(1, 2)) => {
                Node::Address(address)
            }
            _ => Node::Nothing,
        },
        _ => Node::Nothing,
    }
}

/// A name made of an address, or of the beginning of one. `None` when it is not ours to know.
fn reverse<'a>(names: &Names, name: &Name) -> Option<Found<'a>> {
    let spelled = Spelled::read(name)?;
    let found = |apex, node| Some(Found::In { apex, node });
    let known = spelled.whole.is_some_and(|address| names.at(address).len() > 0);
    let zones = &names.config().reverse_zones;
    let zone = zones.iter().find(|zone| spelled.is_in(zone));
    // The labels of the zone's own name: it ends where a label does.
    let own = zone.map_or(spelled.labels, |zone| {
        usize::from(zone.prefix_len()).div_ceil(spelled.bits)
    });
    let apex = spelled.first + spelled.labels - own;
    match spelled.whole {
        // Without a range of ours, only the name of an address itself is ours.
        _ if zone.is_none() && (!known || spelled.more) => None,
        _ if spelled.more => found(apex, Node::Nothing),
        Some(address) if known => found(apex, Node::Pointer(address)),
        Some(_) if own < spelled.labels => found(apex, Node::Nothing),
        _ if own == spelled.labels => found(apex, Node::Apex),
        _ => found(apex, Node::Empty),
    }
}

/// What a name below `in-addr.arpa` or `ip6.arpa` says of an address.
#[derive(Debug)]
struct Spelled {
    /// The address, if it is spelled to its end.
    whole: Option<IpAddr>,
    /// The range of all addresses that begin so.
    range: IpNet,
    /// Bits of each label: 8 or 4.
    bits: usize,
    /// The first label that was read.
    first: usize,
    /// How many were read.
    labels: usize,
    /// Whether more stand before them.
    more: bool,
}

impl Spelled {
    fn read(name: &Name) -> Option<Self> {
        let mut address = [0; 16];
        let (end, bits, most) = if let Some(end) = name.before(b"\x07in-addr\x04arpa\0") {
            (end, 8, 4)
        } else {
            (name.before(b"\x03ip6\x04arpa\0")?, 4, 32)
        };
        let mut labels = 0;
        while labels < most.min(end) {
            let label = name.label(end - 1 - labels);
            if bits == 8 {
                let Some(octet) = octet(label) else { break };
                address[labels] = octet;
            } else {
                let Some(nibble) = nibble(label) else { break };
                address[labels / 2] |= if labels % 2 == 0 { nibble << 4 } else { nibble };
            }
            labels += 1;
        }
        let length = u8::try_from(labels * bits).ok()?;
        let [a, b, c, d, ..] = address;
        let start = if bits == 8 {
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(address))
        };
        Some(Spelled {
            whole: (labels == most).then_some(start),
            range: IpNet::new(start, length).ok()?,
            bits,
            first: end - labels,
            labels,
            more: labels < end,
        })
    }

    /// Whether it is the zone's name or below it. A zone whose prefix ends within a label has several names.
    fn is_in(&self, zone: &IpNet) -> bool {
        let own = usize::from(zone.prefix_len()).div_ceil(self.bits);
        own <= self.labels && zone.contains(&self.range)
    }
}

fn octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    // As it is written and no other way: no sign, no zeros before it.
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    canonical.then(|| text.parse().ok()).flatten()
}

fn nibble(label: &[u8]) -> Option<u8> {
    let &[digit] = label else { return None };
    char::from(digit)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(text: &str) -> Option<(String, bool, bool)> {
        let name: podnet_core::cluster::DomainName = text.parse().unwrap();
        let spelled = Spelled::read(&Name::parse(name.wire()).unwrap())?;
        Some((spelled.range.to_string(), spelled.whole.is_some(), spelled.more))
    }

    #[test]
    fn reverse_names_are_read_from_their_end() {
        let is = |range: &str, whole, more| Some((range.to_owned(), whole, more));
        assert_eq!(spelled("1.0.96.10.in-addr.arpa"), is("10.96.0.1/32", true, false));
        assert_eq!(spelled("96.10.IN-ADDR.arpa"), is("10.96.0.0/16", false, false));
        assert_eq!(spelled("x.96.10.in-addr.arpa"), is("10.96.0.0/16", false, true));
        assert_eq!(spelled("01.96.10.in-addr.arpa"), is("10.96.0.0/16", false, true));
        assert_eq!(spelled("256.in-addr.arpa"), is("0.0.0.0/0", false, true));
        assert_eq!(
            spelled("5.1.0.96.10.in-addr.arpa"),
            is("10.96.0.1/32", true, true)
        );
        assert_eq!(spelled("0.0.D.f.ip6.arpa"), is("fd00::/16", false, false));
        let whole = format!("5.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(spelled(&whole), is("fd00::5/128", true, false));
        assert_eq!(spelled("1.96.10.in-addr.example"), None);
    }
}
