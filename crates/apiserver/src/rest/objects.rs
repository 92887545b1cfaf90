//! Requests about objects: methods and subresources to verbs.

use std::sync::Arc;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::Value;

use super::accept::{self, Shape};
use super::body::{self, Body};
use super::path::ObjectPath;
use super::query::Query;
use crate::api::{
    self, Answer, Api, DeleteOptions, IncludeObject, ListQuery, Part, Target, Validation, WatchQuery,
    WriteOptions,
};
use crate::kinds::{FieldError, Resource, invalid_status};
use crate::patch::{Patch, PatchError, PatchType};
use crate::status::Refusal;

/// A request, read as far as all verbs need it.
struct Call<'a> {
    api: &'a Arc<Api>,
    resource: Resource,
    path: ObjectPath,
    query: &'a Query,
    headers: HeaderMap,
    body: Bytes,
    shape: Shape,
}

/// Answers a request about objects.
pub(super) async fn answer(
    api: &Arc<Api>,
    path: ObjectPath,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let registry = api.registry();
    let resource = registry.get(&path.group, &path.version, &path.plural).cloned();
    let resource = resource.ok_or_else(Refusal::no_such_resource)?;
    let shape = accept::shape(request.headers()).ok_or_else(Refusal::not_acceptable)?;
    let (parts, incoming) = request.into_parts();
    let body = body::read(incoming).await?;
    let call = Call {
        api,
        resource,
        path,
        query,
        headers: parts.headers,
        body,
        shape,
    };
    if call.path.namespace.is_some() && !call.resource.namespaced() {
        return Err(Refusal::no_such_resource());
    }
    let homeless = call.resource.namespaced() && call.path.namespace.is_none();
    match (&call.path.name, &call.path.subresource) {
        (None, _) if homeless && parts.method != Method::GET => Err(Refusal::method_not_allowed()),
        (None, _) => call.collection(&parts.method).await,
        (Some(_), _) if homeless => Err(Refusal::no_such_resource()),
        (Some(name), None) => call.item(&parts.method, name).await,
        (Some(name), Some(part)) => call.part(&parts.method, name, part).await,
    }
}

impl Call<'_> {
    fn namespace(&self) -> Option<&str> {
        self.path.namespace.as_deref()
    }

    fn target(&self, name: &str) -> Target {
        Target::new(self.resource.clone(), self.namespace(), name)
    }

    fn object(&self) -> Result<Value, Refusal> {
        body::parse(&body::media_type(&self.headers), &self.body)
    }

    fn include(&self) -> IncludeObject {
        IncludeObject::parse(self.query.get("includeObject"))
    }

    fn options(&self) -> Result<WriteOptions, Refusal> {
        let refuse = |field: &str, value: &str, supported: &[&str]| {
            let error = FieldError::not_supported(field, value, supported);
            Refusal {
                status: invalid_status("meta.k8s.io", "CreateOptions", "", &[error]),
            }
        };
        let dry_run = match self.query.non_empty("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => return Err(refuse("dryRun", other, &["All"])),
        };
        let validation = match self.query.non_empty("fieldValidation") {
            None | Some("Warn") => Validation::Warn,
            Some("Strict") => Validation::Strict,
            Some("Ignore") => Validation::Ignore,
            Some(other) => return Err(refuse("fieldValidation", other, &["Ignore", "Warn", "Strict"])),
        };
        Ok(WriteOptions { dry_run, validation })
    }

    fn delete_options(&self) -> Result<DeleteOptions, Refusal> {
        let body = match self.body.is_empty() {
            true => Value::Null,
            false => self.object()?,
        };
        DeleteOptions::parse(&body, self.query)
    }

    fn respond(&self, answer: &Answer) -> Response<Body> {
        let body = api::render(&self.resource, self.shape, self.include(), &answer.object, true);
        let mut response = body::json(answer.code, body);
        body::warn(&mut response, &answer.warnings);
        response
    }

    /// Answers whose body is of another kind than the resource.
    fn respond_plain(&self, answer: &Answer) -> Response<Body> {
        let mut response = body::json(answer.code, answer.object.json());
        body::warn(&mut response, &answer.warnings);
        response
    }

    async fn collection(&self, method: &Method) -> Result<Response<Body>, Refusal> {
        match *method {
            Method::GET if self.path.watch || self.query.is_true("watch") => {
                let query = WatchQuery::parse(&self.resource, self.query, self.shape)?;
                Ok(body::watch(
                    self.api.watch(&self.resource, self.namespace(), query).await?,
                ))
            }
            Method::GET => {
                let query = ListQuery::parse(&self.resource, self.query)?;
                let listed = self.api.list(&self.resource, self.namespace(), &query).await?;
                let body = api::render_list(&self.resource, self.shape, self.include(), &listed);
                Ok(body::json(StatusCode::OK, body))
            }
            Method::POST => {
                let object = self.object()?;
                let answer = self
                    .api
                    .create(&self.resource, self.namespace(), object, self.options()?)
                    .await?;
                Ok(self.respond(&answer))
            }
            Method::DELETE => {
                let query = ListQuery::parse(&self.resource, self.query)?;
                let options = self.delete_options()?;
                let listed = self
                    .api
                    .delete_collection(&self.resource, self.namespace(), &query, &options)
                    .await?;
                let body = api::render_list(&self.resource, self.shape, self.include(), &listed);
                Ok(body::json(StatusCode::OK, body))
            }
            _ => Err(Refusal::method_not_allowed()),
        }
    }

    async fn item(&self, method: &Method, name: &str) -> Result<Response<Body>, Refusal> {
        let target = self.target(name);
        let answer = match *method {
            Method::GET => self.api.get(&target).await?,
            Method::PUT => {
                self.api
                    .replace(&target, Part::Whole, self.object()?, self.options()?)
                    .await?
            }
            Method::PATCH => {
                self.api
                    .patch(&target, Part::Whole, &self.patch()?, self.options()?)
                    .await?
            }
            Method::DELETE => self.api.delete(&target, &self.delete_options()?).await?,
            _ => return Err(Refusal::method_not_allowed()),
        };
        Ok(self.respond(&answer))
    }

    async fn part(&self, method: &Method, name: &str, part: &str) -> Result<Response<Body>, Refusal> {
        let target = self.target(name);
        let core = self.resource.group().is_empty();
        match (part, self.resource.plural()) {
            ("status", _) if self.resource.has_status() => self.status(method, &target).await,
            ("scale", _) if self.resource.scale().is_some() => self.scale(method, &target).await,
            ("binding", "pods") if core && *method == Method::POST => {
                let answer = self.api.bind(&target, &self.object()?, self.options()?).await?;
                Ok(self.respond_plain(&answer))
            }
            ("eviction", "pods") if core && *method == Method::POST => {
                Ok(self.respond_plain(&self.api.evict(&target, &self.object()?).await?))
            }
            ("finalize", "namespaces") if core && *method == Method::PUT => Ok(self.respond(
                &self
                    .api
                    .finalize(&target, &self.object()?, self.options()?)
                    .await?,
            )),
            ("binding" | "eviction", "pods") | ("finalize", "namespaces") if core => {
                Err(Refusal::method_not_allowed())
            }
            _ => Err(Refusal::no_such_resource()),
        }
    }

    async fn status(&self, method: &Method, target: &Target) -> Result<Response<Body>, Refusal> {
        let answer = match *method {
            Method::GET => self.api.get(target).await?,
            Method::PUT => {
                self.api
                    .replace(target, Part::Status, self.object()?, self.options()?)
                    .await?
            }
            Method::PATCH => {
                self.api
                    .patch(target, Part::Status, &self.patch()?, self.options()?)
                    .await?
            }
            _ => return Err(Refusal::method_not_allowed()),
        };
        Ok(self.respond(&answer))
    }

    async fn scale(&self, method: &Method, target: &Target) -> Result<Response<Body>, Refusal> {
        let answer = match *method {
            Method::GET => self.api.get_scale(target).await?,
            Method::PUT => {
                self.api
                    .replace_scale(target, &self.object()?, self.options()?)
                    .await?
            }
            Method::PATCH => {
                self.api
                    .patch_scale(target, &self.patch()?, self.options()?)
                    .await?
            }
            _ => return Err(Refusal::method_not_allowed()),
        };
        Ok(self.respond_plain(&answer))
    }

    fn patch(&self) -> Result<Patch, Refusal> {
        const STORED: [&str; 3] = [
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        ];
        let custom = matches!(self.resource, Resource::Custom(_));
        let accepted = if custom { &STORED[..2] } else { &STORED[..] };
        match PatchType::from_media_type(&body::media_type(&self.headers)) {
            None => Err(Refusal::unsupported_media_type(accepted)),
            Some(PatchType::Strategic) if custom => Err(Refusal::unsupported_media_type(accepted)),
            Some(PatchType::Apply) => {
                let mut refusal = Refusal::unsupported_media_type(accepted);
                let message = format!(
                    "server-side apply is not served by this API server; use kubectl apply without --server-side \
                     ({})",
                    refusal.message()
                );
                refusal.status["message"] = message.into();
                Err(refusal)
            }
            Some(kind) => Patch::parse(kind, &self.body).map_err(|error| match error {
                PatchError::Malformed(message) => Refusal::bad_request(message),
                PatchError::Unfit(message) => Refusal::unprocessable(message),
            }),
        }
    }
}
