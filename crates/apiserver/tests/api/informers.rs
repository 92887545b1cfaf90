//! kube-rs as agents and controllers use it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};

use crate::server::Server;

fn map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

/// Applies events until `done`, or fails after some seconds.
async fn until(
    events: &mut (impl futures::Stream<Item = Result<Event<ConfigMap>, watcher::Error>> + Unpin),
    seen: &mut BTreeMap<String, ConfigMap>,
    done: impl Fn(&BTreeMap<String, ConfigMap>) -> bool,
) {
    let name = |map: &ConfigMap| map.metadata.name.clone().unwrap();
    let work = async {
        while !done(seen) {
            match events.next().await.unwrap().unwrap() {
                Event::Apply(map) | Event::InitApply(map) => drop(seen.insert(name(&map), map)),
                Event::Delete(map) => drop(seen.remove(&name(&map))),
                Event::Init => seen.clear(),
                Event::InitDone => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), work)
        .await
        .expect("the informer follows");
}

#[tokio::test]
async fn informers_follow() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::namespaced(server.client.clone(), "default");
    for n in 0..5 {
        api.create(&PostParams::default(), &map(&format!("m{n}")))
            .await
            .unwrap();
    }
    for config in [
        watcher::Config::default().page_size(2),
        watcher::Config::default().streaming_lists(),
    ] {
        let mut events = watcher::watcher(api.clone(), config).boxed();
        let mut seen = BTreeMap::new();
        until(&mut events, &mut seen, |seen| seen.len() == 5).await;
        let patch = Patch::Merge(serde_json::json!({"data": {"x": "y"}}));
        api.patch("m1", &PatchParams::default(), &patch).await.unwrap();
        until(&mut events, &mut seen, |seen| seen["m1"].data.is_some()).await;
        api.delete("m0", &DeleteParams::default()).await.unwrap();
        until(&mut events, &mut seen, |seen| !seen.contains_key("m0")).await;
        api.create(&PostParams::default(), &map("m0")).await.unwrap();
        let undo = Patch::Merge(serde_json::json!({"data": null}));
        api.patch("m1", &PatchParams::default(), &undo).await.unwrap();
        until(&mut events, &mut seen, |seen| {
            seen.len() == 5 && seen["m1"].data.is_none()
        })
        .await;
    }
    let listed = api.list(&ListParams::default().limit(3)).await.unwrap();
    assert_eq!(
        (listed.items.len(), listed.metadata.remaining_item_count),
        (3, Some(2))
    );
}

#[tokio::test]
async fn conflicts_are_told_apart() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::namespaced(server.client.clone(), "default");
    let made = api.create(&PostParams::default(), &map("a")).await.unwrap();
    let mut changed = made.clone();
    changed.data = Some(BTreeMap::from([("k".to_owned(), "v".to_owned())]));
    api.replace("a", &PostParams::default(), &changed).await.unwrap();
    match api.replace("a", &PostParams::default(), &changed).await {
        Err(kube::Error::Api(status)) => assert_eq!((status.code, status.reason.as_str()), (409, "Conflict")),
        other => panic!("{other:?}"),
    }
}

/// Many watchers of many changes: every one sees every change once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_watchers_see_everything() {
    let server = Server::start().await;
    let api: Api<ConfigMap> = Api::namespaced(server.client.clone(), "default");
    let start = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    let watchers = (0..20).map(|_| {
        let (api, start) = (api.clone(), start.clone());
        tokio::spawn(async move {
            let mut seen = 0;
            let mut events = api
                .watch(&kube::api::WatchParams::default(), &start)
                .await
                .unwrap()
                .boxed();
            while seen < 400 {
                match events.next().await.unwrap().unwrap() {
                    kube::api::WatchEvent::Added(_) | kube::api::WatchEvent::Deleted(_) => seen += 1,
                    other => panic!("{other:?}"),
                }
            }
        })
    });
    let watchers: Vec<_> = watchers.collect();
    for n in 0..200 {
        api.create(&PostParams::default(), &map(&format!("m{n}")))
            .await
            .unwrap();
        api.delete(&format!("m{n}"), &DeleteParams::default())
            .await
            .unwrap();
    }
    for watcher in watchers {
        tokio::time::timeout(Duration::from_secs(20), watcher)
            .await
            .unwrap()
            .unwrap();
    }
}
