//! Pod sandboxes: one pause process per pod that holds the namespaces and is the parent of its containers.
//!
//! [`Sandbox`] is the client. The server is [`pause`]: a process of one thread, PID 1 of the pod's PID
//! namespace, so that its end is the end of every process of the pod. It outlives whoever started it;
//! [`Sandbox::attach`] finds it again.

mod client;
mod error;
pub mod pause;
mod spec;
pub(crate) mod wire;

pub use client::{Attached, Exec, Sandbox};
pub use error::SandboxError;
pub use spec::{Attachment, ContainerSpec, ContainerState, ExecSpec, Finished, Mount, SandboxSpec};
