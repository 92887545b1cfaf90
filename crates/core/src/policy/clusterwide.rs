//! ClusterNetworkPolicies (policy.networking.k8s.io/v1alpha2) into rules.
//!
//! What cannot be read is taken as the strictest it could be. A rule with an unknown peer or field: `Accept` matches
//! nothing, `Deny` and `Pass` deny everything (the API's own words). A policy with an unknown subject is about every pod,
//! one with an unknown tier or priority comes before all others; in such a policy `Accept` matches nothing and `Pass`
//! denies, for it is not known what they would have opened.

use std::collections::BTreeSet;

use super::label_set::LabelSet;
use super::resolve;
use super::rule::{Origin, Peer, Peers, PolicyRef, PortMatch, Ports, Rule};
use super::state::Tiers;
use crate::cluster::{
    Action, ClusterMatch, ClusterNetworkPolicy, ClusterPeer, ClusterPort, ClusterRule, Direction, IpBlock,
    PodSelection, Selector, Tier, Unread,
};

/// A policy in its place among the others.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    name: &'a str,
    policy: &'a ClusterNetworkPolicy,
}

impl<'a> Placed<'a> {
    pub(super) fn new(name: &'a str, policy: &'a ClusterNetworkPolicy) -> Self {
        Placed { name, policy }
    }

    /// Policies are looked at in this order. Of two with one priority the first by name comes first, which the API
    /// leaves open.
    pub(super) fn order(&self) -> (Tier, Option<u16>, &'a str) {
        match (&self.policy.tier, &self.policy.priority) {
            (Ok(tier), Ok(priority)) => (*tier, Some(*priority), self.name),
            _ => (Tier::Admin, None, self.name),
        }
    }

    /// Whether it is about the pods of a label set.
    pub(super) fn selects(&self, set: &LabelSet) -> bool {
        self.policy
            .subject
            .as_ref()
            .map_or(true, |subject| set.is_in(subject))
    }

    /// Its place, subject and fields are all known.
    fn is_clear(&self) -> bool {
        let policy = self.policy;
        policy.tier.is_ok() && policy.priority.is_ok() && policy.subject.is_ok() && policy.unknown.is_empty()
    }

    /// Adds its rules for pods of a label set.
    pub(super) fn add(&self, tiers: &mut Tiers, direction: Direction, subject: &LabelSet) {
        let rules = match direction {
            Direction::Ingress => &self.policy.ingress,
            Direction::Egress => &self.policy.egress,
        };
        let list = match self.order().0 {
            Tier::Admin => &mut tiers.admin,
            Tier::Baseline => &mut tiers.baseline,
        };
        for (index, rule) in rules.iter().enumerate() {
            let origin = Origin {
                policy: PolicyRef::Cluster(self.name.to_owned()),
                direction,
                index,
                name: rule.name.clone(),
            };
            list.extend(
                self.strictest(rule, origin)
                    .and_then(|rule| resolve(rule, subject)),
            );
        }
    }

    fn strictest(&self, rule: &ClusterRule, origin: Origin) -> Option<Rule> {
        let action = match &rule.action {
            Ok(action) if self.is_clear() && rule.matches.is_ok() => *action,
            Ok(Action::Accept) => return None,
            Ok(Action::Deny | Action::Pass) | Err(Unread(_)) => Action::Deny,
        };
        let (peers, ports) = match &rule.matches {
            Ok(matches) => (peers(matches), ports(matches)),
            Err(Unread(_)) => (Peers::Anybody, Ports::Any),
        };
        Some(Rule {
            action,
            peers,
            ports,
            origin,
        })
    }
}

fn peers(matches: &ClusterMatch) -> Peers {
    let mut peers = BTreeSet::new();
    for peer in &matches.peers {
        match peer {
            ClusterPeer::Namespaces(namespaces) => {
                peers.insert(Peer::Pods(PodSelection {
                    namespaces: namespaces.clone(),
                    pods: Selector::everything(),
                }));
            }
            ClusterPeer::Pods(selection) => _ = peers.insert(Peer::Pods(selection.clone())),
            ClusterPeer::Nodes(selector) => _ = peers.insert(Peer::Nodes(selector.clone())),
            ClusterPeer::Networks(networks) => {
                let blocks = networks
                    .iter()
                    .filter_map(|network| IpBlock::new(network.trunc(), []).ok());
                peers.extend(blocks.map(Peer::Block));
            }
            ClusterPeer::DomainNames(names) => peers.extend(names.iter().cloned().map(Peer::Domain)),
        }
    }
    Peers::OneOf(peers)
}

fn ports(matches: &ClusterMatch) -> Ports {
    let Some(protocols) = &matches.protocols else {
        return Ports::Any;
    };
    let ports = protocols.iter().map(|port| match port {
        ClusterPort::Numbers(protocol, range) => PortMatch::Numbers(*protocol, *range),
        ClusterPort::Named(name) => PortMatch::Named(None, name.clone()),
    });
    Ports::OneOf(ports.collect())
}

/// What of a policy cannot be read.
pub(super) fn faults(policy: &ClusterNetworkPolicy) -> BTreeSet<String> {
    let mut faults = BTreeSet::new();
    let strict = "its Accept rules match nothing and its Pass rules deny";
    if let Err(why) = &policy.subject {
        faults.insert(format!("{why}; it is about every pod, {strict}"));
    }
    let place = [policy.tier.as_ref().err(), policy.priority.as_ref().err()];
    for why in place.into_iter().flatten() {
        faults.insert(format!("{why}; it comes before all others, {strict}"));
    }
    faults.extend(policy.unknown.iter().map(|why| format!("{why}; {strict}")));
    if let Err(why) = &policy.existing {
        faults.insert(format!("{why}; existing connections are cut"));
    }
    for rule in policy.ingress.iter().chain(&policy.egress) {
        if let Err(why) = &rule.action {
            faults.insert(format!("{why}; what the rule matches is denied"));
        }
        if let Err(why) = &rule.matches {
            let then = match rule.action {
                Ok(Action::Accept) => "the rule matches nothing",
                _ => "the rule denies everything",
            };
            faults.insert(format!("{why}; {then}"));
        }
    }
    faults
}
