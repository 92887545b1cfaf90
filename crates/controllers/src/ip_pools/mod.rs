//! IP pools: cuts them into blocks, and says in their status which node holds which.
//!
//! The blocks stand in the status alone, which is written only in the version that was read: by this controller, which
//! gives blocks to nodes, and by the agents, each of which takes its own out when nothing lives there any more.

mod object;

use std::collections::BTreeSet;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use podnet_core::Cluster;
use podnet_core::cluster::{self, Block, ClusterConfig, NodeName, PodRanges};
use podnet_core::ipam::{Claim, Grant, Standing, grant, static_addresses};
use serde_json::json;

use crate::action::{Action, Note, Part};
use crate::control::{Context, Controller, Plan};
use crate::resource::Key;
use crate::world::{Change, Kind, World};

pub use object::IPPool;

/// Keeps a pool that is being deleted until no node holds a block of it.
const FINALIZER: &str = "podnet.io/blocks";

/// The controller of IP pools.
#[derive(Debug)]
pub struct IpPools {
    cluster_cidrs: Vec<IpNet>,
    grace: SignedDuration,
}

impl IpPools {
    /// Pools beside the cluster's ranges; a deleted node's blocks come back after so many seconds.
    pub fn new(cluster_cidrs: Vec<IpNet>, grace: u32) -> IpPools {
        IpPools {
            cluster_cidrs,
            grace: SignedDuration::from_secs(grace.into()),
        }
    }
}

impl Controller for IpPools {
    fn name(&self) -> &'static str {
        "ip-pools"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::IPPool, Kind::Node, Kind::Namespace, Kind::Pod]
    }

    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        let matters = match change {
            Change::IPPool(_) => true,
            _ if world.ip_pools.is_empty() => false,
            Change::Node(delta) => {
                let seen = |node: &Node| (node.metadata.labels.clone(), pod_ranges(node));
                delta.old.as_deref().map(seen) != delta.new.as_deref().map(seen)
            }
            Change::Namespace(delta) => {
                let labels = |side: &Option<std::sync::Arc<k8s_openapi::api::core::v1::Namespace>>| {
                    side.as_ref().map(|namespace| namespace.metadata.labels.clone())
                };
                labels(&delta.old) != labels(&delta.new)
            }
            Change::Pod(delta) => {
                delta.old.as_deref().and_then(claim) != delta.new.as_deref().and_then(claim)
            }
            _ => false,
        };
        if matters {
            keys.insert(Key::all());
        }
    }

    /// All pools together, so that no two give the same address.
    fn plan(&self, world: &World, _: &Key, context: &Context) -> Plan {
        if world.ip_pools.is_empty() {
            return Plan::nothing();
        }
        let cluster = self.cluster(world);
        let claims: Vec<Claim> = world.pods.iter().filter_map(|pod| claim(pod)).collect();
        let expiry = |since: &str| since.parse::<Timestamp>().ok().map(|since| since + self.grace);
        let now = context.now.to_string();
        // A time that cannot be read begins anew.
        let expired = |since: &str| expiry(since).is_some_and(|end| end <= context.now);
        let grants = grant(&cluster, &claims, &now, expired);
        let mut plan = Plan::default();
        for grant in grants {
            let ends = grant
                .blocks
                .iter()
                .filter_map(|block| expiry(block.gone.as_deref()?));
            plan.look_again(ends.min());
            if let Some(pool) = world.ip_pools.get(&Key::cluster(grant.pool.as_str())) {
                plan.actions.extend(settle(pool, &grant, context.now));
            }
        }
        plan
    }
}

impl IpPools {
    fn cluster(&self, world: &World) -> Cluster {
        let mut cluster = Cluster::new(ClusterConfig {
            cluster_cidrs: self.cluster_cidrs.clone(),
            ..ClusterConfig::default()
        });
        for pool in world.ip_pools.iter() {
            let pool = pool.parsed();
            cluster.ip_pools.insert(pool.name.clone(), Ok(pool));
        }
        for object in world.nodes.iter() {
            let Some(Ok(name)) = object.metadata.name.clone().map(NodeName::new) else {
                continue;
            };
            let mut node = cluster::Node::new(name.clone(), &[], pod_ranges(object));
            node.labels = object.metadata.labels.clone().unwrap_or_default();
            cluster.nodes.insert(name, Ok(node));
        }
        for object in world.namespaces.iter() {
            let name = object.metadata.name.clone().unwrap_or_default();
            let labels = object.metadata.labels.clone().unwrap_or_default();
            let namespace = cluster::Namespace::new(&name, labels);
            cluster.namespaces.insert(name, namespace);
        }
        cluster
    }
}

/// A node whose ranges make no sense has none.
pub(crate) fn pod_ranges(node: &Node) -> PodRanges {
    let texts = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
    PodRanges::new(texts.filter_map(|text| text.parse::<IpNet>().ok())).unwrap_or_default()
}

/// What a pod needs addresses for; none if it needs none.
fn claim(pod: &Pod) -> Option<Claim> {
    let spec = pod.spec.as_ref()?;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    Some(Claim {
        node: NodeName::new(spec.node_name.clone()?).ok()?,
        namespace: pod.metadata.namespace.clone()?,
        // Its ADD says what is wrong with them.
        addresses: static_addresses(&annotations).unwrap_or_default(),
    })
}

/// What makes the pool say what was decided: first that it is not to vanish, then who holds what, then that it may go.
fn settle(pool: &IPPool, grant: &Grant, now: Timestamp) -> Vec<Action> {
    let deleting = pool.metadata.deletion_timestamp.is_some();
    let kept = pool
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|name| name == FINALIZER);
    let mut updated = pool.clone();
    let finalizers = updated.metadata.finalizers.get_or_insert_default();
    match (deleting, kept) {
        (false, false) => finalizers.push(FINALIZER.into()),
        (true, true) if grant.blocks.is_empty() => finalizers.retain(|name| name != FINALIZER),
        _ => return status(pool, grant, now).into_iter().collect(),
    }
    Action::modify_exactly(Part::Main, pool, &updated)
        .into_iter()
        .collect()
}

fn status(pool: &IPPool, grant: &Grant, now: Timestamp) -> Option<Action> {
    let (reason, message) = verdict(grant);
    let ready = matches!(reason, "Serving" | "Disabled");
    let mut updated = pool.clone();
    if !updated.status.is_object() {
        updated.status = json!({});
    }
    updated.status["blocks"] = Block::write(&grant.blocks);
    updated.status["conditions"] = pool.ready_condition(ready, reason, &message, now);
    let action = Action::modify_exactly(Part::Status, pool, &updated)?;
    match !ready && pool.is_news(reason, &message) && reason != "Deleting" {
        true => Some(action.telling(Note::warning(pool, reason, message))),
        false => Some(action),
    }
}

fn verdict(grant: &Grant) -> (&'static str, String) {
    let nodes: BTreeSet<_> = grant.blocks.iter().map(|block| &block.node).collect();
    let held = format!("{} blocks are held by {} nodes", grant.blocks.len(), nodes.len());
    match &grant.standing {
        Standing::Wrong(why) => ("Invalid", format!("{why}; nothing is handed out of it")),
        Standing::Closed("it is disabled") => ("Disabled", format!("{held}; nothing new is handed out")),
        Standing::Closed(_) => (
            "Deleting",
            format!("{held}; it goes when all have been given back"),
        ),
        Standing::Open if grant.wanting.is_empty() => ("Serving", held),
        Standing::Open => {
            let names: Vec<_> = grant.wanting.iter().take(10).map(NodeName::as_str).collect();
            let help = "add a range to spec.ranges, or make blocks smaller for pools to come";
            let more = if grant.wanting.len() > names.len() {
                " and others"
            } else {
                ""
            };
            (
                "Exhausted",
                format!(
                    "no block is left for pods on {}{more}: {held}; {help}",
                    names.join(", ")
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests;
