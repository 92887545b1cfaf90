//! Why something in a sandbox could not be done.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Why something in a sandbox could not be done.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The pause process could not be executed.
    #[error("cannot start the pause process {}: {source}", program.display())]
    Spawn {
        /// The executable tried.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pause process ended before it was ready.
    #[error("failed to create pod sandbox: {0}")]
    NotReady(String),
    /// No pause process answers: it was killed, or never was.
    #[error("the pod sandbox in {} is gone", dir.display())]
    Gone {
        /// The sandbox's directory.
        dir: PathBuf,
    },
    /// A container or an exec could not be started; kubelet shows this text as it is.
    #[error("unable to start container process: {0}")]
    Start(String),
    /// No container with this ID was started in this sandbox.
    #[error("container {0} not found in its pod sandbox")]
    NoContainer(String),
    /// The container has ended.
    #[error("container {0} is not running")]
    NotRunning(String),
    /// Pause refused, for the reason given.
    #[error("{0}")]
    Refused(String),
    /// Talking to pause failed.
    #[error("cannot talk to the pause process of {}: {source}", dir.display())]
    Io {
        /// The sandbox's directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A refusal as it goes over the socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    Start(String),
    NoContainer(String),
    NotRunning(String),
    Other(String),
}

impl From<Refusal> for SandboxError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Start(why) => SandboxError::Start(why),
            Refusal::NoContainer(id) => SandboxError::NoContainer(id),
            Refusal::NotRunning(id) => SandboxError::NotRunning(id),
            Refusal::Other(why) => SandboxError::Refused(why),
        }
    }
}
