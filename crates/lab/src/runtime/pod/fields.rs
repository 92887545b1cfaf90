//! The downward API: a pod's own fields and its containers' resources as text.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use podnet_core::quantity::Quantity;

use super::spec;

/// What of the pod is not in its specification.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The pod's addresses.
    pub pod_ips: &'a [IpAddr],
    /// The node's addresses.
    pub node_ips: &'a [IpAddr],
    /// The node's CPUs.
    pub cpus: u32,
    /// The node's memory in bytes.
    pub memory: u64,
}

/// The text of a field, as environment variables and volumes take it.
pub fn field(pod: &Pod, path: &str, facts: Facts<'_>) -> Result<String, String> {
    let empty = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(labels.get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(annotations.get(key).cloned().unwrap_or_default());
    }
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    let spec = spec::spec(pod);
    Ok(match path {
        "metadata.name" => text(pod.metadata.name.as_ref()),
        "metadata.namespace" => text(pod.metadata.namespace.as_ref()),
        "metadata.uid" => text(pod.metadata.uid.as_ref()),
        "metadata.labels" => lines(labels),
        "metadata.annotations" => lines(annotations),
        "spec.nodeName" => text(spec.node_name.as_ref()),
        "spec.serviceAccountName" => text(spec.service_account_name.as_ref()),
        "status.podIP" => first(facts.pod_ips),
        "status.podIPs" => join(facts.pod_ips),
        "status.hostIP" => first(facts.node_ips),
        "status.hostIPs" => join(facts.node_ips),
        other => return Err(format!("unsupported fieldPath: {other}")),
    })
}

/// Whether the field is known only when the pod has its network.
pub fn needs_network(path: &str) -> bool {
    matches!(path, "status.podIP" | "status.podIPs")
}

/// The text of a container's resource. A limit that is not set is the node's capacity.
pub fn resource(
    pod: &Pod,
    default: Option<&Container>,
    selector: &ResourceFieldSelector,
    facts: Facts<'_>,
) -> Result<String, String> {
    let container = match &selector.container_name {
        Some(name) if !name.is_empty() => spec::member(pod, name).map(|member| member.container),
        _ => default,
    };
    let container = container.ok_or_else(|| "container not found".to_owned())?;
    let resources = container.resources.as_ref();
    let (list, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let limits = resources.and_then(|it| it.limits.as_ref());
    let set = match list {
        "limits" => limits.and_then(|it| it.get(name)),
        "requests" => resources
            .and_then(|it| it.requests.as_ref())
            .and_then(|it| it.get(name)),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let value = match (set, list, name) {
        (Some(quantity), ..) => quantity.0.clone(),
        (None, "limits", "cpu") => facts.cpus.to_string(),
        (None, "limits", "memory") => facts.memory.to_string(),
        (None, ..) => "0".into(),
    };
    let divisor = selector.divisor.as_ref().map(|it| it.0.as_str());
    divided(&value, divisor)
        .map(|amount| amount.to_string())
        .ok_or_else(|| {
            format!(
                "{} of {value} cannot be divided by {divisor:?}",
                selector.resource
            )
        })
}

/// How many divisors a quantity is; a divisor that is not given, or zero, is one.
fn divided(value: &str, divisor: Option<&str>) -> Option<i128> {
    let divisor = match divisor {
        None | Some("" | "0") => Quantity::ONE,
        Some(divisor) => divisor.parse().ok()?,
    };
    value.parse::<Quantity>().ok()?.divided(divisor)
}

/// The key in `metadata.labels['key']`.
fn subscript<'a>(path: &'a str, base: &str) -> Option<&'a str> {
    path.strip_prefix(base)?.strip_prefix("['")?.strip_suffix("']")
}

/// `key="value"` lines, in the order of the keys, values quoted as Go's `%q` does.
fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter()
        .map(|(key, value)| format!("{key}={}", quoted(value)))
        .collect::<Vec<_>>()
        .join("\n")
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn first(ips: &[IpAddr]) -> String {
    ips.first().map(ToString::to_string).unwrap_or_default()
}

fn join(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::testing::pod;

    #[test]
    fn fields_are_the_pods_own() {
        let pod = pod(r#"{"nodeName":"node1","containers":[]}"#);
        let ips = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let facts = Facts {
            pod_ips: &ips,
            node_ips: &ips[..1],
            cpus: 2,
            memory: 1 << 30,
        };
        let get = |path| field(&pod, path, facts).unwrap();
        assert_eq!(get("metadata.name"), "web");
        assert_eq!(get("metadata.labels['app']"), "web");
        assert_eq!(get("metadata.labels['none']"), "");
        assert_eq!(get("metadata.labels"), "app=\"web\"\ntier=\"a\\\"b\"");
        assert_eq!(get("metadata.annotations"), "note=\"two\\nlines\"");
        assert_eq!(get("spec.nodeName"), "node1");
        assert_eq!(get("status.podIPs"), "10.0.0.1,fd00::1");
        assert_eq!(get("status.hostIP"), "10.0.0.1");
        assert!(field(&pod, "spec.nope", facts).is_err());
    }

    #[test]
    fn unset_limits_are_the_nodes() {
        let pod = pod(r#"{"containers":[{"name":"a","resources":{"limits":{"cpu":"250m"}}}]}"#);
        let facts = Facts {
            pod_ips: &[],
            node_ips: &[],
            cpus: 2,
            memory: 1 << 30,
        };
        let get = |text: &str| {
            let selector = serde_json::from_str(text).unwrap();
            resource(&pod, spec::spec(&pod).containers.first(), &selector, facts)
        };
        assert_eq!(get(r#"{"resource":"limits.cpu","divisor":"1m"}"#).unwrap(), "250");
        assert_eq!(get(r#"{"resource":"limits.cpu"}"#).unwrap(), "1");
        assert_eq!(
            get(r#"{"resource":"limits.memory","divisor":"1Mi"}"#).unwrap(),
            "1024"
        );
        assert_eq!(get(r#"{"resource":"requests.cpu"}"#).unwrap(), "0");
        assert!(get(r#"{"resource":"limits.cpu","containerName":"x"}"#).is_err());
    }
}
