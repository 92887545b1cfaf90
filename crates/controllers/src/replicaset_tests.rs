use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use kube::runtime::watcher::Event;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::action::Op;
use crate::world::Observation;

fn now() -> Timestamp {
    Timestamp::from_second(1_750_000_000).unwrap()
}

fn set(replicas: i32) -> ReplicaSet {
    serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": "web", "namespace": "d", "uid": "set", "generation": 3},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web", "tier": "front"}}, "spec": {"containers": []}},
        },
    }))
    .unwrap()
}

fn pod(name: &str, changes: Value) -> Pod {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "d", "uid": name, "labels": {"app": "web"},
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set", "controller": true}
            ],
        },
        "spec": {"containers": [], "nodeName": "n"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2025-06-15T10:00:00Z"}],
        },
    });
    merge(&mut pod, &changes);
    serde_json::from_value(pod).unwrap()
}

fn merge(base: &mut Value, patch: &Value) {
    match patch.as_object() {
        Some(fields) => fields
            .iter()
            .for_each(|(key, value)| merge(&mut base[key.as_str()], value)),
        None => *base = patch.clone(),
    }
}

fn actions(set: ReplicaSet, pods: Vec<Pod>, context: &Context) -> Plan {
    let mut world = World::watching([Kind::ReplicaSet, Kind::Pod]);
    world.observe(Observation::ReplicaSet(Event::Apply(set)));
    pods.into_iter()
        .for_each(|pod| drop(world.observe(Observation::Pod(Event::Apply(pod)))));
    ReplicaSets.plan(&world, &Key::new("d", "web"), context)
}

fn deleted(plan: &Plan) -> Vec<String> {
    let deletes = plan.actions.iter().filter(|a| matches!(a.op, Op::Delete { .. }));
    deletes.map(|a| a.target.key.name.clone()).collect()
}

#[test]
fn deletes_in_the_order_of_kubernetes() {
    let ready = |at: &str| json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}]}});
    let ordered = [
        pod("unassigned", json!({"spec": {"nodeName": null}})),
        pod("pending", json!({"status": {"phase": "Pending"}})),
        pod("not-ready", json!({"status": {"conditions": []}})),
        pod(
            "cheap",
            json!({"metadata": {"annotations": {DELETION_COST: "-5"}}}),
        ),
        pod("doubled-new", ready("2025-06-15T11:00:00Z")),
        pod("doubled", json!({})),
        pod("restarted", {
            let statuses =
                json!([{"name": "c", "restartCount": 2, "image": "", "imageID": "", "ready": true}]);
            json!({"spec": {"nodeName": "m"}, "status": {"containerStatuses": statuses}})
        }),
        pod(
            "young",
            json!({"spec": {"nodeName": "o"}, "metadata": {"creationTimestamp": "2025-06-15T09:00:00Z"}}),
        ),
        pod(
            "old",
            json!({"spec": {"nodeName": "p"}, "metadata": {"creationTimestamp": "2025-06-15T08:00:00Z"}}),
        ),
    ];
    for keep in 0..ordered.len() {
        let mut shuffled = ordered.to_vec();
        shuffled.rotate_left(keep);
        let plan = actions(set(keep as i32), shuffled, &Context::at(now()));
        let expected: Vec<&str> = ordered[..ordered.len() - keep]
            .iter()
            .filter_map(|p| p.metadata.name.as_deref())
            .collect();
        assert_eq!(deleted(&plan), expected);
    }
}

#[test]
fn no_more_than_a_thousand_pods_wait_for_a_node() {
    let waiting = |count: usize| -> Vec<Pod> {
        let unplaced = |n| {
            pod(
                &format!("w{n}"),
                json!({"spec": {"nodeName": null}, "status": {"phase": "Pending"}}),
            )
        };
        (0..count).map(unplaced).collect()
    };
    let created = |pods: Vec<Pod>, replicas: i32| {
        let plan = actions(set(replicas), pods, &Context::at(now()));
        plan.actions
            .iter()
            .filter(|a| matches!(a.op, Op::Create(_)))
            .count()
    };
    assert_eq!(created(waiting(0), 1_000_000), 500);
    assert_eq!(created(waiting(900), 1_000_000), 100);
    assert_eq!(created(waiting(1000), 1_000_000), 0);
    // Pods that have a node make no difference.
    let mut pods: Vec<Pod> = (0..2000).map(|n| pod(&format!("r{n}"), json!({}))).collect();
    pods.extend(waiting(10));
    assert_eq!(created(pods, 2100), 90);
}

#[test]
fn creates_what_is_missing_from_the_template() {
    let ended = pod("ended", json!({"status": {"phase": "Failed"}}));
    let going = pod(
        "going",
        json!({"metadata": {"deletionTimestamp": "2025-06-15T10:00:00Z"}}),
    );
    let plan = actions(
        set(3),
        vec![pod("one", json!({})), ended, going],
        &Context::at(now()),
    );
    let created: Vec<&Value> = plan
        .actions
        .iter()
        .filter_map(|a| {
            if let Op::Create(body) = &a.op {
                Some(body)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(created.len(), 2);
    assert_eq!(created[0]["metadata"]["generateName"], "web-");
    assert_eq!(
        created[0]["metadata"]["labels"],
        json!({"app": "web", "tier": "front"})
    );
    assert_eq!(
        created[0]["metadata"]["ownerReferences"][0]["blockOwnerDeletion"],
        true
    );
    let status = plan.actions.iter().find_map(|a| match &a.op {
        Op::Patch(Part::Status, body) => Some(body["status"].clone()),
        _ => None,
    });
    let status = status.unwrap();
    assert_eq!(
        (&status["replicas"], &status["terminatingReplicas"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        (&status["readyReplicas"], &status["observedGeneration"]),
        (&json!(1), &json!(3))
    );
    assert!(status.get("fullyLabeledReplicas").is_none());
}

#[test]
fn a_refused_template_is_tried_with_one_pod_and_told() {
    let context = Context {
        error: Some("no".into()),
        failures: 1,
        now: now(),
    };
    let plan = actions(set(50), vec![], &context);
    assert_eq!(
        plan.actions
            .iter()
            .filter(|a| matches!(a.op, Op::Create(_)))
            .count(),
        1
    );
    let told = plan.actions.iter().any(|a| match &a.op {
        Op::Patch(Part::Status, body) => body["status"]["conditions"][0]["message"] == "no",
        _ => false,
    });
    assert!(told);
}

#[test]
fn adopts_and_releases() {
    let alone = pod("alone", json!({"metadata": {"ownerReferences": null}}));
    let strange = pod("strange", json!({"metadata": {"labels": {"app": "db"}}}));
    let others = pod(
        "others",
        json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "x", "controller": true}]}}),
    );
    let plan = actions(set(1), vec![alone, strange, others], &Context::at(now()));
    let patches: Vec<_> = plan
        .actions
        .iter()
        .filter_map(|a| match &a.op {
            Op::Patch(Part::Main, body) => Some((
                a.target.key.name.as_str(),
                body["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len),
                a.guards.len(),
            )),
            _ => None,
        })
        .collect();
    assert_eq!(patches, [("alone", 1, 1), ("strange", 0, 0)]);
    assert!(deleted(&plan).is_empty());
}

#[test]
fn waits_for_the_minimum_ready_time() {
    let mut set = set(1);
    set.spec.as_mut().unwrap().min_ready_seconds = Some(30);
    let since = Timestamp::from_second(now().as_second() - 10).unwrap();
    let ready = json!([{"type": "Ready", "status": "True", "lastTransitionTime": since.to_string()}]);
    let plan = actions(
        set,
        vec![pod("a", json!({"status": {"conditions": ready}}))],
        &Context::at(now()),
    );
    assert_eq!(
        plan.again,
        Some(Timestamp::from_second(now().as_second() + 20).unwrap())
    );
}

proptest! {
    #[test]
    fn ends_with_as_many_as_wanted(wanted in 0i32..20, there in 0usize..20, unready in 0usize..20) {
        let pods = (0..there).map(|i| {
            let conditions = if i < unready { json!([]) } else { json!([{"type": "Ready", "status": "True"}]) };
            pod(&format!("p{i}"), json!({"status": {"conditions": conditions}}))
        });
        let plan = actions(set(wanted), pods.collect(), &Context::at(now()));
        let created = plan.actions.iter().filter(|a| matches!(a.op, Op::Create(_))).count();
        let gone = deleted(&plan);
        prop_assert_eq!(there + created - gone.len(), wanted as usize);
        prop_assert!(created == 0 || gone.is_empty());
        // No ready pod goes while one that is not stays.
        let ready_goes = gone.iter().any(|name| name[1..].parse::<usize>().unwrap() >= unready);
        prop_assert!(!ready_goes || gone.len() >= unready.min(there));
    }
}

#[test]
fn the_template_may_be_missing_its_metadata() {
    let mut bare = set(1);
    bare.spec.as_mut().unwrap().template = Some(PodTemplateSpec {
        metadata: None,
        spec: Some(PodSpec::default()),
    });
    let plan = actions(bare, vec![], &Context::at(now()));
    assert!(plan.actions.iter().any(|a| matches!(a.op, Op::Create(_))));
}
