//! Putting a pod's volumes in place, and keeping them up to date.

use super::Worker;
use crate::runtime::pod::spec;
use crate::runtime::volumes::{self, Kind, Payload, VolumeError};

impl Worker {
    pub(super) async fn prepare_volumes(&mut self) {
        let host = std::sync::Arc::clone(&self.host);
        let _slot = host.slots.acquire().await;
        match self.put_volumes(true).await {
            Ok(()) => {
                self.state.volumes_ready = true;
                self.retry_no_more();
            }
            Err(error) => {
                self.host
                    .events
                    .warning(&self.pod, None, "FailedMount", error.to_string());
                self.retry_later();
            }
        }
    }

    /// Brings files made from objects up to date. What is missing now keeps its old files, as with kubelet.
    pub(super) async fn refresh_volumes(&mut self) {
        if let Err(error) = self.put_volumes(false).await {
            self.host
                .events
                .warning(&self.pod, None, "FailedMount", error.to_string());
        }
    }

    async fn put_volumes(&mut self, all: bool) -> Result<(), VolumeError> {
        let volumes = spec::volumes(&self.pod);
        let mut kinds = Vec::new();
        for volume in volumes {
            kinds.push((volume, volumes::kind(volume)?));
        }
        let references = volumes::references(&self.pod);
        let objects = self
            .host
            .objects
            .fetch(spec::namespace(&self.pod), references)
            .await;
        let facts = self.host.facts(&self.state.record.ips);
        let mut work: Vec<(String, Kind, Option<Payload>)> = Vec::new();
        for (volume, kind) in kinds {
            let payload = match kind {
                Kind::Files => Some(volumes::payload(&self.pod, volume, &objects, facts)?),
                _ => None,
            };
            if all || payload.is_some() {
                work.push((volume.name.clone(), kind, payload));
            }
        }
        let places = self.host.places(&self.state.record.uid);
        let dir = self.dir.clone();
        let put = move || {
            std::fs::create_dir_all(&dir).map_err(|error| VolumeError::new("", error.to_string()))?;
            work.iter()
                .try_for_each(|(name, kind, payload)| places.put(name, kind, payload.as_ref()))
        };
        match tokio::task::spawn_blocking(put).await {
            Ok(outcome) => outcome,
            Err(panic) => Err(VolumeError::new("", panic.to_string())),
        }
    }
}
