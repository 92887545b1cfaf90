//! Pools, where the cluster has their kinds; and where it has IP pools, namespaces, by which these are chosen.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, ListParams, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use podnet_core::cluster::{IpPool, LoadBalancerPool, Parsed};
use tokio::sync::mpsc;

use super::{Change, Retry, Update, never, pass_on};
use crate::parse;

/// Longest wait before asking again for a kind that is not there, where its definition cannot be watched: most clusters
/// never have it.
const LONGEST_WAIT: Duration = Duration::from_secs(32);

/// An object and its name.
type Named<T> = (String, Parsed<T>);

/// A kind that is there only where somebody has installed it.
pub(super) struct Pools<T> {
    kind: &'static str,
    plural: &'static str,
    parse: fn(&DynamicObject) -> Option<Named<T>>,
    update: fn(Change<String, T>) -> Update,
    /// Whether namespaces matter to it.
    by_namespace: bool,
}

pub(super) const IP_POOLS: Pools<IpPool> = Pools {
    kind: "IPPool",
    plural: "ippools",
    parse: parse::pool,
    update: Update::Pools,
    by_namespace: true,
};

pub(super) const LOAD_BALANCER_POOLS: Pools<LoadBalancerPool> = Pools {
    kind: "LoadBalancerPool",
    plural: "loadbalancerpools",
    parse: parse::load_balancer_pool,
    update: Update::LoadBalancerPools,
    by_namespace: false,
};

/// Watches pools from when their kind is there until it is gone, and again.
pub(super) async fn follow<T>(client: kube::Client, pools: Pools<T>, updates: mpsc::UnboundedSender<Update>) {
    let kind = parse::own_kind(pools.kind, pools.plural);
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let mut namespaces = None;
    let mut wait = Duration::from_secs(1);
    let mut told = false;
    while !updates.is_closed() {
        match api.list_metadata(&ListParams::default().limit(1)).await {
            Ok(_) => {
                // A set ends its tasks with this one.
                let set = namespaces.get_or_insert_with(tokio::task::JoinSet::new);
                if pools.by_namespace && set.is_empty() {
                    set.spawn(follow_namespaces(client.clone(), updates.clone()));
                }
                follow_while_there(&api, &pools, &updates).await;
                wait = Duration::from_secs(1);
            }
            Err(error) if is_not_served(&error) => {
                if !std::mem::replace(&mut told, true) && is_forbidden(&error) {
                    let kind = pools.kind;
                    tracing::warn!(%error, "may not read {kind}s, and goes without them; grant it if the cluster has any");
                }
                if updates.send((pools.update)(Change::All(Vec::new()))).is_err() {
                    return;
                }
            }
            // The other watches say that the API server is away.
            Err(_) => wait = Duration::from_secs(1),
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
            () = installed(&client, pools.plural) => {}
        }
    }
}

/// Waits until the kind is defined; for ever, where its definition may not be looked at.
async fn installed(client: &kube::Client, plural: &str) {
    // Something that was defined just now is served a moment later.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={plural}.podnet.io"));
    let mut events = std::pin::pin!(watcher(api, config).backoff(Retry::default()));
    while let Some(event) = events.next().await {
        if let Ok(Event::Apply(_) | Event::InitApply(_)) = event {
            return;
        }
    }
    std::future::pending().await
}

/// Passes on pools until the API server says that there is no such kind.
async fn follow_while_there<T>(
    api: &Api<DynamicObject>,
    pools: &Pools<T>,
    updates: &mpsc::UnboundedSender<Update>,
) {
    let events = watcher(api.clone(), watcher::Config::default()).backoff(Retry::default());
    let there = |event: &watcher::Result<watcher::Event<DynamicObject>>| {
        let gone = event.as_ref().is_err_and(is_gone);
        std::future::ready(!gone)
    };
    let pool = |object: &DynamicObject| (pools.parse)(object).map(|(name, parsed)| (name, Some(parsed)));
    pass_on(
        pools.kind,
        events.take_while(there),
        pool,
        never,
        pools.update,
        updates.clone(),
    )
    .await;
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

fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => {
            is_not_served(error)
        }
        _ => false,
    }
}

fn is_not_served(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404) || is_forbidden(error)
}

fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}
