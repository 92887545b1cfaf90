use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;
use podnet_core::cluster::{
    Affinity, Algorithm, External, ExternalPolicy, InternalPolicy, ObjectName, ObjectRef, Parsed, Resolution,
    Service, ServicePort,
};

use super::{invalid, object_name, port, protocol};

/// What Kubernetes gives as `timeoutSeconds` where none is set.
const AFFINITY_SECONDS: u32 = 10_800;

/// How an endpoint is chosen for clients by external addresses and node ports: `random` or `maglev`.
const LOAD_BALANCING: &str = "podnet.io/load-balancing";

/// A Service. `None` for one that is to have an address and has not got it yet.
pub fn service(object: &api::Service) -> (ObjectName, Option<Parsed<Service>>) {
    let name = object_name(&object.metadata);
    let parsed = parse(object).map_err(|why| invalid::<Service>(ObjectRef::service(&name), why));
    let parsed = match parsed {
        Ok(None) => None,
        Ok(Some(service)) => Some(Ok(service)),
        Err(invalid) => Some(invalid),
    };
    (name, parsed)
}

fn parse(object: &api::Service) -> Result<Option<Service>, String> {
    let Some(spec) = &object.spec else { return Ok(None) };
    let Some((addresses, resolution)) = resolution(spec)? else {
        return Ok(None);
    };
    let ports = spec.ports.iter().flatten().map(|object| {
        let name = object.name.clone().unwrap_or_default();
        let service_port = ServicePort::new(name, protocol(object.protocol.as_deref())?, port(object.port)?);
        Ok::<_, String>(ServicePort {
            // 0 is none, as unset is.
            node_port: object
                .node_port
                .filter(|number| *number != 0)
                .map(port)
                .transpose()?,
            ..service_port
        })
    });
    let ports = ports
        .collect::<Result<_, _>>()
        .map_err(|why| format!("spec.ports: {why}"))?;
    let mut service = Service::new(addresses, ports).map_err(|error| error.to_string())?;
    service.resolution = resolution;
    service.proxied_elsewhere = is_proxied_elsewhere(object);
    service.publish_not_ready = spec.publish_not_ready_addresses.unwrap_or(false);
    service.internal_policy = match spec.internal_traffic_policy.as_deref() {
        Some("Local") => InternalPolicy::Local,
        _ => InternalPolicy::Cluster,
    };
    service.external = external(object, spec);
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let config = spec
            .session_affinity_config
            .as_ref()
            .and_then(|config| config.client_ip.as_ref());
        let seconds = config.and_then(|config| u32::try_from(config.timeout_seconds?).ok());
        service.affinity = Affinity::ClientIp {
            seconds: seconds.unwrap_or(AFFINITY_SECONDS),
        };
    }
    Ok(Some(service))
}

/// How it is reached otherwise than by its cluster IPs. What cannot be read of that is left out, and told: it is no reason
/// to take the rest of the service away.
fn external(object: &api::Service, spec: &api::ServiceSpec) -> External {
    let mut unread = Vec::new();
    let mut read = |field: &str, text: &str| {
        let address = text.parse::<IpAddr>();
        address
            .map_err(|_| unread.push(format!("{field}: {text:?} is no IP address; it is left out")))
            .ok()
    };
    let ips = spec.external_ips.iter().flatten();
    let ips = ips.filter_map(|text| read("spec.externalIPs", text)).collect();
    let status = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = status
        .and_then(|status| status.ingress.as_ref())
        .into_iter()
        .flatten();
    // An ingress that has a name only is reached by other means, and so is one whose load balancer is a proxy.
    let as_they_are = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    let load_balancer = as_they_are.filter_map(|ingress| ingress.ip.as_deref());
    let load_balancer = load_balancer
        .filter_map(|text| read("status.loadBalancer.ingress", text))
        .collect();
    // A list of which no range can be read lets nobody in: that is not the same as no list.
    let listed = spec
        .load_balancer_source_ranges
        .as_deref()
        .filter(|listed| !listed.is_empty());
    let sources = listed.map(|listed| {
        let ranges = listed.iter().filter_map(|text| match text.trim().parse::<IpNet>() {
            Ok(range) => Some(range),
            Err(_) => {
                unread.push(format!(
                    "spec.loadBalancerSourceRanges: {text:?} is no range such as 192.0.2.0/24; it lets nobody in"
                ));
                None
            }
        });
        ranges.collect()
    });
    let policy = match spec.external_traffic_policy.as_deref() {
        Some("Local") => ExternalPolicy::Local,
        _ => ExternalPolicy::Cluster,
    };
    let health_check = spec.health_check_node_port.filter(|number| *number != 0);
    let health_check = health_check.and_then(|number| {
        port(number)
            .map_err(|why| unread.push(format!("spec.healthCheckNodePort: {why}; nothing listens there")))
            .ok()
    });
    let annotations = object.metadata.annotations.as_ref();
    let algorithm = match annotations.and_then(|annotations| annotations.get(LOAD_BALANCING)) {
        None => Algorithm::Random,
        Some(text) => match text.as_str() {
            "random" => Algorithm::Random,
            "maglev" => Algorithm::Maglev,
            other => {
                unread.push(format!(
                    "metadata.annotations[{LOAD_BALANCING}]: {other:?} is neither \"random\" nor \"maglev\"; endpoints \
                     are chosen at random"
                ));
                Algorithm::Random
            }
        },
    };
    External {
        ips,
        load_balancer,
        sources,
        policy,
        algorithm,
        health_check,
        unread,
    }
}

/// Its addresses, and what its name stands for.
fn resolution(spec: &api::ServiceSpec) -> Result<Option<(Vec<IpAddr>, Resolution)>, String> {
    if spec.type_.as_deref() == Some("ExternalName") {
        let name = spec.external_name.as_deref().unwrap_or_default();
        let name = name
            .parse()
            .map_err(|error| format!("spec.externalName: {error}"))?;
        return Ok(Some((Vec::new(), Resolution::Alias(name))));
    }
    let texts = match &spec.cluster_ips {
        Some(texts) => texts.as_slice(),
        None => spec.cluster_ip.as_slice(),
    };
    if texts.first().is_some_and(|text| text == "None") {
        return Ok(Some((Vec::new(), Resolution::Endpoints)));
    }
    if texts.iter().all(String::is_empty) {
        return Ok(None);
    }
    let addresses = texts.iter().map(|text| {
        text.parse()
            .map_err(|_| format!("spec.clusterIPs: {text:?} is no IP address"))
    });
    Ok(Some((
        addresses.collect::<Result<_, _>>()?,
        Resolution::ClusterIps,
    )))
}

/// The labels by which kube-proxy, too, leaves a service to another proxy.
fn is_proxied_elsewhere(object: &api::Service) -> bool {
    const OTHERS: [&str; 2] = [
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    ];
    let mut labels = object.metadata.labels.iter().flatten();
    labels.any(|(label, _)| OTHERS.contains(&label.as_str()))
}
