//! The objects that exist, as far as the controllers need them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use serde_json::Value;

use crate::ip_pools::IPPool;
use crate::load_balancers::LoadBalancerPool;
use crate::resource::{Key, Meta, Resource};
use crate::store::{Delta, Store, Stored};

macro_rules! kinds {
    ($($kind:ident $field:ident $doc:literal),* $(,)?) => {
        /// A kind that controllers read in full, or the metadata of everything.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = $doc] $kind,)*
            /// The metadata of every object of every resource in discovery.
            Everything,
        }

        /// News from a watch.
        #[derive(Debug)]
        pub enum Observation {
            $(#[doc = $doc] $kind(Event<$kind>),)*
            /// Metadata of a resource that no controller reads in full.
            Other(Arc<Resource>, Event<PartialObjectMeta>),
            /// The resources of the API that can be listed, watched and deleted.
            Resources(Vec<Arc<Resource>>),
        }

        /// What became of one object.
        #[derive(Clone, Debug)]
        pub enum Change {
            $(#[doc = $doc] $kind(Delta<$kind>),)*
            /// Of any kind, as far as ownership is concerned; only where everything is watched.
            Meta(Delta<Meta>),
        }

        /// The objects that exist.
        #[derive(Debug, Default)]
        pub struct World {
            $(#[doc = $doc] pub $field: Store<$kind>,)*
            /// Who owns whom; filled only where everything is watched.
            pub owners: Owners,
            others: HashMap<Arc<Resource>, Store<Meta>>,
            resources: Option<Vec<Arc<Resource>>>,
            watched: BTreeSet<Kind>,
        }

        impl Kind {
            /// The kinds that are read in full.
            pub const FULL: &[Kind] = &[$(Kind::$kind),*];

            /// The resource of the kind; none for everything.
            pub fn resource(self) -> Option<Resource> {
                match self {
                    $(Kind::$kind => Some(Resource::of::<$kind>()),)*
                    Kind::Everything => None,
                }
            }
        }

        impl World {
            /// Takes in news from a watch, and says what changed by it.
            pub fn observe(&mut self, news: Observation) -> Vec<Change> {
                match news {
                    $(Observation::$kind(event) => {
                        let deltas = self.$field.observe(event);
                        self.changes(deltas, Change::$kind)
                    })*
                    Observation::Other(resource, event) => self.observe_other(&resource, event),
                    Observation::Resources(resources) => self.set_resources(resources),
                }
            }

            /// Takes in the object that the server answered a write of ours with.
            pub fn record(&mut self, resource: &Resource, object: &Value) -> Vec<Change> {
                match resource.kind.as_str() {
                    $(stringify!($kind) if self.is(Kind::$kind, resource) => {
                        let deltas = match serde_json::from_value(object.clone()) {
                            Ok(object) => self.$field.record(object).into_iter().collect(),
                            // The watch will say it again, and complain.
                            Err(_) => Vec::new(),
                        };
                        self.changes(deltas, Change::$kind)
                    })*
                    _ => self.record_other(resource, object),
                }
            }

            /// Takes in that an object is gone.
            pub fn forget(&mut self, resource: &Resource, key: &Key, uid: &str) -> Vec<Change> {
                match resource.kind.as_str() {
                    $(stringify!($kind) if self.is(Kind::$kind, resource) => {
                        let deltas = self.$field.forget(key, uid).into_iter().collect();
                        self.changes(deltas, Change::$kind)
                    })*
                    _ => {
                        let other = self.others.get_mut(resource);
                        let deltas = other.and_then(|s| s.forget(key, uid)).into_iter().collect();
                        self.index(deltas)
                    }
                }
            }

            /// Whether all objects of the kind have been listed.
            pub fn synced(&self, kind: Kind) -> bool {
                match kind {
                    $(Kind::$kind => self.$field.synced(),)*
                    Kind::Everything => self.everything_synced(),
                }
            }
        }
    };
}

kinds! {
    Pod pods "Pods.",
    Node nodes "Nodes.",
    Namespace namespaces "Namespaces.",
    Service services "Services.",
    Endpoints endpoints "Endpoints.",
    EndpointSlice endpoint_slices "EndpointSlices.",
    ReplicaSet replica_sets "ReplicaSets.",
    Deployment deployments "Deployments.",
    Lease leases "Leases.",
    IPPool ip_pools "IP pools; none where the kind is not installed.",
    ServiceCIDR service_cidrs "ServiceCIDRs; none where the cluster has no such kind, or does not show it.",
    LoadBalancerPool load_balancer_pools "Pools of load balancers' addresses; none where the kind is not installed.",
}

impl World {
    /// An empty world in which these kinds are watched.
    pub fn watching(kinds: impl IntoIterator<Item = Kind>) -> World {
        World {
            watched: kinds.into_iter().collect(),
            ..World::default()
        }
    }

    /// The kinds that are watched.
    pub fn watched(&self) -> &BTreeSet<Kind> {
        &self.watched
    }

    /// The resources in discovery; none before it was asked.
    pub fn resources(&self) -> Option<&[Arc<Resource>]> {
        self.resources.as_deref()
    }

    /// Whether all objects of `resource` are known; false for resources that discovery does not know.
    pub fn knows(&self, group: &str, kind: &str) -> Option<&Arc<Resource>> {
        let resource = self
            .resources()?
            .iter()
            .find(|r| r.group == group && r.kind == kind)?;
        self.resource_synced(resource).then_some(resource)
    }

    /// Whether objects of `resource` are read in full, so that their metadata need not be watched besides.
    pub fn in_full(&self, resource: &Resource) -> Option<Kind> {
        self.watched
            .iter()
            .copied()
            .find(|kind| kind.resource().is_some_and(|r| r.same_objects(resource)))
    }

    fn is(&self, kind: Kind, resource: &Resource) -> bool {
        self.in_full(resource) == Some(kind)
    }

    fn resource_synced(&self, resource: &Arc<Resource>) -> bool {
        match self.in_full(resource) {
            Some(kind) => self.synced(kind),
            None => self.others.get(resource).is_some_and(Store::synced),
        }
    }

    fn everything_synced(&self) -> bool {
        self.resources
            .as_ref()
            .is_some_and(|all| all.iter().all(|r| self.resource_synced(r)))
    }

    fn changes<K>(&mut self, deltas: Vec<Delta<K>>, change: fn(Delta<K>) -> Change) -> Vec<Change>
    where
        K: Stored + kube::Resource<DynamicType = ()>,
        K::Scope: crate::resource::Scoped,
    {
        let mut metas = Vec::new();
        if self.watched.contains(&Kind::Everything) && !deltas.is_empty() {
            let resource = Arc::new(Resource::of::<K>());
            let side =
                |side: &Option<Arc<K>>| side.as_ref().map(|o| Arc::new(Meta::new(&resource, o.head())));
            metas = deltas
                .iter()
                .map(|d| Delta {
                    old: side(&d.old),
                    new: side(&d.new),
                })
                .collect();
        }
        let mut changes: Vec<Change> = deltas.into_iter().map(change).collect();
        changes.extend(self.index(metas));
        changes
    }

    fn index(&mut self, deltas: Vec<Delta<Meta>>) -> Vec<Change> {
        for delta in &deltas {
            self.owners.update(delta);
        }
        deltas.into_iter().map(Change::Meta).collect()
    }

    fn observe_other(&mut self, resource: &Arc<Resource>, event: Event<PartialObjectMeta>) -> Vec<Change> {
        // News of a resource that was dropped meanwhile comes too late.
        let Some(store) = self.others.get_mut(resource) else {
            return Vec::new();
        };
        let meta = |object: PartialObjectMeta| Meta::new(resource, &object.metadata);
        let deltas = store.observe(match event {
            Event::Apply(object) => Event::Apply(meta(object)),
            Event::Delete(object) => Event::Delete(meta(object)),
            Event::Init => Event::Init,
            Event::InitApply(object) => Event::InitApply(meta(object)),
            Event::InitDone => Event::InitDone,
        });
        self.index(deltas)
    }

    fn record_other(&mut self, resource: &Resource, object: &Value) -> Vec<Change> {
        let Some((resource, store)) = self
            .others
            .get_key_value(resource)
            .map(|(r, _)| r.clone())
            .and_then(|r| {
                let store = self.others.get_mut(&r)?;
                Some((r, store))
            })
        else {
            return Vec::new();
        };
        let Ok(metadata) = serde_json::from_value(object["metadata"].clone()) else {
            return Vec::new();
        };
        let deltas = store
            .record(Meta::new(&resource, &metadata))
            .into_iter()
            .collect();
        self.index(deltas)
    }

    fn set_resources(&mut self, resources: Vec<Arc<Resource>>) -> Vec<Change> {
        let mut gone = Vec::new();
        let dropped: Vec<_> = self
            .others
            .keys()
            .filter(|r| !resources.contains(r))
            .cloned()
            .collect();
        for resource in dropped {
            gone.extend(
                self.others
                    .remove(&resource)
                    .map(|mut store| store.clear())
                    .unwrap_or_default(),
            );
        }
        for resource in &resources {
            if self.in_full(resource).is_none() {
                self.others.entry(resource.clone()).or_default();
            }
        }
        self.resources = Some(resources);
        self.index(gone)
    }
}

/// Who owns whom, by unique id.
#[derive(Debug, Default)]
pub struct Owners {
    objects: HashMap<String, Arc<Meta>>,
    dependents: HashMap<String, BTreeSet<String>>,
    namespaces: BTreeMap<String, BTreeSet<String>>,
}

impl Owners {
    /// The object with that unique id.
    pub fn get(&self, uid: &str) -> Option<&Arc<Meta>> {
        self.objects.get(uid)
    }

    /// The objects that name `uid` as an owner.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &Arc<Meta>> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|uid| self.objects.get(uid))
    }

    /// The objects in a namespace.
    pub fn within(&self, namespace: &str) -> impl Iterator<Item = &Arc<Meta>> {
        self.namespaces
            .get(namespace)
            .into_iter()
            .flatten()
            .filter_map(|uid| self.objects.get(uid))
    }

    fn update(&mut self, delta: &Delta<Meta>) {
        if let Some(old) = &delta.old {
            self.unlink(old);
        }
        if let Some(new) = &delta.new {
            self.link(new);
        }
    }

    fn link(&mut self, meta: &Arc<Meta>) {
        let uid = meta.uid().to_owned();
        for owner in meta.metadata.owner_references.iter().flatten() {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(uid.clone());
        }
        if let Some(namespace) = &meta.metadata.namespace {
            self.namespaces
                .entry(namespace.clone())
                .or_default()
                .insert(uid.clone());
        }
        self.objects.insert(uid, meta.clone());
    }

    fn unlink(&mut self, meta: &Meta) {
        for owner in meta.metadata.owner_references.iter().flatten() {
            remove_from(&mut self.dependents, &owner.uid, meta.uid());
        }
        if let Some(namespace) = &meta.metadata.namespace
            && let Some(uids) = self.namespaces.get_mut(namespace)
        {
            uids.remove(meta.uid());
            if uids.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
        self.objects.remove(meta.uid());
    }
}

fn remove_from(sets: &mut HashMap<String, BTreeSet<String>>, key: &str, member: &str) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(member);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

impl World {
    /// Takes in that a pod was bound to a node, which the server confirms without showing the pod.
    pub fn bound(&mut self, pod: &Key, node: &str) -> Vec<Change> {
        let Some(current) = self.pods.get(pod) else {
            return Vec::new();
        };
        let mut bound = (**current).clone();
        bound.spec.get_or_insert_default().node_name = Some(node.to_owned());
        let deltas = self.pods.assume(bound).into_iter().collect();
        self.changes(deltas, Change::Pod)
    }
}
