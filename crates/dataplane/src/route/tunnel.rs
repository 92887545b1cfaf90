//! The VXLAN link: made once and kept, its entries changed one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podnet_core::route::{Mac, RoutingState, Tunnel};
use podnet_linux::ethtool;
use podnet_linux::netlink::{
    Address, AddressFlags, FdbEntry, Link, LinkKind, MacAddr, Neighbour, Netlink, NetlinkError, NewLink,
    NewLinkKind, Vxlan,
};

use super::{Changes, Installed, RouteError, RoutesApplied, TUNNEL_LINK};
use crate::delta::Delta;

/// What IPv6 asks of every link (RFC 8200 section 5).
pub(super) const LEAST_MTU: u32 = 1280;

/// Makes the tunnel the wanted one, and returns its index. One that is not wanted is left to its routes' end.
pub(super) fn apply(
    netlink: &mut Netlink,
    want: &RoutingState,
    underlay: Option<&Link>,
    changes: &mut Changes,
    applied: &mut RoutesApplied,
) -> Result<Option<u32>, RouteError> {
    let (Some(tunnel), Some(underlay)) = (&want.tunnel, underlay) else {
        return Ok(None);
    };
    let have = netlink.link(TUNNEL_LINK)?;
    let mtu = underlay.mtu.saturating_sub(tunnel.overhead());
    if mtu < LEAST_MTU && tunnel.addresses.iter().any(|address| address.addr().is_ipv6()) {
        return Err(RouteError::MtuTooSmall {
            link: underlay.name.clone(),
            mtu: underlay.mtu,
        });
    }
    let link = link(netlink, have, tunnel, mtu, applied)?;
    addresses(netlink, &link, tunnel, applied)?;
    if !tunnel.checksum_offload && checksum_offload()? {
        ethtool::set_tx_checksum(TUNNEL_LINK, false).map_err(RouteError::Offload)?;
        applied.changes += 1;
    }
    entries(netlink, &link, want, changes)?;
    Ok(Some(link.index))
}

/// Whether the device leaves checksums to the hardware.
pub(super) fn checksum_offload() -> Result<bool, RouteError> {
    ethtool::tx_checksum(TUNNEL_LINK).map_err(RouteError::Offload)
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
    if let Some(link) = have {
        if let LinkKind::Vxlan(found) = &link.kind
            && can_become(found, &vxlan)
        {
            if found.local != vxlan.local {
                netlink.request(link.change().vxlan_local(tunnel.local).apply())?;
                applied.changes += 1;
            }
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

/// Whether a tunnel can be changed into the wanted one: all but its address, within one family, is for good.
fn can_become(found: &Vxlan, wanted: &Vxlan) -> bool {
    let family = |vxlan: &Vxlan| vxlan.local.map(|local| local.is_ipv4());
    (found.vni, found.port, found.learning, family(found))
        == (wanted.vni, wanted.port, wanted.learning, family(wanted))
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

/// Forwarding entries, then the neighbours that lead to them; both come before the routes that need them, and go after.
fn entries(
    netlink: &mut Netlink,
    link: &Link,
    want: &RoutingState,
    changes: &mut Changes,
) -> Result<(), RouteError> {
    let index = link.index;
    let have = forwarding(netlink, index)?;
    let entry = |mac: &Mac, remote: &IpAddr| FdbEntry::vxlan(index, MacAddr(mac.0), *remote);
    let delta = Delta::between(&want.forwarding, &have);
    let set = delta.set().map(|(mac, remote)| entry(mac, remote).replace());
    changes.set.extend(set);
    let gone = delta
        .remove
        .iter()
        .map(|(mac, remote)| entry(mac, remote).delete());
    changes.gone.extend(gone);

    let have = neighbours(netlink, index)?;
    let neighbour = |address: &IpAddr, mac: &Mac| Neighbour::permanent(index, *address, MacAddr(mac.0));
    let delta = Delta::between(&want.neighbours, &have);
    let set = delta
        .set()
        .map(|(address, mac)| neighbour(address, mac).replace());
    changes.set.extend(set);
    let gone = delta
        .remove
        .iter()
        .map(|(address, mac)| neighbour(address, mac).delete());
    changes.gone.extend(gone);
    Ok(())
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
