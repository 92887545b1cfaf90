//! What all pods of a node share.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use super::cni::Network;
use super::containers::Registry;
use super::events::Events;
use super::objects::Objects;
use super::pod::fields::Facts;
use super::pod::files::ClusterDns;
use super::volumes::Places;
use crate::image::Store;

/// How many pods are being set up at a time. More would only wait for the same CPUs, and what is started first
/// is then ready first.
const SLOTS: usize = 12;

/// A node as its pods need it.
pub struct Host {
    /// The node's name.
    pub node: String,
    /// Its addresses, the primary family first.
    pub ips: Vec<IpAddr>,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Bytes of memory of the machine.
    pub memory: u64,
    /// The API.
    pub client: kube::Client,
    /// Where events go.
    pub events: Events,
    /// ConfigMaps, Secrets and Services.
    pub objects: Objects,
    /// How pods are attached.
    pub network: Network,
    /// Whether a network configuration is there; the error says what is missing.
    pub network_ready: watch::Receiver<Result<(), String>>,
    /// Images.
    pub images: Store,
    /// Counts the changes in the store of images.
    pub images_changed: watch::Receiver<u64>,
    /// The cluster's names.
    pub dns: ClusterDns,
    /// The directory of the node's pods.
    pub pods: PathBuf,
    /// The directory that holds the node's own directories.
    pub node_fs: PathBuf,
    /// Room for pods to be set up at the same time.
    pub slots: Semaphore,
    /// What the kubelet API looks containers up in.
    pub registry: Arc<Registry>,
}

impl Host {
    /// Room for `SLOTS` pods at a time.
    pub fn slots() -> Semaphore {
        Semaphore::new(SLOTS)
    }

    /// The downward API's facts for a pod with these addresses.
    pub fn facts<'a>(&'a self, pod_ips: &'a [IpAddr]) -> Facts<'a> {
        Facts {
            pod_ips,
            node_ips: &self.ips,
            cpus: self.cpus,
            memory: self.memory,
        }
    }

    /// A pod's own directory.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods.join(uid)
    }

    /// Where a pod's volumes are.
    pub fn places(&self, uid: &str) -> Places {
        Places {
            volumes: self.pod_dir(uid).join("volumes"),
            node_fs: self.node_fs.clone(),
        }
    }
}
