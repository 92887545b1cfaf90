//! One task per pod: asks [`decide`], does what it says, reports, and waits for the next change.

mod containers;
mod mailbox;
mod network;
mod probes;
mod view;
mod volumes;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use super::disk;
use super::host::Host;
use super::pod::decide::{Action, Decision, decide};
use super::pod::spec;
use super::pod::state::{PodState, Record, Stopping};
use super::pod::status::pod_status;
use super::probe;
use super::report::{OWN_CONDITIONS, Reporter};
use crate::sandbox::Sandbox;

/// What a pod's task hears.
#[derive(Debug)]
pub enum Message {
    /// The object changed.
    Pod(Box<Pod>),
    /// The API no longer has the pod; the object as it was last seen.
    Vanished(Option<Box<Pod>>),
    /// Something in the sandbox of this attempt changed, or (`false`) its pause process is gone.
    Sandbox(u32, bool),
    /// A probe of a run came to a verdict.
    Probed {
        /// The container.
        container: String,
        /// The run's ID.
        run: String,
        /// Which probe.
        kind: probe::Kind,
        /// What it found.
        passes: bool,
    },
    /// A hook of a run ended.
    Hook {
        /// The container.
        container: String,
        /// The run's ID.
        run: String,
        /// preStop rather than postStart.
        stopping: bool,
        /// How it ended.
        outcome: Result<(), String>,
    },
    /// A ConfigMap or Secret that the pod may read changed.
    Objects,
}

/// How to reach a pod's task.
#[derive(Debug)]
pub struct Handle {
    /// What it hears.
    pub inbox: mailbox::Sender,
    /// The namespace of the pod.
    pub namespace: String,
    /// Whether the API no longer has the pod.
    pub gone: bool,
    task: JoinHandle<()>,
}

impl Handle {
    /// Whether the pod is gone and the task with it.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

/// A pod's task.
struct Worker {
    host: Arc<Host>,
    pod: Pod,
    state: PodState,
    dir: PathBuf,
    sandbox: Option<Sandbox>,
    /// Follows the sandbox; replaced with it.
    follower: Option<AbortHandle>,
    inbox: mailbox::Receiver,
    sender: mailbox::Sender,
    reporter: Option<Reporter>,
    /// The probes and hooks of each container's present run.
    tasks: HashMap<String, Vec<AbortHandle>>,
    /// Tells log readers of the end of a run.
    ends: HashMap<String, watch::Sender<bool>>,
    /// The record as it is on disk.
    saved: Record,
    /// Runs whose back-off was told.
    told_back_off: HashSet<String>,
    /// Failures in a row of the volumes or the sandbox.
    failures: u32,
    finished: bool,
    /// The pod was over before this runtime, and nothing is left of it: its status is not to be written anew.
    forgotten: bool,
}

/// Starts the task of a pod that the API has. `record` is what an earlier runtime left.
pub fn start(host: Arc<Host>, pod: Pod, record: Option<Record>) -> Handle {
    spawn(host, pod, record, false)
}

/// Starts the task that takes down a pod that the API no longer has.
pub fn start_vanished(host: Arc<Host>, record: Record) -> Handle {
    spawn(host, pod_of(&record), Some(record), true)
}

fn spawn(host: Arc<Host>, pod: Pod, record: Option<Record>, vanished: bool) -> Handle {
    let (sender, inbox) = mailbox::mailbox();
    let namespace = spec::namespace(&pod).to_owned();
    let phase = pod.status.as_ref().and_then(|it| it.phase.as_deref());
    let forgotten = record.is_none() && matches!(phase, Some("Succeeded" | "Failed"));
    let saved = record.clone().unwrap_or_default();
    let record = record.unwrap_or_else(|| Record {
        namespace: namespace.clone(),
        name: spec::name(&pod).to_owned(),
        uid: spec::uid(&pod).to_owned(),
        start_time: Some(Timestamp::now()),
        ..Record::default()
    });
    let worker = Worker {
        dir: host.pod_dir(&record.uid),
        state: PodState {
            record,
            vanished,
            ..PodState::default()
        },
        reporter: (!vanished).then(|| Reporter::start(&host.client, &pod)),
        host,
        pod,
        sandbox: None,
        follower: None,
        inbox,
        sender: sender.clone(),
        tasks: HashMap::new(),
        ends: HashMap::new(),
        saved,
        told_back_off: HashSet::new(),
        failures: 0,
        finished: false,
        forgotten,
    };
    Handle {
        inbox: sender,
        namespace,
        gone: vanished,
        task: tokio::spawn(worker.run()),
    }
}

/// What is left of a pod whose object is gone: enough to stop its containers.
fn pod_of(record: &Record) -> Pod {
    let containers: Vec<_> = record
        .containers
        .keys()
        .map(|name| serde_json::json!({"name": name}))
        .collect();
    let pod = serde_json::json!({
        "metadata": {"name": record.name, "namespace": record.namespace, "uid": record.uid},
        "spec": {"containers": containers},
    });
    serde_json::from_value(pod).unwrap_or_default()
}

impl Worker {
    async fn run(mut self) {
        self.adopt().await;
        let mut network = self.host.network_ready.clone();
        let mut images = self.host.images_changed.clone();
        images.mark_unchanged();
        while !self.finished {
            self.state.network_ready = network.borrow_and_update().is_ok();
            let now = Timestamp::now();
            let decision = decide(&self.pod, &self.state, now);
            self.tell_back_offs(&decision);
            self.report(now);
            if decision.actions.is_empty() {
                self.wait(decision.wake, &mut network, &mut images).await;
            }
            for action in decision.actions {
                self.perform(action).await;
                self.save();
                // What came meanwhile may have made the rest wrong, such as a deletion.
                if !self.inbox.is_empty() {
                    break;
                }
            }
            while let Some(message) = self.inbox.try_recv() {
                self.hear(message).await;
            }
            self.save();
        }
    }

    async fn wait(
        &mut self,
        wake: Option<Timestamp>,
        network: &mut watch::Receiver<Result<(), String>>,
        images: &mut watch::Receiver<u64>,
    ) {
        let pause = wake.map(|at| {
            let pause = at.duration_since(Timestamp::now()).max(SignedDuration::ZERO);
            // Rounded up, or the answer at the wake-up would be the same as now.
            pause.unsigned_abs() + std::time::Duration::from_millis(1)
        });
        tokio::select! {
            message = self.inbox.recv() => self.hear(message).await,
            Ok(()) = network.changed() => self.state.retry_at = None,
            Ok(()) = images.changed() => self.try_again(),
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
    }

    /// What was waited for may be there: containers that could not be made are tried at once.
    fn try_again(&mut self) {
        for waiting in self
            .state
            .live
            .values_mut()
            .filter_map(|live| live.waiting.as_mut())
        {
            waiting.retry_at = Timestamp::UNIX_EPOCH;
        }
    }

    async fn hear(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => self.take(*pod).await,
            Message::Vanished(pod) => {
                if let Some(pod) = pod {
                    self.pod = *pod;
                }
                self.state.vanished = true;
                self.state.retry_at = None;
                if let Some(reporter) = self.reporter.take() {
                    reporter.abandon();
                }
            }
            Message::Sandbox(attempt, alive) => self.sandbox_changed(attempt, alive).await,
            Message::Probed {
                container,
                run,
                kind,
                passes,
            } => self.probed(&container, &run, kind, passes),
            Message::Hook {
                container,
                run,
                stopping,
                outcome,
            } => {
                self.hook_ended(&container, &run, stopping, outcome).await;
            }
            Message::Objects => {
                self.try_again();
                if self.state.volumes_ready {
                    self.refresh_volumes().await;
                } else {
                    self.state.retry_at = None;
                }
            }
        }
    }

    async fn take(&mut self, pod: Pod) {
        let metadata = |pod: &Pod| (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        let relabelled = metadata(&pod) != metadata(&self.pod);
        if spec::deletion_requested(&pod) && !spec::deletion_requested(&self.pod) {
            self.state.retry_at = None;
        }
        let reported = self.pod.status.take();
        self.pod = pod;
        if let Some(reported) = reported.filter(|_| self.reporter.is_some()) {
            let newer = reconcile(reported, self.pod.status.take().unwrap_or_default());
            self.pod.status = Some(newer);
        }
        if relabelled && self.state.volumes_ready {
            self.refresh_volumes().await;
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::PrepareVolumes => self.prepare_volumes().await,
            Action::CreateSandbox { attempt } => self.create_sandbox(attempt).await,
            Action::StopSandbox => self.stop_sandbox().await,
            Action::Start { container, attempt } => self.start_container(&container, attempt).await,
            Action::Stop {
                container,
                grace,
                message,
            } => self.stop_container(&container, grace, message).await,
            Action::Terminate { container } => {
                let soon = Timestamp::now().checked_add(SignedDuration::from_secs(2));
                self.terminate(&container, soon.unwrap_or(Timestamp::MAX)).await;
            }
            Action::Kill { container } => {
                self.live(&container).stopping = Some(Stopping::Killed);
                self.signal(&container, 9).await;
            }
            Action::Fail(failure) => {
                self.host
                    .events
                    .normal(&self.pod, None, "DeadlineExceeded", failure.message.clone());
                self.state.record.failed = Some(failure);
            }
            Action::Finish => self.finish().await,
        }
    }

    /// The last report, the end of the object and of the directory. The directory goes last: a runtime that is
    /// started anew in between finds it and knows that the pod was its own.
    async fn finish(&mut self) {
        if let Some(reporter) = self.reporter.take() {
            reporter.finish(&self.host.client, &self.pod).await;
        }
        self.host.registry.remove(
            &self.state.record.namespace,
            &self.state.record.name,
            &self.state.record.uid,
        );
        let dir = self.dir.clone();
        let removed = tokio::task::spawn_blocking(move || super::volumes::remove_all(&dir)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(%error, dir = %self.dir.display(), "removing a pod's directory");
        }
        self.finished = true;
    }

    fn report(&mut self, now: Timestamp) {
        let status = pod_status(&self.pod, &self.state, &self.host.ips, now);
        self.publish(&status);
        if let Some(reporter) = self.reporter.as_ref().filter(|_| !self.forgotten) {
            // Later answers build on this one: times of transition, and a final phase that stays.
            self.pod.status = Some(status.clone());
            reporter.set(status);
        }
    }

    fn tell_back_offs(&mut self, decision: &Decision) {
        for name in &decision.backing_off {
            let Some(run) = self.state.run(name) else { continue };
            if self.told_back_off.insert(run.id.clone()) {
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    spec::name(&self.pod),
                    spec::namespace(&self.pod),
                    spec::uid(&self.pod)
                );
                self.host
                    .events
                    .warning(&self.pod, Some(name), "BackOff", message);
            }
        }
    }

    /// Writes the record when it changed; once there is one, not before anything was done for the pod.
    fn save(&mut self) {
        if self.finished || self.saved == self.state.record || !self.dir.exists() {
            return;
        }
        match disk::save(&self.dir, &self.state.record) {
            Ok(()) => self.saved = self.state.record.clone(),
            Err(error) => tracing::error!(%error, dir = %self.dir.display(), "writing a pod's record"),
        }
    }

    fn live(&mut self, container: &str) -> &mut super::pod::state::Live {
        self.state.live.entry(container.to_owned()).or_default()
    }

    /// The moment of the next attempt after a failure: half a second, doubled up to ten.
    fn retry_later(&mut self) {
        self.failures = (self.failures + 1).min(6);
        let pause = SignedDuration::from_millis(250_i64 << self.failures).min(SignedDuration::from_secs(10));
        self.state.retry_at = Timestamp::now().checked_add(pause).ok();
    }

    fn retry_no_more(&mut self) {
        self.failures = 0;
        self.state.retry_at = None;
    }

    /// Ends the probes and hooks of a container.
    fn abort_tasks(&mut self, container: &str) {
        self.tasks
            .remove(container)
            .into_iter()
            .flatten()
            .for_each(|task| task.abort());
    }
}

/// What the runtime reported, with what others wrote meanwhile: their conditions, and an end of the pod.
fn reconcile(mut reported: PodStatus, seen: PodStatus) -> PodStatus {
    let own = |it: &PodCondition| OWN_CONDITIONS.contains(&it.type_.as_str());
    let conditions = reported.conditions.get_or_insert_default();
    conditions.retain(own);
    conditions.extend(seen.conditions.into_iter().flatten().filter(|it| !own(it)));
    if matches!(seen.phase.as_deref(), Some("Succeeded" | "Failed")) {
        reported.phase = seen.phase;
        reported.reason = seen.reason.or(reported.reason);
        reported.message = seen.message.or(reported.message);
    }
    reported
}

impl Drop for Worker {
    fn drop(&mut self) {
        let tasks: BTreeMap<_, _> = self.tasks.drain().collect();
        tasks.into_values().flatten().for_each(|task| task.abort());
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
    }
}
