//! Which ReplicaSet is of which template, and which revision it is.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{PodSecurityContext, PodTemplateSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::View;
use super::fraction::fences;
use crate::action::controller_reference;

/// Label by which the pods of one template are told from those of another.
pub(super) const HASH: &str = "pod-template-hash";
/// Annotation with the revision of a Deployment or ReplicaSet.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotations by which scaling in the middle of a rollout knows the proportions.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of the Deployment that its ReplicaSets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// Longest list of past revisions, in bytes.
const HISTORY_LENGTH: usize = 2000;

/// A short name for a template: FNV-1a over its JSON and the number of collisions so far, in letters that make no
/// words.
pub fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash: u32 = 0x811c_9dc5;
    let bytes = serde_json::to_vec(&canonical(template)).unwrap_or_default();
    let salt = collisions.map(i32::to_le_bytes);
    for byte in bytes.iter().chain(salt.iter().flatten()) {
        hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    let digits = hash.to_string();
    digits
        .bytes()
        .map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()]))
        .collect()
}

/// The name that the ReplicaSet of the Deployment's current template gets, and the hash in it.
pub(super) fn new_name(deployment: &Deployment, spec: &DeploymentSpec) -> (String, String) {
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count);
    let hash = template_hash(&spec.template, collisions);
    (
        format!(
            "{}-{hash}",
            deployment.metadata.name.as_deref().unwrap_or_default()
        ),
        hash,
    )
}

/// Whether `set` is of the Deployment's current template: by the template itself, whoever made the set, or by the
/// hash that we gave it, should the server have completed the two templates differently.
pub(super) fn is_of(set: &ReplicaSet, deployment: &Deployment, spec: &DeploymentSpec) -> bool {
    let template = set.spec.as_ref().and_then(|s| s.template.as_ref());
    let same = template.is_some_and(|template| canonical(template) == canonical(&spec.template));
    same || set.metadata.name.as_deref() == Some(&new_name(deployment, spec).0)
}

/// The template as it means: without our hash, and without the empty values that Go's clients write out and others
/// leave out.
fn canonical(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let metadata = template.metadata.get_or_insert_default();
    metadata.creation_timestamp = None;
    if let Some(labels) = &mut metadata.labels {
        labels.remove(HASH);
    }
    metadata.labels = metadata.labels.take().filter(|labels| !labels.is_empty());
    metadata.annotations = metadata
        .annotations
        .take()
        .filter(|annotations| !annotations.is_empty());
    if let Some(spec) = &mut template.spec {
        spec.security_context = spec
            .security_context
            .take()
            .filter(|c| *c != PodSecurityContext::default());
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().flatten())
        {
            let resources = container.resources.take();
            container.resources = resources.filter(|r| *r != ResourceRequirements::default());
        }
    }
    template
}

/// The revision of an object; 0 if it has none.
pub(super) fn revision(meta: &ObjectMeta) -> i64 {
    annotation(meta, REVISION).unwrap_or(0)
}

pub(super) fn annotation<T: std::str::FromStr>(meta: &ObjectMeta, name: &str) -> Option<T> {
    meta.annotations.as_ref()?.get(name)?.parse().ok()
}

/// The ReplicaSet for the current template, with this many pods.
pub(super) fn new_set(view: &View<'_>, replicas: i32) -> ReplicaSet {
    let (name, hash) = new_name(view.deployment, view.spec);
    let mut template = view.spec.template.clone();
    let with_hash = |labels: &mut Option<BTreeMap<String, String>>| {
        labels.get_or_insert_default().insert(HASH.into(), hash.clone());
    };
    with_hash(&mut template.metadata.get_or_insert_default().labels);
    let mut selector = view.spec.selector.clone();
    with_hash(&mut selector.match_labels);
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: view.deployment.metadata.namespace.clone(),
            labels: template.metadata.as_ref().and_then(|m| m.labels.clone()),
            owner_references: Some(vec![controller_reference(view.deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: view.spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    annotate(view, &mut set);
    set
}

/// Gives the ReplicaSet of the current template the Deployment's annotations, the next revision, and what it needs
/// for proportional scaling.
pub(super) fn annotate(view: &View<'_>, set: &mut ReplicaSet) {
    let next = view
        .sets
        .old
        .iter()
        .map(|old| revision(&old.metadata))
        .max()
        .unwrap_or(0)
        + 1;
    let current = revision(&set.metadata);
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (key, value) in view.deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    if current < next {
        if current > 0 {
            let past = annotations
                .get(REVISION_HISTORY)
                .map(|h| format!("{h},"))
                .unwrap_or_default();
            let mut history = format!("{past}{current}");
            while history.len() > HISTORY_LENGTH {
                history = history
                    .split_once(',')
                    .map(|(_, rest)| rest.to_owned())
                    .unwrap_or_default();
            }
            annotations.insert(REVISION_HISTORY.into(), history);
        }
        annotations.insert(REVISION.into(), next.to_string());
    }
    proportions(view, set);
}

/// Notes in the ReplicaSet how large the Deployment was when it was scaled.
pub(super) fn proportions(view: &View<'_>, set: &mut ReplicaSet) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.into(), view.replicas().to_string());
    annotations.insert(MAX.into(), (view.replicas() + fences(view.spec).0).to_string());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(value: serde_json::Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_kubectl_writes_out_makes_no_new_template() {
        let plain =
            template(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}}));
        let rolled_back = template(json!({
            "metadata": {"creationTimestamp": null, "labels": {"a": "b", HASH: "x"}},
            "spec": {"containers": [{"name": "c", "resources": {}}], "securityContext": {}},
        }));
        assert_eq!(canonical(&plain), canonical(&rolled_back));
        assert_eq!(template_hash(&plain, None), template_hash(&rolled_back, None));
        let other =
            template(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "d"}]}}));
        assert_ne!(template_hash(&plain, None), template_hash(&other, None));
        assert_ne!(template_hash(&plain, None), template_hash(&plain, Some(1)));
    }
}
