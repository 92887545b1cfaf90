//! NetworkPolicies (networking.k8s.io/v1) into rules.

use std::collections::BTreeSet;

use super::label_set::LabelSet;
use super::rule::{Origin, Peer, Peers, PolicyRef, PortMatch, Ports, Rule};
use super::{resolve, state::Isolation};
use crate::cluster::{
    Direction, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyRule, ObjectName, Parsed, PodSelection,
    Selector,
};

/// Whether a policy is about the pods of a label set. One whose selector cannot be read is about every pod of its
/// namespace.
pub(super) fn selects(name: &ObjectName, policy: &Parsed<NetworkPolicy>, set: &LabelSet) -> bool {
    let here = Selector::namespace(&name.namespace).matches(&set.namespace);
    let selector = policy.as_ref().ok().and_then(|policy| policy.pods.as_ref().ok());
    here && selector.is_none_or(|selector| selector.matches(&set.pods))
}

/// Whether a policy isolates its pods in a direction. When that cannot be read, it does.
pub(super) fn isolates(policy: &Parsed<NetworkPolicy>, direction: Direction) -> bool {
    let Ok(policy) = policy else { return true };
    match (&policy.types, direction) {
        (Some(Ok(types)), _) => types.contains(&direction),
        (Some(Err(_)), _) | (None, Direction::Ingress) => true,
        (None, Direction::Egress) => policy.egress.is_some(),
    }
}

/// Adds to an isolation what a policy accepts for pods of a label set.
pub(super) fn add(
    isolation: &mut Isolation,
    name: &ObjectName,
    policy: &Parsed<NetworkPolicy>,
    direction: Direction,
    subject: &LabelSet,
) {
    isolation.by.insert(name.clone());
    let Ok(policy) = policy else { return };
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    for (index, rule) in rules.iter().flatten().enumerate() {
        let origin = Origin {
            policy: PolicyRef::Namespaced(name.clone()),
            direction,
            index,
            name: String::new(),
        };
        let rule = Rule {
            action: crate::cluster::Action::Accept,
            peers: peers(name, rule),
            ports: ports(rule),
            origin,
        };
        isolation.rules.extend(resolve(rule, subject));
    }
}

/// A peer that cannot be read is nobody; but a rule that had peers is never about everybody.
fn peers(policy: &ObjectName, rule: &NetworkPolicyRule) -> Peers {
    if rule.peers.is_empty() {
        return Peers::Anybody;
    }
    let peers = rule.peers.iter().flatten().map(|peer| match peer {
        NetworkPolicyPeer::Block(block) => Peer::Block(block.clone()),
        NetworkPolicyPeer::Pods { namespaces, pods } => Peer::Pods(PodSelection {
            namespaces: namespaces
                .clone()
                .unwrap_or_else(|| Selector::namespace(&policy.namespace)),
            pods: pods.clone().unwrap_or_default(),
        }),
    });
    Peers::OneOf(peers.collect())
}

/// A port that cannot be read is none; but a rule that had ports is never about all.
fn ports(rule: &NetworkPolicyRule) -> Ports {
    if rule.ports.is_empty() {
        return Ports::Any;
    }
    let ports = rule.ports.iter().flatten().map(|port| {
        let protocol = port.protocol.unwrap_or(crate::cluster::Protocol::Tcp);
        PortMatch::of(protocol, port.port.clone())
    });
    Ports::OneOf(ports.collect())
}

/// What of a policy cannot be read.
pub(super) fn faults(policy: &NetworkPolicy) -> BTreeSet<String> {
    let mut faults = BTreeSet::new();
    if let Err(why) = &policy.pods {
        faults.insert(format!("{why}; it isolates every pod of its namespace"));
    }
    if let Some(Err(why)) = &policy.types {
        faults.insert(format!("{why}; it isolates its pods in both directions"));
    }
    if let Err(why) = &policy.existing {
        faults.insert(format!("{why}; existing connections are cut"));
    }
    for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
        let peers = rule.peers.iter().filter_map(|peer| peer.as_ref().err());
        faults.extend(peers.map(|why| format!("{why}; this peer matches nobody")));
        let ports = rule.ports.iter().filter_map(|port| port.as_ref().err());
        faults.extend(ports.map(|why| format!("{why}; this port matches nothing")));
    }
    faults
}
