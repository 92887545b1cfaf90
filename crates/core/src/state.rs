//! What one node should have in its kernel: the answer of [`crate::compute`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::announce::Announcements;
use crate::cluster::{NetnsCookie, NodeName, ObjectRef, Wired};
use crate::ipam::Addressing;
use crate::masquerade::Masquerade;
use crate::names::Names;
use crate::policy::PolicyState;
use crate::route::RoutingState;
use crate::service::ServiceState;

/// The state a node should have. Everything in it is in canonical order, so that equal clusters give equal states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    /// Which state of a sequence this is, counted by who applies them.
    pub generation: u64,
    /// The node.
    pub node: NodeName,
    /// Links, addresses, routes, neighbours.
    pub routing: RoutingState,
    /// What pods of this node get their addresses from. Nothing of it is in the kernel.
    pub addressing: Addressing,
    /// Service addresses and what is behind them.
    pub services: Arc<ServiceState>,
    /// The networks of this node's pods, where the data plane is to know their namespaces and links.
    pub wired: Arc<BTreeSet<Wired>>,
    /// What leaves the cluster with the node's address.
    pub masquerade: Option<Masquerade>,
    /// The cluster's names; `None` where somebody else answers them.
    pub names: Option<Arc<Names>>,
    /// Which connections of this node's pods are allowed.
    pub policy: Arc<PolicyState>,
    /// Which load balancers' addresses are announced, and who may have them. Nothing of it is in the kernel.
    pub announcements: Arc<Announcements>,
    /// What was left out, and why.
    pub problems: Vec<Problem>,
}

impl NodeState {
    /// The same state as number `generation` of its sequence.
    pub fn numbered(mut self, generation: u64) -> Self {
        self.generation = generation;
        self
    }

    /// The network namespaces of the node's pods.
    pub fn namespaces(&self) -> impl Iterator<Item = NetnsCookie> {
        self.wired.iter().filter_map(|wired| wired.namespace)
    }

    /// The pods whose links are there: the name of the node's end, and the addresses.
    pub fn links(&self) -> impl Iterator<Item = (&str, &BTreeSet<IpAddr>)> {
        let wired = self.wired.iter();
        wired.filter_map(|wired| Some((wired.link.as_deref()?, &wired.addresses)))
    }

    /// Whether two states ask the same of the kernel.
    pub fn same_kernel_state(&self, other: &NodeState) -> bool {
        self.node == other.node
            && self.routing == other.routing
            && self.services == other.services
            && self.wired == other.wired
            && self.masquerade == other.masquerade
            && self.policy == other.policy
    }
}

/// Something of an object that could not be put into the state. It hurts that object only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object.
    pub object: ObjectRef,
    /// The reason, in words for the object's owner.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.why)
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "node {} generation {}", self.node, self.generation)?;
        write!(f, "{}{}{}", self.routing, self.addressing, self.services)?;
        for wired in self.wired.iter() {
            write!(f, "pod")?;
            wired
                .addresses
                .iter()
                .try_for_each(|address| write!(f, " {address}"))?;
            if let Some(NetnsCookie(cookie)) = wired.namespace {
                write!(f, " in network namespace {cookie}")?;
            }
            wired
                .link
                .iter()
                .try_for_each(|link| write!(f, " behind {link}"))?;
            writeln!(f)?;
        }
        if let Some(masquerade) = &self.masquerade {
            write!(f, "{masquerade}")?;
        }
        write!(f, "{}{}", self.policy, self.announcements)?;
        self.names.iter().try_for_each(|names| write!(f, "{names}"))?;
        self.problems
            .iter()
            .try_for_each(|problem| writeln!(f, "problem {problem}"))
    }
}
