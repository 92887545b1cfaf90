use std::net::IpAddr;
use std::time::SystemTime;

use k8s_openapi::api::discovery::v1 as api;
use podnet_core::cluster::{
    AddressFamily, Endpoint, EndpointPort, EndpointSlice, Hints, NodeName, ObjectName, ObjectRef, Parsed,
};

use super::{invalid, object_name, port, protocol};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// When that happened which the slice's controller last wrote it for.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// When the change of a pod or a service happened that the slice tells of, where its controller says so.
pub fn trigger(object: &api::EndpointSlice) -> Option<SystemTime> {
    let text = object.metadata.annotations.as_ref()?.get(TRIGGER)?;
    let time: jiff::Timestamp = text.parse().ok()?;
    Some(time.into())
}

/// An EndpointSlice.
pub fn slice(object: &api::EndpointSlice) -> (ObjectName, Parsed<EndpointSlice>) {
    let name = object_name(&object.metadata);
    let parsed = parse(object).or_else(|why| invalid(ObjectRef::slice(&name), why));
    (name, parsed)
}

fn parse(object: &api::EndpointSlice) -> Result<EndpointSlice, String> {
    let kind = object.address_type.as_str();
    let family = AddressFamily::named(kind)
        .ok_or_else(|| format!("addressType: {kind:?} is none of IPv4, IPv6 and FQDN"))?;
    let service = object
        .metadata
        .labels
        .iter()
        .flatten()
        .find(|(label, _)| *label == SERVICE_LABEL);
    let namespace = object.metadata.namespace.clone().unwrap_or_default();
    let service = service.map(|(_, name)| ObjectName::new(namespace, name.clone()));
    let ports = object.ports.iter().flatten().map(|object| {
        Ok::<_, String>(EndpointPort {
            name: object.name.clone().unwrap_or_default(),
            protocol: protocol(object.protocol.as_deref())?,
            port: object.port.map(port).transpose()?,
        })
    });
    let ports = ports
        .collect::<Result<_, _>>()
        .map_err(|why| format!("ports: {why}"))?;
    let endpoints = match family {
        // Names are nothing that a packet can be sent to.
        AddressFamily::Fqdn => Vec::new(),
        AddressFamily::Ip(_) => object
            .endpoints
            .iter()
            .flatten()
            .map(endpoint)
            .collect::<Result<_, _>>()?,
    };
    EndpointSlice::new(service, family, ports, endpoints).map_err(|error| error.to_string())
}

/// Conditions that are not told: ready and serving count as true, terminating as false (the API's text).
fn endpoint(object: &api::Endpoint) -> Result<Endpoint, String> {
    let text = object.addresses.first().ok_or("endpoints: one has no address")?;
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("endpoints: {text:?} is no IP address"))?;
    let conditions = object.conditions.clone().unwrap_or_default();
    Ok(Endpoint {
        address,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: object.node_name.clone().and_then(|name| NodeName::new(name).ok()),
        hostname: object
            .hostname
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(Into::into),
        hints: object.hints.as_ref().map(hints).unwrap_or_default(),
    })
}

fn hints(object: &api::EndpointHints) -> Hints {
    let zones = object.for_zones.iter().flatten();
    let nodes = object.for_nodes.iter().flatten();
    Hints {
        zones: zones.map(|zone| zone.name.as_str().into()).collect(),
        nodes: nodes
            .filter_map(|node| NodeName::new(node.name.clone()).ok())
            .collect(),
    }
}
