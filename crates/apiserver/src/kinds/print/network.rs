//! Services, endpoints and network policies.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AGE, Column, NAME, NONE, age, at_most_three, column, label_selector, labels, name, or_none, wide,
};
use crate::kinds::value::{list, text};

/// Columns of Services.
pub(in crate::kinds) const SERVICE: &[Column] = &[
    NAME,
    column("Type", "string", "How the service is exposed."),
    column("Cluster-IP", "string", "The service's own address."),
    column(
        "External-IP",
        "string",
        "Addresses outside the cluster that lead to the service.",
    ),
    column("Port(s)", "string", "The ports that are exposed by this service."),
    AGE,
    wide(
        "Selector",
        "string",
        "Route service traffic to pods with label keys and values matching this selector.",
    ),
];

/// A Service's row.
pub(in crate::kinds) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let cluster_ip = match list(&spec["clusterIPs"]).first() {
        Some(first) => text(first),
        None => text(&spec["clusterIP"]),
    };
    vec![
        name(object),
        text(&spec["type"]).into(),
        or_none(cluster_ip),
        external_ip(object).into(),
        or_none(&service_ports(spec)),
        age(object, now),
        labels(&spec["selector"]).into(),
    ]
}

fn external_ip(object: &Value) -> String {
    let spec = &object["spec"];
    let external: Vec<&str> = list(&spec["externalIPs"]).iter().map(text).collect();
    match text(&spec["type"]) {
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        "LoadBalancer" => {
            let mut all: Vec<&str> = list(&object["status"]["loadBalancer"]["ingress"])
                .iter()
                .map(|i| {
                    if text(&i["ip"]).is_empty() {
                        text(&i["hostname"])
                    } else {
                        text(&i["ip"])
                    }
                })
                .collect();
            all.extend(&external);
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        _ if external.is_empty() => NONE.to_owned(),
        _ => external.join(","),
    }
}

fn service_ports(spec: &Value) -> String {
    let port = |p: &Value| {
        let (number, protocol) = (&p["port"], text(&p["protocol"]));
        match p["nodePort"].as_i64().unwrap_or(0) {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    list(&spec["ports"])
        .iter()
        .map(port)
        .collect::<Vec<_>>()
        .join(",")
}

/// Columns of Endpoints.
pub(in crate::kinds) const ENDPOINTS: &[Column] = &[
    NAME,
    column("Endpoints", "string", "The ready addresses and ports."),
    AGE,
];

/// An Endpoints object's row.
pub(in crate::kinds) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in list(&object["subsets"]) {
        let addresses = list(&subset["addresses"]).iter().map(|a| text(&a["ip"]));
        let ports = list(&subset["ports"]);
        for ip in addresses {
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            let host = if ip.contains(':') {
                format!("[{ip}]")
            } else {
                ip.to_owned()
            };
            all.extend(ports.iter().map(|p| format!("{host}:{}", p["port"])));
        }
    }
    vec![name(object), or_none(&at_most_three(&all)), age(object, now)]
}

/// Columns of EndpointSlices.
pub(in crate::kinds) const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    column(
        "AddressType",
        "string",
        "The type of address carried by this EndpointSlice.",
    ),
    column(
        "Ports",
        "string",
        "The network ports exposed by each endpoint in this slice.",
    ),
    column(
        "Endpoints",
        "string",
        "The addresses of the endpoints in this slice.",
    ),
    AGE,
];

/// An EndpointSlice's row.
pub(in crate::kinds) fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    const UNSET: &str = "<unset>";
    let ports: Vec<String> = list(&object["ports"])
        .iter()
        .map(|p| p["port"].as_i64().map_or("*".to_owned(), |n| n.to_string()))
        .collect();
    let addresses: Vec<String> = list(&object["endpoints"])
        .iter()
        .flat_map(|e| list(&e["addresses"]))
        .map(|a| text(a).to_owned())
        .collect();
    let shown = |all: &[String]| {
        if all.is_empty() {
            UNSET.to_owned()
        } else {
            at_most_three(all)
        }
    };
    vec![
        name(object),
        text(&object["addressType"]).into(),
        shown(&ports).into(),
        shown(&addresses).into(),
        age(object, now),
    ]
}

/// Columns of NetworkPolicies.
pub(in crate::kinds) const NETWORK_POLICY: &[Column] = &[
    NAME,
    column(
        "Pod-Selector",
        "string",
        "The pods to which this NetworkPolicy applies.",
    ),
    AGE,
];

/// A NetworkPolicy's row.
pub(in crate::kinds) fn network_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        label_selector(&object["spec"]["podSelector"]).into(),
        age(object, now),
    ]
}

/// Columns of ServiceCIDRs.
pub(in crate::kinds) const SERVICE_CIDR: &[Column] = &[
    NAME,
    column(
        "CIDRs",
        "string",
        "CIDRs defines the IP blocks in CIDR notation (e.g. \"192.168.0.0/24\" or \"2001:db8::/64\") from which to \
         assign service cluster IPs. Max of two CIDRs is allowed, one of each IP family. This field is immutable.",
    ),
    AGE,
];

/// A ServiceCIDR's row.
pub(in crate::kinds) fn service_cidr(object: &Value, now: Timestamp) -> Vec<Value> {
    let ranges: Vec<&str> = list(&object["spec"]["cidrs"]).iter().map(text).collect();
    vec![name(object), ranges.join(",").into(), age(object, now)]
}

/// Columns of IPAddresses.
pub(in crate::kinds) const IP_ADDRESS: &[Column] = &[
    NAME,
    column(
        "ParentRef",
        "string",
        "ParentRef references the resource that an IPAddress is attached to. An IPAddress must reference a parent object.",
    ),
];

/// An IPAddress's row: whose it is as `services/default/kubernetes`.
pub(in crate::kinds) fn ip_address(object: &Value, _now: Timestamp) -> Vec<Value> {
    let parent = &object["spec"]["parentRef"];
    let kind = match text(&parent["group"]) {
        "" => text(&parent["resource"]).to_owned(),
        group => format!("{}.{group}", text(&parent["resource"])),
    };
    let parts = [&kind, text(&parent["namespace"]), text(&parent["name"])];
    let given: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    vec![name(object), or_none(&given.join("/").to_lowercase())]
}
