//! A route of ours, as wanted and as found.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podnet_core::cluster::Family;
use podnet_core::route::{Hop, RoutingState};
use podnet_linux::netlink::{Request, Route, RouteKind};

use super::ROUTE_PROTOCOL;

/// Metric of the routes for addresses nobody has: any route to one of them is better.
const UNREACHABLE_METRIC: u32 = 8192;
/// What the kernel gives IPv6 routes that ask for none.
const DEFAULT_METRIC_V6: u32 = 1024;

/// Destination and metric: what makes a route the same route to the kernel.
pub(super) type RouteKey = (IpNet, u32);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    Via {
        gateway: IpAddr,
        tunnel: Option<u32>,
        mtu: Option<u32>,
    },
    Unreachable,
    /// Not as we would make it.
    Strange(Box<Route>),
}

impl Way {
    /// The way of a route that was found, where `tunnel` is the index of the tunnel's link.
    pub(super) fn of(route: Route, tunnel: Option<u32>) -> Way {
        let through = tunnel.filter(|tunnel| route.link == Some(*tunnel));
        let locked = route.mtu.is_some() && route.destination.addr().is_ipv6();
        match (route.kind, route.via) {
            (RouteKind::Unreachable, _) => Way::Unreachable,
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
            Way::Strange(route) => (**route).clone(),
        }
    }
}

/// From one way to another, in one step. IPv6 looks its next hop up by the very route that is to be replaced, and refuses
/// it if that leads to another link: so into the tunnel, whose next hops are within their routes, the old way goes first.
pub(super) fn change(key: RouteKey, way: &Way, old: &Way) -> Vec<Request<'static>> {
    let tunnel = |way: &Way| match way {
        Way::Via { tunnel, .. } => *tunnel,
        Way::Unreachable | Way::Strange(_) => None,
    };
    let enters = tunnel(way).is_some() && tunnel(way) != tunnel(old);
    if enters && key.0.addr().is_ipv6() {
        return vec![old.route(key).delete(), way.route(key).add()];
    }
    vec![way.route(key).replace()]
}

/// The routes of a state, where `tunnel` is the index of the tunnel's link.
pub(super) fn wanted(want: &RoutingState, tunnel: Option<u32>) -> BTreeMap<RouteKey, Way> {
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
            Hop::Tunnel(gateway) if tunnel.is_some() => via(gateway, tunnel),
            // No tunnel, no route into it.
            Hop::Tunnel(_) => continue,
        };
        wanted.insert((*destination, metric), way);
    }
    wanted
}
