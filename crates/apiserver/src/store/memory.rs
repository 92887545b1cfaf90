//! The memory core: all objects, a bounded history of changes, and those who watch.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use futures::future::{BoxFuture, ready};
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};

use super::{Change, Event, Expect, Listing, RevisionError, Store, Stored, Write, WriteError};

/// Changes kept for watchers that resume and for lists that continue.
const HISTORY: usize = 6000;
/// Changes a watcher may lag behind before it is cut off (it lists and watches anew).
const BACKLOG: usize = 8192;

/// The objects and their history.
#[derive(Debug)]
pub struct Core {
    state: RwLock<State>,
    history_limit: usize,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    /// Revisions below this one can neither be watched from nor listed at.
    oldest: u64,
    objects: BTreeMap<String, Arc<Stored>>,
    history: VecDeque<Arc<Event>>,
    /// By `group/resource/`: a change is offered only to those who watch its resource.
    watchers: HashMap<String, Vec<Watcher>>,
}

#[derive(Debug)]
struct Watcher {
    prefix: String,
    sender: mpsc::Sender<Arc<Event>>,
}

/// Changes that are decided but not yet visible, over the visible state.
#[derive(Default)]
pub(super) struct Overlay {
    pending: HashMap<String, Option<Arc<Stored>>>,
    decided: u64,
}

impl Core {
    /// A core that goes on from `revision` with these objects.
    pub(super) fn new(
        revision: u64,
        objects: impl IntoIterator<Item = Arc<Stored>>,
        history_limit: usize,
    ) -> Core {
        let objects = objects
            .into_iter()
            .map(|stored| (stored.key.clone(), stored))
            .collect();
        let state = State {
            revision,
            oldest: revision,
            objects,
            ..State::default()
        };
        Core {
            state: RwLock::new(state),
            history_limit,
        }
    }

    /// The revision of the last change.
    pub fn revision(&self) -> u64 {
        self.state.read().revision
    }

    /// The object under `key`.
    pub fn get(&self, key: &str) -> Option<Arc<Stored>> {
        self.state.read().objects.get(key).cloned()
    }

    /// See [`Store::list`].
    pub fn list(&self, prefix: &str, at: Option<u64>) -> Result<Listing, RevisionError> {
        let state = self.state.read();
        let revision = at.unwrap_or(state.revision);
        state.reachable(revision)?;
        let now = state
            .objects
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let now = now.take_while(|(key, _)| key.starts_with(prefix));
        if revision == state.revision {
            return Ok(Listing {
                revision,
                items: now.map(|(_, stored)| stored.clone()).collect(),
            });
        }
        let mut items: BTreeMap<&str, Arc<Stored>> = now.map(|(k, s)| (k.as_str(), s.clone())).collect();
        for event in state
            .history
            .iter()
            .rev()
            .take_while(|event| event.revision > revision)
        {
            if !event.object.key.starts_with(prefix) {
                continue;
            }
            match &event.before {
                Some(before) => items.insert(&event.object.key, before.clone()),
                None => items.remove(event.object.key.as_str()),
            };
        }
        Ok(Listing {
            revision,
            items: items.into_values().collect(),
        })
    }

    /// See [`Store::watch`].
    pub fn watch(self: &Arc<Self>, prefix: &str, after: u64) -> Result<Subscription, RevisionError> {
        let mut state = self.state.write();
        state.reachable(after)?;
        let missed = state
            .history
            .iter()
            .rev()
            .take_while(|event| event.revision > after);
        let mut backlog: VecDeque<_> = missed
            .filter(|event| event.object.key.starts_with(prefix))
            .cloned()
            .collect();
        backlog.make_contiguous().reverse();
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let watchers = state
            .watchers
            .entry(resource_prefix(prefix).to_owned())
            .or_default();
        watchers.retain(|watcher| !watcher.sender.is_closed());
        watchers.push(Watcher {
            prefix: prefix.to_owned(),
            sender,
        });
        Ok(Subscription {
            backlog,
            receiver,
            core: self.clone(),
        })
    }

    /// Decides a write over the state and `overlay`; nothing is changed but `overlay`.
    pub(super) fn decide(&self, write: Write, overlay: &mut Overlay) -> Result<Event, WriteError> {
        let state = self.state.read();
        let before = match overlay.pending.get(&write.key) {
            Some(pending) => pending.clone(),
            None => state.objects.get(&write.key).cloned(),
        };
        let event = decide(write, before, state.revision + overlay.decided + 1)?;
        let now = (!event.deleted).then(|| event.object.clone());
        overlay.pending.insert(event.object.key.clone(), now);
        overlay.decided += 1;
        Ok(event)
    }

    /// Makes decided events visible, in order.
    pub(super) fn apply(&self, events: impl IntoIterator<Item = Arc<Event>>) {
        let mut state = self.state.write();
        for event in events {
            state.apply(event, self.history_limit);
        }
    }

    fn write(&self, write: Write) -> Result<Arc<Stored>, WriteError> {
        let mut state = self.state.write();
        let before = state.objects.get(&write.key).cloned();
        let event = Arc::new(decide(write, before, state.revision + 1)?);
        let stored = event.object.clone();
        state.apply(event, self.history_limit);
        Ok(stored)
    }
}

/// Checks the precondition and makes the event.
fn decide(write: Write, before: Option<Arc<Stored>>, revision: u64) -> Result<Event, WriteError> {
    match (write.expect, &before) {
        (Expect::Absent, Some(_)) => return Err(WriteError::Exists),
        (Expect::At(_), None) => return Err(WriteError::Missing),
        (Expect::At(at), Some(stored)) if stored.revision != at => {
            return Err(WriteError::Changed(stored.revision));
        }
        _ => {}
    }
    let (deleted, object) = match (write.change, &before) {
        (Change::Put(object), _) => (false, object),
        (Change::Delete(Some(last)), _) => (true, last),
        (Change::Delete(None), Some(before)) => (true, before.object.clone()),
        (Change::Delete(None), None) => return Err(WriteError::Missing),
    };
    Ok(Event {
        revision,
        deleted,
        object: Arc::new(Stored::new(write.key, revision, object)),
        before,
    })
}

impl State {
    fn reachable(&self, revision: u64) -> Result<(), RevisionError> {
        if revision < self.oldest {
            return Err(RevisionError::Compacted {
                asked: revision,
                oldest: self.oldest,
            });
        }
        if revision > self.revision {
            return Err(RevisionError::Future {
                asked: revision,
                current: self.revision,
            });
        }
        Ok(())
    }

    fn apply(&mut self, event: Arc<Event>, history_limit: usize) {
        let key = &event.object.key;
        debug_assert!(event.revision > self.revision, "revisions rise");
        self.revision = event.revision;
        match event.deleted {
            true => self.objects.remove(key),
            false => self.objects.insert(key.clone(), event.object.clone()),
        };
        if let Some(watchers) = self.watchers.get_mut(resource_prefix(key)) {
            watchers.retain(|watcher| watcher.offer(&event));
        }
        self.history.push_back(event);
        while self.history.len() > history_limit {
            if let Some(forgotten) = self.history.pop_front() {
                self.oldest = forgotten.revision;
            }
        }
    }
}

impl Watcher {
    /// False when the watcher is gone or too slow: its channel closes, its client lists anew.
    fn offer(&self, event: &Arc<Event>) -> bool {
        if !event.object.key.starts_with(&self.prefix) {
            return !self.sender.is_closed();
        }
        match self.sender.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => false,
        }
    }
}

/// `group/resource/` of a key or of a longer prefix.
fn resource_prefix(key: &str) -> &str {
    match key.match_indices('/').nth(1) {
        Some((at, _)) => &key[..=at],
        None => key,
    }
}

/// The changes under a prefix, as they happen.
#[derive(Debug)]
pub struct Subscription {
    backlog: VecDeque<Arc<Event>>,
    receiver: mpsc::Receiver<Arc<Event>>,
    core: Arc<Core>,
}

impl Subscription {
    /// The next change; `None` when the watcher fell too far behind.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        match self.backlog.pop_front() {
            Some(event) => Some(event),
            None => self.receiver.recv().await,
        }
    }

    /// A revision up to which everything has been handed out; `None` when something is still waiting.
    pub fn progress(&mut self) -> Option<u64> {
        // Read before looking into the channel: whatever is not in it by then is later than this.
        let revision = self.core.revision();
        if !self.backlog.is_empty() {
            return None;
        }
        match self.receiver.try_recv() {
            Ok(event) => {
                self.backlog.push_back(event);
                None
            }
            Err(TryRecvError::Empty) => Some(revision),
            Err(TryRecvError::Disconnected) => None,
        }
    }
}

/// The store without a disk.
pub(super) struct Memory(Arc<Core>);

impl Memory {
    pub(super) fn new() -> Memory {
        // Revision 0 means "any" in the API, so the first state is 1.
        Memory(Arc::new(Core::new(1, [], HISTORY)))
    }
}

/// A core as the disk store wants it.
pub(super) fn core(revision: u64, objects: Vec<Arc<Stored>>) -> Arc<Core> {
    Arc::new(Core::new(revision, objects, HISTORY))
}

impl Store for Memory {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Option<Arc<Stored>>> {
        Box::pin(ready(self.0.get(key)))
    }

    fn list<'a>(&'a self, prefix: &'a str, at: Option<u64>) -> BoxFuture<'a, Result<Listing, RevisionError>> {
        Box::pin(ready(self.0.list(prefix, at)))
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Arc<Stored>, WriteError>> {
        Box::pin(ready(self.0.write(write)))
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: u64,
    ) -> BoxFuture<'a, Result<Subscription, RevisionError>> {
        Box::pin(ready(self.0.watch(prefix, after)))
    }
}
