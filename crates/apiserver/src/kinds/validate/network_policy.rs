//! NetworkPolicies.

use ipnet::IpNet;
use serde_json::Value;

use super::{CIDR, Errors, FieldError, invalid_each, names, selector};
use crate::kinds::value::{list, text, unset};

/// Judges a NetworkPolicy.
pub(in crate::kinds) fn network_policy(new: &Value, _old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    selector::label_selector(&mut errors, "spec.podSelector", &spec["podSelector"]);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in list(&spec[direction]).iter().enumerate() {
            let path = format!("spec.{direction}[{i}]");
            for (j, port) in list(&rule["ports"]).iter().enumerate() {
                self::port(&mut errors, &format!("{path}.ports[{j}]"), port);
            }
            for (j, peer) in list(&rule[peers]).iter().enumerate() {
                self::peer(&mut errors, &format!("{path}.{peers}[{j}]"), peer);
            }
        }
    }
    let types = list(&spec["policyTypes"]);
    if types.len() > 2 {
        let detail = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid(
            "spec.policyTypes",
            spec["policyTypes"].clone(),
            detail,
        ));
        return errors;
    }
    for kind in types {
        if !matches!(text(kind), "Ingress" | "Egress") {
            let supported = ["Egress", "Ingress"];
            errors.push(FieldError::not_supported(
                "spec.policyTypes",
                kind.clone(),
                &supported,
            ));
        }
    }
    errors
}

fn port(errors: &mut Errors, path: &str, port: &Value) {
    if !unset(&port["protocol"]) {
        super::one_of(
            errors,
            &format!("{path}.protocol"),
            &port["protocol"],
            super::PROTOCOLS,
        );
    }
    let end_path = format!("{path}.endPort");
    let end = port["endPort"].as_i64();
    match (&port["port"], end) {
        (Value::Null, Some(end)) => {
            let detail = "may not be specified when `port` is not specified";
            errors.push(FieldError::invalid(end_path, end, detail));
        }
        (Value::Null, None) => {}
        (Value::String(name), end) => {
            if let Some(end) = end {
                let detail = "may not be specified when `port` is non-numeric";
                errors.push(FieldError::invalid(end_path, end, detail));
            }
            invalid_each(
                errors,
                &format!("{path}.port"),
                &port["port"],
                names::port_name(name),
            );
        }
        (number, end) => {
            let number = number.as_i64().unwrap_or(0);
            if let Some(end) = end {
                if end < number {
                    let detail = "must be greater than or equal to `port`";
                    errors.push(FieldError::invalid(&end_path, number, detail));
                }
                if !(1..=65535).contains(&end) {
                    errors.push(FieldError::invalid(end_path, end, names::PORT_RANGE));
                }
            }
            if !(1..=65535).contains(&number) {
                errors.push(FieldError::invalid(
                    format!("{path}.port"),
                    number,
                    names::PORT_RANGE,
                ));
            }
        }
    }
}

fn peer(errors: &mut Errors, path: &str, peer: &Value) {
    let mut found = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if peer[field].is_object() {
            found += 1;
            selector::label_selector(errors, &format!("{path}.{field}"), &peer[field]);
        }
    }
    let block = &peer["ipBlock"];
    if block.is_object() {
        ip_block(errors, &format!("{path}.ipBlock"), block);
        if found > 0 {
            errors.push(FieldError::forbidden(
                path,
                "may not specify both ipBlock and another peer",
            ));
        }
        found += 1;
    }
    if found == 0 {
        errors.push(FieldError::required(path, "must specify a peer"));
    }
}

fn ip_block(errors: &mut Errors, path: &str, block: &Value) {
    let cidr = text(&block["cidr"]);
    if cidr.is_empty() {
        errors.push(FieldError::required(format!("{path}.cidr"), ""));
        return;
    }
    let Ok(whole) = cidr.parse::<IpNet>() else {
        errors.push(FieldError::invalid(format!("{path}.cidr"), cidr, CIDR));
        return;
    };
    for (i, except) in list(&block["except"]).iter().enumerate() {
        let path = format!("{path}.except[{i}]");
        match text(except).parse::<IpNet>() {
            Err(_) => errors.push(FieldError::invalid(path, except.clone(), CIDR)),
            Ok(part) => {
                if !whole.contains(&part.trunc()) || part.prefix_len() <= whole.prefix_len() {
                    errors.push(FieldError::invalid(
                        path,
                        except.clone(),
                        "must be a strict subset of `cidr`",
                    ));
                }
            }
        }
    }
}
