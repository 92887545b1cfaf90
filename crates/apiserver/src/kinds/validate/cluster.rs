//! Namespaces, Nodes and Leases.

use ipnet::IpNet;
use serde_json::Value;

use super::{CIDR, Errors, FieldError, invalid_each, meta, names, not_negative, one_of};
use crate::kinds::value::{list, text, unset};

/// Judges a Namespace.
pub(in crate::kinds) fn namespace(new: &Value, _old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    meta::standard_finalizers(&mut errors, "spec.finalizers", &new["spec"]["finalizers"]);
    errors
}

/// Judges a Node.
pub(in crate::kinds) fn node(new: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    pod_cidrs(&mut errors, spec);
    taints(&mut errors, list(&spec["taints"]));
    let Some(old) = old.map(|old| &old["spec"]) else {
        return errors;
    };
    let ranges = |s: &Value| list(&s["podCIDRs"]).to_vec();
    if !ranges(old).is_empty() && ranges(spec) != ranges(old) {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.podCIDRs", detail));
    }
    if !unset(&old["providerID"]) && spec["providerID"] != old["providerID"] {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.providerID", detail));
    }
    errors
}

fn pod_cidrs(errors: &mut Errors, spec: &Value) {
    let mut parsed: Vec<IpNet> = Vec::new();
    for (i, cidr) in list(&spec["podCIDRs"]).iter().enumerate() {
        match text(cidr).parse::<IpNet>() {
            Ok(net) => parsed.push(net),
            Err(_) => errors.push(FieldError::invalid(
                format!("spec.podCIDRs[{i}]"),
                cidr.clone(),
                CIDR,
            )),
        }
    }
    let one_family = match parsed.as_slice() {
        [a, b] => a.addr().is_ipv4() == b.addr().is_ipv4(),
        all => all.len() > 2,
    };
    if one_family {
        let detail = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid(
            "spec.podCIDRs",
            spec["podCIDRs"].clone(),
            detail,
        ));
    }
}

fn taints(errors: &mut Errors, taints: &[Value]) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, taint) in taints.iter().enumerate() {
        let path = format!("spec.taints[{i}]");
        let (key, effect) = (text(&taint["key"]), text(&taint["effect"]));
        invalid_each(
            errors,
            &format!("{path}.key"),
            &key.into(),
            names::qualified_name(key),
        );
        let messages = names::label_value(text(&taint["value"]));
        invalid_each(errors, &format!("{path}.value"), &taint["value"], messages);
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        one_of(errors, &format!("{path}.effect"), &taint["effect"], &effects);
        if seen.contains(&(key, effect)) {
            let mut duplicate = FieldError::duplicate(&path, taint.clone());
            duplicate.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(duplicate);
        }
        seen.push((key, effect));
    }
}

/// Judges a Lease.
pub(in crate::kinds) fn lease(new: &Value, _old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64().filter(|&n| n <= 0) {
        errors.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            seconds,
            "must be greater than 0",
        ));
    }
    not_negative(&mut errors, "spec.leaseTransitions", &spec["leaseTransitions"]);
    errors
}
