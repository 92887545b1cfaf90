//! Label and field selectors: parsed once from the query, then matched against objects.

mod field;
mod label;

pub use field::FieldSelector;
pub use label::LabelSelector;

use serde_json::Value;

use crate::kinds::Resource;

/// Both selectors of a list, a watch or a collection delete.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// `labelSelector=`.
    pub labels: LabelSelector,
    /// `fieldSelector=`.
    pub fields: FieldSelector,
}

impl Selection {
    /// Selects everything.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Whether the object is selected. `resource` tells what its field labels mean.
    pub fn matches(&self, resource: &Resource, object: &Value) -> bool {
        self.labels.matches(&object["metadata"]["labels"]) && self.fields.matches(resource, object)
    }
}
