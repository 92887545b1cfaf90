//! Listening, TLS, connections.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::auth::user_of_certificate;
use super::handler::Handler;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// A client that vanished without a word is noticed, and its watches end.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Where the server's keys are.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate (chain).
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CA of client certificates.
    pub client_ca: PathBuf,
}

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file is not what it should be.
    #[error("cannot use {0} as {1}: {2}")]
    File(PathBuf, &'static str, String),
    /// rustls does not take it.
    #[error("cannot set up TLS: {0}; do the certificate and the key belong together?")]
    Tls(String),
}

fn certificates(file: &Path, role: &'static str) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let failed = |error: String| ServeError::File(file.to_owned(), role, error);
    let all = CertificateDer::pem_file_iter(file).map_err(|error| failed(error.to_string()))?;
    let all: Vec<_> = all
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.to_string()))?;
    if all.is_empty() {
        return Err(failed("it holds no certificate".to_owned()));
    }
    Ok(all)
}

/// TLS with optional client certificates, h2 and HTTP/1.1.
pub fn tls_config(files: &TlsFiles) -> Result<rustls::ServerConfig, ServeError> {
    let tls = |error: &dyn std::fmt::Display| ServeError::Tls(error.to_string());
    let chain = certificates(&files.certificate, "the server's certificate")?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| ServeError::File(files.key.clone(), "the server's key", error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.client_ca, "the client CA")? {
        roots.add(certificate).map_err(|error| tls(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build();
    let builder =
        rustls::ServerConfig::builder().with_client_cert_verifier(verifier.map_err(|error| tls(&error))?);
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| tls(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Serves a listener until the task is dropped.
pub async fn serve(listener: TcpListener, tls: Arc<rustls::ServerConfig>, handler: Handler) {
    let acceptor = TlsAcceptor::from(tls);
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (acceptor, handler) = (acceptor.clone(), handler.clone());
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, acceptor, handler).await {
                        tracing::debug!(%peer, %error, "a connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: let connections end first.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Whoever drops this does not stop `work`.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => std::future::pending().await,
        },
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, handler: Handler) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let stream = handshake.await.map_err(io::Error::other)??;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let user = certificate.and_then(user_of_certificate).map(Arc::new);
    let service = service_fn(move |request: Request<Incoming>| {
        let only_reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        let answer = handler.clone().answer(user.clone(), request);
        async move {
            // What was begun is done to its end, though the client be gone: half of it would be stored.
            match only_reads {
                true => answer.await,
                false => to_its_end(answer).await,
            }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The time between two requests counts too: clients keep connections for long.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT);
    builder.http2().keep_alive_interval(KEEP_ALIVE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000);
    builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}
