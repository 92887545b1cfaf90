use std::collections::BTreeSet;

use podnet_core::cluster::{ClusterConfig, NodeName};
use podnet_core::service::Backend;
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
        let (protocol, socket) = frontend.split_once(' ').unwrap();
        let socket: SocketAddr = socket.parse().unwrap();
        let protocol: Protocol = protocol.parse().unwrap();
        let port = NonZeroU16::new(socket.port()).unwrap();
        let backend = match endpoints {
            Some([]) => Backend::Drop,
            Some(list) => Backend::Balance {
                endpoints: list.iter().map(|text| text.parse().unwrap()).collect(),
                draining: BTreeSet::new(),
            },
            None => Backend::Refuse,
        };
        state.services.cluster_ips.insert(socket.ip());
        state.services.frontends.insert(
            Frontend {
                address: socket.ip(),
                protocol,
                port,
            },
            backend,
        );
    }
    state
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
    state
        .services
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
        after.services.host_ports.extend(mapped);
    }
    after.services.local_endpoints.extend(pod);
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
        },
    );
    let transaction = Transaction::between(&table, Some(&Found::of(&other)));
    assert_eq!(transaction.0[..2], [Operation::DeleteTable, Operation::AddTable]);
}

/// Runs a transaction on a table as the kernel would.
fn run(transaction: &Transaction, mut table: Table) -> Table {
    for operation in transaction.0.clone() {
        match operation {
            Operation::AddTable => {}
            Operation::DeleteTable => table = Table::default(),
            Operation::AddSet(name, set) => {
                assert!(table.sets.insert(name.clone(), set).is_none());
                table.elements.insert(name, Elements::new());
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
        }
    }
    table
}

fn any_state() -> impl Strategy<Value = NodeState> {
    let frontend = (
        0..4_u8,
        prop::sample::select(vec!["TCP", "UDP", "SCTP"]),
        80..82_u16,
    );
    let backend = prop::option::weighted(0.8, prop::collection::btree_set(2..8_u8, 0..5));
    prop::collection::btree_map(frontend, backend, 0..8).prop_map(|services| {
        let mut state = state(&[]);
        for ((host, protocol, port), endpoints) in services {
            let six = host % 2 == 1;
            let address = if six {
                format!("fd00:10:96::{host}")
            } else {
                format!("10.96.0.{host}")
            };
            let address = address.parse().unwrap();
            let endpoint = |host: &u8| -> SocketAddr {
                let text = if six {
                    format!("[fd00:10:244::{host}]:80")
                } else {
                    format!("10.244.0.{host}:80")
                };
                text.parse().unwrap()
            };
            let backend = match &endpoints {
                None => Backend::Refuse,
                Some(hosts) if hosts.is_empty() => Backend::Drop,
                Some(hosts) => Backend::Balance {
                    endpoints: hosts.iter().map(endpoint).collect(),
                    draining: BTreeSet::new(),
                },
            };
            let frontend = Frontend {
                address,
                protocol: protocol.parse().unwrap(),
                port: NonZeroU16::new(port).unwrap(),
            };
            state.services.cluster_ips.insert(address);
            state.services.frontends.insert(frontend, backend);
        }
        state
    })
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
    fn what_is_rendered_reads_back_in_the_models_words(state in any_state()) {
        let services = Services::from_found(&Found::of(&render(&state)));
        for (frontend, backend) in &state.services.frontends {
            let target = services.frontends.get(frontend).cloned();
            let wanted = match backend {
                Backend::Balance { endpoints, .. } => Some(Target::Balance(endpoints.iter().copied().collect())),
                Backend::Drop => Some(Target::Drop),
                Backend::Refuse => None,
            };
            prop_assert_eq!(target, wanted);
        }
        prop_assert_eq!(services.cluster_ips, state.services.cluster_ips);
    }
}
