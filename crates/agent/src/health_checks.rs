//! Answers load balancers that ask whether this node has endpoints of a service (`healthCheckNodePort`), as kube-proxy
//! does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use ipnet::IpNet;
use podnet_core::service::{HealthCheck, HealthChecks};
use podnet_linux::netlink::Netlink;
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
    /// Which of the node's addresses are asked: those in these ranges; all of them when `None`.
    pub addresses: Option<BTreeSet<IpNet>>,
}

/// The servers there are.
#[derive(Default)]
struct Servers {
    tasks: JoinSet<()>,
    serving: BTreeMap<SocketAddr, AbortHandle>,
    /// Where somebody else was.
    refused: BTreeSet<SocketAddr>,
}

/// Answers on the ports of `health`, which may change at any time, until its sender is gone. A port that somebody else
/// has is not taken from them: it is said, and tried again. For the network namespace of the runtime's threads.
pub async fn run(mut health: watch::Receiver<Health>) {
    let mut servers = Servers::default();
    loop {
        let wanted = health.borrow_and_update().clone();
        let ports: Vec<NonZeroU16> = wanted.checks.ports().collect();
        let addresses = addresses(wanted.addresses.as_ref().filter(|_| !ports.is_empty()));
        let sockets = ports.iter().flat_map(|port| {
            let of_port = move |address: &IpAddr| SocketAddr::new(*address, port.get());
            addresses.iter().map(of_port)
        });
        servers.become_those_at(sockets.collect(), &health).await;
        // Addresses come and go without a word.
        let again = !servers.refused.is_empty() || (wanted.addresses.is_some() && !ports.is_empty());
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if again => {}
            // One that was aborted.
            Some(_) = servers.tasks.join_next() => {}
        }
    }
}

impl Servers {
    async fn become_those_at(&mut self, wanted: BTreeSet<SocketAddr>, health: &watch::Receiver<Health>) {
        self.serving.retain(|socket, server| {
            let keep = wanted.contains(socket);
            if !keep {
                server.abort();
            }
            keep
        });
        self.refused.retain(|socket| wanted.contains(socket));
        for socket in wanted {
            if self.serving.contains_key(&socket) {
                continue;
            }
            match bind(socket).await {
                Ok(listener) => {
                    self.refused.remove(&socket);
                    let server = self.tasks.spawn(answer(socket.port(), listener, health.clone()));
                    self.serving.insert(socket, server);
                }
                Err(error) if self.refused.insert(socket) => {
                    let health = health.borrow();
                    let check = NonZeroU16::new(socket.port()).and_then(|port| health.checks.get(port));
                    let service = check.map(|check| check.service.to_string()).unwrap_or_default();
                    tracing::warn!(%service, "cannot answer on the health check node port at {socket}, trying again: {error}");
                }
                Err(_) => {}
            }
        }
    }
}

/// The node's own addresses in these ranges; the one that stands for all of them without any.
fn addresses(ranges: Option<&BTreeSet<IpNet>>) -> BTreeSet<IpAddr> {
    let Some(ranges) = ranges else {
        return [Ipv6Addr::UNSPECIFIED.into()].into();
    };
    let listed = Netlink::open().and_then(|mut netlink| netlink.addresses(None));
    let own = match listed {
        Ok(own) => own,
        Err(error) => {
            tracing::warn!("health check node ports are not answered: {error}");
            return BTreeSet::new();
        }
    };
    let own = own.iter().map(|address| address.net.addr());
    // A link-local address means something on its link only.
    own.filter(|address| !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()))
        .filter(|address| ranges.iter().any(|range| range.contains(address)))
        .collect()
}

/// All addresses are those of both families; of IPv4 only where the kernel has no IPv6.
async fn bind(socket: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(socket).await {
        Err(error) if error.kind() != ErrorKind::AddrInUse && socket.ip().is_unspecified() => {
            TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, socket.port()))).await
        }
        bound => bound,
    }
}

async fn answer(port: u16, listener: TcpListener, health: watch::Receiver<Health>) {
    web::serve(listener, move |_| {
        let health = health.borrow();
        match NonZeroU16::new(port).and_then(|port| health.checks.get(port)) {
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
        ask_at("127.0.0.1", port)
    }

    fn ask_at(address: &str, port: NonZeroU16) -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect((address, port.get()))?;
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
            let addresses = None;
            say.send_replace(Health {
                checks,
                healthy,
                addresses,
            });
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
        until_refused("127.0.0.1", port).await;
    }

    async fn until_refused(address: &'static str, port: NonZeroU16) {
        for _ in 0..200 {
            let asked = tokio::task::spawn_blocking(move || ask_at(address, port)).await;
            if asked.unwrap().is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it is answered still");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn health_check_node_ports_are_answered_at_the_addresses_of_node_ports_alone() {
        let free = std::net::TcpListener::bind("[::]:0").unwrap();
        let port = NonZeroU16::new(free.local_addr().unwrap().port()).unwrap();
        drop(free);
        let (say, health) = watch::channel(Health::default());
        tokio::spawn(run(health));
        let tell = |range: Option<&str>| {
            say.send_replace(Health {
                checks: checks(port, 1),
                healthy: true,
                addresses: range.map(|range| [range.parse().unwrap()].into()),
            });
        };
        tell(Some("127.0.0.1/32"));
        expect(port, "HTTP/1.1 200").await;
        until_refused("::1", port).await;
        // Another program may have the port there.
        drop(std::net::TcpListener::bind(("127.0.0.2", port.get())).unwrap());
        // None of the node's addresses.
        tell(Some("192.0.2.0/24"));
        until_refused("127.0.0.1", port).await;
        tell(None);
        expect(port, "HTTP/1.1 200").await;
        let v6 = tokio::task::spawn_blocking(move || ask_at("::1", port)).await;
        assert!(v6.unwrap().unwrap().contains("HTTP/1.1 200"));
    }
}
