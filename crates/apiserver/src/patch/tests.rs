use proptest::prelude::*;
use serde_json::{Value, json};

use super::merge;
use super::strategic;
use crate::kinds::strategic::ListStrategy;

/// The schema of the tests: containers and ports by key, finalizers as a set.
fn schema(path: &[&str]) -> ListStrategy {
    match path {
        [.., "containers"] => ListStrategy::MergeByKey("name"),
        [.., "ports"] => ListStrategy::MergeByKey("containerPort"),
        [.., "finalizers"] => ListStrategy::MergeSet,
        _ => ListStrategy::Replace,
    }
}

fn smp(original: Value, patch: Value) -> Value {
    strategic::merge(original, &patch, &schema).unwrap()
}

#[test]
fn rfc7386_examples() {
    for (target, patch, want) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (
            json!({"a": {"b": "c"}}),
            json!({"a": {"b": "d", "c": null}}),
            json!({"a": {"b": "d"}}),
        ),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!(["a", "b"]), json!({"a": "b"}), json!({"a": "b"})),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (
            json!({}),
            json!({"a": {"bb": {"ccc": null}}}),
            json!({"a": {"bb": {}}}),
        ),
    ] {
        assert_eq!(merge(target, &patch), want);
    }
}

#[test]
fn lists_merge_by_key_and_new_items_come_first() {
    let original = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]});
    let patched = smp(
        original,
        json!({"containers": [{"name": "c"}, {"name": "b", "image": "2", "x": null}]}),
    );
    let want =
        json!({"containers": [{"name": "c"}, {"name": "a", "image": "1"}, {"name": "b", "image": "2"}]});
    assert_eq!(patched, want);
}

#[test]
fn element_order_is_taken() {
    let original = json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "server"}]});
    let patch = json!({
        "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "c"}],
        "containers": [{"name": "c", "image": "i"}],
    });
    let names: Vec<_> = smp(original, patch)["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    let position = |name: &str| names.iter().position(|n| n == name).unwrap();
    assert!(
        position("b") < position("a") && position("a") < position("c") && names.len() == 4,
        "{names:?}"
    );
}

#[test]
fn directives() {
    let original = json!({"containers": [{"name": "a"}, {"name": "b"}], "m": {"x": 1, "y": 2}, "finalizers": ["p", "q"]});
    let gone = smp(
        original.clone(),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
    );
    assert_eq!(gone["containers"], json!([{"name": "b"}]));
    let replaced = smp(
        original.clone(),
        json!({"containers": [{"name": "z"}, {"$patch": "replace"}]}),
    );
    assert_eq!(replaced["containers"], json!([{"name": "z"}]));
    let map = smp(original.clone(), json!({"m": {"$patch": "replace", "z": 3}}));
    assert_eq!(map["m"], json!({"z": 3}));
    assert_eq!(
        smp(original.clone(), json!({"m": {"$patch": "delete"}}))["m"],
        json!({})
    );
    let retained = smp(
        original.clone(),
        json!({"m": {"$retainKeys": ["y", "z"], "z": 3}}),
    );
    assert_eq!(retained["m"], json!({"y": 2, "z": 3}));
    let set = smp(
        original.clone(),
        json!({"finalizers": ["r"], "$deleteFromPrimitiveList/finalizers": ["p"]}),
    );
    let mut set: Vec<_> = set["finalizers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap())
        .collect();
    set.sort_unstable();
    assert_eq!(set, ["q", "r"]);
    let bad = strategic::merge(original, &json!({"containers": [{"image": "x"}]}), &schema);
    assert!(
        bad.unwrap_err()
            .contains("does not contain declared merge key: name")
    );
}

fn refused(original: Value, patch: Value) -> String {
    strategic::merge(original, &patch, &schema).unwrap_err()
}

#[test]
fn a_replaced_list_is_what_the_patch_has() {
    let original = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}]});
    // Not even two items of the patch are merged with each other, and none needs the key.
    let patch = json!({"containers": [{"name": "a", "x": 1}, {"$patch": "replace"}, {"name": "a", "y": null},
        {"image": "2"}, {"name": "gone", "$patch": "delete"}]});
    let want = json!([{"name": "a", "x": 1}, {"name": "a"}, {"image": "2"}]);
    assert_eq!(smp(original.clone(), patch)["containers"], want);
    let emptied = smp(original, json!({"containers": [{"$patch": "replace"}]}));
    assert_eq!(emptied["containers"], json!([]));
}

#[test]
fn an_item_can_be_deleted_and_given_anew() {
    let original = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b"}]});
    let patch = json!({"containers": [{"name": "a", "image": "2"}, {"name": "a", "$patch": "delete"}]});
    let merged = smp(original.clone(), patch)["containers"].clone();
    assert_eq!(merged, json!([{"name": "a", "image": "2"}, {"name": "b"}]));
    let untouched = smp(
        original.clone(),
        json!({"containers": [{"name": "c", "$patch": "delete"}]}),
    );
    assert_eq!(untouched, original);
    let nested = json!({"containers": [{"name": "a", "$patch": "merge", "ports": [
        {"containerPort": 1}, {"$patch": "replace"}]}]});
    let ports = smp(
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 2}]}]}),
        nested,
    );
    assert_eq!(
        ports["containers"],
        json!([{"name": "a", "ports": [{"containerPort": 1}]}])
    );
}

#[test]
fn what_a_patch_gives_follows_the_order_it_sets() {
    let original = json!({"containers": [{"name": "a"}, {"name": "b"}], "finalizers": ["p"]});
    let patch = |order: Value| {
        json!({"$setElementOrder/containers": order,
            "containers": [{"name": "b", "x": 1}, {"name": "c"}, {"name": "a", "$patch": "delete"}]})
    };
    let merged = smp(original.clone(), patch(json!([{"name": "b"}, {"name": "c"}])));
    assert_eq!(
        merged["containers"],
        json!([{"name": "b", "x": 1}, {"name": "c"}])
    );
    for order in [json!([{"name": "c"}, {"name": "b"}]), json!([{"name": "b"}])] {
        let error = refused(original.clone(), patch(order));
        assert!(
            error.contains("doesn't match $setElementOrder/containers"),
            "{error}"
        );
    }
    let set = json!({"$setElementOrder/finalizers": ["q", "p"], "finalizers": ["q"]});
    assert_eq!(smp(original, set)["finalizers"], json!(["q", "p"]));
}

#[test]
fn directives_that_make_no_sense_are_refused() {
    let original = json!({"containers": [{"name": "a"}], "m": {"x": 1}, "finalizers": ["p"]});
    for (patch, cause) in [
        (
            json!({"m": {"$patch": "destroy"}}),
            "unknown patch type found: destroy",
        ),
        (json!({"m": {"$patch": 1}}), "unknown patch type found"),
        (
            json!({"containers": [{"name": "a", "$patch": "destroy"}]}),
            "unknown patch type found: destroy",
        ),
        (
            json!({"containers": [{"$patch": "delete"}]}),
            "delete patch type with no merge key",
        ),
        (json!({"m": {"$retainKeys": "x"}}), "$retainKeys: expected a list"),
        (
            json!({"m": {"$retainKeys": ["x"], "y": 1}}),
            "key y that is not in $retainKeys",
        ),
        (
            json!({"$deleteFromPrimitiveList/finalizers": "p"}),
            "$deleteFromPrimitiveList/finalizers: expected a list",
        ),
        (
            json!({"$setElementOrder/finalizers": "p"}),
            "$setElementOrder/finalizers: expected a list",
        ),
    ] {
        let error = refused(original.clone(), patch);
        assert!(error.contains(cause), "{error} lacks {cause}");
    }
    // What is not there has nothing to be deleted from.
    let kept = smp(
        original.clone(),
        json!({"$deleteFromPrimitiveList/none": ["p"], "m": {"$retainKeys": ["x"], "y": null}}),
    );
    assert_eq!(kept, original);
}

#[test]
fn what_is_new_carries_no_directives() {
    let patched = smp(
        json!({}),
        json!({"a": {"$retainKeys": ["b"], "b": {"c": null, "d": 1}}, "l": [{"x": null}]}),
    );
    assert_eq!(patched, json!({"a": {"b": {"d": 1}}, "l": [{}]}));
}

/// Objects without nulls, with lists of plain values only.
fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (0..5i64).prop_map(Value::from),
        "[a-c]".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

fn object() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-d]", tree(), 0..4).prop_map(|map| json!(map))
}

/// Containers with distinct names.
fn containers() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-f]", 0..3i64, 0..6).prop_shuffle_values()
}

trait ShuffleValues {
    fn prop_shuffle_values(self) -> BoxedStrategy<Value>;
}

impl<S> ShuffleValues for S
where
    S: Strategy<Value = std::collections::BTreeMap<String, i64>> + 'static,
{
    fn prop_shuffle_values(self) -> BoxedStrategy<Value> {
        self.prop_map(|map| map.into_iter().collect::<Vec<_>>())
            .prop_shuffle()
            .prop_map(|items| {
                items
                    .into_iter()
                    .map(|(n, v)| json!({"name": n, "v": v}))
                    .collect()
            })
            .boxed()
    }
}

proptest! {
    #[test]
    fn merging_twice_changes_nothing_more(target in object(), patch in object()) {
        let once = merge(target, &patch);
        prop_assert_eq!(merge(once.clone(), &patch), once);
    }

    #[test]
    fn the_empty_patch_changes_nothing(target in object()) {
        prop_assert_eq!(merge(target.clone(), &json!({})), target.clone());
        prop_assert_eq!(smp(target.clone(), json!({})), target);
    }

    #[test]
    fn without_merged_lists_strategic_is_merge(target in object(), patch in object()) {
        prop_assert_eq!(smp(target.clone(), patch.clone()), merge(target, &patch));
    }

    #[test]
    fn json_diff_leads_there(from in object(), to in object()) {
        let mut value = from.clone();
        json_patch::patch(&mut value, &json_patch::diff(&from, &to)).unwrap();
        prop_assert_eq!(value, to);
    }

    #[test]
    fn merged_lists_hold_both_sides_once(from in containers(), patch in containers()) {
        let merged = smp(json!({"containers": from}), json!({"containers": patch.clone()}));
        let merged = merged["containers"].as_array().unwrap().clone();
        let names = |list: &[Value]| -> Vec<String> {
            list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
        };
        let (from, patch) = (from.as_array().unwrap().clone(), patch.as_array().unwrap().clone());
        let mut all: Vec<_> = names(&from).into_iter().chain(names(&patch)).collect();
        all.sort();
        all.dedup();
        let mut got = names(&merged);
        // The patch's items stand in the patch's order.
        let in_patch: Vec<_> = got.iter().filter(|n| names(&patch).contains(n)).cloned().collect();
        prop_assert_eq!(in_patch, names(&patch));
        got.sort();
        prop_assert_eq!(got, all);
        for item in &patch {
            prop_assert!(merged.contains(item));
        }
        prop_assert_eq!(smp(json!({"containers": merged.clone()}), json!({"containers": patch}))["containers"].clone(), Value::Array(merged));
    }
}
