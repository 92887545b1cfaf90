//! What sandboxes and containers are made from, and what is told of them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::image::Image;

/// What a pod sandbox is made from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The private directory of this sandbox: socket, state, shared memory, termination messages. It is made
    /// (mode 0700) when missing and survives restarts of the runtime. The caller removes it after
    /// [`super::Sandbox::stop`].
    pub dir: PathBuf,
    /// Hostname of the pod's UTS namespace.
    pub hostname: String,
    /// Stay in the network and UTS namespace of the caller, which is the node's.
    pub host_network: bool,
    /// One PID namespace for all containers, with pause as its PID 1.
    pub share_process_namespace: bool,
    /// Namespaced sysctls such as `net.ipv4.ip_forward`, written when the namespaces are new.
    pub sysctls: Vec<(String, String)>,
}

/// What a container is made from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique; 64 hexadecimal digits.
    pub id: String,
    /// Name in the pod.
    pub name: String,
    /// How often this container was started before.
    pub attempt: u32,
    /// From [`crate::image::Store::resolve`].
    pub image: Image,
    /// Replaces the image's entrypoint and its command when not empty.
    pub command: Vec<String>,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Added to, and stronger than, the image's environment.
    pub env: Vec<(String, String)>,
    /// Replaces the image's working directory.
    pub working_dir: Option<String>,
    /// Volumes.
    pub mounts: Vec<Mount>,
    /// Path in the container and contents: `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname`.
    pub files: Vec<(String, String)>,
    /// Where stdout and stderr go, in the CRI log format. Its directory is made when missing.
    pub log_path: PathBuf,
    /// Give it a terminal, which is then stdin, stdout and stderr.
    pub tty: bool,
    /// Keep stdin open for [`super::Sandbox::attach_container`]; otherwise it is /dev/null.
    pub stdin: bool,
    /// Replaces the image's user.
    pub run_as_user: Option<u32>,
    /// Replaces the user's primary group.
    pub run_as_group: Option<u32>,
    /// Mount the root read-only (volumes keep their own setting).
    pub read_only_root: bool,
    /// Leave /proc/sys and its like writable, and /sys too.
    pub privileged: bool,
    /// Where the container may leave its last words, for [`Finished::message`].
    pub termination_message_path: Option<String>,
}

/// One volume in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// File or directory as the runtime sees it.
    pub source: PathBuf,
    /// Absolute path in the container; made when missing.
    pub target: String,
    /// Mount it read-only.
    pub read_only: bool,
}

/// A container that was started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerState {
    /// From [`ContainerSpec::id`].
    pub id: String,
    /// From [`ContainerSpec::name`].
    pub name: String,
    /// From [`ContainerSpec::attempt`].
    pub attempt: u32,
    /// Process ID as the runtime's /proc shows it, while it runs.
    pub pid: Option<u32>,
    /// When its program was executed.
    pub started_at: Timestamp,
    /// How it ended, once it has.
    pub finished: Option<Finished>,
}

impl ContainerState {
    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        self.finished.is_none()
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Exit code; 128 + signal when a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// When.
    pub at: Timestamp,
    /// What it left at its termination message path, at most 4096 bytes.
    pub message: String,
}

/// A process to run inside a running container, as its user, in its working directory.
#[derive(Debug, Default)]
pub struct ExecSpec {
    /// Program (looked up in the container's PATH) and arguments.
    pub command: Vec<String>,
    /// Added to, and stronger than, the container's environment.
    pub env: Vec<(String, String)>,
    /// None: /dev/null.
    pub stdin: Option<OwnedFd>,
    /// None: /dev/null.
    pub stdout: Option<OwnedFd>,
    /// None: /dev/null.
    pub stderr: Option<OwnedFd>,
    /// The descriptors are a terminal (the pty's slave side): it becomes the controlling terminal.
    pub tty: bool,
}

/// Where to copy a running container's output to while attached.
#[derive(Debug, Default)]
pub struct Attachment {
    /// Write end for stdout (a terminal's output is all of it stdout). Closed when the container ends.
    pub stdout: Option<OwnedFd>,
    /// Write end for stderr. Closed when the container ends.
    pub stderr: Option<OwnedFd>,
}
