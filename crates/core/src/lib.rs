//! The purity wall: Kubernetes objects in, the state a node should have out.
//!
//! Everything here is a function of its arguments: no clock, no sockets, no files, no history.

pub mod announce;
pub mod cluster;
pub mod flow;
pub mod ipam;
pub mod load_balancer;
pub mod masquerade;
pub mod names;
pub mod oracle;
pub mod path;
pub mod policy;
pub mod quantity;
pub mod route;
pub mod service;
pub mod shared_map;
pub mod state;

use std::sync::Arc;

use cluster::Changes;
pub use cluster::{Cluster, ClusterConfig, NodeName};
use service::Ledger;
pub use state::NodeState;

/// What `node` should have in its kernel, given the objects that exist now and nothing else.
///
/// The result carries generation 0: who applies states counts them.
pub fn compute(cluster: &Cluster, node: &NodeName) -> NodeState {
    compute_with(
        &mut Ledger::default(),
        cluster,
        node,
        [Changes::All, Changes::All],
    )
}

/// A cluster and one node's state in it, which costs what has changed since it was last computed. The result is that of
/// [`compute`].
#[derive(Debug)]
pub struct Incremental {
    /// The objects. What is changed in them, or put in their place, is found by itself.
    pub cluster: Cluster,
    node: NodeName,
    ledger: Ledger,
}

impl Incremental {
    /// With nothing computed yet.
    pub fn new(cluster: Cluster, node: NodeName) -> Self {
        Incremental {
            cluster,
            node,
            ledger: Ledger::default(),
        }
    }

    /// What the node should have now.
    pub fn compute(&mut self) -> NodeState {
        let changes = [
            self.cluster.services.take_changes(),
            self.cluster.slices.take_changes(),
        ];
        compute_with(&mut self.ledger, &self.cluster, &self.node, changes)
    }
}

fn compute_with(ledger: &mut Ledger, cluster: &Cluster, node: &NodeName, changes: [Changes; 2]) -> NodeState {
    let mut problems = Vec::new();
    let mut routing = route::compute(cluster, node, &mut problems);
    let addressing = ipam::compute(cluster, node, &mut problems);
    // Not from `addressing`, which a node has only as long as it has an object: who was inside stays inside.
    let blocks = cluster.valid_ip_pools().flat_map(|pool| &pool.blocks);
    let blocks = blocks
        .filter(|block| block.node == *node)
        .map(|block| block.range);
    let pods = routing.pod_ranges.iter().copied().chain(blocks).collect();
    let ranges = service::ranges::compute(cluster, &mut problems);
    let services = ledger.update(cluster, node, (&pods, ranges), changes);
    problems.extend(ledger.problems());
    routing.sink(services.addresses());
    let wired = cluster.local.pods.values().flatten();
    let wired = wired.filter(|wired| wired.namespace.is_some() || wired.link.is_some());
    let wired = Arc::new(wired.cloned().collect());
    let masquerade = masquerade::compute(cluster, &routing.pod_ranges);
    let names = names::compute(cluster, &mut problems).map(Arc::new);
    let policy = Arc::new(policy::compute(cluster, node, &mut problems));
    let announcements = Arc::new(announce::compute(cluster));
    problems.extend(cluster.invalid().map(|invalid| state::Problem {
        object: invalid.object.clone(),
        why: invalid.why.clone(),
    }));
    problems.sort();
    problems.dedup();
    NodeState {
        generation: 0,
        node: node.clone(),
        routing,
        addressing,
        services,
        wired,
        masquerade,
        names,
        policy,
        announcements,
        problems,
    }
}
