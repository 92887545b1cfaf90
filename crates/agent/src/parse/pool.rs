use k8s_openapi::api::core::v1 as api;
use kube::api::{ApiResource, DynamicObject, PartialObjectMeta};
use podnet_core::cluster::{IpPool, LoadBalancerPool, Namespace, Parsed};

/// What the API calls one of podnet's own kinds. It is there only where somebody has installed it.
pub fn own_kind(kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: "podnet.io".into(),
        version: "v1alpha1".into(),
        api_version: "podnet.io/v1alpha1".into(),
        kind: kind.into(),
        plural: plural.into(),
    }
}

/// An IPPool. What is wrong in it is told with it, since what nodes hold of it stays theirs.
pub fn pool(object: &DynamicObject) -> Option<(String, Parsed<IpPool>)> {
    let metadata = &object.metadata;
    let name = metadata.name.clone()?;
    let created = metadata.creation_timestamp.as_ref();
    let created = created.map_or(i64::MAX, |time| time.0.as_second());
    let deleting = metadata.deletion_timestamp.is_some();
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let pool = IpPool::read(name.clone(), created, deleting, spec, status);
    Some((name, Ok(pool)))
}

/// A pool of load balancers' addresses.
pub fn load_balancer_pool(object: &DynamicObject) -> Option<(String, Parsed<LoadBalancerPool>)> {
    let metadata = &object.metadata;
    let name = metadata.name.clone()?;
    let created = metadata.creation_timestamp.as_ref();
    let created = created.map_or(i64::MAX, |time| time.0.as_second());
    let pool = LoadBalancerPool::read(name.clone(), created, &object.data["spec"]);
    Some((name, Ok(pool)))
}

/// A namespace of which only the metadata was asked for.
pub fn namespace_metadata(object: &PartialObjectMeta<api::Namespace>) -> Option<(String, Parsed<Namespace>)> {
    let name = object.metadata.name.clone()?;
    let labels = object.metadata.labels.clone().unwrap_or_default();
    let namespace = Namespace::new(&name, labels);
    Some((name, Ok(namespace)))
}
