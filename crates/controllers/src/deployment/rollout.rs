//! The steps of a rollout.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DeploymentStatus, ReplicaSet};

use super::fraction::{fences, rolls};
use super::{View, available, lasting, revisions, status, wanted};
use crate::action::{Action, Note, Part};
use crate::control::Plan;
use crate::pod;
use crate::resource::Key;

/// The next step.
pub(super) fn step(view: &View<'_>) -> Plan {
    let mut actions = Vec::new();
    let mut created = None;
    if view.deployment.metadata.deletion_timestamp.is_none() {
        if let Some(collision) = collision(view) {
            return vec![collision].into();
        }
        let changes = changes(view);
        created = changes.created.as_ref().and_then(|set| set.metadata.name.clone());
        actions.extend(changes.actions(view));
        actions.extend(revision(view, created.is_some()));
    }
    let (report, again) = status::report(view, created.as_deref());
    actions.extend(report);
    Plan { actions, again }
}

/// What a step does to the ReplicaSets.
#[derive(Default)]
struct Changes {
    created: Option<ReplicaSet>,
    /// Sets and the number of pods that they are to have.
    scaled: Vec<(Arc<ReplicaSet>, i32)>,
    deleted: Vec<Arc<ReplicaSet>>,
}

impl Changes {
    fn scale(set: &Arc<ReplicaSet>, replicas: i32) -> Changes {
        Changes {
            scaled: vec![(set.clone(), replicas)],
            ..Changes::default()
        }
    }

    fn none(&self) -> bool {
        self.created.is_none() && self.scaled.is_empty()
    }

    fn actions(&self, view: &View<'_>) -> Vec<Action> {
        let mut actions: Vec<Action> = self.deleted.iter().map(|set| Action::delete(&**set)).collect();
        if let Some(set) = &self.created {
            let text = format!("Scaled up replica set {{name}} from 0 to {}", wanted(set));
            let create = Action::create(set);
            actions.push(match wanted(set) {
                0 => create,
                _ => create.telling(Note::normal(view.deployment, "ScalingReplicaSet", text)),
            });
        }
        let mut written = Vec::new();
        for (set, replicas) in &self.scaled {
            written.push(&set.metadata.uid);
            actions.extend(scale_action(view, set, *replicas));
        }
        if let Some(set) = view
            .sets
            .new
            .as_ref()
            .filter(|set| !written.contains(&&set.metadata.uid))
        {
            let mut updated = (**set).clone();
            complete_new(view, &mut updated);
            actions.extend(Action::modify(Part::Main, &**set, &updated));
        }
        actions
    }
}

/// The ReplicaSet of the current template follows the Deployment in more than the number of pods.
fn complete_new(view: &View<'_>, set: &mut ReplicaSet) {
    revisions::annotate(view, set);
    if let Some(spec) = set.spec.as_mut() {
        spec.min_ready_seconds = view
            .spec
            .min_ready_seconds
            .filter(|s| *s != 0)
            .or(spec.min_ready_seconds.map(|_| 0));
    }
}

fn scale_action(view: &View<'_>, set: &Arc<ReplicaSet>, replicas: i32) -> Option<Action> {
    let mut updated = (**set).clone();
    let new = view
        .sets
        .new
        .as_ref()
        .is_some_and(|new| new.metadata.uid == set.metadata.uid);
    if new {
        complete_new(view, &mut updated);
    }
    revisions::proportions(view, &mut updated);
    updated.spec.get_or_insert_default().replicas = Some(replicas);
    let action = Action::modify(Part::Main, &**set, &updated)?;
    let before = wanted(set);
    if before == replicas {
        return Some(action);
    }
    let way = if replicas > before { "up" } else { "down" };
    let name = set.metadata.name.as_deref().unwrap_or_default();
    let text = format!("Scaled {way} replica set {name} from {before} to {replicas}");
    Some(action.telling(Note::normal(view.deployment, "ScalingReplicaSet", text)))
}

/// The name of the new ReplicaSet may be somebody else's. Then the hash is salted with one more collision.
fn collision(view: &View<'_>) -> Option<Action> {
    if view.sets.new.is_some() {
        return None;
    }
    let (name, _) = revisions::new_name(view.deployment, view.spec);
    let namespace = view.deployment.metadata.namespace.as_deref().unwrap_or_default();
    let taken = view.world.replica_sets.get(&Key::new(namespace, name))?;
    let ours = pod::controller(&taken.metadata).map(|o| &o.uid) == view.deployment.metadata.uid.as_ref();
    if ours {
        return None;
    }
    let mut updated = view.deployment.clone();
    let status = updated.status.get_or_insert_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    Action::modify(Part::Status, view.deployment, &updated)
}

/// The Deployment bears the revision of its current template.
fn revision(view: &View<'_>, created: bool) -> Option<Action> {
    let newest = view
        .sets
        .old
        .iter()
        .map(|set| revisions::revision(&set.metadata))
        .max()
        .unwrap_or(0);
    let current = match &view.sets.new {
        Some(set) => revisions::revision(&set.metadata).max(newest + 1),
        None if created => newest + 1,
        None => return None,
    };
    let mut updated = view.deployment.clone();
    let annotations = updated.metadata.annotations.get_or_insert_default();
    annotations.insert(revisions::REVISION.into(), current.to_string());
    Action::modify(Part::Main, view.deployment, &updated)
}

fn changes(view: &View<'_>) -> Changes {
    if view.spec.paused == Some(true) || scaled_since(view) {
        return scaling(view);
    }
    let changes = if rolls(view.spec) {
        rolling(view)
    } else {
        recreating(view)
    };
    let done = view.deployment.status.as_ref().is_some_and(|s| finished(view, s));
    if changes.none() && done {
        Changes {
            deleted: past_history(view),
            ..changes
        }
    } else {
        changes
    }
}

fn finished(view: &View<'_>, status: &DeploymentStatus) -> bool {
    status::complete(view.deployment, status)
}

/// Whether the Deployment was scaled since its ReplicaSets last were.
fn scaled_since(view: &View<'_>) -> bool {
    view.sets.all().filter(|set| wanted(set) > 0).any(|set| {
        let desired: Option<i32> = revisions::annotation(&set.metadata, revisions::DESIRED);
        desired.is_some_and(|desired| desired != view.replicas())
    })
}

fn total(view: &View<'_>) -> i32 {
    view.sets.all().map(|set| wanted(set)).sum()
}

fn rolling(view: &View<'_>) -> Changes {
    let Some(new) = &view.sets.new else {
        return Changes {
            created: Some(revisions::new_set(view, new_size(view, 0))),
            ..Changes::default()
        };
    };
    let size = wanted(new);
    let target = if size > view.replicas() {
        view.replicas()
    } else {
        new_size(view, size)
    };
    if target != size {
        return Changes::scale(new, target);
    }
    shrink_old(view, new)
}

/// How many pods the new ReplicaSet may have, which now is to have `size`.
fn new_size(view: &View<'_>, size: i32) -> i32 {
    if !rolls(view.spec) {
        return view.replicas();
    }
    let room = view.replicas() + fences(view.spec).0 - total(view);
    size + room.min(view.replicas() - size).max(0)
}

/// Takes pods from the old ReplicaSets, first those that are of no use anyway, as far as enough stay available.
fn shrink_old(view: &View<'_>, new: &ReplicaSet) -> Changes {
    let old: Vec<_> = view.sets.old.iter().filter(|set| wanted(set) > 0).collect();
    let least = view.replicas() - fences(view.spec).1;
    let coming = wanted(new) - lasting(new);
    let mut spare = total(view) - least - coming;
    if old.is_empty() || spare <= 0 {
        return Changes::default();
    }
    let mut sizes: Vec<i32> = old.iter().map(|set| wanted(set)).collect();
    for (set, size) in old.iter().zip(&mut sizes) {
        let useless = (*size - lasting(set)).max(0).min(spare);
        *size -= useless;
        spare -= useless;
    }
    let mut surplus = view.sets.all().map(|set| lasting(set)).sum::<i32>() - least;
    for size in &mut sizes {
        let taken = (*size).min(surplus.max(0));
        *size -= taken;
        surplus -= taken;
    }
    let scaled = old
        .into_iter()
        .zip(sizes)
        .filter(|(set, size)| wanted(set) != *size);
    Changes {
        scaled: scaled.map(|(set, size)| (set.clone(), size)).collect(),
        ..Changes::default()
    }
}

fn recreating(view: &View<'_>) -> Changes {
    let old: Vec<_> = view.sets.old.iter().filter(|set| wanted(set) > 0).collect();
    if !old.is_empty() {
        let scaled = old.into_iter().map(|set| (set.clone(), 0)).collect();
        return Changes {
            scaled,
            ..Changes::default()
        };
    }
    match &view.sets.new {
        _ if old_pods_run(view) => Changes::default(),
        None => Changes {
            created: Some(revisions::new_set(view, view.replicas())),
            ..Changes::default()
        },
        Some(new) if wanted(new) != view.replicas() => Changes::scale(new, view.replicas()),
        Some(_) => Changes::default(),
    }
}

fn old_pods_run(view: &View<'_>) -> bool {
    let namespace = view.deployment.metadata.namespace.as_deref().unwrap_or_default();
    view.world
        .pods
        .within(namespace)
        .filter(|pod| !pod::ended(pod))
        .any(|pod| {
            let owner = pod::controller(&pod.metadata).map(|owner| &owner.uid);
            owner.is_some() && view.sets.old.iter().any(|set| set.metadata.uid.as_ref() == owner)
        })
}

/// Scales without rolling out: the one active ReplicaSet, or each in proportion.
fn scaling(view: &View<'_>) -> Changes {
    let active: Vec<_> = view.sets.all().filter(|set| wanted(set) > 0).collect();
    let only = match active.as_slice() {
        [] => view.sets.new.as_ref().or(view.sets.old.last()),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(only) = only {
        return if wanted(only) == view.replicas() {
            noted(view, only)
        } else {
            Changes::scale(only, view.replicas())
        };
    }
    if active.is_empty() {
        return Changes::default();
    }
    let saturated = view.sets.new.as_ref().is_some_and(|new| {
        wanted(new) == view.replicas()
            && available(new) == view.replicas()
            && revisions::annotation(&new.metadata, revisions::DESIRED) == Some(view.replicas())
    });
    if saturated {
        let old = view.sets.old.iter().filter(|set| wanted(set) > 0);
        return Changes {
            scaled: old.map(|set| (set.clone(), 0)).collect(),
            ..Changes::default()
        };
    }
    if rolls(view.spec) {
        proportional(view, active)
    } else {
        Changes::default()
    }
}

/// A set that has the right size already only notes for which size of the Deployment.
fn noted(view: &View<'_>, set: &Arc<ReplicaSet>) -> Changes {
    let desired: Option<i32> = revisions::annotation(&set.metadata, revisions::DESIRED);
    if desired == Some(view.replicas()) {
        Changes::default()
    } else {
        Changes::scale(set, view.replicas())
    }
}

fn proportional(view: &View<'_>, mut active: Vec<&Arc<ReplicaSet>>) -> Changes {
    let surge = fences(view.spec).0;
    let allowed = if view.replicas() > 0 {
        view.replicas() + surge
    } else {
        0
    };
    let to_add = allowed - total(view);
    // The largest first; among equals the newer when growing, the older when shrinking.
    let age = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|t| t.0);
    active.sort_by_key(|set| (Reverse(wanted(set)), age(set)));
    if to_add > 0 {
        active.sort_by_key(|set| (Reverse(wanted(set)), Reverse(age(set))));
    }
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::new();
    for set in &active {
        let share = share(view, set, allowed);
        let left = to_add - added;
        let share = if to_add > 0 {
            share.min(left).max(0)
        } else {
            share.max(left).min(0)
        };
        added += share;
        sizes.push(wanted(set) + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    let scaled = active.into_iter().cloned().zip(sizes).collect();
    Changes {
        scaled,
        ..Changes::default()
    }
}

/// By how much a set grows or shrinks for its share of `allowed` to stay what it was.
fn share(view: &View<'_>, set: &ReplicaSet, allowed: i32) -> i32 {
    let size = wanted(set);
    if view.replicas() == 0 {
        return -size;
    }
    let before = revisions::annotation::<i32>(&set.metadata, revisions::MAX).filter(|max| *max > 0);
    let before = before
        .or(view.deployment.status.as_ref().and_then(|s| s.replicas))
        .unwrap_or(0);
    if before == 0 {
        return 0;
    }
    let scaled = f64::from(size) * f64::from(allowed) / f64::from(before);
    // Half is rounded away from zero, as Go's math.Round does.
    scaled.round() as i32 - size
}

/// The ReplicaSets that the history has no room for, the oldest revisions first.
fn past_history(view: &View<'_>) -> Vec<Arc<ReplicaSet>> {
    let Some(limit) = view
        .spec
        .revision_history_limit
        .filter(|limit| *limit != i32::MAX)
    else {
        return Vec::new();
    };
    let alive = view
        .sets
        .old
        .iter()
        .filter(|set| set.metadata.deletion_timestamp.is_none());
    let mut old: Vec<_> = alive.cloned().collect();
    old.sort_by_key(|set| revisions::revision(&set.metadata));
    let excess = old.len().saturating_sub(limit.max(0) as usize);
    let empty = |set: &Arc<ReplicaSet>| {
        let status = set.status.clone().unwrap_or_default();
        wanted(set) == 0 && status.replicas == 0 && status.observed_generation >= set.metadata.generation
    };
    old.into_iter().take(excess).filter(empty).collect()
}
