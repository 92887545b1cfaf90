//! What of pods' traffic leaves the cluster with their node's address: what goes where nobody knows pods.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::cluster::Cluster;

/// Which packets get the node's address as they leave: those from `pods` to anywhere but `except` and `nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Masquerade {
    /// Where pods' addresses are from.
    pub pods: BTreeSet<IpNet>,
    /// Destinations that pods reach with their own address.
    pub except: BTreeSet<IpNet>,
    /// The nodes' addresses: pods reach them with their own address, too.
    pub nodes: BTreeSet<IpAddr>,
}

/// Multicast: its receivers answer nobody.
const MULTICAST: [(IpAddr, u8); 2] = [
    (IpAddr::V4(std::net::Ipv4Addr::new(224, 0, 0, 0)), 4),
    (
        IpAddr::V6(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)),
        8,
    ),
];

/// The masquerading part of [`crate::compute`]: nothing when it is switched off.
pub(crate) fn compute(cluster: &Cluster, pod_ranges: &BTreeSet<IpNet>) -> Option<Masquerade> {
    let kept = cluster.config.masquerade.as_ref()?;
    let of_pools = crate::ipam::ranges_of_pools(cluster);
    let of_nodes = cluster.valid_nodes().flat_map(|node| node.pod_ranges.iter());
    let of_pods: Vec<IpNet> = cluster
        .config
        .cluster_cidrs
        .iter()
        .copied()
        .chain(of_nodes)
        .chain(of_pools.iter().copied())
        .collect();
    // The cluster's ranges stand for all nodes' ranges within them.
    let of_pods = aggregate(of_pods);
    let own = pod_ranges
        .iter()
        .chain(&cluster.config.cluster_cidrs)
        .chain(&of_pools);
    let multicast = MULTICAST.map(|(address, length)| IpNet::new_assert(address, length));
    let except = of_pods.into_iter().chain(kept.iter().copied()).chain(multicast);
    let nodes = cluster.valid_nodes();
    Some(Masquerade {
        pods: aggregate(own.copied().collect()),
        except: aggregate(except.collect()),
        nodes: nodes
            .flat_map(|node| {
                let v4 = node.addresses.v4.map(IpAddr::V4);
                v4.into_iter().chain(node.addresses.v6.map(IpAddr::V6))
            })
            .collect(),
    })
}

fn aggregate(ranges: Vec<IpNet>) -> BTreeSet<IpNet> {
    let v4 = |range: &IpNet| match range {
        IpNet::V4(range) => Some(*range),
        IpNet::V6(_) => None,
    };
    let v6 = |range: &IpNet| match range {
        IpNet::V6(range) => Some(*range),
        IpNet::V4(_) => None,
    };
    let fours = Ipv4Net::aggregate(&ranges.iter().filter_map(v4).collect());
    let sixes = Ipv6Net::aggregate(&ranges.iter().filter_map(v6).collect());
    let fours = fours.into_iter().map(|range| IpNet::V4(range.trunc()));
    fours
        .chain(sixes.into_iter().map(|range| IpNet::V6(range.trunc())))
        .collect()
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pods
            .iter()
            .try_for_each(|range| writeln!(f, "masquerade from {range}"))?;
        self.except
            .iter()
            .try_for_each(|range| writeln!(f, "masquerade not to {range}"))?;
        self.nodes
            .iter()
            .try_for_each(|address| writeln!(f, "masquerade not to node {address}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{ClusterConfig, Node, NodeName, PodRanges};
    use crate::compute;

    fn cluster(masquerade: Option<Vec<IpNet>>) -> Cluster {
        let mut cluster = Cluster::new(ClusterConfig {
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            masquerade,
            ..ClusterConfig::default()
        });
        for (number, range) in [(1, "10.244.1.0/24"), (2, "10.245.2.0/24")] {
            let name = NodeName::new(format!("node{number}")).unwrap();
            let addresses = [format!("172.30.0.{number}").parse().unwrap()];
            let ranges = PodRanges::new([
                range.parse().unwrap(),
                format!("fd00:{number}::/64").parse().unwrap(),
            ]);
            let node = Node::new(name.clone(), &addresses, ranges.unwrap());
            cluster.nodes.insert(name, Ok(node));
        }
        cluster
    }

    #[test]
    fn pods_keep_their_address_within_the_cluster_and_where_they_are_known() {
        let kept = vec!["192.168.0.0/16".parse().unwrap()];
        let state = compute(&cluster(Some(kept)), &NodeName::new("node1").unwrap());
        insta::assert_snapshot!(state.masquerade.unwrap(), @r"
        masquerade from 10.244.0.0/16
        masquerade from fd00:1::/64
        masquerade not to 10.244.0.0/16
        masquerade not to 10.245.2.0/24
        masquerade not to 192.168.0.0/16
        masquerade not to 224.0.0.0/4
        masquerade not to fd00:1::/64
        masquerade not to fd00:2::/64
        masquerade not to ff00::/8
        masquerade not to node 172.30.0.1
        masquerade not to node 172.30.0.2
        ");
    }

    #[test]
    fn it_can_be_switched_off() {
        let state = compute(&cluster(None), &NodeName::new("node1").unwrap());
        assert_eq!(state.masquerade, None);
    }
}
