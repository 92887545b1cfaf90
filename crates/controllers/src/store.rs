//! The objects of one kind as last seen, with our own writes already in them.
//!
//! A watch lags behind what we wrote. A controller that planned from the lagging view would create a second time, so
//! the answers of the server are put into the view at once and the watch's older news of the same object is passed
//! over until it has caught up. Resource versions order the two: within one kind they only grow.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;

use crate::resource::{Key, Meta};

/// An object with metadata.
pub trait Stored {
    /// Its metadata.
    fn head(&self) -> &ObjectMeta;
}

impl<K: k8s_openapi::Metadata<Ty = ObjectMeta>> Stored for K {
    fn head(&self) -> &ObjectMeta {
        self.metadata()
    }
}

impl Stored for Meta {
    fn head(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// What became of one object.
#[derive(Debug)]
pub struct Delta<K> {
    /// As it was; none when it is new.
    pub old: Option<Arc<K>>,
    /// As it is; none when it is gone.
    pub new: Option<Arc<K>>,
}

impl<K> Clone for Delta<K> {
    fn clone(&self) -> Self {
        Delta {
            old: self.old.clone(),
            new: self.new.clone(),
        }
    }
}

impl<K: Stored> Delta<K> {
    /// The object's key.
    pub fn key(&self) -> Key {
        self.sides()
            .next()
            .map(|object| Key::of(object.head()))
            .unwrap_or_default()
    }

    /// The object before and after, those that there are; the newer first.
    pub fn sides(&self) -> impl Iterator<Item = &Arc<K>> {
        self.new.iter().chain(self.old.iter())
    }
}

/// A write of ours that the watch has not shown yet.
#[derive(Debug)]
struct Pending {
    /// The version that the server gave it, or, for a write whose answer told none, the version it replaced.
    version: u64,
    /// Whether `version` is the write's own.
    exact: bool,
    /// Whether a list that may or may not have had it came in between.
    relisted: bool,
}

/// All objects of one kind.
#[derive(Debug)]
pub struct Store<K> {
    objects: BTreeMap<String, BTreeMap<String, Arc<K>>>,
    pending: HashMap<Key, Pending>,
    /// Unique ids that the server told us are gone while the watch may still speak of them. An id never comes back.
    gone: HashSet<String>,
    /// The newest version that the watch has shown.
    seen: u64,
    listing: Option<Vec<K>>,
    synced: bool,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Store {
            objects: BTreeMap::new(),
            pending: HashMap::new(),
            gone: HashSet::new(),
            seen: 0,
            listing: None,
            synced: false,
        }
    }
}

fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version
        .as_deref()
        .and_then(|v| v.parse().ok())
        .unwrap_or(0)
}

impl<K: Stored> Store<K> {
    /// Whether the first list is complete.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// The object of that key.
    pub fn get(&self, key: &Key) -> Option<&Arc<K>> {
        self.objects.get(&key.namespace)?.get(&key.name)
    }

    /// All objects of a namespace, by name.
    pub fn within(&self, namespace: &str) -> impl Iterator<Item = &Arc<K>> {
        self.objects.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    /// All objects, by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values().flat_map(BTreeMap::values)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.objects.values().map(BTreeMap::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Takes in what the watch tells, and says what changed by it.
    pub fn observe(&mut self, event: Event<K>) -> Vec<Delta<K>> {
        match event {
            Event::Apply(object) => {
                let delta = self.apply(object);
                delta.into_iter().chain(self.drop_ghosts()).collect()
            }
            Event::Delete(object) => {
                let delta = self.delete(&object);
                delta.into_iter().chain(self.drop_ghosts()).collect()
            }
            Event::Init => {
                self.listing = Some(Vec::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                self.listing.get_or_insert_default().push(object);
                Vec::new()
            }
            Event::InitDone => self.relist(),
        }
    }

    /// Takes in the answer to a write of ours, unless the watch is already past it.
    pub fn record(&mut self, object: K) -> Option<Delta<K>> {
        let (key, written) = (Key::of(object.head()), version(object.head()));
        let current = self.get(&key).map_or(0, |o| version(o.head()));
        if written <= self.seen || written <= current || self.is_gone(object.head()) {
            return None;
        }
        self.pending.insert(
            key,
            Pending {
                version: written,
                exact: true,
                relisted: false,
            },
        );
        self.put(object)
    }

    /// Takes in a write whose answer told no version: `object` is what it must have made of the current one.
    pub fn assume(&mut self, object: K) -> Option<Delta<K>> {
        let key = Key::of(object.head());
        let current = self.get(&key)?;
        if version(current.head()) != version(object.head()) || current.head().uid != object.head().uid {
            return None;
        }
        let version = version(object.head()) + 1;
        self.pending.insert(
            key,
            Pending {
                version,
                exact: false,
                relisted: false,
            },
        );
        self.put(object)
    }

    /// Takes in that the object with this unique id is gone.
    pub fn forget(&mut self, key: &Key, uid: &str) -> Option<Delta<K>> {
        let current = self.get(key)?;
        if current.head().uid.as_deref() != Some(uid) {
            return None;
        }
        self.gone.insert(uid.to_owned());
        self.pending.remove(key);
        self.take(key)
    }

    fn apply(&mut self, object: K) -> Option<Delta<K>> {
        let (key, told) = (Key::of(object.head()), version(object.head()));
        self.seen = self.seen.max(told);
        if self.is_gone(object.head()) {
            return None;
        }
        match self.pending.get(&key) {
            Some(pending) if told < pending.version => return None,
            Some(_) => drop(self.pending.remove(&key)),
            None => {}
        }
        let known = self.get(&key).map(|o| (version(o.head()), o.head().uid.clone()));
        if known == Some((told, object.head().uid.clone())) {
            return None;
        }
        self.put(object)
    }

    fn delete(&mut self, object: &K) -> Option<Delta<K>> {
        let (key, told) = (Key::of(object.head()), version(object.head()));
        self.seen = self.seen.max(told);
        if let Some(uid) = &object.head().uid {
            self.gone.remove(uid);
        }
        // The name may have been given again since, and that written by us.
        if self.get(&key)?.head().uid != object.head().uid {
            return None;
        }
        self.pending.remove(&key);
        self.take(&key)
    }

    fn relist(&mut self) -> Vec<Delta<K>> {
        let listed = self.listing.take().unwrap_or_default();
        let newest = listed.iter().map(|o| version(o.head())).max().unwrap_or(0);
        self.seen = self.seen.max(newest);
        self.synced = true;
        let mut stale: HashSet<Key> = self.iter().map(|o| Key::of(o.head())).collect();
        // A write newer than anything listed may be missing from the list only because it came after it. It is
        // kept over one list; a second one that still lacks it means that it was deleted meanwhile.
        self.pending
            .retain(|_, p| p.version > newest && !std::mem::replace(&mut p.relisted, true));
        for key in self.pending.keys() {
            stale.remove(key);
        }
        let ids: HashSet<&String> = listed.iter().filter_map(|o| o.head().uid.as_ref()).collect();
        self.gone.retain(|uid| ids.contains(uid));
        let mut deltas = Vec::new();
        for object in listed {
            stale.remove(&Key::of(object.head()));
            deltas.extend(self.apply(object));
        }
        deltas.extend(stale.iter().filter_map(|key| self.take(key)));
        deltas
    }

    /// A write that was kept over a list, and that the watch has passed without a word, was undone before the list.
    fn drop_ghosts(&mut self) -> Vec<Delta<K>> {
        let ghost = |p: &Pending| p.relisted && p.exact && p.version < self.seen;
        let ghosts: Vec<Key> = self
            .pending
            .iter()
            .filter(|(_, p)| ghost(p))
            .map(|(key, _)| key.clone())
            .collect();
        ghosts
            .iter()
            .filter_map(|key| {
                self.pending.remove(key);
                self.take(key)
            })
            .collect()
    }

    fn is_gone(&self, meta: &ObjectMeta) -> bool {
        meta.uid.as_ref().is_some_and(|uid| self.gone.contains(uid))
    }

    fn put(&mut self, object: K) -> Option<Delta<K>> {
        let key = Key::of(object.head());
        let new = Arc::new(object);
        let old = self
            .objects
            .entry(key.namespace)
            .or_default()
            .insert(key.name, new.clone());
        Some(Delta { old, new: Some(new) })
    }

    fn take(&mut self, key: &Key) -> Option<Delta<K>> {
        let names = self.objects.get_mut(&key.namespace)?;
        let old = names.remove(&key.name)?;
        if names.is_empty() {
            self.objects.remove(&key.namespace);
        }
        Some(Delta {
            old: Some(old),
            new: None,
        })
    }

    /// Takes everything out, as when a resource is no longer served.
    pub fn clear(&mut self) -> Vec<Delta<K>> {
        let all = std::mem::take(self);
        let objects = all.objects.into_values().flat_map(BTreeMap::into_values);
        objects
            .map(|old| Delta {
                old: Some(old),
                new: None,
            })
            .collect()
    }
}
