//! Label selectors as objects.

use serde_json::Value;

use super::{Errors, FieldError, invalid_each, meta, names};
use crate::kinds::value::{entries, list, text};

/// Judges the operator of a requirement and whether it has the values for it; `single` are operators that have one.
pub(super) fn operator(errors: &mut Errors, path: &str, requirement: &Value, single: &[&str]) {
    let values = list(&requirement["values"]);
    match text(&requirement["operator"]) {
        "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
            format!("{path}.values"),
            "must be specified when `operator` is 'In' or 'NotIn'",
        )),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
            format!("{path}.values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        known if single.contains(&known) => {
            if values.len() != 1 {
                errors.push(FieldError::required(
                    format!("{path}.values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                ));
            }
        }
        other => errors.push(FieldError::invalid(
            format!("{path}.operator"),
            other,
            "not a valid selector operator",
        )),
    }
}

/// Judges a LabelSelector.
pub(super) fn label_selector(errors: &mut Errors, path: &str, selector: &Value) {
    meta::labels(errors, &format!("{path}.matchLabels"), &selector["matchLabels"]);
    for (i, requirement) in list(&selector["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = list(&requirement["values"]);
        operator(errors, &path, requirement, &[]);
        let key = text(&requirement["key"]);
        invalid_each(
            errors,
            &format!("{path}.key"),
            &key.into(),
            names::qualified_name(key),
        );
        for (j, value) in values.iter().enumerate() {
            invalid_each(
                errors,
                &format!("{path}.values[{j}]"),
                value,
                names::label_value(text(value)),
            );
        }
    }
}

/// Selects everything: no requirement at all.
pub(super) fn is_empty(selector: &Value) -> bool {
    entries(&selector["matchLabels"]).next().is_none() && list(&selector["matchExpressions"]).is_empty()
}

/// Whether a selector selects these labels; an absent selector selects nothing.
pub(super) fn matches(selector: &Value, labels: &Value) -> bool {
    if !selector.is_object() {
        return false;
    }
    let by_labels = entries(&selector["matchLabels"]).all(|(key, value)| labels.get(key) == Some(value));
    by_labels
        && list(&selector["matchExpressions"]).iter().all(|requirement| {
            let value = labels.get(text(&requirement["key"]));
            let among = value.is_some_and(|v| list(&requirement["values"]).contains(v));
            match text(&requirement["operator"]) {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}
