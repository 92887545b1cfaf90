//! What Prometheus may ask.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    generation: Gauge<u64, AtomicU64>,
    apply_seconds: Histogram,
    sync_errors: Counter,
    put_back: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("podnet");
        let generation = Gauge::default();
        // From 0.1 ms to 3.3 s.
        let apply_seconds = Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        let (sync_errors, put_back) = (Counter::default(), Counter::default());
        registry.register(
            "generation",
            "Number of the node state in force",
            generation.clone(),
        );
        let help = "Time from the first API event of a node state to its being in force";
        registry.register("generation_apply_seconds", help, apply_seconds.clone());
        registry.register(
            "sync_errors",
            "Node states that could not be applied",
            sync_errors.clone(),
        );
        registry.register(
            "put_back",
            "Changes by others that were put right",
            put_back.clone(),
        );
        Metrics {
            registry,
            generation,
            apply_seconds,
            sync_errors,
            put_back,
        }
    }
}

impl Metrics {
    /// A state is in force.
    pub fn applied(&self, generation: u64, took: Duration) {
        self.generation.set(generation);
        self.apply_seconds.observe(took.as_secs_f64());
    }

    /// A state could not be applied.
    pub fn failed(&self) {
        self.sync_errors.inc();
    }

    /// What others changed was put right.
    pub fn put_back(&self, changes: usize) {
        self.put_back.inc_by(changes as u64);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Answers `GET /metrics` and `GET /healthz` until the task ends.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let response = answer(&request, &metrics);
                async { Ok::<_, Infallible>(response) }
            });
            // A client that goes away is no concern of ours.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, text) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, metrics.text()),
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        _ => (
            StatusCode::NOT_FOUND,
            "only /metrics and /healthz are here\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
