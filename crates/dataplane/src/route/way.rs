//! A route of ours, as wanted and as found.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podnet_core::cluster::Family;
use podnet_core::route::{Hop, RoutingState};
use podnet_linux::netlink::{Request, Route, RouteKind};

use super::{ROUTE_PROTOCOL, sink};

/// Metric of the routes for addresses nobody has: any route to one of them is better.
const UNREACHABLE_METRIC: u32 = 8192;
/// What the kernel gives IPv6 routes that ask for none.
const DEFAULT_METRIC_V6: u32 = 1024;

/// Better than that, so that it is found first and is no other route.
const STAND_IN_METRIC: u32 = 1;

/// Destination and metric: what makes a route the same route to the kernel.
pub(super) type RouteKey = (IpNet, u32);

/// The links of ours that routes lead to, by index.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Links {
    pub(super) tunnel: Option<u32>,
    pub(super) sink: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    Via {
        gateway: IpAddr,
        tunnel: Option<u32>,
        mtu: Option<u32>,
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

impl Way {
    fn is_into(&self, link: u32) -> bool {
        matches!(self, Way::Via { tunnel, .. } if *tunnel == Some(link))
    }

    /// The way of a route that was found.
    pub(super) fn of(route: Route, links: Links) -> Way {
        let through = links.tunnel.filter(|tunnel| route.link == Some(*tunnel));
        let locked = route.mtu.is_some() && route.destination.addr().is_ipv6();
        match (route.kind, route.via) {
            (RouteKind::Unreachable, _) => Way::Unreachable,
            (RouteKind::Unicast, Some(gateway))
                if links.sink.is_some()
                    && route.link == links.sink
                    && gateway == sink::router(Family::of(route.destination.addr())) =>
            {
                Way::Sink {
                    link: links.sink.unwrap_or_default(),
                    source: route.source,
                }
            }
            (RouteKind::Unicast, Some(gateway)) if route.mtu_lock == locked => Way::Via {
                gateway,
                tunnel: through,
                mtu: route.mtu,
            },
            _ => Way::Strange(Box::new(route)),
        }
    }

    /// The route.
    pub(super) fn route(&self, (destination, metric): RouteKey) -> Route {
        let plain = Route::new(destination, ROUTE_PROTOCOL);
        let metric = (metric != 0).then_some(metric);
        match self {
            Way::Via { gateway, tunnel, mtu } => Route {
                metric,
                onlink: tunnel.is_some(),
                mtu: *mtu,
                // What is forwarded looks at an IPv6 route's size only when it is locked. With IPv4 it always does, and
                // a lock would switch off path MTU discovery for what the node itself sends.
                mtu_lock: mtu.is_some() && destination.addr().is_ipv6(),
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
}

/// From one way to another, without a moment in which there is none.
///
/// IPv6 looks a next hop up by the routes there are, and refuses it when they lead to another link. A next hop in the
/// tunnel is the network address of its own range, so the very route that is to be replaced would be asked. A route to
/// that address alone answers in its place for as long as the replacing takes.
pub(super) fn change(key: RouteKey, way: &Way, old: &Way) -> Vec<Request<'static>> {
    let replace = way.route(key).replace();
    match (way, old) {
        (
            Way::Via {
                gateway: gateway @ IpAddr::V6(_),
                tunnel: Some(tunnel),
                ..
            },
            old,
        ) if !old.is_into(*tunnel) => {
            let stand_in = Route {
                metric: Some(STAND_IN_METRIC),
                ..Route::on_link(IpNet::from(*gateway), *tunnel, ROUTE_PROTOCOL)
            };
            vec![stand_in.replace(), replace, stand_in.delete()]
        }
        _ => vec![replace],
    }
}

/// The routes of a state.
pub(super) fn wanted(want: &RoutingState, links: Links) -> BTreeMap<RouteKey, Way> {
    let mut wanted = BTreeMap::new();
    for (destination, hop) in &want.routes {
        let metric = match (hop, Family::of(destination.addr())) {
            (Hop::Unreachable, _) => UNREACHABLE_METRIC,
            (_, Family::V4) => 0,
            (_, Family::V6) => DEFAULT_METRIC_V6,
        };
        let via = |gateway: &IpAddr, tunnel| Way::Via {
            gateway: *gateway,
            tunnel,
            mtu: want.path_mtu.get(destination).copied(),
        };
        let way = match hop {
            Hop::Unreachable => Way::Unreachable,
            Hop::Via(gateway) => via(gateway, None),
            Hop::Tunnel(gateway) if links.tunnel.is_some() => via(gateway, links.tunnel),
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
