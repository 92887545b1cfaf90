//! The VXLAN link: made once and kept, its entries changed one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podnet_core::route::{Mac, RoutingState, Tunnel};
use podnet_linux::netlink::{
    Address, AddressFlags, FdbEntry, Link, LinkKind, MacAddr, Neighbour, Netlink, NetlinkError, NewLink,
    NewLinkKind, Vxlan,
};

use super::{Installed, RouteError, RoutesApplied, TUNNEL_LINK, each};
use crate::delta::Delta;

/// What IPv6 asks of every link (RFC 8200 section 5).
pub(super) const LEAST_MTU: u32 = 1280;

/// Makes the tunnel the wanted one, and returns its index; where none is wanted, takes it away.
pub(super) fn apply(
    netlink: &mut Netlink,
    want: &RoutingState,
    underlay: Option<&Link>,
    applied: &mut RoutesApplied,
) -> Result<Option<u32>, RouteError> {
    let have = netlink.link(TUNNEL_LINK)?;
    let (Some(tunnel), Some(underlay)) = (&want.tunnel, underlay) else {
        if let Some(link) = have {
            netlink.request(link.delete())?;
            applied.changes += 1;
        }
        return Ok(None);
    };
    let mtu = underlay.mtu.saturating_sub(tunnel.overhead());
    if mtu < LEAST_MTU && tunnel.addresses.iter().any(|address| address.addr().is_ipv6()) {
        return Err(RouteError::MtuTooSmall {
            link: underlay.name.clone(),
            mtu: underlay.mtu,
        });
    }
    let link = link(netlink, have, tunnel, mtu, applied)?;
    addresses(netlink, &link, tunnel, applied)?;
    entries(netlink, &link, want, applied)?;
    Ok(Some(link.index))
}

/// The link, reused when only its address or size differ: taking it away would take every route along.
fn link(
    netlink: &mut Netlink,
    have: Option<Link>,
    tunnel: &Tunnel,
    mtu: u32,
    applied: &mut RoutesApplied,
) -> Result<Link, RouteError> {
    let mac = MacAddr(tunnel.mac.0);
    let vxlan = Vxlan::new(tunnel.vxlan.vni, tunnel.vxlan.port, tunnel.local);
    let fits = |link: &Link| match &link.kind {
        LinkKind::Vxlan(found) => {
            (found.vni, found.port, found.local, found.learning)
                == (vxlan.vni, vxlan.port, vxlan.local, false)
        }
        _ => false,
    };
    if let Some(link) = have {
        if fits(&link) {
            if (link.mtu, link.mac, link.up) != (mtu, Some(mac), true) {
                netlink.request(link.change().mtu(mtu).mac(mac).up(true).apply())?;
                applied.changes += 1;
            }
            return Ok(link);
        }
        netlink.request(link.delete())?;
        applied.changes += 1;
    }
    let new = NewLink {
        mtu: Some(mtu),
        mac: Some(mac),
        ..NewLink::new(TUNNEL_LINK, NewLinkKind::Vxlan(vxlan))
    };
    netlink.request(new.create())?;
    applied.changes += 1;
    let link = netlink.link(TUNNEL_LINK)?;
    let link = link.ok_or_else(|| RouteError::NoSuchLink(TUNNEL_LINK.into()))?;
    // Without a link-local address the kernel sends nothing into the tunnel of its own accord.
    netlink.request(link.change().without_link_local().apply())?;
    netlink.request(link.change().up(true).apply())?;
    Ok(link)
}

fn addresses(
    netlink: &mut Netlink,
    link: &Link,
    tunnel: &Tunnel,
    applied: &mut RoutesApplied,
) -> Result<(), RouteError> {
    let have: BTreeSet<IpNet> = netlink
        .addresses(Some(link.index))?
        .iter()
        .map(|address| address.net)
        .collect();
    let address = |net: &IpNet| Address {
        flags: AddressFlags {
            nodad: net.addr().is_ipv6(),
            ..AddressFlags::default()
        },
        ..Address::new(link.index, *net)
    };
    let missing = tunnel.addresses.difference(&have).map(|net| address(net).add());
    let surplus = have
        .difference(&tunnel.addresses)
        .map(|net| address(net).delete());
    let requests: Vec<_> = missing.chain(surplus).collect();
    applied.changes += requests.len();
    Ok(netlink.apply(requests)?)
}

/// Neighbours and forwarding entries. Both come before the routes that need them, and stale ones stay until the end of
/// nobody's need: they are unreachable once their route is gone.
fn entries(
    netlink: &mut Netlink,
    link: &Link,
    want: &RoutingState,
    applied: &mut RoutesApplied,
) -> Result<(), RouteError> {
    let index = link.index;
    let have = neighbours(netlink, index)?;
    let delta = Delta::between(&want.neighbours, &have);
    let neighbour = |address: &IpAddr, mac: &Mac| Neighbour::permanent(index, *address, MacAddr(mac.0));
    let set = delta
        .add
        .iter()
        .copied()
        .chain(delta.change.iter().map(|(address, mac, _)| (*address, *mac)));
    let set = set.map(|(address, mac)| neighbour(address, mac).replace());
    let gone = delta
        .remove
        .iter()
        .map(|(address, mac)| neighbour(address, mac).delete());
    each(netlink, set.collect(), gone.collect(), applied)?;

    let have = forwarding(netlink, index)?;
    let delta = Delta::between(&want.forwarding, &have);
    let entry = |mac: &Mac, remote: &IpAddr| FdbEntry::vxlan(index, MacAddr(mac.0), *remote);
    let set = delta
        .add
        .iter()
        .copied()
        .chain(delta.change.iter().map(|(mac, remote, _)| (*mac, *remote)));
    let set = set.map(|(mac, remote)| entry(mac, remote).replace());
    let gone = delta
        .remove
        .iter()
        .map(|(mac, remote)| entry(mac, remote).delete());
    each(netlink, set.collect(), gone.collect(), applied)
}

fn neighbours(netlink: &mut Netlink, index: u32) -> Result<BTreeMap<IpAddr, Mac>, NetlinkError> {
    let found = netlink.neighbours(Some(index))?.into_iter();
    let ours = found.filter(|neighbour| neighbour.link == index && neighbour.permanent && !neighbour.proxy);
    Ok(ours
        .filter_map(|neighbour| Some((neighbour.address, Mac(neighbour.mac?.0))))
        .collect())
}

fn forwarding(netlink: &mut Netlink, index: u32) -> Result<BTreeMap<Mac, IpAddr>, NetlinkError> {
    let found = netlink
        .fdb(Some(index))?
        .into_iter()
        .filter(|entry| entry.link == index);
    Ok(found
        .filter_map(|entry| Some((Mac(entry.mac.0), entry.destination?)))
        .collect())
}

/// What the kernel has of the tunnel.
pub(super) fn dump(netlink: &mut Netlink) -> Result<Installed, RouteError> {
    let mut installed = Installed::default();
    let Some(link) = netlink.link(TUNNEL_LINK)? else {
        return Ok(installed);
    };
    if let LinkKind::Vxlan(vxlan) = &link.kind {
        let local = vxlan
            .local
            .map(|local| format!(" local {local}"))
            .unwrap_or_default();
        let mac = link.mac.map(|mac| format!(" mac {mac}")).unwrap_or_default();
        let mut addresses: Vec<IpNet> = netlink
            .addresses(Some(link.index))?
            .iter()
            .map(|a| a.net)
            .collect();
        addresses.sort();
        let addresses: String = addresses
            .iter()
            .map(|address| format!(" address {address}"))
            .collect();
        let text = format!(
            "vxlan vni {} port {}{local}{mac}{addresses} mtu {}",
            vxlan.vni, vxlan.port, link.mtu
        );
        installed.tunnel = Some(text);
    }
    installed.neighbours = neighbours(netlink, link.index)?;
    installed.forwarding = forwarding(netlink, link.index)?;
    Ok(installed)
}
