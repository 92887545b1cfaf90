//! How strategic merge patch treats each list: Kubernetes' `patchStrategy` and `patchMergeKey`.

use super::Resource;

/// What a strategic merge patch does with a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListStrategy {
    /// The patch's list takes the place of the old one.
    Replace,
    /// Items with an equal value of this field are merged, others are appended.
    MergeByKey(&'static str),
    /// A set of plain values: the patch's are added.
    MergeSet,
}

/// The strategy for the list at `path`: field names from the object's root, without list indices, e.g.
/// `["spec", "template", "spec", "containers"]`.
///
/// Custom resources have none: Kubernetes answers a strategic merge patch on them with 415.
pub fn list_strategy(resource: &Resource, path: &[&str]) -> ListStrategy {
    if matches!(resource, Resource::Custom(_)) {
        return ListStrategy::Replace;
    }
    match path {
        [
            ..,
            "containers" | "initContainers" | "ephemeralContainers" | "env" | "volumes" | "imagePullSecrets",
        ] => ListStrategy::MergeByKey("name"),
        [.., "finalizers"] => ListStrategy::MergeSet,
        ["metadata", "ownerReferences"] => ListStrategy::MergeByKey("uid"),
        [.., "conditions"] => ListStrategy::MergeByKey("type"),
        [.., "ports"] if resource.kind() == "Service" => ListStrategy::MergeByKey("port"),
        _ => ListStrategy::Replace,
    }
}
