//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags as WireFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};

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
        let mut flags = WireFlags::from_bits_truncate(u32::from(*payload.get(2)?));
        let (mut local, mut address): (Option<IpAddr>, Option<IpAddr>) = (None, None);
        for (kind, value) in wire::attributes(payload, HEADER) {
            match kind {
                IFA_ADDRESS => address = wire::ip(value),
                IFA_LOCAL => local = wire::ip(value),
                IFA_FLAGS => flags = WireFlags::from_bits_truncate(wire::word(value)?),
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
}
