//! Other people's clients against the real `podnet apiserver`: kube-rs' informer and the Python client.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::control_plane::{ControlPlane, PATIENCE};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"key": value}})).unwrap()
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what} never came to be");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_reflector_follows_what_happens() {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let plane = ControlPlane::start();
    let kubeconfig = kube::config::Kubeconfig::read_from(plane.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
        .await
        .unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(kube::Client::try_from(config).unwrap());
    maps.create(&PostParams::default(), &config_map("before", "1"))
        .await
        .unwrap();

    let (store, writer) = reflector::store();
    let events = watcher(maps.clone(), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects();
    let following = tokio::spawn(events.for_each(|event| async move { drop(event.unwrap()) }));
    let value = |name: &str| {
        let found = store.get(&ObjectRef::new(name).within("default"));
        found.and_then(|map| map.data.as_ref()?.get("key").cloned())
    };
    until("the object from before", || {
        value("before").as_deref() == Some("1")
    })
    .await;
    maps.create(&PostParams::default(), &config_map("after", "2"))
        .await
        .unwrap();
    until("the new object", || value("after").as_deref() == Some("2")).await;
    let patch = Patch::Merge(json!({"data": {"key": "3"}}));
    maps.patch("before", &PatchParams::default(), &patch)
        .await
        .unwrap();
    until("the change", || value("before").as_deref() == Some("3")).await;
    maps.delete("after", &DeleteParams::default()).await.unwrap();
    until("the end", || value("after").is_none()).await;

    // A write on top of an old version is refused, and says why.
    let mut stale = maps.get("before").await.unwrap();
    maps.patch(
        "before",
        &PatchParams::default(),
        &Patch::Merge(json!({"data": {"key": "4"}})),
    )
    .await
    .unwrap();
    stale.data = None;
    let refused = maps
        .replace("before", &PostParams::default(), &stale)
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 409),
        "{refused}"
    );
    following.abort();
}

/// A Python that has the `kubernetes` package.
fn python() -> PathBuf {
    let candidates = [
        std::env::var_os("PYTHON").map(PathBuf::from),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python3")),
        Some("python3".into()),
    ];
    for python in candidates.into_iter().flatten() {
        let found = Command::new(&python).args(["-c", "import kubernetes"]).output();
        if found.is_ok_and(|output| output.status.success()) {
            return python;
        }
    }
    panic!(
        "a Python with the package `kubernetes` is needed: run `.ci/setup`, which installs it to target/python, or name \
         one in PYTHON"
    );
}

#[test]
fn the_python_client_works() {
    let plane = ControlPlane::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/python/client.py");
    let output = Command::new(python())
        .arg(script)
        .env("KUBECONFIG", plane.kubeconfig())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
}
