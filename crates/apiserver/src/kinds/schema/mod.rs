//! The OpenAPI definitions of the built-in kinds, made from k8s-openapi's types by `crates/apiserver/schema-gen`.
//!
//! One source serves decoding (types, unknown fields), strategic merge patch and the published document.

use std::sync::LazyLock;

use serde_json::{Map, Value};

mod decode;

pub(super) use decode::{decode, decode_metadata};

static DEFINITIONS: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("definitions.json")).expect("definitions.json is written by schema-gen")
});

const REFERENCE: &str = "#/definitions/";

/// All definitions by name, e.g. `io.k8s.api.core.v1.Pod`.
pub(super) fn definitions() -> &'static Map<String, Value> {
    &DEFINITIONS
}

/// The name of a kind's definition.
pub(super) fn name_of(group: &str, version: &str, kind: &str) -> String {
    match group {
        "" => format!("io.k8s.api.core.{version}.{kind}"),
        "apiextensions.k8s.io" => {
            format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.{version}.{kind}")
        }
        group => format!(
            "io.k8s.api.{}.{version}.{kind}",
            group.trim_end_matches(".k8s.io")
        ),
    }
}

/// The definition that a schema refers to, if it is a reference.
pub(super) fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix(REFERENCE)
}

/// The last segment of a definition's name: `Pod`.
pub(super) fn short_name(definition: &str) -> &str {
    definition.rsplit('.').next().unwrap_or(definition)
}

/// The definition that holds the field at the end of `path`, when that field is known: names only, no indices.
pub(super) fn owner_of<'a>(root: &'a str, path: &[&str]) -> Option<&'a str> {
    let (_, parents) = path.split_last()?;
    let mut at: &str = root;
    let mut schema: &Value = DEFINITIONS.get(at)?;
    for field in parents {
        schema = match schema.get("properties").and_then(|all| all.get(field)) {
            Some(known) => known,
            None => schema.get("additionalProperties")?,
        };
        while let Some(items) = schema.get("items") {
            schema = items;
        }
        if let Some(name) = reference(schema) {
            at = name;
            schema = DEFINITIONS.get(at)?;
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_kind_is_defined() {
        for kind in super::super::builtin() {
            let name = name_of(kind.group, kind.version, kind.kind);
            assert!(definitions().contains_key(&name), "{name}");
        }
    }

    #[test]
    fn every_reference_resolves() {
        fn walk(value: &Value) {
            if let Some(name) = reference(value) {
                assert!(definitions().contains_key(name), "{name}");
            }
            match value {
                Value::Object(fields) => fields.values().for_each(walk),
                Value::Array(items) => items.iter().for_each(walk),
                _ => {}
            }
        }
        definitions().values().for_each(walk);
    }
}
