//! Containers: names, ports, environment, probes, resources.

use podnet_core::quantity::Quantity;
use serde_json::Value;

use super::{
    Errors, FieldError, PROTOCOLS, invalid_each, names, not_negative, one_of, pod, port_or_name, volume,
};
use crate::kinds::value::{entries, list, text, unset};

/// Judges all containers of a pod spec.
pub(super) fn containers(
    errors: &mut Errors,
    path: &str,
    spec: &Value,
    volumes: &[&str],
    host_network: bool,
) {
    let ours = list(&spec["containers"]);
    if ours.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names: Vec<&str> = Vec::new();
    let mut host_ports: Vec<String> = Vec::new();
    for (i, c) in ours.iter().enumerate() {
        let path = format!("{path}.containers[{i}]");
        container(errors, &path, c, volumes, host_network);
        unique_name(errors, &path, c, &mut names);
        unique_host_ports(errors, &path, c, &mut host_ports);
        lifecycle(errors, &path, c);
        probes(errors, &path, c);
        if !unset(&c["restartPolicy"]) {
            let detail = "may not be set for non-init containers";
            errors.push(FieldError::forbidden(format!("{path}.restartPolicy"), detail));
        }
    }
    for (i, c) in list(&spec["initContainers"]).iter().enumerate() {
        let path = format!("{path}.initContainers[{i}]");
        container(errors, &path, c, volumes, host_network);
        unique_name(errors, &path, c, &mut names);
        unique_host_ports(errors, &path, c, &mut Vec::new());
        init_container(errors, &path, c);
    }
}

fn init_container(errors: &mut Errors, path: &str, c: &Value) {
    match text(&c["restartPolicy"]) {
        "Always" => {
            lifecycle(errors, path, c);
            probes(errors, path, c);
        }
        policy => {
            if !policy.is_empty() {
                errors.push(FieldError::not_supported(
                    format!("{path}.restartPolicy"),
                    policy,
                    &["Always"],
                ));
            }
            for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
                if !c[field].is_null() {
                    let detail = "may not be set for init containers without restartPolicy=Always";
                    errors.push(FieldError::forbidden(format!("{path}.{field}"), detail));
                }
            }
        }
    }
}

fn unique_name<'a>(errors: &mut Errors, path: &str, c: &'a Value, names: &mut Vec<&'a str>) {
    let name = text(&c["name"]);
    if !name.is_empty() && names.contains(&name) {
        errors.push(FieldError::duplicate(format!("{path}.name"), name));
    }
    names.push(name);
}

fn unique_host_ports(errors: &mut Errors, path: &str, c: &Value, seen: &mut Vec<String>) {
    for (i, port) in list(&c["ports"]).iter().enumerate() {
        let Some(number) = port["hostPort"].as_i64().filter(|&n| n != 0) else {
            continue;
        };
        let key = format!("{}/{}/{number}", text(&port["protocol"]), text(&port["hostIP"]));
        if seen.contains(&key) {
            errors.push(FieldError::duplicate(
                format!("{path}.ports[{i}].hostPort"),
                key.as_str(),
            ));
        }
        seen.push(key);
    }
}

fn container(errors: &mut Errors, path: &str, c: &Value, volumes: &[&str], host_network: bool) {
    match text(&c["name"]) {
        "" => errors.push(FieldError::required(format!("{path}.name"), "")),
        name => invalid_each(
            errors,
            &format!("{path}.name"),
            &c["name"],
            names::dns1123_label(name),
        ),
    }
    let image = text(&c["image"]);
    if image != image.trim() {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(format!("{path}.image"), image, detail));
    }
    let policies = ["FallbackToLogsOnError", "File"];
    one_of(
        errors,
        &format!("{path}.terminationMessagePolicy"),
        &c["terminationMessagePolicy"],
        &policies,
    );
    ports(errors, &format!("{path}.ports"), list(&c["ports"]), host_network);
    environment(errors, path, c);
    volume::mounts(errors, path, c, volumes);
    let pull = ["Always", "IfNotPresent", "Never"];
    one_of(
        errors,
        &format!("{path}.imagePullPolicy"),
        &c["imagePullPolicy"],
        &pull,
    );
    resources(errors, &format!("{path}.resources"), &c["resources"]);
    security_context(errors, &format!("{path}.securityContext"), &c["securityContext"]);
}

fn security_context(errors: &mut Errors, path: &str, context: &Value) {
    for field in ["runAsUser", "runAsGroup"] {
        pod::id_in_range(errors, &format!("{path}.{field}"), &context[field]);
    }
    if context["allowPrivilegeEscalation"] == false && context["privileged"] == true {
        errors.push(FieldError::invalid(
            path,
            context.clone(),
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ));
    }
}

fn ports(errors: &mut Errors, path: &str, ports: &[Value], host_network: bool) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let name = text(&port["name"]);
        if !name.is_empty() {
            let messages = names::port_name(name);
            if messages.is_empty() && seen.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            invalid_each(errors, &format!("{path}.name"), &port["name"], messages);
            seen.push(name);
        }
        let number = port["containerPort"].as_i64().unwrap_or(0);
        if number == 0 {
            errors.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else if !(1..=65535).contains(&number) {
            errors.push(FieldError::invalid(
                format!("{path}.containerPort"),
                number,
                names::PORT_RANGE,
            ));
        }
        let host = port["hostPort"].as_i64().unwrap_or(0);
        if host != 0 && !(1..=65535).contains(&host) {
            errors.push(FieldError::invalid(
                format!("{path}.hostPort"),
                host,
                names::PORT_RANGE,
            ));
        } else if host_network && host != number {
            let detail = "must match `containerPort` when `hostNetwork` is true";
            errors.push(FieldError::invalid(
                format!("{path}.containerPort"),
                number,
                detail,
            ));
        }
        one_of(errors, &format!("{path}.protocol"), &port["protocol"], PROTOCOLS);
    }
}

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const ENV_RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

fn environment(errors: &mut Errors, path: &str, c: &Value) {
    for (i, env) in list(&c["env"]).iter().enumerate() {
        let path = format!("{path}.env[{i}]");
        match text(&env["name"]) {
            "" => errors.push(FieldError::required(format!("{path}.name"), "")),
            name => invalid_each(
                errors,
                &format!("{path}.name"),
                &env["name"],
                names::env_name(name),
            ),
        }
        if env["valueFrom"].is_object() {
            value_from(errors, &format!("{path}.valueFrom"), env);
        }
    }
    for (i, from) in list(&c["envFrom"]).iter().enumerate() {
        let path = format!("{path}.envFrom[{i}]");
        if !unset(&from["prefix"]) {
            let messages = names::env_name(text(&from["prefix"]));
            invalid_each(errors, &format!("{path}.prefix"), &from["prefix"], messages);
        }
        let sources: Vec<_> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|s| from[*s].is_object())
            .collect();
        for source in &sources {
            if unset(&from[*source]["name"]) {
                errors.push(FieldError::required(format!("{path}.{source}.name"), ""));
            }
        }
        let detail = match sources.len() {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(path, "", detail));
    }
}

fn value_from(errors: &mut Errors, path: &str, env: &Value) {
    let from = &env["valueFrom"];
    let mut sources = 0;
    for (kind, source) in entries(from).filter(|(_, source)| source.is_object()) {
        sources += 1;
        let path = format!("{path}.{kind}");
        match kind {
            "fieldRef" => field_reference(errors, &path, source, ENV_FIELDS),
            "resourceFieldRef" => resource_reference(errors, &path, source, false),
            "configMapKeyRef" | "secretKeyRef" => {
                if unset(&source["name"]) {
                    errors.push(FieldError::required(format!("{path}.name"), ""));
                }
                match text(&source["key"]) {
                    "" => errors.push(FieldError::required(format!("{path}.key"), "")),
                    key => invalid_each(
                        errors,
                        &format!("{path}.key"),
                        &source["key"],
                        names::config_key(key),
                    ),
                }
            }
            _ => {}
        }
    }
    let detail = match sources {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        _ if !unset(&env["value"]) => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, "", detail));
}

/// A reference to a field of the pod.
pub(super) fn field_reference(errors: &mut Errors, path: &str, reference: &Value, supported: &[&str]) {
    if unset(&reference["apiVersion"]) {
        errors.push(FieldError::required(format!("{path}.apiVersion"), ""));
        return;
    }
    let field = text(&reference["fieldPath"]);
    let field_path = format!("{path}.fieldPath");
    if field.is_empty() {
        errors.push(FieldError::required(field_path, ""));
        return;
    }
    if let Some((base, rest)) = field.split_once('[') {
        let subscript = rest.trim_end_matches(']').trim_matches('\'');
        if matches!(base, "metadata.labels" | "metadata.annotations") {
            let key = subscript.to_lowercase();
            let key = if base == "metadata.labels" {
                subscript
            } else {
                &key
            };
            invalid_each(errors, &field_path, &subscript.into(), names::qualified_name(key));
        } else {
            let detail = format!("error converting fieldPath: {base:?} does not support subscript");
            errors.push(FieldError::invalid(field_path, field, detail));
        }
    } else if !supported.contains(&field) {
        let known =
            ENV_FIELDS.contains(&field) || matches!(field, "metadata.labels" | "metadata.annotations");
        errors.push(if known {
            FieldError::not_supported(field_path, field, supported)
        } else {
            let detail = format!("error converting fieldPath: field label not supported: {field}");
            FieldError::invalid(field_path, field, detail)
        });
    }
}

/// A reference to a container's limit or request.
pub(super) fn resource_reference(errors: &mut Errors, path: &str, reference: &Value, volume: bool) {
    if volume && unset(&reference["containerName"]) {
        errors.push(FieldError::required(format!("{path}.containerName"), ""));
        return;
    }
    match text(&reference["resource"]) {
        "" => errors.push(FieldError::required(format!("{path}.resource"), "")),
        resource if ENV_RESOURCES.contains(&resource) => {}
        resource if resource.contains(".hugepages-") => {}
        resource => errors.push(FieldError::not_supported(
            format!("{path}.resource"),
            resource,
            ENV_RESOURCES,
        )),
    }
}

fn resources(errors: &mut Errors, path: &str, resources: &Value) {
    let limits = &resources["limits"];
    for kind in ["limits", "requests"] {
        for (name, value) in entries(&resources[kind]) {
            let path = format!("{path}.{kind}");
            resource_name(errors, &format!("{path}[{name}]"), name);
            let Ok(quantity) = text(value).parse::<Quantity>() else {
                continue;
            };
            if quantity.is_negative() {
                errors.push(FieldError::invalid(
                    format!("{path}[{name}]"),
                    value.clone(),
                    super::NOT_NEGATIVE,
                ));
            }
            let limit = limits.get(name).and_then(|l| text(l).parse::<Quantity>().ok());
            if let Some(limit) = limit.filter(|l| kind == "requests" && quantity.nanos() > l.nanos()) {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(path, value.clone(), detail));
            }
        }
    }
}

fn resource_name(errors: &mut Errors, path: &str, name: &str) {
    invalid_each(errors, path, &name.into(), names::qualified_name(name));
    if name.contains('/') {
        return;
    }
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !standard {
        errors.push(FieldError::invalid(
            path,
            name,
            "must be a standard resource type or fully qualified",
        ));
        errors.push(FieldError::invalid(
            path,
            name,
            "must be a standard resource for containers",
        ));
    }
}

fn lifecycle(errors: &mut Errors, path: &str, c: &Value) {
    for hook in ["postStart", "preStop"] {
        if c["lifecycle"][hook].is_object() {
            handler(errors, &format!("{path}.lifecycle.{hook}"), &c["lifecycle"][hook]);
        }
    }
}

fn probes(errors: &mut Errors, path: &str, c: &Value) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &c[name];
        if !probe.is_object() {
            continue;
        }
        let path = format!("{path}.{name}");
        handler(errors, &path, probe);
        let numbers = [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ];
        for field in numbers {
            not_negative(errors, &format!("{path}.{field}"), &probe[field]);
        }
        if name != "readinessProbe" && probe["successThreshold"] != 1 {
            let value = probe["successThreshold"].as_i64().unwrap_or(0);
            errors.push(FieldError::invalid(
                format!("{path}.successThreshold"),
                value,
                "must be 1",
            ));
        }
    }
}

/// Exactly one of exec, httpGet, tcpSocket, grpc, sleep.
fn handler(errors: &mut Errors, path: &str, handler: &Value) {
    let mut found = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let action = &handler[kind];
        if !action.is_object() {
            continue;
        }
        let path = format!("{path}.{kind}");
        found += 1;
        if found > 1 {
            errors.push(FieldError::forbidden(
                &path,
                "may not specify more than 1 handler type",
            ));
            continue;
        }
        match kind {
            "exec" if list(&action["command"]).is_empty() => {
                errors.push(FieldError::required(format!("{path}.command"), ""));
            }
            "httpGet" => {
                if unset(&action["path"]) {
                    errors.push(FieldError::required(format!("{path}.path"), ""));
                }
                port_or_name(errors, &format!("{path}.port"), &action["port"]);
                one_of(
                    errors,
                    &format!("{path}.scheme"),
                    &action["scheme"],
                    &["HTTP", "HTTPS"],
                );
            }
            "tcpSocket" | "grpc" => port_or_name(errors, &format!("{path}.port"), &action["port"]),
            _ => {}
        }
    }
    if found == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_probe_has_exactly_one_handler() {
        let mut errors = Vec::new();
        probes(
            &mut errors,
            "c",
            &json!({"readinessProbe": {"successThreshold": 1}}),
        );
        assert_eq!(
            errors[0].to_string(),
            "c.readinessProbe: Required value: must specify a handler type"
        );
        errors.clear();
        let two = json!({"livenessProbe": {"successThreshold": 1, "exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}});
        probes(&mut errors, "c", &two);
        assert_eq!(
            errors[0].to_string(),
            "c.livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"
        );
    }
}
