//! Endpoints and EndpointSlices.

use std::net::IpAddr;

use serde_json::Value;

use super::{
    Errors, FieldError, IMMUTABLE, IP, PROTOCOLS, invalid_each, names, one_of, port_or_name, service,
};
use crate::kinds::value::{list, text, unset};

/// Judges an Endpoints object.
pub(in crate::kinds) fn endpoints(new: &Value, _old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    for (i, subset) in list(&new["subsets"]).iter().enumerate() {
        let path = format!("subsets[{i}]");
        let groups = ["addresses", "notReadyAddresses"];
        if groups.iter().all(|g| list(&subset[*g]).is_empty()) {
            errors.push(FieldError::required(
                &path,
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for group in groups {
            for (j, address) in list(&subset[group]).iter().enumerate() {
                address_ip(&mut errors, &format!("{path}.{group}[{j}].ip"), &address["ip"]);
            }
        }
        let ports = list(&subset["ports"]);
        for (j, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{j}]");
            match text(&port["name"]) {
                "" if ports.len() > 1 => errors.push(FieldError::required(format!("{path}.name"), "")),
                "" => {}
                name => {
                    invalid_each(
                        &mut errors,
                        &format!("{path}.name"),
                        &port["name"],
                        names::dns1123_label(name),
                    );
                }
            }
            port_or_name(&mut errors, &format!("{path}.port"), &port["port"]);
            one_of(
                &mut errors,
                &format!("{path}.protocol"),
                &port["protocol"],
                PROTOCOLS,
            );
        }
    }
    errors
}

fn address_ip(errors: &mut Errors, path: &str, ip: &Value) {
    match text(ip).parse::<IpAddr>() {
        Err(_) => errors.push(FieldError::invalid(path, text(ip), IP)),
        Ok(address) => {
            if let Some(detail) = service::not_reachable(address) {
                errors.push(FieldError::invalid(path, ip.clone(), detail));
            }
        }
    }
}

/// Judges an EndpointSlice.
pub(in crate::kinds) fn endpoint_slice(new: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    one_of(
        &mut errors,
        "addressType",
        &new["addressType"],
        &["FQDN", "IPv4", "IPv6"],
    );
    let kind = text(&new["addressType"]);
    let endpoints = list(&new["endpoints"]);
    if endpoints.len() > 1000 {
        errors.push(FieldError::too_many("endpoints", endpoints.len(), 1000));
    } else {
        for (i, endpoint) in endpoints.iter().enumerate() {
            self::endpoint(&mut errors, &format!("endpoints[{i}]"), endpoint, kind);
        }
    }
    slice_ports(&mut errors, list(&new["ports"]));
    if let Some(old) = old
        && new["addressType"] != old["addressType"]
    {
        errors.push(FieldError::invalid(
            "addressType",
            new["addressType"].clone(),
            IMMUTABLE,
        ));
    }
    errors
}

fn endpoint(errors: &mut Errors, path: &str, endpoint: &Value, kind: &str) {
    let addresses = list(&endpoint["addresses"]);
    let addresses_path = format!("{path}.addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(
            &addresses_path,
            "must contain at least 1 address",
        ));
    } else if addresses.len() > 100 {
        errors.push(FieldError::too_many(&addresses_path, addresses.len(), 100));
    }
    for (i, address) in addresses.iter().enumerate() {
        let path = format!("{addresses_path}[{i}]");
        let parsed = text(address).parse::<IpAddr>().ok();
        let detail = match (kind, parsed) {
            ("IPv4", Some(IpAddr::V4(_))) | ("IPv6", Some(IpAddr::V6(_))) => {
                parsed.and_then(service::not_reachable)
            }
            ("IPv4", _) => Some("must be an IPv4 address"),
            ("IPv6", _) => Some("must be an IPv6 address"),
            ("FQDN", _) => {
                invalid_each(errors, &path, address, names::dns1123_subdomain(text(address)));
                None
            }
            _ => None,
        };
        if let Some(detail) = detail {
            errors.push(FieldError::invalid(path, address.clone(), detail));
        }
    }
    for (field, check) in [
        ("nodeName", names::dns1123_subdomain as fn(&str) -> Vec<String>),
        ("hostname", names::dns1123_label),
    ] {
        if !unset(&endpoint[field]) {
            let messages = check(text(&endpoint[field]));
            invalid_each(errors, &format!("{path}.{field}"), &endpoint[field], messages);
        }
    }
    for (i, zone) in list(&endpoint["hints"]["forZones"]).iter().enumerate() {
        let path = format!("{path}.hints.forZones[{i}].name");
        invalid_each(
            errors,
            &path,
            &zone["name"],
            names::label_value(text(&zone["name"])),
        );
    }
}

fn slice_ports(errors: &mut Errors, ports: &[Value]) {
    if ports.len() > 20000 {
        errors.push(FieldError::too_many("ports", ports.len(), 20000));
        return;
    }
    let mut seen = std::collections::HashSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = format!("ports[{i}]");
        let name = text(&port["name"]);
        if !name.is_empty() {
            invalid_each(
                errors,
                &format!("{path}.name"),
                &port["name"],
                names::dns1123_label(name),
            );
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        one_of(errors, &format!("{path}.protocol"), &port["protocol"], PROTOCOLS);
        service::app_protocol(errors, &path, port);
    }
}
