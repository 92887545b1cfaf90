use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::action::Op;
use crate::world::Observation;

const NOW: i64 = 1_750_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).unwrap()
}

fn node(ready: &str, heartbeat: i64, spec: Value) -> Node {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "resourceVersion": "1"}, "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": at(heartbeat).to_string()}]},
    }))
    .unwrap()
}

fn plan(node: Node, renewed: Option<i64>) -> Plan {
    let mut world = World::default();
    world.observe(Observation::Node(Event::Apply(node)));
    if let Some(renewed) = renewed {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "n", "namespace": LEASES},
            "spec": {"renewTime": format!("{:.6}", at(renewed))},
        });
        world.observe(Observation::Lease(Event::Apply(
            serde_json::from_value(lease).unwrap(),
        )));
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d"},
        "spec": {"nodeName": "n", "containers": []},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    world.observe(Observation::Pod(Event::Apply(
        serde_json::from_value(pod).unwrap(),
    )));
    NodeLifecycle.plan(&world, &Key::cluster("n"), &Context::at(at(0)))
}

fn patches(plan: &Plan) -> Vec<(&str, &Value)> {
    plan.actions
        .iter()
        .filter_map(|a| match &a.op {
            Op::Patch(_, body) => Some((a.target.key.name.as_str(), body)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_live_node_is_looked_at_when_its_word_ends() {
    let fresh = plan(node("True", -30, json!({})), None);
    assert_eq!((fresh.actions.len(), fresh.again), (0, Some(at(10))));
    // The lease counts where the report is old.
    let leased = plan(node("True", -300, json!({})), Some(-1));
    assert_eq!((leased.actions.len(), leased.again), (0, Some(at(39))));
}

#[test]
fn a_silent_node_is_unknown_then_tainted_and_its_pods_not_ready() {
    let silent = plan(node("True", -41, json!({})), Some(-40));
    let [(_, status)] = patches(&silent)[..] else {
        panic!("{silent:?}")
    };
    assert_eq!(status["status"]["conditions"][0]["reason"], "NodeStatusUnknown");
    let known = plan(node("Unknown", -41, json!({})), Some(-40));
    let [("p", pod), ("n", node)] = patches(&known)[..] else {
        panic!("{known:?}")
    };
    assert_eq!(pod["status"]["conditions"][0]["status"], "False");
    let taints: Vec<_> = node["spec"]["taints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (&t["key"], &t["effect"]))
        .collect();
    assert_eq!(
        taints,
        [
            (&json!(UNREACHABLE), &json!("NoSchedule")),
            (&json!(UNREACHABLE), &json!("NoExecute"))
        ]
    );
}

#[test]
fn taints_follow_the_node_and_leave_those_of_others() {
    let mine = json!({"key": "mine", "effect": "NoSchedule"});
    let old = json!({"key": UNREACHABLE, "effect": "NoExecute"});
    let back = plan(
        node("True", 0, json!({"taints": [mine, old], "unschedulable": true})),
        None,
    );
    let [(_, patch)] = patches(&back)[..] else {
        panic!("{back:?}")
    };
    let keys: Vec<_> = patch["spec"]["taints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["key"])
        .collect();
    assert_eq!(keys, [&json!("mine"), &json!(UNSCHEDULABLE)]);
    let failing = plan(node("False", 0, json!({})), None);
    let [(_, patch)] = patches(&failing)[..] else {
        panic!("{failing:?}")
    };
    assert_eq!(patch["spec"]["taints"][0]["key"], NOT_READY);
}
