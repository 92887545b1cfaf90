//! The controllers together against a simulated server, in any order of watches, answers and nodes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod simulated;

use podnet_controllers::action::Propagation;
use podnet_controllers::control::Controller;
use podnet_controllers::deployment::Deployments;
use podnet_controllers::endpoints::{EndpointSlices, LegacyEndpoints, MirroredEndpoints};
use podnet_controllers::engine::Engine;
use podnet_controllers::garbage::GarbageCollector;
use podnet_controllers::node_ranges::{NodeRanges, Pool};
use podnet_controllers::pod_gc::PodCollector;
use podnet_controllers::replicaset::ReplicaSets;
use podnet_controllers::scheduler::Scheduler;
use proptest::prelude::*;
use serde_json::{Value, json};
use simulated::{Simulated, deployment, node, service};

fn engine() -> Engine {
    let range = "10.244.0.0/16".parse().unwrap();
    let controllers: Vec<Box<dyn Controller>> = vec![
        Box::new(NodeRanges::new(
            vec![Pool::new(range, 24).unwrap()],
            "kube-system",
            600,
        )),
        Box::new(Deployments),
        Box::new(ReplicaSets),
        Box::new(Scheduler),
        Box::new(EndpointSlices),
        Box::new(LegacyEndpoints),
        Box::new(MirroredEndpoints),
        Box::new(GarbageCollector),
        Box::new(PodCollector),
    ];
    Engine::new(controllers)
}

fn cluster(nodes: usize) -> (Simulated, Engine) {
    let (mut server, mut engine) = (Simulated::new(), engine());
    server.start(&mut engine);
    (1..=nodes).for_each(|i| server.apply(node(&format!("node{i}"))));
    (server, engine)
}

fn condition<'a>(object: &'a Value, type_: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().unwrap();
    conditions
        .iter()
        .find(|c| c["type"] == type_)
        .unwrap_or(&Value::Null)
}

fn counts(server: &Simulated) -> Vec<i64> {
    let status = &server.get("Deployment", "d", "web").unwrap()["status"];
    let fields = [
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
    ];
    fields
        .iter()
        .map(|field| status[*field].as_i64().unwrap_or(0))
        .collect()
}

#[test]
fn a_deployment_becomes_ready_pods_and_endpoints_on_all_nodes() {
    let (mut server, mut engine) = cluster(3);
    server.apply(service("web"));
    server.apply(deployment("web", 6, "one"));
    server.settle(&mut engine, &[1, 0, 2, 3]);
    assert_eq!(counts(&server), [6, 6, 6, 6, 0]);
    let web = server.get("Deployment", "d", "web").unwrap();
    assert_eq!(condition(web, "Available")["status"], "True");
    assert_eq!(condition(web, "Progressing")["reason"], "NewReplicaSetAvailable");
    assert_eq!(
        web["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "1"
    );
    for name in ["node1", "node2", "node3"] {
        assert_eq!(
            server
                .list("Pod")
                .iter()
                .filter(|p| p["spec"]["nodeName"] == name)
                .count(),
            2,
            "{name}"
        );
    }
    let slices = server.list("EndpointSlice");
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0]["endpoints"].as_array().unwrap().len(), 6);
    assert_eq!(slices[0]["ports"][0]["port"], 8080);
    let endpoints = server.get("Endpoints", "d", "web").unwrap();
    assert_eq!(endpoints["subsets"][0]["addresses"].as_array().unwrap().len(), 6);
    assert_eq!(server.created["Pod"], 6);
    assert_eq!(server.refusals, Vec::<String>::new());
}

#[test]
fn rolls_out_rolls_back_and_remembers() {
    let (mut server, mut engine) = cluster(2);
    for (image, revision) in [
        ("one", "1"),
        ("two", "2"),
        ("three", "3"),
        ("four", "4"),
        ("two", "5"),
    ] {
        server.apply(deployment("web", 4, image));
        server.settle(&mut engine, &[0, 3, 1, 2, 2]);
        assert_eq!(counts(&server), [4, 4, 4, 4, 0], "{image}");
        let web = server.get("Deployment", "d", "web").unwrap();
        assert_eq!(
            web["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
            revision
        );
        assert!(
            server
                .list("Pod")
                .iter()
                .all(|p| p["spec"]["containers"][0]["image"] == image)
        );
    }
    // "two" came back before its ReplicaSet had left the history of two.
    assert_eq!(server.created["ReplicaSet"], 4);
    assert_eq!(server.list("ReplicaSet").len(), 3);
    let two = server
        .list("ReplicaSet")
        .into_iter()
        .find(|set| set["spec"]["replicas"] == 4)
        .unwrap();
    assert_eq!(
        two["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"],
        "2"
    );
}

#[test]
fn recreate_never_mixes_templates() {
    let (mut server, mut engine) = cluster(2);
    for image in ["one", "two"] {
        let mut web = deployment("web", 3, image);
        web["spec"]["strategy"] = json!({"type": "Recreate"});
        server.apply(web);
        server.settle(&mut engine, &[2, 1, 3, 0]);
        assert_eq!(counts(&server), [3, 3, 3, 3, 0]);
    }
    assert_eq!(server.created["Pod"], 6);
    assert_eq!(server.most_active, 3);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let (mut server, mut engine) = cluster(2);
    server.apply(deployment("web", 2, "one"));
    server.settle(&mut engine, &[0, 1, 2, 3]);
    let mut paused = deployment("web", 5, "two");
    paused["spec"]["paused"] = json!(true);
    server.apply(paused.clone());
    server.settle(&mut engine, &[0, 1, 2, 3]);
    assert_eq!(server.list("ReplicaSet").len(), 1);
    assert_eq!(counts(&server), [5, 0, 5, 5, 0]);
    let web = server.get("Deployment", "d", "web").unwrap();
    assert_eq!(condition(web, "Progressing")["reason"], "DeploymentPaused");
    paused["spec"]["paused"] = json!(false);
    server.apply(paused);
    server.settle(&mut engine, &[0, 1, 2, 3]);
    assert_eq!(counts(&server), [5, 5, 5, 5, 0]);
}

#[test]
fn without_nodes_it_says_why_and_then_times_out() {
    let (mut server, mut engine) = cluster(0);
    let mut web = deployment("web", 1, "one");
    web["spec"]["progressDeadlineSeconds"] = json!(5);
    server.apply(web);
    server.settle(&mut engine, &[0, 1, 2, 3]);
    let pods = server.list("Pod");
    let scheduled = condition(pods[0], "PodScheduled");
    assert_eq!(scheduled["reason"], "Unschedulable");
    assert_eq!(scheduled["message"], "no nodes available to schedule pods");
    let web = server.get("Deployment", "d", "web").unwrap();
    assert_eq!(
        condition(web, "Progressing")["reason"],
        "ProgressDeadlineExceeded"
    );
    assert_eq!(condition(web, "Available")["status"], "False");
    server.apply(node("node1"));
    server.settle(&mut engine, &[0, 1, 2, 3]);
    assert_eq!(counts(&server), [1, 1, 1, 1, 0]);
    let web = server.get("Deployment", "d", "web").unwrap();
    assert_eq!(condition(web, "Progressing")["reason"], "NewReplicaSetAvailable");
}

#[test]
fn minimum_ready_time_is_waited_for() {
    let (mut server, mut engine) = cluster(1);
    let mut web = deployment("web", 2, "one");
    web["spec"]["minReadySeconds"] = json!(10);
    server.apply(web);
    let before = server.now;
    server.settle(&mut engine, &[0, 1, 2, 3]);
    assert_eq!(counts(&server), [2, 2, 2, 2, 0]);
    assert!(server.now.duration_since(before).as_secs() >= 10);
}

#[test]
fn pods_of_a_lost_node_are_replaced() {
    let (mut server, mut engine) = cluster(2);
    server.apply(deployment("web", 4, "one"));
    server.settle(&mut engine, &[0, 1, 2, 3]);
    server.person_deletes("Node", "", "node1", Propagation::Background);
    server.settle(&mut engine, &[0, 1, 2, 3]);
    assert_eq!(counts(&server), [4, 4, 4, 4, 0]);
    assert!(
        server
            .list("Pod")
            .iter()
            .all(|p| p["spec"]["nodeName"] == "node2")
    );
}

#[test]
fn deletion_cascades_as_asked() {
    for propagation in [Propagation::Background, Propagation::Foreground] {
        let (mut server, mut engine) = cluster(2);
        server.apply(service("web"));
        server.apply(deployment("web", 3, "one"));
        server.settle(&mut engine, &[3, 1, 2, 0]);
        server.person_deletes("Deployment", "d", "web", propagation);
        server.person_deletes("Service", "d", "web", propagation);
        server.settle(&mut engine, &[2, 0, 3, 1]);
        for kind in [
            "Deployment",
            "ReplicaSet",
            "Pod",
            "Service",
            "EndpointSlice",
            "Endpoints",
        ] {
            assert!(
                server.list(kind).is_empty(),
                "{propagation:?}: {kind} left: {:?}",
                server.list(kind)
            );
        }
    }
}

#[test]
fn orphans_stay_and_are_adopted() {
    let (mut server, mut engine) = cluster(2);
    server.apply(deployment("web", 3, "one"));
    server.settle(&mut engine, &[0, 1, 2, 3]);
    server.person_deletes("Deployment", "d", "web", Propagation::Orphan);
    server.settle(&mut engine, &[2, 0, 3, 1]);
    assert!(server.list("Deployment").is_empty());
    assert!(server.list("ReplicaSet")[0]["metadata"]["ownerReferences"].is_null());
    server.apply(deployment("web", 3, "one"));
    server.settle(&mut engine, &[2, 0, 3, 1]);
    assert_eq!(counts(&server), [3, 3, 3, 3, 0]);
    assert_eq!((server.created["ReplicaSet"], server.created["Pod"]), (1, 3));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// However late the watches and however mixed the answers, nothing is made twice, and a rolling update keeps
    /// within its fences.
    #[test]
    fn any_order_of_news_leads_to_the_same(
        choices in proptest::collection::vec(any::<u8>(), 1..200),
        replicas in 1usize..12,
        grown in 1usize..12,
    ) {
        let (mut server, mut engine) = cluster(3);
        server.apply(service("web"));
        server.apply(deployment("web", replicas, "one"));
        server.settle(&mut engine, &choices);
        prop_assert_eq!(server.created["Pod"], replicas);
        prop_assert_eq!(server.most_active, replicas);
        prop_assert_eq!(server.created["EndpointSlice"], 1);
        server.watch_readiness();
        server.apply(deployment("web", replicas, "two"));
        server.settle(&mut engine, &choices);
        let (surge, missing) = (replicas.div_ceil(4), replicas / 4);
        prop_assert!(server.most_wanted <= (replicas + surge) as u64, "{} of {}", server.most_wanted, replicas);
        prop_assert!(server.least_ready.unwrap() >= replicas - missing, "{:?} of {}", server.least_ready, replicas);
        prop_assert_eq!(server.created["ReplicaSet"], 2);
        server.apply(deployment("web", grown, "two"));
        server.settle(&mut engine, &choices);
        let n = grown as i64;
        prop_assert_eq!(counts(&server), vec![n, n, n, n, 0]);
        let ranges: std::collections::BTreeSet<String> =
            server.list("Node").iter().map(|n| n["spec"]["podCIDR"].to_string()).collect();
        prop_assert_eq!(ranges.len(), 3);
        let endpoints = server.list("EndpointSlice")[0]["endpoints"].as_array().unwrap().len();
        prop_assert_eq!(endpoints, grown);
    }

    /// Edits that come while the ones before are still being carried out end as the last one alone would.
    #[test]
    fn edits_in_the_middle_of_others_end_as_the_last(
        edits in proptest::collection::vec((1usize..8, 0u8..3, proptest::collection::vec(any::<u8>(), 1..30)), 1..6),
    ) {
        let (mut server, mut engine) = cluster(2);
        let mut last = 0;
        for (replicas, image, choices) in &edits {
            server.apply(deployment("web", *replicas, &format!("image{image}")));
            server.run(&mut engine, choices, choices.len() * 2);
            last = *replicas;
        }
        server.settle(&mut engine, &[0, 1, 2, 3]);
        let n = last as i64;
        prop_assert_eq!(counts(&server), vec![n, n, n, n, 0]);
        prop_assert_eq!(server.list("Pod").len(), last);
    }
}
