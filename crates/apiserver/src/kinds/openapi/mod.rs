//! The OpenAPI v2 document, as JSON and as the protobuf that kubectl asks for.
//!
//! Definitions are complete: kubectl validates, explains and merges by them. Of the paths only the PATCH of single
//! objects stand there, by which kubectl knows that a dry run is possible.

use serde_json::{Map, Value, json};

use super::value::{entries, list, object_mut};
use super::{Resource, schema, strategic};

mod protobuf;

/// Media type of [`v2_protobuf`].
pub const PROTOBUF_MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The document as JSON; `resources` are all that are served.
pub fn v2_json(resources: &[Resource]) -> Value {
    let mut definitions: Map<String, Value> = schema::definitions()
        .iter()
        .map(|(name, definition)| (name.clone(), built_in(name, definition)))
        .collect();
    let mut paths = Map::new();
    for resource in resources {
        let name = match resource {
            Resource::Builtin(k) => schema::name_of(k.group, k.version, k.kind),
            Resource::Custom(k) => {
                definitions.insert(k.definition_name(), k.definition());
                k.definition_name()
            }
        };
        let gvk = gvk(resource.group(), resource.version(), resource.kind());
        if let Some(definition) = definitions.get_mut(&name) {
            definition[GVK] = json!([gvk]);
        }
        paths.insert(path(resource), json!({"patch": operation(resource, &gvk)}));
    }
    for (name, group, kind) in [
        ("io.k8s.api.autoscaling.v1.Scale", "autoscaling", "Scale"),
        ("io.k8s.apimachinery.pkg.apis.meta.v1.Status", "", "Status"),
        (
            "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
            "",
            "DeleteOptions",
        ),
    ] {
        if let Some(definition) = definitions.get_mut(name) {
            definition[GVK] = json!([gvk(group, "v1", kind)]);
        }
    }
    json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths,
        "definitions": definitions})
}

/// The document as a gnostic `openapi.v2.Document`.
pub fn v2_protobuf(resources: &[Resource]) -> Vec<u8> {
    protobuf::document(&v2_json(resources))
}

const GVK: &str = "x-kubernetes-group-version-kind";

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "kind": kind, "version": version})
}

fn path(resource: &Resource) -> String {
    let root = match resource.group() {
        "" => format!("/api/{}", resource.version()),
        group => format!("/apis/{group}/{}", resource.version()),
    };
    let namespace = if resource.namespaced() {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    format!("{root}{namespace}/{}/{{name}}", resource.plural())
}

fn operation(resource: &Resource, gvk: &Value) -> Value {
    let description = "When present, indicates that modifications should not be persisted.";
    json!({
        "description": format!("partially update the specified {}", resource.kind()),
        "parameters": [{"name": "dryRun", "in": "query", "type": "string", "uniqueItems": true,
            "description": description}],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": "patch",
        (GVK): gvk,
    })
}

/// A definition of ours with what only the published document needs: how lists are patched, types of unions.
fn built_in(name: &str, definition: &Value) -> Value {
    let mut definition = definition.clone();
    let owner = schema::short_name(name);
    match owner {
        "Quantity" => definition["type"] = "string".into(),
        "IntOrString" => {
            definition["type"] = "string".into();
            definition["format"] = "int-or-string".into();
        }
        // Anything may stand there.
        "JSON" => {
            super::value::remove(&mut definition, "type");
        }
        _ => {}
    }
    for field in ["oneOf", "x-kubernetes-int-or-string"] {
        super::value::remove(&mut definition, field);
    }
    let fields: Vec<String> = entries(&definition["properties"])
        .map(|(name, _)| name.to_owned())
        .collect();
    let Some(properties) = definition.get_mut("properties") else {
        return definition;
    };
    for field in fields {
        let strategy = strategic::strategy(owner, &field);
        let retains = strategic::retains_keys(owner, &field);
        let Some(property) = object_mut(properties, &field) else {
            continue;
        };
        let merges = match strategy {
            strategic::ListStrategy::Replace => None,
            strategic::ListStrategy::MergeSet => Some("merge"),
            strategic::ListStrategy::MergeByKey(key) => {
                property["x-kubernetes-patch-merge-key"] = key.into();
                Some("merge")
            }
        };
        match (merges, retains) {
            (Some(_), true) => property["x-kubernetes-patch-strategy"] = "merge,retainKeys".into(),
            (Some(merge), false) => property["x-kubernetes-patch-strategy"] = merge.into(),
            (None, true) => property["x-kubernetes-patch-strategy"] = "retainKeys".into(),
            (None, false) => {}
        }
    }
    debug_assert!(list(&definition["required"]).iter().all(|r| r != "metadata"));
    definition
}

#[cfg(test)]
mod tests {
    use super::super::builtin;
    use super::*;

    fn resources() -> Vec<Resource> {
        builtin().iter().map(Resource::from).collect()
    }

    #[test]
    fn kinds_and_merge_keys_stand_in_the_document() {
        let document = v2_json(&resources());
        let definitions = &document["definitions"];
        assert_eq!(
            definitions["io.k8s.api.apps.v1.Deployment"][GVK],
            json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
        );
        let containers = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        let volumes = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
        assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["parameters"][0]["name"], "dryRun");
    }

    #[test]
    fn the_protobuf_form_is_well_formed() {
        // Every length-delimited field ends where its parent does.
        fn walk(mut bytes: &[u8]) -> usize {
            let mut fields = 0;
            while !bytes.is_empty() {
                let tag = varint(&mut bytes);
                match tag & 7 {
                    0 => drop(varint(&mut bytes)),
                    2 => {
                        let length = varint(&mut bytes) as usize;
                        bytes = &bytes[length..];
                    }
                    other => panic!("wire type {other}"),
                }
                fields += 1;
            }
            fields
        }
        fn varint(bytes: &mut &[u8]) -> u64 {
            let mut n = 0;
            for shift in (0..).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                n |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            n
        }
        assert_eq!(walk(&v2_protobuf(&resources())), 4);
    }
}
