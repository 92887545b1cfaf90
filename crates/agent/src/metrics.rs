//! What Prometheus may ask.

mod services;

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use podnet_core::ipam::Usage;
use podnet_core::path::{Checksums, Reach, Report};
use podnet_core::service::ServiceState;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::announce::Spoken;
use crate::cni_server::Readiness;
use crate::ipam::Leases;
use crate::web;
pub use services::{ServiceMetrics, Sync};

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    generation: Gauge<u64, AtomicU64>,
    apply_seconds: Histogram,
    sync_errors: Counter,
    put_back: Counter,
    announced: Family<LinkLabels, Gauge>,
    takeovers: Counter,
    pools: Pools,
    leases: OnceLock<Arc<Leases>>,
    /// What kube-proxy tells too.
    pub services: ServiceMetrics,
}

const PREFIX: &str = "podnet";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    family: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LinkLabels {
    link: String,
}

/// How much of every pool is in use on this node.
#[derive(Debug, Default)]
struct Pools {
    size: Family<PoolLabels, Gauge<f64, AtomicU64>>,
    leased: Family<PoolLabels, Gauge>,
    cooling: Family<PoolLabels, Gauge>,
}

impl Pools {
    fn register(&self, registry: &mut Registry) {
        let help = "Addresses for pods that this node can give from a pool; the pool \"node\" is the node's own range";
        registry.register("pool_addresses", help, self.size.clone());
        registry.register(
            "pool_addresses_leased",
            "Addresses of a pool that pods of this node have",
            self.leased.clone(),
        );
        let help = "Addresses of a pool that were given back and rest before they are given again";
        registry.register("pool_addresses_cooling", help, self.cooling.clone());
    }

    fn set(&self, usage: &[Usage]) {
        self.size.clear();
        self.leased.clear();
        self.cooling.clear();
        for usage in usage {
            let labels = PoolLabels {
                pool: usage.pool.to_string(),
                family: if usage.ipv4 { "ipv4" } else { "ipv6" },
            };
            // Of an IPv6 range only the magnitude is of interest.
            self.size.get_or_create(&labels).set(usage.size as f64);
            self.leased.get_or_create(&labels).set(usage.leased as i64);
            self.cooling.get_or_create(&labels).set(usage.cooling as i64);
        }
    }
}

impl Metrics {
    /// With the figures of the services that are in force.
    pub fn new(in_force: watch::Receiver<Arc<ServiceState>>) -> Self {
        let mut all = Registry::default();
        let registry = all.sub_registry_with_prefix(PREFIX);
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
        let (announced, takeovers) = (Family::default(), Counter::default());
        registry.register(
            "load_balancer_addresses",
            "Load balancers' addresses that this node answers for on the local network",
            announced.clone(),
        );
        registry.register(
            "load_balancer_takeovers",
            "How often this node began to answer for a load balancer's address",
            takeovers.clone(),
        );
        let pools = Pools::default();
        pools.register(registry);
        let services = ServiceMetrics::new(in_force);
        services.register(registry);
        Metrics {
            announced,
            takeovers,
            pools,
            leases: OnceLock::new(),
            registry: all,
            generation,
            apply_seconds,
            sync_errors,
            put_back,
            services,
        }
    }

    /// With those figures of services that kube-proxy has under its own prefix too.
    pub fn with_kube_proxys_names(mut self) -> Self {
        let registry = self.registry.sub_registry_with_prefix(services::KUBE_PROXY);
        self.services.register(registry);
        self
    }
}

/// The paths to other nodes, as they are when somebody asks.
#[derive(Debug)]
struct Paths(watch::Receiver<Arc<Vec<Report>>>);

/// What a report has to say in a figure, if anything.
type Figure = fn(&Report) -> Option<f64>;

const PATH_FIGURES: [(&str, &str, Figure); 4] = [
    (
        "path_reachable",
        "Whether packets arrive at the other node's pods (1) or not (0)",
        |report| match report.reach {
            Reach::Unknown => None,
            reach => Some(f64::from(u8::from(reach != Reach::Unreachable))),
        },
    ),
    (
        "path_latency_seconds",
        "Time of a small packet there and back, smoothed",
        |report| report.latency.map(|latency| latency.as_secs_f64()),
    ),
    ("path_mtu_bytes", "The largest packet that arrives", |report| {
        report.mtu.map(f64::from)
    }),
    (
        "path_checksums_right",
        "Whether checksums that are left to the network device arrive right (1) or wrong (0)",
        |report| match report.checksums {
            Checksums::Unknown => None,
            checksums => Some(f64::from(u8::from(checksums == Checksums::Right))),
        },
    ),
];

impl Collector for Paths {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let reports = self.0.borrow().clone();
        for (name, help, figure) in PATH_FIGURES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for report in reports.iter() {
                let Some(value) = figure(report) else {
                    continue;
                };
                let (peer, range) = (report.key.peer.to_string(), report.key.range.to_string());
                let labels = [("peer", peer.as_str()), ("range", range.as_str())];
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Metrics {
    /// With the figures of these paths.
    pub fn with_paths(mut self, reports: watch::Receiver<Arc<Vec<Report>>>) -> Self {
        let registry = self.registry.sub_registry_with_prefix(PREFIX);
        registry.register_collector(Box::new(Paths(reports)));
        self
    }

    /// These are the leases that pools are used by.
    pub fn watch(&self, leases: Arc<Leases>) {
        // There is one agent in a process.
        let _ = self.leases.set(leases);
    }

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

    /// What this node answers for, and how much of it is new.
    pub fn announces(&self, spoken: &Spoken, taken: usize) {
        self.announced.clear();
        for (link, addresses) in spoken {
            let labels = LinkLabels { link: link.clone() };
            self.announced.get_or_create(&labels).set(addresses.len() as i64);
        }
        self.takeovers.inc_by(taken as u64);
    }

    fn text(&self) -> String {
        if let Some(leases) = self.leases.get() {
            self.pools.set(&leases.usage());
        }
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Answers `GET /metrics`, `/livez`, `/readyz` and `/healthz` until the task ends.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, readiness: watch::Receiver<Readiness>) {
    let answer = move |request: &Request<Incoming>| answer(request, &metrics, &readiness.borrow());
    web::serve(listener, answer).await;
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, readiness: &Readiness) -> Response<Full<Bytes>> {
    let fine = || (StatusCode::OK, "ok\n".to_owned());
    let path = request.uri().path();
    let (status, text) = match (path, readiness) {
        ("/metrics", _) => (StatusCode::OK, metrics.text()),
        ("/livez", _) => fine(),
        ("/readyz" | "/healthz", Readiness::NotReady(why)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"))
        }
        // What the kernel has is the last generation that it took.
        ("/healthz", Readiness::Limited(_, why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        ("/readyz" | "/healthz", _) => fine(),
        _ => (
            StatusCode::NOT_FOUND,
            "only /metrics, /livez, /readyz and /healthz are here\n".to_owned(),
        ),
    };
    metrics.services.asked(path, status);
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
