//! A server of the test's own, and a client that shows the answers as they are.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{Method, Request};
use http_body_util::BodyExt;
use ipnet::IpNet;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use podnet_apiserver::api::Api;
use podnet_apiserver::bootstrap::{Advertised, bootstrap};
use podnet_apiserver::pki::Pki;
use podnet_apiserver::rest::{self, Handler, TlsFiles, Tokens};
use podnet_apiserver::services::Allocations;
use podnet_apiserver::store;
use serde_json::Value;

/// A serving server; it ends with the test's runtime.
pub(crate) struct Server {
    pub(crate) client: kube::Client,
    pub(crate) address: SocketAddr,
    pub(crate) dir: tempfile::TempDir,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Server {
    pub(crate) async fn start() -> Server {
        Server::with_store(store::memory()).await
    }

    pub(crate) async fn with_store(store: Arc<dyn store::Store>) -> Server {
        let ranges = ["10.96.0.0/16", "fd00:10:96::/112"].map(|range| range.parse().unwrap());
        Server::with_ranges(store, &ranges).await
    }

    /// One with `--service-cidr` of the test's choice.
    pub(crate) async fn with_ranges(store: Arc<dyn store::Store>, service_cidrs: &[IpNet]) -> Server {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::create(dir.path(), &[]).unwrap();
        let services = Allocations::new(service_cidrs, 30000..=32767);
        let api = Api::new(store, services, Some(dir.path().to_owned())).await;
        let api = Arc::new(api.unwrap());
        let advertised = Advertised {
            addresses: vec!["172.30.0.1".parse().unwrap()],
            port: 6443,
        };
        bootstrap(&api, service_cidrs, &advertised).await.unwrap();
        let tls = rest::tls_config(&TlsFiles {
            certificate: pki.server_certificate(),
            key: pki.server_key(),
            client_ca: pki.ca_certificate(),
        });
        let tokens_file = dir.path().join("tokens");
        std::fs::write(&tokens_file, "sesame,ali,1,\"thieves\"\n").unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = Handler::new(api, Tokens::read(&tokens_file).unwrap());
        let task = tokio::spawn(rest::serve(listener, Arc::new(tls.unwrap()), handler));
        let url = format!("https://127.0.0.1:{}", address.port());
        let kubeconfig = pki
            .kubeconfig(&url, "kubernetes-admin", &["system:masters".to_owned()])
            .unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        Server {
            client: kube::Client::try_from(config).unwrap(),
            address,
            dir,
            tasks: vec![task],
        }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.crt")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        Path::new(self.dir.path()).join(name)
    }

    /// One request; the answer whatever its code.
    pub(crate) async fn call(&self, method: Method, path: &str, media: &str, body: &Value) -> (u16, Value) {
        let (code, _, text) = self.raw(method, path, media, "application/json", body).await;
        (code, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        media: &str,
        accept: &str,
        body: &Value,
    ) -> (u16, http::HeaderMap, String) {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        self.send(method, path, media, accept, body).await
    }

    /// One request with a body of any form.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        media: &str,
        accept: &str,
        body: Vec<u8>,
    ) -> (u16, http::HeaderMap, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Content-Type", media)
            .header("Accept", accept)
            .body(Body::from(body))
            .unwrap();
        let response = self.client.send(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (
            parts.status.as_u16(),
            parts.headers,
            String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, "", &Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call(Method::POST, path, "application/json", body).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call(Method::PUT, path, "application/json", body).await
    }

    pub(crate) async fn delete(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call(Method::DELETE, path, "application/json", body).await
    }

    pub(crate) async fn merge(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call(Method::PATCH, path, "application/merge-patch+json", body)
            .await
    }

    /// The events of a watch that ends by itself, one by one.
    pub(crate) async fn watch(&self, path: &str) -> Vec<Value> {
        let (code, _, text) = self
            .raw(Method::GET, path, "", "application/json", &Value::Null)
            .await;
        assert_eq!(code, 200, "{text}");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}
