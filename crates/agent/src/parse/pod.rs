use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;
use podnet_core::cluster::{NamedPort, Namespace, NodeName, ObjectName, ObjectRef, Parsed, Pod};

use super::{invalid, object_name, port, protocol};

/// A Pod.
pub fn pod(object: &api::Pod) -> (ObjectName, Parsed<Pod>) {
    let name = object_name(&object.metadata);
    let parsed = parse(&name, object).or_else(|why| invalid(ObjectRef::pod(&name), why));
    (name, parsed)
}

/// A Namespace and its name.
pub fn namespace(object: &api::Namespace) -> (String, Namespace) {
    let name = object.metadata.name.clone().unwrap_or_default();
    let labels = object.metadata.labels.clone().unwrap_or_default();
    let namespace = Namespace::new(&name, labels);
    (name, namespace)
}

fn parse(name: &ObjectName, object: &api::Pod) -> Result<Pod, String> {
    let mut pod = Pod::new(name.clone());
    pod.uids = uids(object);
    pod.labels = object.metadata.labels.clone().unwrap_or_default();
    if let Some(spec) = &object.spec {
        pod.node = spec.node_name.clone().and_then(|name| NodeName::new(name).ok());
        pod.host_network = spec.host_network.unwrap_or(false);
        pod.ports = ports(spec)?;
    }
    let status = object.status.clone().unwrap_or_default();
    pod.ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    // podIP is the older field; where both are set it is the first of podIPs.
    let texts: Vec<String> = match status.pod_ips {
        Some(ips) if !ips.is_empty() => ips.into_iter().map(|ip| ip.ip).collect(),
        _ => status.pod_ip.into_iter().collect(),
    };
    let addresses = texts.iter().map(|text| {
        text.parse::<IpAddr>()
            .map_err(|_| format!("status.podIPs: {text:?} is no IP address"))
    });
    pod.addresses = addresses.collect::<Result<_, _>>()?;
    Ok(pod)
}

/// Where kubelet writes of a pod that it has from a file by which identifier it knows that pod: the API knows it by
/// another.
const FILE_POD: &str = "kubernetes.io/config.hash";

fn uids(object: &api::Pod) -> Vec<String> {
    let annotations = object.metadata.annotations.as_ref();
    let of_file = annotations.and_then(|annotations| annotations.get(FILE_POD));
    object.metadata.uid.iter().chain(of_file).cloned().collect()
}

/// The ports that have names: of the containers, and of those init containers that go on running.
fn ports(spec: &api::PodSpec) -> Result<BTreeSet<NamedPort>, String> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter_map(|object| Some((object.name.clone()?, object)));
    let named = named.map(|(name, object)| {
        Ok::<_, String>(NamedPort {
            name,
            protocol: protocol(object.protocol.as_deref())?,
            port: port(object.container_port)?,
        })
    });
    named
        .collect::<Result<_, _>>()
        .map_err(|why| format!("spec.containers.ports: {why}"))
}
