//! The table of built-in kinds, and what all of them have in common.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, DecodeError, FieldError, Kind};

const NAME_AND_AGE: &[Column] = &[
    Column::new(
        "Name",
        "string",
        "name",
        0,
        "Name must be unique within a namespace.",
    ),
    Column::new(
        "Age",
        "string",
        "",
        0,
        "CreationTimestamp is the server time of creation.",
    ),
];

fn name_and_age(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![
        object["metadata"]["name"].clone(),
        object["metadata"]["creationTimestamp"].clone(),
    ]
}

fn valid(_new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
    Vec::new()
}

fn valid_status(_new: &Value, _old: &Value) -> Vec<FieldError> {
    Vec::new()
}

fn at_path(object: &Value, label: &str) -> String {
    let mut value = object;
    for part in label.split('.') {
        value = &value[part];
    }
    match value {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

const PLAIN: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    status: false,
    scale: false,
    generation: false,
    stored_as: None,
    default: |_| {},
    validate: valid,
    validate_status: valid_status,
    prepare_create: |_| {},
    columns: NAME_AND_AGE,
    row: name_and_age,
    field_labels: &[],
    field_label: at_path,
};

static BUILTIN: &[Kind] = &[
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        status: true,
        field_labels: &["status.phase", "name"],
        ..PLAIN
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        status: true,
        field_labels: &["spec.unschedulable"],
        ..PLAIN
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        status: true,
        generation: true,
        field_labels: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ..PLAIN
    },
    Kind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        status: true,
        field_labels: &["spec.clusterIP", "spec.type"],
        ..PLAIN
    },
    Kind {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        ..PLAIN
    },
    Kind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        ..PLAIN
    },
    Kind {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        field_labels: &["type"],
        ..PLAIN
    },
    Kind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        ..PLAIN
    },
    Kind {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        ..PLAIN
    },
    Kind {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        stored_as: Some(("", "events")),
        ..PLAIN
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        generation: true,
        ..PLAIN
    },
    Kind {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        generation: true,
        ..PLAIN
    },
    Kind {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        status: true,
        scale: true,
        generation: true,
        ..PLAIN
    },
    Kind {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        status: true,
        scale: true,
        generation: true,
        field_labels: &["status.replicas"],
        ..PLAIN
    },
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        ..PLAIN
    },
    Kind {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        singular: "customresourcedefinition",
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        namespaced: false,
        status: true,
        generation: true,
        ..PLAIN
    },
];

/// Every built-in kind.
pub fn builtin() -> &'static [Kind] {
    BUILTIN
}

pub(super) fn to_storage(_kind: &Kind, _object: &mut Value) {}

pub(super) fn from_storage(_kind: &Kind, _object: &mut Value) {}

pub(super) fn decode(_kind: &Kind, _object: &mut Value) -> Result<Vec<String>, DecodeError> {
    Ok(Vec::new())
}

pub(super) fn prepare_create(kind: &Kind, object: &mut Value) {
    if kind.status
        && let Some(fields) = object.as_object_mut()
    {
        fields.shift_remove("status");
    }
    if kind.generation {
        object["metadata"]["generation"] = 1.into();
    }
    (kind.prepare_create)(object);
}

pub(super) fn prepare_update(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.status {
        keep(new, old, "status");
    }
    if kind.generation {
        let changed = new["spec"] != old["spec"];
        bump_generation(new, old, changed);
    }
}

pub(super) fn prepare_status_update(_kind: &Kind, new: &mut Value, old: &Value) {
    keep_all_but_status(new, old);
}

/// Metadata that a write to the status subresource may change.
pub(super) fn keep_all_but_status(new: &mut Value, old: &Value) {
    let status = new.get("status").cloned();
    let version = new["metadata"]["resourceVersion"].clone();
    let managed = new["metadata"].get("managedFields").cloned();
    *new = old.clone();
    match status {
        Some(status) => new["status"] = status,
        None => {
            if let Some(fields) = new.as_object_mut() {
                fields.shift_remove("status");
            }
        }
    }
    new["metadata"]["resourceVersion"] = version;
    if let Some(managed) = managed {
        new["metadata"]["managedFields"] = managed;
    }
}

/// Copies a top-level field of `old` into `new`, or removes it there.
pub(super) fn keep(new: &mut Value, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => new[field] = value.clone(),
        None => {
            if let Some(fields) = new.as_object_mut() {
                fields.shift_remove(field);
            }
        }
    }
}

pub(super) fn bump_generation(new: &mut Value, old: &Value, changed: bool) {
    let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
    let next = if changed { generation + 1 } else { generation };
    if next > 0 {
        new["metadata"]["generation"] = json!(next);
    }
}

pub(super) fn validate(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    (kind.validate)(new, old)
}

pub(super) fn unknown_field_label(kind: &Kind, label: &str) -> String {
    let _ = kind;
    format!("field label not supported: {label}")
}
