//! The kind.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, Metadata, Resource};
use podnet_core::cluster::IpPool;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An `IPPool`. What it says is read by [`IpPool`], since what is wrong in one part must not hide the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IPPool {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What its owner wants.
    #[serde(default)]
    pub spec: Value,
    /// Who holds what.
    #[serde(default)]
    pub status: Value,
}

impl Resource for IPPool {
    const API_VERSION: &'static str = "podnet.io/v1alpha1";
    const GROUP: &'static str = "podnet.io";
    const KIND: &'static str = "IPPool";
    const VERSION: &'static str = "v1alpha1";
    const URL_PATH_SEGMENT: &'static str = "ippools";
    type Scope = ClusterResourceScope;
}

impl Metadata for IPPool {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl IPPool {
    /// What it says.
    pub(super) fn parsed(&self) -> IpPool {
        let created = self.metadata.creation_timestamp.as_ref();
        IpPool::read(
            self.metadata.name.clone().unwrap_or_default(),
            created.map_or(i64::MAX, |time| time.0.as_second()),
            self.metadata.deletion_timestamp.is_some(),
            &self.spec,
            &self.status,
        )
    }
}
