//! Reading and filling in JSON objects.

use serde_json::{Map, Value};

/// The items of a list; none when it is no list.
pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The items of a list, to be changed.
pub(super) fn list_mut<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// The entries of a map; none when it is no map.
pub(super) fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v))
}

/// A string; empty when it is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether a field is absent, null or the empty string: Go's zero value of most fields.
pub(super) fn unset(value: &Value) -> bool {
    value.is_null() || value == ""
}

/// Sets a field that is unset.
pub(super) fn default(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Value::Object(fields) = object
        && fields.get(field).is_none_or(unset)
    {
        fields.insert(field.to_owned(), value.into());
    }
}

/// Removes a field.
pub(super) fn remove(object: &mut Value, field: &str) -> Option<Value> {
    object
        .as_object_mut()
        .and_then(|fields| fields.shift_remove(field))
}

/// The object in a field, made when absent; `None` when it is something else.
pub(super) fn object_mut<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    let fields = object.as_object_mut()?;
    let value = fields.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.is_object().then_some(value)
}

/// Copies a top-level field of `old` into `new`, or removes it there.
pub(super) fn keep(new: &mut Value, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => new[field] = value.clone(),
        None => {
            remove(new, field);
        }
    }
}

/// Whether two objects are equal in all top-level fields but `ignored`.
pub(super) fn same_but(a: &Value, b: &Value, ignored: &[&str]) -> bool {
    let covers = |a: &Value, b: &Value| {
        entries(a).all(|(field, value)| ignored.contains(&field) || b.get(field) == Some(value))
    };
    covers(a, b) && covers(b, a)
}

/// The text at a dotted path, as field selectors compare it.
pub(super) fn at_path(object: &Value, path: &str) -> String {
    let value = path.split('.').fold(object, |value, part| &value[part]);
    match value {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
