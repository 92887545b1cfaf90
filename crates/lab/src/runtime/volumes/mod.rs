//! A pod's volumes: what stands in them, and putting it there.

pub mod atomic;
mod payload;
mod place;

use k8s_openapi::api::core::v1::{Pod, Volume};

pub use payload::{Entry, Payload, payload};
pub use place::{Places, remove_all};
use podnet_core::quantity::Quantity;

use crate::runtime::pod::spec;

/// What kind of volume one is, for the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory of the pod's own, on a tmpfs if a size in bytes is given (0: no limit).
    EmptyDir {
        /// The medium is memory.
        memory: Option<u64>,
    },
    /// Files made from objects; read-only in containers, and kept up to date.
    Files,
    /// A path of the node.
    HostPath {
        /// As the pod names it.
        path: String,
        /// `Directory`, `FileOrCreate`, ...; empty for no check.
        check: String,
    },
}

/// Why a volume cannot be there now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {problem}")]
pub struct VolumeError {
    /// The volume's name.
    pub volume: String,
    /// What is missing or wrong.
    pub problem: String,
}

impl VolumeError {
    /// The error for a volume.
    pub fn new(volume: &str, problem: impl Into<String>) -> Self {
        VolumeError {
            volume: volume.to_owned(),
            problem: problem.into(),
        }
    }
}

/// The kind of a volume; an error for what the lab has not got.
pub fn kind(volume: &Volume) -> Result<Kind, VolumeError> {
    if let Some(empty) = &volume.empty_dir {
        let limit = empty.size_limit.as_ref().and_then(|it| it.0.parse().ok());
        let bytes = limit
            .and_then(|limit: Quantity| u64::try_from(limit.whole()).ok())
            .unwrap_or(0);
        let memory = (empty.medium.as_deref() == Some("Memory")).then_some(bytes);
        return Ok(Kind::EmptyDir { memory });
    }
    if let Some(host) = &volume.host_path {
        let check = host.type_.clone().unwrap_or_default();
        return Ok(Kind::HostPath {
            path: host.path.clone(),
            check,
        });
    }
    let files = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some();
    if files {
        return Ok(Kind::Files);
    }
    Err(VolumeError::new(
        &volume.name,
        "the lab has emptyDir, configMap, secret, downwardAPI, projected and hostPath volumes only",
    ))
}

/// The names of the ConfigMaps and Secrets that the pod's volumes read.
pub fn references(pod: &Pod) -> (Vec<&str>, Vec<&str>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for volume in spec::volumes(pod) {
        config_maps.extend(volume.config_map.iter().map(|it| it.name.as_str()));
        secrets.extend(volume.secret.iter().filter_map(|it| it.secret_name.as_deref()));
        let sources = volume.projected.iter().flat_map(|it| it.sources.iter().flatten());
        for source in sources {
            config_maps.extend(source.config_map.iter().map(|it| it.name.as_str()));
            secrets.extend(source.secret.iter().map(|it| it.name.as_str()));
        }
    }
    (config_maps, secrets)
}
