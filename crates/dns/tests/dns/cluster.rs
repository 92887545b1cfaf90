//! Clusters to ask about, in few words.

use std::net::IpAddr;
use std::num::NonZeroU16;

use podnet_core::cluster::{
    AddressFamily, Cluster, ClusterConfig, DnsConfig, Endpoint, EndpointPort, EndpointSlice, Family,
    ObjectName, Resolution, Service, ServicePort,
};
use podnet_core::names::Names;
use podnet_core::{NodeName, compute};

/// `NAMESPACE/NAME`.
pub(crate) fn object(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

/// Ports as `name/protocol/number`; the name may be empty.
fn port(text: &str) -> ServicePort {
    let [name, protocol, number] = text.split('/').collect::<Vec<_>>().try_into().unwrap();
    ServicePort {
        name: name.into(),
        protocol: protocol.to_uppercase().parse().unwrap(),
        port: NonZeroU16::new(number.parse().unwrap()).unwrap(),
    }
}

/// A cluster with DNS and no objects.
pub(crate) fn empty(dns: DnsConfig) -> Cluster {
    Cluster::new(ClusterConfig {
        dns: Some(dns),
        ..ClusterConfig::default()
    })
}

/// A service of cluster IPs.
pub(crate) fn service(cluster: &mut Cluster, name: &str, addresses: &[&str], ports: &[&str]) {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let service = Service::new(addresses, ports.iter().map(|text| port(text)).collect()).unwrap();
    cluster.services.insert(object(name), Ok(service));
}

/// A headless service.
pub(crate) fn headless(cluster: &mut Cluster, name: &str, ports: &[&str]) {
    service(cluster, name, &[], ports);
    let service = cluster.services.get_mut(&object(name)).unwrap().as_mut().unwrap();
    service.resolution = Resolution::Endpoints;
}

/// An ExternalName service.
pub(crate) fn alias(cluster: &mut Cluster, name: &str, target: &str) {
    service(cluster, name, &[], &[]);
    let service = cluster.services.get_mut(&object(name)).unwrap().as_mut().unwrap();
    service.resolution = Resolution::Alias(target.parse().unwrap());
}

/// A slice of a service. Endpoints are `address`, `address=hostname`, and `!address` when they are not ready.
pub(crate) fn slice(cluster: &mut Cluster, name: &str, of: &str, ports: &[&str], endpoints: &[&str]) {
    let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| endpoint(text)).collect();
    let ports = ports.iter().map(|text| port(text)).map(|port| EndpointPort {
        name: port.name,
        protocol: port.protocol,
        port: Some(port.port),
    });
    let family = endpoints
        .first()
        .map_or(Family::V4, |endpoint| Family::of(endpoint.address));
    let slice = EndpointSlice::new(
        Some(object(of)),
        AddressFamily::Ip(family),
        ports.collect(),
        endpoints,
    );
    cluster.slices.insert(object(name), Ok(slice.unwrap()));
}

fn endpoint(text: &str) -> Endpoint {
    let ready = !text.starts_with('!');
    let text = text.trim_start_matches('!');
    let (address, hostname) = match text.split_once('=') {
        Some((address, hostname)) => (address, Some(hostname.into())),
        None => (text, None),
    };
    Endpoint {
        address: address.parse::<IpAddr>().unwrap(),
        ready,
        serving: ready,
        terminating: false,
        node: None,
        hostname,
    }
}

/// Its names, as they are in every node's state.
pub(crate) fn names(cluster: &Cluster) -> Names {
    let state = compute(cluster, &NodeName::new("node1").unwrap());
    Names::clone(&state.names.unwrap())
}
