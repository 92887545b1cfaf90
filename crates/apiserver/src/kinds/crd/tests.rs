use serde_json::json;

use super::*;

fn definition() -> Value {
    json!({
        "metadata": {"name": "crontabs.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "listKind": "CronTabList",
                "shortNames": ["ct"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas"}},
                "additionalPrinterColumns": [
                    {"name": "Spec", "type": "string", "jsonPath": ".spec.cron"},
                    {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                ],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["cron"], "properties": {
                        "cron": {"type": "string", "pattern": r"^\d+ \d+$", "maxLength": 10},
                        "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 1},
                        "mode": {"type": "string", "enum": ["a", "b"]},
                        "port": {"x-kubernetes-int-or-string": true},
                        "ip": {"type": "string", "format": "ipv4"},
                        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        "tags": {"type": "array", "maxItems": 2, "items": {"type": "string"},
                            "x-kubernetes-list-type": "set"},
                        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
                    }},
                    "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
                }}},
            }],
        },
    })
}

fn kind() -> Resource {
    let mut crd = definition();
    assert!(establish(&mut crd, &[], Timestamp::UNIX_EPOCH));
    let mut all = resources(&crd);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "CronTab", "metadata": {"name": "a", "namespace": "default"},
        "spec": spec})
}

fn errors(spec: Value) -> Vec<String> {
    kind()
        .validate_create(&object(spec))
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn a_definition_becomes_a_kind() {
    let kind = kind();
    assert_eq!(kind.group_resource(), "crontabs.example.com");
    assert_eq!(kind.list_kind(), "CronTabList");
    assert_eq!(kind.short_names(), ["ct"]);
    assert!(kind.namespaced() && kind.has_status());
    assert_eq!(kind.scale().unwrap().spec_replicas, "spec.replicas");
}

#[test]
fn unknown_fields_are_pruned_and_told() {
    let mut object = object(json!({"cron": "1 2", "foo": 1, "free": {"x": {"y": 1}}, "map": {"k": 1}}));
    object["bar"] = json!(1);
    let unknown = kind().decode(&mut object).unwrap();
    assert_eq!(unknown, [r#"unknown field "spec.foo""#, r#"unknown field "bar""#]);
    assert_eq!(
        object["spec"],
        json!({"cron": "1 2", "free": {"x": {"y": 1}}, "map": {"k": 1}})
    );
}

#[test]
fn metadata_has_its_types() {
    let mut object = object(json!({}));
    object["metadata"]["labels"] = json!({"a": 1});
    assert_eq!(
        kind().decode(&mut object).unwrap_err().message,
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"
    );
}

#[test]
fn defaults_are_filled_in() {
    let mut object = object(json!({"cron": "1 2", "replicas": null}));
    kind().default(&mut object);
    assert_eq!(object["spec"]["replicas"], 1);
}

#[test]
fn objects_are_judged_in_the_words_of_kubernetes() {
    let cases = [
        (json!({"cron": "1 2"}), vec![]),
        (json!({}), vec!["spec.cron: Required value"]),
        (
            json!({"cron": 5}),
            vec![
                r#"spec.cron: Invalid value: "integer": spec.cron in body must be of type string: "integer""#,
            ],
        ),
        (
            json!({"cron": "x"}),
            vec![r#"spec.cron: Invalid value: "x": spec.cron in body should match '^\d+ \d+$'"#],
        ),
        (
            json!({"cron": "1 23456789012"}),
            vec!["spec.cron: Too long: may not be more than 10 bytes"],
        ),
        (
            json!({"cron": "1 2", "replicas": 0}),
            vec![
                "spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1",
            ],
        ),
        (
            json!({"cron": "1 2", "replicas": 11}),
            vec![
                "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
            ],
        ),
        (
            json!({"cron": "1 2", "mode": "c"}),
            vec![r#"spec.mode: Unsupported value: "c": supported values: "a", "b""#],
        ),
        (
            json!({"cron": "1 2", "port": true}),
            vec![
                r#"spec.port: Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean""#,
            ],
        ),
        (
            json!({"cron": "1 2", "ip": "::1"}),
            vec![r#"spec.ip: Invalid value: "::1": spec.ip in body must be of type ipv4: "::1""#],
        ),
        (
            json!({"cron": "1 2", "tags": ["a", "b", "c"]}),
            vec!["spec.tags: Too many: 3: must have at most 2 items"],
        ),
        (
            json!({"cron": "1 2", "tags": ["a", "a"]}),
            vec![r#"spec.tags[1]: Duplicate value: "a""#],
        ),
        (
            json!({"cron": "1 2", "map": {"k": "v"}}),
            vec![
                r#"spec.map.k: Invalid value: "string": spec.map.k in body must be of type integer: "string""#,
            ],
        ),
    ];
    for (spec, want) in cases {
        assert_eq!(errors(spec.clone()), want, "{spec}");
    }
}

#[test]
fn columns_are_those_of_the_definition() {
    let mut object = object(json!({"cron": "1 2", "replicas": 3}));
    object["metadata"]["creationTimestamp"] = "1970-01-01T00:00:00Z".into();
    let row = kind().row(&object, "1970-01-01T00:05:00Z".parse().unwrap());
    assert_eq!(row, [json!("a"), json!("1 2"), json!(3), json!("5m")]);
}

#[test]
fn a_taken_name_is_not_accepted() {
    let mut first = definition();
    establish(&mut first, &[], Timestamp::UNIX_EPOCH);
    assert!(
        !establish(&mut first.clone(), &[], Timestamp::UNIX_EPOCH),
        "nothing changes the second time"
    );
    let mut second = definition();
    second["metadata"]["name"] = "others.example.com".into();
    second["spec"]["names"]["plural"] = "others".into();
    second["spec"]["names"]["singular"] = "other".into();
    establish(&mut second, &[first], Timestamp::UNIX_EPOCH);
    assert_eq!(second["status"]["conditions"][0]["reason"], "ShortNamesConflict");
    assert!(resources(&second).is_empty());
}

#[test]
fn generation_counts_what_is_neither_metadata_nor_status() {
    let mut old = object(json!({"cron": "1 2"}));
    kind().prepare_create(&mut old);
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({"a": "b"});
    new["status"] = json!({"replicas": 1});
    kind().prepare_update(&mut new, &old);
    assert_eq!(
        (&new["metadata"]["generation"], new.get("status")),
        (&json!(1), None)
    );
    new["spec"]["replicas"] = 2.into();
    kind().prepare_update(&mut new, &old);
    assert_eq!(new["metadata"]["generation"], 2);
}
