//! Namespaces, nodes, secrets and CustomResourceDefinitions.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::kinds::value::{default, list, object_mut, remove, text, unset};

pub(in crate::kinds) fn namespace(object: &mut Value) {
    let name = text(&object["metadata"]["name"]).to_owned();
    // A namespace with a generated name gets its label once it has the name.
    if name.is_empty() {
        return;
    }
    if let Some(metadata) = object_mut(object, "metadata")
        && let Some(labels) = object_mut(metadata, "labels")
    {
        labels["kubernetes.io/metadata.name"] = name.into();
    }
}

pub(in crate::kinds) fn node(object: &mut Value) {
    if let Some(spec) = object_mut(object, "spec") {
        // podCIDR is the first of podCIDRs; older writers set only the former.
        if list(&spec["podCIDRs"]).is_empty() && !unset(&spec["podCIDR"]) {
            spec["podCIDRs"] = json!([spec["podCIDR"]]);
        } else if let Some(first) = list(&spec["podCIDRs"]).first().cloned() {
            default(spec, "podCIDR", first);
        }
    }
    if let Some(status) = object.get_mut("status")
        && !unset(&status["capacity"])
    {
        default(status, "allocatable", status["capacity"].clone());
    }
}

pub(in crate::kinds) fn secret(object: &mut Value) {
    default(object, "type", "Opaque");
    let Some(Value::Object(plain)) = remove(object, "stringData") else {
        return;
    };
    if plain.is_empty() {
        return;
    }
    let Some(data) = object_mut(object, "data") else {
        return;
    };
    for (key, value) in plain {
        data[&key] = base64::engine::general_purpose::STANDARD
            .encode(text(&value))
            .into();
    }
}

pub(in crate::kinds) fn crd(object: &mut Value) {
    let Some(spec) = object_mut(object, "spec") else {
        return;
    };
    if let Some(names) = object_mut(spec, "names") {
        let kind = text(&names["kind"]).to_owned();
        if !kind.is_empty() {
            default(names, "singular", kind.to_lowercase());
            default(names, "listKind", format!("{kind}List"));
        }
    }
    if let Some(conversion) = object_mut(spec, "conversion") {
        default(conversion, "strategy", "None");
    }
}
