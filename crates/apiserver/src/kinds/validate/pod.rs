//! Pods and pod specs.

use std::net::IpAddr;

use serde_json::Value;

use super::{
    Errors, FieldError, affinity, container, invalid_each, meta, names, not_negative, one_of, volume,
};
use crate::kinds::value::{entries, list, text, unset};

/// Judges a pod.
pub(in crate::kinds) fn pod(new: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    match old {
        None => {
            pod_spec(&mut errors, "spec", &new["spec"]);
            if !list(&new["spec"]["ephemeralContainers"]).is_empty() {
                errors.push(FieldError::forbidden(
                    "spec.ephemeralContainers",
                    "cannot be set on create",
                ));
            }
        }
        Some(old) => super::pod_update::pod_update(&mut errors, new, old),
    }
    errors
}

/// Judges the spec of a pod or of a template.
pub(super) fn pod_spec(errors: &mut Errors, path: &str, spec: &Value) {
    let host_network = spec["hostNetwork"] == true;
    let volumes = volume::volumes(errors, &format!("{path}.volumes"), list(&spec["volumes"]));
    container::containers(errors, path, spec, &volumes, host_network);
    one_of(
        errors,
        &format!("{path}.restartPolicy"),
        &spec["restartPolicy"],
        &["Always", "Never", "OnFailure"],
    );
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(
        errors,
        &format!("{path}.dnsPolicy"),
        &spec["dnsPolicy"],
        &policies,
    );
    meta::labels(errors, &format!("{path}.nodeSelector"), &spec["nodeSelector"]);
    security_context(errors, &format!("{path}.securityContext"), spec);
    let grace = &spec["terminationGracePeriodSeconds"];
    not_negative(errors, &format!("{path}.terminationGracePeriodSeconds"), grace);
    let deadline = &spec["activeDeadlineSeconds"];
    if deadline
        .as_i64()
        .is_some_and(|n| !(1..=i64::from(i32::MAX)).contains(&n))
    {
        let path = format!("{path}.activeDeadlineSeconds");
        errors.push(FieldError::invalid(
            path,
            deadline.clone(),
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    for (field, check) in [
        ("nodeName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("serviceAccountName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
    ] {
        if !unset(&spec[field]) {
            invalid_each(
                errors,
                &format!("{path}.{field}"),
                &spec[field],
                check(text(&spec[field])),
            );
        }
    }
    for (i, secret) in list(&spec["imagePullSecrets"]).iter().enumerate() {
        if unset(&secret["name"]) {
            errors.push(FieldError::required(
                format!("{path}.imagePullSecrets[{i}].name"),
                "",
            ));
        }
    }
    host_aliases(errors, &format!("{path}.hostAliases"), &spec["hostAliases"]);
    tolerations(errors, &format!("{path}.tolerations"), &spec["tolerations"]);
    dns_config(errors, path, spec);
    affinity::affinity(errors, &format!("{path}.affinity"), &spec["affinity"]);
    affinity::spread(
        errors,
        &format!("{path}.topologySpreadConstraints"),
        &spec["topologySpreadConstraints"],
    );
}

fn security_context(errors: &mut Errors, path: &str, spec: &Value) {
    let context = &spec["securityContext"];
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        id_in_range(errors, &format!("{path}.{field}"), &context[field]);
    }
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        errors.push(FieldError::invalid(
            format!("{path}.shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, sysctl) in list(&context["sysctls"]).iter().enumerate() {
        let path = format!("{path}.sysctls[{i}].name");
        match text(&sysctl["name"]) {
            "" => errors.push(FieldError::required(path, "")),
            name if seen.contains(&name) => errors.push(FieldError::duplicate(path, name)),
            name => seen.push(name),
        }
    }
}

/// A user or group id.
pub(super) fn id_in_range(errors: &mut Errors, path: &str, id: &Value) {
    if id
        .as_i64()
        .is_some_and(|n| !(0..=i64::from(i32::MAX)).contains(&n))
    {
        errors.push(FieldError::invalid(
            path,
            id.clone(),
            "must be between 0 and 2147483647, inclusive",
        ));
    }
}

fn host_aliases(errors: &mut Errors, path: &str, aliases: &Value) {
    for (i, alias) in list(aliases).iter().enumerate() {
        if text(&alias["ip"]).parse::<IpAddr>().is_err() {
            errors.push(FieldError::invalid(
                format!("{path}[{i}].ip"),
                text(&alias["ip"]),
                super::IP,
            ));
        }
        for hostname in list(&alias["hostnames"]) {
            let messages = names::dns1123_subdomain(text(hostname));
            invalid_each(errors, &format!("{path}[{i}].hostnames"), hostname, messages);
        }
    }
}

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Judges tolerations.
pub(super) fn tolerations(errors: &mut Errors, path: &str, tolerations: &Value) {
    for (i, toleration) in list(tolerations).iter().enumerate() {
        let path = format!("{path}[{i}]");
        let (key, operator, effect) = (
            text(&toleration["key"]),
            text(&toleration["operator"]),
            text(&toleration["effect"]),
        );
        if !key.is_empty() {
            invalid_each(
                errors,
                &format!("{path}.key"),
                &key.into(),
                names::qualified_name(key),
            );
        }
        let operator_path = format!("{path}.operator");
        if key.is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(&operator_path, operator, detail));
        }
        if !toleration["tolerationSeconds"].is_null() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(format!("{path}.effect"), effect, detail));
        }
        match operator {
            "Equal" | "" => {
                let value = &toleration["value"];
                invalid_each(errors, &operator_path, value, names::label_value(text(value)));
            }
            "Exists" if !unset(&toleration["value"]) => errors.push(FieldError::invalid(
                operator_path,
                toleration.clone(),
                "value must be empty when `operator` is 'Exists'",
            )),
            "Exists" => {}
            other => errors.push(FieldError::not_supported(
                operator_path,
                other,
                &["Equal", "Exists"],
            )),
        }
        super::one_of_if_set(errors, &format!("{path}.effect"), &toleration["effect"], EFFECTS);
    }
}

fn dns_config(errors: &mut Errors, path: &str, spec: &Value) {
    let config = &spec["dnsConfig"];
    let servers = list(&config["nameservers"]);
    if spec["dnsPolicy"] == "None" && config.is_null() {
        let detail = "must provide `dnsConfig` when `dnsPolicy` is None";
        errors.push(FieldError::required(format!("{path}.dnsConfig"), detail));
    } else if spec["dnsPolicy"] == "None" && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(
            format!("{path}.dnsConfig.nameservers"),
            detail,
        ));
    }
    let path = format!("{path}.dnsConfig");
    if servers.len() > 3 {
        let detail = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(
            format!("{path}.nameservers"),
            config["nameservers"].clone(),
            detail,
        ));
    }
    for (i, server) in servers.iter().enumerate() {
        if text(server).parse::<IpAddr>().is_err() {
            errors.push(FieldError::invalid(
                format!("{path}.nameservers[{i}]"),
                server.clone(),
                super::IP,
            ));
        }
    }
    for (i, search) in list(&config["searches"]).iter().enumerate() {
        let domain = text(search).trim_end_matches('.');
        if domain.is_empty() {
            continue;
        }
        let relaxed: String = domain.replace('_', "-");
        let trimmed: Vec<&str> = relaxed.split('.').map(|l| l.trim_matches('-')).collect();
        invalid_each(
            errors,
            &format!("{path}.searches[{i}]"),
            search,
            names::dns1123_subdomain(&trimmed.join(".")),
        );
    }
    for (i, option) in list(&config["options"]).iter().enumerate() {
        if unset(&option["name"]) {
            errors.push(FieldError::required(
                format!("{path}.options[{i}]"),
                "must not be empty",
            ));
        }
    }
}

/// Judges a pod template's metadata and spec.
pub(super) fn template(errors: &mut Errors, path: &str, template: &Value) {
    let metadata = &template["metadata"];
    meta::labels(errors, &format!("{path}.labels"), &metadata["labels"]);
    meta::annotations(errors, &format!("{path}.annotations"), &metadata["annotations"]);
    pod_spec(errors, &format!("{path}.spec"), &template["spec"]);
    if entries(&template["spec"]).any(|(k, v)| k == "ephemeralContainers" && !list(v).is_empty()) {
        let detail = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(
            format!("{path}.spec.ephemeralContainers"),
            detail,
        ));
    }
}
