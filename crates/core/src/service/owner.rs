//! Whose an address is that a service claims although it is not in the ranges of cluster IPs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cluster::{Cluster, Family, NodeName};

/// Who has an address, beside the service that claims it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// A node.
    Node(NodeName),
    /// The API server.
    ApiServer,
    /// A pod may have it, now or later: it is in this range of pods' addresses.
    Pods(IpNet),
}

/// The addresses in such a range.
pub(super) fn within(range: IpNet) -> std::ops::RangeInclusive<IpAddr> {
    range.network()..=range.broadcast()
}

/// The addresses of nodes and of the API server that are `wanted`.
pub fn of_machines(cluster: &Cluster, wanted: impl Fn(IpAddr) -> bool) -> BTreeMap<IpAddr, Owner> {
    let mut owners = BTreeMap::new();
    for node in cluster.known_nodes() {
        for address in node.all_addresses.iter().filter(|address| wanted(**address)) {
            owners
                .entry(*address)
                .or_insert_with(|| Owner::Node(node.name.clone()));
        }
    }
    for address in cluster.api_server_addresses().filter(|address| wanted(*address)) {
        owners.entry(address).or_insert(Owner::ApiServer);
    }
    owners
}

/// Those of `addresses` that are somebody's, and whose.
pub(super) fn owners(cluster: &Cluster, addresses: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, Owner> {
    if addresses.is_empty() {
        return BTreeMap::new();
    }
    let mut owners = of_machines(cluster, |address| addresses.contains(&address));
    // Where it is said where all pods are, a range elsewhere is no pods'.
    let all = &cluster.config.cluster_cidrs;
    let is_told = |range: &IpNet| {
        all.iter()
            .any(|all| Family::of(all.addr()) == Family::of(range.addr()))
    };
    let of_nodes = cluster
        .known_nodes()
        .flat_map(|node| node.pod_ranges.iter())
        .filter(|range| !is_told(range));
    let blocks = cluster.valid_ip_pools().flat_map(|pool| &pool.blocks);
    let ranges = all
        .iter()
        .copied()
        .chain(of_nodes)
        .chain(blocks.map(|block| block.range));
    for range in ranges {
        for address in addresses.range(within(range)) {
            owners.entry(*address).or_insert(Owner::Pods(range.trunc()));
        }
    }
    owners
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Node(node) => write!(f, "an address of node {node}"),
            Owner::ApiServer => f.write_str("the API server's address"),
            Owner::Pods(range) => write!(f, "in the pods' range {range}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{
        AddressFamily, Block, ClusterConfig, Endpoint, EndpointPort, EndpointSlice, IpPool, Node, ObjectName,
        PodRanges, Protocol, Service, ServiceCidr, ServicePort,
    };
    use crate::route::Hop;
    use crate::{Incremental, NodeState, compute};
    use std::num::NonZeroU16;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn me() -> NodeName {
        NodeName::new("node1").unwrap()
    }

    fn node(name: &str, address: &str, range: &str) -> Node {
        let ranges = PodRanges::new([net(range)]).unwrap();
        Node::new(NodeName::new(name).unwrap(), &[address.parse().unwrap()], ranges)
    }

    fn slice(of: &ObjectName, endpoint: &str) -> EndpointSlice {
        let ports = vec![EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: NonZeroU16::new(8080),
        }];
        let endpoints = vec![Endpoint::ready(endpoint.parse().unwrap(), None)];
        EndpointSlice::new(Some(of.clone()), AddressFamily::Ip(Family::V4), ports, endpoints).unwrap()
    }

    /// With the service `web` that has such a cluster IP and such an external one.
    fn cluster(cluster_ip: &str, external: &str) -> Cluster {
        let mut cluster = Cluster::new(ClusterConfig {
            cluster_cidrs: vec![net("10.244.0.0/16")],
            service_cidrs: vec![net("10.96.0.0/16")],
            ..ClusterConfig::default()
        });
        for node in [
            node("node1", "172.30.0.1", "10.244.1.0/24"),
            node("node2", "172.30.0.2", "10.244.2.0/24"),
        ] {
            cluster.nodes.insert(node.name.clone(), Ok(node));
        }
        let mut pool = IpPool::read(
            "p".to_owned(),
            0,
            false,
            &serde_json::Value::Null,
            &serde_json::Value::Null,
        );
        pool.blocks.push(Block {
            range: net("10.7.0.64/26"),
            node: me(),
            gone: None,
        });
        cluster.ip_pools.insert("p".to_owned(), Ok(pool));
        let (web, api) = (
            ObjectName::new("default", "web"),
            ObjectName::new("default", "kubernetes"),
        );
        cluster.slices.insert(api.clone(), Ok(slice(&api, "10.50.0.5")));
        cluster.slices.insert(web.clone(), Ok(slice(&web, "10.244.2.9")));
        let ports = vec![ServicePort::new(
            "http",
            Protocol::Tcp,
            NonZeroU16::new(80).unwrap(),
        )];
        let mut service = Service::new(vec![cluster_ip.parse().unwrap()], ports).unwrap();
        service.external.ips.push(external.parse().unwrap());
        cluster.services.insert(web, Ok(service));
        cluster
    }

    fn told(state: &NodeState) -> Vec<String> {
        let problems = state
            .problems
            .iter()
            .filter(|problem| problem.object.kind == "Service");
        problems.map(ToString::to_string).collect()
    }

    const OTHERS: [(&str, &str); 5] = [
        ("172.30.0.1", "an address of node node1"),
        ("172.30.0.2", "an address of node node2"),
        ("10.244.9.9", "in the pods' range 10.244.0.0/16"),
        ("10.7.0.70", "in the pods' range 10.7.0.64/26"),
        ("10.50.0.5", "the API server's address"),
    ];

    #[test]
    fn a_cluster_ip_that_is_anothers_address_is_left_out_and_told() {
        for (address, whose) in OTHERS {
            let mut cluster = cluster(address, "203.0.113.1");
            // The range it is from is left out, too.
            let range = format!("{address}/32");
            let range = ServiceCidr::read([range.as_str()]).unwrap();
            cluster.service_cidrs.insert("bad".to_owned(), Ok(range));
            let state = compute(&cluster, &me());
            let why = format!("Service default/web: its cluster IP {address} is {whose}; it is not served");
            assert_eq!(told(&state), [why]);
            assert_eq!(state.services.cluster_ips.iter().count(), 0, "{address}");
            let asked: Vec<String> = state.services.frontends.keys().map(ToString::to_string).collect();
            assert_eq!(asked, ["tcp 203.0.113.1:80"], "what else it has");
            let host = IpNet::from(address.parse::<IpAddr>().unwrap());
            assert_ne!(state.routing.routes.get(&host), Some(&Hop::Sink), "{address}");
        }
    }

    #[test]
    fn a_cluster_ip_outside_the_ranges_that_is_nobodys_is_served() {
        for address in ["10.97.0.1", "172.30.0.3"] {
            let state = compute(&cluster(address, "203.0.113.1"), &me());
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(told(&state), [""; 0]);
            assert!(state.services.cluster_ips.contains(&address));
            assert_eq!(state.routing.routes.get(&IpNet::from(address)), Some(&Hop::Sink));
        }
    }

    #[test]
    fn the_api_servers_own_port_is_no_services_as_long_as_it_is_there() {
        let mut cluster = cluster("10.96.0.1", "10.50.0.5");
        let (web, api) = (
            ObjectName::new("default", "web"),
            ObjectName::new("default", "kubernetes"),
        );
        let old = cluster.services[&web].clone().unwrap();
        // Where its slice has the API server.
        let ports = vec![ServicePort::new(
            "http",
            Protocol::Tcp,
            NonZeroU16::new(8080).unwrap(),
        )];
        let mut service = Service::new(old.cluster_ips().to_vec(), ports).unwrap();
        service.external = old.external;
        cluster.services.insert(web, Ok(service));
        let mut follows = Incremental::new(cluster, me());
        let asked = |state: &NodeState| {
            let frontends = state.services.frontends.keys();
            frontends.map(ToString::to_string).collect::<Vec<_>>()
        };
        let state = follows.compute();
        assert_eq!(asked(&state), ["tcp 10.96.0.1:8080"]);
        let why = "Service default/web: tcp 10.50.0.5:8080 is the API server's; it is not served";
        assert_eq!(told(&state), [why]);
        follows
            .cluster
            .slices
            .insert(api.clone(), Ok(slice(&api, "10.50.0.6")));
        let state = follows.compute();
        assert_eq!(asked(&state), ["tcp 10.50.0.5:8080", "tcp 10.96.0.1:8080"]);
        assert_eq!(told(&state), [""; 0]);
    }

    #[test]
    fn an_external_address_that_is_anothers_is_served_and_marked_as_borrowed_while_it_is() {
        for (address, whose) in OTHERS {
            let cluster = cluster("10.96.0.1", address);
            let state = compute(&cluster, &me());
            assert_eq!(told(&state), [""; 0]);
            let borrowed: Vec<String> = state
                .services
                .borrowed
                .values()
                .map(ToString::to_string)
                .collect();
            assert_eq!(borrowed, [whose]);
            assert_eq!(state.services.frontends.keys().count(), 2);
        }
        // Nodes come and go; the service does not change.
        let mut wanted = Incremental::new(cluster("10.96.0.1", "172.30.0.2"), me());
        let name = NodeName::new("node2").unwrap();
        let node2 = wanted.cluster.nodes[&name].clone();
        for there in [true, false, true] {
            match there {
                true => _ = wanted.cluster.nodes.insert(name.clone(), node2.clone()),
                false => _ = wanted.cluster.nodes.remove(&name),
            }
            let state = wanted.compute();
            assert_eq!(!state.services.borrowed.is_empty(), there);
            assert_eq!(state, compute(&wanted.cluster, &me()));
        }
    }
}
