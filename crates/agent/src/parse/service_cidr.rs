use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{ApiResource, DynamicObject};
use podnet_core::cluster::{ObjectRef, Parsed, ServiceCidr};

use super::invalid;

/// What the API calls ServiceCIDRs: from Kubernetes 1.33 on.
pub fn service_cidr_kind() -> ApiResource {
    ApiResource::erase::<ServiceCIDR>(&())
}

/// A ServiceCIDR. One that is being deleted still has its addresses: they go when it is gone.
pub fn service_cidr(object: &DynamicObject) -> Option<(String, Parsed<ServiceCidr>)> {
    let name = object.metadata.name.clone()?;
    let cidrs = object.data["spec"]["cidrs"].as_array().into_iter().flatten();
    let parsed = ServiceCidr::read(cidrs.map(|cidr| cidr.as_str().unwrap_or_default()));
    let parsed = parsed.or_else(|why| invalid(ObjectRef::service_cidr(&name), why));
    Some((name, parsed))
}
