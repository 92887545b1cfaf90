//! The compiled policies against the oracle, on random clusters; and what a change may touch.
//!
//! `PODNET_FUZZ_SECONDS=600 cargo nextest run --release -p podnet-core oracle` compares for that long.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::time::{Duration, Instant};

use podnet_core::cluster::{Cluster, Direction, ObjectName};
use podnet_core::flow::Flow;
use podnet_core::oracle::policy::{self as oracle, By, End};
use podnet_core::policy::judge::{Decision, Judge, Reason};
use podnet_core::policy::{self, LabelSets, PodRules, PolicyRef, PolicyState, Rule};
use podnet_core::{NodeName, compute};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};

/// The compiled rules' answer in the oracle's words.
fn end(decision: Option<Decision>) -> End {
    let Some(decision) = decision else {
        return End {
            allowed: true,
            by: By::NoPod,
        };
    };
    let by = match decision.reason {
        Reason::Rule(origin) => match origin.policy {
            PolicyRef::Cluster(name) => By::Rule(String::new(), name, origin.index),
            PolicyRef::Namespaced(ObjectName { namespace, name }) => By::Rule(namespace, name, origin.index),
        },
        Reason::Isolated(_) => By::Isolation,
        Reason::OwnAddress => By::Itself,
        Reason::OwnNode => By::OwnNode,
        Reason::Open => By::Default,
    };
    End {
        allowed: decision.allowed,
        by,
    }
}

/// A pod that no policy is about is open to all, whoever asks: the compiler does not look further, and the oracle may
/// name a better reason.
fn same(compiled: &End, judged: &End) -> bool {
    let idle = |by: &By| matches!(by, By::Default | By::Itself | By::OwnNode);
    compiled == judged || compiled.allowed && judged.allowed && idle(&compiled.by) && idle(&judged.by)
}

fn agrees(cluster: &Cluster, judge: &Judge, flow: &Flow) -> Result<(), TestCaseError> {
    let verdict = judge.judge(flow);
    let (egress, ingress) = oracle::verdict(cluster, flow);
    for (compiled, judged) in [(end(verdict.egress), egress), (end(verdict.ingress), ingress)] {
        prop_assert!(
            same(&compiled, &judged),
            "{flow:?}: {compiled:?}, the oracle says {judged:?}"
        );
    }
    Ok(())
}

fn agrees_everywhere(cluster: &Cluster) -> Result<(), TestCaseError> {
    let judge = Judge::new(cluster);
    world::flows().try_for_each(|flow| agrees(cluster, &judge, &flow))
}

#[test]
fn every_pair_is_judged_as_the_oracle_does() {
    let seconds = std::env::var("PODNET_FUZZ_SECONDS").ok();
    let seconds: u64 = seconds.map_or(0, |text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut cases = 0;
    loop {
        let config = ProptestConfig {
            cases: 200,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        TestRunner::new(config)
            .run(&world::cluster(), |cluster| agrees_everywhere(&cluster))
            .unwrap_or_else(|failure| panic!("{failure}"));
        cases += 200;
        if Instant::now() >= end {
            break;
        }
    }
    println!("{cases} clusters, {} flows each", world::flows().count());
}

/// What the compiled states of one node have in rules.
fn rules(state: &PolicyState) -> impl Iterator<Item = &Rule> {
    state.rules.values().flat_map(PodRules::all)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn rules_are_read_back_from_their_text(cluster in world::cluster()) {
        for node in world::nodes() {
            let state = policy::compute(&cluster, &node, &mut Vec::new());
            for rule in rules(&state) {
                prop_assert_eq!(&rule.to_string().parse::<Rule>().unwrap(), rule);
            }
            let sets = state.label_sets.keys();
            prop_assert!(sets.into_iter().all(|id| id.to_string().parse() == Ok(*id)));
        }
    }

    /// One pod's change at another node, seen from this one.
    #[test]
    fn a_pods_change_touches_only_the_sets_it_is_in(
        cluster in world::cluster(), key in 0..world::PODS, new in prop::option::of(world::pod(0)),
    ) {
        let me = world::node_name(0);
        let mut before = cluster;
        let elsewhere = |pod: &podnet_core::cluster::Pod| pod.node.as_ref() != Some(&me);
        before.pods.retain(|name, pod| {
            !name.name.ends_with(&key.to_string()) || pod.as_ref().is_ok_and(elsewhere)
        });
        let old = before.pods.keys().find(|name| name.name.ends_with(&key.to_string())).cloned();
        let mut after = before.clone();
        let mut touched = Vec::new();
        if let Some(Ok(pod)) = old.and_then(|name| after.pods.remove(&name)) {
            touched.push(LabelSets::id_of(&before, &pod));
        }
        if let Some(mut pod) = new {
            pod.name.name = format!("pod{key}");
            pod.node = Some(world::node_name(1));
            touched.push(LabelSets::id_of(&before, &pod));
            after.pods.insert(pod.name.clone(), Ok(pod));
        }
        let [before, after] = [before, after].map(|cluster| policy::compute(&cluster, &me, &mut Vec::new()));
        // Not one rule, nor another pod's entry.
        prop_assert_eq!(&before.rules, &after.rules);
        prop_assert_eq!(&before.pods, &after.pods);
        prop_assert_eq!(&before.nodes, &after.nodes);
        prop_assert_eq!(&before.own_node, &after.own_node);
        prop_assert_eq!(before.selections.keys().collect::<Vec<_>>(), after.selections.keys().collect::<Vec<_>>());
        // Of the sets, those the pod left or entered.
        let changed = before.label_sets.iter().filter(|(id, set)| after.label_sets.get(id) != Some(set));
        let changed = changed.chain(after.label_sets.iter().filter(|(id, set)| before.label_sets.get(id) != Some(set)));
        for (id, _) in changed {
            prop_assert!(touched.contains(id));
        }
        for (selection, sets) in &before.selections {
            for id in sets.symmetric_difference(&after.selections[selection]) {
                prop_assert!(touched.contains(id));
            }
        }
    }

    #[test]
    fn whatever_cannot_be_read_is_told(cluster in world::cluster()) {
        let state = compute(&cluster, &NodeName::new("elsewhere").unwrap());
        let told = |kind: &str, name: &str| {
            state.problems.iter().any(|problem| problem.object.kind == kind && problem.object.name == name)
        };
        for (name, policy) in &cluster.network_policies {
            let Ok(policy) = policy else { continue };
            let rules = policy.ingress.iter().chain(&policy.egress).flatten();
            let unread = rules.clone().any(|rule| rule.peers.iter().any(Result::is_err) || rule.ports.iter().any(Result::is_err))
                || policy.pods.is_err()
                || matches!(policy.types, Some(Err(_)))
                || policy.existing.is_err();
            prop_assert_eq!(told("NetworkPolicy", &name.name), unread);
        }
        for (name, policy) in &cluster.cluster_network_policies {
            let Ok(policy) = policy else { continue };
            let mut rules = policy.ingress.iter().chain(&policy.egress);
            let unread = rules.any(|rule| rule.action.is_err() || rule.matches.is_err())
                || policy.tier.is_err() || policy.priority.is_err() || policy.subject.is_err()
                || policy.existing.is_err() || !policy.unknown.is_empty();
            prop_assert_eq!(told("ClusterNetworkPolicy", name), unread);
        }
    }

    /// What a policy adds never opens what another closed: fewer policies that isolate, and no more is denied.
    #[test]
    fn a_policy_that_cannot_be_read_opens_nothing(cluster in world::cluster(), index in 0..5_usize) {
        let Some(name) = cluster.network_policies.keys().nth(index).cloned() else { return Ok(()) };
        let mut worse = cluster.clone();
        let invalid = podnet_core::cluster::Invalid {
            object: podnet_core::cluster::ObjectRef::network_policy(&name),
            why: "unreadable".into(),
        };
        worse.network_policies.insert(name.clone(), Err(invalid));
        let (before, after) = (Judge::new(&cluster), Judge::new(&worse));
        for flow in world::flows() {
            let both = before.judge(&flow);
            for (was, is, direction) in [
                (both.egress, after.judge(&flow).egress, Direction::Egress),
                (both.ingress, after.judge(&flow).ingress, Direction::Ingress),
            ] {
                // The tier Baseline ends where a NetworkPolicy begins.
                let by_baseline = was.as_ref().is_some_and(|was| {
                    matches!(&was.reason, Reason::Rule(origin) if matches!(origin.policy, PolicyRef::Cluster(_)))
                });
                let opened = was.is_some_and(|was| !was.allowed) && is.is_some_and(|is| is.allowed);
                prop_assert!(!opened || by_baseline, "{flow:?} {direction}");
            }
        }
    }
}
