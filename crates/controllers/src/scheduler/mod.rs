//! Scheduler: binds pods to nodes, spread out.
//!
//! All pods that wait are placed together, each knowing where those before it went, so that a burst is as well
//! spread as a trickle. Reasons and messages are kube-scheduler's.

mod affinity;
mod filter;
mod node;
mod score;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::{Action, Note, Op, Part, Target};
use crate::control::{Context, Controller, Plan};
use crate::pod;
use crate::resource::Key;
use crate::world::{Change, Kind, World};
use filter::Reason;
use node::Candidate;

/// The scheduler.
#[derive(Debug)]
pub struct Scheduler;

impl Controller for Scheduler {
    fn name(&self) -> &'static str {
        "scheduler"
    }

    fn component(&self) -> &'static str {
        "default-scheduler"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::Pod, Kind::Node, Kind::Service, Kind::Namespace]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        let matters = match change {
            Change::Pod(delta) => {
                let frees = |p: &Pod| pod::node(p).is_some();
                let ended = delta.new.as_ref().is_none_or(|p| pod::ended(p));
                delta.new.as_ref().is_some_and(|p| waits(p))
                    || (ended && delta.old.as_ref().is_some_and(|p| frees(p)))
            }
            Change::Node(delta) => match (&delta.old, &delta.new) {
                (Some(old), Some(new)) => node::differ(old, new),
                (_, new) => new.is_some(),
            },
            _ => false,
        };
        if matters && world.pods.iter().any(|p| waits(p)) {
            keys.insert(Key::all());
        }
    }

    fn plan(&self, world: &World, _: &Key, context: &Context) -> Plan {
        let mut waiting: Vec<&Arc<Pod>> = world.pods.iter().filter(|p| waits(p)).collect();
        if waiting.is_empty() {
            return Plan::nothing();
        }
        // The important first, then in the order in which they came.
        waiting.sort_by_key(|p| {
            let priority = p.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (std::cmp::Reverse(priority), created)
        });
        let mut placement = Placement::new(world);
        waiting
            .into_iter()
            .filter_map(|pod| placement.place(pod, context))
            .collect()
    }
}

/// Whether the pod is ours to place and not yet placed.
fn waits(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec
        .scheduler_name
        .as_deref()
        .is_none_or(|name| name.is_empty() || name == "default-scheduler");
    let gated = spec
        .scheduling_gates
        .as_ref()
        .is_some_and(|gates| !gates.is_empty());
    ours && !gated && pod::node(pod).is_none() && pod::active(pod)
}

/// The nodes with the pods on them, those that are being placed included.
struct Placement<'a> {
    world: &'a World,
    nodes: Vec<Candidate<'a>>,
}

impl<'a> Placement<'a> {
    fn new(world: &'a World) -> Placement<'a> {
        let mut nodes: Vec<Candidate<'a>> = world.nodes.iter().map(|node| Candidate::new(node)).collect();
        let index: BTreeMap<String, usize> = nodes
            .iter()
            .enumerate()
            .map(|(i, node)| (node.name.to_owned(), i))
            .collect();
        for pod in world.pods.iter().filter(|p| !pod::ended(p)) {
            if let Some(i) = pod::node(pod).and_then(|name| index.get(name)) {
                nodes[*i].add(pod);
            }
        }
        Placement { world, nodes }
    }

    fn place(&mut self, pod: &'a Arc<Pod>, context: &Context) -> Option<Action> {
        if self.nodes.is_empty() {
            return unschedulable(pod, "no nodes available to schedule pods".into(), context);
        }
        let verdicts = filter::judge(self.world, &self.nodes, pod);
        let fit: Vec<usize> = verdicts
            .iter()
            .enumerate()
            .filter(|(_, reasons)| reasons.is_empty())
            .map(|(i, _)| i)
            .collect();
        let Some(best) = score::best(self.world, &self.nodes, &fit, pod) else {
            return unschedulable(pod, explain(&verdicts), context);
        };
        self.nodes[best].add(pod);
        let node = self.nodes[best].name;
        let key = Key::of(&pod.metadata);
        let note = Note::normal(
            &**pod,
            "Scheduled",
            format!("Successfully assigned {key} to {node}"),
        );
        Some(Action::new(Target::of(&**pod), Op::Bind(node.to_owned())).telling(note))
    }
}

/// `0/3 nodes are available: 1 ..., 2 ....`, as kube-scheduler says it.
fn explain(verdicts: &[Vec<Reason>]) -> String {
    let total = verdicts.len();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for reason in verdicts.iter().flatten() {
        *counts.entry(reason.text.clone()).or_default() += 1;
    }
    let mut parts: Vec<String> = counts
        .into_iter()
        .map(|(text, count)| format!("{count} {text}"))
        .collect();
    parts.sort();
    // This scheduler evicts nobody; where evicting could help, Kubernetes would look for victims.
    let helpless = verdicts
        .iter()
        .filter(|reasons| reasons.iter().any(|r| r.lasting))
        .count();
    let mut preemption = Vec::new();
    if total > helpless {
        preemption.push(format!(
            "{} No preemption victims found for incoming pod",
            total - helpless
        ));
    }
    if helpless > 0 {
        preemption.push(format!("{helpless} Preemption is not helpful for scheduling"));
    }
    preemption.sort();
    let (parts, preemption) = (parts.join(", "), preemption.join(", "));
    format!(
        "0/{total} nodes are available: {parts}. preemption: 0/{total} nodes are available: {preemption}."
    )
}

/// Says in the pod and by an event why it cannot be placed, when that is news.
fn unschedulable(pod: &Arc<Pod>, message: String, context: &Context) -> Option<Action> {
    let old = pod::condition(pod, "PodScheduled");
    let same = |c: &PodCondition| c.status == "False" && c.message.as_deref() == Some(&message);
    if old.is_some_and(same) {
        return None;
    }
    let since = old
        .filter(|c| c.status == "False")
        .and_then(|c| c.last_transition_time.clone());
    let condition = PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some("Unschedulable".into()),
        message: Some(message.clone()),
        last_transition_time: since.or(Some(Time(context.now))),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    };
    let mut updated = (**pod).clone();
    let conditions = updated
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    conditions.retain(|c| c.type_ != "PodScheduled");
    conditions.push(condition);
    let action = Action::modify_exactly(Part::Status, &**pod, &updated)?;
    Some(action.telling(Note::warning(&**pod, "FailedScheduling", message)))
}

#[cfg(test)]
mod tests;
