//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags as WireFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError, Request, Scope, route::family, wire};

/// What an address does beyond being there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddressFlags {
    /// Used at once, without asking the link whether somebody has it (IPv6 duplicate address detection).
    pub nodad: bool,
    /// No route to its subnet comes with it.
    pub noprefixroute: bool,
}

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The link it is on.
    pub link: u32,
    /// The address and the length of its subnet's prefix.
    pub net: IpNet,
    /// How far it means something.
    pub scope: Scope,
    /// Its flags.
    pub flags: AddressFlags,
}

// Attribute numbers of include/uapi/linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// Length of `struct ifaddrmsg`.
const HEADER: usize = 8;

impl Address {
    /// A global address of a link.
    pub fn new(link: u32, net: IpNet) -> Self {
        Address {
            link,
            net,
            scope: Scope::Universe,
            flags: AddressFlags::default(),
        }
    }

    /// Adds it. An error if the link has it already.
    pub fn add(&self) -> Request<'static> {
        self.request(NLM_F_CREATE | NLM_F_EXCL, "add")
    }

    /// Adds it, or changes its flags if the link has it.
    pub fn replace(&self) -> Request<'static> {
        self.request(NLM_F_CREATE | NLM_F_REPLACE, "set")
    }

    /// Removes it.
    pub fn delete(&self) -> Request<'static> {
        let what = format!(
            "remove address {} from the link with index {}",
            self.net, self.link
        );
        Request::new(RouteNetlinkMessage::DelAddress(self.message()), 0, what)
    }

    fn request(&self, flags: u16, verb: &str) -> Request<'static> {
        let what = format!("{verb} address {} on the link with index {}", self.net, self.link);
        Request::new(RouteNetlinkMessage::NewAddress(self.message()), flags, what)
    }

    fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        let address = self.net.addr();
        message.header.family = family(address);
        message.header.prefix_len = self.net.prefix_len();
        message.header.scope = AddressScope::from(u8::from(self.scope));
        message.header.index = self.link;
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
        ];
        if let IpNet::V4(net) = self.net
            && net.prefix_len() < 31
            && !address.is_loopback()
        {
            message
                .attributes
                .push(AddressAttribute::Broadcast(net.broadcast()));
        }
        let mut flags = WireFlags::empty();
        flags.set(WireFlags::Nodad, self.flags.nodad);
        flags.set(WireFlags::Noprefixroute, self.flags.noprefixroute);
        // Only the lowest eight flags fit into the header; the kernel takes the attribute when it is there.
        message.header.flags = AddressHeaderFlags::from_bits_truncate(flags.bits() as u8);
        message.attributes.push(AddressAttribute::Flags(flags));
        message
    }

    fn read(payload: &[u8]) -> Option<Self> {
        let prefix = *payload.get(1)?;
        let flags = flags(payload)?;
        let (mut local, mut address): (Option<IpAddr>, Option<IpAddr>) = (None, None);
        for (kind, value) in wire::attributes(payload, HEADER) {
            match kind {
                IFA_ADDRESS => address = wire::ip(value),
                IFA_LOCAL => local = wire::ip(value),
                _ => {}
            }
        }
        Some(Address {
            link: wire::word(payload.get(4..8)?)?,
            // On a point-to-point link IFA_ADDRESS is the other end's.
            net: IpNet::new(local.or(address)?, prefix).ok()?,
            scope: Scope::from(*payload.get(3)?),
            flags: AddressFlags {
                nodad: flags.contains(WireFlags::Nodad),
                noprefixroute: flags.contains(WireFlags::Noprefixroute),
            },
        })
    }
}

/// The flags of an address: only the lowest eight fit into its header, and all are in the attribute.
fn flags(payload: &[u8]) -> Option<WireFlags> {
    let all = wire::attributes(payload, HEADER).find(|(kind, _)| *kind == IFA_FLAGS);
    let bits = match all {
        Some((_, value)) => wire::word(value)?,
        None => u32::from(*payload.get(2)?),
    };
    Some(WireFlags::from_bits_truncate(bits))
}

impl Netlink {
    /// The addresses of both families, of all links or of one.
    pub fn addresses(&mut self, link: Option<u32>) -> Result<Vec<Address>, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = link.unwrap_or(0);
        let request = Request::new(
            RouteNetlinkMessage::GetAddress(message),
            0,
            "list the addresses".into(),
        );
        let addresses = self.dump(&request, Address::read)?;
        Ok(addresses
            .into_iter()
            .filter(|address| link.is_none_or(|index| address.link == index))
            .collect())
    }

    /// Whether an address of the link is tentative: nothing that is sent to it arrives yet, and nothing leaves from it.
    ///
    /// An IPv6 address begins so even without duplicate address detection. A worker of the kernel's, one for all
    /// namespaces, ends it (addrconf_dad_work), and that waits for its turn where many links are made.
    pub fn is_tentative(&mut self, link: u32) -> Result<bool, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.index = link;
        let message = RouteNetlinkMessage::GetAddress(message);
        let request = Request::new(message, 0, "list the IPv6 addresses".into());
        let flags = self.dump(&request, |payload| {
            (wire::word(payload.get(4..8)?)? == link).then(|| flags(payload))?
        })?;
        Ok(flags.iter().any(|flags| flags.contains(WireFlags::Tentative)))
    }
}
