//! What the plugin and the agent say to each other: one question and one answer over a unix socket, both JSON.
//! The pod's network namespace goes with the question as a descriptor, so that the agent needs to see neither
//! the runtime's /proc nor its mounts.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podnet_linux::fdpass;
use serde::{Deserialize, Serialize};

use crate::attachment::Attachment;
use crate::cni_args::PodReference;
use crate::error::CniError;
use crate::pod_settings::PodSettings;
use crate::result::AddResult;
use crate::runtime_config::RuntimeConfig;

/// How long the plugin waits for the agent: shorter than the two minutes that kubelet waits for the runtime, so
/// that the runtime hears the cause.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the agent is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "UPPERCASE", rename_all_fields = "camelCase")]
pub enum Verb {
    /// Lease addresses and wire the pod. Its network namespace comes with the question.
    Add {
        /// Which container and interface.
        attachment: Attachment,
        /// The namespace's path as the runtime knows it, for the result.
        netns: String,
        /// What the pod wishes.
        #[serde(default)]
        runtime_config: Box<RuntimeConfig>,
        /// What the network says of all its pods.
        #[serde(default)]
        pod_settings: Box<PodSettings>,
    },
    /// Take the link away and the addresses back.
    Del {
        /// Which container and interface.
        attachment: Attachment,
    },
    /// Say whether the attachment is as ADD left it, as far as the plugin cannot see that by itself.
    Check {
        /// Which container and interface.
        attachment: Attachment,
        /// What ADD answered.
        previous: Box<AddResult>,
        /// What the pod wishes.
        #[serde(default)]
        runtime_config: Box<RuntimeConfig>,
    },
    /// Say whether an ADD could succeed.
    Status,
    /// Free what belongs to none of these.
    Gc {
        /// The attachments that are alive.
        valid: Vec<Attachment>,
    },
}

/// A question to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRequest {
    /// What it is asked for.
    #[serde(flatten)]
    pub verb: Verb,
    /// The network's name.
    pub network: String,
    /// For which pod.
    #[serde(default)]
    pub pod: PodReference,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AgentReply {
    /// The pod is wired.
    Added(Box<AddResult>),
    /// Done; there is nothing to say.
    Done,
    /// It could not be done.
    Refused(CniError),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("nobody listens on {}: {source}", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The agent went away, or took too long.
    #[error("the agent gave no answer: {0}")]
    NoAnswer(io::Error),
    /// The answer does not hold together.
    #[error("the agent's answer makes no sense: {0}")]
    Nonsense(serde_json::Error),
}

/// Asks the agent.
pub fn ask(
    socket: &Path,
    request: &AgentRequest,
    netns: Option<BorrowedFd<'_>>,
) -> Result<AgentReply, AskError> {
    let stream = UnixStream::connect(socket).map_err(|source| AskError::NoAgent {
        path: socket.to_owned(),
        source,
    })?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .map_err(AskError::NoAnswer)?;
    stream
        .set_write_timeout(Some(PATIENCE))
        .map_err(AskError::NoAnswer)?;
    let bytes = serde_json::to_vec(request).map_err(AskError::Nonsense)?;
    fdpass::send(&stream, &bytes, netns.as_slice()).map_err(AskError::NoAnswer)?;
    let reply = fdpass::receive(&stream)
        .and_then(|message| message.ok_or_else(|| io::Error::other("it closed the connection")))
        .map_err(AskError::NoAnswer)?;
    serde_json::from_slice(&reply.bytes).map_err(AskError::Nonsense)
}
