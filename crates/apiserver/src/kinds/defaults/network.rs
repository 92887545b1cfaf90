//! Services, endpoints and network policies.

use serde_json::{Value, json};

use crate::kinds::value::{default, list, list_mut, object_mut, text, unset};

pub(in crate::kinds) fn service(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    default(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "None" {
        crate::kinds::value::remove(spec, "sessionAffinityConfig");
    }
    if spec["sessionAffinity"] == "ClientIP"
        && let Some(config) = object_mut(spec, "sessionAffinityConfig")
        && let Some(client_ip) = object_mut(config, "clientIP")
    {
        default(client_ip, "timeoutSeconds", 10800);
    }
    default(spec, "type", "ClusterIP");
    for port in list_mut(spec, "ports") {
        default(port, "protocol", "TCP");
        if unset(&port["targetPort"]) || port["targetPort"] == 0 {
            port["targetPort"] = port["port"].clone();
        }
    }
    let kind = text(&spec["type"]).to_owned();
    let external = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !list(&spec["externalIPs"]).is_empty());
    if external {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
}

pub(in crate::kinds) fn endpoints(object: &mut Value) {
    for subset in list_mut(object, "subsets") {
        for port in list_mut(subset, "ports") {
            default(port, "protocol", "TCP");
        }
    }
}

pub(in crate::kinds) fn endpoint_slice(object: &mut Value) {
    for port in list_mut(object, "ports") {
        if let Some(fields) = port.as_object_mut() {
            fields.entry("name").or_insert_with(|| "".into());
        }
        default(port, "protocol", "TCP");
    }
}

pub(in crate::kinds) fn network_policy(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    default(spec, "podSelector", json!({}));
    for direction in ["ingress", "egress"] {
        for rule in list_mut(spec, direction) {
            for port in list_mut(rule, "ports") {
                default(port, "protocol", "TCP");
            }
        }
    }
    if list(&spec["policyTypes"]).is_empty() {
        let egress = !list(&spec["egress"]).is_empty();
        spec["policyTypes"] = if egress {
            json!(["Ingress", "Egress"])
        } else {
            json!(["Ingress"])
        };
    }
}
