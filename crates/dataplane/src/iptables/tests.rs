use proptest::prelude::*;

use super::*;
use crate::services::any::{any_state, backend, entry, everything, frontend, services_of, state};
use podnet_core::cluster::{Algorithm, Protocol};
use podnet_core::service::{Backend, NodePort};
use std::num::NonZeroU16;
use std::sync::Arc;

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

#[test]
fn the_first_change_makes_everything() {
    insta::assert_snapshot!(Change::between(&render(&everything()), &Found::default()));
}

#[test]
fn beside_ipvs_there_is_what_leads_there_and_what_it_cannot_do() {
    insta::assert_snapshot!(rendered(Scope::Beside, &everything()));
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
    step_of(Scope::Whole, before, after)
}

fn step_of(scope: Scope, before: &NodeState, after: &NodeState) -> Change {
    let old = Given::new(scope, &before.services);
    let new = old.then(&after.services);
    let (old_frame, new_frame) = (render::frame(before, &old), render::frame(after, &new));
    let (old, new) = render::changed((old_frame, &old), (new_frame, &new));
    Change::between(&new, &Found::of(&old))
}

fn any_scope() -> impl Strategy<Value = Scope> {
    prop::sample::select(vec![Scope::Whole, Scope::Beside])
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

/// iptables refuses a rule whose chain or set is not there, and saves addresses and protocol before all else: where they
/// are rendered elsewhere, what is saved is never what was wanted.
fn leads_somewhere(table: &Table, sets: &std::collections::BTreeMap<String, Set>) {
    for rule in table.chains.values().flatten().chain(table.hooks.values()) {
        let text = rule.to_string();
        let after = text.split(' ').skip_while(|word| *word != "-m");
        assert!(
            !after.into_iter().any(|word| ["-s", "-d", "-p"].contains(&word)),
            "{rule}"
        );
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
    // A chain to write, one to delete, two rules too many and one that is missing.
    assert_eq!(found.damage(&want, &FAMILIES), 5);
    assert_eq!(found.damage(&want, &[Family::V6]), 0);
    found.foreign.insert("PODNET-OTHER".into());
    let set = found.sets.get_mut("PODNET-CLUSTER4").unwrap();
    assert!(set.elements.pop_first().is_some());
    assert_eq!(found.damage(&want, &FAMILIES), 7);
}

proptest! {
    #[test]
    fn any_rules_become_any_other(scopes in (any_scope(), any_scope()), before in any_state(), after in any_state()) {
        let (before, after) = (rendered(scopes.0, &before), rendered(scopes.1, &after));
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
        scopes in (any_scope(), any_scope()),
    ) {
        let (before, after) = (rendered(scopes.0, &before), rendered(scopes.1, &after));
        let change = Change::between(&after, &Found::of(&before));
        let rest = run_until(&change, before, tables);
        let change = Change::between(&after, &Found::of(&rest));
        prop_assert_eq!(run(&change, rest), after);
    }

    #[test]
    fn a_step_from_state_to_state_is_the_difference_of_their_rules(
        scope in any_scope(),
        before in any_state(),
        after in any_state(),
    ) {
        let whole = Change::between(&rendered(scope, &after), &Found::of(&rendered(scope, &before)));
        prop_assert_eq!(step_of(scope, &before, &after), whole);
        prop_assert!(step_of(scope, &after, &after).is_empty());
    }

    #[test]
    fn what_is_saved_is_read_and_says_what_was_wanted(state in any_state()) {
        let rules = render(&state);
        let mut found = Found { sets: rules.sets.clone(), ..Found::default() };
        for family in FAMILIES {
            found.read_save(Scope::Whole, family, &saved(&rules, family));
        }
        prop_assert_eq!(dump::services(&found), Services::of(&state.services));
        prop_assert!(Change::between(&rules, &found).is_empty());
    }

    #[test]
    fn beside_ipvs_what_is_saved_is_read_and_the_iptables_back_end_knows_what_is_not_its_own(state in any_state()) {
        let rules = rendered(Scope::Beside, &state);
        let read = |scope: Scope| {
            let sets = rules.sets.clone().into_iter().filter(|(name, _)| scope.owns(name));
            let mut found = Found { sets: sets.collect(), ..Found::default() };
            for family in FAMILIES {
                found.read_save(scope, family, &saved(&rules, family));
            }
            found
        };
        prop_assert!(Change::between(&rules, &read(Scope::Beside)).is_empty());
        let (whole, lingering) = (read(Scope::Whole), read(Scope::Lingering));
        prop_assert!(whole.tables.keys().all(|(_, table)| *table != TableName::Mangle));
        // In this order: chains that lead to IPVS refer to sets of the others.
        let left = run(&Change::between(&render::lingering(), &lingering), rules.clone());
        let left = run(&Change::between(&Rules::default(), &whole), left);
        prop_assert_eq!(left, render::lingering());
    }
}

#[test]
fn among_more_endpoints_than_hashes_can_tell_apart_it_is_by_lot_and_told() {
    let of = |count: u16| {
        let endpoints: Vec<String> = (1..=count).map(|port| format!("10.244.1.2:{port}")).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let mut state = state(&[]);
        for address in ["TCP 203.0.113.7:80", "TCP 203.0.113.8:80"] {
            let frontend = frontend(address);
            let mut entry = entry(&frontend, backend(Some(&endpoints)));
            entry.algorithm = Algorithm::Maglev;
            // Of one service port, whichever the address.
            entry.port = self::entry(&self::frontend("TCP 10.96.0.1:80"), backend(None)).port;
            services_of(&mut state).frontends.insert(frontend, entry.into());
        }
        state
    };
    let by_hash = |state: &NodeState| render(state).to_string().contains("HMARK");
    let mut lacks = Lacks::default();
    for (count, hashed) in [(2, true), (125, true), (126, false), (300, false), (125, true)] {
        let state = of(count);
        assert_eq!(by_hash(&state), hashed, "{count}");
        lacks.follow(&state.services);
        let told = lacks.all();
        assert_eq!(told.len(), usize::from(!hashed), "{count}: {told:?}");
        assert!(
            told.iter()
                .all(|lack| lack.contains(&format!("with {count} endpoints")))
        );
    }
}
