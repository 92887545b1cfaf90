//! Where a pod may be placed.

use serde_json::Value;

use super::{Errors, FieldError, invalid_each, names, selector};
use crate::kinds::value::{list, text, unset};

/// Judges a pod's affinity.
pub(super) fn affinity(errors: &mut Errors, path: &str, affinity: &Value) {
    node(errors, &format!("{path}.nodeAffinity"), &affinity["nodeAffinity"]);
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (path, rules) = (format!("{path}.{kind}"), &affinity[kind]);
        for (i, term) in list(&rules["requiredDuringSchedulingIgnoredDuringExecution"])
            .iter()
            .enumerate()
        {
            pod_term(
                errors,
                &format!("{path}.requiredDuringSchedulingIgnoredDuringExecution[{i}]"),
                term,
            );
        }
        for (i, weighted) in list(&rules["preferredDuringSchedulingIgnoredDuringExecution"])
            .iter()
            .enumerate()
        {
            let path = format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{i}]");
            weight(errors, &path, weighted);
            pod_term(
                errors,
                &format!("{path}.podAffinityTerm"),
                &weighted["podAffinityTerm"],
            );
        }
    }
}

fn weight(errors: &mut Errors, path: &str, weighted: &Value) {
    let weight = weighted["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.push(FieldError::invalid(
            format!("{path}.weight"),
            weight,
            "must be in the range 1-100",
        ));
    }
}

fn pod_term(errors: &mut Errors, path: &str, term: &Value) {
    selector::label_selector(errors, &format!("{path}.labelSelector"), &term["labelSelector"]);
    topology_key(errors, path, term);
}

fn topology_key(errors: &mut Errors, path: &str, term: &Value) {
    let path = format!("{path}.topologyKey");
    match text(&term["topologyKey"]) {
        "" => errors.push(FieldError::required(path, "can not be empty")),
        key => invalid_each(errors, &path, &key.into(), names::qualified_name(key)),
    }
}

fn node(errors: &mut Errors, path: &str, affinity: &Value) {
    let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"];
    if required.is_object() {
        let path = format!("{path}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
        let terms = list(&required["nodeSelectorTerms"]);
        if terms.is_empty() {
            errors.push(FieldError::required(
                &path,
                "must have at least one node selector term",
            ));
        }
        for (i, term) in terms.iter().enumerate() {
            node_term(errors, &format!("{path}[{i}]"), term);
        }
    }
    for (i, preferred) in list(&affinity["preferredDuringSchedulingIgnoredDuringExecution"])
        .iter()
        .enumerate()
    {
        let path = format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{i}]");
        weight(errors, &path, preferred);
        node_term(errors, &format!("{path}.preference"), &preferred["preference"]);
    }
}

fn node_term(errors: &mut Errors, path: &str, term: &Value) {
    for (i, requirement) in list(&term["matchExpressions"]).iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        selector::operator(errors, &path, requirement, &["Gt", "Lt"]);
        let key = text(&requirement["key"]);
        invalid_each(
            errors,
            &format!("{path}.key"),
            &key.into(),
            names::qualified_name(key),
        );
    }
}

/// Judges topology spread constraints.
pub(super) fn spread(errors: &mut Errors, path: &str, constraints: &Value) {
    for (i, constraint) in list(constraints).iter().enumerate() {
        let path = format!("{path}[{i}]");
        let skew = constraint["maxSkew"].as_i64().unwrap_or(0);
        if skew <= 0 {
            errors.push(FieldError::invalid(
                format!("{path}.maxSkew"),
                skew,
                "must be greater than zero",
            ));
        }
        topology_key(errors, &path, constraint);
        let action = &constraint["whenUnsatisfiable"];
        if unset(action) || !matches!(text(action), "DoNotSchedule" | "ScheduleAnyway") {
            let supported = ["DoNotSchedule", "ScheduleAnyway"];
            errors.push(FieldError::not_supported(
                format!("{path}.whenUnsatisfiable"),
                text(action),
                &supported,
            ));
        }
        selector::label_selector(
            errors,
            &format!("{path}.labelSelector"),
            &constraint["labelSelector"],
        );
    }
}
