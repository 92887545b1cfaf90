use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;
use podnet_core::cluster::{Node, NodeName, ObjectRef, Parsed, PodRanges};

use super::invalid;

/// A Node. `None` when its name is none, which no API server allows.
pub fn node(object: &api::Node) -> Option<(NodeName, Parsed<Node>)> {
    let name = NodeName::new(object.metadata.name.clone()?).ok()?;
    let parsed = parse(&name, object).or_else(|why| invalid(ObjectRef::node(&name), why));
    Some((name, parsed))
}

fn parse(name: &NodeName, object: &api::Node) -> Result<Node, String> {
    let spec = object.spec.clone().unwrap_or_default();
    let status = object.status.clone().unwrap_or_default();
    // podCIDR is the older field; where both are set it is the first of podCIDRs.
    let texts = spec
        .pod_cidrs
        .unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
    let ranges = texts.iter().map(|text| {
        text.parse::<IpNet>()
            .map_err(|_| format!("spec.podCIDRs: {text:?} is no range such as 10.244.1.0/24"))
    });
    let ranges = PodRanges::new(ranges.collect::<Result<Vec<_>, _>>()?).map_err(|error| error.to_string())?;
    let addresses = status.addresses.unwrap_or_default();
    let internal = addresses.iter();
    let internal = internal
        .filter(|address| address.type_ == "InternalIP")
        .map(|address| {
            let parsed: Result<IpAddr, _> = address.address.parse();
            parsed.map_err(|_| format!("status.addresses: {:?} is no IP address", address.address))
        });
    let mut node = Node::new(name.clone(), &internal.collect::<Result<Vec<_>, _>>()?, ranges);
    node.created = object
        .metadata
        .creation_timestamp
        .as_ref()
        .map(|time| time.0.as_second());
    // Host names and DNS names are none.
    node.all_addresses = addresses
        .iter()
        .filter_map(|address| address.address.parse().ok())
        .collect();
    node.labels = object.metadata.labels.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    node.ready = conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    Ok(node)
}
