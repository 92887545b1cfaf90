//! Which of the nodes that fit is the best.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Service};

use super::affinity::applies;
use super::filter::{meets, tolerates};
use super::node::Candidate;
use crate::pod;
use crate::selector::has_all;
use crate::world::World;

const ZONE: &str = "topology.kubernetes.io/zone";

/// The best of the nodes with these indexes: the one that the pod prefers, then with the fewest of its peers, in the
/// zone with the fewest of its peers, with the fewest pods, and the first by name.
pub(super) fn best(world: &World, nodes: &[Candidate<'_>], fit: &[usize], pod: &Pod) -> Option<usize> {
    let services = services_of(world, pod);
    let peers: Vec<usize> = nodes
        .iter()
        .map(|node| node.pods.iter().filter(|p| peer(&services, pod, p)).count())
        .collect();
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    for (node, count) in nodes.iter().zip(&peers) {
        *zones.entry(node.label(ZONE).unwrap_or_default()).or_default() += count;
    }
    fit.iter().copied().min_by_key(|i| {
        let node = &nodes[*i];
        let zone = zones.get(node.label(ZONE).unwrap_or_default()).copied();
        (
            dislike(world, nodes, node, pod),
            peers[*i],
            zone,
            node.pods.len(),
            node.name,
        )
    })
}

fn services_of<'a>(world: &'a World, pod: &Pod) -> Vec<&'a Service> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let selecting = |service: &&Service| {
        let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
        selector.is_some_and(|s| !s.is_empty() && has_all(s, pod.metadata.labels.as_ref()))
    };
    world
        .services
        .within(namespace)
        .map(|s| &**s)
        .filter(selecting)
        .collect()
}

/// Whether two pods do the same work: they have one controller, or one service selects both.
fn peer(services: &[&Service], pod: &Pod, other: &Pod) -> bool {
    if pod.metadata.namespace != other.metadata.namespace || pod::terminating(other) {
        return false;
    }
    let owner = |pod: &Pod| pod::controller(&pod.metadata).map(|o| o.uid.clone());
    let selects = |service: &&Service| {
        let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
        selector.is_some_and(|s| has_all(s, other.metadata.labels.as_ref()))
    };
    (owner(pod).is_some() && owner(pod) == owner(other)) || services.iter().any(selects)
}

/// How much the pod would rather not go there: soft taints first, then what its preferences miss.
fn dislike(world: &World, nodes: &[Candidate<'_>], node: &Candidate<'_>, pod: &Pod) -> (usize, i64) {
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|s| s.tolerations.as_deref())
        .unwrap_or_default();
    let taints = node.taints();
    let soft = taints.iter().filter(|t| t.effect == "PreferNoSchedule");
    let bad = soft
        .filter(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
        .count();
    (bad, -preference(world, nodes, node, pod))
}

fn preference(world: &World, nodes: &[Candidate<'_>], node: &Candidate<'_>, pod: &Pod) -> i64 {
    let Some(affinity) = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else {
        return 0;
    };
    let mut sum = 0;
    let nodes_terms = affinity.node_affinity.as_ref();
    let nodes_terms =
        nodes_terms.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    for term in nodes_terms
        .into_iter()
        .flatten()
        .filter(|term| meets(&term.preference, node))
    {
        sum += i64::from(term.weight);
    }
    let near = affinity.pod_affinity.as_ref();
    let near = near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let far = affinity.pod_anti_affinity.as_ref();
    let far = far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let near = near.into_iter().flatten().map(|term| (1, term));
    for (sign, term) in near.chain(far.into_iter().flatten().map(|term| (-1, term))) {
        let wanted = &term.pod_affinity_term;
        let domain = node.label(&wanted.topology_key);
        let together = nodes
            .iter()
            .filter(|n| domain.is_some() && n.label(&wanted.topology_key) == domain);
        let count = together
            .flat_map(|n| &n.pods)
            .filter(|p| applies(world, wanted, pod, p))
            .count();
        sum += sign * i64::from(term.weight) * count as i64;
    }
    sum
}
