//! Events about pods, counted rather than repeated.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

use super::pod::spec;
use super::pod::status::whole_seconds;

/// How many events may wait for the API server; what comes on top is dropped: events are best effort.
const QUEUE: usize = 1000;
/// How many different events are remembered for counting.
const REMEMBERED: usize = 4096;
/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something to tell about a pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Told {
    namespace: String,
    name: String,
    uid: String,
    field_path: Option<String>,
    warning: bool,
    reason: &'static str,
    message: String,
}

/// Where events are told. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Told>,
}

impl Events {
    /// Starts writing events as the kubelet of `node`.
    pub fn start(client: kube::Client, node: &str) -> Events {
        let (queue, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(client, node.to_owned(), receiver));
        Events { queue }
    }

    /// Something usual.
    pub fn normal(&self, pod: &Pod, container: Option<&str>, reason: &'static str, message: String) {
        self.tell(pod, container, false, reason, message);
    }

    /// Something that someone should look at.
    pub fn warning(&self, pod: &Pod, container: Option<&str>, reason: &'static str, message: String) {
        self.tell(pod, container, true, reason, message);
    }

    fn tell(&self, pod: &Pod, container: Option<&str>, warning: bool, reason: &'static str, message: String) {
        tracing::debug!(pod = spec::name(pod), reason, message);
        let told = Told {
            namespace: spec::namespace(pod).to_owned(),
            name: spec::name(pod).to_owned(),
            uid: spec::uid(pod).to_owned(),
            field_path: container.map(|name| field_path(pod, name)),
            warning,
            reason,
            message,
        };
        // Full: see QUEUE. Closed: the runtime ends.
        let _ = self.queue.try_send(told);
    }
}

fn field_path(pod: &Pod, container: &str) -> String {
    let list = match spec::member(pod, container).map(|member| member.role) {
        Some(spec::Role::App) | None => "containers",
        Some(_) => "initContainers",
    };
    format!("spec.{list}{{{container}}}")
}

struct Written {
    object: String,
    count: i32,
}

async fn write_all(client: kube::Client, node: String, mut queue: mpsc::Receiver<Told>) {
    let mut written: HashMap<Told, Written> = HashMap::new();
    while let Some(told) = queue.recv().await {
        if written.len() >= REMEMBERED {
            written.clear();
        }
        let api: Api<Event> = Api::namespaced(client.clone(), &told.namespace);
        let outcome = tokio::time::timeout(PATIENCE, write(&api, &node, &told, written.get_mut(&told))).await;
        match outcome {
            Ok(Ok(Some(object))) => {
                written.insert(told, Written { object, count: 1 });
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!(%error, reason = told.reason, "an event was not written"),
            Err(_) => tracing::debug!(reason = told.reason, "an event was not written in time"),
        }
    }
}

/// Counts up the event that was written before, or writes a new one and returns its name.
async fn write(
    api: &Api<Event>,
    node: &str,
    told: &Told,
    before: Option<&mut Written>,
) -> kube::Result<Option<String>> {
    let now = Timestamp::now();
    if let Some(before) = before {
        let count = before.count + 1;
        let patch = Patch::Merge(json!({"count": count, "lastTimestamp": Time(whole_seconds(now))}));
        match api.patch(&before.object, &PatchParams::default(), &patch).await {
            Ok(_) => {
                before.count = count;
                return Ok(None);
            }
            // It expired.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let event = event(node, told, now);
    api.create(&PostParams::default(), &event).await?;
    Ok(event.metadata.name)
}

fn event(node: &str, told: &Told, now: Timestamp) -> Event {
    let time = Some(Time(whole_seconds(now)));
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", told.name, now.as_nanosecond())),
            namespace: Some(told.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(told.name.clone()),
            namespace: Some(told.namespace.clone()),
            uid: Some(told.uid.clone()),
            field_path: told.field_path.clone(),
            ..ObjectReference::default()
        },
        reason: Some(told.reason.into()),
        message: Some(told.message.clone()),
        type_: Some(if told.warning { "Warning" } else { "Normal" }.into()),
        count: Some(1),
        first_timestamp: time.clone(),
        last_timestamp: time,
        source: Some(EventSource {
            component: Some("kubelet".into()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::testing::pod;

    #[test]
    fn events_point_into_the_specification() {
        let pod = pod(r#"{"initContainers":[{"name":"i"}],"containers":[{"name":"a"}]}"#);
        assert_eq!(field_path(&pod, "a"), "spec.containers{a}");
        assert_eq!(field_path(&pod, "i"), "spec.initContainers{i}");
    }
}
