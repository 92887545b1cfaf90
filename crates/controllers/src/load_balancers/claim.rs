//! What a Service says of the addresses it is to have, and has.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServiceSpec};
use podnet_core::cluster::{ExternalPolicy, Family, ObjectName, Protocol};
use podnet_core::load_balancer::{CLASS, Claim, Wish};

use super::CONDITION;

/// Services with the same value may have the same address.
const SHARING_KEY: [&str; 3] = [
    "podnet.io/sharing-key",
    "metallb.io/allow-shared-ip",
    "lbipam.cilium.io/sharing-key",
];
/// Addresses that are asked for, separated by commas.
const ADDRESSES: [&str; 3] = [
    "podnet.io/load-balancer-ips",
    "metallb.io/loadBalancerIPs",
    "lbipam.cilium.io/ips",
];
/// The pool that is asked for.
const POOL: [&str; 2] = ["podnet.io/load-balancer-pool", "metallb.io/address-pool"];

/// Whether the service is of a kind that may be ours, whoever else serves it.
pub(super) fn is_balanced(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
}

/// Whether we have written its addresses, or that it has none.
pub(super) fn is_marked(service: &Service) -> bool {
    let conditions = service
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == CONDITION)
}

/// The claim of a service that is ours. Of those that name no class, these are left to others: the ones that had an address
/// before we came, unless it is in one of our pools (`is_ours`).
pub(super) fn claim(service: &Service, is_ours: impl Fn(IpAddr) -> bool) -> Option<Claim> {
    let spec = service.spec.as_ref().filter(|_| is_balanced(service))?;
    match spec.load_balancer_class.as_deref() {
        Some(class) if class != CLASS => return None,
        Some(_) => {}
        None if is_marked(service) => {}
        None => {
            let ours = |ingress: &LoadBalancerIngress| address(ingress).is_some_and(&is_ours);
            if !ingress(service).all(ours) {
                return None;
            }
        }
    }
    let families = families(spec);
    let metadata = &service.metadata;
    Some(Claim {
        service: ObjectName::new(metadata.namespace.clone()?, metadata.name.clone()?),
        created: metadata
            .creation_timestamp
            .as_ref()
            .map_or(i64::MAX, |time| time.0.as_second()),
        labels: metadata.labels.clone().unwrap_or_default(),
        all_families: families.len() == 1 || spec.ip_family_policy.as_deref() == Some("RequireDualStack"),
        families,
        ports: ports(spec),
        policy: match spec.external_traffic_policy.as_deref() {
            Some("Local") => ExternalPolicy::Local,
            _ => ExternalPolicy::Cluster,
        },
        selector: spec.selector.clone().unwrap_or_default(),
        sharing_key: annotation(service, &SHARING_KEY).map(|(_, key)| key.to_owned()),
        wish: wish(service, spec),
        held: ingress(service).filter_map(address).collect(),
    })
}

/// What load balancers have written.
pub(super) fn ingress(service: &Service) -> impl Iterator<Item = &LoadBalancerIngress> {
    let status = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    status
        .into_iter()
        .flat_map(|status| status.ingress.iter().flatten())
}

fn address(ingress: &LoadBalancerIngress) -> Option<IpAddr> {
    let as_it_is = ingress.ip_mode.as_deref() != Some("Proxy");
    ingress.ip.as_ref().filter(|_| as_it_is)?.parse().ok()
}

fn families(spec: &ServiceSpec) -> Vec<Family> {
    let named = spec.ip_families.iter().flatten();
    let mut families: Vec<Family> = named
        .map(|name| if name == "IPv6" { Family::V6 } else { Family::V4 })
        .collect();
    if families.is_empty() {
        let cluster_ips = spec.cluster_ips.iter().flatten();
        families = cluster_ips
            .filter_map(|text| Some(Family::of(text.parse().ok()?)))
            .collect();
    }
    families
}

/// Ports that cannot be read are told of by who serves them.
fn ports(spec: &ServiceSpec) -> BTreeSet<(Protocol, NonZeroU16)> {
    let ports = spec.ports.iter().flatten();
    ports
        .filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").parse().ok()?;
            Some((protocol, NonZeroU16::new(u16::try_from(port.port).ok()?)?))
        })
        .collect()
}

/// The first of these annotations that is there and says something.
fn annotation<'a>(service: &'a Service, names: &[&'static str]) -> Option<(&'static str, &'a str)> {
    let annotations = service.metadata.annotations.as_ref()?;
    names.iter().find_map(|name| {
        let value = annotations.get(*name)?.trim();
        (!value.is_empty()).then_some((*name, value))
    })
}

fn wish(service: &Service, spec: &ServiceSpec) -> Result<Wish, String> {
    let by_field = spec.load_balancer_ip.as_deref().map(str::trim);
    let by_field = by_field
        .filter(|text| !text.is_empty())
        .map(|text| ("spec.loadBalancerIP", text));
    let asked = annotation(service, &ADDRESSES).or(by_field);
    let mut addresses: Vec<IpAddr> = Vec::new();
    if let Some((field, texts)) = asked {
        for text in texts.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            let address: IpAddr = text.parse().map_err(|_| {
                format!("{field}: {text:?} is no IP address; write one, or one of each family with a comma")
            })?;
            if addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                return Err(format!("{field}: {texts:?} has two addresses of one family"));
            }
            addresses.push(address);
        }
    }
    Ok(Wish {
        addresses,
        pool: annotation(service, &POOL).map(|(_, pool)| pool.to_owned()),
    })
}
