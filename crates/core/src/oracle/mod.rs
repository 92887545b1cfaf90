//! What should happen to a packet, worked out the slow way from the API's text. Tests hold it against
//! [`crate::compute`] and against real kernels; it shares no code with either.

pub mod load_balancer;
pub mod policy;
mod service;

use std::net::IpAddr;

use crate::cluster::{Cluster, NodeName};
pub use service::{Fate, connect, keeps_source};

/// Where a packet to a pod's address goes from a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It is for a pod of this node.
    Here,
    /// To the node of that name.
    Node(NodeName),
    /// It is in the cluster's pod ranges, but nobody's.
    Nobody,
    /// It is not ours.
    Outside,
}

/// The way of a packet from `node` to the pod address `to`, in a cluster whose ranges do not overlap and whose nodes
/// all have addresses.
pub fn way(cluster: &Cluster, node: &NodeName, to: IpAddr) -> Way {
    for (name, object) in &cluster.nodes {
        let Ok(object) = object else { continue };
        for range in object.pod_ranges.iter() {
            if range.contains(&to) {
                return if name == node {
                    Way::Here
                } else {
                    Way::Node(name.clone())
                };
            }
        }
    }
    if cluster
        .config
        .cluster_cidrs
        .iter()
        .any(|range| range.contains(&to))
    {
        Way::Nobody
    } else {
        Way::Outside
    }
}
