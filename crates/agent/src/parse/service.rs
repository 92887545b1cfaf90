use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;
use podnet_core::cluster::{Affinity, InternalPolicy, ObjectName, ObjectRef, Parsed, Service, ServicePort};

use super::{invalid, object_name, port, protocol};

/// What Kubernetes gives as `timeoutSeconds` where none is set.
const AFFINITY_SECONDS: u32 = 10_800;

/// A Service. `None` for one that has no cluster IP for us to serve: headless, ExternalName, without an address yet, or
/// another proxy's.
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
    let labels = object.metadata.labels.iter().flatten();
    const OTHERS: [&str; 2] = [
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    ];
    let Some(spec) = &object.spec else { return Ok(None) };
    let elsewhere = labels
        .into_iter()
        .any(|(label, _)| OTHERS.contains(&label.as_str()));
    if elsewhere || spec.type_.as_deref() == Some("ExternalName") {
        return Ok(None);
    }
    let addresses = spec
        .cluster_ips
        .clone()
        .unwrap_or_else(|| spec.cluster_ip.iter().cloned().collect());
    if addresses
        .iter()
        .all(|address| address.is_empty() || address == "None")
    {
        return Ok(None);
    }
    let addresses = addresses.iter().map(|text| {
        text.parse::<IpAddr>()
            .map_err(|_| format!("spec.clusterIPs: {text:?} is no IP address"))
    });
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
    let mut service =
        Service::new(addresses.collect::<Result<_, _>>()?, ports).map_err(|error| error.to_string())?;
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
