//! Deployments and ReplicaSets.

use serde_json::{Value, json};

use super::pod::pod_spec;
use crate::kinds::value::{default, object_mut, unset};

pub(in crate::kinds) fn deployment(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    template(spec);
    default(spec, "replicas", 1);
    default(spec, "strategy", json!({}));
    let strategy = &mut spec["strategy"];
    default(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate"
        && let Some(rolling) = object_mut(strategy, "rollingUpdate")
    {
        default(rolling, "maxUnavailable", "25%");
        default(rolling, "maxSurge", "25%");
    }
    default(spec, "revisionHistoryLimit", 10);
    default(spec, "progressDeadlineSeconds", 600);
}

pub(in crate::kinds) fn replica_set(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    template(spec);
    default(spec, "replicas", 1);
}

fn template(spec: &mut Value) {
    let Some(template) = spec.get_mut("template").filter(|t| !unset(t)) else {
        return;
    };
    if let Some(pod) = object_mut(template, "spec") {
        pod_spec(pod);
    }
}
