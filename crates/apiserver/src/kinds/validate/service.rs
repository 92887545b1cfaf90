//! Services.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    CIDR, Errors, FieldError, IP, PROTOCOLS, invalid_each, meta, names, one_of, one_of_if_set, port_or_name,
};
use crate::kinds::value::{list, text, unset};

/// Judges a Service.
pub(in crate::kinds) fn service(new: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    let kind = text(&spec["type"]);
    ports(&mut errors, spec, kind);
    meta::labels(&mut errors, "spec.selector", &spec["selector"]);
    one_of(
        &mut errors,
        "spec.sessionAffinity",
        &spec["sessionAffinity"],
        &["ClientIP", "None"],
    );
    session_affinity(&mut errors, spec);
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(&mut errors, "spec.type", &spec["type"], &kinds);
    cluster_ips(&mut errors, spec, kind);
    families(&mut errors, spec, kind);
    external(&mut errors, spec, kind);
    traffic_policies(&mut errors, spec, kind);
    load_balancer(&mut errors, spec, kind);
    if let Some(old) = old {
        immutable_cluster_ip(&mut errors, spec, &old["spec"]);
    }
    errors
}

fn is_headless(spec: &Value) -> bool {
    spec["clusterIP"] == "None" || list(&spec["clusterIPs"]).first().is_some_and(|ip| ip == "None")
}

fn ports(errors: &mut Errors, spec: &Value, kind: &str) {
    let ports = list(&spec["ports"]);
    if ports.is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "LoadBalancer" && is_headless(spec) {
        let detail = "may not be set to 'None' for LoadBalancer services";
        errors.push(FieldError::invalid("spec.clusterIPs[0]", "None", detail));
    }
    let mut names_seen: Vec<&str> = Vec::new();
    let mut seen: Vec<(&str, i64)> = Vec::new();
    let mut node_ports: Vec<(&str, i64)> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        self::port(errors, &path, port, ports.len() > 1, &mut names_seen);
        let protocol = text(&port["protocol"]);
        let key = (protocol, port["port"].as_i64().unwrap_or(0));
        if seen.contains(&key) {
            let shown = json!({"Name": "", "Protocol": key.0, "AppProtocol": null, "Port": key.1,
                "TargetPort": 0, "NodePort": 0});
            errors.push(FieldError::duplicate(&path, shown));
        }
        seen.push(key);
        let Some(node_port) = port["nodePort"].as_i64().filter(|&n| n != 0) else {
            continue;
        };
        if !matches!(kind, "NodePort" | "LoadBalancer") {
            let detail = format!("may not be used when `type` is '{kind}'");
            errors.push(FieldError::forbidden(format!("{path}.nodePort"), detail));
        } else if node_ports.contains(&(protocol, node_port)) {
            errors.push(FieldError::duplicate(format!("{path}.nodePort"), node_port));
        }
        node_ports.push((protocol, node_port));
    }
}

fn port<'a>(errors: &mut Errors, path: &str, port: &'a Value, require_name: bool, seen: &mut Vec<&'a str>) {
    match text(&port["name"]) {
        "" if require_name => errors.push(FieldError::required(format!("{path}.name"), "")),
        "" => {}
        name => {
            invalid_each(
                errors,
                &format!("{path}.name"),
                &port["name"],
                names::dns1123_label(name),
            );
            if seen.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            seen.push(name);
        }
    }
    port_or_name(errors, &format!("{path}.port"), &port["port"]);
    one_of(errors, &format!("{path}.protocol"), &port["protocol"], PROTOCOLS);
    port_or_name(errors, &format!("{path}.targetPort"), &port["targetPort"]);
    app_protocol(errors, path, port);
}

/// Judges the application protocol of a port of a Service or EndpointSlice.
pub(super) fn app_protocol(errors: &mut Errors, path: &str, port: &Value) {
    let protocol = &port["appProtocol"];
    if !unset(protocol) {
        let messages = names::qualified_name(text(protocol));
        invalid_each(errors, &format!("{path}.appProtocol"), protocol, messages);
    }
}

fn session_affinity(errors: &mut Errors, spec: &Value) {
    let config = &spec["sessionAffinityConfig"];
    if spec["sessionAffinity"] == "ClientIP" {
        let path = "spec.sessionAffinityConfig";
        if !config["clientIP"].is_object() {
            let detail = "when session affinity type is ClientIP";
            errors.push(FieldError::required(path, detail));
            return;
        }
        let seconds = config["clientIP"]["timeoutSeconds"].as_i64().unwrap_or(0);
        if !(1..=86400).contains(&seconds) {
            errors.push(FieldError::invalid(
                format!("{path}.clientIP.timeoutSeconds"),
                seconds,
                "must be greater than 0 and less than or equal to 86400",
            ));
        }
    } else if !config.is_null() {
        let detail = "must not be set when session affinity type is None";
        errors.push(FieldError::forbidden("spec.sessionAffinityConfig", detail));
    }
}

fn cluster_ips(errors: &mut Errors, spec: &Value, kind: &str) {
    let ips = list(&spec["clusterIPs"]);
    if kind == "ExternalName" {
        if !ips.is_empty() {
            errors.push(FieldError::forbidden(
                "spec.clusterIPs",
                "may not be set when `type` is 'ExternalName'",
            ));
        }
        return;
    }
    if let (Some(first), false) = (ips.first(), unset(&spec["clusterIP"]))
        && *first != spec["clusterIP"]
    {
        let detail = "first value must match `clusterIP`";
        errors.push(FieldError::invalid(
            "spec.clusterIPs",
            spec["clusterIPs"].clone(),
            detail,
        ));
    }
    if ips.is_empty() {
        if !unset(&spec["clusterIP"]) {
            cluster_ip(errors, "spec.clusterIPs[0]", &spec["clusterIP"]);
        }
        return;
    }
    let none = ips.iter().filter(|ip| *ip == "None").count();
    for (i, ip) in ips.iter().enumerate() {
        if ip == "None" && ips.len() > 1 {
            let detail = "must be a valid IP address";
            errors.push(FieldError::invalid(
                format!("spec.clusterIPs[{i}]"),
                ip.clone(),
                detail,
            ));
        } else {
            cluster_ip(errors, &format!("spec.clusterIPs[{i}]"), ip);
        }
    }
    if ips.len() > 2 {
        let detail = "may only hold up to 2 values";
        errors.push(FieldError::invalid(
            "spec.clusterIPs",
            spec["clusterIPs"].clone(),
            detail,
        ));
    } else if let ([Ok(a), Ok(b)], 0) = (
        ips.iter()
            .map(|ip| text(ip).parse::<IpAddr>())
            .collect::<Vec<_>>()
            .as_slice(),
        none,
    ) && a.is_ipv4() == b.is_ipv4()
    {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(
            "spec.clusterIPs",
            spec["clusterIPs"].clone(),
            detail,
        ));
    }
}

fn cluster_ip(errors: &mut Errors, path: &str, ip: &Value) {
    if ip != "None" && text(ip).parse::<IpAddr>().is_err() {
        errors.push(FieldError::invalid(path, ip.clone(), IP));
    }
}

const FAMILIES: &[&str] = &["IPv4", "IPv6"];

fn families(errors: &mut Errors, spec: &Value, kind: &str) {
    if kind == "ExternalName" {
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if !unset(&spec[field]) {
                let detail = "may not be set when `type` is 'ExternalName'";
                errors.push(FieldError::forbidden(format!("spec.{field}"), detail));
            }
        }
        return;
    }
    let families = list(&spec["ipFamilies"]);
    for (i, family) in families.iter().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        if !FAMILIES.contains(&text(family)) {
            errors.push(FieldError::not_supported(&path, family.clone(), FAMILIES));
        }
        if families[..i].contains(family) {
            errors.push(FieldError::duplicate(path, family.clone()));
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    one_of_if_set(errors, "spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], &policies);
    let single = spec["ipFamilyPolicy"] == "SingleStack";
    if single && list(&spec["clusterIPs"]).len() > 1 {
        let detail =
            "may be `RequireDualStack` or `PreferDualStack` when multiple `clusterIPs` are specified";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", "SingleStack", detail));
    } else if single && families.len() > 1 {
        let detail =
            "may be `RequireDualStack` or `PreferDualStack` when multiple `ipFamilies` are specified";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", "SingleStack", detail));
    }
    for (i, (ip, family)) in list(&spec["clusterIPs"]).iter().zip(families).enumerate() {
        let Ok(ip) = text(ip).parse::<IpAddr>() else {
            continue;
        };
        if ip.is_ipv4() != (family == "IPv4") {
            let detail = format!(
                "expected an {} value as indicated by `ipFamilies[{i}]`",
                text(family)
            );
            errors.push(FieldError::invalid(
                format!("spec.clusterIPs[{i}]"),
                ip.to_string(),
                detail,
            ));
        }
    }
}

fn external(errors: &mut Errors, spec: &Value, kind: &str) {
    if kind == "ExternalName" {
        match text(&spec["externalName"]).trim_end_matches('.') {
            "" => errors.push(FieldError::required("spec.externalName", "")),
            name => {
                let messages = names::dns1123_subdomain(name);
                invalid_each(errors, "spec.externalName", &spec["externalName"], messages);
            }
        }
    }
    for (i, ip) in list(&spec["externalIPs"]).iter().enumerate() {
        let path = format!("spec.externalIPs[{i}]");
        match text(ip).parse::<IpAddr>() {
            Ok(address) => {
                if let Some(detail) = not_reachable(address) {
                    errors.push(FieldError::invalid(path, ip.clone(), detail));
                }
            }
            Err(_) => errors.push(FieldError::invalid(path, ip.clone(), IP)),
        }
    }
}

/// Why an address cannot be an endpoint or an external address; `None` when it can.
pub(super) fn not_reachable(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let link_multicast = match ip {
        IpAddr::V4(v4) => v4.octets().starts_with(&[224, 0, 0]),
        IpAddr::V6(v6) => v6.segments()[0] == 0xff02,
    };
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if link_multicast {
        Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
    } else {
        None
    }
}

fn traffic_policies(errors: &mut Errors, spec: &Value, kind: &str) {
    let policies = ["Cluster", "Local"];
    let external = &spec["externalTrafficPolicy"];
    let reachable = matches!(kind, "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !list(&spec["externalIPs"]).is_empty());
    if !unset(external) && !reachable {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(
            "spec.externalTrafficPolicy",
            external.clone(),
            detail,
        ));
    } else {
        one_of_if_set(errors, "spec.externalTrafficPolicy", external, &policies);
    }
    one_of_if_set(
        errors,
        "spec.internalTrafficPolicy",
        &spec["internalTrafficPolicy"],
        &policies,
    );
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    one_of_if_set(
        errors,
        "spec.trafficDistribution",
        &spec["trafficDistribution"],
        &distributions,
    );
    let health = spec["healthCheckNodePort"].as_i64().unwrap_or(0);
    if health != 0 && !(kind == "LoadBalancer" && external == "Local") {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid("spec.healthCheckNodePort", health, detail));
    }
}

fn load_balancer(errors: &mut Errors, spec: &Value, kind: &str) {
    for (i, range) in list(&spec["loadBalancerSourceRanges"]).iter().enumerate() {
        if text(range).trim().parse::<IpNet>().is_err() {
            let path = format!("spec.loadBalancerSourceRanges[{i}]");
            errors.push(FieldError::invalid(path, range.clone(), CIDR));
        }
    }
    if kind == "LoadBalancer" {
        return;
    }
    let detail = "may only be used when `type` is 'LoadBalancer'";
    for field in [
        "loadBalancerSourceRanges",
        "allocateLoadBalancerNodePorts",
        "loadBalancerClass",
    ] {
        if !unset(&spec[field]) {
            errors.push(FieldError::forbidden(format!("spec.{field}"), detail));
        }
    }
}

/// The first cluster IP stays for as long as the service has one.
fn immutable_cluster_ip(errors: &mut Errors, spec: &Value, old: &Value) {
    if spec["type"] == "ExternalName" || old["type"] == "ExternalName" {
        return;
    }
    let first = |s: &Value| match list(&s["clusterIPs"]).first() {
        Some(ip) => text(ip).to_owned(),
        None => text(&s["clusterIP"]).to_owned(),
    };
    let (now, before) = (first(spec), first(old));
    if before.is_empty() || now == before {
        return;
    }
    let detail = if now.is_empty() {
        "primary clusterIP can not be unset"
    } else {
        "may not change once set"
    };
    let shown = if list(&spec["clusterIPs"]).is_empty() {
        json!([now])
    } else {
        spec["clusterIPs"].clone()
    };
    errors.push(FieldError::invalid("spec.clusterIPs[0]", shown, detail));
}
