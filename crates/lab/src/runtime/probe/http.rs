//! httpGet probes and hooks.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};

use super::check::{connect, join};
use crate::runtime::pod::spec;

/// A GET request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get {
    tls: bool,
    host: Option<String>,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
}

impl Get {
    /// The request of an `httpGet`.
    pub fn of(action: &HTTPGetAction, container: &Container) -> Result<Get, String> {
        let path = action.path.as_deref().unwrap_or_default();
        Ok(Get {
            tls: action
                .scheme
                .as_deref()
                .is_some_and(|it| it.eq_ignore_ascii_case("https")),
            host: action.host.clone().filter(|it| !it.is_empty()),
            port: spec::port(container, &action.port)?,
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
            headers: action
                .http_headers
                .iter()
                .flatten()
                .map(|it| (it.name.clone(), it.value.clone()))
                .collect(),
        })
    }

    /// The URL asked for on a pod with this address.
    pub fn url(&self, ip: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(ip), self.path)
    }

    fn authority(&self, ip: &str) -> String {
        join(self.host.as_deref().unwrap_or(ip), self.port)
    }

    /// Passes with a status from 200 to 399.
    pub async fn run(&self, ip: Option<IpAddr>) -> Result<(), String> {
        let shown = ip.map(|ip| ip.to_string()).unwrap_or_default();
        let told = |error: String| format!("Get \"{}\": {error}", self.url(&shown));
        let stream = connect(self.host.as_deref(), ip, self.port).await.map_err(told)?;
        let status = if self.tls {
            let name = ServerName::try_from(self.host.clone().unwrap_or(shown.clone()))
                .map_err(|error| told(error.to_string()))?;
            let connector = tokio_rustls::TlsConnector::from(tls_config());
            let stream = connector
                .connect(name, stream)
                .await
                .map_err(|error| told(error.to_string()))?;
            self.send(stream, &shown).await
        } else {
            self.send(stream, &shown).await
        };
        let status = status.map_err(told)?;
        if (200..400).contains(&status) {
            Ok(())
        } else {
            Err(format!("HTTP probe failed with statuscode: {status}"))
        }
    }

    async fn send(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        ip: &str,
    ) -> Result<u16, String> {
        let told = |error: hyper::Error| match error.is_incomplete_message() {
            true => "EOF".to_owned(),
            false => error.to_string(),
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
        let request = self.request(ip).map_err(|error| error.to_string())?;
        let response = sender.send_request(request);
        tokio::pin!(connection);
        tokio::pin!(response);
        // The connection is driven here rather than in a task: it ends with the attempt.
        let response = tokio::select! {
            response = &mut response => response,
            ended = &mut connection => {
                ended.map_err(told)?;
                response.await
            }
        };
        Ok(response.map_err(told)?.status().as_u16())
    }

    fn request(&self, ip: &str) -> http::Result<http::Request<Empty<Bytes>>> {
        let given = |name: &str| {
            self.headers
                .iter()
                .any(|(known, _)| known.eq_ignore_ascii_case(name))
        };
        let mut request = http::Request::get(&self.path);
        for (name, value) in [
            ("Host", self.authority(ip)),
            ("User-Agent", "kube-probe/1.36".to_owned()),
            ("Accept", "*/*".to_owned()),
            ("Connection", "close".to_owned()),
        ] {
            if !given(name) {
                request = request.header(name, value);
            }
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Empty::new())
    }
}

/// Kubelet does not look at a probed server's certificate: it asks whether the server lives, not who it is.
fn tls_config() -> Arc<rustls::ClientConfig> {
    static CONFIG: std::sync::LazyLock<Arc<rustls::ClientConfig>> = std::sync::LazyLock::new(|| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider knows the default versions");
        let verifier = Arc::new(Anyone(provider));
        Arc::new(
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth(),
        )
    });
    Arc::clone(&CONFIG)
}

#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn serve_once(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        (port, served)
    }

    fn get(port: u16) -> Get {
        let headers = vec![("X-Me".into(), "1".into()), ("host".into(), "web.example".into())];
        Get {
            tls: false,
            host: None,
            port,
            path: "/healthz".into(),
            headers,
        }
    }

    #[tokio::test]
    async fn a_status_decides() {
        for (answer, outcome) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok(())),
            (
                "HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n",
                Ok(()),
            ),
            (
                "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
                Err("HTTP probe failed with statuscode: 503".to_owned()),
            ),
        ] {
            let (port, served) = serve_once(answer).await;
            assert_eq!(get(port).run("127.0.0.1".parse().ok()).await, outcome);
            let request = served.await.unwrap().to_lowercase();
            assert!(request.starts_with("get /healthz http/1.1"), "{request}");
            assert!(request.contains("host: web.example") && request.contains("user-agent: kube-probe/"));
        }
    }

    #[tokio::test]
    async fn a_server_that_hangs_up_is_a_failure() {
        let (port, _served) = serve_once("").await;
        let error = get(port).run("127.0.0.1".parse().ok()).await.unwrap_err();
        assert!(
            error.starts_with(&format!("Get \"http://127.0.0.1:{port}/healthz\": ")),
            "{error}"
        );
    }
}
