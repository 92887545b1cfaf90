//! How strategic merge patch treats each list: Kubernetes' `patchStrategy` and `patchMergeKey`.

use super::{Resource, schema};

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
    let (Resource::Builtin(kind), Some(field)) = (resource, path.last()) else {
        return ListStrategy::Replace;
    };
    let root = schema::name_of(kind.group, kind.version, kind.kind);
    let Some(owner) = schema::owner_of(&root, path) else {
        return ListStrategy::Replace;
    };
    strategy(schema::short_name(owner), field)
}

/// The strategy for a field of a type, from the struct tags of Kubernetes' Go types.
pub(super) fn strategy(owner: &str, field: &str) -> ListStrategy {
    use ListStrategy::{MergeByKey, MergeSet, Replace};
    match (owner, field) {
        ("ObjectMeta", "ownerReferences") => MergeByKey("uid"),
        ("ObjectMeta", "finalizers") | ("NodeSpec", "podCIDRs") => MergeSet,
        (
            "PodSpec",
            "volumes" | "containers" | "initContainers" | "ephemeralContainers" | "imagePullSecrets",
        )
        | ("PodSpec", "resourceClaims" | "schedulingGates") => MergeByKey("name"),
        ("PodSpec", "hostAliases") => MergeByKey("ip"),
        ("PodSpec", "topologySpreadConstraints") => MergeByKey("topologyKey"),
        ("Container" | "EphemeralContainer", "env") => MergeByKey("name"),
        ("Container" | "EphemeralContainer", "ports") => MergeByKey("containerPort"),
        ("Container" | "EphemeralContainer", "volumeMounts") => MergeByKey("mountPath"),
        ("Container" | "EphemeralContainer", "volumeDevices") => MergeByKey("devicePath"),
        ("PodStatus", "podIPs" | "hostIPs") => MergeByKey("ip"),
        ("PodStatus", "resourceClaimStatuses") | ("ServiceAccount", "secrets") => MergeByKey("name"),
        ("ServiceSpec", "ports") => MergeByKey("port"),
        ("NodeStatus", "addresses") => MergeByKey("type"),
        (
            "PodStatus" | "ServiceStatus" | "NodeStatus" | "NamespaceStatus" | "DeploymentStatus"
            | "ReplicaSetStatus",
            "conditions",
        ) => MergeByKey("type"),
        _ => Replace,
    }
}

/// Whether a patch of this field of a type clears the keys that it does not name (`retainKeys`): unions, where the
/// member that is left would otherwise stay beside the new one.
pub(super) fn retains_keys(owner: &str, field: &str) -> bool {
    matches!(
        (owner, field),
        ("PodSpec", "volumes" | "resourceClaims")
            | ("PodStatus", "resourceClaimStatuses")
            | ("DeploymentSpec", "strategy")
    )
}

#[cfg(test)]
mod tests {
    use super::super::builtin;
    use super::*;

    fn at(kind: &str, path: &str) -> ListStrategy {
        let kind = builtin().iter().find(|k| k.kind == kind).unwrap();
        list_strategy(&Resource::Builtin(kind), &path.split('.').collect::<Vec<_>>())
    }

    #[test]
    fn lists_merge_as_in_kubernetes() {
        use ListStrategy::*;
        let cases = [
            ("Pod", "spec.containers", MergeByKey("name")),
            ("Pod", "spec.containers.ports", MergeByKey("containerPort")),
            ("Pod", "spec.containers.args", Replace),
            ("Pod", "spec.tolerations", Replace),
            ("Pod", "metadata.finalizers", MergeSet),
            ("Pod", "status.conditions", MergeByKey("type")),
            ("Pod", "status.containerStatuses", Replace),
            ("Deployment", "spec.template.spec.volumes", MergeByKey("name")),
            (
                "Deployment",
                "spec.template.spec.containers.env",
                MergeByKey("name"),
            ),
            (
                "Deployment",
                "spec.template.metadata.ownerReferences",
                MergeByKey("uid"),
            ),
            ("Service", "spec.ports", MergeByKey("port")),
            ("Endpoints", "subsets.ports", Replace),
            ("NetworkPolicy", "spec.ingress.ports", Replace),
            ("Node", "status.addresses", MergeByKey("type")),
            ("Node", "spec.podCIDRs", MergeSet),
            ("Node", "spec.taints", Replace),
            ("Pod", "spec.nonsense.more", Replace),
        ];
        for (kind, path, want) in cases {
            assert_eq!(at(kind, path), want, "{kind} {path}");
        }
    }
}
