//! Deployments, configuration, definitions of kinds.

use serde_json::{Value, json};

use super::{created, updated};

fn deployment() -> Value {
    json!({"spec": {"selector": {"matchLabels": {"app": "a"}},
        "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c"}]}}}})
}

#[test]
fn deployments_are_judged() {
    created("Deployment", deployment(), &[]);
    let with = |path: &str, value: Value| {
        let mut object = deployment();
        let (parent, field) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value;
        object
    };
    created(
        "Deployment",
        with("/spec/template/metadata/labels", json!({"app": "b"})),
        &[
            "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`",
        ],
    );
    created(
        "Deployment",
        with("/spec/selector", Value::Null),
        &[
            "spec.selector: Required value",
            "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`",
        ],
    );
    created(
        "Deployment",
        with("/spec/selector", json!({})),
        &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
    );
    created(
        "Deployment",
        with("/spec/replicas", json!(-1)),
        &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
    );
    created(
        "Deployment",
        with("/spec/template/spec/restartPolicy", json!("Never")),
        &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
    );
    created(
        "Deployment",
        with(
            "/spec/strategy",
            json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}),
        ),
        &["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"],
    );
    created(
        "Deployment",
        with(
            "/spec/strategy",
            json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}),
        ),
        &["spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"],
    );
    let mut other = deployment();
    other["spec"]["selector"]["matchLabels"]["b"] = "c".into();
    other["spec"]["template"]["metadata"]["labels"]["b"] = "c".into();
    updated(
        "Deployment",
        deployment(),
        other,
        &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"a\",\"b\":\"c\"}}: field is immutable"],
    );
}

#[test]
fn configuration_is_judged() {
    created(
        "ConfigMap",
        json!({"data": {"a b": ""}}),
        &[
            "data[a b]: Invalid value: \"a b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' \
           (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        ],
    );
    updated(
        "ConfigMap",
        json!({"immutable": true, "data": {"a": "b"}}),
        json!({"immutable": true, "data": {"a": "c"}}),
        &["data: Forbidden: field is immutable when `immutable` is set"],
    );
    created(
        "Secret",
        json!({"type": "kubernetes.io/tls"}),
        &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
    );
    updated(
        "Secret",
        json!({}),
        json!({"type": "a/b"}),
        &["type: Invalid value: \"a/b\": field is immutable"],
    );
    created(
        "Lease",
        json!({"spec": {"leaseDurationSeconds": 0}}),
        &["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
    );
    updated(
        "Node",
        json!({"spec": {"podCIDR": "10.0.0.0/24"}}),
        json!({"spec": {"podCIDR": "10.0.1.0/24"}}),
        &["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
    );
}

#[test]
fn definitions_are_judged() {
    let crd = json!({"metadata": {"name": "crontabs.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "crontabs", "kind": "CronTab"},
        "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object"}}}}}]}});
    let with = |path: &str, value: Value| {
        let mut object = crd.clone();
        let (parent, field) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value;
        object
    };
    let name = "CustomResourceDefinition";
    created(name, crd.clone(), &[]);
    created(
        name,
        with("/metadata/name", json!("x")),
        &["metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group"],
    );
    created(
        name,
        with("/spec/scope", json!("Galaxy")),
        &["spec.scope: Unsupported value: \"Galaxy\": supported values: \"Cluster\", \"Namespaced\""],
    );
    created(
        name,
        with("/spec/versions/0/schema", Value::Null),
        &["spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required"],
    );
    created(
        name,
        with(
            "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
            json!({}),
        ),
        &[
            "spec.versions[0].schema.openAPIV3Schema.properties[spec].type: Required value: must not be empty for \
           specified object fields",
        ],
    );
}
