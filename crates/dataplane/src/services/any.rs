//! Any state of services, for the tests of all back ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use podnet_core::NodeState;
use podnet_core::cluster::{Affinity, Algorithm, ClusterConfig, NodeName, ObjectName, Protocol};
use podnet_core::service::{Backend, Entry, Frontend, NodePort, PortName, ServiceState};
use podnet_core::{Cluster, compute};
use proptest::prelude::*;

pub(crate) fn state(services: &[(&str, Option<&[&str]>)]) -> NodeState {
    let config = ClusterConfig {
        service_cidrs: vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:10:96::/112".parse().unwrap(),
        ],
        ..ClusterConfig::default()
    };
    let mut state = compute(&Cluster::new(config), &NodeName::new("node1").unwrap());
    state.routing.node_addresses = BTreeSet::from(["172.30.0.11".parse().unwrap()]);
    for (frontend, endpoints) in services {
        let frontend = self::frontend(frontend);
        let entry = entry(&frontend, backend(*endpoints));
        services_of(&mut state).cluster_ips.insert(frontend.address);
        services_of(&mut state).frontends.insert(frontend, entry.into());
    }
    state
}

pub(crate) fn services_of(state: &mut NodeState) -> &mut ServiceState {
    Arc::make_mut(&mut state.services)
}

pub(crate) fn frontend(text: &str) -> Frontend {
    let (protocol, socket) = text.split_once(' ').unwrap();
    let socket: SocketAddr = socket.parse().unwrap();
    Frontend {
        address: socket.ip(),
        protocol: protocol.parse().unwrap(),
        port: NonZeroU16::new(socket.port()).unwrap(),
    }
}

/// Endpoints; none of them drops, nothing refuses.
pub(crate) fn backend(endpoints: Option<&[&str]>) -> Backend {
    match endpoints {
        Some([]) => Backend::Drop,
        Some(list) => balance(list.iter().map(|text| text.parse().unwrap())),
        None => Backend::Refuse,
    }
}

fn balance(endpoints: impl Iterator<Item = SocketAddr>) -> Backend {
    Backend::Balance {
        endpoints: endpoints.collect(),
        draining: Box::default(),
    }
}

pub(crate) fn entry(frontend: &Frontend, backend: Backend) -> Entry {
    let port = PortName {
        service: ObjectName::new("default", "web"),
        protocol: frontend.protocol,
        port: frontend.port,
    };
    Entry::new(port, backend)
}

/// A state with one of everything that services are made of.
pub(crate) fn everything() -> NodeState {
    let mut state = state(&[
        ("TCP 10.96.0.1:443", Some(&["172.30.0.1:6443"])),
        (
            "UDP 10.96.0.10:53",
            Some(&["10.244.0.2:53", "10.244.1.2:53", "10.244.2.2:53"]),
        ),
        (
            "TCP [fd00:10:96::a]:53",
            Some(&["[fd00:10:244::2]:53", "[fd00:10:244:1::2]:53"]),
        ),
        ("SCTP 10.96.0.11:9", Some(&[])),
        ("TCP 10.96.0.12:80", None),
    ]);
    let services = services_of(&mut state);
    services.pods = [
        "10.244.0.0/24".parse().unwrap(),
        "fd00:10:244::/64".parse().unwrap(),
    ]
    .into();
    services.local_endpoints.insert("10.244.0.2".parse().unwrap());
    let external = frontend("TCP 203.0.113.7:80");
    let both = Backend::Balance {
        endpoints: ["10.244.0.2:80".parse().unwrap(), "10.244.1.2:80".parse().unwrap()].into(),
        draining: Box::default(),
    };
    let local = Entry {
        outside: Some(Backend::Drop.into()),
        sources: Some(Arc::new(
            ["192.0.2.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()].into(),
        )),
        affinity: Affinity::ClientIp { seconds: 600 },
        ..entry(&external, both)
    };
    let of_node = NodePort {
        family: podnet_core::cluster::Family::V4,
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(30_080).unwrap(),
    };
    let of_port = Entry {
        sources: None,
        ..local.clone()
    };
    services.node_ports.insert(of_node, of_port.into());
    services.frontends.insert(external, local.into());
    state
}

/// A backend of endpoints of a family, by their last numbers.
fn any_backend(six: bool) -> impl Strategy<Value = Backend> {
    let hosts = prop::option::weighted(0.8, prop::collection::btree_set(2..8_u8, 0..5));
    hosts.prop_map(move |hosts| {
        let endpoint = |host: u8| -> SocketAddr {
            let text = if six {
                format!("[fd00:10:244::{host}]:80")
            } else {
                format!("10.244.0.{host}:80")
            };
            text.parse().unwrap()
        };
        match hosts {
            None => Backend::Refuse,
            Some(hosts) if hosts.is_empty() => Backend::Drop,
            Some(hosts) => balance(hosts.into_iter().map(endpoint)),
        }
    })
}

/// The even services are of IPv4. Each has a cluster IP, an external address and a node port, as a service would.
pub(crate) fn any_state() -> impl Strategy<Value = NodeState> {
    let name = (
        0..4_u8,
        prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]),
        (80..82_u16).prop_map(|port| NonZeroU16::new(port).unwrap()),
    );
    let service = name.prop_flat_map(|(host, protocol, port)| {
        let backend = || any_backend(host % 2 == 1).prop_map(Arc::new);
        let affinity = prop::option::of(1..3_u32);
        let sources = prop::option::of(prop::sample::select(vec!["192.0.2.0/24", "198.51.100.0/24"]));
        let shown = (any::<bool>(), any::<bool>());
        let parts = (
            backend(),
            backend(),
            prop::option::of(backend()),
            (
                affinity,
                prop::sample::select(vec![Algorithm::Random, Algorithm::Maglev]),
            ),
            sources,
            shown,
        );
        (Just((host, protocol, port)), parts)
    });
    let services = prop::collection::vec(service, 0..8);
    services
        .prop_map(|services| services.into_iter().collect::<BTreeMap<_, _>>())
        .prop_map(|services| {
            let mut state = state(&[]);
            services_of(&mut state).pods = [
                "10.244.0.0/24".parse().unwrap(),
                "fd00:10:244::/64".parse().unwrap(),
            ]
            .into();
            for (
                (host, protocol, port),
                (internal, inside, outside, (affinity, algorithm), sources, shown),
            ) in services
            {
                let address = |four: &str, six: &str| {
                    let text = if host % 2 == 1 { six } else { four };
                    format!("{text}{host}").parse().unwrap()
                };
                let cluster_ip = address("10.96.0.", "fd00:10:96::");
                let frontend = |address| Frontend {
                    address,
                    protocol,
                    port,
                };
                let name = PortName {
                    service: ObjectName::new("default", format!("svc{host}")),
                    protocol,
                    port,
                };
                let affinity = affinity.map_or(Affinity::None, |seconds| Affinity::ClientIp { seconds });
                let internal = Entry {
                    affinity,
                    inside: internal,
                    ..Entry::new(name, Backend::Refuse)
                };
                let external = Entry {
                    inside,
                    outside,
                    algorithm,
                    ..internal.clone()
                };
                let guarded = Entry {
                    sources: sources.map(|range| Arc::new([range.parse().unwrap()].into())),
                    ..external.clone()
                };
                services_of(&mut state).cluster_ips.insert(cluster_ip);
                let frontends = &mut services_of(&mut state).frontends;
                frontends.insert(frontend(cluster_ip), internal.into());
                if shown.0 {
                    frontends.insert(frontend(address("203.0.113.", "2001:db8::")), guarded.into());
                }
                if shown.1 {
                    let node_port = NodePort {
                        family: podnet_core::cluster::Family::of(cluster_ip),
                        protocol,
                        port,
                    };
                    services_of(&mut state)
                        .node_ports
                        .insert(node_port, external.into());
                }
            }
            state
        })
}
