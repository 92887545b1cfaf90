use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::world::Observation;

fn node(name: &str, changes: Value) -> Value {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"pods": "110"}},
    });
    merge(&mut node, &changes);
    node
}

fn pod(name: &str, changes: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "d", "uid": name, "resourceVersion": "1", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c"}], "schedulerName": "default-scheduler"}, "status": {"phase": "Pending"},
    });
    merge(&mut pod, &changes);
    pod
}

fn merge(base: &mut Value, patch: &Value) {
    match patch.as_object() {
        Some(fields) => fields
            .iter()
            .for_each(|(key, value)| merge(&mut base[key.as_str()], value)),
        None => *base = patch.clone(),
    }
}

/// Where the pods go, or why nowhere, by name.
fn placed(objects: &[Value]) -> BTreeMap<String, String> {
    let mut world = World::default();
    for object in objects {
        world.observe(match object["kind"].as_str().unwrap() {
            "Node" => Observation::Node(Event::Apply(serde_json::from_value(object.clone()).unwrap())),
            "Pod" => Observation::Pod(Event::Apply(serde_json::from_value(object.clone()).unwrap())),
            "Service" => Observation::Service(Event::Apply(serde_json::from_value(object.clone()).unwrap())),
            _ => Observation::Namespace(Event::Apply(serde_json::from_value(object.clone()).unwrap())),
        });
    }
    let plan = Scheduler.plan(&world, &Key::all(), &Context::at(jiff::Timestamp::UNIX_EPOCH));
    let outcome = |action: Action| match action.op {
        Op::Bind(node) => (action.target.key.name, node),
        _ => (action.target.key.name, action.note.unwrap().message),
    };
    plan.actions.into_iter().map(outcome).collect()
}

fn one(objects: &[Value]) -> String {
    placed(objects).remove("p").unwrap()
}

#[test]
fn says_why_nothing_fits() {
    let tainted = json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
    let objects = [
        node("a", tainted),
        node("b", json!({"spec": {"unschedulable": true}})),
        node("c", json!({"status": {"conditions": []}})),
        node("d", json!({})),
        node(
            "e",
            json!({"metadata": {"labels": {"disk": "ssd"}}, "status": {"allocatable": {"cpu": "1"}}}),
        ),
        pod(
            "p",
            json!({"spec": {
                "nodeSelector": {"disk": "ssd"},
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}],
            }}),
        ),
    ];
    assert_eq!(
        one(&objects),
        "0/5 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector, \
         1 node(s) had untolerated taint {k: v}, 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }, \
         1 node(s) were unschedulable. preemption: 0/5 nodes are available: \
         1 No preemption victims found for incoming pod, 4 Preemption is not helpful for scheduling."
    );
}

#[test]
fn tolerations_and_selectors_let_in() {
    let taints = json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]);
    let nodes = [
        node("a", json!({"spec": {"taints": taints}})),
        node("b", json!({"spec": {"unschedulable": true}})),
    ];
    for (toleration, expected) in [
        (json!({"key": "k", "operator": "Exists"}), "a"),
        (json!({"key": "k", "value": "v", "effect": "NoSchedule"}), "a"),
        (
            json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}),
            "b",
        ),
    ] {
        let pod = pod("p", json!({"spec": {"tolerations": [toleration]}}));
        assert_eq!(one(&[nodes[0].clone(), nodes[1].clone(), pod]), expected);
    }
    let terms = json!([
        {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["none"]}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["z"]}]},
    ]);
    let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
    let pod = pod("p", json!({"spec": {"affinity": {"nodeAffinity": required}}}));
    assert_eq!(one(&[node("y", json!({})), node("z", json!({})), pod]), "z");
}

#[test]
fn a_burst_is_spread_over_nodes_and_zones() {
    let zone = |zone: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "d"},
        "spec": {"selector": {"app": "web"}}});
    let mut objects = vec![
        service,
        node("a", zone("x")),
        node("b", zone("x")),
        node("c", zone("y")),
    ];
    objects.extend((0..2).map(|i| pod(&format!("p{i}"), json!({}))));
    let two: BTreeSet<String> = placed(&objects).into_values().collect();
    assert_eq!(two, BTreeSet::from(["a".to_owned(), "c".to_owned()]));
    objects.extend((2..30).map(|i| pod(&format!("p{i}"), json!({}))));
    let placed = placed(&objects);
    for node in ["a", "b", "c"] {
        assert_eq!(placed.values().filter(|n| *n == node).count(), 10);
    }
}

#[test]
fn keeps_apart_and_together() {
    let term =
        json!({"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"});
    let rule = json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]});
    let apart = json!({"spec": {"affinity": {"podAntiAffinity": rule}}});
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let mut objects = nodes.to_vec();
    objects.extend((0..3).map(|i| pod(&format!("p{i}"), apart.clone())));
    let outcome = placed(&objects);
    assert_eq!((outcome["p0"].as_str(), outcome["p1"].as_str()), ("a", "b"));
    assert!(
        outcome["p2"].starts_with("0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules")
    );
    // A plain pod keeps away too where one that wants to be alone is.
    let mut objects = nodes.to_vec();
    objects.push(pod(
        "there",
        json!({"spec": {"nodeName": "a", "affinity": apart["spec"]["affinity"]}}),
    ));
    objects.push(pod("p", json!({})));
    assert_eq!(one(&objects), "b");
    let together = json!({"spec": {"affinity": {"podAffinity": rule}}});
    let mut objects = nodes.to_vec();
    objects.extend((0..3).map(|i| pod(&format!("p{i}"), together.clone())));
    let together: BTreeSet<String> = placed(&objects).into_values().collect();
    assert_eq!(together.len(), 1);
}

#[test]
fn topology_spread_is_kept() {
    let constraint = json!([{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let full = json!({"status": {"allocatable": {"pods": "1"}}});
    let mut objects = vec![node("a", json!({})), node("b", full)];
    let spread = json!({"spec": {"topologySpreadConstraints": constraint}});
    objects.extend((0..4).map(|i| pod(&format!("p{i}"), spread.clone())));
    let outcome = placed(&objects);
    assert_eq!(outcome.values().filter(|n| *n == "a").count(), 2);
    assert_eq!(outcome.values().filter(|n| *n == "b").count(), 1);
    let message = &outcome["p3"];
    assert!(
        message.contains("1 Too many pods, 1 node(s) didn't match pod topology spread constraints"),
        "{message}"
    );
}

#[test]
fn leaves_alone_what_is_not_its_own() {
    let objects = [
        node("a", json!({})),
        pod("other", json!({"spec": {"schedulerName": "mine"}})),
        pod("gated", json!({"spec": {"schedulingGates": [{"name": "g"}]}})),
        pod("bound", json!({"spec": {"nodeName": "a"}})),
        pod(
            "going",
            json!({"metadata": {"deletionTimestamp": "2025-06-15T10:00:00Z"}}),
        ),
    ];
    assert!(placed(&objects).is_empty());
}

#[test]
fn host_ports_are_not_shared() {
    let ports =
        json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
    let objects = [node("a", json!({})), pod("p0", ports.clone()), pod("p1", ports)];
    let outcome = placed(&objects);
    assert_eq!(outcome["p0"], "a");
    assert!(outcome["p1"].contains("1 node(s) didn't have free ports for the requested pod ports"));
}
