//! Deployments and ReplicaSets.

use serde_json::{Map, Value, json};

use super::{Errors, FieldError, IMMUTABLE, names, not_negative, pod, selector};
use crate::kinds::value::{text, unset};

/// Judges a Deployment.
pub(in crate::kinds) fn deployment(new: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    common(&mut errors, spec, "deployment");
    strategy(&mut errors, spec);
    not_negative(
        &mut errors,
        "spec.revisionHistoryLimit",
        &spec["revisionHistoryLimit"],
    );
    let deadline = &spec["progressDeadlineSeconds"];
    not_negative(&mut errors, "spec.progressDeadlineSeconds", deadline);
    if let Some(seconds) = deadline.as_i64()
        && seconds <= spec["minReadySeconds"].as_i64().unwrap_or(0)
    {
        let path = "spec.progressDeadlineSeconds";
        errors.push(FieldError::invalid(
            path,
            seconds,
            "must be greater than minReadySeconds",
        ));
    }
    immutable_selector(&mut errors, new, old);
    errors
}

/// Judges a ReplicaSet.
pub(in crate::kinds) fn replica_set(new: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    common(&mut errors, &new["spec"], "replicaset");
    immutable_selector(&mut errors, new, old);
    errors
}

fn immutable_selector(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    if let Some(old) = old
        && new["spec"]["selector"] != old["spec"]["selector"]
    {
        errors.push(FieldError::invalid(
            "spec.selector",
            new["spec"]["selector"].clone(),
            IMMUTABLE,
        ));
    }
}

fn common(errors: &mut Errors, spec: &Value, kind: &str) {
    not_negative(errors, "spec.replicas", &spec["replicas"]);
    not_negative(errors, "spec.minReadySeconds", &spec["minReadySeconds"]);
    let wanted = &spec["selector"];
    if wanted.is_null() {
        errors.push(FieldError::required("spec.selector", ""));
    } else {
        selector::label_selector(errors, "spec.selector", wanted);
        if selector::is_empty(wanted) {
            let detail = format!("empty selector is invalid for {kind}");
            errors.push(FieldError::invalid("spec.selector", wanted.clone(), detail));
        }
    }
    template(errors, spec);
}

fn template(errors: &mut Errors, spec: &Value) {
    let template = &spec["template"];
    let labels = &template["metadata"]["labels"];
    let empty = Value::Object(Map::new());
    let labels = if labels.is_null() { &empty } else { labels };
    let wanted = &spec["selector"];
    let selects_all = wanted.is_object() && selector::is_empty(wanted);
    if !selects_all && !selector::matches(wanted, labels) {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
    pod::template(errors, "spec.template", template);
    let policy = &template["spec"]["restartPolicy"];
    if !unset(policy) && policy != "Always" {
        errors.push(FieldError::not_supported(
            "spec.template.spec.restartPolicy",
            text(policy),
            &["Always"],
        ));
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        errors.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
}

fn strategy(errors: &mut Errors, spec: &Value) {
    let strategy = &spec["strategy"];
    match text(&strategy["type"]) {
        "Recreate" if !strategy["rollingUpdate"].is_null() => errors.push(FieldError::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        )),
        "Recreate" => {}
        "RollingUpdate" if strategy["rollingUpdate"].is_null() => {
            let detail = "this should be defaulted and never be nil";
            errors.push(FieldError::required("spec.strategy.rollingUpdate", detail));
        }
        "RollingUpdate" => rolling_update(errors, &strategy["rollingUpdate"]),
        other => {
            let supported = ["Recreate", "RollingUpdate"];
            errors.push(FieldError::not_supported("spec.strategy.type", other, &supported));
        }
    }
}

fn rolling_update(errors: &mut Errors, rolling: &Value) {
    let path = "spec.strategy.rollingUpdate";
    for field in ["maxUnavailable", "maxSurge"] {
        int_or_percent(errors, &format!("{path}.{field}"), &rolling[field]);
    }
    let nothing = |v: &Value| match v {
        Value::String(s) => s.trim_end_matches('%').parse::<i64>() == Ok(0),
        other => other.as_i64().unwrap_or(0) == 0,
    };
    let unavailable = &rolling["maxUnavailable"];
    if nothing(unavailable) && nothing(&rolling["maxSurge"]) {
        let path = format!("{path}.maxUnavailable");
        let value = if unavailable.is_null() {
            json!(0)
        } else {
            unavailable.clone()
        };
        errors.push(FieldError::invalid(
            path,
            value,
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    let percent = unavailable
        .as_str()
        .and_then(|s| s.strip_suffix('%')?.parse::<i64>().ok());
    if percent.is_some_and(|p| p > 100) {
        let path = format!("{path}.maxUnavailable");
        errors.push(FieldError::invalid(
            path,
            unavailable.clone(),
            "must not be greater than 100%",
        ));
    }
}

fn int_or_percent(errors: &mut Errors, path: &str, value: &Value) {
    match value {
        Value::String(s) => super::invalid_each(errors, path, value, names::percent(s)),
        other => not_negative(errors, path, other),
    }
}
