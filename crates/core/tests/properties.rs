//! Random clusters: compute depends on the objects alone, and agrees with the oracle.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clusters;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use podnet_core::cluster::{Family, Protocol, Routing};
use podnet_core::oracle::{self, Fate, Way};
use podnet_core::route::Hop;
use podnet_core::service::{Backend, Frontend, HostPort, NodePort};
use podnet_core::{Incremental, NodeState, compute};
use proptest::prelude::*;

use clusters::{Edit, NODES, cluster, edit, empty, node_name, v4, v6};

/// What an edit is of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Node(u8),
    Service(u8),
    Slice(u8),
    Port(NodePort),
    HostPort(HostPort),
    Cidr(u8),
    NodePorts,
}

fn thing(edit: &Edit) -> Thing {
    match edit {
        Edit::Node(key, _) => Thing::Node(*key),
        Edit::Service(key, _) | Edit::BrokenService(key) => Thing::Service(*key),
        Edit::Slice(key, _) | Edit::BrokenSlice(key) => Thing::Slice(*key),
        Edit::Busy(port, _) => Thing::Port(*port),
        Edit::HostPort(port, _) => Thing::HostPort(*port),
        Edit::ServiceCidr(key, _) => Thing::Cidr(*key),
        Edit::NodePorts(_) => Thing::NodePorts,
    }
}

/// The edit that takes away what an edit is of.
fn removal(edit: &Edit) -> Edit {
    match thing(edit) {
        Thing::Node(key) => Edit::Node(key, None),
        Thing::Service(key) => Edit::Service(key, None),
        Thing::Slice(key) => Edit::Slice(key, None),
        Thing::Port(port) => Edit::Busy(port, false),
        Thing::HostPort(port) => Edit::HostPort(port, false),
        Thing::Cidr(key) => Edit::ServiceCidr(key, false),
        Thing::NodePorts => Edit::NodePorts(None),
    }
}

/// What a state does with a connection. `own` are the node's addresses.
fn fate(state: &NodeState, own: &[IpAddr], from: IpAddr, protocol: Protocol, to: SocketAddr) -> Fate {
    let services = &state.services;
    let frontend = Frontend {
        address: to.ip(),
        protocol,
        port: NonZeroU16::new(to.port()).unwrap(),
    };
    let node_port = NodePort {
        family: Family::of(to.ip()),
        protocol,
        port: frontend.port,
    };
    let node_port = services.node_ports.get(&node_port);
    let node_port = node_port.filter(|_| own.contains(&to.ip()) && services.has_node_ports_on(to.ip()));
    let inside = own.contains(&from) || services.inside().iter().any(|range| range.contains(&from));
    match services.frontends.get(&frontend).or(node_port) {
        Some(entry) if !entry.admits(from) => Fate::Dropped,
        Some(entry) => match &**if inside { &entry.inside } else { entry.outside() } {
            Backend::Balance { endpoints, .. } => Fate::OneOf(endpoints.to_vec()),
            Backend::Refuse => Fate::Refused,
            Backend::Drop => Fate::Dropped,
        },
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
        let mut last: BTreeMap<Thing, Edit> = BTreeMap::new();
        for edit in detour.iter().chain(&edits) {
            last.entry(thing(edit)).or_insert(removal(edit));
        }
        for edit in &edits {
            last.insert(thing(edit), edit.clone());
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
        let own: Vec<IpAddr> = cluster.node(&me).iter().flat_map(|node| node.all_addresses.clone()).collect();
        let far = [v4(244, 1, 9), v4(172, 16, 9), "172.16.3.4".parse().unwrap(), v6(0x10, 1, 9)];
        let near = [v4(244, on, 9), v6(0x10, on, 9), v4(0, 0, 10 + on)];
        // No pod has a port of an address that is for cluster IPs; services take no other.
        for host_port in cluster.host_ports.keys() {
            let frontend = host_port.frontend();
            let taken = frontend.is_some_and(|frontend| {
                state.services.cluster_ips.contains(&frontend.address)
                    || state.services.ranges.iter().any(|range| range.contains(&frontend.address))
            });
            prop_assert_eq!(!taken, state.services.host_ports.contains_key(host_port), "{}", host_port);
        }
        for host in 0..7 {
            let internal = [v4(96, 0, host), v6(0x96, 0, host), v4(97, 0, host)];
            let external = [v4(203, 0, host), v6(0xcb, 0, host), v4(0, 0, 10 + host), v4(244, 1, host)];
            for address in internal.into_iter().chain(external) {
                for port in (79..85).chain(30_000..30_003) {
                    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                        let to = SocketAddr::new(address, port);
                        for from in near.into_iter().chain(far).chain([address]).filter(|from| from.is_ipv4() == to.is_ipv4()) {
                            let fate = fate(&state, &own, from, protocol, to);
                            // What is not translated all the same does not leave the node.
                            if internal.contains(&address) {
                                let stays = hop(&state, address) == Some(Hop::Sink);
                                prop_assert_eq!(stays, fate != Fate::NotAService);
                            } else if address != v4(0, 0, 10 + host) || cluster.nodes.contains_key(&node_name(host)) {
                                // Whoever else has the address is reached by all other ports of it.
                                prop_assert_ne!(hop(&state, address), Some(Hop::Sink));
                            }
                            prop_assert_eq!(fate, oracle::connect(&cluster, &me, from, protocol, to), "{} to {}", from, to);
                        }
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_up_with_edits_is_what_is_computed_anew(
        begin in prop::collection::vec(edit(), 0..20),
        edits in prop::collection::vec(prop::collection::vec(edit(), 0..3), 1..15),
        on in 0..NODES,
    ) {
        let me = node_name(on);
        let mut wanted = Incremental::new(cluster(&begin), me.clone());
        for edits in edits {
            edits.iter().for_each(|edit| edit.apply(&mut wanted.cluster));
            let state = wanted.compute();
            let anew = compute(&wanted.cluster, &me);
            prop_assert_eq!(state.to_string(), anew.to_string());
            prop_assert_eq!(state, anew);
        }
        // Other tables in the place of those it knows.
        wanted.cluster = cluster(&begin);
        prop_assert_eq!(wanted.compute(), compute(&wanted.cluster, &me));
        wanted.cluster.services = empty(Routing::default()).services;
        prop_assert_eq!(wanted.compute(), compute(&wanted.cluster, &me));
    }
}
