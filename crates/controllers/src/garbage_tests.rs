use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;

use super::*;
use crate::resource::Resource;
use crate::world::Observation;

fn object(name: &str, owners: &[(&str, &str)], finalizers: &[&str], deleting: bool) -> PartialObjectMeta {
    let owner = |(kind, name): &(&str, &str)| OwnerReference {
        api_version: if *kind == "Node" {
            "v1".into()
        } else {
            "apps/v1".into()
        },
        kind: (*kind).into(),
        name: (*name).into(),
        uid: (*name).into(),
        block_owner_deletion: Some(true),
        controller: None,
    };
    let metadata = ObjectMeta {
        name: Some(name.into()),
        namespace: Some("d".into()),
        uid: Some(name.into()),
        resource_version: Some("7".into()),
        owner_references: Some(owners.iter().map(owner).collect()),
        finalizers: Some(finalizers.iter().map(|f| (*f).to_owned()).collect()),
        deletion_timestamp: deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
        ..ObjectMeta::default()
    };
    PartialObjectMeta {
        types: None,
        metadata,
        _phantom: std::marker::PhantomData,
    }
}

fn plan(sets: Vec<PartialObjectMeta>, pods: Vec<PartialObjectMeta>, of: &str) -> Vec<Action> {
    let mut world = World::watching([Kind::Everything]);
    let resources: Vec<Arc<Resource>> = [
        Resource::of::<Deployment>(),
        Resource::of::<ReplicaSet>(),
        Resource::of::<Pod>(),
        Resource::of::<Node>(),
    ]
    .map(Arc::new)
    .to_vec();
    world.observe(Observation::Resources(resources.clone()));
    let lists = [Vec::new(), sets, pods, Vec::new()];
    for (resource, list) in resources.iter().zip(lists) {
        world.observe(Observation::Other(resource.clone(), Event::Init));
        for object in list {
            world.observe(Observation::Other(resource.clone(), Event::InitApply(object)));
        }
        world.observe(Observation::Other(resource.clone(), Event::InitDone));
    }
    assert!(world.synced(Kind::Everything));
    GarbageCollector
        .plan(
            &world,
            &Key::cluster(of),
            &Context::at(jiff::Timestamp::UNIX_EPOCH),
        )
        .actions
}

fn propagation(actions: &[Action]) -> Option<Propagation> {
    match actions {
        [
            Action {
                op: Op::Delete { propagation, .. },
                ..
            },
        ] => *propagation,
        _ => None,
    }
}

#[test]
fn deletes_when_every_owner_is_gone_and_asks_first() {
    let actions = plan(
        vec![],
        vec![object("p", &[("ReplicaSet", "a"), ("Node", "n")], &[], false)],
        "p",
    );
    assert_eq!(propagation(&actions), Some(Propagation::Background));
    let [Guard::Absent(set), Guard::Absent(node)] = actions[0].guards.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!((set.namespace(), node.namespace()), (Some("d"), None));
}

#[test]
fn keeps_what_has_an_owner_and_drops_the_other_references() {
    let set = || object("a", &[], &[], false);
    assert!(
        plan(
            vec![set()],
            vec![object("p", &[("ReplicaSet", "a")], &[], false)],
            "p"
        )
        .is_empty()
    );
    let actions = plan(
        vec![set()],
        vec![object(
            "p",
            &[("ReplicaSet", "a"), ("ReplicaSet", "b")],
            &[],
            false,
        )],
        "p",
    );
    let [
        Action {
            op: Op::Patch(_, patch),
            guards,
            ..
        },
    ] = actions.as_slice()
    else {
        panic!("{actions:?}")
    };
    assert_eq!(
        (
            patch["metadata"]["ownerReferences"][0]["name"].as_str(),
            guards.len()
        ),
        (Some("a"), 1)
    );
}

#[test]
fn knows_nothing_of_owners_of_unknown_kinds() {
    assert!(plan(vec![], vec![object("p", &[("Widget", "w")], &[], false)], "p").is_empty());
}

#[test]
fn foreground_waits_for_the_blocking() {
    let going = || object("a", &[], &[FOREGROUND], true);
    let dependent = |deleting| object("p", &[("ReplicaSet", "a")], &[], deleting);
    assert!(plan(vec![going()], vec![dependent(true)], "a").is_empty());
    assert_eq!(
        propagation(&plan(vec![going()], vec![dependent(false)], "p")),
        Some(Propagation::Background)
    );
    let middle = object("b", &[("ReplicaSet", "a")], &[], false);
    let below = object("p", &[("ReplicaSet", "b")], &[], false);
    assert_eq!(
        propagation(&plan(vec![going(), middle], vec![below], "b")),
        Some(Propagation::Foreground)
    );
    let [
        Action {
            op: Op::Patch(_, patch),
            ..
        },
    ] = &plan(vec![going()], vec![], "a")[..]
    else {
        panic!()
    };
    assert!(patch["metadata"]["finalizers"].is_null());
}

#[test]
fn orphans_lose_their_reference_before_the_owner_goes() {
    let going = || object("a", &[], &[ORPHAN, "mine"], true);
    let actions = plan(
        vec![going()],
        vec![object("p", &[("ReplicaSet", "a")], &[], false)],
        "a",
    );
    assert_eq!(actions[0].target.key.name, "p");
    let [
        Action {
            op: Op::Patch(_, patch),
            ..
        },
    ] = &plan(vec![going()], vec![], "a")[..]
    else {
        panic!()
    };
    assert_eq!(patch["metadata"]["finalizers"], json!(["mine"]));
}
