//! What Kubernetes fills in where a field was left out. Every function here is idempotent.

mod cluster;
mod network;
mod pod;
mod workload;

pub(super) use cluster::{crd, namespace, node, secret};
pub(super) use network::{endpoint_slice, endpoints, network_policy, service};
pub(super) use pod::pod;
pub(super) use workload::{deployment, replica_set};

#[cfg(test)]
mod tests;
