//! Delete: grace, finalizers, propagation, preconditions; and deletion of collections.

use std::sync::Arc;

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::list::Listed;
use super::metadata::{finalizers, is_terminating, may_go, metadata, text, time};
use super::update::has_spec_finalizers;
use super::{Answer, Api, ListQuery, Object, Target, in_version};
use crate::kinds::Resource;
use crate::status::{self, Refusal};
use crate::store::{Expect, Stored, WriteError};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They go before it.
    Foreground,
    /// They go after it.
    Background,
    /// They stay.
    Orphan,
}

/// Body and query of a DELETE.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// `gracePeriodSeconds`.
    pub grace: Option<i64>,
    /// `propagationPolicy`.
    pub propagation: Option<Propagation>,
    /// `preconditions.uid`.
    pub uid: Option<String>,
    /// `preconditions.resourceVersion`.
    pub resource_version: Option<String>,
    /// `dryRun=All`.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From the body (null for none); what the query says comes first.
    pub fn parse(body: &Value, query: &crate::rest::Query) -> Result<DeleteOptions, Refusal> {
        let kind = body["kind"].as_str().unwrap_or("DeleteOptions");
        if kind != "DeleteOptions" {
            return Err(Refusal::bad_request(format!(
                "the body is a {kind}, not DeleteOptions"
            )));
        }
        let grace = match query.non_empty("gracePeriodSeconds") {
            Some(text) => Some(text.parse().map_err(|_| {
                Refusal::bad_request(format!("gracePeriodSeconds: {text:?} is not a number of seconds"))
            })?),
            None => body["gracePeriodSeconds"].as_i64(),
        };
        let policy = query
            .non_empty("propagationPolicy")
            .or(body["propagationPolicy"].as_str());
        let orphan = query.non_empty("orphanDependents").map(|text| text == "true");
        let orphan = orphan.or(body["orphanDependents"].as_bool());
        let propagation = match (policy, orphan) {
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (None, None) => None,
            (Some(other), _) => {
                let supported = ["Background", "Foreground", "Orphan"];
                let error = crate::kinds::FieldError::not_supported("propagationPolicy", other, &supported);
                let status = crate::kinds::invalid_status("meta.k8s.io", "DeleteOptions", "", &[error]);
                return Err(Refusal { status });
            }
        };
        let condition = |field: &str| body["preconditions"][field].as_str().map(str::to_owned);
        Ok(DeleteOptions {
            grace,
            propagation,
            uid: condition("uid"),
            resource_version: condition("resourceVersion"),
            dry_run: query.get("dryRun") == Some("All") || body["dryRun"] == json!(["All"]),
        })
    }

    fn check(&self, target: &Target, object: &Value) -> Result<(), Refusal> {
        let checks = [
            ("UID", "uid", &self.uid),
            ("ResourceVersion", "resourceVersion", &self.resource_version),
        ];
        for (name, field, wanted) in checks {
            let found = text(object, field);
            if let Some(wanted) = wanted
                && wanted != found
            {
                let why = format!(
                    "Precondition failed: {name} in precondition: {wanted}, {name} in object meta: {found}"
                );
                return Err(Refusal::conflict(&target.resource, &target.name, &why));
            }
        }
        Ok(())
    }
}

/// What a delete does to the object.
enum Step {
    /// Nothing: it is going already.
    Wait,
    /// It is marked and waits for its grace or its finalizers.
    Mark(Value),
    /// It goes now; this is its last state.
    Remove(Value),
}

impl Api {
    /// DELETE of one object.
    pub async fn delete(
        self: &Arc<Self>,
        target: &Target,
        options: &DeleteOptions,
    ) -> Result<Answer, Refusal> {
        check_protected(target)?;
        loop {
            let stored = self.stored(target).await?;
            let object = in_version(&target.resource, &stored);
            options.check(target, object.value())?;
            let step = step(&target.resource, object.value(), options);
            if options.dry_run {
                return Ok(dry(target, object, step));
            }
            match self.take_step(target, &stored, object, step).await {
                // Somebody was quicker: look again, unless the client named the version.
                Err(WriteError::Changed(_)) => {}
                Err(error) => return Err(Refusal::of_write(&target.resource, &target.name, error)),
                Ok(answer) => return Ok(answer),
            }
        }
    }

    async fn take_step(
        self: &Arc<Self>,
        target: &Target,
        stored: &Arc<Stored>,
        object: Object,
        step: Step,
    ) -> Result<Answer, WriteError> {
        match step {
            Step::Wait => Ok(Answer::ok(object)),
            Step::Mark(mut marked) => {
                if super::hooks::is_definition(&target.resource) {
                    set_terminating(&mut marked);
                }
                target.resource.to_storage(&mut marked);
                let change = crate::store::Change::Put(marked);
                let write = crate::store::Write {
                    key: target.key(),
                    expect: Expect::At(stored.revision),
                    change,
                };
                let object = in_version(&target.resource, &self.store.write(write).await?);
                self.after_update(&target.resource, &object).await;
                Ok(Answer::ok(object))
            }
            Step::Remove(last) => {
                let stored = self.remove(target, stored.revision, Some(last)).await?;
                Ok(gone(target, in_version(&target.resource, &stored)))
            }
        }
    }

    /// DELETE of a collection: every selected object is deleted by itself.
    pub async fn delete_collection(
        self: &Arc<Self>,
        resource: &Resource,
        namespace: Option<&str>,
        query: &ListQuery,
        options: &DeleteOptions,
    ) -> Result<Listed, Refusal> {
        let listed = self.list(resource, namespace, query).await?;
        for object in &listed.items {
            let (namespace, name) = (text(object.value(), "namespace"), text(object.value(), "name"));
            let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
            match self
                .delete(&Target::new(resource.clone(), namespace, name), options)
                .await
            {
                Err(refusal) if refusal.code() != StatusCode::NOT_FOUND => return Err(refusal),
                _ => {}
            }
        }
        Ok(listed)
    }
}

/// The namespaces that the cluster cannot be without.
fn check_protected(target: &Target) -> Result<(), Refusal> {
    if is_namespace(&target.resource)
        && matches!(target.name.as_str(), "default" | "kube-system" | "kube-public")
    {
        return Err(Refusal::forbidden(
            &target.resource,
            &target.name,
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}

fn is_namespace(resource: &Resource) -> bool {
    resource.group().is_empty() && resource.plural() == "namespaces"
}

fn dry(target: &Target, object: Object, step: Step) -> Answer {
    match step {
        Step::Wait => Answer::ok(object),
        Step::Mark(marked) => Answer::ok(Object::Made(marked)),
        Step::Remove(last) => gone(target, Object::Made(last)),
    }
}

/// Some kinds are answered as they were, the others as a Status.
fn gone(target: &Target, last: Object) -> Answer {
    let core = target.resource.group().is_empty();
    if core && matches!(target.resource.plural(), "pods" | "services" | "serviceaccounts") {
        return Answer::ok(last);
    }
    let uid = last.value()["metadata"]["uid"].clone();
    Answer::ok(Object::Made(status::deleted(
        &target.resource,
        &target.name,
        &uid,
    )))
}

fn step(resource: &Resource, object: &Value, options: &DeleteOptions) -> Step {
    let terminating = is_terminating(object);
    let mut new = object.clone();
    let held = finalizers_for(object, options.propagation);
    match held.is_empty() {
        true => drop(metadata(&mut new).shift_remove("finalizers")),
        false => drop(metadata(&mut new).insert("finalizers".into(), json!(held))),
    }
    let core = resource.group().is_empty();
    if is_namespace(resource) {
        new["status"]["phase"] = "Terminating".into();
    }
    match terminating {
        true => shorten_grace(&mut new, options.grace),
        false => {
            let grace = if core && resource.plural() == "pods" {
                pod_grace(object, options.grace)
            } else {
                0
            };
            mark(&mut new, grace);
            if is_namespace(resource) {
                // Its content is its grace.
                metadata(&mut new).shift_remove("deletionGracePeriodSeconds");
            }
        }
    }
    if may_go(&new) && !has_spec_finalizers(resource, &new) {
        Step::Remove(new)
    } else if new == *object {
        Step::Wait
    } else {
        Step::Mark(new)
    }
}

/// Pods that run get their grace; those that nobody runs need none.
fn pod_grace(pod: &Value, wanted: Option<i64>) -> i64 {
    let unscheduled = pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unscheduled || ended {
        return 0;
    }
    let own = || {
        pod["spec"]["terminationGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(30)
    };
    match wanted.unwrap_or_else(own) {
        grace if grace < 0 => 1,
        grace => grace,
    }
}

fn mark(object: &mut Value, grace: i64) {
    let at = Timestamp::now()
        .saturating_add(SignedDuration::from_secs(grace))
        .unwrap_or(Timestamp::MAX);
    let metadata = metadata(object);
    metadata.insert("deletionTimestamp".into(), time(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if let Some(generation) = metadata
        .get("generation")
        .and_then(Value::as_i64)
        .filter(|n| *n > 0)
    {
        metadata.insert("generation".into(), (generation + 1).into());
    }
}

/// A second delete may only shorten the grace.
fn shorten_grace(object: &mut Value, wanted: Option<i64>) {
    let metadata = metadata(object);
    let current = metadata
        .get("deletionGracePeriodSeconds")
        .and_then(Value::as_i64)
        .unwrap_or_default();
    let Some(wanted) = wanted
        .map(|wanted| if wanted < 0 { 1 } else { wanted })
        .filter(|wanted| *wanted < current)
    else {
        return;
    };
    let at = metadata
        .get("deletionTimestamp")
        .and_then(Value::as_str)
        .and_then(|at| at.parse::<Timestamp>().ok());
    if let Some(at) = at.and_then(|at| {
        at.saturating_add(SignedDuration::from_secs(wanted - current))
            .ok()
    }) {
        metadata.insert("deletionTimestamp".into(), time(at).into());
    }
    metadata.insert("deletionGracePeriodSeconds".into(), wanted.into());
}

/// The garbage collector's finalizers, as the propagation says.
fn finalizers_for(object: &Value, propagation: Option<Propagation>) -> Vec<String> {
    let mut list: Vec<String> = finalizers(object).into_iter().map(str::to_owned).collect();
    let wanted = match propagation {
        None => return list,
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Orphan) => Some(ORPHAN),
        Some(Propagation::Background) => None,
    };
    list.retain(|one| (one != FOREGROUND && one != ORPHAN) || Some(one.as_str()) == wanted);
    if let Some(wanted) = wanted
        && !list.iter().any(|one| one == wanted)
    {
        list.push(wanted.to_owned());
    }
    list
}

/// A definition says that its objects are being deleted.
fn set_terminating(definition: &mut Value) {
    let condition = json!({
        "type": "Terminating", "status": "True", "reason": "InstanceDeletionInProgress",
        "message": "CustomResource deletion is in progress", "lastTransitionTime": time(Timestamp::now()),
    });
    let conditions = &mut definition["status"]["conditions"];
    match conditions.as_array_mut() {
        Some(list) => {
            list.retain(|one| one["type"] != "Terminating");
            list.push(condition);
        }
        None => *conditions = json!([condition]),
    }
}
