//! What the runtime knows about a pod: the part that is on disk and the part that ends with the process.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use crate::runtime::cni::Attachment;

/// What outlives the runtime: written into the pod's directory on every change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID.
    pub uid: String,
    /// When the runtime first saw the pod.
    pub start_time: Option<Timestamp>,
    /// The attempt that the next sandbox gets.
    pub next_sandbox: u32,
    /// The sandbox, until it is torn down.
    pub sandbox: Option<Sandbox>,
    /// The addresses that the pod has or had.
    pub ips: Vec<IpAddr>,
    /// The containers that were started at least once.
    pub containers: BTreeMap<String, Container>,
    /// Why the runtime ended the pod, if it did.
    pub failed: Option<Failure>,
}

/// A sandbox that is there, or was and has to be torn down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sandbox {
    /// 0 for the first sandbox of the pod, then counted up.
    pub attempt: u32,
    /// The container ID that the network plugin knows it by.
    pub id: String,
    /// What the network plugins need to hear again when the sandbox goes.
    pub network: Option<Attachment>,
    /// Whether the pause process lives and the network is attached.
    pub ready: bool,
}

/// A container's runs: the newest, and the one before it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// The newest run.
    pub current: Option<Run>,
    /// The run before it.
    pub previous: Option<Run>,
    /// Its back-off.
    pub backoff: Option<Backoff>,
}

/// One run of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// 64 hexadecimal digits.
    pub id: String,
    /// 0 for the first run; the pod's restart count for this container.
    pub attempt: u32,
    /// The attempt of the sandbox it ran in.
    pub sandbox: u32,
    /// The image as the pod names it.
    pub image: String,
    /// The image's identity.
    pub image_id: String,
    /// When it started.
    pub started_at: Timestamp,
    /// Whether its startup probe passed and its postStart hook is done.
    pub started: bool,
    /// How it ended, when it did.
    pub finished: Option<Finished>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// The exit code; 128 + signal when a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When.
    pub at: Timestamp,
    /// `Completed`, `Error`, `StartError`.
    pub reason: String,
    /// What it left in its termination message file, or why it could not start.
    pub message: String,
}

/// Why the runtime ended a pod by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `DeadlineExceeded`.
    pub reason: String,
    /// The reason for people.
    pub message: String,
}

/// What ends with the runtime process and is found again by looking.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Why the container is not started.
    pub waiting: Option<Waiting>,
    /// Whether the readiness probe passes.
    pub ready: bool,
    /// A probe or hook that failed and asks for the end of the run.
    pub unhealthy: Option<Unhealthy>,
    /// How far the end of the run is.
    pub stopping: Option<Stopping>,
}

/// Why a container is not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Such as `ErrImageNeverPull`.
    pub reason: String,
    /// The reason for people.
    pub message: String,
    /// When to try again.
    pub retry_at: Timestamp,
}

/// A run that has to end although the pod goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unhealthy {
    /// The text of the event `Killing`.
    pub message: String,
    /// The probe's own grace period, in seconds.
    pub grace: Option<i64>,
}

/// How far the end of a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopping {
    /// The preStop hook runs, at the longest until `deadline`.
    Hook {
        /// When SIGTERM is sent even though the hook has not ended.
        deadline: Timestamp,
    },
    /// SIGTERM was sent; SIGKILL follows at `deadline`.
    Asked {
        /// When SIGKILL follows.
        deadline: Timestamp,
    },
    /// SIGKILL was sent.
    Killed,
}

/// All that the runtime knows about a pod.
#[derive(Debug, Clone, Default)]
pub struct PodState {
    /// The part that is on disk.
    pub record: Record,
    /// The part that is not, by container.
    pub live: BTreeMap<String, Live>,
    /// Whether the volumes are in place.
    pub volumes_ready: bool,
    /// When to try the volumes or the sandbox (its making or its end) again after a failure.
    pub retry_at: Option<Timestamp>,
    /// Whether a network configuration is there.
    pub network_ready: bool,
    /// Whether the API no longer has the pod.
    pub vanished: bool,
}

impl PodState {
    /// The newest run of a container.
    pub fn run(&self, name: &str) -> Option<&Run> {
        self.record.containers.get(name)?.current.as_ref()
    }

    /// The newest run if it has not ended.
    pub fn running(&self, name: &str) -> Option<&Run> {
        self.run(name).filter(|run| run.finished.is_none())
    }

    /// The newest run if it ended.
    pub fn ended(&self, name: &str) -> Option<(&Run, &Finished)> {
        let run = self.run(name)?;
        Some((run, run.finished.as_ref()?))
    }

    /// The part that is not on disk, of a container.
    pub fn live(&self, name: &str) -> Option<&Live> {
        self.live.get(name)
    }

    /// The attempt of the sandbox that is ready.
    pub fn ready_sandbox(&self) -> Option<u32> {
        self.record
            .sandbox
            .as_ref()
            .filter(|sandbox| sandbox.ready)
            .map(|sandbox| sandbox.attempt)
    }

    /// Whether one of `names` has a run in the sandbox of this attempt.
    pub fn ran_in<'a>(&self, attempt: u32, mut names: impl Iterator<Item = &'a str>) -> bool {
        names.any(|name| self.run(name).is_some_and(|run| run.sandbox == attempt))
    }
}
