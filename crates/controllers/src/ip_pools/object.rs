//! The kind.

use podnet_core::cluster::IpPool;

use crate::own_kind::own_kind;

own_kind!(IPPool, "ippools");

impl IPPool {
    /// What it says.
    pub(crate) fn parsed(&self) -> IpPool {
        IpPool::read(
            self.metadata.name.clone().unwrap_or_default(),
            self.created(),
            self.metadata.deletion_timestamp.is_some(),
            &self.spec,
            &self.status,
        )
    }
}
