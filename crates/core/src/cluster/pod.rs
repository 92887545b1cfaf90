//! Pods and their namespaces, as far as their network goes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::{Labels, NAMESPACE_NAME, NodeName, ObjectName, Protocol};

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace and name.
    pub name: ObjectName,
    /// Its unique identifiers: the API's, and of a pod that a node made from a file the one that node knows it by.
    pub uids: Vec<String>,
    /// The node it is bound to.
    pub node: Option<NodeName>,
    /// Its addresses (`status.podIPs`), at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Whether it shares the node's network namespace.
    pub host_network: bool,
    /// Its labels.
    pub labels: Labels,
    /// The ports its containers give names to.
    pub ports: BTreeSet<NamedPort>,
    /// It has Succeeded or Failed: its address may be another's by now.
    pub ended: bool,
}

impl Pod {
    /// A pod of that name with nothing else known of it.
    pub fn new(name: ObjectName) -> Self {
        Pod {
            name,
            uids: Vec::new(),
            node: None,
            addresses: Vec::new(),
            host_network: false,
            labels: Labels::new(),
            ports: BTreeSet::new(),
            ended: false,
        }
    }

    /// Whether policies see it as a pod: it has a network of its own, and has not ended.
    pub fn has_own_network(&self) -> bool {
        !self.host_network && !self.ended
    }
}

/// A port of a container that has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The number it stands for in this pod.
    pub port: NonZeroU16,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    labels: Labels,
}

impl Namespace {
    /// The namespace of that name: whatever `labels` say, it carries its name as a label.
    pub fn new(name: &str, mut labels: Labels) -> Self {
        labels.insert(NAMESPACE_NAME.into(), name.into());
        Namespace { labels }
    }

    /// Its labels.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namespace_has_its_name_as_a_label() {
        for given in [Labels::new(), [(NAMESPACE_NAME.into(), "b".into())].into()] {
            assert_eq!(Namespace::new("a", given).labels()[NAMESPACE_NAME], "a");
        }
    }
}
