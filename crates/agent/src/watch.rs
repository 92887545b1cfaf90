//! The API's objects, as a stream of changes to the model.
//!
//! One task a kind lists, watches, parses, and sends [`Change`]s. When the API server is away it goes on asking, and the
//! objects stay what they were.

mod optional;

pub(crate) use optional::is_not_served;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher};
use podnet_core::Cluster;
use podnet_core::cluster::{self, NodeName, ObjectName, OfService, Parsed, Table};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::node::has_policies;
use crate::parse;

/// One change to the objects of a kind.
#[derive(Debug)]
pub enum Change<K, T> {
    /// These are all there are.
    All(Vec<(K, Parsed<T>)>),
    /// One came or changed.
    Set(K, Box<Parsed<T>>),
    /// One went.
    Gone(K),
    /// There may be others than are known.
    Unknown,
}

/// A change to the cluster.
#[derive(Debug)]
pub enum Update {
    /// Nodes.
    Nodes(Change<NodeName, cluster::Node>),
    /// Services.
    Services(Change<ObjectName, cluster::Service>),
    /// Endpoint slices.
    Slices(Change<ObjectName, cluster::EndpointSlice>),
    /// IP pools.
    Pools(Change<String, cluster::IpPool>),
    /// ServiceCIDRs.
    ServiceCidrs(Change<String, cluster::ServiceCidr>),
    /// Pools of load balancers' addresses.
    LoadBalancerPools(Change<String, cluster::LoadBalancerPool>),
    /// Namespaces.
    Namespaces(Change<String, cluster::Namespace>),
    /// Pods.
    Pods(Change<ObjectName, cluster::Pod>),
    /// Network policies.
    NetworkPolicies(Change<ObjectName, cluster::NetworkPolicy>),
    /// Cluster network policies.
    ClusterNetworkPolicies(Change<String, cluster::ClusterNetworkPolicy>),
    /// What the next change of a slice comes from happened then.
    Triggered(SystemTime),
}

/// The kinds that have been listed once: before all have been, the cluster is not known.
#[derive(Debug, Default)]
pub struct Synced {
    nodes: bool,
    services: bool,
    slices: bool,
    pools: bool,
    service_cidrs: bool,
    namespaces: bool,
    pods: bool,
    network_policies: bool,
    cluster_network_policies: bool,
}

impl Synced {
    /// The kinds that have not been listed and matter to what is in `cluster`. Pods are no concern of a cluster without
    /// policies, and are not asked for there.
    pub fn missing(&self, cluster: &Cluster) -> Vec<&'static str> {
        let any = has_policies(cluster);
        let kinds = [
            ("nodes", self.nodes),
            ("services", self.services),
            ("endpointslices", self.slices),
            ("ippools", self.pools),
            ("servicecidrs", self.service_cidrs),
            ("networkpolicies", self.network_policies),
            ("clusternetworkpolicies", self.cluster_network_policies),
            ("pods", self.pods || !any),
            ("namespaces", self.namespaces || !any),
        ];
        let missing = kinds.into_iter().filter(|(_, listed)| !listed);
        missing.map(|(kind, _)| kind).collect()
    }
}

impl Update {
    /// Makes the change.
    pub fn apply(self, cluster: &mut Cluster, synced: &mut Synced) {
        match self {
            Update::Nodes(change) => change.apply(&mut cluster.nodes, &mut synced.nodes),
            Update::Services(change) => change.apply(&mut cluster.services, &mut synced.services),
            Update::Slices(change) => change.apply(&mut cluster.slices, &mut synced.slices),
            Update::Pools(change) => change.apply(&mut cluster.ip_pools, &mut synced.pools),
            Update::ServiceCidrs(change) => {
                change.apply(&mut cluster.service_cidrs, &mut synced.service_cidrs)
            }
            // Nothing waits for them: until they are known, nothing is announced.
            Update::LoadBalancerPools(change) => change.apply(&mut cluster.load_balancer_pools, &mut true),
            Update::Namespaces(change) => {
                synced.namespaces |= matches!(change, Change::All(_));
                change.apply_sound(&mut cluster.namespaces);
            }
            Update::Pods(change) => change.apply(&mut cluster.pods, &mut synced.pods),
            Update::NetworkPolicies(change) => {
                change.apply(&mut cluster.network_policies, &mut synced.network_policies);
            }
            Update::ClusterNetworkPolicies(change) => change.apply(
                &mut cluster.cluster_network_policies,
                &mut synced.cluster_network_policies,
            ),
            Update::Triggered(_) => {}
        }
    }
}

/// Where the objects of a kind are kept.
trait Objects<K, T> {
    fn replace(&mut self, all: Vec<(K, T)>);
    fn set(&mut self, key: K, object: T);
    fn remove(&mut self, key: &K);
}

impl<K: Ord, T> Objects<K, T> for BTreeMap<K, T> {
    fn replace(&mut self, all: Vec<(K, T)>) {
        *self = all.into_iter().collect();
    }

    fn set(&mut self, key: K, object: T) {
        self.insert(key, object);
    }

    fn remove(&mut self, key: &K) {
        BTreeMap::remove(self, key);
    }
}

impl<T: OfService> Objects<ObjectName, Parsed<T>> for Table<T> {
    fn replace(&mut self, all: Vec<(ObjectName, Parsed<T>)>) {
        Table::replace(self, all);
    }

    fn set(&mut self, key: ObjectName, object: Parsed<T>) {
        self.insert(key, object);
    }

    fn remove(&mut self, key: &ObjectName) {
        Table::remove(self, key);
    }
}

impl<K: Ord, T> Change<K, T> {
    /// How many objects it tells of.
    pub fn count(&self) -> usize {
        match self {
            Change::All(all) => all.len(),
            Change::Set(..) | Change::Gone(_) => 1,
            Change::Unknown => 0,
        }
    }

    /// Whether it tells of an object that is there.
    fn is_of_any(&self) -> bool {
        match self {
            Change::All(all) => !all.is_empty(),
            Change::Set(..) => true,
            Change::Gone(_) | Change::Unknown => false,
        }
    }

    /// Of a kind whose objects are always sound.
    fn apply_sound(self, objects: &mut BTreeMap<K, T>) {
        match self {
            Change::All(all) => {
                let sound = all
                    .into_iter()
                    .filter_map(|(key, object)| Some((key, object.ok()?)));
                *objects = sound.collect();
            }
            Change::Set(key, object) => {
                if let Ok(object) = *object {
                    objects.insert(key, object);
                }
            }
            Change::Gone(key) => _ = objects.remove(&key),
            Change::Unknown => {}
        }
    }

    fn apply(self, objects: &mut impl Objects<K, Parsed<T>>, listed: &mut bool) {
        match self {
            Change::All(all) => {
                objects.replace(all);
                *listed = true;
            }
            Change::Set(key, object) => objects.set(key, *object),
            Change::Gone(key) => objects.remove(&key),
            Change::Unknown => *listed = false,
        }
    }
}

/// Starts watching; the tasks end with the set. The other end sees the end of `updates` when all of them have ended.
pub fn start(client: &kube::Client, updates: mpsc::UnboundedSender<Update>, tasks: &mut JoinSet<()>) {
    let node = |object: &Node| parse::node(object).map(|(name, parsed)| (name, Some(parsed)));
    let slice = |object: &EndpointSlice| {
        let (name, parsed) = parse::slice(object);
        Some((name, Some(parsed)))
    };
    tasks.spawn(follow(
        client.clone(),
        node,
        never,
        Update::Nodes,
        updates.clone(),
    ));
    tasks.spawn(follow(
        client.clone(),
        |object: &Service| Some(parse::service(object)),
        never,
        Update::Services,
        updates.clone(),
    ));
    tasks.spawn(follow(
        client.clone(),
        slice,
        parse::trigger,
        Update::Slices,
        updates.clone(),
    ));
    tasks.spawn(optional::follow(
        client.clone(),
        optional::IP_POOLS,
        updates.clone(),
    ));
    tasks.spawn(optional::follow(
        client.clone(),
        optional::SERVICE_CIDRS,
        updates.clone(),
    ));
    tasks.spawn(optional::follow(
        client.clone(),
        optional::LOAD_BALANCER_POOLS,
        updates.clone(),
    ));
    policies(client, &updates, tasks);
}

/// Policies, and whom they select once there is one.
fn policies(client: &kube::Client, updates: &mpsc::UnboundedSender<Update>, tasks: &mut JoinSet<()>) {
    let (needed, mut wanted) = watch::channel(false);
    let policies_needed = needed.clone();
    tasks.spawn(follow(
        client.clone(),
        |object: &NetworkPolicy| {
            let (name, policy) = parse::network_policy(object);
            Some((name, Some(Ok(policy))))
        },
        never,
        move |change| {
            optional::need(&policies_needed, &change);
            Update::NetworkPolicies(change)
        },
        updates.clone(),
    ));
    let kind = optional::cluster_network_policies(needed);
    tasks.spawn(optional::follow(client.clone(), kind, updates.clone()));
    tasks.spawn(follow_namespaces(client.clone(), updates.clone()));
    let (client, updates) = (client.clone(), updates.clone());
    tasks.spawn(async move {
        // Once needed they stay: whoever has had policies will have some again. A sender that is gone ends all anyway.
        if wanted.wait_for(|needed| *needed).await.is_err() {
            return std::future::pending().await;
        }
        let pod = |object: &Pod| {
            let (name, parsed) = parse::pod(object);
            Some((name, Some(parsed)))
        };
        follow(client, pod, never, Update::Pods, updates).await;
    });
}

async fn follow_namespaces(client: kube::Client, updates: mpsc::UnboundedSender<Update>) {
    let events = watcher(
        Api::<PartialObjectMeta<Namespace>>::all(client),
        watcher::Config::default(),
    );
    let namespace = |object: &_| parse::namespace_metadata(object).map(|(name, parsed)| (name, Some(parsed)));
    pass_on(
        "Namespace",
        events.backoff(Retry::default()),
        namespace,
        never,
        Update::Namespaces,
        updates,
    )
    .await;
}

/// Of objects that do not say when that happened which they tell of.
fn never<O>(_: &O) -> Option<SystemTime> {
    None
}

async fn follow<O, K, T>(
    client: kube::Client,
    parse: impl Fn(&O) -> Option<(K, Option<Parsed<T>>)>,
    trigger: impl Fn(&O) -> Option<SystemTime>,
    wrap: impl Fn(Change<K, T>) -> Update,
    updates: mpsc::UnboundedSender<Update>,
) where
    O: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = O::kind(&()).into_owned();
    let events = watcher(Api::<O>::all(client), watcher::Config::default()).backoff(Retry::default());
    pass_on(&kind, events, parse, trigger, wrap, updates).await;
}

/// Passes on what a watch tells, until nobody listens any more.
async fn pass_on<O, K, T>(
    kind: &str,
    events: impl Stream<Item = watcher::Result<Event<O>>>,
    parse: impl Fn(&O) -> Option<(K, Option<Parsed<T>>)>,
    trigger: impl Fn(&O) -> Option<SystemTime>,
    wrap: impl Fn(Change<K, T>) -> Update,
    updates: mpsc::UnboundedSender<Update>,
) {
    let mut stream = std::pin::pin!(events);
    let mut listing = Vec::new();
    let mut away = false;
    while let Some(event) = stream.next().await {
        let change = match event {
            Err(error) => {
                // Once when it goes away, not at every attempt.
                if !std::mem::replace(&mut away, true) {
                    tracing::warn!(kind, %error, "cannot watch; keeping what is known and trying again");
                }
                continue;
            }
            Ok(Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                if let Some((key, Some(parsed))) = parse(&object) {
                    listing.push((key, parsed));
                }
                continue;
            }
            Ok(Event::InitDone) => Some(Change::All(std::mem::take(&mut listing))),
            Ok(Event::Apply(object)) => {
                if let Some(at) = trigger(&object) {
                    // Whether anybody listens is seen with the change itself.
                    let _ = updates.send(Update::Triggered(at));
                }
                parse(&object).map(|(key, parsed)| match parsed {
                    Some(parsed) => Change::Set(key, Box::new(parsed)),
                    None => Change::Gone(key),
                })
            }
            Ok(Event::Delete(object)) => parse(&object).map(|(key, _)| Change::Gone(key)),
        };
        if std::mem::take(&mut away) {
            tracing::info!(kind, "watching again");
        }
        if let Some(change) = change
            && updates.send(wrap(change)).is_err()
        {
            return;
        }
    }
    tracing::error!(kind, "the watch ended");
}

/// How long to wait before asking again: doubling from 100 ms to 5 s, so that an API server that was away is found again
/// soon, and one that struggles is not asked more than this.
#[derive(Debug)]
struct Retry {
    next: Duration,
    last: Option<Instant>,
}

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);

impl Default for Retry {
    fn default() -> Self {
        Retry {
            next: FIRST_RETRY,
            last: None,
        }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // A while without failures begins anew.
        if self.last.is_some_and(|last| last.elapsed() > 2 * LAST_RETRY) {
            self.next = FIRST_RETRY;
        }
        self.last = Some(Instant::now());
        let now = self.next;
        self.next = (self.next * 2).min(LAST_RETRY);
        Some(now)
    }
}

impl Backoff for Retry {
    /// Nothing: kube calls it at every attempt that begins, which is no success yet.
    fn reset(&mut self) {}
}
