//! Deployments and ReplicaSets.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, age, column, integer, label_selector, name, wide};
use crate::kinds::value::{list, text};

const CONTAINERS: Column = wide("Containers", "string", "Names of each container in the template.");
const IMAGES: Column = wide(
    "Images",
    "string",
    "Images referenced by each container in the template.",
);
const SELECTOR: Column = wide("Selector", "string", "Label selector for pods.");

/// Columns of Deployments.
pub(in crate::kinds) const DEPLOYMENT: &[Column] = &[
    NAME,
    column("Ready", "string", "Number of the pod with ready state"),
    column(
        "Up-to-date",
        "string",
        "Total number of pods targeted by this deployment that have the desired template.",
    ),
    column(
        "Available",
        "string",
        "Total number of available pods targeted by this deployment.",
    ),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// Columns of ReplicaSets.
pub(in crate::kinds) const REPLICA_SET: &[Column] = &[
    NAME,
    column("Desired", "integer", "Number of desired pods."),
    column("Current", "integer", "Number of pods observed."),
    column("Ready", "integer", "Number of pods with a Ready condition."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn template_cells(object: &Value) -> [Value; 3] {
    let containers = list(&object["spec"]["template"]["spec"]["containers"]);
    let join = |field: &str| {
        containers
            .iter()
            .map(|c| text(&c[field]))
            .collect::<Vec<_>>()
            .join(",")
            .into()
    };
    [
        join("name"),
        join("image"),
        label_selector(&object["spec"]["selector"]).into(),
    ]
}

/// A Deployment's row.
pub(in crate::kinds) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let ready = format!(
        "{}/{}",
        integer(&status["readyReplicas"]),
        integer(&object["spec"]["replicas"])
    );
    let mut row = vec![
        name(object),
        ready.into(),
        integer(&status["updatedReplicas"]),
        integer(&status["availableReplicas"]),
        age(object, now),
    ];
    row.extend(template_cells(object));
    row
}

/// A ReplicaSet's row.
pub(in crate::kinds) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let mut row = vec![
        name(object),
        integer(&object["spec"]["replicas"]),
        integer(&status["replicas"]),
        integer(&status["readyReplicas"]),
        age(object, now),
    ];
    row.extend(template_cells(object));
    row
}
