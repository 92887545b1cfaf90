//! Answers load balancers that ask whether this node has endpoints of a service (`healthCheckNodePort`), as kube-proxy
//! does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use podnet_core::service::{HealthCheck, HealthChecks};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::web;

/// After a port that somebody else has.
const RETRY: Duration = Duration::from_secs(5);
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What load balancers are told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// What is asked for, by port.
    pub checks: HealthChecks,
    /// Whether the kernel has what it should have.
    pub healthy: bool,
}

/// Answers on the ports of `health`, which may change at any time, until its sender is gone. A port that somebody else
/// has is not taken from them: it is said, and tried again.
pub async fn run(mut health: watch::Receiver<Health>) {
    let mut servers = JoinSet::new();
    let mut serving: BTreeMap<NonZeroU16, AbortHandle> = BTreeMap::new();
    let mut refused = BTreeSet::new();
    loop {
        let wanted: BTreeSet<NonZeroU16> = health.borrow_and_update().checks.ports().collect();
        serving.retain(|port, server| {
            let keep = wanted.contains(port);
            if !keep {
                server.abort();
            }
            keep
        });
        refused.retain(|port| wanted.contains(port));
        for port in &wanted {
            if serving.contains_key(port) {
                continue;
            }
            match bind(*port).await {
                Ok(listener) => {
                    refused.remove(port);
                    serving.insert(*port, servers.spawn(answer(*port, listener, health.clone())));
                }
                Err(error) => {
                    if refused.insert(*port) {
                        let service = health
                            .borrow()
                            .checks
                            .get(*port)
                            .map(|check| check.service.to_string());
                        let service = service.unwrap_or_default();
                        tracing::warn!(%service, "cannot answer on the health check node port {port}, trying again: {error}");
                    }
                }
            }
        }
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if !refused.is_empty() => {}
            // One that was aborted.
            Some(_) = servers.join_next() => {}
        }
    }
}

/// On all addresses of both families; of IPv4 only where the kernel has no IPv6.
async fn bind(port: NonZeroU16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.get()))).await {
        Err(error) if error.kind() != ErrorKind::AddrInUse => {
            TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.get()))).await
        }
        bound => bound,
    }
}

async fn answer(port: NonZeroU16, listener: TcpListener, health: watch::Receiver<Health>) {
    web::serve(listener, move |_| {
        let health = health.borrow();
        match health.checks.get(port) {
            Some(check) => respond(check, health.healthy),
            // It goes in this very moment.
            None => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NOT_FOUND;
                response
            }
        }
    })
    .await;
}

fn respond(check: &HealthCheck, healthy: bool) -> Response<Full<Bytes>> {
    let (service, count) = (&check.service, check.local_endpoints);
    // The very text of kube-proxy: some read it with less than a JSON parser.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {:?},\n\t\t\"name\": {:?}\n\t}},\n\t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        service.namespace, service.name
    );
    let mut response = Response::new(Full::new(Bytes::from(body)));
    if count == 0 || !healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(WEIGHT, HeaderValue::from(count));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use podnet_core::cluster::{
        AddressFamily, Endpoint, EndpointPort, EndpointSlice, ExternalPolicy, Family, ObjectName, Protocol,
        Service, ServicePort,
    };
    use podnet_core::{Cluster, NodeName, compute};

    use super::*;

    /// A service with so many endpoints on node1 that are ready, and one elsewhere.
    fn checks(port: NonZeroU16, endpoints: u8) -> HealthChecks {
        let name = ObjectName::new("shop", "web");
        let number = NonZeroU16::new(80).unwrap();
        let service_port = ServicePort::new("", Protocol::Tcp, number);
        let mut service = Service::new(vec!["10.96.0.1".parse().unwrap()], vec![service_port]).unwrap();
        service.external.policy = ExternalPolicy::Local;
        service.external.health_check = Some(port);
        let endpoint =
            |node: &str, host| Endpoint::ready([10, 244, 0, host].into(), Some(NodeName::new(node).unwrap()));
        let here = (0..endpoints).map(|host| endpoint("node1", host + 2));
        let endpoints = here.chain([endpoint("node2", 99)]).collect();
        let slice_port = EndpointPort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: Some(number),
        };
        let family = AddressFamily::Ip(Family::V4);
        let slice = EndpointSlice::new(Some(name.clone()), family, vec![slice_port], endpoints).unwrap();
        let mut cluster = Cluster::default();
        cluster.services.insert(name.clone(), Ok(service));
        cluster.slices.insert(name, Ok(slice));
        let state = compute(&cluster, &NodeName::new("node1").unwrap());
        state.services.health_checks.clone()
    }

    fn ask(port: NonZeroU16) -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port.get()))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Asks until an answer has `part` in it.
    async fn expect(port: NonZeroU16, part: &'static str) {
        let mut last = String::new();
        for _ in 0..200 {
            last = tokio::task::spawn_blocking(move || ask(port))
                .await
                .unwrap()
                .unwrap_or_default();
            if last.contains(part) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no {part:?} in {last:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn load_balancers_are_told_how_many_endpoints_are_here() {
        let free = std::net::TcpListener::bind("[::]:0").unwrap();
        let port = NonZeroU16::new(free.local_addr().unwrap().port()).unwrap();
        let (say, health) = watch::channel(Health::default());
        let server = tokio::spawn(run(health));
        let tell = |endpoints, healthy| {
            let checks = checks(port, endpoints);
            say.send_replace(Health { checks, healthy });
        };
        // Somebody else has the port, and keeps it until they let it go.
        tell(2, true);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!server.is_finished());
        drop(free);
        tell(3, true);
        expect(port, "HTTP/1.1 200 OK").await;
        let answer = tokio::task::spawn_blocking(move || ask(port))
            .await
            .unwrap()
            .unwrap();
        let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 3,\n\t\"serviceProxyHealthy\": true\n}";
        assert!(answer.ends_with(body), "{answer}");
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 3",
        ] {
            assert!(answer.contains(header), "{header} in {answer}");
        }
        tell(0, true);
        expect(port, "HTTP/1.1 503").await;
        expect(port, "x-load-balancing-endpoint-weight: 0").await;
        tell(2, false);
        expect(port, "\"serviceProxyHealthy\": false").await;
        expect(port, "HTTP/1.1 503").await;
        tell(2, true);
        expect(port, "HTTP/1.1 200").await;
        say.send_replace(Health::default());
        for _ in 0..200 {
            if tokio::task::spawn_blocking(move || ask(port))
                .await
                .unwrap()
                .is_err()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it is answered still");
    }
}
