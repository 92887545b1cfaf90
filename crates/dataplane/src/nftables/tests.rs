use std::num::NonZeroU16;

use podnet_core::cluster::{Family, Protocol};
use podnet_core::service::{Backend, Entry, HostPort, NodePort};
use proptest::prelude::*;

use super::*;
use crate::services::any::{any_state, backend, entry, frontend, services_of, state};

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
            interval: false,
        },
    );
    let transaction = Transaction::between(&table, Some(&Found::of(&other)));
    assert_eq!(transaction.0[..2], [Operation::DeleteTable, Operation::AddTable]);
}

#[test]
fn clients_outside_are_all_but_the_node_and_its_pods() {
    let mut state = state(&[]);
    let frontend = frontend("TCP 203.0.113.7:80");
    let local = Entry {
        outside: Some(Backend::Drop.into()),
        ..entry(&frontend, backend(Some(&["10.244.1.2:80"])))
    };
    services_of(&mut state).frontends.insert(frontend, local.into());
    let chain_of = |state: &NodeState, name: &str| {
        let rules = render(state).chains[name].rules.clone();
        rules.iter().map(|rule| format!("{rule}\n")).collect::<String>()
    };
    // Who does not know its pods takes everybody for one.
    assert_eq!(
        chain_of(&state, "outside"),
        "ip saddr 0.0.0.0/0 return\nip6 saddr ::/0 return\nip daddr . meta l4proto . th dport vmap @outside4\n"
    );
    assert_eq!(
        chain_of(&state, "passing4"),
        "meta mark set meta mark & 0xffffbfff\nip saddr 0.0.0.0/0 return\nip daddr 0.0.0.0/0 return\n\
         ip saddr 172.30.0.11/32 return\nmasquerade\n"
    );
    services_of(&mut state).pods = ["10.244.0.0/24".parse().unwrap()].into();
    let chain = |name: &str| chain_of(&state, name);
    assert_eq!(
        chain("outside"),
        "ip saddr 10.244.0.0/24 return\nip daddr . meta l4proto . th dport vmap @outside4\n"
    );
    assert_eq!(
        chain("passing4"),
        "meta mark set meta mark & 0xffffbfff\nip saddr 10.244.0.0/24 return\nip daddr 10.244.0.0/24 return\n\
         ip saddr 172.30.0.11/32 return\nmasquerade\n"
    );
}

/// Every packet of it, since a flow need not begin again when programs come to its links.
#[test]
fn what_is_translated_is_marked_where_programs_lead_packets_past() {
    let mut state = state(&[]);
    assert!(!render(&state).chains.contains_key("noting"));
    let pod = podnet_core::cluster::Wired {
        link: Some("pod1".into()),
        ..Default::default()
    };
    state.wired = std::sync::Arc::new([pod].into());
    let noting = &render(&state).chains["noting"];
    let Base { kind, hook, priority } = noting.base.as_ref().unwrap();
    assert_eq!((*kind, *hook, *priority), ("filter", Hook::Postrouting, 110));
    let rules: Vec<String> = noting.rules.iter().map(ToString::to_string).collect();
    assert_eq!(
        rules,
        [
            "ct direction reply return",
            "ct status snat,dnat meta mark set meta mark | 0x00002000"
        ]
    );
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
        // The same entries at addresses that are no cluster IPs.
        let mut elsewhere = after.clone();
        services_of(&mut elsewhere).cluster_ips = Default::default();
        for (before, after) in [(&before, &after), (&after, &elsewhere), (&elsewhere, &after)] {
            let [old, new] = [before, after].map(|state| (render::frame(state, Turn::Usual), &*state.services));
            let (old, new) = render::changed(old, new);
            let step = Transaction::between(&new, Some(&Found::of(&old)));
            let whole = Transaction::between(&render(after), Some(&Found::of(&render(before))));
            prop_assert_eq!(step.is_empty(), whole.is_empty());
            prop_assert_eq!(run(&step, render(before)), render(after));
        }
        let nothing = render::changed((render::frame(&after, Turn::Usual), &after.services), (render::frame(&after, Turn::Usual), &after.services));
        prop_assert!(Transaction::between(&nothing.1, Some(&Found::of(&nothing.0))).is_empty());
    }

    #[test]
    fn what_is_rendered_reads_back_in_the_models_words(state in any_state()) {
        prop_assert_eq!(Services::from_found(&Found::of(&render(&state))), Services::of(&state.services));
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
    services_of(&mut state)
        .pods
        .insert("10.244.0.0/24".parse().unwrap());
    let mut all = Touched::default();
    assert!(all.is_empty());
    all.note_all();
    assert!(!all.is_empty());
    // The second is on a link that the API does not know.
    let own = ["172.30.0.11", "192.168.1.11"]
        .map(|address| address.parse().unwrap())
        .into();
    let flow = |sent_to: &str, answered_from: &str| {
        let (sent_to, answered_from) = (sent_to.parse().unwrap(), answered_from.parse().unwrap());
        // Of one that has changed nothing, no flow is stale.
        assert!(!Touched::default().is_stale(&state, &own, sent_to, answered_from));
        all.is_stale(&state, &own, sent_to, answered_from)
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
    assert!(flow("192.168.1.11:30053", "10.244.0.9:53"));
    // Others' are theirs.
    assert!(!flow("172.30.0.11:500", "172.30.0.11:500"));
    assert!(
        !flow("172.30.0.11:5353", "172.17.0.2:53"),
        "a container of somebody else's"
    );
    assert!(!flow("10.244.0.2:53", "10.244.0.2:53"));
    assert!(!flow("198.51.100.7:53", "198.51.100.7:53"));
}
