//! The links of this node that addresses can be announced on.

use std::io;
use std::net::IpAddr;

use podnet_linux::MacAddr;
use podnet_linux::netlink::{Link, Netlink, NetlinkError};

/// A link that carries frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usable {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mac: MacAddr,
    /// It is the one between nodes.
    pub(super) underlay: bool,
}

/// Where links are looked up.
pub(super) struct Links {
    netlink: Netlink,
    /// The link between nodes, where its name was given.
    underlay: Option<String>,
}

impl Links {
    pub(super) fn open(underlay: Option<String>) -> io::Result<Self> {
        let netlink = Netlink::open().map_err(io::Error::other)?;
        Ok(Links { netlink, underlay })
    }

    /// The links that carry frames now. `local` is the node's address, which tells the link between nodes.
    pub(super) fn usable(&mut self, local: Option<IpAddr>) -> Result<Vec<Usable>, NetlinkError> {
        let on = match (&self.underlay, local) {
            (None, Some(local)) => {
                let addresses = self.netlink.addresses(None)?;
                addresses
                    .iter()
                    .find(|address| address.net.addr() == local)
                    .map(|address| address.link)
            }
            _ => None,
        };
        let links = self.netlink.links()?;
        let usable = links
            .into_iter()
            .filter(|link| link.up && link.running && !link.loopback);
        let usable = usable.filter_map(|link: Link| {
            let named = self.underlay.as_ref() == Some(&link.name);
            Some(Usable {
                underlay: named || on == Some(link.index),
                mac: link.mac?,
                index: link.index,
                name: link.name,
            })
        });
        Ok(usable.collect())
    }
}
