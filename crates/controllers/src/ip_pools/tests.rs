use kube::runtime::watcher::Event;
use serde_json::Value;

use super::*;
use crate::action::Op;
use crate::world::Observation;

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn world(pool: Value, pods: usize) -> World {
    let mut world = World::watching([Kind::IPPool, Kind::Node, Kind::Namespace, Kind::Pod]);
    world.observe(Observation::IPPool(Event::Apply(from(pool))));
    let node = json!({
        "metadata": {"name": "n1", "resourceVersion": "2"}, "spec": {"podCIDRs": ["10.244.0.0/24"]},
    });
    world.observe(Observation::Node(Event::Apply(from(node))));
    let namespace = json!({"metadata": {"name": "web", "resourceVersion": "3"}});
    world.observe(Observation::Namespace(Event::Apply(from(namespace))));
    for n in 0..pods {
        let pod = json!({
            "metadata": {"name": format!("p{n}"), "namespace": "web", "resourceVersion": "4"},
            "spec": {"nodeName": "n1", "containers": []},
        });
        world.observe(Observation::Pod(Event::Apply(from(pod))));
    }
    world
}

fn plan(world: &World) -> Plan {
    let now = "2026-01-01T00:10:00Z".parse().unwrap();
    IpPools::new(vec!["10.244.0.0/16".parse().unwrap()], 600).plan(world, &Key::all(), &Context::at(now))
}

fn pool(finalizers: &[&str], spec: Value, status: Value) -> Value {
    json!({
        "apiVersion": "podnet.io/v1alpha1", "kind": "IPPool",
        "metadata": {"name": "p", "resourceVersion": "1", "finalizers": finalizers}, "spec": spec, "status": status,
    })
}

fn patch(plan: &Plan) -> (Part, &Value) {
    match &plan.actions[..] {
        [action] => match &action.op {
            Op::Patch(part, patch) => (*part, patch),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pool_is_kept_from_vanishing_before_a_block_of_it_is_given() {
    let world = world(pool(&[], json!({"ranges": ["10.90.0.0/24"]}), Value::Null), 1);
    let plan = plan(&world);
    let (part, patch) = patch(&plan);
    assert_eq!(part, Part::Main);
    assert_eq!(patch["metadata"]["finalizers"], json!([FINALIZER]));
    assert_eq!(patch["metadata"]["resourceVersion"], "1");
}

#[test]
fn blocks_are_written_in_the_version_that_was_read() {
    let spec = json!({"ranges": ["10.90.0.0/29"], "blockPrefixLength": {"ipv4": 30}});
    let one = world(pool(&[FINALIZER], spec.clone(), Value::Null), 1);
    let one = plan(&one);
    let (part, written) = patch(&one);
    assert_eq!(
        (part, &written["metadata"]["resourceVersion"]),
        (Part::Status, &json!("1"))
    );
    assert_eq!(
        written["status"]["blocks"],
        json!([{"range": "10.90.0.0/30", "node": "n1"}])
    );
    assert_eq!(written["status"]["conditions"][0]["reason"], "Serving");
    let again = world(pool(&[FINALIZER], spec.clone(), written["status"].clone()), 1);
    assert!(plan(&again).actions.is_empty(), "what is so is not written");

    let many = plan(&world(pool(&[FINALIZER], spec, Value::Null), 9));
    let condition = &patch(&many).1["status"]["conditions"][0];
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("Exhausted"))
    );
    let message = condition["message"].as_str().unwrap();
    assert!(
        message.starts_with("no block is left for pods on n1: 2 blocks are held by 1 nodes"),
        "{message}"
    );
    assert!(many.actions[0].note.as_ref().is_some_and(|note| note.warning));
}

#[test]
fn a_pool_that_cannot_be_says_why_in_its_status_and_as_an_event() {
    let world = world(
        pool(&[FINALIZER], json!({"ranges": ["10.244.9.0/24"]}), Value::Null),
        1,
    );
    let plan = plan(&world);
    let condition = &patch(&plan).1["status"]["conditions"][0];
    let why =
        "spec.ranges: 10.244.9.0/24 overlaps 10.244.0.0/16, the cluster's range; nothing is handed out of it";
    assert_eq!(
        (&condition["reason"], &condition["message"]),
        (&json!("Invalid"), &json!(why))
    );
    assert_eq!(
        plan.actions[0].note.as_ref().map(|note| note.message.as_str()),
        Some(why)
    );
}

#[test]
fn a_deleted_pool_goes_when_nobody_holds_a_block() {
    let deleted = |blocks: Value| {
        let mut object = pool(
            &[FINALIZER],
            json!({"ranges": ["10.90.0.0/24"]}),
            json!({"blocks": blocks}),
        );
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        plan(&world(object, 1))
    };
    let held = deleted(json!([{"range": "10.90.0.0/26", "node": "n1"}]));
    assert_eq!(patch(&held).1["status"]["conditions"][0]["reason"], "Deleting");
    let empty = deleted(json!([]));
    assert_eq!(patch(&empty).1["metadata"]["finalizers"], json!([]));
}

#[test]
fn blocks_of_a_deleted_node_come_back_after_the_grace_period() {
    let blocks =
        |since: Value| json!({"blocks": [{"range": "10.90.0.0/26", "node": "n9", "nodeGoneSince": since}]});
    let spec = json!({"ranges": ["10.90.0.0/26"]});
    let new = plan(&world(pool(&[FINALIZER], spec.clone(), blocks(Value::Null)), 1));
    assert_eq!(
        patch(&new).1["status"]["blocks"][0]["nodeGoneSince"],
        "2026-01-01T00:10:00Z"
    );
    assert_eq!(new.again, Some("2026-01-01T00:20:00Z".parse().unwrap()));
    let young = plan(&world(
        pool(&[FINALIZER], spec.clone(), blocks(json!("2026-01-01T00:00:01Z"))),
        1,
    ));
    assert_eq!(patch(&young).1["status"].get("blocks"), None, "still n9's");
    let old = plan(&world(
        pool(&[FINALIZER], spec, blocks(json!("2026-01-01T00:00:00Z"))),
        1,
    ));
    assert_eq!(
        patch(&old).1["status"]["blocks"],
        json!([{"range": "10.90.0.0/26", "node": "n1"}])
    );
}
