//! What the server itself changes on writes: Kubernetes' registry strategies.

use podnet_core::quantity::Quantity;
use serde_json::{Value, json};

use super::value::{entries, keep, list, object_mut, remove, same_but, text};
use super::{Kind, builtin::Generation};

/// On create: status is the server's to begin with, the generation starts.
pub(super) fn create(kind: &Kind, object: &mut Value) {
    // Kubelets register nodes together with their status.
    if kind.status && kind.kind != "Node" {
        remove(object, "status");
    }
    if kind.generation != Generation::None {
        object["metadata"]["generation"] = 1.into();
    }
    (kind.prepare_create)(object);
}

/// On update: status stays, the generation counts changes.
pub(super) fn update(kind: &Kind, new: &mut Value, old: &Value) {
    if kind.status {
        keep(new, old, "status");
    }
    // Finalizers of a namespace go through the finalize subresource alone.
    if kind.kind == "Namespace" {
        keep(new, old, "spec");
    }
    let annotations = |o: &Value| o["metadata"]["annotations"].clone();
    let changed = match kind.generation {
        Generation::None => return,
        Generation::Spec => new["spec"] != old["spec"],
        Generation::SpecAndAnnotations => new["spec"] != old["spec"] || annotations(new) != annotations(old),
        Generation::Whole => !same_but(new, old, &["metadata"]),
    };
    bump_generation(new, old, changed);
}

/// On a write to the status subresource: everything but status stays.
pub(super) fn status_update(kind: &Kind, new: &mut Value, old: &Value) {
    let metadata = new["metadata"].clone();
    keep_all_but_status(new, old);
    // Kubelets label their node in the same write.
    if kind.kind == "Node" {
        for field in ["labels", "annotations"] {
            keep(&mut new["metadata"], &metadata, field);
        }
    }
    if kind.kind == "Pod" && !old["status"]["qosClass"].is_null() {
        new["status"]["qosClass"] = old["status"]["qosClass"].clone();
    }
}

/// `old` with the status of `new`, and the metadata that says whose write it is.
pub(super) fn keep_all_but_status(new: &mut Value, old: &Value) {
    let sent = std::mem::replace(new, old.clone());
    keep(new, &sent, "status");
    for field in ["resourceVersion", "managedFields"] {
        keep(&mut new["metadata"], &sent["metadata"], field);
    }
}

/// Sets the generation to the old one, or one more.
pub(super) fn bump_generation(new: &mut Value, old: &Value, changed: bool) {
    let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
    let generation = if changed { before + 1 } else { before };
    if generation > 0 {
        new["metadata"]["generation"] = generation.into();
    }
}

pub(super) fn new_pod(pod: &mut Value) {
    let class = qos_class(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
}

pub(super) fn new_namespace(namespace: &mut Value) {
    // The label, for names that the server generated after defaulting.
    super::defaults::namespace(namespace);
    if let Some(spec) = object_mut(namespace, "spec") {
        let kubernetes = Value::from("kubernetes");
        match spec.get_mut("finalizers").and_then(Value::as_array_mut) {
            Some(all) if all.contains(&kubernetes) => {}
            Some(all) => all.push(kubernetes),
            None => spec["finalizers"] = json!([kubernetes]),
        }
    }
    namespace["status"] = json!({"phase": "Active"});
}

pub(super) fn new_service(service: &mut Value) {
    service["status"] = json!({"loadBalancer": {}});
}

pub(super) fn new_deployment(deployment: &mut Value) {
    deployment["status"] = json!({});
}

pub(super) fn new_replica_set(replica_set: &mut Value) {
    replica_set["status"] = json!({"replicas": 0});
}

/// The quality of service class of a pod.
fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let mut guaranteed = true;
    let mut any = false;
    for container in list(&spec["containers"])
        .iter()
        .chain(list(&spec["initContainers"]))
    {
        let resources = &container["resources"];
        let positive = |v: &Value| text(v).parse::<Quantity>().is_ok_and(|q| q.nanos() > 0);
        for name in ["cpu", "memory"] {
            let (limit, request) = (&resources["limits"][name], &resources["requests"][name]);
            any |= positive(limit) || positive(request);
            guaranteed &= positive(limit) && (request.is_null() || request == limit);
        }
        any |= entries(&resources["requests"])
            .chain(entries(&resources["limits"]))
            .any(|(name, v)| matches!(name, "cpu" | "memory") && positive(v));
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Resource, builtin};
    use super::*;

    fn resource(name: &str) -> Resource {
        Resource::Builtin(builtin().iter().find(|k| k.kind == name).unwrap())
    }

    #[test]
    fn a_new_pod_is_pending_whatever_was_sent() {
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{}]}, "status": {"phase": "Running"}});
        resource("Pod").prepare_create(&mut pod);
        assert_eq!(
            pod["status"],
            json!({"phase": "Pending", "qosClass": "BestEffort"})
        );
        assert_eq!(pod["metadata"]["generation"], 1);
    }

    #[test]
    fn quality_of_service_follows_resources() {
        let class =
            |resources: Value| qos_class(&json!({"spec": {"containers": [{"resources": resources}]}}));
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(class(json!({"limits": both, "requests": both})), "Guaranteed");
    }

    #[test]
    fn an_update_keeps_status_and_counts_changes_of_spec() {
        let old = json!({"metadata": {"generation": 3}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
        let mut new = json!({"metadata": {"labels": {}}, "spec": {"replicas": 1}, "status": {"replicas": 9}});
        resource("ReplicaSet").prepare_update(&mut new, &old);
        assert_eq!(
            (&new["status"], &new["metadata"]["generation"]),
            (&json!({"replicas": 1}), &json!(3))
        );
        new["spec"]["replicas"] = 2.into();
        resource("ReplicaSet").prepare_update(&mut new, &old);
        assert_eq!(new["metadata"]["generation"], 4);
    }

    #[test]
    fn annotations_count_for_deployments_only() {
        let old = json!({"metadata": {"generation": 1}, "spec": {}});
        let new = json!({"metadata": {"annotations": {"a": "b"}}, "spec": {}});
        for (kind, want) in [("Deployment", 2), ("ReplicaSet", 1)] {
            let mut new = new.clone();
            resource(kind).prepare_update(&mut new, &old);
            assert_eq!(new["metadata"]["generation"], want, "{kind}");
        }
    }

    #[test]
    fn a_status_write_changes_status_alone() {
        let old =
            json!({"metadata": {"generation": 3, "resourceVersion": "5"}, "spec": {"a": 1}, "status": {}});
        let mut new = json!({"metadata": {"resourceVersion": "4", "labels": {"a": "b"}}, "spec": {"a": 2},
            "status": {"replicas": 2}});
        resource("Deployment").prepare_status_update(&mut new, &old);
        assert_eq!(
            new,
            json!({"metadata": {"generation": 3, "resourceVersion": "4"}, "spec": {"a": 1},
                "status": {"replicas": 2}})
        );
    }
}
