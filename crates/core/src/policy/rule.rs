//! Rules as data. Tests, logs and the command line share one way of writing them:
//!
//! ```text
//! accept pods{kubernetes.io/metadata.name=shop; app=web} cidr 10.0.0.0/8!10.1.0.0/16 ports tcp/80 udp/1000-2000 tcp/@http of NetworkPolicy shop/db ingress 0
//! deny anybody ports any of ClusterNetworkPolicy fence egress 3 "no way out"
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::cluster::{
    Action, Direction, DomainPattern, IpBlock, ObjectName, ObjectRef, PodSelection, PolicyPort, PortRange,
    Protocol, Selector,
};

/// A rule for one direction of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// What becomes of what it matches.
    pub action: Action,
    /// Whom it matches: sources of ingress, destinations of egress.
    pub peers: Peers,
    /// What it matches.
    pub ports: Ports,
    /// Where it is written.
    pub origin: Origin,
}

/// Whom a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Everybody.
    Anybody,
    /// One of these.
    OneOf(BTreeSet<Peer>),
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// The pods of a selection; which label sets those are, the state says.
    Pods(PodSelection),
    /// The own addresses of these nodes; which those are, the state says.
    Nodes(Selector),
    /// Addresses, pods' included.
    Block(IpBlock),
    /// What a name was resolved into.
    Domain(DomainPattern),
}

/// What a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// Every protocol and port, and what has no ports.
    Any,
    /// One of these.
    OneOf(BTreeSet<PortMatch>),
}

/// Ports of one protocol.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// Every port of it.
    Every(Protocol),
    /// These numbers.
    Numbers(Protocol, PortRange),
    /// What the destination means by a name: of one protocol, or of any. In egress rules only; in ingress rules the
    /// destination is known, and so is the number.
    Named(Option<Protocol>, String),
}

impl PortMatch {
    /// Numbers or a name of a protocol.
    pub fn of(protocol: Protocol, port: Option<PolicyPort>) -> Self {
        match port {
            None => PortMatch::Every(protocol),
            Some(PolicyPort::Numbers(range)) => PortMatch::Numbers(protocol, range),
            Some(PolicyPort::Named(name)) => PortMatch::Named(Some(protocol), name),
        }
    }
}

/// Where a rule is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The policy.
    pub policy: PolicyRef,
    /// In `ingress` or in `egress`.
    pub direction: Direction,
    /// Counted from 0.
    pub index: usize,
    /// The name it has there; empty when none.
    pub name: String,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyRef {
    /// A ClusterNetworkPolicy.
    Cluster(String),
    /// A NetworkPolicy.
    Namespaced(ObjectName),
}

impl PolicyRef {
    /// As an object of the API.
    pub fn object(&self) -> ObjectRef {
        match self {
            PolicyRef::Cluster(name) => ObjectRef::cluster_network_policy(name),
            PolicyRef::Namespaced(name) => ObjectRef::network_policy(name),
        }
    }
}

/// Whether an address is in a block and in none of its holes.
pub(super) fn in_block(block: &IpBlock, address: IpAddr) -> bool {
    block.cidr().contains(&address) && !block.except().any(|hole| hole.contains(&address))
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.object(), f)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.policy, self.direction, self.index)?;
        if self.name.is_empty() {
            return Ok(());
        }
        let escaped = self.name.replace('\\', "\\\\").replace('"', "\\\"");
        write!(f, " \"{}\"", escaped.replace('\n', "\\n"))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Accept => "accept",
            Action::Deny => "deny",
            Action::Pass => "pass",
        })
    }
}

impl fmt::Display for PodSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pods{{{}; {}}}", self.namespaces, self.pods)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Pods(selection) => write!(f, "{selection}"),
            Peer::Nodes(selector) => write!(f, "nodes{{{selector}}}"),
            Peer::Block(block) => {
                write!(f, "cidr {}", block.cidr())?;
                block.except().try_for_each(|hole| write!(f, "!{hole}"))
            }
            Peer::Domain(pattern) => write!(f, "name {pattern}"),
        }
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peers::Anybody => f.write_str("anybody"),
            Peers::OneOf(peers) => join(f, peers),
        }
    }
}

impl fmt::Display for PortMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortMatch::Every(protocol) => write!(f, "{protocol}/*"),
            PortMatch::Numbers(protocol, range) if range.first() == range.last() => {
                write!(f, "{protocol}/{}", range.first())
            }
            PortMatch::Numbers(protocol, range) => write!(f, "{protocol}/{}-{}", range.first(), range.last()),
            PortMatch::Named(Some(protocol), name) => write!(f, "{protocol}/@{name}"),
            PortMatch::Named(None, name) => write!(f, "@{name}"),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ports::Any => f.write_str("any"),
            Ports::OneOf(ports) => join(f, ports),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule {
            action,
            peers,
            ports,
            origin,
        } = self;
        write!(f, "{action} {peers} ports {ports} of {origin}")
    }
}

fn join<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &BTreeSet<T>) -> fmt::Result {
    if items.is_empty() {
        return f.write_str("none");
    }
    for (i, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { " " })?;
    }
    Ok(())
}

impl Rule {
    /// Whether it asks for ports by their names.
    pub fn has_names(&self) -> bool {
        matches!(&self.ports, Ports::OneOf(ports) if ports.iter().any(|port| matches!(port, PortMatch::Named(..))))
    }
}
