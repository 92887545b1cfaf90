use proptest::prelude::*;

use super::*;
use crate::services::any::{any_state, entry, frontend, services_of, state};
use podnet_core::cluster::{Affinity, Protocol};
use podnet_core::service::{Backend, Entry, NodePort};
use std::num::NonZeroU16;

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn everything() -> NodeState {
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
        family: Family::V4,
        protocol: Protocol::Tcp,
        port: port(30_080),
    };
    let of_port = Entry {
        sources: None,
        ..local.clone()
    };
    services.node_ports.insert(of_node, of_port.into());
    services.frontends.insert(external, local.into());
    state
}

#[test]
fn the_first_change_makes_everything() {
    insta::assert_snapshot!(Change::between(&render(&everything()), &Found::default()));
}

#[test]
fn a_change_costs_the_chains_and_elements_that_changed() {
    let before = everything();
    let mut after = before.clone();
    let changed = frontend("UDP 10.96.0.10:53");
    let one = Backend::Balance {
        endpoints: ["10.244.3.2:53".parse().unwrap()].into(),
        draining: Box::default(),
    };
    let entry_of = entry(&changed, one);
    services_of(&mut after).frontends.insert(changed, entry_of.into());
    let new = frontend("TCP 10.96.0.13:80");
    let entry_of = entry(&new, Backend::Refuse);
    services_of(&mut after).frontends.insert(new, entry_of.into());
    services_of(&mut after).cluster_ips.insert(new.address);
    let change = step(&before, &after);
    assert_eq!(
        change,
        Change::between(&render(&after), &Found::of(&render(&before)))
    );
    insta::assert_snapshot!(change);
}

fn step(before: &NodeState, after: &NodeState) -> Change {
    let old = (render::frame(before), &*before.services);
    let new = (render::frame(after), &*after.services);
    let (old, new) = render::changed(old, new);
    Change::between(&new, &Found::of(&old))
}

/// Runs a change as the kernel would.
fn run(change: &Change, rules: Rules) -> Rules {
    run_until(change, rules, usize::MAX)
}

/// The same, cut off after so many of its tables; none of them: after the sets have grown.
fn run_until(change: &Change, mut rules: Rules, tables: usize) -> Rules {
    for (name, spec) in &change.create {
        let elements = std::collections::BTreeSet::new();
        let set = Set {
            spec: *spec,
            elements,
        };
        assert!(rules.sets.insert(name.clone(), set).is_none());
    }
    for (name, elements) in &change.add {
        rules.sets.get_mut(name).unwrap().elements.extend(elements);
    }
    for (key, of_table) in change.tables.iter().take(tables) {
        let table = rules.tables.entry(*key).or_default();
        table.chains.extend(of_table.write.clone());
        for chain in &of_table.delete {
            assert!(table.chains.remove(chain).is_some());
        }
        for (chain, rule) in &of_table.unhook {
            let hook = table.hooks.iter().find(|(name, _)| *name == chain);
            let hook = hook
                .filter(|(_, found)| found.to_string() == *rule)
                .map(|(name, _)| *name);
            table.hooks.remove(hook.unwrap());
        }
        for (chain, rule) in &of_table.hook {
            assert!(table.hooks.insert(chain, rule.clone()).is_none());
        }
        leads_somewhere(table, &rules.sets);
    }
    rules.tables.retain(|_, table| *table != Table::default());
    if tables < usize::MAX {
        return rules;
    }
    for (name, elements) in &change.remove {
        let set = rules.sets.get_mut(name).unwrap();
        assert!(elements.iter().all(|element| set.elements.remove(element)));
    }
    for name in &change.destroy {
        assert!(rules.sets.remove(name).is_some());
    }
    rules
        .tables
        .values()
        .for_each(|table| leads_somewhere(table, &rules.sets));
    rules
}

/// iptables refuses a rule whose chain or set is not there.
fn leads_somewhere(table: &Table, sets: &std::collections::BTreeMap<String, Set>) {
    for rule in table.chains.values().flatten().chain(table.hooks.values()) {
        if let Target::Jump(chain) | Target::Goto(chain) = &rule.target {
            assert!(table.chains.contains_key(chain), "{rule}");
            assert!(chain.len() <= 28, "{chain}");
        }
        for clause in &rule.clauses {
            if let Clause::In(_, set) | Clause::NotIn(_, set) = clause {
                assert!(sets.contains_key(set) && set.len() <= 31, "{rule}");
            }
        }
    }
}

#[test]
fn the_last_ports_and_addresses_there_are_end_the_tree() {
    let mut state = state(&[]);
    let services = services_of(&mut state);
    for last in 0..20_u8 {
        let external = frontend(&format!("TCP {0}.255.255.255:80", 255 - last * 12));
        let backend = Backend::Balance {
            endpoints: ["10.244.0.2:80".parse().unwrap()].into(),
            draining: Box::default(),
        };
        let entry = Arc::new(entry(&external, backend));
        let node_port = NodePort {
            family: Family::V4,
            protocol: Protocol::Tcp,
            port: port(65_535 - u16::from(last) * 3000),
        };
        services.node_ports.insert(node_port, Arc::clone(&entry));
        services.frontends.insert(external, entry);
    }
    let rules = render(&state);
    assert_eq!(dump::services(&Found::of(&rules)), Services::of(&state.services));
    assert_eq!(
        step(&crate::services::any::state(&[]), &state).len(),
        Change::between(&rules, &Found::of(&render(&crate::services::any::state(&[])))).len()
    );
}

/// What `iptables-save` would print.
fn saved(rules: &Rules, family: Family) -> String {
    let mut text = String::new();
    for ((of, name), table) in &rules.tables {
        if *of != family {
            continue;
        }
        text += &format!("*{}\n:INPUT ACCEPT [0:0]\n", name.as_str());
        for chain in table.chains.keys() {
            text += &format!(":{chain} - [0:0]\n");
        }
        text += "-A INPUT -m comment --comment \"-j PODNET-x\" -j ACCEPT\n";
        for (hook, rule) in &table.hooks {
            text += &format!("-A {hook} {rule}\n");
        }
        for (chain, rules) in &table.chains {
            for rule in rules {
                text += &format!("-A {chain} {rule}\n");
            }
        }
        text += "COMMIT\n";
    }
    text
}

#[test]
fn what_others_changed_is_put_back_and_theirs_stays() {
    let want = render(&everything());
    let mut found = Found::of(&want);
    let key = (Family::V4, TableName::Nat);
    let table = found.tables.get_mut(&key).unwrap();
    table.chains.insert("PODNET-SERVICES".into(), None);
    table.chains.insert("PODNET-OLD".into(), Some(Vec::new()));
    let hook = want.tables[&key].hooks["OUTPUT"].to_string();
    table
        .hooks
        .insert("OUTPUT".into(), vec![hook.clone(), hook.clone()]);
    table
        .hooks
        .insert("PREROUTING".into(), vec!["-p tcp -j PODNET-SERVICES".into()]);
    let change = Change::between(&want, &found);
    let of_table = &change.tables[&key];
    assert_eq!(change.tables.len(), 1);
    assert!(of_table.write.keys().eq(["PODNET-SERVICES"]));
    assert!(of_table.delete.iter().eq(["PODNET-OLD"]));
    assert_eq!(
        of_table.unhook,
        [
            ("OUTPUT".to_owned(), hook),
            ("PREROUTING".to_owned(), "-p tcp -j PODNET-SERVICES".to_owned()),
        ]
    );
    assert!(of_table.hook.keys().eq(["PREROUTING"].iter()));
}

proptest! {
    #[test]
    fn any_rules_become_any_other(before in any_state(), after in any_state()) {
        let (before, after) = (render(&before), render(&after));
        let fresh = run(&Change::between(&before, &Found::default()), Rules::default());
        prop_assert_eq!(&fresh, &before);
        let change = Change::between(&after, &Found::of(&before));
        prop_assert_eq!(run(&change, before.clone()), after);
        let gone = run(&Change::between(&Rules::default(), &Found::of(&before)), before);
        prop_assert_eq!(gone, Rules::default());
    }

    #[test]
    fn a_change_that_is_cut_off_is_completed_by_the_next(
        before in any_state(),
        after in any_state(),
        tables in 0..5_usize,
    ) {
        let (before, after) = (render(&before), render(&after));
        let change = Change::between(&after, &Found::of(&before));
        let rest = run_until(&change, before, tables);
        let change = Change::between(&after, &Found::of(&rest));
        prop_assert_eq!(run(&change, rest), after);
    }

    #[test]
    fn a_step_from_state_to_state_is_the_difference_of_their_rules(before in any_state(), after in any_state()) {
        let whole = Change::between(&render(&after), &Found::of(&render(&before)));
        prop_assert_eq!(step(&before, &after), whole);
        prop_assert!(step(&after, &after).is_empty());
    }

    #[test]
    fn what_is_saved_is_read_and_says_what_was_wanted(state in any_state()) {
        let rules = render(&state);
        let mut found = Found { sets: rules.sets.clone(), ..Found::default() };
        for family in FAMILIES {
            found.read_save(family, &saved(&rules, family));
        }
        prop_assert_eq!(dump::services(&found), Services::of(&state.services));
        prop_assert!(Change::between(&rules, &found).is_empty());
    }
}
