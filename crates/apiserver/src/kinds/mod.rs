//! What the server knows of each kind: its names, defaults, rules, printed columns and schema.
//!
//! Built-in kinds are rows of a static table ([`builtin`]); kinds from CustomResourceDefinitions are made at run
//! time ([`crd`]). Both are used through [`Resource`], which is cheap to clone.
//!
//! The order of a create is: [`Resource::decode`], [`Resource::default`], [`Resource::prepare_create`],
//! [`Resource::validate_create`]; of an update the same with `_update`, where `new` has been decoded and defaulted
//! and `old` is what is stored; of a write to the status subresource with `_status_update`.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

pub mod crd;
pub mod error;
pub mod openapi;
pub mod protobuf;
pub mod strategic;

mod builtin;
mod defaults;
mod prepare;
mod print;
mod schema;
mod validate;
mod value;

pub use builtin::{Generation, builtin};
pub use error::{FieldError, Reason, invalid_status};

/// Where the scale subresource finds its numbers (dotted paths).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    /// The wanted number, as `spec.replicas`.
    pub spec_replicas: Cow<'static, str>,
    /// The counted number, as `status.replicas`.
    pub status_replicas: Cow<'static, str>,
    /// The selector: a LabelSelector object or its string form.
    pub selector: Option<Cow<'static, str>>,
}

/// A column of a Table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The heading as in the API, e.g. `Ready` (kubectl prints it in capitals).
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: Cow<'static, str>,
    /// `name` for the object's name, else empty.
    pub format: Cow<'static, str>,
    /// What it tells.
    pub description: Cow<'static, str>,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i32,
}

impl Column {
    const fn new(
        name: &'static str,
        kind: &'static str,
        format: &'static str,
        priority: i32,
        description: &'static str,
    ) -> Self {
        Column {
            name: Cow::Borrowed(name),
            kind: Cow::Borrowed(kind),
            format: Cow::Borrowed(format),
            description: Cow::Borrowed(description),
            priority,
        }
    }
}

/// A built-in kind: a row of the static table.
#[derive(Debug)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// API version, e.g. `v1`.
    pub version: &'static str,
    /// Kind, e.g. `Pod`.
    pub kind: &'static str,
    /// Resource name in paths, e.g. `pods`.
    pub plural: &'static str,
    /// Singular name, e.g. `pod`.
    pub singular: &'static str,
    /// Short names, e.g. `po`.
    pub short_names: &'static [&'static str],
    /// Categories, e.g. `all`.
    pub categories: &'static [&'static str],
    /// Lives in namespaces.
    pub namespaced: bool,
    /// Has a status subresource.
    pub status: bool,
    /// Has a scale subresource.
    pub scale: bool,
    /// What counts up `metadata.generation`.
    pub generation: Generation,
    /// Group and plural under which objects are stored, when another kind's (events.k8s.io stores core Events).
    pub stored_as: Option<(&'static str, &'static str)>,
    /// What names must look like.
    pub(in crate::kinds) names: validate::NameRule,
    /// Fills in what was left out.
    pub default: fn(&mut Value),
    /// Judges an object; `old` is there on update.
    pub validate: fn(new: &Value, old: Option<&Value>) -> Vec<FieldError>,
    /// Judges a write to the status subresource.
    pub validate_status: fn(new: &Value, old: &Value) -> Vec<FieldError>,
    /// What the server itself changes before validation on create.
    pub prepare_create: fn(&mut Value),
    /// Columns of its Table.
    pub columns: &'static [Column],
    /// Cells of one row, one per column.
    pub row: fn(&Value, Timestamp) -> Vec<Value>,
    /// Field labels that can be selected by, beside `metadata.name` and `metadata.namespace`.
    pub field_labels: &'static [&'static str],
    /// The value of one of those labels.
    pub field_label: fn(&Value, &str) -> String,
}

/// An object could not be read as its kind: a 400 in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// Dotted path of the field, e.g. `spec.replicas`.
    pub path: String,
    /// As Go says it: `json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`.
    pub message: String,
}

impl DecodeError {
    /// The message of the 400 Status.
    pub fn status_message(&self, resource: &Resource) -> String {
        let (kind, version) = (resource.kind(), resource.version());
        format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {}",
            self.message
        )
    }
}

/// What the server knows of a kind, built in or custom.
#[derive(Debug, Clone)]
pub enum Resource {
    /// From the static table.
    Builtin(&'static Kind),
    /// A version of a CustomResourceDefinition.
    Custom(Arc<crd::CustomKind>),
}

impl From<&'static Kind> for Resource {
    fn from(kind: &'static Kind) -> Self {
        Resource::Builtin(kind)
    }
}

macro_rules! name {
    ($(#[$doc:meta] $name:ident),+ $(,)?) => {
        $(#[$doc] pub fn $name(&self) -> &str {
            match self {
                Resource::Builtin(k) => k.$name,
                Resource::Custom(k) => &k.$name,
            }
        })+
    };
}

impl Resource {
    name! {
        /// API group, empty for the core group.
        group,
        /// API version.
        version,
        /// Kind, e.g. `Pod`.
        kind,
        /// Resource name in paths, e.g. `pods`.
        plural,
        /// Singular name.
        singular,
    }

    /// Kind of a list of these.
    pub fn list_kind(&self) -> String {
        match self {
            Resource::Builtin(k) => format!("{}List", k.kind),
            Resource::Custom(k) => k.list_kind.clone(),
        }
    }

    /// Short names, e.g. `po`.
    pub fn short_names(&self) -> Vec<String> {
        match self {
            Resource::Builtin(k) => k.short_names.iter().map(|&s| s.to_owned()).collect(),
            Resource::Custom(k) => k.short_names.clone(),
        }
    }

    /// Categories, e.g. `all`.
    pub fn categories(&self) -> Vec<String> {
        match self {
            Resource::Builtin(k) => k.categories.iter().map(|&s| s.to_owned()).collect(),
            Resource::Custom(k) => k.categories.clone(),
        }
    }

    /// Lives in namespaces.
    pub fn namespaced(&self) -> bool {
        match self {
            Resource::Builtin(k) => k.namespaced,
            Resource::Custom(k) => k.namespaced,
        }
    }

    /// Has a status subresource.
    pub fn has_status(&self) -> bool {
        match self {
            Resource::Builtin(k) => k.status,
            Resource::Custom(k) => k.status,
        }
    }

    /// Where its scale subresource finds its numbers, if it has one.
    pub fn scale(&self) -> Option<Scale> {
        match self {
            Resource::Builtin(k) => k.scale.then_some(Scale {
                spec_replicas: Cow::Borrowed("spec.replicas"),
                status_replicas: Cow::Borrowed("status.replicas"),
                selector: Some(Cow::Borrowed("spec.selector")),
            }),
            Resource::Custom(k) => k.scale.clone(),
        }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// `pods` or `deployments.apps`, as in messages.
    pub fn group_resource(&self) -> String {
        match self.group() {
            "" => self.plural().to_owned(),
            group => format!("{}.{group}", self.plural()),
        }
    }

    /// Group and plural under which its objects are stored; all versions of a kind share them.
    pub fn stored_as(&self) -> (&str, &str) {
        match self {
            Resource::Builtin(k) => k.stored_as.unwrap_or((k.group, k.plural)),
            Resource::Custom(k) => (&k.group, &k.plural),
        }
    }

    /// Turns an object of this version into the form that is stored.
    pub fn to_storage(&self, object: &mut Value) {
        match self {
            Resource::Builtin(k) => builtin::to_storage(k, object),
            Resource::Custom(k) => k.to_storage(object),
        }
    }

    /// Turns a stored object into this version's form.
    pub fn from_storage(&self, object: &mut Value) {
        match self {
            Resource::Builtin(k) => builtin::from_storage(k, object),
            Resource::Custom(k) => k.leave_storage(object),
        }
    }

    /// Checks that every known field has its type, drops unknown ones as decoding does in Kubernetes, and returns the
    /// texts of what was dropped (`unknown field "spec.foo"`), for fieldValidation Warn and Strict.
    pub fn decode(&self, object: &mut Value) -> Result<Vec<String>, DecodeError> {
        match self {
            Resource::Builtin(k) => builtin::decode(k, object),
            Resource::Custom(k) => k.decode(object),
        }
    }

    /// Fills in what was left out. Idempotent.
    pub fn default(&self, object: &mut Value) {
        match self {
            Resource::Builtin(k) => (k.default)(object),
            Resource::Custom(k) => k.default(object),
        }
    }

    /// What the server itself changes on create: drops status, starts the generation, a Pod is Pending.
    pub fn prepare_create(&self, object: &mut Value) {
        match self {
            Resource::Builtin(k) => prepare::create(k, object),
            Resource::Custom(k) => k.prepare_create(object),
        }
    }

    /// What the server itself changes on update: keeps status, bumps the generation when spec changed.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        match self {
            Resource::Builtin(k) => prepare::update(k, new, old),
            Resource::Custom(k) => k.prepare_update(new, old),
        }
    }

    /// On a write to the status subresource: keeps everything but status (and managed metadata).
    pub fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        match self {
            Resource::Builtin(k) => prepare::status_update(k, new, old),
            Resource::Custom(k) => k.prepare_status_update(new, old),
        }
    }

    /// What is wrong with a new object, metadata included.
    pub fn validate_create(&self, new: &Value) -> Vec<FieldError> {
        match self {
            Resource::Builtin(k) => builtin::validate(k, new, None),
            Resource::Custom(k) => k.validate(new, None),
        }
    }

    /// What is wrong with an update.
    pub fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match self {
            Resource::Builtin(k) => builtin::validate(k, new, Some(old)),
            Resource::Custom(k) => k.validate(new, Some(old)),
        }
    }

    /// What is wrong with a write to the status subresource.
    pub fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        match self {
            Resource::Builtin(k) => (k.validate_status)(new, old),
            Resource::Custom(k) => k.validate(new, Some(old)),
        }
    }

    /// The columns of its Table.
    pub fn columns(&self) -> &[Column] {
        match self {
            Resource::Builtin(k) => k.columns,
            Resource::Custom(k) => &k.columns,
        }
    }

    /// The cells of an object's row, one per column.
    pub fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match self {
            Resource::Builtin(k) => (k.row)(object, now),
            Resource::Custom(k) => k.row(object, now),
        }
    }

    /// The value of a field label, or the text of Kubernetes' 400 when it cannot be selected by.
    pub fn field_label(&self, object: &Value, label: &str) -> Result<String, String> {
        self.check_field_label(label)?;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        match label {
            "metadata.name" => Ok(text(&object["metadata"]["name"])),
            "metadata.namespace" => Ok(text(&object["metadata"]["namespace"])),
            _ => Ok(match self {
                Resource::Builtin(k) => (k.field_label)(object, label),
                Resource::Custom(k) => k.field_label(object, label),
            }),
        }
    }

    /// Whether objects can be selected by this field; else the text of Kubernetes' 400.
    pub fn check_field_label(&self, label: &str) -> Result<(), String> {
        if matches!(label, "metadata.name" | "metadata.namespace") {
            return Ok(());
        }
        match self {
            Resource::Builtin(k) if k.field_labels.contains(&label) => Ok(()),
            Resource::Builtin(k) => Err(builtin::unknown_field_label(k, label)),
            Resource::Custom(k) => k.check_field_label(label),
        }
    }
}
