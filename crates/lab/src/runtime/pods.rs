//! The pods of the node: follows the API and gives each pod its task.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_pods};

use super::disk;
use super::host::Host;
use super::pod::spec;
use super::pod::state::Record;
use super::worker::{self, Handle, Message};

/// Follows the node's pods until the task is dropped. Pods are known by their UID: one that is deleted and made
/// again under the same name is another pod.
pub async fn follow(host: Arc<Host>) -> std::io::Result<()> {
    std::fs::create_dir_all(&host.pods)?;
    let left = disk::load_all(&host.pods)?;
    let mut pods = Pods {
        left: left
            .into_iter()
            .map(|record| (record.uid.clone(), record))
            .collect(),
        tasks: HashMap::new(),
        listed: HashSet::new(),
        host,
    };
    pods.host.objects.ready().await;
    let mut changes = pods.host.objects.changes();
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", pods.host.node));
    let stream = watch_pods(Api::<Pod>::all(pods.host.client.clone()), config).modify(|pod| {
        pod.managed_fields_mut().clear();
    });
    let mut stream = std::pin::pin!(stream.default_backoff());
    loop {
        tokio::select! {
            event = stream.next() => match event {
                Some(Ok(event)) => pods.hear(event),
                Some(Err(error)) => tracing::warn!(%error, "watching the node's pods; trying again"),
                None => return Ok(()),
            },
            changed = changes.recv() => match changed {
                Ok((namespace, _)) => pods.tell(|handle| handle.namespace == namespace, || Message::Objects),
                // Too many to remember: each pod looks for itself.
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => pods.tell(|_| true, || Message::Objects),
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(()),
            },
        }
    }
}

struct Pods {
    host: Arc<Host>,
    /// What an earlier runtime left and the API has not told of yet.
    left: HashMap<String, Record>,
    tasks: HashMap<String, Handle>,
    /// The UIDs of the list that is coming in.
    listed: HashSet<String>,
}

impl Pods {
    fn hear(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.insert(spec::uid(&pod).to_owned());
                self.apply(pod);
            }
            Event::InitDone => self.forget_unlisted(),
            Event::Apply(pod) => self.apply(pod),
            Event::Delete(pod) => {
                let uid = spec::uid(&pod).to_owned();
                self.vanish(&uid, Some(Box::new(pod)));
                self.forget_ended();
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        let uid = spec::uid(&pod).to_owned();
        if let Some(handle) = self.tasks.get(&uid) {
            let _ = handle.inbox.send(Message::Pod(Box::new(pod)));
            return;
        }
        let record = self.left.remove(&uid);
        // A pod that is over and of which nothing is left needs nothing.
        let over = matches!(
            pod.status.as_ref().and_then(|it| it.phase.as_deref()),
            Some("Succeeded" | "Failed")
        );
        if over && record.is_none() && !spec::deletion_requested(&pod) {
            return;
        }
        self.tasks
            .insert(uid, worker::start(Arc::clone(&self.host), pod, record));
    }

    /// The list is complete: what is not in it is gone.
    fn forget_unlisted(&mut self) {
        let unlisted: Vec<_> = self
            .tasks
            .keys()
            .filter(|uid| !self.listed.contains(*uid))
            .cloned()
            .collect();
        unlisted.iter().for_each(|uid| self.vanish(uid, None));
        self.forget_ended();
        for (uid, record) in self.left.drain() {
            self.tasks
                .insert(uid, worker::start_vanished(Arc::clone(&self.host), record));
        }
    }

    fn vanish(&mut self, uid: &str, pod: Option<Box<Pod>>) {
        if let Some(handle) = self.tasks.get_mut(uid) {
            handle.gone = true;
            // A task that is gone has nothing left to do.
            let _ = handle.inbox.send(Message::Vanished(pod));
        }
    }

    /// A pod whose task ended stays known while the API has it: finalizers may keep an object for long after.
    fn forget_ended(&mut self) {
        self.tasks
            .retain(|_, handle| !(handle.gone && handle.is_finished()));
    }

    fn tell(&self, whom: impl Fn(&Handle) -> bool, message: impl Fn() -> Message) {
        for handle in self.tasks.values().filter(|handle| whom(handle)) {
            let _ = handle.inbox.send(message());
        }
    }
}
