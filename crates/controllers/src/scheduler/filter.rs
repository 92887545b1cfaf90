//! Which nodes a pod may go to, and why not to the others.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};
use podnet_core::quantity::Quantity;

use super::affinity;
use super::node::{Candidate, host_ports, ports_clash, requested};
use crate::selector::{Labels, has_all};
use crate::world::World;

/// Why a node does not fit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reason {
    /// kube-scheduler's words.
    pub(super) text: String,
    /// Whether no other pod's leaving would help.
    pub(super) lasting: bool,
}

impl Reason {
    pub(super) fn lasting(text: impl Into<String>) -> Reason {
        Reason {
            text: text.into(),
            lasting: true,
        }
    }

    pub(super) fn passing(text: impl Into<String>) -> Reason {
        Reason {
            text: text.into(),
            lasting: false,
        }
    }
}

/// For every node why it does not fit; nothing if it does. Of the node's own faults only the first is told.
pub(super) fn judge(world: &World, nodes: &[Candidate<'_>], pod: &Pod) -> Vec<Vec<Reason>> {
    let rules = affinity::Rules::of(world, nodes, pod);
    nodes
        .iter()
        .map(|node| {
            let own = unschedulable(node, pod)
                .or_else(|| untolerated(node, pod))
                .or_else(|| unselected(node, pod))
                .or_else(|| ports_taken(node, pod));
            if let Some(reason) = own {
                return vec![reason];
            }
            let lacks = insufficient(node, pod);
            if !lacks.is_empty() {
                return lacks;
            }
            rules.against(node).into_iter().collect()
        })
        .collect()
}

fn tolerations(pod: &Pod) -> impl Iterator<Item = &Toleration> {
    pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten())
}

fn unschedulable(node: &Candidate<'_>, pod: &Pod) -> Option<Reason> {
    if node.node.spec.as_ref().and_then(|s| s.unschedulable) != Some(true) {
        return None;
    }
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    let tolerated = tolerations(pod).any(|t| tolerates(t, &taint));
    (!tolerated).then(|| Reason::lasting("node(s) were unschedulable"))
}

fn untolerated(node: &Candidate<'_>, pod: &Pod) -> Option<Reason> {
    let taints = node.taints();
    let hard = taints
        .iter()
        .filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"));
    let taint = hard
        .into_iter()
        .find(|taint| !tolerations(pod).any(|t| tolerates(t, taint)))?;
    let value = taint.value.as_deref().unwrap_or_default();
    Some(Reason::lasting(format!(
        "node(s) had untolerated taint {{{}: {value}}}",
        taint.key
    )))
}

/// Whether the toleration covers the taint.
pub(super) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let effect = text(&toleration.effect);
    let key = text(&toleration.key);
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref() {
        Some("Exists") => true,
        None | Some("" | "Equal") => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        Some(_) => false,
    }
}

fn unselected(node: &Candidate<'_>, pod: &Pod) -> Option<Reason> {
    let spec = pod.spec.as_ref()?;
    let plain = spec
        .node_selector
        .as_ref()
        .is_none_or(|wanted| has_all(wanted, node.labels()));
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let fits = plain && required.is_none_or(|r| r.node_selector_terms.iter().any(|term| meets(term, node)));
    (!fits).then(|| Reason::lasting("node(s) didn't match Pod's node affinity/selector"))
}

/// Whether a node meets all of a term. An empty term is met by none.
pub(super) fn meets(term: &NodeSelectorTerm, node: &Candidate<'_>) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name: Labels = [("metadata.name".to_owned(), node.name.to_owned())].into();
    (!labels.is_empty() || !fields.is_empty())
        && labels
            .iter()
            .all(|requirement| meets_one(requirement, node.labels()))
        && fields
            .iter()
            .all(|requirement| meets_one(requirement, Some(&name)))
}

fn meets_one(requirement: &NodeSelectorRequirement, labels: Option<&Labels>) -> bool {
    let value = labels.and_then(|l| l.get(&requirement.key));
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.contains(value));
    let bound = values.first().and_then(|v| v.parse::<i64>().ok());
    let numbers = value.and_then(|v| v.parse::<i64>().ok()).zip(bound);
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers.is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers.is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

fn ports_taken(node: &Candidate<'_>, pod: &Pod) -> Option<Reason> {
    let clash = host_ports(pod)
        .iter()
        .any(|port| node.ports.iter().any(|taken| ports_clash(port, taken)));
    clash.then(|| Reason::passing("node(s) didn't have free ports for the requested pod ports"))
}

fn insufficient(node: &Candidate<'_>, pod: &Pod) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if node
        .allocatable("pods", Quantity::ONE)
        .is_some_and(|most| node.pods.len() as i128 >= most)
    {
        reasons.push(Reason::passing("Too many pods"));
    }
    for (resource, unit, used) in [
        ("cpu", Quantity::MILLI, node.cpu),
        ("memory", Quantity::ONE, node.memory),
    ] {
        let wanted = requested(pod, resource, unit);
        if wanted > 0
            && node
                .allocatable(resource, unit)
                .is_some_and(|most| used + wanted > most)
        {
            reasons.push(Reason::passing(format!("Insufficient {resource}")));
        }
    }
    reasons
}
