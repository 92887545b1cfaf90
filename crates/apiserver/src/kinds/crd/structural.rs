//! Structural schemas: pruning what they do not know, filling in their defaults.

use serde_json::{Map, Value, json};

use crate::kinds::error::quote;
use crate::kinds::value::entries;

fn preserves(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

/// Drops fields that the schema does not know and tells them; the top level has fields of its own.
pub(super) fn prune_root(schema: &Value, object: &mut Value, unknown: &mut Vec<String>) {
    let root = ["apiVersion", "kind", "metadata"];
    prune(schema, object, "", &root, unknown);
}

fn prune(schema: &Value, value: &mut Value, path: &str, known: &[&str], unknown: &mut Vec<String>) {
    match value {
        Value::Object(fields) => prune_object(schema, fields, path, known, unknown),
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                prune(&schema["items"], item, &format!("{path}[{i}]"), &[], unknown);
            }
        }
        _ => {}
    }
}

fn prune_object(
    schema: &Value,
    fields: &mut Map<String, Value>,
    path: &str,
    known: &[&str],
    unknown: &mut Vec<String>,
) {
    let embedded = ["apiVersion", "kind", "metadata"];
    let known = if schema["x-kubernetes-embedded-resource"] == true {
        &embedded
    } else {
        known
    };
    let free = Map::from_iter([(
        "x-kubernetes-preserve-unknown-fields".to_owned(),
        Value::Bool(true),
    )])
    .into();
    fields.retain(|name, value| {
        if known.contains(&name.as_str()) {
            return true;
        }
        let here = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        let additional = &schema["additionalProperties"];
        let below = match schema["properties"].get(name.as_str()) {
            Some(property) => property,
            None if additional.is_object() => additional,
            None if preserves(schema) || *additional == true => &free,
            None => {
                unknown.push(format!("unknown field {}", quote(&here)));
                return false;
            }
        };
        // Below a free node without properties everything is free.
        if !(preserves(below) && below["properties"].is_null() && below["items"].is_null()) {
            prune(below, value, &here, &[], unknown);
        }
        true
    });
}

/// Fills in defaults; a null where null is not allowed counts as absent.
pub(super) fn default(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, property) in entries(&schema["properties"]) {
                let Some(default) = property.get("default") else {
                    continue;
                };
                let absent = match fields.get(name) {
                    None => true,
                    Some(Value::Null) => property["nullable"] != true,
                    Some(_) => false,
                };
                if absent {
                    fields.insert(name.to_owned(), default.clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                match schema["properties"].get(name.as_str()) {
                    Some(property) => self::default(property, value),
                    None => self::default(&schema["additionalProperties"], value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| default(&schema["items"], item)),
        _ => {}
    }
}

/// The schema in the words of OpenAPI v2.
pub(super) fn swagger(schema: &Value) -> Value {
    let mut out = json!({});
    if schema["x-kubernetes-int-or-string"] == true || preserves(schema) {
        // v2 has no union of types: what is free has no type there.
        if let Some(description) = schema.get("description") {
            out["description"] = description.clone();
        }
        for extension in [
            "x-kubernetes-int-or-string",
            "x-kubernetes-preserve-unknown-fields",
        ] {
            if schema[extension] == true {
                out[extension] = true.into();
            }
        }
        return out;
    }
    for field in ["description", "type", "format", "required"] {
        if let Some(value) = schema.get(field) {
            out[field] = value.clone();
        }
    }
    if schema["properties"].is_object() {
        let below: Map<String, Value> = entries(&schema["properties"])
            .map(|(name, s)| (name.to_owned(), swagger(s)))
            .collect();
        out["properties"] = below.into();
    }
    for field in ["items", "additionalProperties"] {
        if schema[field].is_object() {
            out[field] = swagger(&schema[field]);
        }
    }
    // A nullable field may not be there in the eyes of a v2 client.
    if schema["nullable"] == true {
        crate::kinds::value::remove(&mut out, "type");
    }
    out
}
