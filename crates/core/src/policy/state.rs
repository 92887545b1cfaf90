//! The policy part of a node's state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::label_set::{LabelSet, LabelSetId};
use super::rule::{PolicyRef, Rule};
use crate::cluster::{Direction, ObjectName, PodSelection, Selector};

/// Which connections of a node's pods are allowed.
///
/// Three look-ups lead from an address to a rule, and each changes on its own: an address is a *member* of a label set,
/// a label set is in *selections*, rules name selections. So a pod that comes or goes is one member of one set,
/// whatever the number of rules about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicyState {
    /// The node's pods that a policy is about. All others are open.
    pub pods: BTreeMap<ObjectName, LocalPod>,
    /// Addresses of the node's pods whose labels nobody knows (yet, or any more): they reach their node and are reached by
    /// it, and that is all.
    pub strangers: BTreeSet<IpAddr>,
    /// The rules of the former, by label set: pods that no policy can tell apart share them.
    pub rules: BTreeMap<LabelSetId, PodRules>,
    /// The selections that those rules name, and the label sets in them.
    pub selections: BTreeMap<PodSelection, BTreeSet<LabelSetId>>,
    /// These label sets, with their members in the whole cluster.
    pub label_sets: BTreeMap<LabelSetId, LabelSet>,
    /// The selections of nodes that those rules name, and these nodes' addresses.
    pub nodes: BTreeMap<Selector, BTreeSet<IpAddr>>,
    /// The node's own addresses. What it sends to its pods is always allowed, and no NetworkPolicy isolates a pod from
    /// it.
    pub own_node: BTreeSet<IpAddr>,
    /// The policies whose denial leaves alone the connections that exist already.
    pub keep_existing: BTreeSet<PolicyRef>,
}

/// A pod of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPod {
    /// Its label set, by which its rules are found.
    pub label_set: LabelSetId,
    /// Its addresses, as far as the API knows them.
    pub addresses: BTreeSet<IpAddr>,
}

/// The rules for a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodRules {
    /// For connections to it.
    pub ingress: Tiers,
    /// For connections from it.
    pub egress: Tiers,
}

/// The rules for one direction, tier after tier. Within a tier the first rule that matches decides; `Pass` goes on with
/// the next tier. What no rule matches goes on too, and is allowed in the end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tiers {
    /// ClusterNetworkPolicies of the tier Admin.
    pub admin: Vec<Rule>,
    /// NetworkPolicies; `None` when none isolates the pod in this direction.
    pub network: Option<Isolation>,
    /// ClusterNetworkPolicies of the tier Baseline.
    pub baseline: Vec<Rule>,
}

/// What a pod's NetworkPolicies say of one direction. All rules are `Accept`; what none of them matches is denied. A pod
/// is isolated neither from itself nor from its own node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Isolation {
    /// The policies that isolate it.
    pub by: BTreeSet<ObjectName>,
    /// What they accept.
    pub rules: Vec<Rule>,
}

impl PodRules {
    /// The rules of a direction.
    pub fn of(&self, direction: Direction) -> &Tiers {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    pub(super) fn of_mut(&mut self, direction: Direction) -> &mut Tiers {
        match direction {
            Direction::Ingress => &mut self.ingress,
            Direction::Egress => &mut self.egress,
        }
    }

    /// Whether no policy is about the pod.
    pub fn is_open(&self) -> bool {
        self.ingress.is_open() && self.egress.is_open()
    }

    fn has_clusterwide(&self) -> bool {
        let tiers = [&self.ingress, &self.egress];
        tiers
            .iter()
            .any(|tiers| !tiers.admin.is_empty() || !tiers.baseline.is_empty())
    }

    /// The policies that are about the pod.
    pub fn policies(&self) -> impl Iterator<Item = PolicyRef> {
        let rules = self.all().map(|rule| rule.origin.policy.clone());
        let tiers = [&self.ingress, &self.egress];
        let isolations = tiers.into_iter().filter_map(|tiers| tiers.network.as_ref());
        let isolating = isolations.flat_map(|isolation| isolation.by.iter().cloned());
        rules.chain(isolating.map(PolicyRef::Namespaced))
    }

    /// Every rule of both directions.
    pub fn all(&self) -> impl Iterator<Item = &Rule> {
        self.ingress.all().chain(self.egress.all())
    }
}

impl Tiers {
    /// Whether no policy is about this direction.
    pub fn is_open(&self) -> bool {
        self.admin.is_empty() && self.network.is_none() && self.baseline.is_empty()
    }

    /// Every rule, in order of precedence.
    pub fn all(&self) -> impl Iterator<Item = &Rule> {
        let network = self.network.iter().flat_map(|isolation| &isolation.rules);
        self.admin.iter().chain(network).chain(&self.baseline)
    }

    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.admin.iter().map(|rule| format!("admin {rule}")).collect();
        if let Some(isolation) = &self.network {
            let by: Vec<_> = isolation.by.iter().map(ObjectName::to_string).collect();
            lines.push(format!("isolated by {}", by.join(" ")));
            lines.extend(isolation.rules.iter().map(|rule| format!("network {rule}")));
        }
        lines.extend(self.baseline.iter().map(|rule| format!("baseline {rule}")));
        lines
    }
}

impl PolicyState {
    /// Whether no policy is about anything of the node.
    pub fn is_open(&self) -> bool {
        self.pods.is_empty() && self.strangers.is_empty()
    }

    /// The addresses of the node's pods that some policy is about, or may be.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let pods = self.pods.values().flat_map(|pod| &pod.addresses);
        pods.chain(&self.strangers).copied().collect()
    }

    /// Those that a ClusterNetworkPolicy is about. What they say to themselves through a service is subject to it.
    pub fn clusterwide(&self) -> BTreeSet<IpAddr> {
        let pods = self.pods.values().filter(|pod| {
            let rules = self.rules.get(&pod.label_set);
            rules.is_some_and(PodRules::has_clusterwide)
        });
        pods.flat_map(|pod| pod.addresses.iter().copied()).collect()
    }

    /// A local pod's rules; `None` when no policy is about it.
    pub fn rules_of(&self, pod: &ObjectName) -> Option<&PodRules> {
        self.rules.get(&self.pods.get(pod)?.label_set)
    }

    /// The members of a selection.
    pub fn members(&self, selection: &PodSelection) -> BTreeSet<IpAddr> {
        let sets = self.selections.get(selection).into_iter().flatten();
        sets.filter_map(|id| self.label_sets.get(id))
            .flat_map(|set| set.members.iter().copied())
            .collect()
    }
}

impl fmt::Display for PolicyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(" ");
        for (name, pod) in &self.pods {
            let addresses = list(&mut pod.addresses.iter().map(ToString::to_string));
            writeln!(f, "policed pod {name} set {} {addresses}", pod.label_set)?;
        }
        for address in &self.strangers {
            writeln!(f, "closed, of no known pod {address}")?;
        }
        for (set, rules) in &self.rules {
            for (direction, tiers) in [("ingress", &rules.ingress), ("egress", &rules.egress)] {
                for line in tiers.lines() {
                    writeln!(f, "policy {set} {direction} {line}")?;
                }
            }
        }
        for (selection, sets) in &self.selections {
            let sets = list(&mut sets.iter().map(ToString::to_string));
            writeln!(f, "selection {selection}: {sets}")?;
        }
        for (id, set) in &self.label_sets {
            let members = list(&mut set.members.iter().map(ToString::to_string));
            writeln!(f, "set {id}: {members}")?;
        }
        for (selector, addresses) in &self.nodes {
            let addresses = list(&mut addresses.iter().map(ToString::to_string));
            writeln!(f, "nodes {{{selector}}}: {addresses}")?;
        }
        for address in &self.own_node {
            writeln!(f, "own node {address}")?;
        }
        self.keep_existing
            .iter()
            .try_for_each(|policy| writeln!(f, "existing connections stay: {policy}"))
    }
}
