use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;
use podnet_core::cluster::{
    Affinity, InternalPolicy, ObjectName, ObjectRef, Parsed, Resolution, Service, ServicePort,
};

use super::{invalid, object_name, port, protocol};

/// What Kubernetes gives as `timeoutSeconds` where none is set.
const AFFINITY_SECONDS: u32 = 10_800;

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
        Ok::<_, String>(ServicePort {
            name: object.name.clone().unwrap_or_default(),
            protocol: protocol(object.protocol.as_deref())?,
            port: port(object.port)?,
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
