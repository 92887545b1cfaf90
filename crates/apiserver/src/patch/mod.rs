//! The patch types: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.

mod strategic;

use serde_json::{Map, Value};

use crate::kinds::{Resource, strategic::list_strategy};

/// Media types of PATCH bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
    /// `application/apply-patch+yaml`
    Apply,
}

impl PatchType {
    /// By media type, without parameters.
    pub fn from_media_type(text: &str) -> Option<PatchType> {
        match text {
            "application/json-patch+json" => Some(PatchType::Json),
            "application/merge-patch+json" => Some(PatchType::Merge),
            "application/strategic-merge-patch+json" => Some(PatchType::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Some(PatchType::Apply),
            _ => None,
        }
    }
}

/// A parsed patch.
#[derive(Clone, Debug)]
pub enum Patch {
    /// Operations in order.
    Json(json_patch::Patch),
    /// Fields to set; null removes.
    Merge(Value),
    /// Like merge, and lists are merged by key as the kind's schema says.
    Strategic(Value),
}

/// Why a patch cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The body is no such patch (400).
    #[error("{0}")]
    Malformed(String),
    /// It does not fit the object (422).
    #[error("{0}")]
    Unfit(String),
}

impl Patch {
    /// Parses a body.
    pub fn parse(kind: PatchType, body: &[u8]) -> Result<Patch, PatchError> {
        let malformed =
            |error: serde_json::Error| PatchError::Malformed(format!("error decoding patch: {error}"));
        match kind {
            PatchType::Json => serde_json::from_slice(body).map(Patch::Json).map_err(malformed),
            PatchType::Merge | PatchType::Strategic | PatchType::Apply => {
                let value: Value = serde_json::from_slice(body).map_err(malformed)?;
                if !value.is_object() {
                    let message =
                        "json: cannot unmarshal the patch into Go value of type map[string]interface {}";
                    return Err(PatchError::Malformed(message.to_owned()));
                }
                Ok(if kind == PatchType::Strategic {
                    Patch::Strategic(value)
                } else {
                    Patch::Merge(value)
                })
            }
        }
    }

    /// The object with the patch applied.
    pub fn apply(&self, resource: &Resource, object: &Value) -> Result<Value, PatchError> {
        match self {
            Patch::Json(operations) => {
                let mut patched = object.clone();
                json_patch::patch(&mut patched, operations)
                    .map_err(|error| PatchError::Unfit(error.to_string()))?;
                Ok(patched)
            }
            Patch::Merge(patch) => Ok(merge(object.clone(), patch)),
            Patch::Strategic(patch) => {
                let strategy = |path: &[&str]| list_strategy(resource, path);
                strategic::merge(object.clone(), patch, &strategy).map_err(PatchError::Malformed)
            }
        }
    }
}

/// RFC 7386.
pub fn merge(target: Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else {
        return patch.clone();
    };
    let mut target = match target {
        Value::Object(target) => target,
        _ => Map::new(),
    };
    for (key, value) in patch {
        if value.is_null() {
            target.shift_remove(key);
        } else {
            let old = target.get_mut(key).map(Value::take).unwrap_or_default();
            target.insert(key.clone(), merge(old, value));
        }
    }
    Value::Object(target)
}

#[cfg(test)]
mod tests;
