//! Whose address packets have as they leave the node.

use ipnet::IpNet;
use podnet_core::NodeState;
use podnet_core::cluster::Family;
use podnet_core::masquerade::Masquerade;

use super::super::model::{Chain, Table, Value, Verdict};
use super::super::rule::{Clause, Rule, octets};
use super::host_ports::{has_loopback_ports, loopback};
use super::{FAMILIES, Turn, elements, goto, jump, leave, names, rule};
use crate::route::TUNNEL_LINK;
use crate::userspace::proxy::GATE_LINK;

/// Sources stay as they are, but where the answer would not find its way back, or pods leave the cluster.
pub(super) fn sources(state: &NodeState, turn: Turn) -> Vec<Rule> {
    // What goes to the proxy is not outside yet, and the proxy is to know who asks.
    let to_proxy = (turn == Turn::Late).then(|| rule([Clause::Leaves(GATE_LINK), leave()]));
    // A pod that its service sends back to itself would answer itself directly.
    let hairpins = FAMILIES.map(|family| {
        rule([
            Clause::PairIn(family, names(family).hairpins.into()),
            Clause::Masquerade,
        ])
    });
    // The node itself chose its source when the destination was still a service's. In the tunnel it must be the tunnel's
    // own, or the answer would come back outside it, with a pod's address on the underlay.
    let tunnel = state
        .routing
        .tunnel
        .iter()
        .flat_map(|tunnel| &tunnel.addresses)
        .map(|own| {
            let foreign = Clause::SourceIsNot(own.addr());
            rule([
                Clause::Leaves(TUNNEL_LINK),
                foreign,
                Clause::SourceIsLocal,
                Clause::Masquerade,
            ])
        });
    let loopback = has_loopback_ports(&state.services).then(|| {
        // A pod could not answer a node that calls it from 127.0.0.1.
        rule([
            Clause::SourceWithin(loopback(Family::V4)),
            Clause::Translated,
            Clause::Masquerade,
        ])
    });
    let passing = FAMILIES.map(|family| {
        rule([
            Clause::Family(family),
            Clause::Marked,
            jump(passing_chain(family)),
        ])
    });
    let outside = state.masquerade.iter().flat_map(|masquerade| &masquerade.pods);
    let outside = outside.map(|range| {
        rule([
            Clause::SourceWithin(*range),
            goto(leaving(Family::of(range.addr()))),
        ])
    });
    let within = to_proxy.into_iter().chain(hairpins).chain(tunnel).chain(loopback);
    within.chain(passing).chain(outside).collect()
}

/// The chain for connections that were translated here.
pub(super) fn passing_chain(family: Family) -> &'static str {
    match family {
        Family::V4 => "passing4",
        Family::V6 => "passing6",
    }
}

/// A client outside whose endpoint is on another node: the answer would go past this node, untranslated. So it would
/// where the node itself asked from an address that others know another way to, such as a load balancer's.
pub(super) fn pass(state: &NodeState, family: Family) -> Vec<Rule> {
    let pods = state.services.inside().into_iter();
    let pods = pods.filter(|range| Family::of(range.addr()) == family);
    let stays = |clause| rule([clause, leave()]);
    let pods =
        pods.flat_map(|range| [Clause::SourceWithin(range), Clause::DestinationWithin(range)].map(stays));
    let node = state.routing.node_addresses.iter();
    let node = node.filter(|address| Family::of(**address) == family);
    let node = node.map(|address| stays(Clause::SourceWithin(IpNet::from(*address))));
    // What encloses the packet in a tunnel would carry the mark on.
    [rule([Clause::Unmark])]
        .into_iter()
        .chain(pods)
        .chain(node)
        .chain([rule([Clause::Masquerade])])
        .collect()
}

/// The chain that decides whether a pod's packet gets the node's address.
fn leaving(family: Family) -> &'static str {
    match family {
        Family::V4 => "leaving4",
        Family::V6 => "leaving6",
    }
}

/// Where pods' packets go that may be for the outside.
pub(super) fn add(table: &mut Table, masquerade: &Masquerade) {
    for family in FAMILIES {
        let stays = |clause| rule([clause, Clause::Verdict(Verdict::Accept)]);
        let except = masquerade
            .except
            .iter()
            .filter(|range| Family::of(range.addr()) == family);
        let except = except.map(|range| stays(Clause::DestinationWithin(*range)));
        let to_node = stays(Clause::DestinationIn(family, names(family).nodes.into()));
        let rules = except.chain([to_node, rule([Clause::Masquerade])]).collect();
        table
            .chains
            .insert(leaving(family).into(), Chain { base: None, rules });
    }
    for address in &masquerade.nodes {
        elements(table, names(Family::of(*address)).nodes).insert(octets(*address), Value::None);
    }
}
