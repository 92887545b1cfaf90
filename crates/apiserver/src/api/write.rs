//! Create, and what all writes share.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;

use super::addresses::is_ip_address;
use super::hooks::is;
use super::metadata::{generate_name, is_terminating, stamp_new, text};
use super::{Answer, Api, Object, Target, in_version};
use crate::kinds::Resource;
use crate::registry::Registry;
use crate::services::ClaimError;
use crate::status::Refusal;
use crate::store::{Change, Expect, Stored, Write, WriteError};

/// What becomes of fields that the kind does not have (`fieldValidation=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validation {
    /// Dropped.
    Ignore,
    /// Dropped, with a warning.
    #[default]
    Warn,
    /// Refused.
    Strict,
}

/// Options of create, update and patch.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Do everything but store (`dryRun=All`).
    pub dry_run: bool,
    /// What becomes of unknown fields.
    pub validation: Validation,
}

/// How often a generated name is tried.
const NAME_ATTEMPTS: usize = 8;

impl Api {
    /// POST to a collection.
    pub async fn create(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        mut object: Value,
        options: WriteOptions,
    ) -> Result<Answer, Refusal> {
        let warnings = decode(resource, &mut object, options.validation)?;
        check_namespace(&object, namespace)?;
        if !text(&object, "resourceVersion").is_empty() {
            return Err(Refusal::internal(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let generated = text(&object, "name").is_empty() && !text(&object, "generateName").is_empty();
        stamp_new(&mut object, namespace);
        if !generated {
            self.check_home(resource, namespace, text(&object, "name"))
                .await?;
            return self
                .create_named(resource, namespace, object, options, warnings)
                .await;
        }
        self.check_home(resource, namespace, "").await?;
        let base = text(&object, "generateName").to_owned();
        let mut outcome = Err(Refusal::internal("no name was generated"));
        for _ in 0..NAME_ATTEMPTS {
            object["metadata"]["name"] = generate_name(&base).into();
            outcome = self
                .create_named(resource, namespace, object.clone(), options, warnings.clone())
                .await;
            match &outcome {
                Err(refusal) if refusal.reason() == "AlreadyExists" => {}
                _ => break,
            }
        }
        outcome
    }

    async fn create_named(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        mut object: Value,
        options: WriteOptions,
        warnings: Vec<String>,
    ) -> Result<Answer, Refusal> {
        let name = text(&object, "name").to_owned();
        resource.default(&mut object);
        resource.prepare_create(&mut object);
        self.admit_new(resource, &mut object).await?;
        resource.default(&mut object);
        let target = Target::new(resource.clone(), namespace, &name);
        let is_address = is_ip_address(resource);
        let mut services = match is_service(resource) || is_address {
            true => Some(self.services.lock().await),
            false => None,
        };
        let claim = match &mut services {
            // An existing name must not cost an address, nor be refused for the one it holds.
            Some(_) if self.store.get(&target.key()).await.is_some() => {
                return Err(Refusal::already_exists(resource, &name));
            }
            Some(_) if is_address => None,
            Some(services) => Some(
                services
                    .create(&mut object)
                    .map_err(|error| refuse_claim(resource, &name, error))?,
            ),
            None => None,
        };
        let errors = resource.validate_create(&object);
        let outcome = if !errors.is_empty() {
            Err(Refusal::invalid(resource, &name, &errors))
        } else if options.dry_run {
            match self.store.get(&target.key()).await {
                Some(_) => Err(Refusal::already_exists(resource, &name)),
                None => Ok(Object::Made(object)),
            }
        } else {
            self.put(&target, Expect::Absent, object).await
        };
        let stored = outcome.as_ref().ok().filter(|_| !options.dry_run);
        if let (Some(services), Some(claim)) = (&mut services, claim) {
            self.settle(services, claim, stored.map(Object::value)).await;
        } else if let (Some(services), Some(_)) = (&mut services, stored) {
            self.refresh_ranges(services).await;
        }
        drop(services);
        if let Some(object) = stored {
            self.after_create(resource, object.value()).await;
        }
        Ok(Answer {
            code: StatusCode::CREATED,
            object: outcome?,
            warnings,
        })
    }

    /// The namespace must be there and must not be going.
    async fn check_home(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<(), Refusal> {
        let Some(namespace) = namespace else { return Ok(()) };
        let home = Target::new(Registry::builtin("", "v1", "namespaces"), None, namespace);
        let stored = self.stored(&home).await?;
        match is_terminating(&stored.object) {
            true => Err(Refusal::terminating(resource, name, namespace)),
            false => Ok(()),
        }
    }

    /// Stores, in the stored version's form.
    pub(super) async fn put(
        &self,
        target: &Target,
        expect: Expect,
        mut object: Value,
    ) -> Result<Object, Refusal> {
        target.resource.to_storage(&mut object);
        let write = Write {
            key: target.key(),
            expect,
            change: Change::Put(object),
        };
        let stored = self.store.write(write).await;
        let stored = stored.map_err(|error| Refusal::of_write(&target.resource, &target.name, error))?;
        Ok(in_version(&target.resource, &stored))
    }

    /// Takes away; `last` is the last state that watchers see.
    pub(super) async fn remove(
        &self,
        target: &Target,
        expect: u64,
        last: Option<Value>,
    ) -> Result<Arc<Stored>, WriteError> {
        let last = last.map(|mut last| {
            target.resource.to_storage(&mut last);
            last
        });
        let write = Write {
            key: target.key(),
            expect: Expect::At(expect),
            change: Change::Delete(last),
        };
        if !is_service(&target.resource) {
            let stored = self.store.write(write).await?;
            self.after_delete(target, &stored.object).await;
            return Ok(stored);
        }
        let mut services = self.services.lock().await;
        let held = self.store.get(&target.key()).await;
        let stored = self.store.write(write).await?;
        if let Some(held) = held {
            let claim = services.delete(&held.object);
            self.settle(&mut services, claim, Some(&held.object)).await;
        }
        drop(services);
        self.after_delete(target, &stored.object).await;
        Ok(stored)
    }
}

pub(super) fn refuse_claim(resource: &Resource, name: &str, error: ClaimError) -> Refusal {
    match error {
        ClaimError::Invalid(errors) => Refusal::invalid(resource, name, &errors),
        ClaimError::Exhausted(message) => Refusal::internal(message),
    }
}

pub(super) fn is_service(resource: &Resource) -> bool {
    is(resource, "", "services")
}

/// Checks that the body is of this kind, and drops unknown fields; answers warnings about them.
pub(super) fn decode(
    resource: &Resource,
    object: &mut Value,
    validation: Validation,
) -> Result<Vec<String>, Refusal> {
    let unknown = type_and_fields(resource, object)?;
    if unknown.is_empty() || validation == Validation::Ignore {
        return Ok(Vec::new());
    }
    if validation == Validation::Warn {
        return Ok(unknown);
    }
    let message = format!(
        "{}: strict decoding error: {}",
        cannot_be_handled(resource),
        unknown.join(", ")
    );
    Err(Refusal::bad_request(message))
}

/// As [`decode`], but answers what was dropped.
pub(super) fn type_and_fields(resource: &Resource, object: &mut Value) -> Result<Vec<String>, Refusal> {
    check_type(resource, object)?;
    let decoded = resource.decode(object);
    decoded.map_err(|error| Refusal::bad_request(format!("{}: {error}", cannot_be_handled(resource))))
}

fn cannot_be_handled(resource: &Resource) -> String {
    let (kind, version) = (resource.kind(), resource.version());
    format!("{kind} in version {version:?} cannot be handled as a {kind}")
}

fn check_type(resource: &Resource, object: &mut Value) -> Result<(), Refusal> {
    let Some(fields) = object.as_object_mut() else {
        let message = format!(
            "the object provided is unrecognized (must be of type {})",
            resource.kind()
        );
        return Err(Refusal::bad_request(message));
    };
    let api_version = resource.api_version();
    let given = |field: &str| fields.get(field).and_then(Value::as_str).unwrap_or_default();
    match given("kind") {
        "" => {}
        kind if kind == resource.kind() => {}
        kind => {
            let version = given("apiVersion").rsplit('/').next().unwrap_or_default();
            let message = format!(
                "{kind} in version {version:?} cannot be handled as a {}: no kind {kind:?} is registered for version {:?} in scheme \"podnet\"",
                resource.kind(),
                given("apiVersion")
            );
            return Err(Refusal::bad_request(message));
        }
    }
    match given("apiVersion") {
        "" => {}
        version if version == api_version => {}
        version => {
            let message = format!(
                "the API version in the data ({version}) does not match the expected API version ({api_version})"
            );
            return Err(Refusal::bad_request(message));
        }
    }
    if !fields
        .get("metadata")
        .is_none_or(|metadata| metadata.is_object() || metadata.is_null())
    {
        let message = format!(
            "{}: json: cannot unmarshal value into Go struct field {}.metadata of type v1.ObjectMeta",
            cannot_be_handled(resource),
            resource.kind()
        );
        return Err(Refusal::bad_request(message));
    }
    fields.insert("kind".into(), resource.kind().into());
    fields.insert("apiVersion".into(), api_version.into());
    super::metadata::metadata(object);
    Ok(())
}

fn check_namespace(object: &Value, namespace: Option<&str>) -> Result<(), Refusal> {
    match (text(object, "namespace"), namespace) {
        ("", _) => Ok(()),
        (given, Some(namespace)) if given == namespace => Ok(()),
        (_, Some(_)) => Err(Refusal::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
        (_, None) => Ok(()),
    }
}
