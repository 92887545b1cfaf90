//! CustomResourceDefinitions.

use serde_json::Value;

use super::{Errors, FieldError, IMMUTABLE, invalid_each, names, one_of};
use crate::kinds::value::{entries, list, text, unset};

/// Judges a CustomResourceDefinition.
pub(in crate::kinds) fn crd(new: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Vec::new();
    let spec = &new["spec"];
    let group = text(&spec["group"]);
    let name = format!("{}.{group}", text(&spec["names"]["plural"]));
    if new["metadata"]["name"] != name.as_str() {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid(
            "metadata.name",
            new["metadata"]["name"].clone(),
            detail,
        ));
    }
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else {
        invalid_each(
            &mut errors,
            "spec.group",
            &spec["group"],
            names::dns1123_subdomain(group),
        );
        if !group.contains('.') {
            errors.push(FieldError::invalid(
                "spec.group",
                group,
                "should be a domain with at least one dot",
            ));
        }
    }
    one_of(
        &mut errors,
        "spec.scope",
        &spec["scope"],
        &["Cluster", "Namespaced"],
    );
    self::names(&mut errors, &spec["names"]);
    versions(&mut errors, spec);
    let strategy = &spec["conversion"]["strategy"];
    if strategy != "None" {
        // Webhooks need a client to them, which this server has not.
        one_of(&mut errors, "spec.conversion.strategy", strategy, &["None"]);
    }
    if let Some(old) = old {
        immutable(&mut errors, spec, old);
    }
    errors
}

fn immutable(errors: &mut Errors, spec: &Value, old: &Value) {
    let before = &old["spec"];
    if spec["group"] != before["group"] {
        errors.push(FieldError::invalid(
            "spec.group",
            spec["group"].clone(),
            IMMUTABLE,
        ));
    }
    let established = list(&old["status"]["conditions"])
        .iter()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    if !established {
        return;
    }
    if spec["scope"] != before["scope"] {
        errors.push(FieldError::invalid(
            "spec.scope",
            spec["scope"].clone(),
            IMMUTABLE,
        ));
    }
    for field in ["kind", "plural"] {
        if spec["names"][field] != before["names"][field] {
            let path = format!("spec.names.{field}");
            errors.push(FieldError::invalid(path, spec["names"][field].clone(), IMMUTABLE));
        }
    }
    for stored in list(&old["status"]["storedVersions"]) {
        if !list(&spec["versions"]).iter().any(|v| v["name"] == *stored) {
            let detail = format!("must appear in spec.versions: {stored}");
            errors.push(FieldError::invalid(
                "status.storedVersions[0]",
                stored.clone(),
                detail,
            ));
        }
    }
}

fn names(errors: &mut Errors, names: &Value) {
    for field in ["plural", "singular", "kind", "listKind"] {
        let path = format!("spec.names.{field}");
        let value = text(&names[field]);
        let camel = matches!(field, "kind" | "listKind");
        if value.is_empty() {
            errors.push(FieldError::required(path, ""));
            continue;
        }
        let lower = if camel {
            value.to_lowercase()
        } else {
            value.to_owned()
        };
        for message in names::dns1035_label(&lower) {
            let message = if camel {
                format!("may have mixed case, but should otherwise match: {message}")
            } else {
                message
            };
            errors.push(FieldError::invalid(&path, value, message));
        }
    }
    for field in ["shortNames", "categories"] {
        for (i, name) in list(&names[field]).iter().enumerate() {
            let messages = names::dns1035_label(text(name));
            invalid_each(errors, &format!("spec.names.{field}[{i}]"), name, messages);
        }
    }
    if !unset(&names["kind"]) && names["kind"] == names["listKind"] {
        let detail = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(
            "spec.names.listKind",
            names["listKind"].clone(),
            detail,
        ));
    }
}

fn versions(errors: &mut Errors, spec: &Value) {
    let versions = list(&spec["versions"]);
    if versions.is_empty() {
        errors.push(FieldError::required(
            "spec.versions",
            "must have at least one version",
        ));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        let name = text(&version["name"]);
        invalid_each(
            errors,
            &format!("{path}.name"),
            &version["name"],
            names::dns1035_label(name),
        );
        if seen.contains(&name) {
            let detail = "must contain unique version names";
            errors.push(FieldError::invalid(
                "spec.versions",
                spec["versions"].clone(),
                detail,
            ));
        }
        seen.push(name);
        self::version(errors, &path, version);
    }
    if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(
            "spec.versions",
            spec["versions"].clone(),
            detail,
        ));
    }
}

fn version(errors: &mut Errors, path: &str, version: &Value) {
    let schema_path = format!("{path}.schema.openAPIV3Schema");
    let schema = &version["schema"]["openAPIV3Schema"];
    if schema.is_null() {
        errors.push(FieldError::required(&schema_path, "schemas are required"));
    } else {
        if unset(&schema["type"]) {
            errors.push(FieldError::required(
                format!("{schema_path}.type"),
                "must not be empty at the root",
            ));
        } else if schema["type"] != "object" {
            let detail = "must be object at the root";
            errors.push(FieldError::invalid(
                format!("{schema_path}.type"),
                schema["type"].clone(),
                detail,
            ));
        }
        structural(errors, &schema_path, schema);
    }
    for (i, column) in list(&version["additionalPrinterColumns"]).iter().enumerate() {
        let path = format!("{path}.additionalPrinterColumns[{i}]");
        if unset(&column["name"]) {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        let kinds = ["boolean", "date", "integer", "number", "string"];
        one_of(errors, &format!("{path}.type"), &column["type"], &kinds);
        json_path(errors, &format!("{path}.jsonPath"), &column["jsonPath"]);
    }
    let scale = &version["subresources"]["scale"];
    if scale.is_object() {
        for (field, root) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
            let path = format!("{path}.subresources.scale.{field}");
            match text(&scale[field]) {
                "" => errors.push(FieldError::required(path, "")),
                value if !value.starts_with(&format!("{root}.")) => errors.push(FieldError::invalid(
                    path,
                    value,
                    format!("should be a json path under {root}"),
                )),
                _ => {}
            }
        }
    }
}

fn json_path(errors: &mut Errors, path: &str, value: &Value) {
    match text(value) {
        "" => errors.push(FieldError::required(path, "")),
        value if !value.starts_with('.') => {
            errors.push(FieldError::invalid(
                path,
                value,
                "must be a simple json path starting with .",
            ));
        }
        _ => {}
    }
}

/// Every node of a structural schema says its type.
fn structural(errors: &mut Errors, path: &str, schema: &Value) {
    let supported = ["array", "boolean", "integer", "number", "object", "string"];
    super::one_of_if_set(errors, &format!("{path}.type"), &schema["type"], &supported);
    if let Some(pattern) = schema["pattern"].as_str()
        && let Err(error) = regex::Regex::new(pattern)
    {
        let detail = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(FieldError::invalid(format!("{path}.pattern"), pattern, detail));
    }
    if !schema["x-kubernetes-preserve-unknown-fields"].is_null()
        && schema["x-kubernetes-preserve-unknown-fields"] != true
    {
        errors.push(FieldError::invalid(
            format!("{path}.x-kubernetes-preserve-unknown-fields"),
            false,
            "must be true or undefined",
        ));
    }
    if !unset(&schema["additionalProperties"]) && schema["properties"].is_object() {
        let detail = "additionalProperties and properties are mutual exclusive";
        errors.push(FieldError::forbidden(
            format!("{path}.additionalProperties"),
            detail,
        ));
    }
    for (name, property) in entries(&schema["properties"]) {
        let path = format!("{path}.properties[{name}]");
        typed(
            errors,
            &path,
            property,
            "must not be empty for specified object fields",
        );
        structural(errors, &path, property);
    }
    if schema["additionalProperties"].is_object() {
        let path = format!("{path}.additionalProperties");
        typed(
            errors,
            &path,
            &schema["additionalProperties"],
            "must not be empty for specified object fields",
        );
        structural(errors, &path, &schema["additionalProperties"]);
    }
    if schema["type"] == "array" && schema["items"].is_null() {
        errors.push(FieldError::required(format!("{path}.items"), "must be specified"));
    } else if schema["items"].is_object() {
        let path = format!("{path}.items");
        typed(
            errors,
            &path,
            &schema["items"],
            "must not be empty for specified array items",
        );
        structural(errors, &path, &schema["items"]);
    }
}

fn typed(errors: &mut Errors, path: &str, schema: &Value, detail: &str) {
    let free = schema["x-kubernetes-int-or-string"] == true
        || schema["x-kubernetes-preserve-unknown-fields"] == true;
    if unset(&schema["type"]) && !free {
        errors.push(FieldError::required(format!("{path}.type"), detail));
    }
}
