//! ServiceCIDRs and IPAddresses.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::{CIDR, Errors, FieldError, IMMUTABLE, invalid_each, names};
use crate::kinds::value::{list, text};

/// Judges a ServiceCIDR. Its ranges stay, but a second one may join the first: that of the other family.
pub(in crate::kinds) fn service_cidr(new: &Value, old: Option<&Value>) -> Errors {
    let path = "spec.cidrs";
    let ranges = list(&new["spec"]["cidrs"]);
    let Some(old) = old.map(|old| list(&old["spec"]["cidrs"])) else {
        return cidrs(path, ranges);
    };
    let kept = old.len().min(ranges.len());
    let changed = (0..kept).filter(|&i| ranges[i] != old[i]);
    let changed = changed.map(|i| FieldError::invalid(format!("{path}[{i}]"), ranges[i].clone(), IMMUTABLE));
    match (old.len(), ranges.len()) {
        (before, now) if before == now => changed.collect(),
        (1, 2) => changed.chain(cidrs(path, ranges)).collect(),
        _ => vec![FieldError::invalid(path, ranges.to_vec(), IMMUTABLE)],
    }
}

fn cidrs(path: &str, ranges: &[Value]) -> Errors {
    let families: Vec<Option<bool>> = ranges.iter().map(is_ipv4).collect();
    let detail = match families.as_slice() {
        [] => return vec![FieldError::required(path, "at least one CIDR required")],
        [_] | [Some(true), Some(false)] | [Some(false), Some(true)] => None,
        [None, _] | [_, None] => None,
        [_, _] => {
            Some("may specify no more than one CIDR for each IP family, i.e 192.168.0.0/24 and 2001:db8::/96")
        }
        _ => Some("may only hold up to 2 values"),
    };
    if let Some(detail) = detail {
        return vec![FieldError::invalid(path, ranges.to_vec(), detail)];
    }
    let mut errors = Vec::new();
    for (i, range) in ranges.iter().enumerate() {
        if let Some(detail) = not_canonical(text(range)) {
            errors.push(FieldError::invalid(format!("{path}[{i}]"), range.clone(), detail));
        }
    }
    errors
}

fn is_ipv4(range: &Value) -> Option<bool> {
    let range: IpNet = text(range).parse().ok()?;
    Some(range.addr().is_ipv4())
}

/// What is wrong with a range's text.
fn not_canonical(range: &str) -> Option<String> {
    let Ok(net) = range.parse::<IpNet>() else {
        return Some(CIDR.to_owned());
    };
    let canonical = net.trunc().to_string();
    (canonical != range).then(|| format!("must be in canonical form ({canonical:?})"))
}

/// What is wrong with a name that is an address.
pub(super) fn address_name(name: &str) -> Vec<String> {
    match name.parse::<IpAddr>() {
        Err(_) => vec![super::IP.to_owned()],
        Ok(address) if address.to_string() == name => Vec::new(),
        Ok(address) => vec![format!("must be in canonical form ({:?})", address.to_string())],
    }
}

/// Judges an IPAddress.
pub(in crate::kinds) fn ip_address(new: &Value, old: Option<&Value>) -> Errors {
    let path = "spec.parentRef";
    let parent = &new["spec"]["parentRef"];
    let mut errors = Vec::new();
    if parent.is_null() {
        return vec![FieldError::required(path, "")];
    }
    let group = text(&parent["group"]);
    if !group.is_empty() {
        let messages = names::dns1123_subdomain(group);
        invalid_each(&mut errors, &format!("{path}.group"), &parent["group"], messages);
    }
    for field in ["resource", "name"] {
        if text(&parent[field]).is_empty() {
            errors.push(FieldError::required(format!("{path}.{field}"), ""));
        }
    }
    if old.is_some_and(|old| old["spec"]["parentRef"] != *parent) {
        errors.push(FieldError::invalid(path, parent.clone(), IMMUTABLE));
    }
    errors
}
