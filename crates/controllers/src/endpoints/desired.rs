//! The endpoints that a service should have.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerPort, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{ZONE, is_headless, selector, selects};
use crate::pod;
use crate::resource::Key;
use crate::world::World;

/// An address family, by the name that the API has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    pub(super) fn has(self, address: &str) -> bool {
        let v4 = address.parse::<IpAddr>().map(|ip| ip.is_ipv4());
        v4.is_ok_and(|v4| v4 == (self == Family::V4))
    }
}

/// Name, protocol and number of a port on the endpoints, and the application protocol; sorted and compared as the
/// identity of a group of endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) number: Option<i32>,
    pub(super) app: Option<String>,
}

impl Port {
    pub(super) fn of(port: &EndpointPort) -> Port {
        Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            number: port.port,
            app: port.app_protocol.clone(),
        }
    }

    pub(super) fn into_endpoint_port(self) -> EndpointPort {
        EndpointPort {
            name: Some(self.name),
            protocol: Some(self.protocol),
            port: self.number,
            app_protocol: self.app,
        }
    }
}

/// Endpoints by family and by the ports that they have.
pub(super) type Groups = BTreeMap<Family, BTreeMap<Vec<Port>, Vec<Endpoint>>>;

/// The endpoints of a service; none if it does not select pods. Every family that the service has is there, if need
/// be without endpoints.
pub(super) fn groups(world: &World, service: &Service) -> Option<Groups> {
    selector(service)?;
    let mut groups: Groups = families(service)
        .into_iter()
        .map(|family| (family, BTreeMap::new()))
        .collect();
    for pod in pods(world, service) {
        let ports = ports(service, pod);
        for (family, group) in &mut groups {
            let addresses: Vec<String> = pod::addresses(pod)
                .into_iter()
                .filter(|a| family.has(a))
                .map(str::to_owned)
                .collect();
            if let Some(first) = addresses.into_iter().next() {
                group
                    .entry(ports.clone())
                    .or_default()
                    .push(endpoint(world, service, pod, first));
            }
        }
    }
    Some(groups)
}

/// The pods that a service selects and that have an address and have not ended.
pub(super) fn pods<'a>(world: &'a World, service: &'a Service) -> impl Iterator<Item = &'a Pod> {
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let pods = world.pods.within(namespace).map(|pod| &**pod);
    pods.filter(|pod| {
        !pod::ended(pod) && !pod::addresses(pod).is_empty() && selects(service, &pod.metadata.labels)
    })
}

pub(super) fn families(service: &Service) -> Vec<Family> {
    let spec = service.spec.clone().unwrap_or_default();
    let named: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .map(|name| {
            if name == Family::V6.name() {
                Family::V6
            } else {
                Family::V4
            }
        })
        .collect();
    let v6 = spec.cluster_ip.as_deref().is_some_and(|ip| Family::V6.has(ip));
    match (named.is_empty(), v6) {
        (false, _) => named,
        (true, true) => vec![Family::V6],
        (true, false) => vec![Family::V4],
    }
}

/// The service's ports as this pod has them. A named port that the pod lacks is left out.
pub(super) fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let spec = service.spec.as_ref();
    let wanted = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let mut ports: Vec<Port> = wanted
        .iter()
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port).to_owned(),
                number: Some(target(port, pod)?),
                app: port.app_protocol.clone(),
            })
        })
        .collect();
    ports.sort();
    ports
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => named(name, protocol(port), pod),
    }
}

/// Sidecars may have ports too; init containers that end may not.
fn named(name: &str, protocol: &str, pod: &Pod) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let inits = spec.init_containers.iter().flatten();
    let sidecars = inits.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten());
    let is = |port: &&ContainerPort| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
    };
    ports.find(is).map(|port| port.container_port)
}

fn endpoint(world: &World, service: &Service, pod: &Pod, address: String) -> Endpoint {
    let node = pod::node(pod);
    let zone = node.and_then(|node| {
        let labels = world.nodes.get(&Key::cluster(node))?.metadata.labels.as_ref()?;
        labels.get(ZONE).cloned()
    });
    let serving = pod::ready(pod);
    let terminating = pod::terminating(pod);
    let ready = publishes_all(service) || (serving && !terminating);
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: node.map(str::to_owned),
        hints: hints(service, ready, node, zone.as_deref()),
        zone,
        target_ref: Some(target_ref(pod)),
        deprecated_topology: None,
    }
}

pub(super) fn publishes_all(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

pub(super) fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// A pod has a name of its own under a headless service that is its subdomain.
pub(super) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let under = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname
        .clone()
        .filter(|name| !name.is_empty() && under && is_headless(service))
}

fn hints(service: &Service, ready: bool, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let for_zones = zone.map(|zone| {
        vec![ForZone {
            name: zone.to_owned(),
        }]
    });
    let for_nodes = node.map(|node| {
        vec![ForNode {
            name: node.to_owned(),
        }]
    });
    let hints = match distribution {
        "PreferClose" | "PreferSameZone" => EndpointHints {
            for_zones,
            for_nodes: None,
        },
        "PreferSameNode" => EndpointHints { for_zones, for_nodes },
        _ => return None,
    };
    (ready && hints != EndpointHints::default()).then_some(hints)
}
