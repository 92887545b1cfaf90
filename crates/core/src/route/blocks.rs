//! Routes to the blocks of IP pools: a block is where the ranges of the node are that holds it.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Hop, RoutingState};
use crate::cluster::{Block, Cluster, Family, IpPool, Node, NodeName, ObjectRef};
use crate::ipam::{NetSet, Pools};
use crate::state::Problem;

/// To be called when the routes to nodes' ranges are there.
pub(super) fn add(state: &mut RoutingState, cluster: &Cluster, own: &Node, problems: &mut Vec<Problem>) {
    let mut held: NetSet<&NodeName> = NetSet::default();
    for node in std::iter::once(own).chain(cluster.valid_nodes()) {
        for range in node.pod_ranges.iter() {
            held.insert(range, &node.name);
        }
    }
    let mut without_route = BTreeSet::new();
    for (pool, _) in Pools::judge(cluster).iter() {
        for range in pool.spec.iter().flat_map(|spec| &spec.ranges) {
            // What nobody holds does not leave by the default route. A range that is a node's or a block keeps its own.
            if held.overlapping(*range).is_none() {
                state.routes.entry(*range).or_insert(Hop::Unreachable);
            }
        }
        for block in &pool.blocks {
            if let Some((other, holder)) = held.overlapping(block.range) {
                let why = format!(
                    "status.blocks: {} of node {} overlaps {other} of node {holder}; no route to it",
                    block.range, block.node
                );
                problems.push(problem(pool, why));
                continue;
            }
            held.insert(block.range, &block.node);
            match hop(state, cluster, own, block) {
                Some(hop) => _ = state.routes.insert(block.range, hop),
                // The node is gone, and the block comes back later.
                None if !cluster.nodes.contains_key(&block.node) => {}
                None => _ = without_route.insert((&pool.name, &block.node)),
            }
        }
    }
    for (pool, node) in without_route {
        problems.push(Problem {
            object: ObjectRef::pool(pool),
            why: format!("no route to its blocks on node {node}, which has no spec.podCIDRs of their family, or no route"),
        });
    }
}

fn hop(state: &RoutingState, cluster: &Cluster, own: &Node, block: &Block) -> Option<Hop> {
    if block.node == own.name {
        // Its pods have routes of their own; what is left of it is nobody's.
        return Some(Hop::Unreachable);
    }
    let node = cluster.node(&block.node)?;
    let family = Family::of(block.range.addr());
    let range: IpNet = node
        .pod_ranges
        .iter()
        .find(|range| Family::of(range.addr()) == family)?;
    state.routes.get(&range).copied()
}

fn problem(pool: &IpPool, why: String) -> Problem {
    Problem {
        object: ObjectRef::pool(&pool.name),
        why,
    }
}
