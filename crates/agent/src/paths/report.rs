//! Tells the node's owner of paths that changed: as Events on the Node.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::api::Api;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use podnet_core::NodeName;
use podnet_core::path::{Notice, Report, notices};
use tokio::sync::watch;

/// What changes within such a time is told together.
const TOGETHER: Duration = Duration::from_secs(2);

/// Publishes an Event for what changes, until the sender goes.
pub async fn publish(client: kube::Client, me: NodeName, mut reports: watch::Receiver<Arc<Vec<Report>>>) {
    let reporter = Reporter {
        controller: "podnet-agent".into(),
        instance: Some(me.to_string()),
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let nodes: Api<Node> = Api::all(client);
    let mut told: Arc<Vec<Report>> = Arc::default();
    while reports.changed().await.is_ok() {
        if notices(&told, &reports.borrow()).is_empty() {
            continue;
        }
        tokio::time::sleep(TOGETHER).await;
        let now = reports.borrow_and_update().clone();
        for notice in notices(&told, &now) {
            if notice.warning {
                tracing::warn!(reason = notice.reason, "{}", notice.note);
            } else {
                tracing::info!(reason = notice.reason, "{}", notice.note);
            }
            // An Event is a courtesy: the log, the metrics and `podnet status` have it too.
            if let Err(error) = event(&nodes, &recorder, &me, &notice).await {
                tracing::debug!(%error, "no Event");
            }
        }
        told = now;
    }
}

async fn event(
    nodes: &Api<Node>,
    recorder: &Recorder,
    me: &NodeName,
    notice: &Notice,
) -> Result<(), kube::Error> {
    let uid = nodes.get_metadata(me.as_str()).await?.metadata.uid;
    let reference = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(me.to_string()),
        uid,
        ..ObjectReference::default()
    };
    let event = Event {
        type_: if notice.warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: notice.reason.into(),
        note: Some(notice.note.clone()),
        action: "Probe".into(),
        secondary: None,
    };
    recorder.publish(&event, &reference).await
}
