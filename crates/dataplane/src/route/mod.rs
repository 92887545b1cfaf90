//! Links, addresses, routes and tunnel entries of a node, over rtnetlink.
//!
//! Ours are: the links [`TUNNEL_LINK`] and [`SINK_LINK`] with all that is on them, and the routes with our protocol number. Nothing else is
//! ever changed; a destination that somebody else has a route for is reported and left alone. Links and routes of
//! pods are the wiring's, under another protocol number.

mod hosts;
mod sink;
mod tunnel;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::IpNet;
use podnet_core::route::{Hop, Mac, RoutingState};
use podnet_linux::netlink::{Address, Link, MAIN_TABLE, Netlink, NetlinkError, Request, RouteFilter};
use podnet_linux::sysctl;

use crate::delta::Delta;
use crate::settings::{SettingError, Settings};
pub use sink::SINK_LINK;
use way::{Links, RouteKey, Way};

/// Whether all links forward, by family.
const IPV4_FORWARDING: &str = "net/ipv4/ip_forward";
const IPV6_FORWARDING: &str = "net/ipv6/conf/all/forwarding";
/// The name of the VXLAN link.
pub const TUNNEL_LINK: &str = "podnet.vxlan";
/// The protocol number of our routes to other nodes.
pub const ROUTE_PROTOCOL: u8 = 112;

/// Why a node's routes could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Talking to the kernel failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The tunnel's device would not compute checksums.
    #[error("cannot see to checksum offload of {TUNNEL_LINK}: {0}")]
    Offload(io::Error),
    /// Forwarding could not be switched on.
    #[error("{0}; the node cannot forward packets of pods without it")]
    Forwarding(#[from] SettingError),
    /// The node's address is on none of its links.
    #[error(
        "the node's address {0} is on none of its links: compare `ip address` with the InternalIP in the Node's status"
    )]
    NoUnderlay(IpAddr),
    /// The underlay link that was asked for does not exist.
    #[error("there is no link {0:?}: choose another with --underlay-interface")]
    NoSuchLink(String),
    /// The underlay's MTU leaves nothing for pods.
    #[error("the MTU {mtu} of link {link} is too small for IPv6 packets of 1280 bytes in a tunnel")]
    MtuTooSmall {
        /// The underlay link.
        link: String,
        /// Its MTU.
        mtu: u32,
    },
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoutesApplied {
    /// How many entries changed.
    pub changes: usize,
    /// Largest packet a pod may send, in bytes; `None` while the node has no address.
    pub pod_mtu: Option<u32>,
    /// What the kernel refused, each hurting its own destination only.
    pub refused: Vec<String>,
}

/// The routes of a node, kept in the kernel.
#[derive(Debug)]
pub struct Routes {
    netlink: Netlink,
    chosen: Option<String>,
    /// Index of the underlay link, for who listens to its changes; 0 while it is not known.
    underlay: Arc<AtomicU32>,
}

/// What the kernel has of ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Installed {
    /// The tunnel, in words.
    pub tunnel: Option<String>,
    /// Without a tunnel: this node's own addresses among its pods'.
    pub host_addresses: BTreeSet<IpNet>,
    /// Routes by destination.
    pub routes: BTreeMap<IpNet, Hop>,
    /// The largest packet on a route, where that is less than its link allows.
    pub path_mtu: BTreeMap<IpNet, u32>,
    /// The tunnel's neighbours.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// The tunnel's forwarding entries.
    pub forwarding: BTreeMap<Mac, IpAddr>,
}

/// What is to be set before what is to go, whichever table it is in: so that no path breaks which is there before and
/// after.
#[derive(Default)]
struct Changes {
    set: Vec<Request<'static>>,
    gone: Vec<Request<'static>>,
}

impl Routes {
    /// For the network namespace of the calling thread. `underlay` names the link whose MTU counts; by default it is
    /// the one that has the node's address.
    pub fn open(underlay: Option<String>) -> Result<Self, RouteError> {
        Ok(Routes {
            netlink: Netlink::open()?,
            chosen: underlay,
            underlay: Arc::default(),
        })
    }

    /// Where the index of the underlay link is found.
    pub(crate) fn underlay_index(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.underlay)
    }

    /// Makes links and routes those of `want`.
    pub(crate) fn apply(
        &mut self,
        want: &RoutingState,
        settings: &Settings,
    ) -> Result<RoutesApplied, RouteError> {
        let mut applied = RoutesApplied::default();
        if !want.known {
            return Ok(applied);
        }
        let local = want.tunnel.as_ref().map(|tunnel| tunnel.local);
        let underlay = self.underlay(local.or_else(|| want.node_addresses.first().copied()));
        let index = underlay
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .map_or(0, |(link, _)| link.index);
        self.underlay.store(index, Ordering::Relaxed);
        let underlay = underlay?.map(|(link, _)| link);
        self.forward(want, underlay.as_ref(), settings, &mut applied)?;
        let mut changes = Changes::default();
        let tunnel = tunnel::apply(
            &mut self.netlink,
            want,
            underlay.as_ref(),
            &mut changes,
            &mut applied,
        )?;
        let stale = hosts::apply(&mut self.netlink, want, &mut applied)?;
        let overhead = want.tunnel.as_ref().map_or(0, |tunnel| tunnel.overhead());
        applied.pod_mtu = underlay.map(|link| link.mtu.saturating_sub(overhead));
        let sink = sink::apply(&mut self.netlink, want, applied.pod_mtu, &mut applied)?;
        self.routes(want, Links { tunnel, sink }, &mut changes)?;
        // Backwards: a route goes before what it leads through.
        changes.gone.reverse();
        changes.send(&mut self.netlink, &mut applied)?;
        self.last(want, stale, &mut applied)?;
        Ok(applied)
    }

    /// Takes away what routes led through.
    fn last(
        &mut self,
        want: &RoutingState,
        stale: Vec<Request<'static>>,
        applied: &mut RoutesApplied,
    ) -> Result<(), RouteError> {
        applied.changes += stale.len();
        self.netlink.apply(stale)?;
        if want.tunnel.is_none()
            && let Some(link) = self.netlink.link(TUNNEL_LINK)?
        {
            self.netlink.request(link.delete())?;
            applied.changes += 1;
        }
        Ok(())
    }

    /// The link packets between nodes go by, and the addresses on it; `None` while the node has no address.
    fn underlay(&mut self, local: Option<IpAddr>) -> Result<Option<(Link, Vec<Address>)>, RouteError> {
        if let Some(name) = self.chosen.clone() {
            let link = self.netlink.link(&name)?;
            let link = link.ok_or(RouteError::NoSuchLink(name))?;
            let addresses = self.netlink.addresses(Some(link.index))?;
            return Ok(Some((link, addresses)));
        }
        let Some(local) = local else {
            return Ok(None);
        };
        let mut addresses = self.netlink.addresses(None)?;
        let on = addresses.iter().find(|address| address.net.addr() == local);
        let index = on.ok_or(RouteError::NoUnderlay(local))?.link;
        let link = self.netlink.link_by_index(index)?;
        let link = link.ok_or(RouteError::NoUnderlay(local))?;
        addresses.retain(|address| address.link == index);
        Ok(Some((link, addresses)))
    }

    /// The subnets that the underlay link is on, where `local` is the node's address: whoever has an address in one of
    /// them is reached without a router.
    pub fn subnets(&mut self, local: Option<IpAddr>) -> Result<BTreeSet<IpNet>, RouteError> {
        let addresses = self
            .underlay(local)?
            .map_or_else(Vec::new, |(_, addresses)| addresses);
        let nets = addresses.into_iter().map(|address| address.net);
        let link_local = |net: &IpNet| matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
        Ok(nets
            .filter(|net| net.prefix_len() < net.max_prefix_len() && !link_local(net))
            .map(|net| net.trunc())
            .collect())
    }

    /// Switches on forwarding for the families that pods have.
    fn forward(
        &mut self,
        want: &RoutingState,
        underlay: Option<&Link>,
        settings: &Settings,
        applied: &mut RoutesApplied,
    ) -> Result<(), RouteError> {
        let links = self.netlink.links()?;
        if want.pod_ranges.iter().any(|range| range.addr().is_ipv4()) {
            applied.changes += usize::from(forward_all(settings, IPV4_FORWARDING, &links)?);
        }
        if want.pod_ranges.iter().any(|range| range.addr().is_ipv6()) {
            listen_to_routers(settings, &links, underlay)?;
            applied.changes += usize::from(forward_all(settings, IPV6_FORWARDING, &links)?);
        }
        Ok(())
    }

    fn routes(&mut self, want: &RoutingState, links: Links, changes: &mut Changes) -> Result<(), RouteError> {
        let wanted = way::wanted(want, links);
        let have = self.our_routes()?;
        let delta = Delta::between(&wanted, &have);
        // Adding refuses what somebody else has; replacing is for what is ours.
        let additions = delta.add.iter().map(|(key, way)| way.route(**key).add());
        changes.set.extend(additions);
        for (key, way, old) in &delta.change {
            changes.set.extend(way::change(**key, way, old));
        }
        let removals = delta.remove.iter().map(|(key, way)| way.route(**key).delete());
        changes.gone.extend(removals);
        Ok(())
    }

    fn our_routes(&mut self) -> Result<BTreeMap<RouteKey, Way>, NetlinkError> {
        let filter = RouteFilter {
            protocol: Some(ROUTE_PROTOCOL),
            table: Some(MAIN_TABLE),
            ..RouteFilter::default()
        };
        let mut index = |name| Ok::<_, NetlinkError>(self.netlink.link(name)?.map(|link| link.index));
        let links = Links {
            tunnel: index(TUNNEL_LINK)?,
            sink: index(SINK_LINK)?,
        };
        let routes = self.netlink.routes(filter)?.into_iter();
        let ours = routes.filter(|route| route.protocol == ROUTE_PROTOCOL && route.table == MAIN_TABLE);
        Ok(ours
            .map(|found| {
                (
                    (found.destination, found.metric.unwrap_or(0)),
                    Way::of(found, links),
                )
            })
            .collect())
    }

    /// Whether the tunnel's device leaves checksums to the hardware; none while there is no such device.
    pub fn checksum_offload(&mut self) -> Result<Option<bool>, RouteError> {
        match self.netlink.link(TUNNEL_LINK)? {
            Some(_) => tunnel::checksum_offload().map(Some),
            None => Ok(None),
        }
    }

    /// What the kernel has of ours.
    pub fn dump(&mut self) -> Result<Installed, RouteError> {
        let mut installed = tunnel::dump(&mut self.netlink)?;
        installed.host_addresses = hosts::present(&mut self.netlink)?
            .iter()
            .map(|address| address.net)
            .collect();
        for ((destination, _), way) in self.our_routes()? {
            let hop = match way {
                Way::Via { gateway, tunnel, mtu } => {
                    installed.path_mtu.extend(mtu.map(|mtu| (destination, mtu)));
                    if tunnel.is_some() {
                        Hop::Tunnel(gateway)
                    } else {
                        Hop::Via(gateway)
                    }
                }
                Way::Unreachable => Hop::Unreachable,
                Way::Sink { .. } => Hop::Sink,
                Way::Strange(_) => continue,
            };
            installed.routes.entry(destination).or_insert(hop);
        }
        Ok(installed)
    }

    /// Removes what is ours, with `really`, and says what it is.
    pub fn clean(&mut self, really: bool) -> Result<Vec<String>, RouteError> {
        let mut removed = Vec::new();
        let mut requests = Vec::new();
        // They are known by our routes.
        for address in hosts::present(&mut self.netlink)? {
            removed.push(format!("address {} of lo", address.net));
            requests.push(address.delete());
        }
        for (key, way) in self.our_routes()? {
            removed.push(format!("route {}", key.0));
            requests.push(way.route(key).delete());
        }
        for name in [TUNNEL_LINK, SINK_LINK] {
            if let Some(link) = self.netlink.link(name)? {
                removed.push(format!("link {name}"));
                requests.push(link.delete());
            }
        }
        if really {
            let outcomes = self.netlink.apply_each(requests)?;
            outcomes
                .into_iter()
                .filter(|outcome| !is_gone(outcome))
                .collect::<Result<(), _>>()?;
        }
        Ok(removed)
    }
}

impl Changes {
    /// Sends them. What is refused hurts itself only; what is gone already is no refusal.
    fn send(self, netlink: &mut Netlink, applied: &mut RoutesApplied) -> Result<(), RouteError> {
        let first_gone = self.set.len();
        let outcomes = netlink.apply_each(self.set.into_iter().chain(self.gone))?;
        for (index, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Err(error) if index < first_gone || !error.is_not_found() => {
                    applied.refused.push(error.to_string())
                }
                Ok(()) => applied.changes += 1,
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// A forwarding host stops listening to router advertisements, and so would lose its default route, unless told to
/// listen all the same (2). That is for the links that listen until now, and for the underlay.
fn listen_to_routers(
    settings: &Settings,
    links: &[Link],
    underlay: Option<&Link>,
) -> Result<(), SettingError> {
    for link in links {
        let is = |key: &str, wanted: &str| {
            sysctl::get(&format!("net/ipv6/conf/{}/{key}", link.name)).is_ok_and(|value| value == wanted)
        };
        let forwards = is("forwarding", "1");
        let is_underlay = underlay.is_some_and(|underlay| underlay.index == link.index);
        if is("accept_ra", "1") && (is_underlay || !forwards) {
            settings.ensure(&format!("net/ipv6/conf/{}/accept_ra", link.name), "2")?;
        }
    }
    Ok(())
}

/// Has all links of a family forward by `all`, the setting for them; tells whether they did not.
///
/// It sets every link's own, so that switching it off again would take those along that forwarded before. In IPv4, that
/// switches redirects on, too.
fn forward_all(settings: &Settings, all: &str, links: &[Link]) -> Result<bool, SettingError> {
    if sysctl::get(all)? != "1" {
        let conf = if all == IPV4_FORWARDING {
            "net/ipv4/conf"
        } else {
            "net/ipv6/conf"
        };
        let names = links.iter().map(|link| link.name.as_str()).chain(["default"]);
        let forwarding = names.map(|name| (format!("{conf}/{name}/forwarding"), "1"));
        let redirects = (format!("{conf}/all/accept_redirects"), "0");
        for (key, value) in forwarding.chain([redirects]) {
            // A link need not have the family.
            if sysctl::get(&key).is_ok_and(|now| now == value) {
                settings.note(&key, value)?;
            }
        }
    }
    settings.ensure(all, "1")
}

fn is_gone(outcome: &Result<(), NetlinkError>) -> bool {
    outcome.as_ref().is_err_and(NetlinkError::is_not_found)
}

#[cfg(test)]
mod tests {
    use podnet_linux::netlink::NewLink;
    use podnet_linux::ns::{Kind, Namespace};

    use super::*;

    #[test]
    fn links_that_listen_to_routers_go_on_when_the_node_forwards() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        let accepts = |link: &str| sysctl::get(&format!("net/ipv6/conf/{link}/accept_ra")).unwrap();
        namespace
            .run(|| {
                let mut netlink = Netlink::open().unwrap();
                netlink
                    .apply([NewLink::veth("uplink", "deaf", None).create()])
                    .unwrap();
                sysctl::set("net/ipv6/conf/deaf/accept_ra", "0").unwrap();
                let want = RoutingState {
                    known: true,
                    pod_ranges: ["fd00:10:244::/64".parse().unwrap()].into(),
                    ..RoutingState::default()
                };
                let (mut routes, settings) = (Routes::open(None).unwrap(), Settings::default());
                routes.apply(&want, &settings).unwrap();
                assert_eq!(sysctl::get("net/ipv6/conf/all/forwarding").unwrap(), "1");
                assert_eq!((accepts("uplink"), accepts("deaf")), ("2".into(), "0".into()));
                // A link that comes later forwards from the start, and never listened.
                netlink
                    .apply([NewLink::veth("later", "latest", None).create()])
                    .unwrap();
                routes.apply(&want, &settings).unwrap();
                assert_eq!(accepts("later"), "1");
            })
            .unwrap();
    }
}
