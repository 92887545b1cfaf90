//! Replace and patch, of the whole object or of a part.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;

use super::addresses::{hold, is_service_cidr, keep_ready};
use super::metadata::{check_finalizers, is_terminating, keep_immutable, may_go, same_but_revision, text};
use super::write::{decode, is_service, refuse_claim, type_and_fields};
use super::{Answer, Api, Object, Target, Validation, WriteOptions, in_version};
use crate::kinds::{FieldError, Resource};
use crate::patch::{Patch, PatchError};
use crate::status::Refusal;
use crate::store::{Expect, Stored, WriteError};

/// What a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but status.
    Whole,
    /// The status subresource.
    Status,
    /// Anything, by the server itself.
    Unchecked,
}

/// How often a write without a given resourceVersion is tried on a changing object.
const ATTEMPTS: usize = 20;

/// What makes the new object of the current one.
type Edit<'a> = &'a (dyn Fn(&Value) -> Result<Value, Refusal> + Send + Sync);

impl Api {
    /// PUT.
    pub async fn replace(
        self: &Arc<Self>,
        target: &Target,
        part: Part,
        mut object: Value,
        options: WriteOptions,
    ) -> Result<Answer, Refusal> {
        let resource = &target.resource;
        let warnings = decode(resource, &mut object, options.validation)?;
        check_identity(target, &object)?;
        resource.default(&mut object);
        if self.store.get(&target.key()).await.is_none()
            && part == Part::Whole
            && may_be_made_by_update(resource)
        {
            // As a create: the version in the body means nothing yet.
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.shift_remove("resourceVersion");
            }
            return self
                .create(resource, target.namespace.as_deref(), object, options)
                .await;
        }
        if text(&object, "resourceVersion").is_empty() && matches!(resource, Resource::Custom(_)) {
            let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            return Err(Refusal::invalid(resource, &target.name, &[error]));
        }
        let mut answer = self
            .change(target, part, options, &|_| Ok(object.clone()))
            .await?;
        answer.warnings = warnings;
        Ok(answer)
    }

    /// PATCH.
    pub async fn patch(
        self: &Arc<Self>,
        target: &Target,
        part: Part,
        patch: &Patch,
        options: WriteOptions,
    ) -> Result<Answer, Refusal> {
        let resource = &target.resource;
        let warnings = parking_lot::Mutex::new(Vec::new());
        let edit = |current: &Value| {
            let mut new = patch.apply(resource, current).map_err(refuse_patch)?;
            let unknown = type_and_fields(resource, &mut new)?;
            check_identity(target, &new)?;
            if options.validation == Validation::Strict && !unknown.is_empty() {
                let message = format!("strict decoding error: {}", unknown.join(", "));
                return Err(invalid_patch(patch, &message));
            }
            if options.validation == Validation::Warn {
                *warnings.lock() = unknown;
            }
            resource.default(&mut new);
            Ok(new)
        };
        let mut answer = self.change(target, part, options, &edit).await?;
        answer.warnings = warnings.into_inner();
        Ok(answer)
    }

    /// Read, edit, judge, write if nothing came between; again if it did and the edit was not bound to a version.
    pub(super) async fn change(
        self: &Arc<Self>,
        target: &Target,
        part: Part,
        options: WriteOptions,
        edit: Edit<'_>,
    ) -> Result<Answer, Refusal> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let stored = self.stored(target).await?;
            let current = in_version(&target.resource, &stored);
            let new = edit(current.value())?;
            let version = text(&new, "resourceVersion");
            let bound = !version.is_empty() && version != text(current.value(), "resourceVersion");
            if bound {
                return Err(Refusal::modified(&target.resource, &target.name));
            }
            match self
                .write_change(target, part, options, &stored, current, new)
                .await
            {
                Err(Failure::Changed) if attempt < ATTEMPTS => {}
                Err(Failure::Changed) => return Err(Refusal::modified(&target.resource, &target.name)),
                Err(Failure::Refused(refusal)) => return Err(*refusal),
                Ok(object) => {
                    return Ok(Answer {
                        code: StatusCode::OK,
                        object,
                        warnings: Vec::new(),
                    });
                }
            }
        }
    }

    async fn write_change(
        self: &Arc<Self>,
        target: &Target,
        part: Part,
        options: WriteOptions,
        stored: &Arc<Stored>,
        current: Object,
        mut new: Value,
    ) -> Result<Object, Failure> {
        let resource = &target.resource;
        let old = current.value();
        keep_immutable(resource, &mut new, old)?;
        prepare(resource, part, &mut new, old);
        if is_service_cidr(resource) && !is_terminating(old) {
            hold(&mut new);
            keep_ready(&mut new);
        }
        let mut services = match is_service(resource) && part == Part::Whole {
            true => Some(self.services.lock().await),
            false => None,
        };
        if super::hooks::is_definition(resource) && part == Part::Whole {
            self.establish(&mut new).await;
        }
        let claim = match &mut services {
            Some(services) => Some(
                services
                    .update(&mut new, old)
                    .map_err(|error| refuse_claim(resource, &target.name, error))?,
            ),
            None => None,
        };
        let errors = judge(resource, part, &new, old);
        let outcome = if !errors.is_empty() {
            Err(Refusal::invalid(resource, &target.name, &errors).into())
        } else if same_but_revision(&new, old) {
            Ok(current.clone())
        } else if options.dry_run {
            Ok(Object::Made(new))
        } else if may_go(&new) && !has_spec_finalizers(resource, &new) {
            // The deletion itself frees everything that the stored object holds.
            if let (Some(mut services), Some(claim)) = (services.take(), claim) {
                services.failed(claim);
            }
            return self.finish(target, stored, new).await;
        } else {
            self.put_changed(target, stored.revision, new).await
        };
        let stored = outcome.as_ref().ok().filter(|_| !options.dry_run);
        if let (Some(services), Some(claim)) = (&mut services, claim) {
            self.settle(services, claim, stored.map(Object::value)).await;
        }
        drop(services);
        if let Some(object) = stored {
            self.after_update(resource, object).await;
        }
        outcome
    }

    async fn put_changed(&self, target: &Target, revision: u64, new: Value) -> Result<Object, Failure> {
        match self.put(target, Expect::At(revision), new).await {
            Ok(object) => Ok(object),
            Err(refusal) if refusal.reason() == "Conflict" => Err(Failure::Changed),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// The update took the last finalizer of an object that is being deleted.
    async fn finish(&self, target: &Target, stored: &Arc<Stored>, last: Value) -> Result<Object, Failure> {
        match self.remove(target, stored.revision, Some(last)).await {
            Ok(stored) => Ok(in_version(&target.resource, &stored)),
            Err(WriteError::Changed(_)) => Err(Failure::Changed),
            Err(error) => Err(Refusal::of_write(&target.resource, &target.name, error).into()),
        }
    }
}

/// Why a change was not written.
pub(super) enum Failure {
    /// The object was changed meanwhile.
    Changed,
    /// It may not be.
    Refused(Box<Refusal>),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(Box::new(refusal))
    }
}

fn prepare(resource: &Resource, part: Part, new: &mut Value, old: &Value) {
    match part {
        Part::Whole => resource.prepare_update(new, old),
        Part::Status => resource.prepare_status_update(new, old),
        Part::Unchecked => {}
    }
}

fn judge(resource: &Resource, part: Part, new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = match part {
        Part::Whole => resource.validate_update(new, old),
        Part::Status => resource.validate_status_update(new, old),
        Part::Unchecked => Vec::new(),
    };
    if part != Part::Unchecked
        && let Some(error) = check_finalizers(new, old)
        && !errors.contains(&error)
    {
        errors.push(error);
    }
    errors
}

/// Namespaces are held by `spec.finalizers` too.
pub(super) fn has_spec_finalizers(resource: &Resource, object: &Value) -> bool {
    resource.group().is_empty()
        && resource.plural() == "namespaces"
        && object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|list| !list.is_empty())
}

fn check_identity(target: &Target, object: &Value) -> Result<(), Refusal> {
    let (name, namespace) = (text(object, "name"), text(object, "namespace"));
    if name.is_empty() {
        let error = FieldError::required("metadata.name", "name or generateName is required");
        return Err(Refusal::invalid(&target.resource, "", &[error]));
    }
    if name != target.name {
        let message = format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        );
        return Err(Refusal::bad_request(message));
    }
    match &target.namespace {
        Some(expected) if !namespace.is_empty() && namespace != expected => {
            let message = format!(
                "the namespace of the object ({namespace}) does not match the namespace on the URL ({expected})"
            );
            Err(Refusal::bad_request(message))
        }
        _ => Ok(()),
    }
}

/// AllowCreateOnUpdate in Kubernetes' strategies.
fn may_be_made_by_update(resource: &Resource) -> bool {
    matches!(
        (resource.group(), resource.plural()),
        ("", "services" | "endpoints" | "events")
            | ("events.k8s.io", "events")
            | ("coordination.k8s.io", "leases")
    )
}

pub(super) fn refuse_patch(error: PatchError) -> Refusal {
    match error {
        PatchError::Malformed(message) => Refusal::bad_request(message),
        PatchError::Unfit(_) => {
            Refusal::unprocessable("the server rejected our request due to an error in our request")
        }
    }
}

fn invalid_patch(patch: &Patch, message: &str) -> Refusal {
    let text = match patch {
        Patch::Json(operations) => serde_json::to_string(operations).unwrap_or_default(),
        Patch::Merge(value) | Patch::Strategic(value) => value.to_string(),
    };
    let error = FieldError::invalid("patch", text, message);
    Refusal {
        status: crate::kinds::invalid_status("", "", "", &[error]),
    }
}
