//! What every cluster has from its first moment: four namespaces, and the Service `kubernetes`.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::api::{Api, Part, Target, WriteOptions};
use crate::kinds::Resource;
use crate::registry::Registry;
use crate::services::{DEFAULT, first_addresses};
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

/// Makes what is missing, and brings the Service's endpoints up to date. `service_cidrs` are one range per family.
pub async fn bootstrap(
    api: &Arc<Api>,
    service_cidrs: &[IpNet],
    advertised: &Advertised,
) -> Result<(), Refusal> {
    let service = first_addresses(service_cidrs);
    for name in NAMESPACES {
        let namespaces = Registry::builtin("", "v1", "namespaces");
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        make(api, &namespaces, None, object).await?;
    }
    default_service_cidr(api, service_cidrs).await?;
    if !service.is_empty() {
        let services = Registry::builtin("", "v1", "services");
        let object = kubernetes(&service, advertised.port);
        // Its address may be another's, or of no ServiceCIDR that there still is: that can be mended while we serve.
        if let Err(refusal) = make(api, &services, Some("default"), object).await {
            tracing::warn!(
                %refusal,
                "cannot make the Service kubernetes, by which pods reach this server: free its address, or make a \
                 ServiceCIDR that has it, and start again"
            );
        }
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

/// The ServiceCIDR of `--service-cidr`. One that is there stays what it is, as in Kubernetes, but that it gets the range
/// of the second family when that is new.
async fn default_service_cidr(api: &Arc<Api>, ranges: &[IpNet]) -> Result<(), Refusal> {
    if ranges.is_empty() {
        return Ok(());
    }
    let resource = Registry::builtin("networking.k8s.io", "v1", "servicecidrs");
    let ranges: Vec<String> = ranges.iter().map(|range| range.trunc().to_string()).collect();
    let object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": DEFAULT}, "spec": {"cidrs": ranges},
    });
    make(api, &resource, None, object).await?;
    let target = Target::new(resource, None, DEFAULT);
    let mut stored = api.get(&target).await?.object.value().clone();
    let has = stored["spec"]["cidrs"].clone();
    if has == json!(ranges) {
        return Ok(());
    }
    if has == json!(ranges[..1]) {
        stored["spec"]["cidrs"] = json!(ranges);
        let options = WriteOptions::default();
        return api.replace(&target, Part::Whole, stored, options).await.map(drop);
    }
    let flag = ranges.join(",");
    tracing::warn!(
        "the ServiceCIDR {DEFAULT} has {has}, not the {flag} of --service-cidr, and stays what it is; make a ServiceCIDR \
         of another name with {flag}, or start with the former --service-cidr"
    );
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
            api.replace(&target, Part::Whole, object, WriteOptions::default())
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
