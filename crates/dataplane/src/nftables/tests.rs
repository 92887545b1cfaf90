use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use podnet_core::cluster::{Affinity, ClusterConfig, Family, NodeName, ObjectName, Protocol};
use podnet_core::service::{Backend, Entry, Frontend, HostPort, NodePort, PortName, ServiceState};
use podnet_core::{Cluster, compute};
use proptest::prelude::*;

use super::*;

fn state(services: &[(&str, Option<&[&str]>)]) -> NodeState {
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

fn services_of(state: &mut NodeState) -> &mut ServiceState {
    Arc::make_mut(&mut state.services)
}

fn frontend(text: &str) -> Frontend {
    let (protocol, socket) = text.split_once(' ').unwrap();
    let socket: SocketAddr = socket.parse().unwrap();
    Frontend {
        address: socket.ip(),
        protocol: protocol.parse().unwrap(),
        port: NonZeroU16::new(socket.port()).unwrap(),
    }
}

/// Endpoints; none of them drops, nothing refuses.
fn backend(endpoints: Option<&[&str]>) -> Backend {
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

fn entry(frontend: &Frontend, backend: Backend) -> Entry {
    let port = PortName {
        service: ObjectName::new("default", "web"),
        protocol: frontend.protocol,
        port: frontend.port,
    };
    Entry::new(port, backend)
}

#[test]
fn the_first_batch_makes_everything() {
    let mut state = state(&[
        ("TCP 10.96.0.1:443", Some(&["172.30.0.1:6443"])),
        ("UDP 10.96.0.10:53", Some(&["10.244.0.2:53", "10.244.1.2:53"])),
        (
            "TCP [fd00:10:96::a]:53",
            Some(&["[fd00:10:244::2]:53", "[fd00:10:244:1::2]:53"]),
        ),
        ("SCTP 10.96.0.11:9", Some(&[])),
        ("TCP 10.96.0.12:80", None),
    ]);
    services_of(&mut state)
        .local_endpoints
        .insert("10.244.0.2".parse().unwrap());
    insta::assert_snapshot!(Transaction::between(&render(&state), None));
}

#[test]
fn host_ports_and_masquerading_come_on_top() {
    let before = state(&[("TCP 10.96.0.1:443", Some(&["172.30.0.1:6443"]))]);
    let mut after = before.clone();
    let pod: [std::net::IpAddr; 2] = ["10.244.0.2".parse().unwrap(), "fd00:10:244::2".parse().unwrap()];
    for (host_ip, protocol, port) in [
        (None, Protocol::Tcp, 8080),
        (Some("127.0.0.1"), Protocol::Udp, 8080),
        (Some("fd30::b"), Protocol::Sctp, 9),
    ] {
        let host_ip = host_ip.map(|text| text.parse().unwrap());
        let (port, inside) = (NonZeroU16::new(port).unwrap(), NonZeroU16::new(80).unwrap());
        let mapped = HostPort::mapped(host_ip, protocol, port, &pod, inside);
        services_of(&mut after).host_ports.extend(mapped);
    }
    services_of(&mut after).local_endpoints.extend(pod);
    after.masquerade = Some(podnet_core::masquerade::Masquerade {
        pods: [
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/56".parse().unwrap(),
        ]
        .into(),
        except: ["10.244.0.0/16".parse().unwrap(), "ff00::/8".parse().unwrap()].into(),
        nodes: ["172.30.0.11".parse().unwrap(), "172.30.0.12".parse().unwrap()].into(),
    });
    let found = Found::of(&render(&before));
    insta::assert_snapshot!(Transaction::between(&render(&after), Some(&found)));
    // And they go again without making the table anew.
    let found = Found::of(&render(&after));
    let back = Transaction::between(&render(&before), Some(&found));
    assert!(!back.0.contains(&Operation::DeleteTable), "{back}");
    assert_eq!(run(&back, render(&after)), render(&before));
}

#[test]
fn a_change_costs_the_elements_that_changed() {
    let before = state(&[
        ("TCP 10.96.0.1:443", Some(&["172.30.0.1:6443"])),
        ("UDP 10.96.0.10:53", Some(&["10.244.0.2:53", "10.244.1.2:53"])),
    ]);
    let after = state(&[
        ("TCP 10.96.0.1:443", Some(&["172.30.0.1:6443"])),
        (
            "UDP 10.96.0.10:53",
            Some(&["10.244.0.2:53", "10.244.2.2:53", "10.244.3.2:53"]),
        ),
    ]);
    let found = Found::of(&render(&before));
    insta::assert_snapshot!(Transaction::between(&render(&after), Some(&found)));
    assert!(Transaction::between(&render(&before), Some(&found)).is_empty());
}

#[test]
fn a_set_of_another_kind_is_made_anew_with_the_table() {
    let table = render(&state(&[]));
    let mut other = table.clone();
    other.sets.insert(
        "cluster4".into(),
        Set {
            key: &[Field::Ipv6],
            maps_to: MapsTo::Nothing,
            dynamic: false,
        },
    );
    let transaction = Transaction::between(&table, Some(&Found::of(&other)));
    assert_eq!(transaction.0[..2], [Operation::DeleteTable, Operation::AddTable]);
}

#[test]
fn only_a_node_that_knows_its_pods_tells_the_outside_from_the_inside() {
    let mut state = state(&[]);
    let frontend = frontend("TCP 203.0.113.7:80");
    let local = Entry {
        outside: Some(Backend::Drop.into()),
        ..entry(&frontend, backend(Some(&["10.244.1.2:80"])))
    };
    services_of(&mut state).frontends.insert(frontend, local.into());
    let unknown = render(&state).chains;
    assert!(!unknown.contains_key("outside") && !unknown.contains_key("passing4"));
    services_of(&mut state).pods = ["10.244.0.0/24".parse().unwrap()].into();
    let table = render(&state);
    let chain = |name: &str| {
        table.chains[name]
            .rules
            .iter()
            .map(|rule| format!("{rule}\n"))
            .collect::<String>()
    };
    assert_eq!(
        chain("outside"),
        "ip saddr 10.244.0.0/24 return\nip daddr . meta l4proto . th dport vmap @outside4\n"
    );
    assert_eq!(
        chain("passing4"),
        "ip saddr 10.244.0.0/24 return\nip daddr 10.244.0.0/24 return\nip saddr 172.30.0.11/32 return\nmasquerade\n"
    );
    assert!(!table.chains.contains_key("passing6"));
}

/// Runs a transaction on a table as the kernel would.
fn run(transaction: &Transaction, mut table: Table) -> Table {
    for operation in transaction.0.clone() {
        match operation {
            Operation::AddTable => {}
            Operation::DeleteTable => table = Table::default(),
            Operation::AddSet(name, set) => {
                assert!(table.sets.insert(name.clone(), set).is_none());
                if !table.sets[&name].dynamic {
                    table.elements.insert(name, Elements::new());
                }
            }
            Operation::AddChain(name, chain) => {
                assert!(
                    table
                        .chains
                        .insert(
                            name,
                            Chain {
                                rules: Vec::new(),
                                ..chain
                            }
                        )
                        .is_none()
                );
            }
            Operation::FlushChain(name) => table.chains.get_mut(&name).unwrap().rules.clear(),
            Operation::AddRule(name, rule) => table.chains.get_mut(&name).unwrap().rules.push(rule),
            Operation::AddElements(name, _, list) => {
                for (key, value) in list {
                    if let Value::Verdict(Verdict::Goto(chain)) = &value {
                        assert!(table.chains.contains_key(chain));
                    }
                    assert!(
                        table
                            .elements
                            .get_mut(&name)
                            .unwrap()
                            .insert(key, value)
                            .is_none()
                    );
                }
            }
            Operation::DeleteElements(name, _, list) => {
                for (key, _) in list {
                    assert!(table.elements.get_mut(&name).unwrap().remove(&key).is_some());
                }
            }
            Operation::DeleteChain(name) => {
                let target = Value::Verdict(Verdict::Goto(name.clone()));
                assert!(
                    table
                        .elements
                        .values()
                        .flatten()
                        .all(|(_, value)| *value != target),
                    "{name} is in use"
                );
                assert!(table.chains.remove(&name).is_some());
            }
            Operation::FlushSet(name) => _ = table.elements.get_mut(&name).map(Elements::clear),
            Operation::DeleteSet(name) => {
                let used = format!("@{name} ");
                let mut rules = table.chains.values().flat_map(|chain| &chain.rules);
                assert!(
                    !rules.any(|rule| format!("{rule} ").contains(&used)),
                    "{name} is in use"
                );
                assert!(table.sets.remove(&name).is_some());
                table.elements.remove(&name);
            }
        }
    }
    table
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
fn any_state() -> impl Strategy<Value = NodeState> {
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
            affinity,
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
            for ((host, protocol, port), (internal, inside, outside, affinity, sources, shown)) in services {
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

/// What a dump should say of an entry.
fn target(entry: &Entry, backend: &Backend) -> Target {
    let fate = match backend {
        Backend::Balance { endpoints, .. } => dump::Fate::Balance(endpoints.to_vec()),
        Backend::Refuse => dump::Fate::Refuse,
        Backend::Drop => dump::Fate::Drop,
    };
    Target {
        guarded: entry.sources.is_some() && fate != dump::Fate::Drop,
        sticky: entry.affinity != Affinity::None && matches!(fate, dump::Fate::Balance(_)),
        fate,
    }
}

proptest! {
    #[test]
    fn any_table_becomes_any_other(before in any_state(), after in any_state()) {
        let (before, after) = (render(&before), render(&after));
        let fresh = run(&Transaction::between(&before, None), Table::default());
        prop_assert_eq!(&fresh, &before);
        let transaction = Transaction::between(&after, Some(&Found::of(&before)));
        prop_assert_eq!(run(&transaction, before), after);
    }

    #[test]
    fn a_step_from_state_to_state_is_the_difference_of_their_tables(before in any_state(), after in any_state()) {
        let (old, new) = ((render::frame(&before), &*before.services), (render::frame(&after), &*after.services));
        let (old, new) = render::changed(old, new);
        let step = Transaction::between(&new, Some(&Found::of(&old)));
        let whole = Transaction::between(&render(&after), Some(&Found::of(&render(&before))));
        prop_assert_eq!(step.is_empty(), whole.is_empty());
        prop_assert_eq!(run(&step, render(&before)), render(&after));
        let nothing = render::changed((render::frame(&after), &after.services), (render::frame(&after), &after.services));
        prop_assert!(Transaction::between(&nothing.1, Some(&Found::of(&nothing.0))).is_empty());
    }

    #[test]
    fn what_is_rendered_reads_back_in_the_models_words(state in any_state()) {
        let services = Services::from_found(&Found::of(&render(&state)));
        for (frontend, entry) in &state.services.frontends {
            // The guard refuses a cluster IP's ports that nobody serves: there is no element for them.
            let wanted = Some(target(entry, &entry.inside));
            let silent = state.services.cluster_ips.contains(&frontend.address);
            let wanted = wanted.filter(|wanted| !(silent && wanted.fate == dump::Fate::Refuse));
            prop_assert_eq!(services.frontends.get(frontend), wanted.as_ref());
            let wanted = entry.outside.as_ref().map(|outside| target(entry, outside));
            prop_assert_eq!(services.outside.get(frontend), wanted.as_ref());
        }
        for (node_port, entry) in &state.services.node_ports {
            prop_assert_eq!(services.node_ports.get(node_port), Some(&target(entry, &entry.inside)));
            let wanted = entry.outside.as_ref().map(|outside| target(entry, outside));
            prop_assert_eq!(services.outside_ports.get(node_port), wanted.as_ref());
        }
        prop_assert!(services.cluster_ips.iter().eq(state.services.cluster_ips.iter()));
    }
}

#[test]
fn of_a_table_somebody_else_made_every_flow_is_looked_at() {
    let mut state = state(&[("UDP 10.96.0.10:53", Some(&["10.244.0.2:53"]))]);
    let entry = entry(&frontend("UDP 10.96.0.10:53"), backend(Some(&["10.244.0.2:53"])));
    let node_port = NodePort {
        family: Family::V4,
        protocol: Protocol::Udp,
        port: NonZeroU16::new(30_053).unwrap(),
    };
    services_of(&mut state).node_ports.insert(node_port, entry.into());
    let mut all = Touched::default();
    assert!(all.is_empty());
    all.note_all();
    assert!(!all.is_empty());
    let flow = |sent_to: &str, answered_from: &str| {
        let (sent_to, answered_from) = (sent_to.parse().unwrap(), answered_from.parse().unwrap());
        // Of one that has changed nothing, no flow is stale.
        assert!(!Touched::default().is_stale(&state, sent_to, answered_from));
        all.is_stale(&state, sent_to, answered_from)
    };
    assert!(!flow("10.96.0.10:53", "10.244.0.2:53"));
    assert!(flow("10.96.0.10:53", "10.244.0.9:53"), "its endpoint is gone");
    assert!(flow("10.96.0.11:53", "10.244.0.9:53"), "its service is gone");
    assert!(!flow("172.30.0.11:30053", "10.244.0.2:53"));
    assert!(flow("172.30.0.11:30053", "10.244.0.9:53"));
    assert!(
        flow("172.30.0.11:30053", "172.30.0.11:30053"),
        "it is from before"
    );
    assert!(
        flow("172.30.0.11:30054", "10.244.0.9:53"),
        "its node port is gone"
    );
    // Others' are theirs.
    assert!(!flow("172.30.0.11:500", "172.30.0.11:500"));
    assert!(!flow("10.244.0.2:53", "10.244.0.2:53"));
    assert!(!flow("198.51.100.7:53", "198.51.100.7:53"));
}
