//! What every cluster has from its first moment: four namespaces, and the Service `kubernetes`.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::{Api, Target, WriteOptions};
use crate::kinds::Resource;
use crate::registry::Registry;
use crate::status::Refusal;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Where the API server can be reached from within the cluster.
#[derive(Clone, Debug, Default)]
pub struct Advertised {
    /// Its addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Its port.
    pub port: u16,
}

/// Makes what is missing, and brings the Service's endpoints up to date.
pub async fn bootstrap(api: &Arc<Api>, service: &[IpAddr], advertised: &Advertised) -> Result<(), Refusal> {
    for name in NAMESPACES {
        let namespaces = Registry::builtin("", "v1", "namespaces");
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        make(api, &namespaces, None, object).await?;
    }
    if !service.is_empty() {
        make(
            api,
            &Registry::builtin("", "v1", "services"),
            Some("default"),
            kubernetes(service, advertised.port),
        )
        .await?;
    }
    if !advertised.addresses.is_empty() {
        let endpoints = Registry::builtin("", "v1", "endpoints");
        make_or_replace(api, &endpoints, endpoints_object(advertised)).await?;
        let slices = Registry::builtin("discovery.k8s.io", "v1", "endpointslices");
        for address in &advertised.addresses {
            make_or_replace(api, &slices, slice(*address, advertised.port)).await?;
        }
    }
    Ok(())
}

async fn make(
    api: &Arc<Api>,
    resource: &Resource,
    namespace: Option<&str>,
    object: Value,
) -> Result<(), Refusal> {
    match api
        .create(resource, namespace, object, WriteOptions::default())
        .await
    {
        Err(refusal) if refusal.reason() != "AlreadyExists" => Err(refusal),
        _ => Ok(()),
    }
}

async fn make_or_replace(api: &Arc<Api>, resource: &Resource, object: Value) -> Result<(), Refusal> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match api
        .create(resource, Some("default"), object.clone(), WriteOptions::default())
        .await
    {
        Err(refusal) if refusal.reason() == "AlreadyExists" => {
            let target = Target::new(resource.clone(), Some("default"), &name);
            api.replace(&target, crate::api::Part::Whole, object, WriteOptions::default())
                .await
                .map(drop)
        }
        outcome => outcome.map(drop),
    }
}

fn kubernetes(addresses: &[IpAddr], port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP", "sessionAffinity": "None",
            "clusterIP": addresses.first().map(ToString::to_string),
            "clusterIPs": addresses.iter().take(1).map(ToString::to_string).collect::<Vec<_>>(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    })
}

fn endpoints_object(advertised: &Advertised) -> Value {
    let first = advertised
        .addresses
        .iter()
        .take(1)
        .map(|address| json!({"ip": address.to_string()}));
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": first.collect::<Vec<_>>(),
            "ports": [{"name": "https", "port": advertised.port, "protocol": "TCP"}],
        }],
    })
}

fn slice(address: IpAddr, port: u16) -> Value {
    let (name, family) = match address {
        IpAddr::V4(_) => ("kubernetes", "IPv4"),
        IpAddr::V6(_) => ("kubernetes-ipv6", "IPv6"),
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": family,
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}
