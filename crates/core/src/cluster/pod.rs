//! Pods, as far as their network goes.

use std::net::IpAddr;

use super::{NodeName, ObjectName};

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace and name.
    pub name: ObjectName,
    /// The node it is bound to.
    pub node: Option<NodeName>,
    /// Its addresses (`status.podIPs`), at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Whether it shares the node's network namespace.
    pub host_network: bool,
}
