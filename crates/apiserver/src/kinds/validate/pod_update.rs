//! What an update of a pod may change.

use serde_json::Value;

use super::{Errors, FieldError, meta, pod};
use crate::kinds::value::{entries, keep, list};

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Judges an update of a pod.
pub(super) fn pod_update(errors: &mut Errors, new: &Value, old: &Value) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    for kind in ["containers", "initContainers"] {
        if list(&spec[kind]).len() != list(&before[kind]).len() {
            let detail = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(format!("spec.{kind}"), detail));
        }
    }
    if !errors.is_empty() {
        return;
    }
    deadline(errors, spec, before);
    added_tolerations(errors, &spec["tolerations"], &before["tolerations"]);
    // What may change is set back; then nothing may differ.
    let mut munged = spec.clone();
    for kind in ["containers", "initContainers"] {
        let old_containers = list(&before[kind]);
        for (container, old) in munged[kind]
            .as_array_mut()
            .into_iter()
            .flatten()
            .zip(old_containers)
        {
            keep(container, old, "image");
        }
    }
    for field in [
        "activeDeadlineSeconds",
        "tolerations",
        "containers",
        "initContainers",
    ] {
        let known = spec.get(field).is_some() || before.get(field).is_some();
        if known && !field.ends_with("ontainers") {
            keep(&mut munged, before, field);
        } else if !known && let Some(fields) = munged.as_object_mut() {
            fields.shift_remove(field);
        }
    }
    if before["terminationGracePeriodSeconds"]
        .as_i64()
        .is_some_and(|n| n < 0)
        && spec["terminationGracePeriodSeconds"] == 1
    {
        keep(&mut munged, before, "terminationGracePeriodSeconds");
    }
    if munged != *before {
        let mut detail = format!("{MAY_CHANGE}\n");
        difference("spec", &munged, before, &mut detail);
        errors.push(FieldError::forbidden("spec", detail));
        return;
    }
    pod::tolerations(errors, "spec.tolerations", &spec["tolerations"]);
    meta::labels(errors, "spec.nodeSelector", &spec["nodeSelector"]);
}

fn deadline(errors: &mut Errors, spec: &Value, before: &Value) {
    let path = "spec.activeDeadlineSeconds";
    match (
        before["activeDeadlineSeconds"].as_i64(),
        spec["activeDeadlineSeconds"].as_i64(),
    ) {
        (None, Some(new)) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            errors.push(FieldError::invalid(
                path,
                new,
                "must be between 0 and 2147483647, inclusive",
            ));
        }
        (Some(old), Some(new)) if new > old => {
            errors.push(FieldError::invalid(
                path,
                new,
                "must be less than or equal to previous value",
            ));
        }
        (Some(_), None) => {
            errors.push(FieldError::invalid(
                path,
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
}

fn added_tolerations(errors: &mut Errors, new: &Value, old: &Value) {
    let timeless = |t: &Value| {
        let mut t = t.clone();
        crate::kinds::value::remove(&mut t, "tolerationSeconds");
        t
    };
    let kept = list(old)
        .iter()
        .all(|before| list(new).iter().any(|after| timeless(after) == timeless(before)));
    if !kept {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
    }
}

/// One line per difference; Kubernetes prints Go's structures here, in a form that it does not keep stable.
fn difference(path: &str, new: &Value, old: &Value, out: &mut String) {
    match (new, old) {
        (Value::Object(_), Value::Object(before)) => {
            for (key, value) in entries(new) {
                difference(
                    &format!("{path}.{key}"),
                    value,
                    old.get(key).unwrap_or(&Value::Null),
                    out,
                );
            }
            for (key, value) in before.iter().filter(|(key, _)| new.get(key.as_str()).is_none()) {
                difference(&format!("{path}.{key}"), &Value::Null, value, out);
            }
        }
        (Value::Array(after), Value::Array(before)) if after.len() == before.len() => {
            for (i, (a, b)) in after.iter().zip(before).enumerate() {
                difference(&format!("{path}[{i}]"), a, b, out);
            }
        }
        (a, b) if a != b => out.push_str(&format!("- {path}: {b}\n+ {path}: {a}\n")),
        _ => {}
    }
}
