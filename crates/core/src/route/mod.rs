//! From nodes to routes, tunnel endpoints and the entries that lead to them.
//!
//! VXLAN needs no exchange between agents: a tunnel endpoint's MAC address is derived from its node's name, and the
//! address by which it is the next hop is the network address of its node's pod range. So each node can work out
//! every peer's neighbour and forwarding entries from the Node objects alone.

mod blocks;
mod vtep;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::{Cluster, Family, Node, NodeName, ObjectRef, Routing, Vxlan};
use crate::state::Problem;
pub use vtep::Mac;

/// Links, addresses, routes and neighbours of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoutingState {
    /// The node's addresses on the underlay.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The ranges of this node's own pods.
    pub pod_ranges: BTreeSet<IpNet>,
    /// The tunnel, where there is one.
    pub tunnel: Option<Tunnel>,
    /// Routes by destination.
    pub routes: BTreeMap<IpNet, Hop>,
    /// On the tunnel: next hop to link-layer address.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// On the tunnel: link-layer address to the underlay address of the node behind it.
    pub forwarding: BTreeMap<Mac, IpAddr>,
}

/// This node's end of the cluster's tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// VNI and port.
    pub vxlan: Vxlan,
    /// Its link-layer address.
    pub mac: Mac,
    /// The underlay address packets leave from.
    pub local: IpAddr,
    /// The device's own addresses, as single hosts: the network addresses of this node's ranges.
    pub addresses: BTreeSet<IpNet>,
}

impl Tunnel {
    /// Bytes that the encapsulation adds to a packet: inner Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40.
    pub fn overhead(&self) -> u32 {
        if self.local.is_ipv4() { 50 } else { 70 }
    }
}

/// Where packets for a destination go next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// Into the tunnel, to the endpoint with this address.
    Tunnel(IpAddr),
    /// To this address on the underlay.
    Via(IpAddr),
    /// Nowhere: the sender is told. For addresses of ours that nobody has, so that they do not leave by the default
    /// route.
    Unreachable,
    /// Nowhere, and nobody is told; but a local process gets a source address. For services' addresses: what is
    /// translated takes another route, and what is not must not leave the node.
    Sink,
}

impl RoutingState {
    /// This node's address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        self.node_addresses.iter().find(of_family).copied()
    }

    /// Lets nothing that still has one of these addresses leave the node.
    pub(crate) fn sink(&mut self, addresses: impl IntoIterator<Item = IpNet>) {
        for net in addresses {
            self.routes.entry(net).or_insert(Hop::Sink);
        }
    }
}

/// The routing part of [`crate::compute`].
pub(crate) fn compute(cluster: &Cluster, me: &NodeName, problems: &mut Vec<Problem>) -> RoutingState {
    let mut state = RoutingState::default();
    for &range in &cluster.config.cluster_cidrs {
        state.routes.insert(range.trunc(), Hop::Unreachable);
    }
    let Some(own) = cluster.node(me) else {
        return state;
    };
    state.node_addresses = [Family::V4, Family::V6]
        .iter()
        .filter_map(|family| own.address(*family))
        .collect();
    state.pod_ranges = own.pod_ranges.iter().collect();
    for range in own.pod_ranges.iter() {
        state.routes.insert(range, Hop::Unreachable);
    }
    let peers = Peers::of(cluster, own, problems);
    match cluster.config.routing {
        Routing::Vxlan(vxlan) => tunnel(&mut state, vxlan, own, &peers, problems),
        Routing::Direct => direct(&mut state, own, &peers, problems),
    }
    blocks::add(&mut state, cluster, own, problems);
    state
}

/// The other nodes whose ranges this node can have routes for.
struct Peers<'a>(Vec<&'a Node>);

impl<'a> Peers<'a> {
    /// All nodes that have a range, in the order of their names, less those whose range overlaps that of an earlier one
    /// (or this node's own): two nodes cannot both be the way to one address.
    fn of(cluster: &'a Cluster, own: &Node, problems: &mut Vec<Problem>) -> Self {
        let mut taken: Vec<(IpNet, &Node)> = Vec::new();
        let mut peers = Vec::new();
        // This node comes first: what it hands out itself it knows for certain.
        taken.extend(
            own.pod_ranges
                .iter()
                .filter_map(|range| Some((range, cluster.node(&own.name)?))),
        );
        for node in cluster.valid_nodes().filter(|node| node.name != own.name) {
            if node.pod_ranges.is_empty() {
                problems.push(problem(node, "has no spec.podCIDRs yet; no route to its pods"));
                continue;
            }
            let clash = node.pod_ranges.iter().find_map(|range| {
                taken
                    .iter()
                    .find(|(other, _)| overlap(range, *other))
                    .map(|(other, owner)| (range, *other, owner))
            });
            if let Some((range, other, owner)) = clash {
                let why = format!(
                    "its range {range} overlaps {other} of node {}; no route to its pods",
                    owner.name
                );
                problems.push(problem(node, why));
                continue;
            }
            taken.extend(node.pod_ranges.iter().map(|range| (range, node)));
            peers.push(node);
        }
        Peers(peers)
    }
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn problem(node: &Node, why: impl Into<String>) -> Problem {
    Problem {
        object: ObjectRef::node(&node.name),
        why: why.into(),
    }
}

/// One VXLAN device carries both families of pods over one family of underlay: the one this node prefers.
fn tunnel(
    state: &mut RoutingState,
    vxlan: Vxlan,
    own: &Node,
    peers: &Peers<'_>,
    problems: &mut Vec<Problem>,
) {
    let Some((underlay, local)) = own
        .primary
        .and_then(|family| Some((family, own.address(family)?)))
    else {
        problems.push(problem(own, "has no InternalIP; no tunnel to other nodes"));
        return;
    };
    if own.pod_ranges.is_empty() {
        problems.push(problem(own, "has no spec.podCIDRs yet; no tunnel to other nodes"));
        return;
    }
    let mac = Mac::of_node(&own.name);
    let addresses = own
        .pod_ranges
        .iter()
        .map(|range| IpNet::from(range.network()))
        .collect();
    state.tunnel = Some(Tunnel {
        vxlan,
        mac,
        local,
        addresses,
    });
    let mut macs = BTreeMap::from([(mac, &own.name)]);
    for node in &peers.0 {
        let Some(remote) = node.address(underlay) else {
            problems.push(problem(
                node,
                format!("has no InternalIP of the family of {local}; no tunnel to it"),
            ));
            continue;
        };
        let mac = Mac::of_node(&node.name);
        if let Some(other) = macs.insert(mac, &node.name) {
            problems.push(problem(
                node,
                format!("its tunnel address {mac} is also that of node {other}; rename it"),
            ));
            macs.insert(mac, other);
            continue;
        }
        state.forwarding.insert(mac, remote);
        for range in node.pod_ranges.iter() {
            let gateway = range.network();
            state.neighbours.insert(gateway, mac);
            state.routes.insert(range, Hop::Tunnel(gateway));
        }
    }
}

/// The other node is the next hop, in the range's own family.
fn direct(state: &mut RoutingState, own: &Node, peers: &Peers<'_>, problems: &mut Vec<Problem>) {
    if own.primary.is_none() {
        problems.push(problem(
            own,
            "has no InternalIP; other nodes have no route to its pods",
        ));
    }
    for node in &peers.0 {
        for range in node.pod_ranges.iter() {
            match node.address(Family::of(range.addr())) {
                Some(via) => _ = state.routes.insert(range, Hop::Via(via)),
                None => problems.push(problem(
                    node,
                    format!("has no InternalIP of the family of its range {range}"),
                )),
            }
        }
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hop::Tunnel(gateway) => write!(f, "via {gateway} on the tunnel"),
            Hop::Via(gateway) => write!(f, "via {gateway}"),
            Hop::Unreachable => f.write_str("unreachable"),
            Hop::Sink => f.write_str("sink"),
        }
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tunnel {
            vxlan,
            mac,
            local,
            addresses,
        } = self;
        write!(
            f,
            "vxlan vni {} port {} local {local} mac {mac}",
            vxlan.vni, vxlan.port
        )?;
        addresses
            .iter()
            .try_for_each(|address| write!(f, " address {address}"))
    }
}

impl fmt::Display for RoutingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tunnel) = &self.tunnel {
            writeln!(f, "tunnel {tunnel}")?;
        }
        self.routes
            .iter()
            .try_for_each(|(destination, hop)| writeln!(f, "route {destination} {hop}"))?;
        self.neighbours
            .iter()
            .try_for_each(|(address, mac)| writeln!(f, "neighbour {address} {mac}"))?;
        self.forwarding
            .iter()
            .try_for_each(|(mac, remote)| writeln!(f, "forwarding {mac} to {remote}"))
    }
}

#[cfg(test)]
mod tests;
