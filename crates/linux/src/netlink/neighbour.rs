//! Neighbours (ARP and NDP entries) and the forwarding entries of bridges and VXLAN tunnels.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{MacAddr, Netlink, NetlinkError, Request, route::family, wire};

/// What the kernel knows, or is told, about an address on a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Neighbour {
    /// Index of the link.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Its Ethernet address, where that is known.
    pub mac: Option<MacAddr>,
    /// Holds until it is removed. The others were learnt, and are forgotten.
    pub permanent: bool,
    /// This machine answers for the address on the link.
    pub proxy: bool,
}

/// Where a bridge or VXLAN tunnel sends frames for an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FdbEntry {
    /// Index of the VXLAN link, or of the bridge's port.
    pub link: u32,
    /// The Ethernet address; all zeros stands for every address a VXLAN tunnel does not know.
    pub mac: MacAddr,
    /// The tunnel's other end.
    pub destination: Option<IpAddr>,
    /// Holds until it is removed. The others were learnt, and are forgotten.
    pub permanent: bool,
    /// An entry of the bridge which the link is a port of, not of the link itself.
    pub of_master: bool,
}

// Attribute numbers of include/uapi/linux/neighbour.h.
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;
/// Length of `struct ndmsg`.
const HEADER: usize = 12;

/// A request for an entry that is to be; `flags` say what becomes of one that is there.
fn set(verb: &str, flags: u16, entry: NeighbourMessage, name: &str) -> Request<'static> {
    let message = RouteNetlinkMessage::NewNeighbour(entry);
    Request::new(message, NLM_F_CREATE | flags, format!("{verb} {name}"))
}

fn remove(entry: NeighbourMessage, name: &str) -> Request<'static> {
    Request::new(
        RouteNetlinkMessage::DelNeighbour(entry),
        0,
        format!("remove {name}"),
    )
}

impl Neighbour {
    /// An entry that holds until it is removed.
    pub fn permanent(link: u32, address: IpAddr, mac: MacAddr) -> Self {
        Neighbour {
            link,
            address,
            mac: Some(mac),
            permanent: true,
            proxy: false,
        }
    }

    /// An address that this machine answers for on the link.
    pub fn proxy(link: u32, address: IpAddr) -> Self {
        Neighbour {
            link,
            address,
            mac: None,
            permanent: true,
            proxy: true,
        }
    }

    /// Adds it. An error if the link has an entry for the address.
    pub fn add(&self) -> Request<'static> {
        set("add", NLM_F_EXCL, self.message(), &self.name())
    }

    /// Adds it in place of what the link knows about the address.
    pub fn replace(&self) -> Request<'static> {
        set("set", NLM_F_REPLACE, self.message(), &self.name())
    }

    /// Removes it.
    pub fn delete(&self) -> Request<'static> {
        remove(self.message(), &self.name())
    }

    fn name(&self) -> String {
        let kind = if self.proxy {
            "proxy neighbour"
        } else {
            "neighbour"
        };
        format!("{kind} {} on the link with index {}", self.address, self.link)
    }

    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family(self.address);
        message.header.ifindex = self.link;
        message.header.state = if self.permanent {
            NeighbourState::Permanent
        } else {
            NeighbourState::Stale
        };
        if self.proxy {
            message.header.flags = NeighbourFlags::Proxy;
        }
        message
            .attributes
            .push(NeighbourAttribute::Destination(self.address.into()));
        message.attributes.extend(
            self.mac
                .map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())),
        );
        message
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let (link, state, flags) = header(payload)?;
        let (mut address, mut mac) = (None, None);
        for (kind, value) in wire::attributes(payload, HEADER) {
            match kind {
                NDA_DST => address = wire::ip(value),
                NDA_LLADDR => mac = MacAddr::from_slice(value),
                _ => {}
            }
        }
        let proxy = flags.contains(NeighbourFlags::Proxy);
        let permanent = proxy || state & u16::from(NeighbourState::Permanent) != 0;
        Some(Neighbour {
            link,
            address: address?,
            mac,
            permanent,
            proxy,
        })
    }
}

impl FdbEntry {
    /// An entry of a VXLAN tunnel: frames for `mac` go to the tunnel's end at `destination`.
    pub fn vxlan(link: u32, mac: MacAddr, destination: IpAddr) -> Self {
        FdbEntry {
            link,
            mac,
            destination: Some(destination),
            permanent: true,
            of_master: false,
        }
    }

    /// Adds it. An error if there is one for the Ethernet address.
    pub fn add(&self) -> Request<'static> {
        set("add", NLM_F_EXCL, self.message(), &self.name())
    }

    /// Adds it in place of the one for the Ethernet address.
    pub fn replace(&self) -> Request<'static> {
        set("set", NLM_F_REPLACE, self.message(), &self.name())
    }

    /// Adds it beside others for the same Ethernet address: all get the frame. Only for addresses of groups
    /// and the address of zeros.
    pub fn append(&self) -> Request<'static> {
        set("append", NLM_F_APPEND, self.message(), &self.name())
    }

    /// Removes it.
    pub fn delete(&self) -> Request<'static> {
        remove(self.message(), &self.name())
    }

    fn name(&self) -> String {
        format!(
            "forwarding entry {} on the link with index {}",
            self.mac, self.link
        )
    }

    fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.link;
        message.header.state = if self.permanent && self.of_master {
            // NUD_PERMANENT would make it the bridge's own address.
            NeighbourState::Noarp
        } else if self.permanent {
            // NUD_NOARP beside NUD_PERMANENT is what iproute2 calls "permanent" and "static": never aged.
            NeighbourState::Other(u16::from(NeighbourState::Permanent) | u16::from(NeighbourState::Noarp))
        } else {
            NeighbourState::Reachable
        };
        message.header.flags = if self.of_master {
            NeighbourFlags::Controller
        } else {
            NeighbourFlags::Own
        };
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(self.mac.0.to_vec()));
        message.attributes.extend(
            self.destination
                .map(|to| NeighbourAttribute::Destination(to.into())),
        );
        message
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let (link, state, flags) = header(payload)?;
        let (mut mac, mut destination, mut master) = (None, None, false);
        for (kind, value) in wire::attributes(payload, HEADER) {
            match kind {
                NDA_LLADDR => mac = MacAddr::from_slice(value),
                NDA_DST => destination = wire::ip(value),
                NDA_MASTER => master = true,
                _ => {}
            }
        }
        Some(FdbEntry {
            link,
            mac: mac?,
            destination,
            permanent: state & (u16::from(NeighbourState::Permanent) | u16::from(NeighbourState::Noarp)) != 0,
            of_master: master && !flags.contains(NeighbourFlags::Own),
        })
    }
}

/// Link index, state and flags.
fn header(payload: &[u8]) -> Option<(u32, u16, NeighbourFlags)> {
    let header = payload.get(..HEADER)?;
    Some((
        wire::word(&header[4..])?,
        wire::half(&header[8..])?,
        NeighbourFlags::from_bits_truncate(header[10]),
    ))
}

impl Netlink {
    /// The neighbours of both families on a link, or on all.
    pub fn neighbours(&mut self, link: Option<u32>) -> Result<Vec<Neighbour>, NetlinkError> {
        self.neighbour_table(link, NeighbourFlags::empty(), "list the neighbours")
    }

    /// The addresses that this machine answers for on a link, or on all.
    pub fn proxy_neighbours(&mut self, link: Option<u32>) -> Result<Vec<Neighbour>, NetlinkError> {
        self.neighbour_table(link, NeighbourFlags::Proxy, "list the proxy neighbours")
    }

    fn neighbour_table(
        &mut self,
        link: Option<u32>,
        flags: NeighbourFlags,
        what: &str,
    ) -> Result<Vec<Neighbour>, NetlinkError> {
        let mut neighbours = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            message.header.flags = flags;
            message.attributes.extend(link.map(NeighbourAttribute::IfIndex));
            let request = Request::new(RouteNetlinkMessage::GetNeighbour(message), 0, what.into());
            neighbours.extend(self.dump(&request, Neighbour::read)?);
        }
        neighbours.retain(|neighbour| link.is_none_or(|index| neighbour.link == index));
        Ok(neighbours)
    }

    /// The forwarding entries of a link, or of all.
    pub fn fdb(&mut self, link: Option<u32>) -> Result<Vec<FdbEntry>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.attributes.extend(link.map(NeighbourAttribute::IfIndex));
        let request = Request::new(
            RouteNetlinkMessage::GetNeighbour(message),
            0,
            "list the forwarding entries".into(),
        );
        let mut entries = self.dump(&request, FdbEntry::read)?;
        entries.retain(|entry| link.is_none_or(|index| entry.link == index));
        Ok(entries)
    }
}
