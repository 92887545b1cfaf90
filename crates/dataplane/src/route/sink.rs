//! The link for what must not leave the node: whatever still has a service's address when it is routed.
//!
//! Services are translated before routing, so a packet that is routed to a service's address is one that connection
//! tracking could not place. Dropping it by its route costs the packets of known connections nothing; a firewall rule
//! would be asked for each of them. It is a link and not a blackhole, because a local process is routed once before its
//! first packet is translated, and needs a source address then.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podnet_core::cluster::Family;
use podnet_core::route::{Hop, RoutingState};
use podnet_linux::netlink::{Link, LinkKind, MacAddr, Neighbour, Netlink, NewLink, NewLinkKind};

use super::tunnel::LEAST_MTU;
use super::{RouteError, RoutesApplied};

/// A bridge that never has a port: the one kind of link every kernel has that swallows what it is given.
pub const SINK_LINK: &str = "podnet.sink";
/// The router behind it, that is not there: one neighbour entry instead of one per address.
const ROUTERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];
const NOBODY: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

pub(super) fn router(family: Family) -> IpAddr {
    match family {
        Family::V4 => ROUTERS[0],
        Family::V6 => ROUTERS[1],
    }
}

/// Makes the link where a route needs it, and returns its index; where none does, takes it away.
pub(super) fn apply(
    netlink: &mut Netlink,
    want: &RoutingState,
    mtu: Option<u32>,
    applied: &mut RoutesApplied,
) -> Result<Option<u32>, RouteError> {
    let have = netlink.link(SINK_LINK)?;
    if !want.routes.values().any(|hop| *hop == Hop::Sink) {
        if let Some(link) = have {
            netlink.request(link.delete())?;
            applied.changes += 1;
        }
        return Ok(None);
    }
    // A local process takes its first segments' size from it.
    let mtu = mtu.map(|mtu| mtu.max(LEAST_MTU));
    let link = link(netlink, have, mtu, applied)?;
    neighbours(netlink, link.index, applied)?;
    Ok(Some(link.index))
}

fn link(
    netlink: &mut Netlink,
    have: Option<Link>,
    mtu: Option<u32>,
    applied: &mut RoutesApplied,
) -> Result<Link, RouteError> {
    let kept = match have {
        Some(link) if link.kind == LinkKind::Bridge => Some(link),
        Some(link) => {
            netlink.request(link.delete())?;
            None
        }
        None => None,
    };
    let link = match kept {
        Some(link) => link,
        None => {
            applied.changes += 1;
            let new = NewLink {
                mtu,
                ..NewLink::new(SINK_LINK, NewLinkKind::Bridge)
            };
            let link = netlink.apply_and_get([new.create()], SINK_LINK)?;
            // Without a link-local address the kernel sends nothing into it of its own accord.
            netlink.request(link.change().without_link_local().apply())?;
            link
        }
    };
    let mtu = mtu.unwrap_or(link.mtu);
    if (link.mtu, link.up) != (mtu, true) {
        netlink.request(link.change().mtu(mtu).up(true).apply())?;
        applied.changes += 1;
    }
    Ok(link)
}

fn neighbours(netlink: &mut Netlink, index: u32, applied: &mut RoutesApplied) -> Result<(), RouteError> {
    let have = netlink.neighbours(Some(index))?;
    for router in ROUTERS {
        let is_there = have
            .iter()
            .any(|entry| (entry.address, entry.mac, entry.permanent) == (router, Some(NOBODY), true));
        if !is_there {
            netlink.request(Neighbour::permanent(index, router, NOBODY).replace())?;
            applied.changes += 1;
        }
    }
    Ok(())
}
