//! The kind.

use crate::own_kind::own_kind;

own_kind!(LoadBalancerPool, "loadbalancerpools");

impl LoadBalancerPool {
    /// What it says.
    pub(super) fn parsed(&self) -> podnet_core::cluster::LoadBalancerPool {
        let name = self.metadata.name.clone().unwrap_or_default();
        podnet_core::cluster::LoadBalancerPool::read(name, self.created(), &self.spec)
    }
}
