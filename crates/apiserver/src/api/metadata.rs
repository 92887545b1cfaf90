//! The part of an object that the server itself writes: uid, times, generated names, finalizers.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::kinds::{FieldError, Resource};
use crate::status::Refusal;

/// A time as the API writes it.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The metadata as a map, made if it is not there.
pub(crate) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let fields = object.as_object_mut().expect("made an object above");
    let metadata = fields
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("made an object above")
}

/// A text field of the metadata; empty when it is not there.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The metadata's finalizers.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    list.filter_map(Value::as_str).collect()
}

/// Nothing holds the object back any more: it is being deleted, its grace is over, no finalizer is left.
pub(crate) fn may_go(object: &Value) -> bool {
    let grace = object["metadata"]["deletionGracePeriodSeconds"]
        .as_i64()
        .unwrap_or_default();
    is_terminating(object) && grace == 0 && finalizers(object).is_empty()
}

/// The object is being deleted.
pub(crate) fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Fills in what only the server may say of a new object.
pub(crate) fn stamp_new(object: &mut Value, namespace: Option<&str>) {
    let metadata = metadata(object);
    for field in [
        "selfLink",
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
    ] {
        metadata.shift_remove(field);
    }
    match namespace {
        Some(namespace) => drop(metadata.insert("namespace".into(), namespace.into())),
        None => drop(metadata.shift_remove("namespace")),
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), time(Timestamp::now()).into());
}

/// `generateName` with five random characters, none of which can make a word.
pub(crate) fn generate_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let base: String = base.chars().take(58).collect();
    let mut random = uuid::Uuid::new_v4().as_u128();
    let suffix = std::iter::repeat_with(|| {
        let at = (random % ALPHABET.len() as u128) as usize;
        random /= ALPHABET.len() as u128;
        char::from(ALPHABET[at])
    });
    base.chars().chain(suffix.take(5)).collect()
}

/// Puts back what an update cannot change; refuses what contradicts the stored object.
pub(crate) fn keep_immutable(resource: &Resource, new: &mut Value, old: &Value) -> Result<(), Refusal> {
    let (name, uid) = (text(old, "name").to_owned(), text(old, "uid").to_owned());
    let given = text(new, "uid");
    if !given.is_empty() && given != uid {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {uid}");
        return Err(Refusal::conflict(resource, &name, &why));
    }
    let metadata = metadata(new);
    metadata.shift_remove("selfLink");
    metadata.shift_remove("managedFields");
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        match &old["metadata"][field] {
            Value::Null => drop(metadata.shift_remove(field)),
            value => drop(metadata.insert(field.to_owned(), value.clone())),
        }
    }
    metadata.insert(
        "resourceVersion".into(),
        old["metadata"]["resourceVersion"].clone(),
    );
    drop_empty(metadata);
    Ok(())
}

/// An empty list of finalizers is none, as in Kubernetes' encoding.
fn drop_empty(metadata: &mut Map<String, Value>) {
    for field in ["finalizers", "ownerReferences", "labels", "annotations"] {
        let empty = match metadata.get(field) {
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Null) => true,
            _ => false,
        };
        if empty {
            metadata.shift_remove(field);
        }
    }
}

/// An object that is being deleted takes no new finalizers.
pub(crate) fn check_finalizers(new: &Value, old: &Value) -> Option<FieldError> {
    if !is_terminating(old) {
        return None;
    }
    let before = finalizers(old);
    let added: Vec<_> = finalizers(new)
        .into_iter()
        .filter(|one| !before.contains(one))
        .map(|f| format!("{f:?}"))
        .collect();
    let detail = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        added.join(", ")
    );
    (!added.is_empty()).then(|| FieldError::forbidden("metadata.finalizers", detail))
}

/// Objects are equal but for the revision.
pub(crate) fn same_but_revision(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return a == b;
    };
    let other = |map: &Map<String, Value>| map.iter().filter(|(key, _)| *key != "metadata").count();
    if other(a) != other(b)
        || a.iter()
            .any(|(key, value)| key != "metadata" && b.get(key) != Some(value))
    {
        return false;
    }
    let strip = |map: &Map<String, Value>| {
        let mut metadata = map.get("metadata").cloned().unwrap_or_default();
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.shift_remove("resourceVersion");
        }
        metadata
    };
    strip(a) == strip(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_generated() {
        let name = generate_name("web-");
        assert_eq!(name.len(), 9);
        assert!(name.starts_with("web-"));
        assert_eq!(generate_name(&"x".repeat(100)).len(), 63);
        assert_ne!(generate_name("a"), generate_name("a"));
    }
}
