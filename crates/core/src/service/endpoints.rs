//! Which of a service port's endpoints a client may get, and why not the others.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::Backend;
use crate::cluster::{AddressFamily, Cluster, Endpoint, EndpointSlice, Family, Node, NodeName, ServicePort};

/// Where a choice is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) node: &'a NodeName,
    pub(super) zone: Option<&'a str>,
    /// The node's own object, if there is one.
    own: Option<&'a Node>,
}

impl<'a> Place<'a> {
    pub(super) fn of(cluster: &'a Cluster, node: &'a NodeName) -> Self {
        let own = cluster.node(node).or(cluster.local.node.as_ref());
        let zone = own.and_then(|node| node.zone());
        Place { node, zone, own }
    }

    /// The node's own addresses.
    pub(super) fn addresses(self) -> impl Iterator<Item = IpAddr> + use<'a> {
        let own = self.own.into_iter();
        own.flat_map(|node| node.all_addresses.iter().copied())
    }
}

/// Where a client's endpoints may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Anywhere; near ones first, where hints say which are near.
    Cluster,
    /// On this node: a traffic policy says `Local`.
    Local,
}

/// Why an endpoint gets no new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unchosen {
    /// It is not ready.
    NotReady,
    /// It is terminating, and others are ready.
    Terminating,
    /// It is on another node, and the policy is `Local`.
    OtherNode,
    /// Every ready endpoint is meant for some nodes, this one not for this node, and another is.
    MeantForOtherNodes,
    /// Every ready endpoint is meant for some zones, this one not for this zone, and another is.
    MeantForOtherZones,
}

impl fmt::Display for Unchosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unchosen::NotReady => "it is not ready",
            Unchosen::Terminating => "it is terminating, and there are endpoints that are ready",
            Unchosen::OtherNode => "it is on another node, and the traffic policy is Local",
            Unchosen::MeantForOtherNodes => {
                "its hints are for other nodes, and another endpoint is for this one"
            }
            Unchosen::MeantForOtherZones => {
                "its hints are for other zones, and another endpoint is for this one"
            }
        })
    }
}

/// How near the chosen ones are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nearness {
    Anywhere,
    Zone,
    Node,
}

/// The endpoints of one service port in one family, from all its slices.
pub(super) struct Candidates<'a>(Vec<(SocketAddr, &'a Endpoint)>);

impl<'a> Candidates<'a> {
    /// A slice's port is the service's when it has its name and protocol; one name may stand for different numbers
    /// in different slices.
    pub(super) fn of(slices: &[&'a EndpointSlice], family: Family, port: &ServicePort) -> Self {
        let mut found = Vec::new();
        let of_family = slices
            .iter()
            .filter(|slice| slice.family() == AddressFamily::Ip(family));
        for slice in of_family {
            let ports = slice.ports.iter();
            let numbers = ports.filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in numbers.filter_map(|p| p.port) {
                let endpoints = slice.endpoints().iter();
                found.extend(endpoints.map(|e| (SocketAddr::new(e.address, number.get()), e)));
            }
        }
        Candidates(found)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every endpoint, and why it is not chosen if it is not.
    pub(super) fn judge<'b>(
        &'b self,
        scope: Scope,
        place: Place<'b>,
    ) -> impl Iterator<Item = (SocketAddr, &'a Endpoint, Option<Unchosen>)> + use<'a, 'b> {
        let nearness = match scope {
            Scope::Cluster => self.nearness(place),
            Scope::Local => Nearness::Anywhere,
        };
        let allowed = move |endpoint: &Endpoint| scope == Scope::Cluster || is_on(endpoint, place.node);
        let some_ready = self
            .0
            .iter()
            .any(|(_, endpoint)| endpoint.ready && allowed(endpoint));
        self.0.iter().map(move |(address, endpoint)| {
            let unchosen = if !allowed(endpoint) {
                Some(Unchosen::OtherNode)
            } else if !some_ready {
                (!is_last_resort(endpoint)).then_some(Unchosen::NotReady)
            } else if !endpoint.ready {
                let ending = is_last_resort(endpoint);
                Some(if ending {
                    Unchosen::Terminating
                } else {
                    Unchosen::NotReady
                })
            } else {
                match nearness {
                    Nearness::Anywhere => None,
                    Nearness::Node => (!is_for_node(endpoint, place)).then_some(Unchosen::MeantForOtherNodes),
                    Nearness::Zone => (!is_for_zone(endpoint, place)).then_some(Unchosen::MeantForOtherZones),
                }
            };
            (*address, *endpoint, unchosen)
        })
    }

    /// Hints count only if every ready endpoint has them and one of them is for us; a node before a zone.
    fn nearness(&self, place: Place<'_>) -> Nearness {
        let ready = || {
            self.0
                .iter()
                .map(|(_, endpoint)| *endpoint)
                .filter(|endpoint| endpoint.ready)
        };
        if ready().all(|endpoint| !endpoint.hints.nodes.is_empty())
            && ready().any(|endpoint| is_for_node(endpoint, place))
        {
            Nearness::Node
        } else if ready().all(|endpoint| !endpoint.hints.zones.is_empty())
            && ready().any(|endpoint| is_for_zone(endpoint, place))
        {
            Nearness::Zone
        } else {
            Nearness::Anywhere
        }
    }

    /// What new connections of such clients get.
    pub(super) fn choose(&self, scope: Scope, place: Place<'_>) -> Backend {
        let chosen = self
            .judge(scope, place)
            .filter(|(.., unchosen)| unchosen.is_none());
        let endpoints = sorted(chosen.map(|(address, ..)| address));
        if endpoints.is_empty() {
            return if scope == Scope::Local && self.0.iter().any(|(_, endpoint)| is_usable(endpoint)) {
                Backend::Drop
            } else {
                Backend::Refuse
            };
        }
        let serving = self.0.iter().filter(|(_, endpoint)| endpoint.serving);
        let others = serving.filter(|(address, _)| endpoints.binary_search(address).is_err());
        let draining = sorted(others.map(|(address, _)| *address));
        Backend::Balance { endpoints, draining }
    }

    /// The endpoints on a node, or on none in particular, that `backend` may send something to.
    pub(super) fn on(&self, node: Option<&NodeName>, backend: &Backend) -> impl Iterator<Item = IpAddr> {
        let there = self
            .0
            .iter()
            .filter(move |(_, endpoint)| endpoint.node.as_ref() == node);
        there
            .filter(|(address, _)| backend.keeps(*address))
            .map(|(address, _)| address.ip())
    }

    /// The endpoints on a node that take new connections.
    pub(super) fn ready_on(&self, node: &NodeName) -> impl Iterator<Item = IpAddr> {
        let here = self
            .0
            .iter()
            .filter(|(_, endpoint)| endpoint.ready && is_on(endpoint, node));
        here.map(|(address, _)| address.ip())
    }
}

fn sorted(addresses: impl Iterator<Item = SocketAddr>) -> Box<[SocketAddr]> {
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into()
}

fn is_on(endpoint: &Endpoint, node: &NodeName) -> bool {
    endpoint.node.as_ref() == Some(node)
}

/// What serves when nobody is ready.
fn is_last_resort(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

fn is_usable(endpoint: &Endpoint) -> bool {
    endpoint.ready || is_last_resort(endpoint)
}

fn is_for_node(endpoint: &Endpoint, place: Place<'_>) -> bool {
    endpoint.hints.nodes.contains(place.node)
}

fn is_for_zone(endpoint: &Endpoint, place: Place<'_>) -> bool {
    place
        .zone
        .is_some_and(|zone| endpoint.hints.zones.iter().any(|hint| **hint == *zone))
}
