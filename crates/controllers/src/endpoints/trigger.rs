//! When that happened which a slice is written for: whoever carries services measures by it how long it took.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::desired;
use super::packing::Packed;
use crate::pod;
use crate::world::World;

/// The annotation, as kube-proxy reads it.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Writes it on slices that are made, and on those whose endpoints or ports change: the last time at which a pod of the
/// service became ready or ceased to be, or the service was made. A change that has no such time, as when a pod is
/// deleted, takes away what an earlier one had.
pub(super) fn stamp(world: &World, service: &Service, packed: &mut Packed<'_>) {
    let pods = desired::pods(world, service).filter_map(pod::ready_changed);
    let made = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let last = pods.chain(made).max();
    for slice in &mut packed.create {
        write(slice, last);
    }
    for (old, new) in &mut packed.update {
        if old.endpoints != new.endpoints || old.ports != new.ports {
            let told = read(old);
            write(new, last.filter(|last| told.is_none_or(|told| *last > told)));
        }
    }
}

fn read(slice: &EndpointSlice) -> Option<Timestamp> {
    slice.metadata.annotations.as_ref()?.get(TRIGGER)?.parse().ok()
}

fn write(slice: &mut EndpointSlice, time: Option<Timestamp>) {
    let mut annotations = slice.metadata.annotations.take().unwrap_or_default();
    match time {
        Some(time) => _ = annotations.insert(TRIGGER.into(), time.to_string()),
        None => _ = annotations.remove(TRIGGER),
    }
    slice.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
}
