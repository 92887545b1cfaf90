//! What a node knows by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU64;

use ipnet::IpNet;

use super::{Node, ObjectName, Parsed, Pod};
use crate::service::NodePort;

/// What a node knows by itself, beside the API's objects: what it sees of its own links and ports, and of the paths to
/// others. It concerns this node only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Local {
    /// This node's object as it was last, for the time in which there is none or none that parses: what runs goes on
    /// running.
    pub node: Option<Node>,
    /// The subnets that the underlay link is on.
    pub subnets: BTreeSet<IpNet>,
    /// The largest packet that was seen to pass, in bytes, by range of a peer, where it is less than what the link
    /// allows.
    pub path_mtu: BTreeMap<IpNet, u32>,
    /// Checksums that the tunnel's device leaves to the hardware were seen to arrive wrong.
    pub broken_checksums: bool,
    /// Ports of this node that programs of its own listen on. Of interest are those that services want.
    pub busy_ports: BTreeSet<NodePort>,
    /// The networks that pods of this node have, by their names as the container runtime knows them. The API learns a
    /// pod's addresses only after its containers run.
    pub pods: BTreeMap<ObjectName, Vec<Wired>>,
}

/// The kernel's number for a network namespace, which no other has until the machine starts again. 8 bytes, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsCookie(pub NonZeroU64);

/// A network that this node gave to a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Wired {
    /// The pod's unique identifier as the runtime knows it; empty where it does not say.
    pub uid: String,
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The network namespace it has them in, where that is known.
    pub namespace: Option<NetnsCookie>,
    /// The name of the node's end of its link, once there is one and where that is known.
    pub link: Option<String>,
}

impl Local {
    /// Whether this node gave a network to that very pod.
    pub fn has_wired(&self, pod: &Pod) -> bool {
        let mut wired = self.pods.get(&pod.name).into_iter().flatten();
        wired.any(|wired| !wired.uid.is_empty() && wired.is_of(pod))
    }
}

impl Wired {
    /// Whether it is that pod's, not that of one which had its name before or will have it.
    pub fn is_of(&self, pod: &Pod) -> bool {
        self.uid.is_empty() || pod.uids.is_empty() || pod.uids.contains(&self.uid)
    }

    /// Whether it is some pod's of which the API says nothing that could be read: neither whose labels it has nor what
    /// may reach it is known. A container that no Kubernetes made has no unique identifier.
    pub fn is_stranger(&self, pod: Option<&Parsed<Pod>>) -> bool {
        let known = pod.and_then(|pod| pod.as_ref().ok());
        !self.uid.is_empty() && !known.is_some_and(|pod| self.is_of(pod))
    }
}
