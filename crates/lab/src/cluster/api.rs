//! The lab's API server as its own commands call it.

use std::path::Path;

use http::{Method, Request, StatusCode};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use miette::{Context, IntoDiagnostic, miette};
use serde_json::Value;

/// A client for the lab, and the two calls its commands need.
#[derive(Clone)]
pub struct Api {
    client: Client,
}

/// What the API server says to a request it refuses.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// HTTP status.
    pub code: u16,
    /// Status.message.
    pub message: String,
}

impl Api {
    /// A client from a kubeconfig file.
    pub async fn connect(kubeconfig: &Path) -> miette::Result<Self> {
        // These errors say their causes themselves.
        let broken = |error: &dyn std::fmt::Display| {
            miette!("cannot use the kubeconfig {}: {error}", kubeconfig.display())
        };
        let file = Kubeconfig::read_from(kubeconfig).map_err(|error| broken(&error))?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .map_err(|error| broken(&error))?;
        Ok(Api {
            client: Client::try_from(config).into_diagnostic()?,
        })
    }

    /// The typed client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// GET of a path.
    pub async fn get(&self, path: &str) -> miette::Result<Result<Value, Refused>> {
        self.call(Method::GET, path, None).await
    }

    /// POST of an object to a collection.
    pub async fn post(&self, path: &str, object: &Value) -> miette::Result<Result<Value, Refused>> {
        self.call(Method::POST, path, Some(object)).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> miette::Result<Result<Value, Refused>> {
        let bytes = body
            .map(serde_json::to_vec)
            .transpose()
            .into_diagnostic()?
            .unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(kube::client::Body::from(bytes))
            .into_diagnostic()?;
        let response = self.client.send(request).await.into_diagnostic()?;
        let status = response.status();
        let body = response.into_body().collect_bytes().await.into_diagnostic()?;
        let answer: Value = serde_json::from_slice(&body)
            .into_diagnostic()
            .wrap_err_with(|| format!("the answer to {path}: {}", String::from_utf8_lossy(&body)))?;
        Ok(if status.is_success() {
            Ok(answer)
        } else {
            Err(refusal(status, &answer))
        })
    }
}

fn refusal(status: StatusCode, answer: &Value) -> Refused {
    let message = answer["message"]
        .as_str()
        .map_or_else(|| status.to_string(), str::to_owned);
    Refused {
        code: status.as_u16(),
        message,
    }
}
