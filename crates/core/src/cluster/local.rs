//! What a node knows by itself.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::Node;
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
}
