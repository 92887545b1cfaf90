//! Pod collection: pods that no node will ever finish.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::action::{Action, Guard, Op, Propagation, Target};
use crate::control::{Context, Controller, Plan};
use crate::pod;
use crate::resource::{Key, Resource};
use crate::world::{Change, Kind, World};

/// The collector of pods whose node is gone, or that were to be deleted before they had one.
#[derive(Debug)]
pub struct PodCollector;

impl Controller for PodCollector {
    fn name(&self) -> &'static str {
        "pod-gc"
    }

    fn component(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::Pod, Kind::Node]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        match change {
            Change::Pod(delta) => drop(keys.insert(delta.key())),
            Change::Node(delta) if delta.new.is_none() => {
                let name = delta.key().name;
                let lost = world.pods.iter().filter(|p| pod::node(p) == Some(&name));
                keys.extend(lost.map(|pod| Key::of(&pod.metadata)));
            }
            _ => {}
        }
    }

    fn plan(&self, world: &World, key: &Key, _: &Context) -> Plan {
        let Some(pod) = world.pods.get(key) else {
            return Plan::nothing();
        };
        match pod::node(pod) {
            None if pod::terminating(pod) => vec![end(pod)].into(),
            Some(node) if world.nodes.get(&Key::cluster(node)).is_none() => {
                let node = Target {
                    resource: Resource::of::<Node>(),
                    key: Key::cluster(node),
                    uid: None,
                };
                vec![end(pod).guarded(Guard::Absent(node))].into()
            }
            _ => Plan::nothing(),
        }
    }
}

fn end(pod: &Pod) -> Action {
    let op = Op::Delete {
        propagation: Some(Propagation::Background),
        grace: Some(0),
        version: None,
    };
    Action::new(Target::of(pod), op)
}
