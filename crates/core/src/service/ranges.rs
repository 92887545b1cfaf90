//! Which addresses are for cluster IPs: those of `--service-cidr`, and those of the ServiceCIDRs that there are.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::cluster::{Cluster, ObjectRef};
use crate::route::claims::overlap;
use crate::state::Problem;

/// Loopback, link-local and multicast addresses (RFC 6890, RFC 5771, RFC 4291).
const SPECIAL: [(IpAddr, u8); 6] = [
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
    (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
];

/// The ranges that cluster IPs are from, none within another.
///
/// A ServiceCIDR's range that pods or nodes have addresses in is left out and reported: to drop what is sent there would
/// hurt others than it. Its services are served all the same, each by its own address; but for those whose address is
/// somebody else's (see [`super::owner`]).
pub(crate) fn compute(cluster: &Cluster, problems: &mut Vec<Problem>) -> BTreeSet<IpNet> {
    let mut ranges: BTreeSet<IpNet> = cluster.config.service_cidrs.iter().map(IpNet::trunc).collect();
    let cidrs = cluster.service_cidrs.iter();
    let cidrs = cidrs.filter_map(|(name, cidr)| Some((name, cidr.as_ref().ok()?)));
    for (name, range) in cidrs.flat_map(|(name, cidr)| cidr.ranges.iter().map(move |range| (name, *range))) {
        // So it is with the default one.
        if cluster
            .config
            .service_cidrs
            .iter()
            .any(|set| set.contains(&range))
        {
            continue;
        }
        match misplaced(cluster, range) {
            None => _ = ranges.insert(range),
            Some(why) => problems.push(Problem {
                object: ObjectRef::service_cidr(name),
                why: format!(
                    "its range {range} {why}; addresses in it that no service has are not kept from the network"
                ),
            }),
        }
    }
    let all: Vec<IpNet> = ranges.iter().copied().collect();
    ranges.retain(|range| !all.iter().any(|other| other != range && other.contains(range)));
    ranges
}

/// Why a range can be no services', whoever asks for it.
fn misplaced(cluster: &Cluster, range: IpNet) -> Option<String> {
    let special = SPECIAL.map(|(address, length)| IpNet::new_assert(address, length));
    if let Some(special) = special.iter().find(|special| overlap(**special, range)) {
        return Some(format!("overlaps {special}, which is never services'"));
    }
    let config = &cluster.config;
    if let Some(pods) = config.cluster_cidrs.iter().find(|pods| overlap(**pods, range)) {
        return Some(format!("overlaps {pods} of --cluster-cidr"));
    }
    for node in cluster.known_nodes() {
        if let Some(pods) = node.pod_ranges.iter().find(|pods| overlap(*pods, range)) {
            return Some(format!("overlaps {pods} of node {}", node.name));
        }
        if let Some(address) = node.all_addresses.iter().find(|address| range.contains(*address)) {
            return Some(format!("contains the address {address} of node {}", node.name));
        }
    }
    // Agents that no longer reached it would never hear that the range is gone again.
    let mut api_server = cluster.api_server_addresses();
    if let Some(address) = api_server.find(|address| range.contains(address)) {
        return Some(format!("contains {address}, the API server's address"));
    }
    if let Some(subnet) = cluster
        .local
        .subnets
        .iter()
        .find(|subnet| overlap(**subnet, range))
    {
        return Some(format!("overlaps the nodes' subnet {subnet}"));
    }
    // What pods have; a pool that nobody has an address of gives way instead.
    let blocks = cluster
        .valid_ip_pools()
        .flat_map(|pool| pool.blocks.iter().map(move |block| (pool, block)));
    let (pool, block) = { blocks }.find(|(_, block)| overlap(block.range, range))?;
    Some(format!("overlaps {} of the IP pool {}", block.range, pool.name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cluster::{
        AddressFamily, Block, ClusterConfig, Endpoint, EndpointSlice, Family, IpPool, Node, NodeName,
        ObjectName, PodRanges, ServiceCidr,
    };

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn cluster(cidrs: &[(&str, &[&str])]) -> Cluster {
        let mut cluster = Cluster::new(ClusterConfig {
            cluster_cidrs: vec![net("10.244.0.0/16")],
            service_cidrs: vec![net("10.96.0.0/16")],
            ..ClusterConfig::default()
        });
        let cidrs = cidrs.iter().map(|(name, ranges)| {
            let cidr = ServiceCidr::read(ranges.iter().copied()).unwrap();
            ((*name).to_owned(), Ok(cidr))
        });
        cluster.service_cidrs = cidrs.collect::<BTreeMap<_, _>>();
        cluster
    }

    fn of(cluster: &Cluster) -> (Vec<String>, Vec<String>) {
        let mut problems = Vec::new();
        let ranges = compute(cluster, &mut problems);
        let problems = problems
            .iter()
            .map(|problem| format!("{}: {}", problem.object, problem.why));
        (
            ranges.iter().map(ToString::to_string).collect(),
            problems.collect(),
        )
    }

    #[test]
    fn ranges_of_service_cidrs_stand_beside_the_flags_and_none_is_within_another() {
        let (ranges, problems) = of(&cluster(&[
            ("kubernetes", &["10.96.0.0/16"]),
            ("further", &["10.98.0.0/24", "fd00:98::/112"]),
            ("part", &["10.96.7.0/24"]),
            ("wide", &["10.98.0.0/20"]),
        ]));
        assert_eq!(ranges, ["10.96.0.0/16", "10.98.0.0/20", "fd00:98::/112"]);
        assert_eq!(problems, [""; 0]);
    }

    #[test]
    fn a_range_that_this_nodes_addresses_are_in_is_left_out_while_its_object_is_away() {
        let mut cluster = cluster(&[("bad", &["172.30.0.16/28"])]);
        let node = Node::new(
            NodeName::new("node1").unwrap(),
            &["172.30.0.17".parse().unwrap()],
            PodRanges::default(),
        );
        cluster.local.node = Some(node);
        let (ranges, problems) = of(&cluster);
        assert_eq!(ranges, ["10.96.0.0/16"]);
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn a_range_that_pods_or_nodes_are_in_is_left_out_and_reported() {
        let name = NodeName::new("node1").unwrap();
        for (range, why) in [
            ("10.0.0.0/8", "overlaps 10.244.0.0/16 of --cluster-cidr"),
            ("0.0.0.0/0", "overlaps 127.0.0.0/8, which is never services'"),
            ("127.1.0.0/16", "overlaps 127.0.0.0/8, which is never services'"),
            ("10.9.0.0/28", "overlaps 10.9.0.0/24 of node node1"),
            ("172.30.0.0/24", "contains the address 172.30.0.1 of node node1"),
            ("172.31.0.0/24", "overlaps the nodes' subnet 172.31.0.0/16"),
            ("10.7.0.0/24", "overlaps 10.7.0.64/26 of the IP pool p"),
            ("10.50.0.0/24", "contains 10.50.0.5, the API server's address"),
        ] {
            let mut cluster = cluster(&[("bad", &[range, "fd00:98::/112"])]);
            let ranges = PodRanges::new([net("10.9.0.0/24")]).unwrap();
            let node = Node::new(name.clone(), &["172.30.0.1".parse().unwrap()], ranges);
            cluster.nodes.insert(name.clone(), Ok(node));
            cluster.local.subnets.insert(net("172.31.0.0/16"));
            let api = ObjectName::new("default", "kubernetes");
            let endpoints = vec![Endpoint::ready("10.50.0.5".parse().unwrap(), None)];
            let family = AddressFamily::Ip(Family::V4);
            let slice = EndpointSlice::new(Some(api.clone()), family, Vec::new(), endpoints);
            cluster.slices.insert(api, Ok(slice.unwrap()));
            let none = serde_json::Value::Null;
            let mut pool = IpPool::read("p".to_owned(), 0, false, &none, &none);
            pool.blocks.push(Block {
                range: net("10.7.0.64/26"),
                node: name.clone(),
                gone: None,
            });
            cluster.ip_pools.insert("p".to_owned(), Ok(pool));
            let (ranges, problems) = of(&cluster);
            assert_eq!(ranges, ["10.96.0.0/16", "fd00:98::/112"], "{range}");
            assert_eq!(problems.len(), 1, "{range}");
            assert!(
                problems[0].starts_with(&format!("ServiceCIDR bad: its range {range} {why}; ")),
                "{}",
                problems[0]
            );
        }
    }
}
