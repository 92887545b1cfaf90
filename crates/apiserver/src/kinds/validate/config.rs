//! ConfigMaps, Secrets and Events.

use base64::Engine as _;
use serde_json::Value;

use super::{Errors, FieldError, IMMUTABLE, invalid_each, names, one_of};
use crate::kinds::value::{entries, text, unset};

/// What the values of a ConfigMap or Secret may add up to.
const MAX_SIZE: usize = 1024 * 1024;

const FROZEN: &str = "field is immutable when `immutable` is set";

/// Judges a ConfigMap.
pub(in crate::kinds) fn config_map(new: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in entries(&new["data"]) {
        let path = format!("data[{key}]");
        invalid_each(&mut errors, &path, &key.into(), names::config_key(key));
        if new["binaryData"].get(key).is_some() {
            errors.push(FieldError::invalid(
                path,
                key,
                "duplicate of key present in binaryData",
            ));
        }
        size += text(value).len();
    }
    for (key, value) in entries(&new["binaryData"]) {
        invalid_each(
            &mut errors,
            &format!("binaryData[{key}]"),
            &key.into(),
            names::config_key(key),
        );
        size += decoded(value).len();
    }
    if size > MAX_SIZE {
        errors.push(FieldError::too_long("", MAX_SIZE));
    }
    if let Some(old) = old {
        frozen(&mut errors, new, old, &["data", "binaryData"]);
    }
    errors
}

/// What is immutable once `immutable` is true.
fn frozen(errors: &mut Errors, new: &Value, old: &Value, fields: &[&str]) {
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        errors.push(FieldError::forbidden("immutable", FROZEN));
    }
    for field in fields {
        if new[*field] != old[*field] {
            errors.push(FieldError::forbidden(*field, FROZEN));
        }
    }
}

fn decoded(value: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD
        .decode(text(value))
        .unwrap_or_default()
}

/// Judges a Secret.
pub(in crate::kinds) fn secret(new: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let data = &new["data"];
    let mut size = 0;
    for (key, value) in entries(data) {
        invalid_each(
            &mut errors,
            &format!("data[{key}]"),
            &key.into(),
            names::config_key(key),
        );
        size += decoded(value).len();
    }
    if size > MAX_SIZE {
        errors.push(FieldError::too_long("data", MAX_SIZE));
    }
    let needs = |errors: &mut Errors, keys: &[&str]| {
        for key in keys.iter().filter(|key| data.get(**key).is_none()) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(&new["type"]) {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if unset(&new["metadata"]["annotations"][annotation]) {
                errors.push(FieldError::required(
                    format!("metadata.annotations[{annotation}]"),
                    "",
                ));
            }
        }
        "kubernetes.io/dockercfg" => json_file(&mut errors, data, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => json_file(&mut errors, data, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            needs(&mut errors, &["username", "password"]);
        }
        "kubernetes.io/ssh-auth" if decoded(&data["ssh-privatekey"]).is_empty() => {
            errors.push(FieldError::required("data[ssh-privatekey]", ""));
        }
        "kubernetes.io/tls" => needs(&mut errors, &["tls.crt", "tls.key"]),
        _ => {}
    }
    if let Some(old) = old {
        if new["type"] != old["type"] {
            errors.push(FieldError::invalid("type", new["type"].clone(), IMMUTABLE));
        }
        frozen(&mut errors, new, old, &["data"]);
    }
    errors
}

fn json_file(errors: &mut Errors, data: &Value, key: &str) {
    let path = format!("data[{key}]");
    match data.get(key) {
        None => errors.push(FieldError::required(path, "")),
        Some(value) => {
            if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&decoded(value)) {
                errors.push(FieldError::invalid(
                    path,
                    "<secret contents redacted>",
                    error.to_string(),
                ));
            }
        }
    }
}

/// Judges a core Event.
pub(in crate::kinds) fn event(new: &Value, _old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let own = text(&new["metadata"]["namespace"]);
    let involved = text(&new["involvedObject"]["namespace"]);
    // Events of cluster-scoped objects live in `default`.
    let matches = if involved.is_empty() {
        matches!(own, "default" | "kube-system")
    } else {
        own == involved
    };
    if !matches {
        let detail = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", involved, detail));
    }
    errors
}

/// Judges an events.k8s.io Event, which asks for more.
pub(in crate::kinds) fn new_event(new: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let own = text(&new["metadata"]["namespace"]);
    let regarding = text(&new["regarding"]["namespace"]);
    if !regarding.is_empty() && regarding != own {
        let detail = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", regarding, detail));
    }
    if old.is_some() {
        return errors;
    }
    for field in [
        "eventTime",
        "reportingController",
        "reportingInstance",
        "action",
        "reason",
    ] {
        if unset(&new[field]) {
            errors.push(FieldError::required(field, ""));
        }
    }
    if !unset(&new["reportingController"]) {
        let messages = names::qualified_name(text(&new["reportingController"]));
        invalid_each(
            &mut errors,
            "reportingController",
            &new["reportingController"],
            messages,
        );
    }
    one_of(&mut errors, "type", &new["type"], &["Normal", "Warning"]);
    errors
}
