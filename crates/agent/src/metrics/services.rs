//! What kube-proxy tells of services, under its names: with podnet's prefix always, and with kube-proxy's own where dashboards
//! and alerts made for that are to go on (`--kube-proxy-metrics`).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use podnet_core::cluster::ObjectName;
use podnet_core::service::{Backend, Entry, ServiceState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

/// kube-proxy's prefix.
pub(super) const KUBE_PROXY: &str = "kubeproxy";

/// Seconds since 1970.
type Time = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: String,
}

/// Changes of the objects of a kind.
#[derive(Debug, Clone, Default)]
struct Changes {
    seen: Counter,
    pending: Gauge,
}

impl Changes {
    fn note(&self, count: usize) {
        self.seen.inc_by(count as u64);
        self.pending.inc_by(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

/// How applying went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// The kernel's tables were read back and compared.
    Full,
    /// Only what changed was looked at.
    Partial,
}

/// The figures.
#[derive(Debug, Clone)]
pub struct ServiceMetrics {
    sync: Histogram,
    full: Histogram,
    partial: Histogram,
    programming: Histogram,
    last: Time,
    last_queued: Time,
    services: Changes,
    endpoints: Changes,
    healthz: Family<Code, Counter>,
    livez: Family<Code, Counter>,
    in_force: watch::Receiver<Arc<ServiceState>>,
}

impl ServiceMetrics {
    /// Of the services that are in force.
    pub(super) fn new(in_force: watch::Receiver<Arc<ServiceState>>) -> Self {
        // kube-proxy begins at 1 ms and ends at 16 s; an application here takes less.
        let sync = || Histogram::new(exponential_buckets(0.0001, 2.0, 18));
        ServiceMetrics {
            sync: sync(),
            full: sync(),
            partial: sync(),
            programming: Histogram::new(exponential_buckets(0.001, 2.0, 18)),
            last: Time::default(),
            last_queued: Time::default(),
            services: Changes::default(),
            endpoints: Changes::default(),
            healthz: Family::default(),
            livez: Family::default(),
            in_force,
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let histograms = [
            (
                "sync_proxy_rules_duration_seconds",
                "Time of an application of services",
                &self.sync,
            ),
            (
                "sync_full_proxy_rules_duration_seconds",
                "Time of an application that read the kernel's tables back",
                &self.full,
            ),
            (
                "sync_partial_proxy_rules_duration_seconds",
                "Time of an application of what changed",
                &self.partial,
            ),
            (
                "network_programming_duration_seconds",
                "Time from a pod's or service's change, as the endpoint slice says, to its being in force here",
                &self.programming,
            ),
        ];
        for (name, help, histogram) in histograms {
            registry.register(name, help, histogram.clone());
        }
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When services were last applied",
            self.last.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When services or endpoints last changed",
            self.last_queued.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services",
            self.services.seen.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of Services that are not in force yet",
            self.services.pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of EndpointSlices",
            self.endpoints.seen.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of EndpointSlices that are not in force yet",
            self.endpoints.pending.clone(),
        );
        registry.register(
            "proxy_healthz",
            "Answers of /healthz, by status",
            self.healthz.clone(),
        );
        registry.register("proxy_livez", "Answers of /livez, by status", self.livez.clone());
        registry.register_collector(Box::new(NoLocalEndpoints(self.in_force.clone())));
    }

    /// So many Services changed.
    pub fn services_changed(&self, count: usize) {
        self.services.note(count);
        self.last_queued.set(seconds(SystemTime::now()));
    }

    /// So many EndpointSlices changed.
    pub fn endpoints_changed(&self, count: usize) {
        self.endpoints.note(count);
        self.last_queued.set(seconds(SystemTime::now()));
    }

    /// All that was seen is in force.
    pub fn applied(&self, sync: Sync, took: Duration) {
        let of = match sync {
            Sync::Full => &self.full,
            Sync::Partial => &self.partial,
        };
        for histogram in [&self.sync, of] {
            histogram.observe(took.as_secs_f64());
        }
        self.in_force_now();
        self.last.set(seconds(SystemTime::now()));
    }

    /// What was seen asks for nothing that is not in force.
    pub fn in_force_now(&self) {
        self.services.pending.set(0);
        self.endpoints.pending.set(0);
    }

    /// What changed at that time is in force.
    pub fn programmed(&self, triggered: SystemTime) {
        // A clock that is behind the API server's gives nothing to measure.
        if let Ok(took) = SystemTime::now().duration_since(triggered) {
            self.programming.observe(took.as_secs_f64());
        }
    }

    pub(super) fn asked(&self, path: &str, status: StatusCode) {
        let family = match path {
            "/healthz" => &self.healthz,
            "/livez" => &self.livez,
            _ => return,
        };
        let code = status.as_str().to_owned();
        family.get_or_create(&Code { code }).inc();
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// How many services drop packets here because their policy is Local and none of their endpoints is on this node.
#[derive(Debug)]
struct NoLocalEndpoints(watch::Receiver<Arc<ServiceState>>);

impl Collector for NoLocalEndpoints {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let state = self.0.borrow().clone();
        let mut metric = encoder.encode_descriptor(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with a policy Local and no endpoint on this node, but some elsewhere",
            None,
            MetricType::Gauge,
        )?;
        for (policy, services) in without_local_endpoints(&state) {
            let labels = [("traffic_policy", policy)];
            ConstGauge::new(services as i64).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn without_local_endpoints(state: &ServiceState) -> [(&'static str, usize); 2] {
    let entries = || state.frontends.values().chain(state.node_ports.values());
    let count = |dropped: fn(&Entry) -> bool| {
        let services: BTreeSet<&ObjectName> = entries()
            .filter(|entry| dropped(entry))
            .map(|entry| &entry.port.service)
            .collect();
        services.len()
    };
    [
        ("internal", count(|entry| *entry.inside == Backend::Drop)),
        (
            "external",
            count(|entry| {
                let outside = entry.outside.as_ref();
                outside.is_some_and(|outside| **outside == Backend::Drop)
            }),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use podnet_core::cluster::Protocol;
    use podnet_core::service::{Frontend, PortName};

    use super::*;

    fn entry(service: &str, inside: Backend, outside: Option<Backend>) -> (Frontend, Arc<Entry>) {
        let port = NonZeroU16::new(80).unwrap();
        let number = u8::try_from(service.len()).unwrap();
        let frontend = Frontend {
            address: [10, 96, 0, number].into(),
            protocol: Protocol::Tcp,
            port,
        };
        let name = PortName {
            service: ObjectName::new("default", service),
            protocol: Protocol::Tcp,
            port,
        };
        let entry = Entry {
            outside: outside.map(Arc::new),
            ..Entry::new(name, inside)
        };
        (frontend, Arc::new(entry))
    }

    #[test]
    fn kube_proxys_names_tell_what_kube_proxy_means_by_them() {
        let mut state = ServiceState::default();
        state.frontends.extend([
            entry("a", Backend::Drop, None),
            entry("bb", Backend::Refuse, Some(Backend::Drop)),
            entry("ccc", Backend::Refuse, None),
        ]);
        let (_in_force, receiver) = watch::channel(Arc::new(state));
        let metrics = ServiceMetrics::new(receiver);
        let mut registry = Registry::with_prefix(KUBE_PROXY);
        metrics.register(&mut registry);
        metrics.services_changed(2);
        metrics.endpoints_changed(3);
        metrics.applied(Sync::Partial, Duration::from_millis(1));
        metrics.endpoints_changed(1);
        metrics.programmed(SystemTime::now());
        metrics.asked("/healthz", StatusCode::SERVICE_UNAVAILABLE);
        metrics.asked("/livez", StatusCode::OK);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count 0",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count 1",
            "kubeproxy_network_programming_duration_seconds_count 1",
            "kubeproxy_sync_proxy_rules_service_changes_total 2",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 4",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 1",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
