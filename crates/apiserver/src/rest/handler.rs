//! Who may ask what, and which part of the API answers.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{HOST, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::accept::{self, DiscoveryShape};
use super::auth::{Tokens, User};
use super::body::{self, Body};
use super::path::Path;
use super::query::Query;
use super::{kubelet, objects};
use crate::api::{self, Api};
use crate::kinds::openapi::PROTOBUF_MEDIA_TYPE;
use crate::status::Refusal;

/// The media type that clients ask for is not a valid Content-Type (`@`); Kubernetes answers with this one.
const PROTOBUF_CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Answers requests.
#[derive(Clone)]
pub struct Handler {
    api: Arc<Api>,
    tokens: Arc<Tokens>,
}

impl Handler {
    /// Answers from `api`; `tokens` are whose bearer tokens count.
    pub fn new(api: Arc<Api>, tokens: Tokens) -> Handler {
        Handler {
            api,
            tokens: Arc::new(tokens),
        }
    }

    /// Answers one request of a connection whose client certificate named `certified`.
    pub(super) async fn answer(
        self,
        certified: Option<Arc<User>>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let started = std::time::Instant::now();
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let user = certified
            .map(|user| (*user).clone())
            .or_else(|| self.tokens.user(request.headers()).cloned());
        let response = match self.route(user.as_ref(), request).await {
            Ok(response) => response,
            Err(refusal) => self.refused(&refusal),
        };
        let user = user.as_ref().map_or("-", |user| user.name.as_str());
        tracing::debug!(%method, %uri, code = response.status().as_u16(), user, took = ?started.elapsed());
        Ok(response)
    }

    fn refused(&self, refusal: &Refusal) -> Response<Body> {
        let mut response = body::refusal(refusal);
        if refusal.code() == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    async fn route(
        &self,
        user: Option<&User>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let path = Path::parse(request.uri().path());
        if let Path::Other(path) = &path
            && let Some(response) = self.public(path, &request)
        {
            return Ok(response);
        }
        if user.is_none() {
            return Err(Refusal::unauthorized());
        }
        match path {
            Path::Objects(path) => {
                let query = Query::parse(request.uri().query().unwrap_or_default());
                match kubelet::part(&path)? {
                    Some(part) => kubelet::forward(&self.api, part, &path, &query, request).await,
                    None => objects::answer(&self.api, path, &query, request).await,
                }
            }
            Path::Other(path) => self.other(&path, &request),
            _ if request.method() != Method::GET => Err(Refusal::method_not_allowed()),
            path => self.discovery(&path, &request),
        }
    }

    /// What needs no name.
    fn public(&self, path: &str, request: &Request<Incoming>) -> Option<Response<Body>> {
        let path = path.trim_end_matches('/');
        match path {
            "/version" => Some(json_value(&api::version())),
            "/healthz" | "/livez" | "/readyz" => {
                let verbose = Query::parse(request.uri().query().unwrap_or_default()).is_true("verbose");
                let name = &path[1..];
                let text = if verbose {
                    format!("[+]ping ok\n[+]store ok\n{name} check passed\n")
                } else {
                    "ok".into()
                };
                Some(body::typed(StatusCode::OK, "text/plain; charset=utf-8", text))
            }
            _ => None,
        }
    }

    fn other(&self, path: &str, request: &Request<Incoming>) -> Result<Response<Body>, Refusal> {
        match path.trim_end_matches('/') {
            "/openapi/v2" if accept::names(request.headers(), PROTOBUF_MEDIA_TYPE) => Ok(body::typed(
                StatusCode::OK,
                PROTOBUF_CONTENT_TYPE,
                self.api.openapi_protobuf(),
            )),
            "/openapi/v2" => Ok(json_value(&self.api.openapi_json())),
            "" => Ok(json_value(&json!({"paths": self.paths()}))),
            _ => Ok(body::typed(
                StatusCode::NOT_FOUND,
                "text/plain; charset=utf-8",
                "404 page not found\n",
            )),
        }
    }

    fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(str::to_owned).to_vec();
        for (group, versions) in self
            .api
            .registry()
            .groups()
            .into_iter()
            .filter(|(group, _)| !group.is_empty())
        {
            paths.push(format!("/apis/{group}"));
            paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
        }
        paths.extend(["/healthz", "/livez", "/openapi/v2", "/readyz", "/version"].map(str::to_owned));
        paths
    }

    fn discovery(&self, path: &Path, request: &Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let registry = self.api.registry();
        let shape = accept::discovery_shape(request.headers());
        match path {
            Path::CoreVersions | Path::Groups => {
                let core = *path == Path::CoreVersions;
                match shape.ok_or_else(Refusal::not_acceptable)? {
                    DiscoveryShape::Aggregated(version) => {
                        let document = api::aggregated(&registry, core, version);
                        Ok(body::typed(
                            StatusCode::OK,
                            aggregated_media(version),
                            document.to_string(),
                        ))
                    }
                    DiscoveryShape::Plain if core => Ok(json_value(&api::core_versions(&host(request)))),
                    DiscoveryShape::Plain => Ok(json_value(&api::groups(&registry))),
                }
            }
            Path::Group(group) => api::group(&registry, group).map(|document| json_value(&document)),
            Path::GroupVersion(group, version) => {
                api::resources(&registry, group, version).map(|document| json_value(&document))
            }
            Path::Objects(_) | Path::Other(_) => Err(Refusal::no_such_resource()),
        }
    }
}

fn json_value(value: &Value) -> Response<Body> {
    body::json(StatusCode::OK, value.to_string())
}

fn aggregated_media(version: &str) -> &'static str {
    match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    }
}

/// The server's name as the client said it.
fn host(request: &Request<Incoming>) -> String {
    let header = request
        .headers()
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .map(str::to_owned);
    header
        .or_else(|| request.uri().authority().map(ToString::to_string))
        .unwrap_or_default()
}
