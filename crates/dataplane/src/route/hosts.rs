//! Without a tunnel: this node's own addresses among its pods', on the loopback.
//!
//! They are the network addresses of the node's ranges, by which it is asked whether packets for its pods arrive. On the
//! loopback nothing else chooses them as source. An address cannot say whose it is on every kernel; ours are those that
//! are the network address of an unreachable route of ours.

use std::collections::BTreeSet;

use ipnet::IpNet;
use podnet_core::route::RoutingState;
use podnet_linux::netlink::{
    Address, AddressFlags, MAIN_TABLE, Netlink, Request, RouteFilter, RouteKind, Scope,
};

use super::{ROUTE_PROTOCOL, RouteError, RoutesApplied};

const LOOPBACK: u32 = 1;

/// Adds what is missing. What is there and not wanted is returned, to go after the routes.
pub(super) fn apply(
    netlink: &mut Netlink,
    want: &RoutingState,
    applied: &mut RoutesApplied,
) -> Result<Vec<Request<'static>>, RouteError> {
    let there: BTreeSet<IpNet> = netlink
        .addresses(Some(LOOPBACK))?
        .iter()
        .map(|address| address.net)
        .collect();
    let missing = want.host_addresses.difference(&there);
    let missing: Vec<_> = missing.map(|net| address(*net).add()).collect();
    applied.changes += missing.len();
    netlink.apply(missing)?;
    let stale = present(netlink)?.into_iter();
    let stale = stale.filter(|address| !want.host_addresses.contains(&address.net));
    Ok(stale.map(|address| address.delete()).collect())
}

/// Those of ours that are there.
pub(super) fn present(netlink: &mut Netlink) -> Result<Vec<Address>, RouteError> {
    let filter = RouteFilter {
        protocol: Some(ROUTE_PROTOCOL),
        table: Some(MAIN_TABLE),
        ..RouteFilter::default()
    };
    let routes = netlink.routes(filter)?.into_iter();
    let networks: BTreeSet<IpNet> = routes
        .filter(|route| route.kind == RouteKind::Unreachable)
        .map(|route| IpNet::from(route.destination.network()))
        .collect();
    let mut addresses = netlink.addresses(Some(LOOPBACK))?;
    addresses.retain(|address| networks.contains(&address.net));
    Ok(addresses)
}

fn address(net: IpNet) -> Address {
    Address {
        // Not to be chosen for what goes beyond this machine.
        scope: if net.addr().is_ipv4() {
            Scope::Host
        } else {
            Scope::Universe
        },
        flags: AddressFlags {
            nodad: net.addr().is_ipv6(),
            ..AddressFlags::default()
        },
        ..Address::new(LOOPBACK, net)
    }
}
