//! Rules between pods: affinity, anti-affinity and topology spread.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, TopologySpreadConstraint};

use super::filter::Reason;
use super::node::Candidate;
use crate::pod;
use crate::resource::Key;
use crate::selector::selects;
use crate::world::World;

/// The rules that a pod's place must keep, worked out once for all nodes.
pub(super) struct Rules {
    /// Keys with the values of which one must be the node's; none of them if any will do.
    near: Vec<(String, Option<BTreeSet<String>>)>,
    /// Keys with values that must not be the node's, by the pod's own rules and by those of pods there.
    far: Vec<(String, BTreeSet<String>)>,
    far_others: Vec<(String, BTreeSet<String>)>,
    /// Keys with the values of which one must be the node's for the spread to stay even.
    even: Vec<(String, BTreeSet<String>)>,
}

impl Rules {
    pub(super) fn of(world: &World, nodes: &[Candidate<'_>], pod: &Pod) -> Rules {
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let near = near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let far = required_anti(pod);
        let spread = pod
            .spec
            .as_ref()
            .and_then(|s| s.topology_spread_constraints.as_ref());
        let hard = spread
            .into_iter()
            .flatten()
            .filter(|c| c.when_unsatisfiable == "DoNotSchedule");
        Rules {
            near: near
                .into_iter()
                .flatten()
                .map(|term| near_rule(world, nodes, pod, term))
                .collect(),
            far: far
                .map(|term| (term.topology_key.clone(), values(world, nodes, pod, term)))
                .collect(),
            far_others: others_rules(world, nodes, pod),
            even: hard.map(|constraint| even_rule(nodes, pod, constraint)).collect(),
        }
    }

    pub(super) fn against(&self, node: &Candidate<'_>) -> Option<Reason> {
        let has = |key: &str, values: &BTreeSet<String>| node.label(key).is_some_and(|v| values.contains(v));
        if self.even.iter().any(|(key, _)| node.label(key).is_none()) {
            let text = "node(s) didn't match pod topology spread constraints (missing required label)";
            return Some(Reason::lasting(text));
        }
        if self.even.iter().any(|(key, values)| !has(key, values)) {
            return Some(Reason::passing(
                "node(s) didn't match pod topology spread constraints",
            ));
        }
        let near = |(key, values): &(String, Option<BTreeSet<String>>)| match values {
            Some(values) => has(key, values),
            None => node.label(key).is_some(),
        };
        if !self.near.iter().all(near) {
            return Some(Reason::lasting("node(s) didn't match pod affinity rules"));
        }
        if self.far.iter().any(|(key, values)| has(key, values)) {
            return Some(Reason::passing("node(s) didn't match pod anti-affinity rules"));
        }
        if self.far_others.iter().any(|(key, values)| has(key, values)) {
            let text = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Some(Reason::passing(text));
        }
        None
    }
}

fn required_anti(pod: &Pod) -> impl Iterator<Item = &PodAffinityTerm> {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let anti = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
    anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
        .into_iter()
        .flatten()
}

/// The first of a group that wants to be together has nobody to join.
fn near_rule(
    world: &World,
    nodes: &[Candidate<'_>],
    pod: &Pod,
    term: &PodAffinityTerm,
) -> (String, Option<BTreeSet<String>>) {
    let found = values(world, nodes, pod, term);
    let first = found.is_empty() && applies(world, term, pod, pod);
    (term.topology_key.clone(), (!first).then_some(found))
}

/// The values of the term's key on nodes that have a pod that it applies to.
fn values(world: &World, nodes: &[Candidate<'_>], pod: &Pod, term: &PodAffinityTerm) -> BTreeSet<String> {
    let there = nodes
        .iter()
        .filter(|node| node.pods.iter().any(|other| applies(world, term, pod, other)));
    there
        .filter_map(|node| node.label(&term.topology_key))
        .map(str::to_owned)
        .collect()
}

fn others_rules(world: &World, nodes: &[Candidate<'_>], pod: &Pod) -> Vec<(String, BTreeSet<String>)> {
    let mut rules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in nodes {
        for other in &node.pods {
            for term in required_anti(other).filter(|term| applies(world, term, other, pod)) {
                let value = node.label(&term.topology_key).map(str::to_owned);
                rules.entry(term.topology_key.clone()).or_default().extend(value);
            }
        }
    }
    rules.into_iter().collect()
}

/// Whether a term of the pod `of` is about the pod `other`.
pub(super) fn applies(world: &World, term: &PodAffinityTerm, of: &Pod, other: &Pod) -> bool {
    let Some(selector) = &term.label_selector else {
        return false;
    };
    selects(selector, other.metadata.labels.as_ref()) && in_namespaces(world, term, of, other)
}

fn in_namespaces(world: &World, term: &PodAffinityTerm, of: &Pod, other: &Pod) -> bool {
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let namespace = other.metadata.namespace.clone().unwrap_or_default();
    if listed.is_empty() && term.namespace_selector.is_none() {
        return of.metadata.namespace.as_ref() == Some(&namespace);
    }
    let selected = term.namespace_selector.as_ref().is_some_and(|selector| {
        let labels = world
            .namespaces
            .get(&Key::cluster(&*namespace))
            .and_then(|n| n.metadata.labels.as_ref());
        selects(selector, labels)
    });
    listed.contains(&namespace) || selected
}

/// The values of the key where one more pod does not skew the spread.
fn even_rule(
    nodes: &[Candidate<'_>],
    pod: &Pod,
    constraint: &TopologySpreadConstraint,
) -> (String, BTreeSet<String>) {
    let key = &constraint.topology_key;
    let mut counts: BTreeMap<String, i32> = BTreeMap::new();
    for node in nodes {
        if let Some(value) = node.label(key) {
            let alike = node
                .pods
                .iter()
                .filter(|other| counts_for(constraint, pod, other))
                .count();
            *counts.entry(value.to_owned()).or_default() += alike as i32;
        }
    }
    let mut least = counts.values().min().copied().unwrap_or(0);
    if constraint
        .min_domains
        .is_some_and(|wanted| (counts.len() as i32) < wanted)
    {
        least = 0;
    }
    let own = i32::from(counts_for(constraint, pod, pod));
    let fair = counts
        .into_iter()
        .filter(|(_, count)| count + own - least <= constraint.max_skew);
    (key.clone(), fair.map(|(value, _)| value).collect())
}

fn counts_for(constraint: &TopologySpreadConstraint, pod: &Pod, other: &Pod) -> bool {
    let same_namespace = pod.metadata.namespace == other.metadata.namespace;
    let label = |pod: &Pod, key: &str| pod.metadata.labels.as_ref().and_then(|l| l.get(key)).cloned();
    let keys = constraint.match_label_keys.iter().flatten();
    same_namespace
        && !pod::terminating(other)
        && constraint
            .label_selector
            .as_ref()
            .is_some_and(|s| selects(s, other.metadata.labels.as_ref()))
        && keys.into_iter().all(|key| label(pod, key) == label(other, key))
}
