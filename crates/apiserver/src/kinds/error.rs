//! What is wrong with an object, field by field, in Kubernetes' words, and the Status made from it.

use std::fmt;

use serde_json::{Value, json};

/// Why a field's value was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The field must have a value.
    Required,
    /// The value is malformed or out of range.
    Invalid,
    /// The value is of the wrong type (CRD schemas).
    TypeInvalid,
    /// The value is not one of those allowed.
    NotSupported,
    /// The value may stand once only.
    Duplicate,
    /// The value is well-formed, but not allowed here.
    Forbidden,
    /// The value is longer than allowed.
    TooLong,
    /// The list has more items than allowed.
    TooMany,
    /// What the value names is not there.
    NotFound,
    /// The server could not judge the value.
    Internal,
}

impl Reason {
    /// The words that start the message.
    pub fn text(self) -> &'static str {
        match self {
            Reason::Required => "Required value",
            Reason::Invalid | Reason::TypeInvalid => "Invalid value",
            Reason::NotSupported => "Unsupported value",
            Reason::Duplicate => "Duplicate value",
            Reason::Forbidden => "Forbidden",
            Reason::TooLong => "Too long",
            Reason::TooMany => "Too many",
            Reason::NotFound => "Not found",
            Reason::Internal => "Internal error",
        }
    }

    /// The machine-readable cause in a Status.
    pub fn cause(self) -> &'static str {
        match self {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooMany => "FieldValueTooMany",
            Reason::NotFound => "FieldValueNotFound",
            Reason::Internal => "InternalError",
        }
    }

    fn shows_value(self) -> bool {
        !matches!(
            self,
            Reason::Required | Reason::Forbidden | Reason::TooLong | Reason::Internal
        )
    }
}

/// One thing wrong with one field. Displays as Kubernetes' `field.Error`.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// The field, as `spec.containers[0].name`.
    pub path: String,
    /// Why it was refused.
    pub reason: Reason,
    /// The refused value, where the message shows one.
    pub value: Option<Value>,
    /// What would be right.
    pub detail: String,
}

impl FieldError {
    fn new(path: impl Into<String>, reason: Reason, value: Option<Value>, detail: impl Into<String>) -> Self {
        FieldError {
            path: path.into(),
            reason,
            value,
            detail: detail.into(),
        }
    }

    /// A value is missing.
    pub fn required(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(path, Reason::Required, None, detail)
    }

    /// A value is malformed.
    pub fn invalid(path: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(path, Reason::Invalid, Some(value.into()), detail)
    }

    /// A value is not one of `supported`.
    pub fn not_supported(path: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let detail = if supported.is_empty() {
            String::new()
        } else {
            let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(path, Reason::NotSupported, Some(value.into()), detail)
    }

    /// A value stands more than once.
    pub fn duplicate(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(path, Reason::Duplicate, Some(value.into()), "")
    }

    /// A value may not stand here.
    pub fn forbidden(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(path, Reason::Forbidden, None, detail)
    }

    /// A value has more than `max` bytes.
    pub fn too_long(path: impl Into<String>, max: usize) -> Self {
        Self::new(
            path,
            Reason::TooLong,
            None,
            format!("may not be more than {max} bytes"),
        )
    }

    /// A list has `actual` items, more than `max`.
    pub fn too_many(path: impl Into<String>, actual: usize, max: usize) -> Self {
        let plural = if max == 1 { "item" } else { "items" };
        Self::new(
            path,
            Reason::TooMany,
            Some(actual.into()),
            format!("must have at most {max} {plural}"),
        )
    }

    /// A value names something that is not there.
    pub fn not_found(path: impl Into<String>, value: impl Into<Value>) -> Self {
        Self::new(path, Reason::NotFound, Some(value.into()), "")
    }

    /// The server could not judge the value.
    pub fn internal(path: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(path, Reason::Internal, None, detail)
    }

    /// The message without the path.
    pub fn body(&self) -> String {
        let mut text = self.reason.text().to_owned();
        if let (true, Some(value)) = (self.reason.shows_value(), &self.value) {
            text.push_str(": ");
            match value {
                Value::String(s) => text.push_str(&quote(s)),
                other => text.push_str(&other.to_string()),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// Quotes as Go's `%q` does for the text that appears in objects.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// `a` for one error, `[a, b]` for several; equal messages once.
pub fn aggregate(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    match texts.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}

/// The 422 Status for an object that failed validation.
pub fn invalid_status(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Value {
    let group_kind = if group.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind}.{group}")
    };
    let causes: Vec<Value> = errors
        .iter()
        .map(|e| json!({"reason": e.reason.cause(), "message": e.body(), "field": e.path}))
        .collect();
    let mut details = json!({"name": name});
    if !group.is_empty() {
        details["group"] = group.into();
    }
    details["kind"] = kind.into();
    details["causes"] = causes.into();
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("{group_kind} {} is invalid: {}", quote(name), aggregate(errors)),
        "reason": "Invalid", "details": details, "code": 422,
    })
}
