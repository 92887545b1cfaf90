//! Deployment: rolls a template out over ReplicaSets, one of each template.
//!
//! The plan for a Deployment is one step; what it writes changes the objects, and that makes the next step. The
//! algorithm and the words of its conditions are those of kube-controller-manager, for kubectl reads them.

mod fraction;
mod revisions;
mod rollout;
mod status;

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;

use crate::claim::claim;
use crate::control::{Context, Controller, Plan};
use crate::pod;
use crate::resource::Key;
use crate::selector::selects;
use crate::world::{Change, Kind, World};

pub use revisions::template_hash;

/// The Deployment controller.
#[derive(Debug)]
pub struct Deployments;

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        "deployment"
    }

    fn component(&self) -> &'static str {
        "deployment-controller"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::Deployment, Kind::ReplicaSet, Kind::Pod]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        match change {
            Change::Deployment(delta) => drop(keys.insert(delta.key())),
            Change::ReplicaSet(delta) => {
                delta
                    .sides()
                    .for_each(|set| replica_set_affects(world, set, keys));
            }
            // Recreate waits for the last old pod to be gone.
            Change::Pod(delta) if delta.new.is_none() => {
                delta
                    .sides()
                    .for_each(|pod| keys.extend(deployment_of(world, pod)));
            }
            _ => {}
        }
    }

    fn plan(&self, world: &World, key: &Key, context: &Context) -> Plan {
        let Some(deployment) = world.deployments.get(key) else {
            return Plan::nothing();
        };
        let Some(spec) = &deployment.spec else {
            return Plan::nothing();
        };
        let claim = claim(
            &**deployment,
            &spec.selector,
            world.replica_sets.within(&key.namespace),
        );
        let sets = Sets::sort(deployment, spec, claim.mine);
        let mut plan = rollout::step(&View {
            deployment,
            spec,
            sets: &sets,
            world,
            context,
        });
        plan.actions.extend(claim.actions);
        plan
    }
}

fn replica_set_affects(world: &World, set: &ReplicaSet, keys: &mut BTreeSet<Key>) {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    match pod::controller(&set.metadata) {
        Some(owner) if owner.kind == "Deployment" => drop(keys.insert(Key::new(namespace, &*owner.name))),
        Some(_) => {}
        None => {
            let labels = set.metadata.labels.as_ref();
            let selecting = world.deployments.within(namespace);
            let selecting = selecting.filter(|d| {
                d.spec
                    .as_ref()
                    .is_some_and(|spec| selects(&spec.selector, labels))
            });
            keys.extend(selecting.map(|d| Key::of(&d.metadata)));
        }
    }
}

fn deployment_of(world: &World, pod: &Pod) -> Option<Key> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let set = pod::controller(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet")?;
    let set = world.replica_sets.get(&Key::new(namespace, &*set.name))?;
    let owner = pod::controller(&set.metadata).filter(|owner| owner.kind == "Deployment")?;
    Some(Key::new(namespace, &*owner.name))
}

/// What a step looks at.
struct View<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    sets: &'a Sets,
    world: &'a World,
    context: &'a Context,
}

impl View<'_> {
    fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
}

/// A Deployment's ReplicaSets.
struct Sets {
    /// The one of the current template, if there is one.
    new: Option<Arc<ReplicaSet>>,
    /// All others, the oldest first.
    old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    fn sort(deployment: &Deployment, spec: &DeploymentSpec, mut sets: Vec<Arc<ReplicaSet>>) -> Sets {
        sets.sort_by_key(|set| {
            (
                set.metadata.creation_timestamp.as_ref().map(|t| t.0),
                set.metadata.name.clone(),
            )
        });
        let new = sets
            .iter()
            .position(|set| revisions::is_of(set, deployment, spec));
        let new = new.map(|index| sets.remove(index));
        Sets { new, old: sets }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }
}

/// How many pods a ReplicaSet is to have.
fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// How many of its pods are available and will stay: its status may still count some that it is about to delete.
fn lasting(set: &ReplicaSet) -> i32 {
    available(set).min(wanted(set))
}

/// How many pods of it are available.
fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}
