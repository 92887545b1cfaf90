//! Objects are judged in the words of Kubernetes.

mod any;
mod network;
mod others;
mod pods;

use serde_json::{Value, json};

use crate::kinds::{Resource, builtin};

fn kind(name: &str) -> Resource {
    Resource::Builtin(builtin().iter().find(|k| k.kind == name).unwrap())
}

/// Decodes, defaults and prepares as the server does.
fn made(name: &str, mut object: Value) -> Value {
    let kind = kind(name);
    if object["metadata"]["name"].is_null() {
        object["metadata"]["name"] = "x".into();
    }
    if kind.namespaced() {
        object["metadata"]["namespace"] = "default".into();
    }
    kind.decode(&mut object).unwrap();
    kind.default(&mut object);
    kind.prepare_create(&mut object);
    object
}

#[track_caller]
fn created(name: &str, object: Value, want: &[&str]) {
    let got: Vec<String> = kind(name)
        .validate_create(&made(name, object))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(got, want);
}

#[track_caller]
fn updated(name: &str, old: Value, new: Value, want: &[&str]) {
    let got: Vec<String> = kind(name)
        .validate_update(&made(name, new), &made(name, old))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(got, want);
}

#[test]
fn names_are_judged_by_kind() {
    let subdomain = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and \
                     must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation \
                     is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let mut config = json!({"metadata": {"name": "A_b"}});
    created(
        "ConfigMap",
        config.clone(),
        &[&format!("metadata.name: Invalid value: \"A_b\": {subdomain}")],
    );
    config["metadata"]["name"] = "".into();
    created(
        "ConfigMap",
        config,
        &["metadata.name: Required value: name or generateName is required"],
    );
    let label = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                 character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
                 validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
    let service = json!({"metadata": {"name": "1a"}, "spec": {"ports": [{"port": 80}]}});
    created(
        "Service",
        service,
        &[&format!("metadata.name: Invalid value: \"1a\": {label}")],
    );
    let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
                 and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    let namespace = json!({"metadata": {"name": "a.b"}});
    created(
        "Namespace",
        namespace,
        &[&format!("metadata.name: Invalid value: \"a.b\": {label}")],
    );
}

#[test]
fn labels_and_finalizers_are_judged() {
    let value = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
                 start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
                 for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
    created(
        "ConfigMap",
        json!({"metadata": {"labels": {"a": "b c"}}}),
        &[&format!("metadata.labels: Invalid value: \"b c\": {value}")],
    );
    let key = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
               alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
               '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    created(
        "ConfigMap",
        json!({"metadata": {"labels": {"a b": "c"}}}),
        &[&format!("metadata.labels: Invalid value: \"a b\": {key}")],
    );
    created(
        "ConfigMap",
        json!({"metadata": {"finalizers": ["mine"]}}),
        &[
            "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully \
           qualified",
        ],
    );
}

#[test]
fn the_status_of_an_invalid_object_is_that_of_kubernetes() {
    let errors = kind("Pod").validate_create(&made("Pod", json!({"spec": {}})));
    assert_eq!(
        crate::kinds::invalid_status("", "Pod", "x", &errors),
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "Pod \"x\" is invalid: spec.containers: Required value", "reason": "Invalid",
            "details": {"name": "x", "kind": "Pod", "causes": [
                {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers"}]},
            "code": 422})
    );
    let errors = kind("Deployment").validate_create(&made("Deployment", json!({"spec": {}})));
    let status = crate::kinds::invalid_status("apps", "Deployment", "x", &errors);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .starts_with("Deployment.apps \"x\" is invalid: [spec.selector: ")
    );
}
