//! Refusals as Kubernetes says them: `metav1.Status` with reason, details and code.

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::kinds::{FieldError, Resource, invalid_status};
use crate::store::{RevisionError, WriteError};

/// A refusal: an HTTP code and the Status that goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The Status object.
    pub status: Value,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for Refusal {}

/// What the refusal is about: `deployments.apps "x"`.
fn details(resource: &Resource, name: &str) -> Value {
    let mut details = Map::new();
    if !name.is_empty() {
        details.insert("name".into(), name.into());
    }
    if !resource.group().is_empty() {
        details.insert("group".into(), resource.group().into());
    }
    details.insert("kind".into(), resource.plural().into());
    Value::Object(details)
}

impl Refusal {
    /// A refusal with details.
    pub fn new(code: StatusCode, reason: &str, message: impl Into<String>, details: Value) -> Refusal {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message.into(), "reason": reason,
        });
        if !details.is_null() {
            status["details"] = details;
        }
        status["code"] = code.as_u16().into();
        Refusal { status }
    }

    /// The HTTP code.
    pub fn code(&self) -> StatusCode {
        let code = self.status["code"]
            .as_u64()
            .and_then(|code| u16::try_from(code).ok());
        code.and_then(|code| StatusCode::from_u16(code).ok())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The text.
    pub fn message(&self) -> &str {
        self.status["message"].as_str().unwrap_or_default()
    }

    /// The machine-readable reason.
    pub fn reason(&self) -> &str {
        self.status["reason"].as_str().unwrap_or_default()
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, "BadRequest", message, Value::Null)
    }

    /// 401.
    pub fn unauthorized() -> Refusal {
        Refusal::new(
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            "Unauthorized",
            Value::Null,
        )
    }

    /// 404 of an object.
    pub fn not_found(resource: &Resource, name: &str) -> Refusal {
        let message = format!("{} \"{name}\" not found", resource.group_resource());
        Refusal::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            message,
            details(resource, name),
        )
    }

    /// 404 of a path.
    pub fn no_such_resource() -> Refusal {
        let message = "the server could not find the requested resource";
        Refusal::new(StatusCode::NOT_FOUND, "NotFound", message, json!({}))
    }

    /// 403 with a reason.
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Refusal {
        let message = match name {
            "" => format!("{} is forbidden: {why}", resource.group_resource()),
            name => format!("{} \"{name}\" is forbidden: {why}", resource.group_resource()),
        };
        Refusal::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            message,
            details(resource, name),
        )
    }

    /// 403: the namespace is going.
    pub fn terminating(resource: &Resource, name: &str, namespace: &str) -> Refusal {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut refusal = Refusal::forbidden(resource, name, &why);
        refusal.status["details"]["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]);
        refusal
    }

    /// 405.
    pub fn method_not_allowed() -> Refusal {
        let message = "the server does not allow this method on the requested resource";
        Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            message,
            json!({}),
        )
    }

    /// 406.
    pub fn not_acceptable() -> Refusal {
        let message = "only the following media types are accepted: application/json, application/yaml";
        Refusal::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message, json!({}))
    }

    /// 409: exists.
    pub fn already_exists(resource: &Resource, name: &str) -> Refusal {
        let message = format!("{} \"{name}\" already exists", resource.group_resource());
        Refusal::new(
            StatusCode::CONFLICT,
            "AlreadyExists",
            message,
            details(resource, name),
        )
    }

    /// 409: cannot be done on what is there now.
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Refusal {
        let resource_name = resource.group_resource();
        let message = format!("Operation cannot be fulfilled on {resource_name} \"{name}\": {why}");
        Refusal::new(StatusCode::CONFLICT, "Conflict", message, details(resource, name))
    }

    /// 409: changed since it was read.
    pub fn modified(resource: &Resource, name: &str) -> Refusal {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Refusal::conflict(resource, name, why)
    }

    /// 410.
    pub fn expired(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::GONE, "Expired", message, Value::Null)
    }

    /// 413.
    pub fn too_large(limit: usize) -> Refusal {
        let message = format!("Request entity too large: limit is {limit}");
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            message,
            json!({}),
        )
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &[&str]) -> Refusal {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            message,
            json!({}),
        )
    }

    /// 422 by fields.
    pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Refusal {
        Refusal {
            status: invalid_status(resource.group(), resource.kind(), name, errors),
        }
    }

    /// 422 of a patch that does not apply.
    pub fn unprocessable(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message, json!({}))
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Refusal {
        let message = message.into();
        let details = json!({"causes": [{"message": message.clone()}]});
        let message = format!("Internal error occurred: {message}");
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            message,
            details,
        )
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Refusal {
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            message,
            Value::Null,
        )
    }

    /// What a failed store write means for this object.
    pub fn of_write(resource: &Resource, name: &str, error: WriteError) -> Refusal {
        match error {
            WriteError::Exists => Refusal::already_exists(resource, name),
            WriteError::Missing => Refusal::not_found(resource, name),
            WriteError::Changed(_) => Refusal::modified(resource, name),
            WriteError::Storage(_) => Refusal::internal(error.to_string()),
        }
    }
}

impl From<RevisionError> for Refusal {
    fn from(error: RevisionError) -> Refusal {
        match error {
            RevisionError::Compacted { .. } => Refusal::expired(error.to_string()),
            RevisionError::Future { .. } => {
                let causes =
                    json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
                let details = json!({"causes": causes, "retryAfterSeconds": 1});
                Refusal::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", error.to_string(), details)
            }
        }
    }
}

/// The Status of a deletion that is done.
pub fn deleted(resource: &Resource, name: &str, uid: &Value) -> Value {
    let mut details = details(resource, name);
    if uid.is_string() {
        details["uid"] = uid.clone();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
