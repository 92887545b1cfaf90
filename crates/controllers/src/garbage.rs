//! Garbage collection: what becomes of objects whose owners go.
//!
//! - *Background*: an object all of whose owners are gone is deleted.
//! - *Foreground*: an object with the finalizer `foregroundDeletion` waits for its dependents, which are deleted;
//!   those that say `blockOwnerDeletion` hold it.
//! - *Orphan*: an object with the finalizer `orphan` waits until no dependent refers to it any more.
//!
//! The view may lag, so before anything is deleted the server is asked whether its owners are really gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use crate::action::{Action, Guard, Op, Part, Propagation, Target};
use crate::control::{Context, Controller, Plan};
use crate::resource::{Key, Meta};
use crate::world::{Change, Kind, World};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// The garbage collector. Its keys are unique ids.
#[derive(Debug)]
pub struct GarbageCollector;

impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "garbage-collector"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::Everything]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        let Change::Meta(delta) = change else { return };
        for side in delta.sides() {
            if delta.new.is_some() {
                keys.insert(Key::cluster(side.uid()));
            }
            for owner in side.metadata.owner_references.iter().flatten() {
                if world.owners.get(&owner.uid).is_some_and(|owner| owner.deleting()) {
                    keys.insert(Key::cluster(&*owner.uid));
                }
            }
        }
        let old = delta.old.as_ref().or(delta.new.as_ref());
        let going = delta.new.as_ref().is_none_or(|new| new.deleting());
        if let Some(old) = old.filter(|_| going) {
            let dependents = world.owners.dependents(old.uid());
            keys.extend(dependents.map(|dependent| Key::cluster(dependent.uid())));
        }
    }

    fn plan(&self, world: &World, key: &Key, _: &Context) -> Plan {
        let Some(object) = world.owners.get(&key.name) else {
            return Plan::nothing();
        };
        if object.deleting() && object.has_finalizer(ORPHAN) {
            return orphan(world, object).into();
        }
        if object.deleting() && object.has_finalizer(FOREGROUND) {
            return foreground(world, object).into_iter().collect();
        }
        if object.deleting() {
            Plan::nothing()
        } else {
            collect(world, object).into_iter().collect()
        }
    }
}

/// First every dependent loses its reference, then the object its finalizer.
fn orphan(world: &World, object: &Meta) -> Vec<Action> {
    let dependents: Vec<&Arc<Meta>> = world.owners.dependents(object.uid()).collect();
    if dependents.is_empty() {
        return vec![without_finalizer(object, ORPHAN)];
    }
    dependents
        .into_iter()
        .map(|dependent| without_owners(dependent, &[object.uid()]))
        .collect()
}

/// The dependents are deleted by their own plans, now that their owner waits for them.
fn foreground(world: &World, object: &Meta) -> Option<Action> {
    let blocks = |dependent: &Arc<Meta>| {
        let mut owners = dependent.metadata.owner_references.iter().flatten();
        owners.any(|owner| owner.uid == object.uid() && owner.block_owner_deletion == Some(true))
    };
    let held = world.owners.dependents(object.uid()).any(blocks);
    (!held).then(|| without_finalizer(object, FOREGROUND))
}

/// What an object's owners are like.
#[derive(Default)]
struct Owners<'a> {
    /// There, and to stay.
    solid: bool,
    /// Gone, as far as is known.
    dangling: Vec<(&'a OwnerReference, Target)>,
    /// Waiting for their dependents to go.
    waiting: Vec<&'a OwnerReference>,
    /// Of a kind that nobody knows; nothing may be concluded from them.
    unknown: bool,
}

fn collect(world: &World, object: &Arc<Meta>) -> Option<Action> {
    let references = object.metadata.owner_references.as_deref().unwrap_or_default();
    if references.is_empty() {
        return None;
    }
    let owners = classify(world, object, references);
    if owners.solid || owners.unknown {
        return drop_references(object, &owners);
    }
    let held = world.owners.dependents(object.uid()).next().is_some();
    let propagation = if object.has_finalizer(ORPHAN) {
        Propagation::Orphan
    } else if object.has_finalizer(FOREGROUND) || (!owners.waiting.is_empty() && held) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    let op = Op::Delete {
        propagation: Some(propagation),
        grace: None,
        // Somebody may just have given it another owner.
        version: object.metadata.resource_version.clone(),
    };
    Some(guarded(Action::new(Target::meta(object), op), owners.dangling))
}

/// An object with an owner that stays only loses its references to the others.
fn drop_references(object: &Meta, owners: &Owners<'_>) -> Option<Action> {
    let gone = owners.dangling.iter().map(|(owner, _)| owner.uid.as_str());
    let gone: Vec<&str> = gone
        .chain(owners.waiting.iter().map(|owner| owner.uid.as_str()))
        .collect();
    if gone.is_empty() || !owners.solid {
        return None;
    }
    Some(guarded(without_owners(object, &gone), owners.dangling.clone()))
}

fn guarded(action: Action, dangling: Vec<(&OwnerReference, Target)>) -> Action {
    dangling
        .into_iter()
        .fold(action, |action, (_, owner)| action.guarded(Guard::Absent(owner)))
}

fn classify<'a>(world: &World, object: &Meta, references: &'a [OwnerReference]) -> Owners<'a> {
    let mut owners = Owners::default();
    for reference in references {
        match world
            .owners
            .get(&reference.uid)
            .filter(|owner| reaches(owner, object))
        {
            Some(owner) if owner.deleting() && owner.has_finalizer(FOREGROUND) => {
                owners.waiting.push(reference)
            }
            Some(_) => owners.solid = true,
            None => match target(world, object, reference) {
                Some(target) => owners.dangling.push((reference, target)),
                None => owners.unknown = true,
            },
        }
    }
    owners
}

/// An owner is of the cluster or of the same namespace; a reference to another namespace's object points nowhere.
fn reaches(owner: &Meta, object: &Meta) -> bool {
    owner.metadata.namespace.is_none() || owner.metadata.namespace == object.metadata.namespace
}

/// Where the owner of that reference would be; none if its kind is not known.
fn target(world: &World, object: &Meta, reference: &OwnerReference) -> Option<Target> {
    let group = reference
        .api_version
        .rsplit_once('/')
        .map_or("", |(group, _)| group);
    let resource = world.knows(group, &reference.kind)?;
    let namespace = object
        .metadata
        .namespace
        .clone()
        .filter(|_| resource.namespaced)
        .unwrap_or_default();
    Some(Target {
        resource: (**resource).clone(),
        key: Key::new(namespace, &*reference.name),
        uid: Some(reference.uid.clone()),
    })
}

fn without_finalizer(object: &Meta, finalizer: &str) -> Action {
    let finalizers = object
        .metadata
        .finalizers
        .iter()
        .flatten()
        .filter(|f| *f != finalizer);
    patch(object, "finalizers", json!(finalizers.collect::<Vec<_>>()))
}

fn without_owners(object: &Meta, gone: &[&str]) -> Action {
    let owners = object.metadata.owner_references.iter().flatten();
    let owners: Vec<_> = owners
        .filter(|owner| !gone.contains(&owner.uid.as_str()))
        .collect();
    patch(object, "ownerReferences", json!(owners))
}

/// A patch of a list of the metadata, for just the version whose list it was.
fn patch(object: &Meta, field: &str, list: Value) -> Action {
    let list = if list.as_array().is_some_and(Vec::is_empty) {
        Value::Null
    } else {
        list
    };
    let metadata = json!({"resourceVersion": object.metadata.resource_version, field: list});
    Action::new(
        Target::meta(object),
        Op::Patch(Part::Main, json!({"metadata": metadata})),
    )
}

#[cfg(test)]
#[path = "garbage_tests.rs"]
mod tests;
