//! Kubernetes' rules for each kind, with its field paths and texts.
//!
//! One rule is ours: a container without an image is allowed, it runs on the machine's own root filesystem.

mod affinity;
mod cluster;
mod config;
mod container;
mod crd;
mod endpoints;
mod meta;
mod names;
mod network_policy;
mod pod;
mod pod_update;
mod selector;
mod service;
mod service_cidr;
mod volume;
mod workload;

pub(super) use cluster::{lease, namespace, node};
pub(super) use config::{config_map, event, new_event, secret};
pub(super) use crd::crd;
pub(super) use endpoints::{endpoint_slice, endpoints};
pub(super) use meta::{NameRule, object_meta, standard_finalizers};
pub(super) use network_policy::network_policy;
pub(super) use pod::pod;
pub(super) use service::service;
pub(super) use service_cidr::{ip_address, service_cidr};
pub(super) use workload::{deployment, replica_set};

use serde_json::Value;

use super::FieldError;

/// What was found wrong so far.
type Errors = Vec<FieldError>;

const IMMUTABLE: &str = "field is immutable";
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// One `Invalid value` per message.
fn invalid_each(errors: &mut Errors, path: &str, value: &Value, messages: Vec<String>) {
    errors.extend(
        messages
            .into_iter()
            .map(|m| FieldError::invalid(path, value.clone(), m)),
    );
}

/// A number, when there is one, that may not be negative.
fn not_negative(errors: &mut Errors, path: &str, value: &Value) {
    if value.as_i64().is_some_and(|n| n < 0) {
        errors.push(FieldError::invalid(path, value.clone(), NOT_NEGATIVE));
    }
}

/// A string out of a list; required.
fn one_of(errors: &mut Errors, path: &str, value: &Value, supported: &[&str]) {
    match value.as_str() {
        None | Some("") => errors.push(FieldError::required(path, "")),
        Some(s) if supported.contains(&s) => {}
        Some(s) => errors.push(FieldError::not_supported(path, s, supported)),
    }
}

/// A string out of a list, when there is one.
fn one_of_if_set(errors: &mut Errors, path: &str, value: &Value, supported: &[&str]) {
    if !super::value::unset(value) {
        one_of(errors, path, value, supported);
    }
}

/// A port's number or name.
fn port_or_name(errors: &mut Errors, path: &str, value: &Value) {
    match value {
        Value::String(name) => invalid_each(errors, path, value, names::port_name(name)),
        other => {
            let number = other.as_i64().unwrap_or(0);
            if !(1..=65535).contains(&number) {
                errors.push(FieldError::invalid(path, number, names::PORT_RANGE));
            }
        }
    }
}

#[cfg(test)]
mod tests;
