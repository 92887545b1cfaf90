//! Why there is no lease.

use std::fmt;
use std::io;
use std::path::PathBuf;

use podnet_cni::{Attachment, PodReference};
use podnet_core::ipam::Refused;

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody has it.
    #[error("{0} has a lease already: it was added before and not deleted since")]
    Held(Attachment),
    /// What was asked for before has not ended.
    #[error("the ADD or DEL of {0} that came before is still at work")]
    Busy(Attachment),
    /// The node has nothing to give.
    #[error("{refused}{}", Who(.holder))]
    Refused {
        /// Why.
        refused: Box<Refused>,
        /// Who is in the way.
        holder: Option<Box<Holder>>,
    },
    /// The pod's namespace decides which pool its addresses are from, and is not known.
    #[error("the namespace {0} is not known to this node yet, and pools are chosen by namespace")]
    UnknownNamespace(String),
    /// The node has no range.
    #[error("this node has no range of pod addresses")]
    NoRange,
    /// The state directory failed.
    #[error("cannot keep leases in {}: {source}", path.display())]
    Disk {
        /// What was written or read.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process keeps the leases.
    #[error("another agent keeps the leases in {}; stop it first", .0.display())]
    Locked(PathBuf),
}

/// Who is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// The namespace whose pods have most of a pool, and how many.
    Most(String, usize),
    /// The pod that has an address.
    Pod(PodReference),
    /// The container that has an address, of no pod.
    Container(String),
}

struct Who<'a>(&'a Option<Box<Holder>>);

impl fmt::Display for Who<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_deref() {
            Some(Holder::Most(namespace, count)) => {
                write!(f, "; most ({count}) by pods of namespace {namespace}")
            }
            Some(Holder::Pod(pod)) => write!(f, ", by pod {}/{}", pod.namespace, pod.name),
            Some(Holder::Container(id)) => write!(f, ", by container {id}"),
            None => Ok(()),
        }
    }
}
