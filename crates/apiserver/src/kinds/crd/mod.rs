//! Kinds made at run time from CustomResourceDefinition objects.
//!
//! Served: structural schemas with pruning, defaults and the common validations, several versions (conversion `None`),
//! status and scale subresources, printer columns, selectable fields. Rules in CEL (`x-kubernetes-validations`) and
//! conversion webhooks are not judged.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::validate::{NameRule, object_meta};
use super::value::{at_path, keep, list, remove, same_but, text};
use super::{Column, DecodeError, FieldError, Resource, Scale, prepare, schema};

mod columns;
mod format;
mod names;
mod rules;
mod structural;

pub use names::establish;

/// One version of a CustomResourceDefinition.
#[derive(Debug, Clone)]
pub struct CustomKind {
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// The version in which objects are stored.
    pub storage_version: String,
    /// Kind.
    pub kind: String,
    /// Kind of a list.
    pub list_kind: String,
    /// Resource name in paths.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories.
    pub categories: Vec<String>,
    /// Lives in namespaces.
    pub namespaced: bool,
    /// Has a status subresource.
    pub status: bool,
    /// Has a scale subresource.
    pub scale: Option<Scale>,
    /// Columns of its Table.
    pub columns: Vec<Column>,
    /// The structural schema (`openAPIV3Schema`).
    pub schema: Value,
    /// Where each column's cell is found; `None` is the name.
    paths: Vec<Option<columns::JsonPath>>,
    /// Dotted paths of fields that objects can be selected by.
    selectable: Vec<String>,
}

/// The resources that a CustomResourceDefinition serves, one per served version; empty until it is Established.
pub fn resources(crd: &Value) -> Vec<Resource> {
    let established = list(&crd["status"]["conditions"])
        .iter()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    if !established {
        return Vec::new();
    }
    let versions = list(&crd["spec"]["versions"]);
    let storage = versions
        .iter()
        .find(|v| v["storage"] == true)
        .map(|v| text(&v["name"]))
        .unwrap_or_default();
    versions
        .iter()
        .filter(|v| v["served"] == true)
        .map(|v| Resource::Custom(Arc::new(CustomKind::new(crd, v, storage))))
        .collect()
}

fn strings(value: &Value) -> Vec<String> {
    list(value).iter().map(|v| text(v).to_owned()).collect()
}

impl CustomKind {
    fn new(crd: &Value, version: &Value, storage: &str) -> Self {
        let spec = &crd["spec"];
        // The names that other definitions did not have before.
        let accepted = &crd["status"]["acceptedNames"];
        let names = if accepted.is_object() {
            accepted
        } else {
            &spec["names"]
        };
        let scale = &version["subresources"]["scale"];
        let path = |v: &Value| v.as_str().map(|p| p.trim_start_matches('.').to_owned().into());
        let (columns, paths) = columns::columns(version);
        CustomKind {
            group: text(&spec["group"]).to_owned(),
            version: text(&version["name"]).to_owned(),
            storage_version: storage.to_owned(),
            kind: text(&names["kind"]).to_owned(),
            list_kind: text(&names["listKind"]).to_owned(),
            plural: text(&names["plural"]).to_owned(),
            singular: text(&names["singular"]).to_owned(),
            short_names: strings(&names["shortNames"]),
            categories: strings(&names["categories"]),
            namespaced: spec["scope"] == "Namespaced",
            status: version["subresources"]["status"].is_object(),
            scale: scale.is_object().then(|| Scale {
                spec_replicas: path(&scale["specReplicasPath"]).unwrap_or_default(),
                status_replicas: path(&scale["statusReplicasPath"]).unwrap_or_default(),
                selector: path(&scale["labelSelectorPath"]),
            }),
            columns,
            schema: version["schema"]["openAPIV3Schema"].clone(),
            paths,
            selectable: list(&version["selectableFields"])
                .iter()
                .map(|f| text(&f["jsonPath"]).trim_start_matches('.').to_owned())
                .collect(),
        }
    }

    pub(super) fn to_storage(&self, object: &mut Value) {
        object["apiVersion"] = format!("{}/{}", self.group, self.storage_version).into();
    }

    pub(super) fn leave_storage(&self, object: &mut Value) {
        object["apiVersion"] = format!("{}/{}", self.group, self.version).into();
        // A field that this version requires with a default may be missing in what another version wrote.
        self.default(object);
    }

    /// Metadata is typed as everywhere; the rest is pruned to the schema, and its types are for validation to judge.
    pub(super) fn decode(&self, object: &mut Value) -> Result<Vec<String>, DecodeError> {
        let mut unknown = schema::decode_metadata(object)?;
        structural::prune_root(&self.schema, object, &mut unknown);
        Ok(unknown)
    }

    pub(super) fn default(&self, object: &mut Value) {
        structural::default(&self.schema, object);
    }

    pub(super) fn prepare_create(&self, object: &mut Value) {
        if self.status {
            remove(object, "status");
        }
        object["metadata"]["generation"] = 1.into();
    }

    pub(super) fn prepare_update(&self, new: &mut Value, old: &Value) {
        let ignored: &[&str] = if self.status {
            keep(new, old, "status");
            &["apiVersion", "metadata", "status"]
        } else {
            &["apiVersion", "metadata"]
        };
        let changed = !same_but(new, old, ignored);
        prepare::bump_generation(new, old, changed);
    }

    pub(super) fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        prepare::keep_all_but_status(new, old);
    }

    pub(super) fn validate(&self, new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = object_meta(&new["metadata"], self.namespaced, NameRule::Subdomain);
        rules::validate_root(&self.schema, new, &mut errors);
        errors
    }

    pub(super) fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        self.paths
            .iter()
            .zip(&self.columns)
            .map(|(path, c)| columns::cell(object, path.as_ref(), c, now))
            .collect()
    }

    pub(super) fn field_label(&self, object: &Value, label: &str) -> String {
        at_path(object, label)
    }

    pub(super) fn check_field_label(&self, label: &str) -> Result<(), String> {
        if self.selectable.iter().any(|known| known == label) {
            return Ok(());
        }
        Err(format!("field label not supported: {label}"))
    }

    /// The definition's name in the OpenAPI document: the group reversed, as `com.example.v1.Foo`.
    pub(super) fn definition_name(&self) -> String {
        let reversed: Vec<&str> = self.group.split('.').rev().collect();
        format!("{}.{}.{}", reversed.join("."), self.version, self.kind)
    }

    /// The schema as a definition of the OpenAPI v2 document.
    pub(super) fn definition(&self) -> Value {
        let mut definition = structural::swagger(&self.schema);
        if let Some(properties) = super::value::object_mut(&mut definition, "properties") {
            for field in ["apiVersion", "kind"] {
                properties[field] = json!({"type": "string"});
            }
            properties["metadata"] =
                json!({"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"});
        }
        definition["type"] = "object".into();
        definition
    }
}

#[cfg(test)]
mod tests;
