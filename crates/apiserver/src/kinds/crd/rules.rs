//! Judging objects against a structural schema, with the texts of Kubernetes.

use regex::Regex;
use serde_json::Value;

use super::format;
use crate::kinds::value::{entries, list};
use crate::kinds::{FieldError, Reason};

type Errors = Vec<FieldError>;

/// Judges an object; its metadata is judged elsewhere.
pub(super) fn validate_root(schema: &Value, object: &Value, errors: &mut Errors) {
    let mut object = object.clone();
    for field in ["apiVersion", "kind", "metadata"] {
        crate::kinds::value::remove(&mut object, field);
    }
    let mut schema = schema.clone();
    for field in ["apiVersion", "kind", "metadata"] {
        if let Some(properties) = schema.get_mut("properties") {
            crate::kinds::value::remove(properties, field);
        }
        if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|r| r != field);
        }
    }
    validate(&schema, &object, "", errors);
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn validate(schema: &Value, value: &Value, path: &str, errors: &mut Errors) {
    if !schema.is_object() || (value.is_null() && schema["nullable"] == true) {
        return;
    }
    if let Some(wanted) = wrong_type(schema, value) {
        let found = type_of(value);
        let detail = format!("{path} in body must be of type {wanted}: {found:?}");
        let mut error = FieldError::invalid(path, found, detail);
        error.reason = Reason::TypeInvalid;
        errors.push(error);
        return;
    }
    match value {
        Value::Object(_) => object(schema, value, path, errors),
        Value::Array(items) => array(schema, items, path, errors),
        Value::String(s) => string(schema, s, path, errors),
        Value::Number(_) => number(schema, value, path, errors),
        _ => {}
    }
    let allowed = list(&schema["enum"]);
    if !allowed.is_empty() && !allowed.contains(value) {
        let shown: Vec<String> = allowed
            .iter()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path, value.clone(), &shown));
    }
    combinations(schema, value, path, errors);
}

/// The type that a value should have and has not.
fn wrong_type(schema: &Value, value: &Value) -> Option<String> {
    if schema["x-kubernetes-int-or-string"] == true {
        let fits = value.is_string() || is_integer(value);
        return (!fits).then(|| "integer,string".to_owned());
    }
    let wanted = schema["type"].as_str()?;
    let fits = match wanted {
        "integer" => is_integer(value),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        _ => true,
    };
    (!fits).then(|| wanted.to_owned())
}

fn is_integer(value: &Value) -> bool {
    value.as_i64().is_some() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn object(schema: &Value, value: &Value, path: &str, errors: &mut Errors) {
    for name in list(&schema["required"]).iter().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            errors.push(FieldError::required(child(path, name), ""));
        }
    }
    for (name, item) in entries(value) {
        let below = schema["properties"]
            .get(name)
            .unwrap_or(&schema["additionalProperties"]);
        validate(below, item, &child(path, name), errors);
    }
    let count = entries(value).count();
    if let Some(max) = limit(schema, "maxProperties").filter(|max| count > *max) {
        errors.push(FieldError::too_many(path, count, max));
    }
    if let Some(min) = limit(schema, "minProperties").filter(|min| count < *min) {
        let detail = format!("{path} in body should have at least {min} properties");
        errors.push(FieldError::invalid(path, value.clone(), detail));
    }
}

fn limit(schema: &Value, keyword: &str) -> Option<usize> {
    schema[keyword].as_u64().and_then(|n| usize::try_from(n).ok())
}

fn array(schema: &Value, items: &[Value], path: &str, errors: &mut Errors) {
    if let Some(max) = limit(schema, "maxItems").filter(|max| items.len() > *max) {
        errors.push(FieldError::too_many(path, items.len(), max));
        // A list that is too long is not looked into.
        return;
    }
    if let Some(min) = limit(schema, "minItems").filter(|min| items.len() < *min) {
        let detail = format!("{path} in body should have at least {min} items");
        errors.push(FieldError::invalid(path, items.len(), detail));
    }
    for (i, item) in items.iter().enumerate() {
        validate(&schema["items"], item, &format!("{path}[{i}]"), errors);
    }
    let keys: Vec<&str> = list(&schema["x-kubernetes-list-map-keys"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let identity = |item: &Value| match schema["x-kubernetes-list-type"].as_str() {
        Some("set") => Some(item.clone()),
        Some("map") => {
            let pairs = keys
                .iter()
                .filter_map(|&k| item.get(k).map(|v| (k.to_owned(), v.clone())));
            Some(Value::Object(pairs.collect()))
        }
        _ => None,
    };
    let mut seen: Vec<Value> = Vec::new();
    for (i, id) in items
        .iter()
        .enumerate()
        .filter_map(|(i, item)| Some((i, identity(item)?)))
    {
        if seen.contains(&id) {
            errors.push(FieldError::duplicate(format!("{path}[{i}]"), id));
        } else {
            seen.push(id);
        }
    }
}

fn string(schema: &Value, value: &str, path: &str, errors: &mut Errors) {
    let length = value.chars().count();
    if let Some(max) = limit(schema, "maxLength").filter(|max| length > *max) {
        errors.push(FieldError::too_long(path, max));
    }
    if let Some(min) = limit(schema, "minLength").filter(|min| length < *min) {
        let detail = format!("{path} in body should be at least {min} chars long");
        errors.push(FieldError::invalid(path, value, detail));
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        // The definition was refused when its pattern does not compile.
        let matches = Regex::new(pattern).is_ok_and(|regex| regex.is_match(value));
        if !matches {
            let detail = format!("{path} in body should match '{pattern}'");
            errors.push(FieldError::invalid(path, value, detail));
        }
    }
    if let Some(format) = schema["format"].as_str().filter(|f| !format::has(f, value)) {
        let detail = format!("{path} in body must be of type {format}: {value:?}");
        let mut error = FieldError::invalid(path, value, detail);
        error.reason = Reason::TypeInvalid;
        errors.push(error);
    }
}

fn number(schema: &Value, value: &Value, path: &str, errors: &mut Errors) {
    let Some(n) = value.as_f64() else { return };
    let mut refuse = |detail: String| {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            format!("{path} in body should be {detail}"),
        ));
    };
    if let Some(min) = schema["minimum"].as_f64() {
        let shown = &schema["minimum"];
        if schema["exclusiveMinimum"] == true && n <= min {
            refuse(format!("greater than {shown}"));
        } else if n < min {
            refuse(format!("greater than or equal to {shown}"));
        }
    }
    if let Some(max) = schema["maximum"].as_f64() {
        let shown = &schema["maximum"];
        if schema["exclusiveMaximum"] == true && n >= max {
            refuse(format!("less than {shown}"));
        } else if n > max {
            refuse(format!("less than or equal to {shown}"));
        }
    }
    if let Some(step) = schema["multipleOf"].as_f64().filter(|step| *step > 0.0) {
        let ratio = n / step;
        if (ratio - ratio.round()).abs() > 1e-9 {
            refuse(format!("a multiple of {}", schema["multipleOf"]));
        }
    }
}

/// allOf, anyOf, oneOf, not: value validations only, in structural schemas.
fn combinations(schema: &Value, value: &Value, path: &str, errors: &mut Errors) {
    let fits = |branch: &&Value| {
        let mut inner = Vec::new();
        validate(branch, value, path, &mut inner);
        inner.is_empty()
    };
    let mut refuse = |must: String| {
        errors.push(FieldError::invalid(
            path,
            value.clone(),
            format!("{path:?} {must}"),
        ));
    };
    let all = list(&schema["allOf"]);
    if !all.iter().all(|b| fits(&b)) {
        refuse("must validate all the schemas (allOf)".to_owned());
    }
    let any = list(&schema["anyOf"]);
    if !any.is_empty() && !any.iter().any(|b| fits(&b)) {
        refuse("must validate at least one schema (anyOf)".to_owned());
    }
    let one = list(&schema["oneOf"]);
    let valid = one.iter().filter(fits).count();
    if !one.is_empty() && valid != 1 {
        let found = if valid == 0 {
            "none valid".to_owned()
        } else {
            format!("{valid} valid alternatives")
        };
        refuse(format!(
            "must validate one and only one schema (oneOf). Found {found}"
        ));
    }
    if schema["not"].is_object() && fits(&&schema["not"]) {
        refuse("must not validate the schema (not)".to_owned());
    }
}
