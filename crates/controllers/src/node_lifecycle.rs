//! Node lifecycle: a node that is silent is not ready, and its taints say so.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::action::{Action, Note, Part};
use crate::control::{Context, Controller, Plan};
use crate::pod;
use crate::resource::Key;
use crate::world::{Change, Kind, World};

/// How long a node may be silent.
const GRACE: SignedDuration = SignedDuration::from_secs(40);
/// How long a node may take for its first word.
const STARTUP_GRACE: SignedDuration = SignedDuration::from_secs(60);
/// Namespace of the leases by which nodes say that they live.
const LEASES: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The controller of nodes' conditions and taints.
#[derive(Debug)]
pub struct NodeLifecycle;

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-lifecycle"
    }

    fn component(&self) -> &'static str {
        "node-controller"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::Node, Kind::Lease, Kind::Pod]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        match change {
            Change::Node(delta) => drop(keys.insert(delta.key())),
            // A heartbeat only moves the alarm, which fires and moves itself; the first one after silence matters,
            // but then the node reports its conditions too.
            Change::Pod(delta) => {
                let nodes = delta.sides().filter_map(|p| pod::node(p)).map(Key::cluster);
                keys.extend(
                    nodes.filter(|node| world.nodes.get(node).is_some_and(|n| status(n) == "Unknown")),
                );
            }
            _ => {}
        }
    }

    fn plan(&self, world: &World, key: &Key, context: &Context) -> Plan {
        let Some(node) = world.nodes.get(key) else {
            return Plan::nothing();
        };
        let until = alive_until(world, node);
        let mut plan = Plan::nothing();
        if until <= context.now {
            let silent = silenced(node, context.now);
            if let Some(action) = Action::modify_exactly(Part::Status, &**node, &silent) {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                let text = format!("Node {name} status is now: NodeNotReady");
                plan.actions
                    .push(action.telling(Note::normal(&**node, "NodeNotReady", text)));
                return plan;
            }
            plan.actions.extend(not_ready_pods(world, key, context.now));
        } else {
            plan.look_again(Some(until));
        }
        let tainted = tainted(node, context.now);
        plan.actions
            .extend(Action::modify_exactly(Part::Main, &**node, &tainted));
        plan
    }
}

fn ready(node: &Node) -> Option<&NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "Ready")
}

fn status(node: &Node) -> &str {
    ready(node).map_or("Unknown", |c| c.status.as_str())
}

/// Until when the node's last word lets it count as alive.
fn alive_until(world: &World, node: &Node) -> Timestamp {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let lease = world
        .leases
        .get(&Key::new(LEASES, name))
        .and_then(|lease| lease.spec.as_ref());
    let renewed = lease.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
    let reported = ready(node)
        .and_then(|c| c.last_heartbeat_time.as_ref())
        .map(|time| time.0);
    let created = node
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let (word, grace) = match renewed.max(reported) {
        Some(word) => (word, GRACE),
        None => (created, STARTUP_GRACE),
    };
    word.saturating_add(grace).unwrap_or(Timestamp::MAX)
}

/// The node with every condition unknown that only the node itself could know.
fn silenced(node: &Node, now: Timestamp) -> Node {
    let mut node = node.clone();
    let never = ready(&node).is_none();
    let conditions = node
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default();
    for type_ in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let reason = if never {
            "NodeStatusNeverUpdated"
        } else {
            "NodeStatusUnknown"
        };
        let text = if never {
            "Kubelet never posted node status."
        } else {
            "Kubelet stopped posting node status."
        };
        match conditions.iter_mut().find(|c| c.type_ == type_) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".into();
                condition.reason = Some(reason.into());
                condition.message = Some(text.into());
                condition.last_transition_time = Some(Time(now));
            }
            None if type_ == "Ready" => conditions.push(NodeCondition {
                type_: type_.into(),
                status: "Unknown".into(),
                reason: Some(reason.into()),
                message: Some(text.into()),
                last_heartbeat_time: None,
                last_transition_time: Some(Time(now)),
            }),
            None => {}
        }
    }
    node
}

/// The node with the taints that its conditions and spec ask for; those of others stay.
fn tainted(node: &Node, now: Timestamp) -> Node {
    let mut wanted = Vec::new();
    match status(node) {
        "True" => {}
        "False" => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        _ => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
    }
    let mut node = node.clone();
    let spec = node.spec.get_or_insert_default();
    if spec.unschedulable == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let mut taints = spec.taints.take().unwrap_or_default();
    let ours = |taint: &Taint| [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str());
    taints.retain(|t| !ours(t) || wanted.contains(&(t.key.as_str(), t.effect.as_str())));
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            let (key, effect) = (key.to_owned(), effect.to_owned());
            taints.push(Taint {
                key,
                effect,
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    spec.taints = Some(taints).filter(|t| !t.is_empty());
    node
}

/// Nobody else can say that the pods of a silent node are not ready, and services must not lead there.
fn not_ready_pods(world: &World, node: &Key, now: Timestamp) -> Vec<Action> {
    let pods = world
        .pods
        .iter()
        .filter(|p| pod::node(p) == Some(&node.name) && pod::ready(p));
    pods.filter_map(|pod| {
        let mut silent: Pod = (**pod).clone();
        let conditions = silent
            .status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default();
        for condition in conditions.iter_mut().filter(|c| c.type_ == "Ready") {
            condition.status = "False".into();
            condition.reason = Some("NodeNotReady".into());
            condition.last_transition_time = Some(Time(now));
        }
        Action::modify_exactly(Part::Status, &**pod, &silent)
    })
    .collect()
}

#[cfg(test)]
#[path = "node_lifecycle_tests.rs"]
mod tests;
