//! From Kubernetes' types to the model's, once, at the edge.
//!
//! What does not parse becomes an [`Invalid`] with the reason. Nothing is defaulted that the API server has not defaulted
//! already, but for what its API says that readers must assume.

mod cluster_network_policy;
mod network_policy;
mod node;
mod pod;
mod pool;
mod service;
mod service_cidr;
mod slice;

use std::num::NonZeroU16;

use podnet_core::cluster::{Invalid, ObjectName, ObjectRef, Parsed, Protocol};

pub use cluster_network_policy::{
    ClusterNetworkPolicyObject, cluster_network_policy, cluster_network_policy_kind,
    cluster_network_policy_object,
};
pub use network_policy::network_policy;
pub use node::node;
pub use pod::{namespace, pod};
pub use pool::{load_balancer_pool, namespace_metadata, own_kind, pool};
pub use service::service;
pub use service_cidr::{service_cidr, service_cidr_kind};
pub use slice::{slice, trigger};

/// The key of a namespaced object.
pub(crate) fn object_name(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> ObjectName {
    let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
    ObjectName::new(or_empty(&metadata.namespace), or_empty(&metadata.name))
}

fn invalid<T>(object: ObjectRef, why: impl std::fmt::Display) -> Parsed<T> {
    Err(Invalid {
        object,
        why: why.to_string(),
    })
}

fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    text.unwrap_or("TCP").parse().map_err(|error| format!("{error}"))
}

fn port(number: i32) -> Result<NonZeroU16, String> {
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    port.ok_or_else(|| format!("{number} is no port: ports are from 1 to 65535"))
}

#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod tests;
