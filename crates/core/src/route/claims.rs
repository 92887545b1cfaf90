//! Who may have which range.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::problem;
use crate::cluster::{Cluster, Node, NodeName};
use crate::state::Problem;

/// Another node, with those of its ranges that this node can have routes for.
pub(super) struct Peer<'a> {
    pub(super) node: &'a Node,
    pub(super) ranges: Vec<IpNet>,
}

/// The other nodes, the oldest first. A range that cannot be its node's is left out and reported: two nodes cannot both
/// be the way to one address, and no node is the way to what is not pods'. So a wrong range hurts its own node only.
pub(super) fn peers<'a>(cluster: &'a Cluster, own: &'a Node, problems: &mut Vec<Problem>) -> Vec<Peer<'a>> {
    let mut claims = Claims::default();
    // This node comes first: what it hands out itself it knows for certain.
    own.pod_ranges
        .iter()
        .for_each(|range| claims.insert(range, &own.name));
    let mut nodes: Vec<&Node> = cluster
        .valid_nodes()
        .filter(|node| node.name != own.name)
        .collect();
    nodes.sort_by_key(|node| (node.created.unwrap_or(i64::MAX), &node.name));
    let mut peers = Vec::new();
    for node in nodes {
        if node.pod_ranges.is_empty() {
            problems.push(problem(node, "has no spec.podCIDRs yet; no route to its pods"));
            continue;
        }
        let mut ranges = Vec::new();
        for range in node.pod_ranges.iter() {
            let refusal = misplaced(cluster, own, range).or_else(|| claims.refusal(range));
            match refusal {
                Some(why) => problems.push(problem(
                    node,
                    format!("its range {range} {why}; no route to its pods"),
                )),
                None => {
                    claims.insert(range, &node.name);
                    ranges.push(range);
                }
            }
        }
        peers.push(Peer { node, ranges });
    }
    peers
}

/// Why a range can be no pods', whoever has it.
fn misplaced(cluster: &Cluster, own: &Node, range: IpNet) -> Option<String> {
    let config = &cluster.config;
    let is_of_family = |all: &&IpNet| all.addr().is_ipv4() == range.addr().is_ipv4();
    let mut of_family = config.cluster_cidrs.iter().filter(is_of_family).peekable();
    if of_family.peek().is_some() && !of_family.any(|all| all.contains(&range)) {
        return Some("is not within --cluster-cidr".to_owned());
    }
    if let Some(services) = config.service_cidrs.iter().find(|all| overlap(**all, range)) {
        return Some(format!("overlaps the services' range {services}"));
    }
    let mut addresses = [
        own.addresses.v4.map(IpAddr::from),
        own.addresses.v6.map(IpAddr::from),
    ]
    .into_iter();
    if let Some(address) = addresses
        .by_ref()
        .flatten()
        .find(|address| range.contains(address))
    {
        return Some(format!("contains the address {address} of node {}", own.name));
    }
    let subnet = cluster
        .local
        .subnets
        .iter()
        .find(|subnet| overlap(**subnet, range))?;
    Some(format!("overlaps the subnet {subnet} of node {}", own.name))
}

pub(crate) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Ranges that are taken, none of which overlap.
#[derive(Default)]
struct Claims<'a>(BTreeMap<IpNet, &'a NodeName>);

impl<'a> Claims<'a> {
    fn insert(&mut self, range: IpNet, owner: &'a NodeName) {
        self.0.insert(range, owner);
    }

    /// Who has what of a range. Two ranges overlap when one contains the other; since those that are taken do not
    /// overlap each other, only the neighbours in order come into question.
    fn refusal(&self, range: IpNet) -> Option<String> {
        let before = self.0.range(..=range).next_back();
        let after = self.0.range(range..).next();
        let (other, owner) = before
            .into_iter()
            .chain(after)
            .find(|(other, _)| overlap(**other, range))?;
        Some(format!("overlaps {other} of node {owner}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_overlap_is_found_wherever_it_is(
            ranges in prop::collection::vec((0..64_u32, 26..=32_u8), 1..20),
        ) {
            let name = NodeName::new("n").unwrap();
            let (mut claims, mut taken) = (Claims::default(), Vec::new());
            for (address, length) in ranges {
                let range = ipnet::Ipv4Net::new((0x0a00_0000 + address).into(), length).unwrap().trunc().into();
                let clash = taken.iter().any(|other| overlap(*other, range));
                prop_assert_eq!(claims.refusal(range).is_some(), clash, "{} among {:?}", range, taken);
                if !clash {
                    claims.insert(range, &name);
                    taken.push(range);
                }
            }
        }
    }
}
