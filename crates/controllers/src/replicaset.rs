//! ReplicaSet: keeps as many pods of a template as it asks for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::action::{Action, Note, Part, controller_reference};
use crate::claim::claim;
use crate::control::{Context, Controller, Plan};
use crate::pod;
use crate::resource::Key;
use crate::selector::{has_all, selects};
use crate::store::Delta;
use crate::world::{Change, Kind, World};

/// Most pods created or deleted in one go.
const BURST: usize = 500;
/// So many of a set's pods may wait for a node. The rest are created when some have found one: a number that no cluster
/// can hold (a slip of the finger when scaling) costs a thousand objects then, not a million.
const WAITING: usize = 1000;
/// Lets a pod say how dear it is; the cheap ones go first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The ReplicaSet controller.
#[derive(Debug)]
pub struct ReplicaSets;

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        "replicaset"
    }

    fn component(&self) -> &'static str {
        "replicaset-controller"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::ReplicaSet, Kind::Pod]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        match change {
            Change::ReplicaSet(delta) => drop(keys.insert(delta.key())),
            Change::Pod(delta) => pod_affects(world, delta, keys),
            _ => {}
        }
    }

    fn plan(&self, world: &World, key: &Key, context: &Context) -> Plan {
        match world.replica_sets.get(key) {
            Some(set) => plan(set, world, context),
            None => Plan::nothing(),
        }
    }
}

fn pod_affects(world: &World, delta: &Delta<Pod>, keys: &mut BTreeSet<Key>) {
    for side in delta.sides() {
        let namespace = side.metadata.namespace.as_deref().unwrap_or_default();
        match pod::controller(&side.metadata) {
            Some(owner) if owner.kind == "ReplicaSet" => drop(keys.insert(Key::new(namespace, &*owner.name))),
            Some(_) => {}
            None => {
                let labels = side.metadata.labels.as_ref();
                let selecting = world.replica_sets.within(namespace).filter(|set| {
                    set.spec
                        .as_ref()
                        .is_some_and(|spec| selects(&spec.selector, labels))
                });
                keys.extend(selecting.map(|set| Key::of(&set.metadata)));
            }
        }
    }
}

fn plan(set: &ReplicaSet, world: &World, context: &Context) -> Plan {
    let Some(spec) = &set.spec else {
        return Plan::nothing();
    };
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let candidates = world.pods.within(namespace).filter(|p| !pod::ended(p));
    let claim = claim(set, &spec.selector, candidates);
    let (active, ending): (Vec<_>, Vec<_>) = claim.mine.into_iter().partition(|p| pod::active(p));
    let mut plan = Plan::from(claim.actions);
    if set.metadata.deletion_timestamp.is_none() {
        let wanted = spec.replicas.unwrap_or(1).max(0) as usize;
        if active.len() < wanted {
            let waiting = active.iter().filter(|p| pod::node(p).is_none()).count();
            let room = WAITING.saturating_sub(waiting);
            plan.actions
                .extend(create(set, room.min(wanted - active.len()), context));
        } else {
            plan.actions
                .extend(delete(set, &active, active.len() - wanted, world));
        }
    }
    let counted = status(set, &active, ending.len(), context);
    plan.look_again(next_available(
        &active,
        spec.min_ready_seconds.unwrap_or(0),
        context.now,
    ));
    let mut updated = set.clone();
    updated.status = Some(counted);
    plan.actions.extend(Action::modify(Part::Status, set, &updated));
    plan
}

/// A template that the server refuses is tried with one pod, not with all of them.
fn create(set: &ReplicaSet, missing: usize, context: &Context) -> impl Iterator<Item = Action> {
    let most = if context.error.is_some() { 1 } else { BURST };
    let count = missing.min(most);
    let pod = pod_of(set);
    let note = Note::normal(set, "SuccessfulCreate", "Created pod: {name}");
    std::iter::repeat_n(pod, count).map(move |pod| Action::create(&pod).telling(note.clone()))
}

/// The pod that the template describes.
fn pod_of(set: &ReplicaSet) -> Pod {
    let template = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.clone())
        .unwrap_or_default();
    let described = template.metadata.unwrap_or_default();
    let name = set.metadata.name.as_deref().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: set.metadata.namespace.clone(),
            labels: described.labels,
            annotations: described.annotations,
            finalizers: described.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

fn delete(set: &ReplicaSet, active: &[Arc<Pod>], excess: usize, world: &World) -> Vec<Action> {
    if excess == 0 {
        return Vec::new();
    }
    let related = related_per_node(set, world);
    let mut ranked: Vec<&Arc<Pod>> = active.iter().collect();
    ranked.sort_by_cached_key(|pod| deletion_rank(pod, &related));
    let doomed = ranked.into_iter().take(excess.min(BURST));
    doomed
        .map(|pod| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let note = Note::normal(set, "SuccessfulDelete", format!("Deleted pod: {name}"));
            Action::delete(&**pod).telling(note)
        })
        .collect()
}

/// How many active pods each node has of all the ReplicaSets of the same Deployment.
fn related_per_node(set: &ReplicaSet, world: &World) -> BTreeMap<String, usize> {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let deployment = pod::controller(&set.metadata).map(|owner| &owner.uid);
    let related: BTreeSet<&str> = world
        .replica_sets
        .within(namespace)
        .filter(|other| {
            let same = deployment.is_some()
                && pod::controller(&other.metadata).map(|owner| &owner.uid) == deployment;
            same || other.metadata.uid == set.metadata.uid
        })
        .filter_map(|other| other.metadata.uid.as_deref())
        .collect();
    let mut counts = BTreeMap::new();
    for pod in world.pods.within(namespace).filter(|p| pod::active(p)) {
        let owned = pod::controller(&pod.metadata).is_some_and(|o| related.contains(o.uid.as_str()));
        if let (true, Some(node)) = (owned, pod::node(pod)) {
            *counts.entry(node.to_owned()).or_insert(0) += 1;
        }
    }
    counts
}

type Rank = (
    (bool, u8, bool, i32),
    (
        Reverse<usize>,
        Reverse<Timestamp>,
        Reverse<i32>,
        Reverse<Option<Timestamp>>,
        String,
    ),
);

/// Which pod goes first, as kube-controller-manager's ActivePodsWithRanks has it: unassigned, pending, not ready,
/// cheap, doubled up on a node, ready for a shorter time, restarted more often, newer; and then by name, so that the
/// choice depends on the objects alone.
fn deletion_rank(pod: &Pod, related: &BTreeMap<String, usize>) -> Rank {
    let phase = match pod::phase(pod) {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let annotations = pod.metadata.annotations.as_ref();
    let cost = annotations
        .and_then(|a| a.get(DELETION_COST))
        .and_then(|c| c.parse().ok())
        .unwrap_or(0);
    let node = pod::node(pod);
    let doubled = node.and_then(|node| related.get(node)).copied().unwrap_or(0);
    let ready = pod::ready_since(pod);
    (
        (node.is_some(), phase, ready.is_some(), cost),
        (
            Reverse(doubled),
            Reverse(ready.unwrap_or(Timestamp::MIN)),
            Reverse(pod::restarts(pod)),
            Reverse(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)),
            pod.metadata.name.clone().unwrap_or_default(),
        ),
    )
}

fn status(set: &ReplicaSet, active: &[Arc<Pod>], ending: usize, context: &Context) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let seconds = spec.min_ready_seconds.unwrap_or(0);
    let described = spec
        .template
        .and_then(|t| t.metadata)
        .and_then(|m| m.labels)
        .unwrap_or_default();
    let count = |test: &dyn Fn(&Pod) -> bool| active.iter().filter(|p| test(p)).count() as i32;
    let some = |number: i32| Some(number).filter(|n| *n != 0);
    let old = set.status.clone().unwrap_or_default();
    let replicas = active.len() as i32;
    let available = |p: &Pod| pod::available_from(p, seconds).is_some_and(|from| from <= context.now);
    ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: some(count(&|p| has_all(&described, p.metadata.labels.as_ref()))),
        ready_replicas: some(count(&pod::ready)),
        available_replicas: some(count(&available)),
        terminating_replicas: Some(ending as i32),
        observed_generation: set.metadata.generation.or(old.observed_generation),
        conditions: conditions(old, replicas < spec.replicas.unwrap_or(1), context),
    }
}

/// `ReplicaFailure` stands as long as pods are missing because the server refuses them.
fn conditions(old: ReplicaSetStatus, missing: bool, context: &Context) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = old.conditions.unwrap_or_default();
    let failed = conditions.iter().position(|c| c.type_ == "ReplicaFailure");
    match (&context.error, missing) {
        (_, false) => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        (Some(error), true) if failed.is_none() => conditions.push(ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some("FailedCreate".into()),
            message: Some(error.clone()),
            last_transition_time: Some(Time(context.now)),
        }),
        _ => {}
    }
    Some(conditions).filter(|c| !c.is_empty())
}

/// When the next ready pod will have been ready for long enough.
fn next_available(active: &[Arc<Pod>], seconds: i32, now: Timestamp) -> Option<Timestamp> {
    active
        .iter()
        .filter_map(|p| pod::available_from(p, seconds))
        .filter(|from| *from > now)
        .min()
}

#[cfg(test)]
#[path = "replicaset_tests.rs"]
mod tests;
