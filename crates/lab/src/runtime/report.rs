//! Writing a pod's status: the difference only, the newest only, and again until the API takes it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::pod::spec;

/// The conditions that the runtime answers for. Those of others are not its to write.
pub const OWN_CONDITIONS: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];
/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(5);

/// Writes one pod's status from a task of its own, so that an API server that is away holds up nothing.
#[derive(Debug)]
pub struct Reporter {
    wanted: watch::Sender<Option<PodStatus>>,
    task: tokio::task::JoinHandle<()>,
}

impl Reporter {
    /// A reporter for `pod`, whose status the API has as it is in the object.
    pub fn start(client: &kube::Client, pod: &Pod) -> Reporter {
        let (wanted, receiver) = watch::channel(None);
        let written = pod.status.clone().unwrap_or_default();
        let task = tokio::spawn(follow(Object::of(client, pod), written, receiver));
        Reporter { wanted, task }
    }

    /// The status is to be this.
    pub fn set(&self, status: PodStatus) {
        self.wanted.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&status);
            *known = Some(status);
            changed
        });
    }

    /// Waits until the status is written, then lets the object go, with the pod's UID as the condition.
    pub async fn finish(self, client: &kube::Client, pod: &Pod) {
        drop(self.wanted);
        // A task that was aborted wrote what it could.
        let _ = self.task.await;
        let object = Object::of(client, pod);
        let mut pause = Duration::from_millis(100);
        while let Err(error) = object.delete().await {
            tracing::warn!(%error, pod = object.name, "deleting the pod's object; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Gives up: the API has no such pod any more.
    pub fn abandon(self) {
        self.task.abort();
    }
}

struct Object {
    api: Api<Pod>,
    name: String,
    uid: String,
}

impl Object {
    fn of(client: &kube::Client, pod: &Pod) -> Object {
        Object {
            api: Api::namespaced(client.clone(), spec::namespace(pod)),
            name: spec::name(pod).to_owned(),
            uid: spec::uid(pod).to_owned(),
        }
    }

    async fn delete(&self) -> kube::Result<()> {
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self.api.delete(&self.name, &params).await {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether the object is still the pod's.
    async fn write(&self, old: &PodStatus, new: &PodStatus) -> kube::Result<bool> {
        let Some(status) = difference(old, new) else {
            return Ok(true);
        };
        let patch = Patch::Strategic(json!({"metadata": {"uid": self.uid}, "status": status}));
        match self
            .api
            .patch_status(&self.name, &PatchParams::default(), &patch)
            .await
        {
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            other => other.map(|_| true),
        }
    }
}

async fn follow(object: Object, mut written: PodStatus, mut wanted: watch::Receiver<Option<PodStatus>>) {
    let mut pause = Duration::from_millis(100);
    // The last value counts even when the sender is gone, so it is looked at before the end is.
    loop {
        let ended = wanted.changed().await.is_err();
        let Some(status) = wanted.borrow_and_update().clone() else {
            if ended { return } else { continue }
        };
        match object.write(&written, &status).await {
            Ok(true) => {
                written = status;
                pause = Duration::from_millis(100);
            }
            Ok(false) => return,
            Err(kube::Error::Api(refusal)) if (400..500).contains(&refusal.code) && refusal.code != 429 => {
                tracing::error!(pod = object.name, %refusal, "the API server refuses the pod's status");
                written = status;
            }
            Err(error) => {
                tracing::debug!(pod = object.name, %error, "writing the status; trying again");
                wanted.mark_changed();
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST);
                continue;
            }
        }
        if ended {
            return;
        }
    }
}

/// The strategic merge patch from one status to another; `None` when there is nothing to change.
fn difference(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (old, new) = (fields(old), fields(new));
    let mut patch = Map::new();
    for (key, value) in &new {
        if old.get(key) != Some(value) {
            patch.insert(key.clone(), list_patch(key, old.get(key), value));
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The lists of addresses are merged by address, so the old ones would stay; conditions are merged by type, so
/// a reason that is no longer given would stay.
fn list_patch(key: &str, old: Option<&Value>, new: &Value) -> Value {
    match (key, old, new) {
        ("podIPs" | "hostIPs", Some(Value::Array(old)), Value::Array(new)) if !old.is_empty() => {
            let mut list = vec![json!({"$patch": "replace"})];
            list.extend(new.iter().cloned());
            Value::Array(list)
        }
        ("conditions", Some(Value::Array(old)), Value::Array(new)) => new
            .iter()
            .map(|condition| without_leftovers(old, condition))
            .collect(),
        _ => new.clone(),
    }
}

/// A condition with a null for each field that only the one before it has.
fn without_leftovers(old: &[Value], condition: &Value) -> Value {
    let before = old.iter().find(|before| before["type"] == condition["type"]);
    let mut patch = condition.clone();
    if let (Some(Value::Object(before)), Some(fields)) = (before, patch.as_object_mut()) {
        for key in before.keys() {
            fields.entry(key.clone()).or_insert(Value::Null);
        }
    }
    patch
}

fn fields(status: &PodStatus) -> Map<String, Value> {
    let Ok(Value::Object(mut fields)) = serde_json::to_value(status) else {
        return Map::new();
    };
    if let Some(Value::Array(conditions)) = fields.get_mut("conditions") {
        conditions.retain(|it| {
            it.get("type")
                .and_then(Value::as_str)
                .is_some_and(|it| OWN_CONDITIONS.contains(&it))
        });
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: Value) -> PodStatus {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_what_differs_is_written() {
        let old = status(json!({"phase": "Pending", "hostIP": "1.1.1.1", "message": "x",
            "conditions": [{"type": "Ready", "status": "False"}, {"type": "mine", "status": "True"}]}));
        let mut new = old.clone();
        assert_eq!(difference(&old, &new), None);
        new.phase = Some("Running".into());
        new.message = None;
        assert_eq!(
            difference(&old, &new),
            Some(json!({"phase": "Running", "message": null}))
        );
    }

    #[test]
    fn conditions_of_others_are_left_alone() {
        let old = status(json!({"conditions": [{"type": "Ready", "status": "False"}]}));
        let new = status(
            json!({"conditions": [{"type": "Ready", "status": "True"}, {"type": "mine", "status": "True"}]}),
        );
        assert_eq!(
            difference(&old, &new),
            Some(json!({"conditions": [{"type": "Ready", "status": "True"}]}))
        );
    }

    #[test]
    fn a_condition_that_is_met_keeps_no_reason() {
        let old = status(
            json!({"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]}),
        );
        let new = status(json!({"conditions": [{"type": "Ready", "status": "True"}]}));
        assert_eq!(
            difference(&old, &new),
            Some(json!({"conditions": [{"type": "Ready", "status": "True", "reason": null}]}))
        );
    }

    #[test]
    fn addresses_are_replaced() {
        let none = status(json!({}));
        let one = status(json!({"podIPs": [{"ip": "1.1.1.1"}]}));
        let other = status(json!({"podIPs": [{"ip": "2.2.2.2"}]}));
        assert_eq!(
            difference(&none, &one),
            Some(json!({"podIPs": [{"ip": "1.1.1.1"}]}))
        );
        assert_eq!(
            difference(&one, &other),
            Some(json!({"podIPs": [{"$patch": "replace"}, {"ip": "2.2.2.2"}]}))
        );
    }
}
