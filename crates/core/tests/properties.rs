//! Random clusters: compute depends on the objects alone, and agrees with the oracle.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use podnet_core::cluster::{
    AddressFamily, Cluster, ClusterConfig, DnsConfig, Endpoint, EndpointPort, EndpointSlice, Family,
    InternalPolicy, Node, NodeName, ObjectName, PodRanges, Protocol, Routing, Service, ServicePort,
};
use podnet_core::oracle::{self, Fate, Way};
use podnet_core::route::Hop;
use podnet_core::service::{Backend, Frontend};
use podnet_core::{NodeState, compute};
use proptest::prelude::*;

const NODES: u8 = 4;
const SERVICES: u8 = 4;

fn node_name(index: u8) -> NodeName {
    NodeName::new(format!("node{index}")).unwrap()
}

fn service_name(index: u8) -> ObjectName {
    ObjectName::new(format!("ns{}", index % 2), format!("svc{index}"))
}

fn v4(a: u8, b: u8, c: u8) -> IpAddr {
    Ipv4Addr::new(10, a, b, c).into()
}

fn v6(a: u16, b: u8, c: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, a, 0, u16::from(b), 0, 0, 0, u16::from(c)).into()
}

/// One edit of a cluster: an object set or removed.
#[derive(Debug, Clone)]
enum Edit {
    Node(u8, Option<Node>),
    Service(u8, Option<Service>),
    Slice(u8, Option<EndpointSlice>),
}

impl Edit {
    fn apply(&self, cluster: &mut Cluster) {
        match self.clone() {
            Edit::Node(key, Some(node)) => _ = cluster.nodes.insert(node_name(key), Ok(node)),
            Edit::Node(key, None) => _ = cluster.nodes.remove(&node_name(key)),
            Edit::Service(key, Some(service)) => _ = cluster.services.insert(service_name(key), Ok(service)),
            Edit::Service(key, None) => _ = cluster.services.remove(&service_name(key)),
            Edit::Slice(key, Some(slice)) => _ = cluster.slices.insert(slice_name(key), Ok(slice)),
            Edit::Slice(key, None) => _ = cluster.slices.remove(&slice_name(key)),
        }
    }
}

fn slice_name(index: u8) -> ObjectName {
    ObjectName::new("any", format!("slice{index}"))
}

fn node(index: u8) -> impl Strategy<Value = Node> {
    (any::<bool>(), any::<bool>()).prop_map(move |(six, ready)| {
        let mut addresses = vec![v4(0, 0, 10 + index)];
        let mut ranges = vec![format!("10.244.{index}.0/24").parse().unwrap()];
        if six {
            addresses.push(v6(0xff, 0, 10 + index));
            ranges.push(format!("fd00:10:0:{index:x}::/64").parse().unwrap());
        }
        let mut node = Node::new(node_name(index), &addresses, PodRanges::new(ranges).unwrap());
        node.ready = ready;
        node
    })
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn number() -> impl Strategy<Value = NonZeroU16> {
    (80_u16..84).prop_map(|number| NonZeroU16::new(number).unwrap())
}

fn port_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["".to_owned(), "a".to_owned(), "b".to_owned()])
}

fn service() -> impl Strategy<Value = Service> {
    let port = (port_name(), protocol(), number());
    let port = port.prop_map(|(name, protocol, port)| ServicePort { name, protocol, port });
    let ports = prop::collection::vec(port, 1..4);
    // Few addresses, so that services claim each other's.
    (1..6_u8, any::<bool>(), any::<bool>(), ports).prop_map(|(host, dual, local, ports)| {
        let mut addresses = vec![v4(96, 0, host)];
        if dual {
            addresses.push(v6(0x96, 0, host));
        }
        let mut kept: Vec<ServicePort> = Vec::new();
        for port in ports {
            let clash = |other: &ServicePort| {
                other.name == port.name || (other.protocol, other.port) == (port.protocol, port.port)
            };
            if !kept.iter().any(clash) {
                kept.push(port);
            }
        }
        let mut service = Service::new(addresses, kept).unwrap();
        service.internal_policy = if local {
            InternalPolicy::Local
        } else {
            InternalPolicy::Cluster
        };
        service
    })
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (port_name(), protocol(), prop::option::weighted(0.9, number()));
    let port = port.prop_map(|(name, protocol, port)| EndpointPort { name, protocol, port });
    let endpoint = (0..NODES, 2..6_u8, any::<[bool; 3]>(), any::<bool>());
    let endpoints = prop::collection::vec(endpoint, 0..5);
    let ports = prop::collection::vec(port, 0..4);
    (
        any::<bool>(),
        prop::option::weighted(0.9, 0..SERVICES),
        ports,
        endpoints,
    )
        .prop_map(|(six, of, ports, endpoints)| {
            let endpoints = endpoints
                .into_iter()
                .map(|(on, host, [ready, serving, terminating], placed)| Endpoint {
                    hostname: None,
                    address: if six {
                        v6(0x10, on, host)
                    } else {
                        v4(244, on, host)
                    },
                    ready,
                    serving,
                    terminating,
                    node: placed.then(|| node_name(on)),
                });
            let family = AddressFamily::Ip(if six { Family::V6 } else { Family::V4 });
            EndpointSlice::new(of.map(service_name), family, ports, endpoints.collect()).unwrap()
        })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (0..NODES)
            .prop_flat_map(|key| (Just(key), prop::option::weighted(0.8, node(key))))
            .prop_map(|(key, node)| Edit::Node(key, node)),
        (0..SERVICES, prop::option::weighted(0.8, service()))
            .prop_map(|(key, service)| Edit::Service(key, service)),
        (0..6_u8, prop::option::weighted(0.8, slice())).prop_map(|(key, slice)| Edit::Slice(key, slice)),
    ]
}

fn empty(routing: Routing) -> Cluster {
    Cluster::new(ClusterConfig {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10::/56".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        routing,
        masquerade: Some(vec!["192.168.0.0/16".parse().unwrap()]),
        dns: Some(DnsConfig::default()),
        ..ClusterConfig::default()
    })
}

fn cluster(edits: &[Edit]) -> Cluster {
    let mut cluster = empty(Routing::default());
    edits.iter().for_each(|edit| edit.apply(&mut cluster));
    cluster
}

fn fate(state: &NodeState, protocol: Protocol, to: SocketAddr) -> Fate {
    let services = &state.services;
    let frontend = Frontend {
        address: to.ip(),
        protocol,
        port: NonZeroU16::new(to.port()).unwrap(),
    };
    match services.frontends.get(&frontend) {
        Some(Backend::Balance { endpoints, .. }) => Fate::OneOf(endpoints.iter().copied().collect()),
        Some(Backend::Refuse) => Fate::Refused,
        Some(Backend::Drop) => Fate::Dropped,
        None if services.cluster_ips.contains(&to.ip()) => Fate::Refused,
        None if services.ranges.iter().any(|range| range.contains(&to.ip())) => Fate::Dropped,
        None => Fate::NotAService,
    }
}

/// Longest prefix match over the state's routes.
fn hop(state: &NodeState, to: IpAddr) -> Option<Hop> {
    let matching = state
        .routing
        .routes
        .iter()
        .filter(|(range, _)| range.contains(&to));
    matching
        .max_by_key(|(range, _)| range.prefix_len())
        .map(|(_, hop)| *hop)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_state_depends_on_the_objects_and_not_on_how_they_came(
        edits in prop::collection::vec(edit(), 0..40),
        detour in prop::collection::vec(edit(), 0..20),
        order in any::<u64>(),
    ) {
        let me = node_name(0);
        let reached = cluster(&edits);
        let want = compute(&reached, &me);

        // The last edit of each key, in another order, after a detour that it overwrites or undoes.
        let mut last: BTreeMap<(u8, u8), Edit> = BTreeMap::new();
        for edit in detour.iter().chain(&edits) {
            let (key, removal) = match edit {
                Edit::Node(key, _) => ((0, *key), Edit::Node(*key, None)),
                Edit::Service(key, _) => ((1, *key), Edit::Service(*key, None)),
                Edit::Slice(key, _) => ((2, *key), Edit::Slice(*key, None)),
            };
            last.entry(key).or_insert(removal);
        }
        for edit in &edits {
            let key = match edit {
                Edit::Node(key, _) => (0, *key),
                Edit::Service(key, _) => (1, *key),
                Edit::Slice(key, _) => (2, *key),
            };
            last.insert(key, edit.clone());
        }
        let mut last: Vec<Edit> = last.into_values().collect();
        let count = last.len().max(1);
        last.rotate_left(order as usize % count);
        let other: Vec<Edit> = detour.into_iter().chain(last).collect();
        let other = cluster(&other);
        prop_assert_eq!(&other, &reached);
        prop_assert_eq!(compute(&other, &me).to_string(), want.to_string());
        prop_assert_eq!(compute(&other, &me), want);
    }

    #[test]
    fn connections_meet_the_fate_the_oracle_says(edits in prop::collection::vec(edit(), 0..40), on in 0..NODES) {
        let cluster = cluster(&edits);
        let me = node_name(on);
        let state = compute(&cluster, &me);
        for host in 0..7 {
            for address in [v4(96, 0, host), v6(0x96, 0, host), v4(97, 0, host)] {
                for port in 79..85 {
                    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                        let to = SocketAddr::new(address, port);
                        let fate = fate(&state, protocol, to);
                        // What is not translated all the same does not leave the node.
                        let stays = hop(&state, address) == Some(Hop::Sink);
                        prop_assert_eq!(stays, fate != Fate::NotAService);
                        prop_assert_eq!(fate, oracle::connect(&cluster, &me, protocol, to));
                    }
                }
            }
        }
    }

    #[test]
    fn packets_go_the_way_the_oracle_says(edits in prop::collection::vec(edit(), 0..20), direct in any::<bool>()) {
        let mut cluster = cluster(&edits);
        if direct {
            cluster.config.routing = Routing::Direct;
        }
        let me = node_name(0);
        prop_assume!(cluster.nodes.contains_key(&me));
        let state = compute(&cluster, &me);
        let own_v6 = cluster.node(&me).unwrap().addresses.v6.is_some();
        for index in 0..NODES + 1 {
            for to in [v4(244, index, 7), v6(0x10, index, 7), v4(99, 0, index)] {
                let hop = hop(&state, to);
                match oracle::way(&cluster, &me, to) {
                    Way::Outside => prop_assert_eq!(hop, None),
                    Way::Nobody | Way::Here => prop_assert_eq!(hop, Some(Hop::Unreachable)),
                    Way::Node(name) => {
                        let peer = cluster.node(&name).unwrap();
                        let underlay = if direct { peer.address(Family::of(to)) } else { peer.address(Family::V4) };
                        let reached = match hop {
                            Some(Hop::Via(via)) => Some(via),
                            Some(Hop::Tunnel(via)) => {
                                let mac = state.routing.neighbours[&via];
                                Some(state.routing.forwarding[&mac])
                            }
                            other => return Err(TestCaseError::fail(format!("{to}: {other:?} {own_v6}"))),
                        };
                        prop_assert_eq!(reached, underlay);
                    }
                }
            }
        }
    }
}
