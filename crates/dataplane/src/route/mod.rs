//! Links, addresses, routes and tunnel entries of a node, over rtnetlink.
//!
//! Ours are: the links [`TUNNEL_LINK`] and [`SINK_LINK`] with all that is on them, and the routes with our protocol number. Nothing else is
//! ever changed; a destination that somebody else has a route for is reported and left alone. Links and routes of
//! pods are the wiring's, under another protocol number.

mod sink;
mod tunnel;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podnet_core::cluster::Family;
use podnet_core::route::{Hop, Mac, RoutingState};
use podnet_linux::netlink::{
    Link, MAIN_TABLE, Netlink, NetlinkError, Request, Route, RouteFilter, RouteKind,
};
use podnet_linux::sysctl::{self, SysctlError};

use crate::delta::Delta;
pub use sink::SINK_LINK;

/// The name of the VXLAN link.
pub const TUNNEL_LINK: &str = "podnet.vxlan";
/// The protocol number of our routes to other nodes.
pub const ROUTE_PROTOCOL: u8 = 112;
/// Metric of the routes for addresses nobody has: any route to one of them is better.
const UNREACHABLE_METRIC: u32 = 8192;
/// What the kernel gives IPv6 routes that ask for none.
const DEFAULT_METRIC_V6: u32 = 1024;

/// Why a node's routes could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Talking to the kernel failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Forwarding could not be switched on.
    #[error("{0}; the node cannot forward packets of pods without it")]
    Sysctl(#[from] SysctlError),
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
    underlay: Option<String>,
}

/// What the kernel has of ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Installed {
    /// The tunnel, in words.
    pub tunnel: Option<String>,
    /// Routes by destination.
    pub routes: BTreeMap<IpNet, Hop>,
    /// The tunnel's neighbours.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// The tunnel's forwarding entries.
    pub forwarding: BTreeMap<Mac, IpAddr>,
}

/// Destination and metric: what makes a route the same route to the kernel.
type RouteKey = (IpNet, u32);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Via {
        gateway: IpAddr,
        tunnel: Option<u32>,
    },
    Unreachable,
    Sink {
        link: u32,
        /// The source of what this node sends itself.
        source: Option<IpAddr>,
    },
    /// Not as we would make it.
    Strange(Box<Route>),
}

/// The links of ours that routes lead to, by index.
#[derive(Debug, Clone, Copy, Default)]
struct Links {
    tunnel: Option<u32>,
    sink: Option<u32>,
}

impl Routes {
    /// For the network namespace of the calling thread. `underlay` names the link whose MTU counts; by default it is
    /// the one that has the node's address.
    pub fn open(underlay: Option<String>) -> Result<Self, RouteError> {
        Ok(Routes {
            netlink: Netlink::open()?,
            underlay,
        })
    }

    /// Makes links and routes those of `want`.
    pub fn apply(&mut self, want: &RoutingState) -> Result<RoutesApplied, RouteError> {
        let mut applied = RoutesApplied::default();
        let underlay = self.underlay(want)?;
        self.forward(want, underlay.as_ref(), &mut applied)?;
        let tunnel = tunnel::apply(&mut self.netlink, want, underlay.as_ref(), &mut applied)?;
        let overhead = want.tunnel.as_ref().map_or(0, |tunnel| tunnel.overhead());
        applied.pod_mtu = underlay.map(|link| link.mtu.saturating_sub(overhead));
        let sink = sink::apply(&mut self.netlink, want, applied.pod_mtu, &mut applied)?;
        self.routes(want, Links { tunnel, sink }, &mut applied)?;
        Ok(applied)
    }

    /// The link packets between nodes go by; `None` while the node has no address.
    fn underlay(&mut self, want: &RoutingState) -> Result<Option<Link>, RouteError> {
        if let Some(name) = self.underlay.clone() {
            let link = self.netlink.link(&name)?;
            return link.map(Some).ok_or(RouteError::NoSuchLink(name));
        }
        let local = want.tunnel.as_ref().map(|tunnel| tunnel.local);
        let Some(local) = local.or_else(|| want.node_addresses.first().copied()) else {
            return Ok(None);
        };
        let addresses = self.netlink.addresses(None)?;
        let on = addresses.iter().find(|address| address.net.addr() == local);
        let index = on.ok_or(RouteError::NoUnderlay(local))?.link;
        Ok(Some(
            self.netlink
                .link_by_index(index)?
                .ok_or(RouteError::NoUnderlay(local))?,
        ))
    }

    /// Switches on forwarding for the families that pods have.
    fn forward(
        &mut self,
        want: &RoutingState,
        underlay: Option<&Link>,
        applied: &mut RoutesApplied,
    ) -> Result<(), RouteError> {
        let mut ensure = |key: &str| -> Result<(), SysctlError> {
            if sysctl::get(key)? != "1" {
                sysctl::set(key, "1")?;
                applied.changes += 1;
            }
            Ok(())
        };
        if want.pod_ranges.iter().any(|range| range.addr().is_ipv4()) {
            ensure("net/ipv4/ip_forward")?;
        }
        if want.pod_ranges.iter().any(|range| range.addr().is_ipv6()) {
            listen_to_routers(&self.netlink.links()?, underlay)?;
            ensure("net/ipv6/conf/all/forwarding")?;
        }
        Ok(())
    }

    fn routes(
        &mut self,
        want: &RoutingState,
        links: Links,
        applied: &mut RoutesApplied,
    ) -> Result<(), RouteError> {
        let wanted = wanted_routes(want, links);
        let have = self.our_routes()?;
        let delta = Delta::between(&wanted, &have);
        // New ways before old ones go. Adding refuses what somebody else has; replacing is for what is ours.
        let additions = delta.add.iter().map(|(key, way)| route(**key, way).add());
        let changes = delta
            .change
            .iter()
            .flat_map(|(key, way, old)| change(**key, way, old));
        let removals = delta.remove.iter().map(|(key, way)| route(**key, way).delete());
        each(
            &mut self.netlink,
            additions.chain(changes).collect(),
            removals.collect(),
            applied,
        )
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
            .map(|found| ((found.destination, found.metric.unwrap_or(0)), way(found, links)))
            .collect())
    }

    /// What the kernel has of ours.
    pub fn dump(&mut self) -> Result<Installed, RouteError> {
        let mut installed = tunnel::dump(&mut self.netlink)?;
        for ((destination, _), way) in self.our_routes()? {
            let hop = match way {
                Way::Via {
                    gateway,
                    tunnel: Some(_),
                } => Hop::Tunnel(gateway),
                Way::Via {
                    gateway,
                    tunnel: None,
                } => Hop::Via(gateway),
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
        for (key, way) in self.our_routes()? {
            removed.push(format!("route {}", key.0));
            requests.push(route(key, &way).delete());
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

/// A forwarding host stops listening to router advertisements, and so would lose its default route, unless told to
/// listen all the same (2). That is for the links that listen until now, and for the underlay.
fn listen_to_routers(links: &[Link], underlay: Option<&Link>) -> Result<(), SysctlError> {
    for link in links {
        let is = |key: &str, wanted: &str| {
            sysctl::get(&format!("net/ipv6/conf/{}/{key}", link.name)).is_ok_and(|value| value == wanted)
        };
        let forwards = is("forwarding", "1");
        let is_underlay = underlay.is_some_and(|underlay| underlay.index == link.index);
        if is("accept_ra", "1") && (is_underlay || !forwards) {
            sysctl::set(&format!("net/ipv6/conf/{}/accept_ra", link.name), "2")?;
        }
    }
    Ok(())
}

fn is_gone(outcome: &Result<(), NetlinkError>) -> bool {
    outcome.as_ref().is_err_and(NetlinkError::is_not_found)
}

/// Sends what is to be set, then what is to go. What is refused hurts itself only; what is gone already is no refusal.
fn each(
    netlink: &mut Netlink,
    set: Vec<Request<'static>>,
    gone: Vec<Request<'static>>,
    applied: &mut RoutesApplied,
) -> Result<(), RouteError> {
    applied.changes += set.len() + gone.len();
    let first_gone = set.len();
    let outcomes = netlink.apply_each(set.into_iter().chain(gone))?;
    for (index, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Err(error) if index < first_gone || !error.is_not_found() => {
                applied.refused.push(error.to_string())
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// From one way to another. IPv6 looks its next hop up by the very route that is to be replaced, and refuses it if that
/// leads to another link: so into the tunnel, and out of it, the old way goes first.
fn change(key: RouteKey, way: &Way, old: &Way) -> Vec<Request<'static>> {
    let link = |way: &Way| match way {
        Way::Via { tunnel, .. } => *tunnel,
        Way::Sink { link, .. } => Some(*link),
        Way::Unreachable | Way::Strange(_) => None,
    };
    if link(way) == link(old) {
        return vec![route(key, way).replace()];
    }
    vec![route(key, old).delete(), route(key, way).add()]
}

fn wanted_routes(want: &RoutingState, links: Links) -> BTreeMap<RouteKey, Way> {
    let mut wanted = BTreeMap::new();
    for (destination, hop) in &want.routes {
        let metric = match (hop, Family::of(destination.addr())) {
            (Hop::Unreachable, _) => UNREACHABLE_METRIC,
            (_, Family::V4) => 0,
            (_, Family::V6) => DEFAULT_METRIC_V6,
        };
        let way = match hop {
            Hop::Unreachable => Way::Unreachable,
            Hop::Via(gateway) => Way::Via {
                gateway: *gateway,
                tunnel: None,
            },
            Hop::Tunnel(gateway) if links.tunnel.is_some() => Way::Via {
                gateway: *gateway,
                tunnel: links.tunnel,
            },
            // No tunnel, no route into it.
            Hop::Tunnel(_) => continue,
            Hop::Sink => match links.sink {
                Some(link) => Way::Sink {
                    link,
                    source: want.address(Family::of(destination.addr())),
                },
                None => continue,
            },
        };
        wanted.insert((*destination, metric), way);
    }
    wanted
}

fn route((destination, metric): RouteKey, way: &Way) -> Route {
    let plain = Route::new(destination, ROUTE_PROTOCOL);
    let metric = (metric != 0).then_some(metric);
    match way {
        Way::Via { gateway, tunnel } => Route {
            metric,
            onlink: tunnel.is_some(),
            ..Route::via(destination, *gateway, *tunnel, ROUTE_PROTOCOL)
        },
        Way::Unreachable => Route {
            metric,
            kind: RouteKind::Unreachable,
            ..plain
        },
        Way::Sink { link, source } => {
            let router = sink::router(Family::of(destination.addr()));
            Route {
                metric,
                onlink: true,
                source: *source,
                ..Route::via(destination, router, Some(*link), ROUTE_PROTOCOL)
            }
        }
        Way::Strange(route) => (**route).clone(),
    }
}

fn way(route: Route, Links { tunnel, sink }: Links) -> Way {
    match (route.kind, route.via) {
        (RouteKind::Unreachable, _) => Way::Unreachable,
        (RouteKind::Unicast, Some(gateway))
            if sink.is_some()
                && route.link == sink
                && gateway == sink::router(Family::of(route.destination.addr())) =>
        {
            Way::Sink {
                link: sink.unwrap_or_default(),
                source: route.source,
            }
        }
        (RouteKind::Unicast, Some(gateway)) if tunnel.is_some() && route.link == tunnel => {
            Way::Via { gateway, tunnel }
        }
        (RouteKind::Unicast, Some(gateway)) => Way::Via {
            gateway,
            tunnel: None,
        },
        _ => Way::Strange(Box::new(route)),
    }
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
                    pod_ranges: ["fd00:10:244::/64".parse().unwrap()].into(),
                    ..RoutingState::default()
                };
                let mut routes = Routes::open(None).unwrap();
                routes.apply(&want).unwrap();
                assert_eq!(sysctl::get("net/ipv6/conf/all/forwarding").unwrap(), "1");
                assert_eq!((accepts("uplink"), accepts("deaf")), ("2".into(), "0".into()));
                // A link that comes later forwards from the start, and never listened.
                netlink
                    .apply([NewLink::veth("later", "latest", None).create()])
                    .unwrap();
                routes.apply(&want).unwrap();
                assert_eq!(accepts("later"), "1");
            })
            .unwrap();
    }
}
