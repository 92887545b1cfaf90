//! Subresources that are deeds: pods/binding, pods/eviction, namespaces/finalize.

use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::metadata::{is_terminating, may_go, metadata, text, time};
use super::update::{Part, has_spec_finalizers};
use super::{Answer, Api, DeleteOptions, Object, Target, WriteOptions};
use crate::kinds::FieldError;
use crate::status::Refusal;

fn success() -> Answer {
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Answer {
        code: StatusCode::CREATED,
        object: Object::Made(status),
        warnings: Vec::new(),
    }
}

impl Api {
    /// POST of `pods/NAME/binding`: the pod belongs to a node from now on.
    pub async fn bind(
        self: &Arc<Self>,
        pod: &Target,
        binding: &Value,
        options: WriteOptions,
    ) -> Result<Answer, Refusal> {
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        if node.is_empty() {
            let error = FieldError::required("target.name", "");
            return Err(Refusal {
                status: crate::kinds::invalid_status("", "Binding", &pod.name, &[error]),
            });
        }
        let uid = text(binding, "uid");
        let edit = |current: &Value| assign(pod, current, node, uid, &binding["metadata"]);
        self.change(pod, Part::Unchecked, options, &edit).await?;
        Ok(success())
    }

    /// POST of `pods/NAME/eviction`: there are no disruption budgets, so it is a delete.
    pub async fn evict(self: &Arc<Self>, pod: &Target, eviction: &Value) -> Result<Answer, Refusal> {
        let options = DeleteOptions::parse(&eviction["deleteOptions"], &crate::rest::Query::default())?;
        self.delete(pod, &options).await?;
        Ok(success())
    }

    /// PUT of `namespaces/NAME/finalize`: sets `spec.finalizers`; without any left, a deleted namespace is gone.
    pub async fn finalize(
        self: &Arc<Self>,
        namespace: &Target,
        object: &Value,
        options: WriteOptions,
    ) -> Result<Answer, Refusal> {
        let finalizers = object["spec"]["finalizers"].clone();
        let version = text(object, "resourceVersion").to_owned();
        let edit = |current: &Value| {
            let mut new = current.clone();
            if let Some(spec) = new["spec"].as_object_mut() {
                match finalizers.as_array().is_none_or(Vec::is_empty) {
                    true => drop(spec.shift_remove("finalizers")),
                    false => drop(spec.insert("finalizers".into(), finalizers.clone())),
                }
            }
            if !version.is_empty() {
                metadata(&mut new).insert("resourceVersion".into(), version.clone().into());
            }
            Ok(new)
        };
        let answer = self.change(namespace, Part::Unchecked, options, &edit).await?;
        let left = answer.object.value();
        if is_terminating(left) && may_go(left) && !has_spec_finalizers(&namespace.resource, left) {
            // Usually gone already, with the write; a second finalize of an empty list lands here.
            match self.delete(namespace, &DeleteOptions::default()).await {
                Err(refusal) if refusal.code() != StatusCode::NOT_FOUND => return Err(refusal),
                _ => {}
            }
        }
        Ok(answer)
    }
}

fn assign(pod: &Target, current: &Value, node: &str, uid: &str, binding: &Value) -> Result<Value, Refusal> {
    let refuse = |why: String| {
        let mut refusal = Refusal::conflict(&pod.resource, &pod.name, &why);
        refusal.status["message"] = format!(
            "Operation cannot be fulfilled on pods/binding \"{}\": {why}",
            pod.name
        )
        .into();
        refusal.status["details"]["kind"] = "pods/binding".into();
        Err(refusal)
    };
    if !uid.is_empty() && uid != text(current, "uid") {
        return refuse(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            text(current, "uid")
        ));
    }
    if is_terminating(current) {
        return refuse(format!(
            "pod {} is being deleted, cannot be assigned to a host",
            pod.name
        ));
    }
    let assigned = current["spec"]["nodeName"].as_str().unwrap_or_default();
    if !assigned.is_empty() {
        return refuse(format!(
            "pod {} is already assigned to node {assigned:?}",
            pod.name
        ));
    }
    let mut new = current.clone();
    new["spec"]["nodeName"] = node.into();
    for (key, value) in binding["annotations"].as_object().into_iter().flatten() {
        new["metadata"]["annotations"][key] = value.clone();
    }
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": time(Timestamp::now()),
    });
    let conditions = &mut new["status"]["conditions"];
    match conditions.as_array_mut() {
        Some(list) => {
            list.retain(|one| one["type"] != "PodScheduled");
            list.push(condition);
        }
        None => *conditions = json!([condition]),
    }
    Ok(new)
}
