//! What controllers ask of a pod.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The phase; empty before the first status.
pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or_default()
}

/// Whether all its containers have ended for good.
pub fn ended(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether its deletion was asked for.
pub fn terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether it counts as a replica.
pub fn active(pod: &Pod) -> bool {
    !ended(pod) && !terminating(pod)
}

/// The node it is bound to.
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

/// The condition of that type.
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == type_)
}

/// Since when it is ready; none if it is not. A condition without a time is ready since ever.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    Some(
        ready
            .last_transition_time
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    )
}

/// When it became ready, or ceased to be, where that is told.
pub fn ready_changed(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready")?
        .last_transition_time
        .as_ref()
        .map(|time| time.0)
}

/// Whether it is ready.
pub fn ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// When a ready pod has been so for `seconds`.
pub fn available_from(pod: &Pod, seconds: i32) -> Option<Timestamp> {
    Some(
        ready_since(pod)?
            .saturating_add(SignedDuration::from_secs(seconds.into()))
            .unwrap_or(Timestamp::MAX),
    )
}

/// The reference to the controller of an object.
pub fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

/// How often its containers were restarted.
pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|s| s.restart_count).sum()
}

/// Its addresses; the first is the one it is known by.
pub fn addresses(pod: &Pod) -> Vec<&str> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let listed: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    match (&status.pod_ip, listed.is_empty()) {
        (Some(ip), true) if !ip.is_empty() => vec![ip],
        _ => listed,
    }
}
