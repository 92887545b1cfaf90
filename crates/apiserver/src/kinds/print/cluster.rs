//! Nodes, namespaces, configuration, events and the rest.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, UNKNOWN, age, column, integer, name, or_none, since, wide};
use crate::kinds::value::{entries, list, text, unset};

/// Columns of a kind of which nothing more is shown.
pub(in crate::kinds) const PLAIN: &[Column] = &[NAME, AGE];

/// Name and age.
pub(in crate::kinds) fn plain(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

/// Columns of Nodes.
pub(in crate::kinds) const NODE: &[Column] = &[
    NAME,
    column("Status", "string", "The status of the node"),
    column("Roles", "string", "The roles of the node"),
    AGE,
    column("Version", "string", "Kubelet Version reported by the node."),
    wide("Internal-IP", "string", "Address of type InternalIP."),
    wide("External-IP", "string", "Address of type ExternalIP."),
    wide("OS-Image", "string", "OS Image reported by the node."),
    wide("Kernel-Version", "string", "Kernel Version reported by the node."),
    wide(
        "Container-Runtime",
        "string",
        "ContainerRuntime Version reported by the node.",
    ),
];

/// A Node's row.
pub(in crate::kinds) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let ready = list(&status["conditions"]).iter().find(|c| c["type"] == "Ready");
    let mut shown = match ready {
        Some(c) if c["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object["spec"]["unschedulable"] == true {
        shown.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = list(&status["addresses"]).iter().find(|a| a["type"] == kind);
        or_none(found.map(|a| text(&a["address"])).unwrap_or_default())
    };
    let info = |field: &str| match text(&status["nodeInfo"][field]) {
        "" => UNKNOWN.into(),
        known => Value::from(known),
    };
    vec![
        name(object),
        shown.into(),
        or_none(&roles(&object["metadata"]["labels"])),
        age(object, now),
        text(&status["nodeInfo"]["kubeletVersion"]).into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn roles(labels: &Value) -> String {
    let mut roles: Vec<&str> = entries(labels)
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role),
                None => (key == "kubernetes.io/role").then(|| text(value)),
            },
        )
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

/// Columns of Namespaces.
pub(in crate::kinds) const NAMESPACE: &[Column] = &[
    NAME,
    column("Status", "string", "The status of the namespace"),
    AGE,
];

/// A Namespace's row.
pub(in crate::kinds) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(&object["status"]["phase"]).into(),
        age(object, now),
    ]
}

/// Columns of ConfigMaps.
pub(in crate::kinds) const CONFIG_MAP: &[Column] = &[
    NAME,
    column("Data", "string", "Number of keys in data and binaryData."),
    AGE,
];

/// A ConfigMap's row.
pub(in crate::kinds) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let keys = entries(&object["data"]).count() + entries(&object["binaryData"]).count();
    vec![name(object), keys.into(), age(object, now)]
}

/// Columns of Secrets.
pub(in crate::kinds) const SECRET: &[Column] = &[
    NAME,
    column(
        "Type",
        "string",
        "Used to facilitate programmatic handling of secret data.",
    ),
    column("Data", "string", "Number of keys in data."),
    AGE,
];

/// A Secret's row.
pub(in crate::kinds) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(&object["type"]).into(),
        entries(&object["data"]).count().into(),
        age(object, now),
    ]
}

/// Columns of ServiceAccounts.
pub(in crate::kinds) const SERVICE_ACCOUNT: &[Column] = &[
    NAME,
    column("Secrets", "string", "Number of secrets in the list."),
    AGE,
];

/// A ServiceAccount's row.
pub(in crate::kinds) fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        list(&object["secrets"]).len().into(),
        age(object, now),
    ]
}

/// Columns of Leases.
pub(in crate::kinds) const LEASE: &[Column] = &[
    NAME,
    column(
        "Holder",
        "string",
        "The identity of the holder of a current lease.",
    ),
    AGE,
];

/// A Lease's row.
pub(in crate::kinds) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(&object["spec"]["holderIdentity"]).into(),
        age(object, now),
    ]
}

/// Columns of CustomResourceDefinitions.
pub(in crate::kinds) const CRD: &[Column] = &[
    NAME,
    Column::new(
        "Created At",
        "date",
        "",
        0,
        "CreationTimestamp is the server time of creation.",
    ),
];

/// A CustomResourceDefinition's row.
pub(in crate::kinds) fn crd(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        text(&object["metadata"]["creationTimestamp"]).into(),
    ]
}

/// Columns of Events.
pub(in crate::kinds) const EVENT: &[Column] = &[
    column("Last Seen", "string", "When it was last recorded."),
    column("Type", "string", "Normal or Warning."),
    column("Reason", "string", "A word for what happened."),
    column("Object", "string", "The object that this event is about."),
    wide("Subobject", "string", "The part of the object."),
    wide("Source", "string", "The component reporting this event."),
    column("Message", "string", "What happened."),
    wide("First Seen", "string", "When it was first recorded."),
    wide("Count", "string", "The number of times this event has occurred."),
    Column::new(
        "Name",
        "string",
        "name",
        1,
        "Name must be unique within a namespace.",
    ),
];

/// An Event's row, from either API group's form.
pub(in crate::kinds) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let first_set = |fields: &[&str]| {
        fields
            .iter()
            .map(|f| &object[*f])
            .find(|v| !unset(v))
            .unwrap_or(&Value::Null)
            .clone()
    };
    let first = first_set(&["firstTimestamp", "deprecatedFirstTimestamp", "eventTime"]);
    let series = &object["series"];
    let last = match &series["lastObservedTime"] {
        Value::Null => first_set(&["lastTimestamp", "deprecatedLastTimestamp", "eventTime"]),
        seen => seen.clone(),
    };
    let count = match series["count"].as_i64() {
        Some(count) => count,
        None => first_set(&["count", "deprecatedCount"])
            .as_i64()
            .unwrap_or(1)
            .max(1),
    };
    let about = first_set(&["involvedObject", "regarding"]);
    let target = format!("{}/{}", text(&about["kind"]).to_lowercase(), text(&about["name"]));
    vec![
        since(&last, now).into(),
        text(&object["type"]).into(),
        text(&object["reason"]).into(),
        target.into(),
        text(&about["fieldPath"]).into(),
        source(object).into(),
        text(&first_set(&["message", "note"])).trim().into(),
        since(&first, now).into(),
        integer(&count.into()),
        name(object),
    ]
}

fn source(object: &Value) -> String {
    let source = if unset(&object["source"]) {
        &object["deprecatedSource"]
    } else {
        &object["source"]
    };
    let component = [
        &source["component"],
        &object["reportingComponent"],
        &object["reportingController"],
    ]
    .into_iter()
    .map(text)
    .find(|s| !s.is_empty())
    .unwrap_or_default();
    match text(&source["host"]) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}
