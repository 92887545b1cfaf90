//! Nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Dual, NodeName};

/// A node, as far as its network goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its addresses on the underlay: the first InternalIP of each family.
    pub addresses: Dual<Ipv4Addr, Ipv6Addr>,
    /// The family of the first InternalIP: what the node itself prefers.
    pub primary: Option<Family>,
    /// The ranges its pods' addresses come from.
    pub pod_ranges: PodRanges,
    /// Every IP address of its status, of whatever type: what policies mean by the node.
    pub all_addresses: BTreeSet<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether its Ready condition is True. Routes do not depend on it: a node that is not Ready may well serve.
    pub ready: bool,
    /// When the object was created, in seconds since 1970: of two nodes that claim the same, the older one has it.
    pub created: Option<i64>,
}

/// An IP family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// A node's pod ranges, at most one per family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodRanges(Dual<Ipv4Net, Ipv6Net>);

impl PodRanges {
    /// From `spec.podCIDRs`. Host bits must be zero, and each family may come once.
    pub fn new(ranges: impl IntoIterator<Item = IpNet>) -> Result<Self, NodeError> {
        let mut dual = Dual::default();
        for range in ranges {
            if range.addr() != range.network() {
                return Err(NodeError::HostBits(range));
            }
            if is_unroutable(range.addr()) || range.prefix_len() == 0 {
                return Err(NodeError::Unusable(range));
            }
            let taken = match range {
                IpNet::V4(range) => dual.v4.replace(range).is_some(),
                IpNet::V6(range) => dual.v6.replace(range).is_some(),
            };
            if taken {
                return Err(NodeError::TwoOfOneFamily);
            }
        }
        Ok(PodRanges(dual))
    }

    /// The IPv4 range.
    pub fn v4(&self) -> Option<Ipv4Net> {
        self.0.v4
    }

    /// The IPv6 range.
    pub fn v6(&self) -> Option<Ipv6Net> {
        self.0.v6
    }

    /// The ranges there are, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + use<> {
        self.0
            .v4
            .map(IpNet::V4)
            .into_iter()
            .chain(self.0.v6.map(IpNet::V6))
    }

    /// Whether the node has no range at all.
    pub fn is_empty(&self) -> bool {
        self.0.v4.is_none() && self.0.v6.is_none()
    }
}

/// Why a node's object cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// A range that is written as an address within it.
    #[error("spec.podCIDRs: {0} has bits set beyond its prefix")]
    HostBits(IpNet),
    /// A range no pod can live in.
    #[error("spec.podCIDRs: {0} is no range for pods")]
    Unusable(IpNet),
    /// Kubernetes allows one range per family.
    #[error("spec.podCIDRs: two ranges of one family")]
    TwoOfOneFamily,
}

impl Node {
    /// A node from its parts; of `internal`, the InternalIPs in the object's order, the first of each family counts.
    /// Addresses that nobody can send to (unspecified, loopback, multicast, link-local) are passed over.
    pub fn new(name: NodeName, internal: &[IpAddr], pod_ranges: PodRanges) -> Self {
        let mut node = Node {
            name,
            addresses: Dual::default(),
            primary: None,
            pod_ranges,
            all_addresses: internal.iter().copied().collect(),
            labels: BTreeMap::new(),
            ready: false,
            created: None,
        };
        for &address in internal.iter().filter(|address| !is_unroutable(**address)) {
            node.primary.get_or_insert(Family::of(address));
            match address {
                IpAddr::V4(address) => _ = node.addresses.v4.get_or_insert(address),
                IpAddr::V6(address) => _ = node.addresses.v6.get_or_insert(address),
            }
        }
        node
    }

    /// The node's address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.addresses.v4.map(IpAddr::V4),
            Family::V6 => self.addresses.v6.map(IpAddr::V6),
        }
    }

    /// The zone the node is in, if it says so.
    pub fn zone(&self) -> Option<&str> {
        self.labels.get("topology.kubernetes.io/zone").map(String::as_str)
    }
}

/// Addresses that cannot be another machine's on any route: what no node, endpoint or service may have.
pub(crate) fn is_unroutable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast() || address.octets()[0] == 0,
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_one_clean_network_per_family() {
        let ranges = |texts: &[&str]| PodRanges::new(texts.iter().map(|text| text.parse::<IpNet>().unwrap()));
        assert!(ranges(&["10.244.1.0/24", "fd00::/64"]).is_ok());
        assert_eq!(
            ranges(&["10.0.0.0/24", "10.0.1.0/24"]),
            Err(NodeError::TwoOfOneFamily)
        );
        assert!(matches!(ranges(&["10.0.0.1/24"]), Err(NodeError::HostBits(_))));
        assert!(matches!(ranges(&["127.0.0.0/8"]), Err(NodeError::Unusable(_))));
        assert!(ranges(&[]).unwrap().is_empty());
    }

    #[test]
    fn the_first_usable_address_of_each_family_counts() {
        let addresses = ["127.0.0.1", "fd30::1", "10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let node = Node::new(NodeName::new("n").unwrap(), &addresses, PodRanges::default());
        assert_eq!(node.primary, Some(Family::V6));
        assert_eq!(node.address(Family::V4), Some(addresses[2]));
    }
}
