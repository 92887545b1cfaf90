//! Objects made at random.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::kinds::{Resource, builtin};

/// Values out of few, so that random objects are valid often and wrong in many ways.
fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..70000).prop_map(Value::from),
        prop_oneof![
            Just(""),
            Just("a"),
            Just("TCP"),
            Just("Always"),
            Just("ClusterIP"),
            Just("10.0.0.1"),
            Just("None"),
            Just("10%"),
            Just("A b"),
            Just("1Gi"),
        ]
        .prop_map(Value::from),
    ]
}

const FIELDS: &[&str] = &[
    "name",
    "spec",
    "metadata",
    "labels",
    "containers",
    "initContainers",
    "ports",
    "port",
    "protocol",
    "containerPort",
    "type",
    "clusterIP",
    "selector",
    "template",
    "replicas",
    "strategy",
    "rollingUpdate",
    "volumes",
    "emptyDir",
    "ingress",
    "from",
    "ipBlock",
    "cidr",
    "endpoints",
    "addresses",
    "addressType",
    "data",
    "status",
    "env",
    "livenessProbe",
    "httpGet",
    "tolerations",
    "matchLabels",
    "hostNetwork",
    "resources",
    "limits",
    "cpu",
];

fn tree() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(FIELDS), inner), 0..6).prop_map(|fields| fields
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<Value>()),
        ]
    })
}

proptest! {
    /// Whatever is sent: nothing panics, defaulting twice is defaulting once, and what is valid stays valid.
    #[test]
    fn any_object_is_judged_and_defaulting_is_idempotent(
        at in 0..builtin().len(), spec in tree(), data in tree(),
    ) {
        let kind = Resource::Builtin(&builtin()[at]);
        let mut object = json!({"metadata": {"name": "x"}, "spec": spec, "data": data});
        if kind.namespaced() {
            object["metadata"]["namespace"] = "default".into();
        }
        if kind.decode(&mut object).is_err() {
            return Ok(());
        }
        kind.default(&mut object);
        let mut again = object.clone();
        kind.default(&mut again);
        prop_assert_eq!(&object, &again);
        prop_assert_eq!(kind.decode(&mut again).unwrap(), Vec::<String>::new());
        prop_assert_eq!(&object, &again, "a defaulted object decodes to itself");
        kind.prepare_create(&mut object);
        if kind.validate_create(&object).is_empty() {
            let mut update = object.clone();
            kind.default(&mut update);
            kind.prepare_update(&mut update, &object);
            prop_assert_eq!(&update, &object, "an update that changes nothing changes nothing");
            prop_assert_eq!(kind.validate_update(&update, &object), vec![]);
        }
        kind.row(&object, jiff::Timestamp::UNIX_EPOCH);
    }
}
