//! Strategic merge patch, as k8s.io/apimachinery's strategicpatch applies it: lists are merged by a key or as sets
//! where the kind's schema says so, and directives (`$patch`, `$retainKeys`, `$setElementOrder/...`,
//! `$deleteFromPrimitiveList/...`) say the rest.

use serde_json::{Map, Value};

use crate::kinds::strategic::ListStrategy;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// Tells how the list at a path of field names is merged.
pub(super) type Strategy<'a> = &'a dyn Fn(&[&str]) -> ListStrategy;

/// The object with the patch applied.
pub(super) fn merge(original: Value, patch: &Value, strategy: Strategy<'_>) -> Result<Value, String> {
    let patch = patch.as_object().ok_or("the patch is not an object")?;
    let original = match original {
        Value::Object(original) => original,
        _ => Map::new(),
    };
    merge_map(original, patch, &mut Vec::new(), strategy).map(Value::Object)
}

fn merge_map<'p>(
    mut original: Map<String, Value>,
    patch: &'p Map<String, Value>,
    path: &mut Vec<&'p str>,
    strategy: Strategy<'_>,
) -> Result<Map<String, Value>, String> {
    match patch
        .get(PATCH)
        .map(|directive| directive.as_str().unwrap_or_default())
    {
        None | Some("merge") => {}
        Some("replace") => {
            let mut replacement = patch.clone();
            replacement.shift_remove(PATCH);
            return Ok(without_directives(replacement));
        }
        Some("delete") => return Ok(Map::new()),
        Some(other) => return Err(format!("unknown patch type found: {other}")),
    }
    let before = lists_to_order(&original, patch);
    retain_keys(&mut original, patch)?;
    for (key, value) in patch {
        if key.starts_with('$') {
            continue;
        }
        path.push(key);
        let merged = match value {
            Value::Null => None,
            value => Some(merge_value(
                original.get_mut(key).map(Value::take),
                value,
                path,
                strategy,
            )?),
        };
        path.pop();
        match merged {
            Some(merged) => drop(original.insert(key.clone(), merged)),
            None => drop(original.shift_remove(key)),
        }
    }
    delete_from_sets(&mut original, patch)?;
    order_elements(&mut original, patch, before, path, strategy)?;
    Ok(original)
}

fn merge_value<'p>(
    original: Option<Value>,
    patch: &'p Value,
    path: &mut Vec<&'p str>,
    strategy: Strategy<'_>,
) -> Result<Value, String> {
    match (original, patch) {
        (Some(Value::Object(original)), Value::Object(patch)) => {
            merge_map(original, patch, path, strategy).map(Value::Object)
        }
        // What is new has nothing to be merged with, but directives and nulls in it must not be stored.
        (_, Value::Object(patch)) => merge_map(Map::new(), patch, path, strategy).map(Value::Object),
        (Some(Value::Array(original)), Value::Array(patch)) => {
            merge_list(original, patch, path, strategy).map(Value::Array)
        }
        (_, Value::Array(patch)) => merge_list(Vec::new(), patch, path, strategy).map(Value::Array),
        (_, patch) => Ok(patch.clone()),
    }
}

fn merge_list<'p>(
    original: Vec<Value>,
    patch: &'p [Value],
    path: &mut Vec<&'p str>,
    strategy: Strategy<'_>,
) -> Result<Vec<Value>, String> {
    match strategy(path) {
        ListStrategy::Replace => Ok(patch.iter().cloned().map(plain).collect()),
        ListStrategy::MergeSet => {
            let mut merged = original.clone();
            for value in patch {
                if !merged.contains(value) {
                    merged.push(value.clone());
                }
            }
            Ok(ordered(merged, patch, &original, Identity::Value))
        }
        ListStrategy::MergeByKey(key) => merge_by_key(original, patch, key, path, strategy),
    }
}

fn merge_by_key<'p>(
    original: Vec<Value>,
    patch: &'p [Value],
    key: &'static str,
    path: &mut Vec<&'p str>,
    strategy: Strategy<'_>,
) -> Result<Vec<Value>, String> {
    // Directives come first, wherever they stand: an item may be deleted and given anew in one patch.
    let (mut merged, mut replace, mut given) = (original.clone(), false, Vec::new());
    for item in patch {
        match item
            .get(PATCH)
            .map(|directive| directive.as_str().unwrap_or_default())
        {
            None | Some("merge") => given.push(item),
            Some("replace") => replace = true,
            Some("delete") => {
                let value = item.get(key).ok_or_else(|| {
                    format!("delete patch type with no merge key defined: {item} has no {key}")
                })?;
                merged.retain(|old| old.get(key) != Some(value));
            }
            Some(other) => return Err(format!("unknown patch type found: {other}")),
        }
    }
    if replace {
        // The list is what the patch has, item by item as it stands there.
        return Ok(given.into_iter().cloned().map(plain).collect());
    }
    for item in &given {
        let fields = item
            .as_object()
            .ok_or_else(|| format!("expected an object with {key}, found {item}"))?;
        let value = fields
            .get(key)
            .ok_or_else(|| format!("map: {item} does not contain declared merge key: {key}"))?;
        match merged.iter_mut().find(|old| old.get(key) == Some(value)) {
            Some(old) => *old = merge_value(Some(old.take()), item, path, strategy)?,
            None => merged.push(merge_value(None, item, path, strategy)?),
        }
    }
    let wanted: Vec<Value> = given.into_iter().cloned().collect();
    Ok(ordered(merged, &wanted, &original, Identity::Key(key)))
}

/// What makes two list items the same one.
#[derive(Clone, Copy)]
enum Identity {
    Value,
    Key(&'static str),
}

impl Identity {
    fn position(self, list: &[Value], item: &Value) -> Option<usize> {
        list.iter().position(|other| match self {
            Identity::Value => other == item,
            Identity::Key(key) => other.get(key) == item.get(key),
        })
    }
}

/// Puts the items named in `order` into that order, between the others, which keep the order they had in `before`:
/// Kubernetes' normalizeElementOrder and mergeSortedSlice.
fn ordered(merged: Vec<Value>, order: &[Value], before: &[Value], identity: Identity) -> Vec<Value> {
    let (mut named, mut others): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|item| identity.position(order, item).is_some());
    named.sort_by_key(|item| identity.position(order, item));
    others.sort_by_key(|item| identity.position(before, item));
    let mut result = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let take_other = match (others.peek(), named.peek()) {
            (None, None) => return result,
            (None, Some(_)) => false,
            (Some(_), None) => true,
            (Some(other), Some(name)) => {
                let places = (identity.position(before, other), identity.position(before, name));
                matches!(places, (Some(other), Some(name)) if other < name)
            }
        };
        result.extend(if take_other { others.next() } else { named.next() });
    }
}

/// `$retainKeys`: whatever is not named there goes.
fn retain_keys(original: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), String> {
    let Some(keep) = patch.get(RETAIN_KEYS) else {
        return Ok(());
    };
    let keep = list_of(RETAIN_KEYS, keep)?;
    let kept = |key: &str| keep.iter().any(|one| one == key);
    for (key, value) in patch {
        if !key.starts_with('$') && !value.is_null() && !kept(key) {
            return Err(format!("patch has key {key} that is not in $retainKeys"));
        }
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// `$deleteFromPrimitiveList/FIELD`.
fn delete_from_sets(original: &mut Map<String, Value>, patch: &Map<String, Value>) -> Result<(), String> {
    for (directive, values) in patch {
        let Some(field) = directive.strip_prefix(DELETE_FROM) else {
            continue;
        };
        let values = list_of(directive, values)?;
        if let Some(list) = original.get_mut(field).and_then(Value::as_array_mut) {
            list.retain(|value| !values.contains(value));
        }
    }
    Ok(())
}

fn list_of<'p>(directive: &str, value: &'p Value) -> Result<&'p [Value], String> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| format!("invalid patch format of {directive}: expected a list"))
}

/// The lists that `$setElementOrder/FIELD` will order, as they are before the merge.
fn lists_to_order(original: &Map<String, Value>, patch: &Map<String, Value>) -> Map<String, Value> {
    let fields = patch
        .keys()
        .filter_map(|directive| directive.strip_prefix(ELEMENT_ORDER));
    fields
        .filter_map(|field| Some((field.to_owned(), original.get(field)?.clone())))
        .collect()
}

/// `$setElementOrder/FIELD`.
fn order_elements<'p>(
    original: &mut Map<String, Value>,
    patch: &'p Map<String, Value>,
    before: Map<String, Value>,
    path: &mut Vec<&'p str>,
    strategy: Strategy<'_>,
) -> Result<(), String> {
    for (directive, order) in patch {
        let Some(field) = directive.strip_prefix(ELEMENT_ORDER) else {
            continue;
        };
        let order = list_of(directive, order)?;
        path.push(field);
        let identity = match strategy(path) {
            ListStrategy::MergeByKey(key) => Identity::Key(key),
            ListStrategy::MergeSet | ListStrategy::Replace => Identity::Value,
        };
        path.pop();
        follows_order(directive, order, patch.get(field), identity)?;
        if let Some(list) = original.get_mut(field).and_then(Value::as_array_mut) {
            let before = before
                .get(field)
                .and_then(Value::as_array)
                .map(Vec::as_slice)
                .unwrap_or_default();
            *list = ordered(std::mem::take(list), order, before, identity);
        }
    }
    Ok(())
}

/// What a patch gives for a list must stand in the order that it sets: else which of the two is meant?
fn follows_order(
    directive: &str,
    order: &[Value],
    given: Option<&Value>,
    identity: Identity,
) -> Result<(), String> {
    let given = given
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let given: Vec<&Value> = given.iter().filter(|item| item.get(PATCH).is_none()).collect();
    let mut rest = order;
    for item in &given {
        let Some(at) = identity.position(rest, item) else {
            return Err(format!(
                "The order in patch list: {} doesn't match {directive} list: {}",
                Value::Array(given.into_iter().cloned().collect()),
                Value::Array(order.to_vec())
            ));
        };
        rest = &rest[at + 1..];
    }
    Ok(())
}

/// A value that is stored as it is: directives and nulls taken out of it.
fn plain(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(items) => Value::Array(items.into_iter().map(plain).collect()),
        other => other,
    }
}

fn without_directives(map: Map<String, Value>) -> Map<String, Value> {
    map.into_iter()
        .filter(|(key, value)| !value.is_null() && !is_directive(key))
        .map(|(key, value)| (key, plain(value)))
        .collect()
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(ELEMENT_ORDER) || key.starts_with(DELETE_FROM)
}
