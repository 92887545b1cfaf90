//! The versioned store: four verbs over one memory core, which may write ahead to disk.
//!
//! Invariants that everything above relies on:
//! - the revision rises by one with every change of any object and never goes back, restarts included;
//! - an object's `metadata.resourceVersion` is the revision of its last change;
//! - a write that was answered is on disk (with the disk store), and a watcher sees a change only after that;
//! - watchers see every change after their revision once, in order, or are told that it is too old.

mod disk;
mod memory;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::Value;

pub use disk::DiskError;
pub use memory::{Core, Subscription};

/// One object at one revision. Shared, never changed; its JSON is encoded at most once.
#[derive(Debug)]
pub struct Stored {
    /// Where it is stored: `group/resource/[namespace/]name`.
    pub key: String,
    /// The revision of its last change.
    pub revision: u64,
    /// The object; `metadata.resourceVersion` equals `revision`.
    pub object: Value,
    json: OnceLock<Bytes>,
}

impl Stored {
    /// Stamps `object` with its revision.
    pub fn new(key: String, revision: u64, mut object: Value) -> Stored {
        if let Some(root) = object.as_object_mut() {
            let metadata = root
                .entry("metadata")
                .or_insert_with(|| Value::Object(Default::default()));
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("resourceVersion".into(), Value::String(revision.to_string()));
            }
        }
        Stored {
            key,
            revision,
            object,
            json: OnceLock::new(),
        }
    }

    /// The object as JSON, shared by everyone who is sent it.
    pub fn json(&self) -> &Bytes {
        self.json
            .get_or_init(|| serde_json::to_vec(&self.object).unwrap_or_default().into())
    }
}

/// What happened to an object.
#[derive(Debug)]
pub struct Event {
    /// The revision at which it happened.
    pub revision: u64,
    /// The object was taken away.
    pub deleted: bool,
    /// The new state; of a deletion the last state, stamped with the deletion's revision.
    pub object: Arc<Stored>,
    /// The state before; `None` when it was created.
    pub before: Option<Arc<Stored>>,
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// There is no object under the key.
    Absent,
    /// The object under the key was last changed at this revision.
    At(u64),
}

/// A change of one object.
#[derive(Clone, Debug)]
pub enum Change {
    /// This is the object now.
    Put(Value),
    /// The object is gone; this was its last state, if it differs from the stored one.
    Delete(Option<Value>),
}

/// One conditional write.
#[derive(Clone, Debug)]
pub struct Write {
    /// The object's key.
    pub key: String,
    /// The precondition.
    pub expect: Expect,
    /// The change.
    pub change: Change,
}

/// A consistent list: all objects under a prefix at one revision, by key.
#[derive(Debug)]
pub struct Listing {
    /// The revision the list is true for.
    pub revision: u64,
    /// The objects in key order.
    pub items: Vec<Arc<Stored>>,
}

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// `Expect::Absent`, but it exists.
    #[error("there is already an object under this key")]
    Exists,
    /// `Expect::At`, but it does not exist.
    #[error("there is no object under this key")]
    Missing,
    /// `Expect::At`, but it has changed since.
    #[error("the object was changed at revision {0}")]
    Changed(u64),
    /// The disk did not take it.
    #[error("the store could not write to disk: {0}; check the disk's space and health")]
    Storage(String),
}

/// Why a revision cannot be read or watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevisionError {
    /// History starts later.
    #[error("too old resource version: {asked} ({oldest})")]
    Compacted {
        /// The revision that was asked for.
        asked: u64,
        /// The oldest that could be answered.
        oldest: u64,
    },
    /// It has not happened yet.
    #[error("Too large resource version: {asked}, current: {current}")]
    Future {
        /// The revision that was asked for.
        asked: u64,
        /// The store's revision.
        current: u64,
    },
}

/// The four verbs. Whatever keeps the objects (memory, disk, a remote etcd) answers these.
pub trait Store: Send + Sync + 'static {
    /// The object under `key`.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Option<Arc<Stored>>>;

    /// The objects under `prefix` now, or as they were at revision `at`.
    fn list<'a>(&'a self, prefix: &'a str, at: Option<u64>) -> BoxFuture<'a, Result<Listing, RevisionError>>;

    /// A conditional write; answers what is stored now (of a deletion: the last state).
    fn write(&self, write: Write) -> BoxFuture<'_, Result<Arc<Stored>, WriteError>>;

    /// Every change under `prefix` (at least `group/resource/`) after revision `after`.
    fn watch<'a>(&'a self, prefix: &'a str, after: u64)
    -> BoxFuture<'a, Result<Subscription, RevisionError>>;
}

/// A store that forgets everything when the process ends.
pub fn memory() -> Arc<dyn Store> {
    Arc::new(memory::Memory::new())
}

/// A store in `dir` that answers a write only once it is on disk.
pub fn disk(dir: &Path) -> Result<Arc<dyn Store>, DiskError> {
    Ok(Arc::new(disk::Disk::open(dir)?))
}
