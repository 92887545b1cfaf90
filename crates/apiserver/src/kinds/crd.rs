//! Kinds made at run time from CustomResourceDefinition objects.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Column, DecodeError, FieldError, Resource, Scale};

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
}

/// The resources that a CustomResourceDefinition serves, one per served version; empty until it is Established.
pub fn resources(crd: &Value) -> Vec<Resource> {
    let established = crd["status"]["conditions"].as_array().is_some_and(|all| {
        all.iter()
            .any(|c| c["type"] == "Established" && c["status"] == "True")
    });
    if !established {
        return Vec::new();
    }
    let spec = &crd["spec"];
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage = versions
        .iter()
        .find(|v| v["storage"] == true)
        .and_then(|v| v["name"].as_str());
    versions
        .iter()
        .filter(|v| v["served"] == true)
        .map(|v| Resource::Custom(Arc::new(CustomKind::new(spec, v, storage.unwrap_or_default()))))
        .collect()
}

/// Sets the status of a CustomResourceDefinition: accepted names, `NamesAccepted`, `Established`, stored versions.
/// `others` are all other CustomResourceDefinitions. True when something changed.
pub fn establish(crd: &mut Value, others: &[Value], now: Timestamp) -> bool {
    let _ = others;
    let before = crd["status"].clone();
    let names = crd["spec"]["names"].clone();
    let now = now.to_string();
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now});
    if before["conditions"].as_array().is_some_and(|c| !c.is_empty()) && before["acceptedNames"] == names {
        return false;
    }
    crd["status"] = json!({
        "acceptedNames": names,
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
        "storedVersions": crd["spec"]["versions"].as_array().into_iter().flatten()
            .filter(|v| v["storage"] == true).map(|v| v["name"].clone()).collect::<Vec<_>>(),
    });
    true
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

impl CustomKind {
    fn new(spec: &Value, version: &Value, storage: &str) -> Self {
        let names = &spec["names"];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let scale = &version["subresources"]["scale"];
        let path = |v: &Value| v.as_str().map(|p| p.trim_start_matches('.').to_owned().into());
        CustomKind {
            group: text(&spec["group"]),
            version: text(&version["name"]),
            storage_version: storage.to_owned(),
            kind: text(&names["kind"]),
            list_kind: text(&names["listKind"]),
            plural: text(&names["plural"]),
            singular: text(&names["singular"]),
            short_names: strings(&names["shortNames"]),
            categories: strings(&names["categories"]),
            namespaced: spec["scope"] == "Namespaced",
            status: version["subresources"]["status"].is_object(),
            scale: scale.is_object().then(|| Scale {
                spec_replicas: path(&scale["specReplicasPath"]).unwrap_or_default(),
                status_replicas: path(&scale["statusReplicasPath"]).unwrap_or_default(),
                selector: path(&scale["labelSelectorPath"]),
            }),
            columns: vec![
                Column::new(
                    "Name",
                    "string",
                    "name",
                    0,
                    "Name must be unique within a namespace.",
                ),
                Column::new(
                    "Age",
                    "date",
                    "",
                    0,
                    "CreationTimestamp is the server time of creation.",
                ),
            ],
            schema: version["schema"]["openAPIV3Schema"].clone(),
        }
    }

    pub(super) fn to_storage(&self, object: &mut Value) {
        object["apiVersion"] = format!("{}/{}", self.group, self.storage_version).into();
    }

    pub(super) fn from_storage(&self, object: &mut Value) {
        object["apiVersion"] = format!("{}/{}", self.group, self.version).into();
    }

    pub(super) fn decode(&self, _object: &mut Value) -> Result<Vec<String>, DecodeError> {
        Ok(Vec::new())
    }

    pub(super) fn default(&self, _object: &mut Value) {}

    pub(super) fn prepare_create(&self, object: &mut Value) {
        if self.status
            && let Some(fields) = object.as_object_mut()
        {
            fields.shift_remove("status");
        }
        object["metadata"]["generation"] = 1.into();
    }

    pub(super) fn prepare_update(&self, new: &mut Value, old: &Value) {
        if self.status {
            super::builtin::keep(new, old, "status");
        }
        let ignored = if self.status {
            &["metadata", "status"][..]
        } else {
            &["metadata"]
        };
        super::builtin::bump_generation(new, old, !same(new, old, ignored));
    }

    pub(super) fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        super::builtin::keep_all_but_status(new, old);
    }

    pub(super) fn validate(&self, _new: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        Vec::new()
    }

    pub(super) fn row(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        vec![
            object["metadata"]["name"].clone(),
            object["metadata"]["creationTimestamp"].clone(),
        ]
    }

    pub(super) fn field_label(&self, _object: &Value, _label: &str) -> String {
        String::new()
    }

    pub(super) fn check_field_label(&self, label: &str) -> Result<(), String> {
        Err(format!("field label not supported: {label}"))
    }
}

/// Whether two objects are equal in all fields but `ignored`.
fn same(a: &Value, b: &Value, ignored: &[&str]) -> bool {
    let strip = |v: &Value| -> Map<String, Value> {
        v.as_object()
            .into_iter()
            .flatten()
            .filter(|(k, _)| !ignored.contains(&k.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    strip(a) == strip(b)
}
