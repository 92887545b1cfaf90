//! Kinds that not every cluster has: pools and cluster network policies, which somebody installs, and ServiceCIDRs, which
//! come with Kubernetes 1.33.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use podnet_core::cluster::{ClusterNetworkPolicy, IpPool, LoadBalancerPool, Parsed, ServiceCidr};
use tokio::sync::{mpsc, watch};

use super::{Change, Retry, Update, never, pass_on};
use crate::parse;

/// Longest wait before asking again for a kind that is not there, where its definition cannot be watched: most clusters
/// never have it.
const LONGEST_WAIT: Duration = Duration::from_secs(32);

/// An object and its name.
type Named<T> = (String, Parsed<T>);

/// A kind that not every cluster has.
pub(super) struct Optional<T, U> {
    kind: fn() -> ApiResource,
    parse: fn(&DynamicObject) -> Option<Named<T>>,
    update: U,
    /// Who may not read them does not take them for none, as long as the cluster knows the kind.
    guards: bool,
}

type ToUpdate<T> = fn(Change<String, T>) -> Update;

pub(super) const IP_POOLS: Optional<IpPool, ToUpdate<IpPool>> = Optional {
    kind: || parse::own_kind("IPPool", "ippools"),
    parse: parse::pool,
    update: Update::Pools,
    guards: false,
};

pub(super) const LOAD_BALANCER_POOLS: Optional<LoadBalancerPool, ToUpdate<LoadBalancerPool>> = Optional {
    kind: || parse::own_kind("LoadBalancerPool", "loadbalancerpools"),
    parse: parse::load_balancer_pool,
    update: Update::LoadBalancerPools,
    guards: false,
};

pub(super) const SERVICE_CIDRS: Optional<ServiceCidr, ToUpdate<ServiceCidr>> = Optional {
    kind: parse::service_cidr_kind,
    parse: parse::service_cidr,
    update: Update::ServiceCidrs,
    guards: false,
};

/// With these comes that pods are needed.
pub(super) fn cluster_network_policies(
    needed: watch::Sender<bool>,
) -> Optional<ClusterNetworkPolicy, impl Fn(Change<String, ClusterNetworkPolicy>) -> Update> {
    Optional {
        kind: parse::cluster_network_policy_kind,
        parse: |object| {
            let (name, policy) = parse::cluster_network_policy_object(object);
            Some((name, Ok(policy)))
        },
        update: move |change: Change<_, _>| {
            need(&needed, &change);
            Update::ClusterNetworkPolicies(change)
        },
        guards: true,
    }
}

/// There are policies: pods are needed from now on.
pub(super) fn need<K: Ord, T>(needed: &watch::Sender<bool>, change: &Change<K, T>) {
    let any = change.is_of_any();
    needed.send_if_modified(|needed| any && !std::mem::replace(needed, true));
}

/// Watches objects of a kind from when their kind is there until it is gone, and again.
pub(super) async fn follow<T>(
    client: kube::Client,
    optional: Optional<T, impl Fn(Change<String, T>) -> Update>,
    updates: mpsc::UnboundedSender<Update>,
) {
    let kind = (optional.kind)();
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let mut wait = Duration::from_secs(1);
    let (mut listed, mut away) = (false, false);
    // Whether those were told to wait who may not read, once it was said that they may not.
    let mut told = None;
    while !updates.is_closed() {
        let mut forbidden = false;
        match api.list_metadata(&ListParams::default().limit(1)).await {
            Ok(_) => {
                (told, listed, away) = (None, true, false);
                follow_while_there(&api, &kind, &optional, &updates).await;
                wait = Duration::from_secs(1);
            }
            Err(error) if is_not_served(&error) => {
                forbidden = is_forbidden(&error);
                let waits = forbidden && !listed && optional.guards && is_known(&client, &kind).await;
                if forbidden && told.replace(waits) != Some(waits) {
                    let kind = &kind.kind;
                    let what = match (listed, waits) {
                        (true, _) => "keeps those that are known; grant it again",
                        (_, true) => "decides nothing without them; grant it",
                        _ => "goes without them; grant it if the cluster has any",
                    };
                    tracing::warn!(%error, "may not read {kind}s, and {what}");
                }
                // Who may not look, or not any more, has not seen that there are none.
                let change = match (waits, forbidden && listed) {
                    (true, _) => Some(Change::Unknown),
                    (_, true) => None,
                    _ => Some(Change::All(Vec::new())),
                };
                listed &= forbidden;
                let change = change.map(&optional.update);
                if change.is_some_and(|change| updates.send(change).is_err()) {
                    return;
                }
            }
            Err(error) => {
                wait = Duration::from_secs(1);
                if !std::mem::replace(&mut away, true) {
                    let kind = &kind.kind;
                    tracing::warn!(kind, %error, "cannot list; keeping what is known and trying again");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
            () = installed(&client, &kind), if !forbidden => {}
        }
    }
}

/// Whether the cluster has the kind, which everybody may ask; also where that cannot be told.
async fn is_known(client: &kube::Client, kind: &ApiResource) -> bool {
    match client.list_api_group_resources(&kind.api_version).await {
        Ok(list) => list.resources.iter().any(|known| known.name == kind.plural),
        Err(error) => !matches!(error, kube::Error::Api(status) if status.code == 404),
    }
}

/// Waits until the kind is defined; for ever, where its definition may not be looked at.
async fn installed(client: &kube::Client, kind: &ApiResource) {
    // Something that was defined just now is served a moment later.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={}.{}", kind.plural, kind.group));
    let mut events = std::pin::pin!(watcher(api, config).backoff(Retry::default()));
    while let Some(event) = events.next().await {
        if let Ok(Event::Apply(_) | Event::InitApply(_)) = event {
            return;
        }
    }
    std::future::pending().await
}

/// Passes on objects until the API server says that there is no such kind.
async fn follow_while_there<T>(
    api: &Api<DynamicObject>,
    kind: &ApiResource,
    optional: &Optional<T, impl Fn(Change<String, T>) -> Update>,
    updates: &mpsc::UnboundedSender<Update>,
) {
    let events = watcher(api.clone(), watcher::Config::default()).backoff(Retry::default());
    let there = |event: &watcher::Result<watcher::Event<DynamicObject>>| {
        let gone = event.as_ref().is_err_and(is_gone);
        std::future::ready(!gone)
    };
    let parse = |object: &DynamicObject| (optional.parse)(object).map(|(name, parsed)| (name, Some(parsed)));
    pass_on(
        &kind.kind,
        events.take_while(there),
        parse,
        never,
        &optional.update,
        updates.clone(),
    )
    .await;
}

fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            is_not_served(error)
        }
        _ => false,
    }
}

pub(crate) fn is_not_served(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404) || is_forbidden(error)
}

fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}
