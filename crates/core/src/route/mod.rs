//! From nodes to routes, tunnel endpoints and the entries that lead to them.
//!
//! VXLAN needs no exchange between agents: a tunnel endpoint's MAC address is derived from its node's name, and the
//! address by which it is the next hop is the network address of its node's pod range. So each node can work out
//! every peer's neighbour and forwarding entries from the Node objects alone.

mod blocks;
pub(crate) mod claims;
mod vtep;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::{Cluster, Family, Node, NodeName, ObjectRef, Routing, Vxlan};
use crate::state::Problem;
use claims::Peer;
pub use vtep::Mac;

/// Links, addresses, routes and neighbours of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoutingState {
    /// Whether this node's object is known and has what routes need. While it is not, what the kernel has stays as it is:
    /// what runs goes on running.
    pub known: bool,
    /// The node's addresses on the underlay.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The ranges of this node's own pods.
    pub pod_ranges: BTreeSet<IpNet>,
    /// The tunnel, where there is one.
    pub tunnel: Option<Tunnel>,
    /// Without a tunnel: the network addresses of this node's ranges, as single hosts. They are what the node itself
    /// is known by among pods; with a tunnel they are on its device.
    pub host_addresses: BTreeSet<IpNet>,
    /// Routes by destination.
    pub routes: BTreeMap<IpNet, Hop>,
    /// Whose the other nodes' ranges are.
    pub owners: BTreeMap<IpNet, NodeName>,
    /// The largest packet on a route, in bytes, where the path carries less than its link.
    pub path_mtu: BTreeMap<IpNet, u32>,
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
    /// The device may leave checksums to the hardware.
    pub checksum_offload: bool,
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
    let Some(own) = own(cluster, me, problems) else {
        return state;
    };
    state.node_addresses = [Family::V4, Family::V6]
        .iter()
        .filter_map(|family| own.address(*family))
        .collect();
    state.pod_ranges = own.pod_ranges.iter().collect();
    state.known = is_whole(own);
    for range in own.pod_ranges.iter() {
        state.routes.insert(range, Hop::Unreachable);
    }
    let peers = claims::peers(cluster, own, problems);
    for Peer { node, ranges } in &peers {
        let owned = ranges.iter().map(|range| (*range, node.name.clone()));
        state.owners.extend(owned);
    }
    match cluster.config.routing {
        Routing::Vxlan(vxlan) => {
            tunnel(&mut state, cluster, vxlan, own, &peers, problems);
            if cluster.config.cross_subnet {
                shorten(&mut state, cluster, own, &peers);
            }
        }
        Routing::Direct => direct(&mut state, cluster, own, &peers, problems),
    }
    blocks::add(&mut state, cluster, own, problems);
    limit(&mut state, cluster);
    state
}

/// This node's object; the one it had before, while there is none that has what a node needs.
fn own<'a>(cluster: &'a Cluster, me: &NodeName, problems: &mut Vec<Problem>) -> Option<&'a Node> {
    let now = cluster.node(me);
    let before = cluster.local.node.as_ref().filter(|before| before.name == *me);
    if let Some(now) = now.filter(|now| before.is_none() || is_whole(now)) {
        return Some(now);
    }
    if let (Some(now), Some(before)) = (now, before) {
        let ranges: Vec<String> = before.pod_ranges.iter().map(|range| range.to_string()).collect();
        let why = format!(
            "lacks spec.podCIDRs or an InternalIP; it goes on with {}",
            ranges.join(" and ")
        );
        problems.push(problem(now, why));
    }
    before
}

/// Whether a node has what its routes need: ranges, and an address to be found at.
pub fn is_whole(node: &Node) -> bool {
    node.primary.is_some() && !node.pod_ranges.is_empty()
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
    cluster: &Cluster,
    vxlan: Vxlan,
    own: &Node,
    peers: &[Peer<'_>],
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
    state.tunnel = Some(Tunnel {
        vxlan,
        mac,
        local,
        addresses: host_addresses(own),
        checksum_offload: !cluster.local.broken_checksums,
    });
    let mut macs = BTreeMap::from([(mac, &own.name)]);
    for Peer { node, ranges } in peers {
        let Some(remote) = address(cluster, own, node, underlay, problems) else {
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
        for range in ranges {
            let gateway = range.network();
            state.neighbours.insert(gateway, mac);
            state.routes.insert(*range, Hop::Tunnel(gateway));
        }
    }
}

/// The network addresses of a node's ranges, as single hosts: the node's own addresses among its pods'.
fn host_addresses(own: &Node) -> BTreeSet<IpNet> {
    own.pod_ranges
        .iter()
        .map(|range| IpNet::from(range.network()))
        .collect()
}

/// A peer's address on the underlay, if it can be one.
fn address(
    cluster: &Cluster,
    own: &Node,
    node: &Node,
    family: Family,
    problems: &mut Vec<Problem>,
) -> Option<IpAddr> {
    let Some(address) = node.address(family) else {
        let family = if family == Family::V4 {
            "an IPv4"
        } else {
            "an IPv6"
        };
        problems.push(problem(
            node,
            format!("has no InternalIP that is {family} address; no way to it"),
        ));
        return None;
    };
    let config = &cluster.config;
    let mut virtual_ranges = config.cluster_cidrs.iter().chain(&config.service_cidrs);
    let why = if own.address(family) == Some(address) {
        format!("is that of node {}", own.name)
    } else if let Some(range) = virtual_ranges.find(|range| range.contains(&address)) {
        // A tunnel whose outer packets go into the tunnel.
        format!("is within {range}, which is pods' or services'")
    } else {
        return Some(address);
    };
    problems.push(problem(
        node,
        format!("its InternalIP {address} {why}; no way to it"),
    ));
    None
}

/// CrossSubnet: what the underlay link itself reaches needs no tunnel. Neighbours and forwarding entries stay, so that a
/// peer which goes on using the tunnel, or a route that is to use it again, finds them.
fn shorten(state: &mut RoutingState, cluster: &Cluster, own: &Node, peers: &[Peer<'_>]) {
    let subnets = &cluster.local.subnets;
    for Peer { node, ranges } in peers {
        for range in ranges {
            let family = Family::of(range.addr());
            let near = node.address(family).filter(|address| {
                own.address(family) != Some(*address) && subnets.iter().any(|subnet| subnet.contains(address))
            });
            if let (Some(via), Some(hop)) = (near, state.routes.get_mut(range)) {
                *hop = Hop::Via(via);
            }
        }
    }
}

/// The other node is the next hop, in the range's own family.
fn direct(
    state: &mut RoutingState,
    cluster: &Cluster,
    own: &Node,
    peers: &[Peer<'_>],
    problems: &mut Vec<Problem>,
) {
    if own.primary.is_none() {
        problems.push(problem(
            own,
            "has no InternalIP; other nodes have no route to its pods",
        ));
    }
    state.host_addresses = host_addresses(own);
    for Peer { node, ranges } in peers {
        for range in ranges {
            if let Some(via) = address(cluster, own, node, Family::of(range.addr()), problems) {
                state.routes.insert(*range, Hop::Via(via));
            }
        }
    }
}

/// Packets that the path to a peer does not carry are refused here, where the sender is told, and not lost on the way.
fn limit(state: &mut RoutingState, cluster: &Cluster) {
    let found = cluster.local.path_mtu.iter();
    let used =
        found.filter(|(range, _)| matches!(state.routes.get(*range), Some(Hop::Tunnel(_) | Hop::Via(_))));
    state.path_mtu = used.map(|(range, mtu)| (*range, *mtu)).collect();
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
            checksum_offload,
        } = self;
        write!(
            f,
            "vxlan vni {} port {} local {local} mac {mac}",
            vxlan.vni, vxlan.port
        )?;
        addresses
            .iter()
            .try_for_each(|address| write!(f, " address {address}"))?;
        if *checksum_offload {
            return Ok(());
        }
        f.write_str(" without checksum offload")
    }
}

impl fmt::Display for RoutingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tunnel) = &self.tunnel {
            writeln!(f, "tunnel {tunnel}")?;
        }
        self.host_addresses
            .iter()
            .try_for_each(|address| writeln!(f, "address {address}"))?;
        for (destination, hop) in &self.routes {
            write!(f, "route {destination} {hop}")?;
            if let Some(mtu) = self.path_mtu.get(destination) {
                write!(f, " mtu {mtu}")?;
            }
            writeln!(f)?;
        }
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
