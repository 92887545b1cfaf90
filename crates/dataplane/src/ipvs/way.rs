//! How packets get to IPVS, which takes them where they are delivered to this machine. Its addresses are on no link:
//! others would then ask this machine for them, it would choose them as sources, and its programs would listen there.
//! Instead what is marked is routed by a table of its own, in which services' addresses are this machine's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use podnet_core::service::ServiceState;
use podnet_linux::ipvs::Virtual;
use podnet_linux::netlink::{MarkRule, Netlink, NetlinkError, Route, RouteFilter, RouteKind, Scope};

use super::change::Holding;
use crate::route::ROUTE_PROTOCOL;
use crate::services::share::MARK;

/// The routing table.
pub(super) const TABLE: u32 = 28_750;
const RULE: MarkRule = MarkRule {
    mark: MARK,
    mask: MARK,
    table: TABLE,
    // After the rule for the machine's own addresses, and before whatever else there may be.
    priority: 9,
};
const LOOPBACK: u32 = 1;

/// Whether a kernel that was started without IPv6 is asked for it.
pub(super) fn families() -> &'static [bool] {
    let has_six = std::path::Path::new("/proc/sys/net/ipv6").exists();
    if has_six { &[false, true] } else { &[false] }
}

/// The rule is there: it is the first to come and the last to go.
pub(super) fn is_there(netlink: &mut Netlink) -> Result<bool, NetlinkError> {
    for six in families() {
        if netlink.mark_rules(*six)?.contains(&RULE) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the rule is there for every family.
pub(super) fn is_whole(netlink: &mut Netlink) -> Result<bool, NetlinkError> {
    for six in families() {
        if !netlink.mark_rules(*six)?.contains(&RULE) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The rule, and the routes that there are.
pub(super) fn begin(netlink: &mut Netlink) -> Result<(usize, BTreeSet<IpNet>), NetlinkError> {
    let mut changes = 0;
    for six in families() {
        if !netlink.mark_rules(*six)?.contains(&RULE) {
            netlink.request(RULE.add_for(*six))?;
            changes += 1;
        }
    }
    Ok((changes, routes(netlink)?))
}

/// All addresses that are to be this machine's: those of services' ranges, and the others there are virtual services for.
pub(super) fn wanted(services: &ServiceState, holding: &Holding) -> BTreeSet<IpNet> {
    let addresses = holding
        .keys()
        .filter_map(|key| of_key(services, *key))
        .map(IpNet::from);
    let has_six = families().contains(&true);
    let ranges = services.ranges.iter().map(IpNet::trunc);
    let all = ranges.chain(addresses);
    all.filter(|net| has_six || net.addr().is_ipv4()).collect()
}

/// An address that needs a route of its own.
pub(super) fn of_key(services: &ServiceState, key: Virtual) -> Option<IpAddr> {
    match key {
        Virtual::Address { address, .. } => {
            let within = services.ranges.iter().any(|range| range.contains(&address));
            (!within).then_some(address)
        }
        Virtual::Mark { .. } => None,
    }
}

/// Whether there is a virtual service at an address.
pub(super) fn is_used(holding: &Holding, address: IpAddr) -> bool {
    let first = Virtual::Address {
        address,
        protocol: 0,
        port: 0,
    };
    let next = holding.range(first..).next();
    matches!(next, Some((Virtual::Address { address: found, .. }, _)) if *found == address)
}

pub(super) fn add(
    netlink: &mut Netlink,
    routes: impl IntoIterator<Item = IpNet>,
) -> Result<(), NetlinkError> {
    netlink.apply(routes.into_iter().map(|net| route(net).replace()))
}

pub(super) fn remove(
    netlink: &mut Netlink,
    routes: impl IntoIterator<Item = IpNet>,
) -> Result<(), NetlinkError> {
    let requests = routes.into_iter().map(|net| route(net).delete());
    for done in netlink.apply_each(requests)? {
        match done {
            Err(error) if error.is_not_found() => {}
            done => done?,
        }
    }
    Ok(())
}

/// Removes routes, and then the rule.
pub(super) fn clean(netlink: &mut Netlink) -> Result<(), NetlinkError> {
    let there = routes(netlink)?;
    remove(netlink, there)?;
    for six in families() {
        if netlink.mark_rules(*six)?.contains(&RULE) {
            netlink.request(RULE.delete_for(*six))?;
        }
    }
    Ok(())
}

fn routes(netlink: &mut Netlink) -> Result<BTreeSet<IpNet>, NetlinkError> {
    let filter = RouteFilter {
        table: Some(TABLE),
        ..RouteFilter::default()
    };
    let routes = netlink.routes(filter)?.into_iter();
    Ok(routes.map(|route| route.destination).collect())
}

fn route(net: IpNet) -> Route {
    let scope = match net {
        IpNet::V4(_) => Scope::Host,
        IpNet::V6(_) => Scope::Universe,
    };
    Route {
        kind: RouteKind::Local,
        link: Some(LOOPBACK),
        scope,
        table: TABLE,
        ..Route::new(net, ROUTE_PROTOCOL)
    }
}
