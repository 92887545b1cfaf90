//! The controllers against the embedded API server: both real processes, on loopback. The nodes' part is played here.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(30);

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn podnet(args: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podnet"));
    Process(
        command
            .args(args)
            .stdin(Stdio::null())
            .spawn()
            .expect("podnet starts"),
    )
}

struct Cluster {
    client: Client,
    kubeconfig: PathBuf,
    _server: Process,
    _dir: TempDir,
    nodes: tokio::task::JoinHandle<()>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.abort();
    }
}

impl Cluster {
    async fn start() -> Cluster {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        let written = format!("{}=https://127.0.0.1:{{port}}", kubeconfig.display());
        let pki = dir.path().join("pki");
        let server = podnet(&[
            "apiserver",
            "--listen",
            "127.0.0.1:0",
            "--pki-dir",
            pki.to_str().unwrap(),
            "--write-kubeconfig",
            &written,
        ]);
        let client = connect(&kubeconfig).await;
        let nodes = tokio::spawn(play_nodes(client.clone()));
        Cluster {
            client,
            kubeconfig,
            _server: server,
            _dir: dir,
            nodes,
        }
    }

    fn controller(&self, args: &[&str]) -> Process {
        let kubeconfig = self.kubeconfig.to_str().unwrap();
        podnet(
            &[
                &["controller", "--kubeconfig", kubeconfig, "--controllers", "all"],
                args,
            ]
            .concat(),
        )
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn apply<K>(&self, api: Api<K>, object: Value)
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        let name = object["metadata"]["name"].as_str().unwrap();
        if api.get_opt(name).await.unwrap().is_some() {
            api.patch(name, &PatchParams::default(), &Patch::Merge(&object))
                .await
                .unwrap();
        } else {
            api.create(&Default::default(), &serde_json::from_value(object).unwrap())
                .await
                .unwrap();
        }
    }

    async fn rolled_out(&self, replicas: i32) {
        eventually(&format!("{replicas} replicas"), async || {
            let web = self.api::<Deployment>().get("web").await.ok()?;
            let status = web.status?;
            let equal = |count: Option<i32>| count.unwrap_or(0) == replicas;
            let counted = equal(status.replicas)
                && equal(status.updated_replicas)
                && equal(status.available_replicas)
                && status.observed_generation == web.metadata.generation;
            let progressing = status
                .conditions?
                .into_iter()
                .find(|c| c.type_ == "Progressing")?;
            (counted && progressing.reason.as_deref() == Some("NewReplicaSetAvailable")).then_some(())
        })
        .await;
    }
}

async fn connect(kubeconfig: &Path) -> Client {
    eventually("the API server", async || {
        let file = Kubeconfig::read_from(kubeconfig).ok()?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .ok()?;
        let client = Client::try_from(config).ok()?;
        client.apiserver_version().await.ok().map(|_| client)
    })
    .await
}

async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "still no {what} after {SOON:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().to_string()
}

/// Starts every pod that is bound and ends every pod that is to be deleted.
async fn play_nodes(client: Client) {
    let pods: Api<Pod> = Api::all(client.clone());
    let mut started = 0;
    loop {
        let list = pods
            .list(&ListParams::default())
            .await
            .map(|list| list.items)
            .unwrap_or_default();
        let bound = list
            .into_iter()
            .filter(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_some()));
        let acts = bound.filter_map(|pod| {
            let running = pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
            let going = pod.metadata.deletion_timestamp.is_some();
            started += 1;
            (going || !running).then(|| act(client.clone(), pod, started))
        });
        join_all(acts.collect::<Vec<_>>()).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn act(client: Client, pod: Pod, number: usize) {
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace().unwrap());
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_some() {
        let _ = api
            .delete(
                &name,
                &DeleteParams {
                    grace_period_seconds: Some(0),
                    ..Default::default()
                },
            )
            .await;
        return;
    }
    let ip = format!("10.244.{}.{}", number / 250 % 250, number % 250);
    let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": now()});
    let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready]});
    let _ = api
        .patch_status(
            &name,
            &PatchParams::default(),
            &Patch::Merge(json!({"status": status})),
        )
        .await;
}

async fn add_node(cluster: &Cluster, name: &str) {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let node = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
    nodes
        .create(&Default::default(), &serde_json::from_value(node).unwrap())
        .await
        .unwrap();
    let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": now()});
    let status = json!({"status": {"conditions": [ready], "allocatable": {"pods": "110"}}});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
}

fn web(replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image,
                    "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    })
}

fn web_service() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}})
}

fn signal(process: &Process, signal: &str) {
    let status = Command::new("kill")
        .args([signal, &process.0.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_deployment_to_endpoints_and_back_to_nothing() {
    let cluster = Cluster::start().await;
    let _controller = cluster.controller(&["--leader-elect", "false"]);
    for name in ["node1", "node2", "node3"] {
        add_node(&cluster, name).await;
    }
    cluster.apply(cluster.api::<Service>(), web_service()).await;
    cluster
        .apply(cluster.api::<Deployment>(), web(6, "podnet/echo"))
        .await;
    cluster.rolled_out(6).await;
    let pods = cluster
        .api::<Pod>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    for name in ["node1", "node2", "node3"] {
        let here = pods
            .iter()
            .filter(|p| p.spec.as_ref().unwrap().node_name.as_deref() == Some(name));
        assert_eq!(here.count(), 2, "pods of {name}");
    }
    eventually("endpoints", async || {
        let selector = ListParams::default().labels("kubernetes.io/service-name=web");
        let slices = cluster.api::<EndpointSlice>().list(&selector).await.ok()?.items;
        let ready: usize = slices
            .iter()
            .map(|s| s.endpoints.as_ref().map_or(0, Vec::len))
            .sum();
        let legacy = cluster
            .api::<Endpoints>()
            .get("web")
            .await
            .ok()?
            .subsets?
            .first()?
            .addresses
            .clone()?;
        (ready == 6 && legacy.len() == 6).then_some(())
    })
    .await;
    let ranges: std::collections::BTreeSet<String> = Api::<Node>::all(cluster.client.clone())
        .list(&ListParams::default())
        .await
        .unwrap()
        .into_iter()
        .filter_map(|node| node.spec?.pod_cidr)
        .collect();
    assert_eq!(
        ranges,
        ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]
            .map(str::to_owned)
            .into()
    );
    cluster
        .apply(cluster.api::<Deployment>(), web(6, "podnet/echo:2"))
        .await;
    cluster.rolled_out(6).await;
    cluster
        .apply(cluster.api::<Deployment>(), web(6, "podnet/echo"))
        .await;
    cluster.rolled_out(6).await;
    assert_eq!(
        cluster
            .api::<ReplicaSet>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        2
    );
    cluster
        .api::<Deployment>()
        .delete("web", &DeleteParams::foreground())
        .await
        .unwrap();
    cluster
        .api::<Service>()
        .delete("web", &DeleteParams::background())
        .await
        .unwrap();
    eventually("end of everything", async || {
        let all = ListParams::default();
        let slices = ListParams::default().labels("kubernetes.io/service-name=web");
        let left = cluster.api::<Deployment>().list(&all).await.ok()?.items.len()
            + cluster.api::<ReplicaSet>().list(&all).await.ok()?.items.len()
            + cluster.api::<Pod>().list(&all).await.ok()?.items.len()
            + cluster
                .api::<EndpointSlice>()
                .list(&slices)
                .await
                .ok()?
                .items
                .len()
            + usize::from(cluster.api::<Endpoints>().get_opt("web").await.ok()?.is_some());
        (left == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_pods_survive_a_controller_that_is_killed() {
    let cluster = Cluster::start().await;
    let controller = cluster.controller(&["--leader-elect", "false"]);
    for name in ["node1", "node2", "node3"] {
        add_node(&cluster, name).await;
    }
    cluster
        .apply(cluster.api::<Deployment>(), web(200, "podnet/echo"))
        .await;
    eventually("first pods", async || {
        let pods = cluster
            .api::<Pod>()
            .list(&ListParams::default())
            .await
            .ok()?
            .items
            .len();
        (pods > 20).then_some(())
    })
    .await;
    drop(controller);
    let _controller = cluster.controller(&["--leader-elect", "false"]);
    cluster.rolled_out(200).await;
    for replicas in [3, 150, 0, 40] {
        cluster
            .apply(cluster.api::<Deployment>(), web(replicas, "podnet/echo"))
            .await;
    }
    cluster.rolled_out(40).await;
    eventually("just 40 pods", async || {
        let pods = cluster
            .api::<Pod>()
            .list(&ListParams::default())
            .await
            .ok()?
            .items;
        (pods.len() == 40).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let cluster = Cluster::start().await;
    let _controller = cluster.controller(&["--leader-elect", "false"]);
    add_node(&cluster, "node1").await;
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    });
    cluster
        .apply(
            Api::<CustomResourceDefinition>::all(cluster.client.clone()),
            definition,
        )
        .await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}});
    cluster.apply(namespaces.clone(), namespace).await;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "other");
    cluster.apply(deployments, web(5, "podnet/echo")).await;
    let kind = GroupVersionKind::gvk("example.com", "v1", "Widget");
    let resource = ApiResource::from_gvk_with_plural(&kind, "widgets");
    let widgets: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "other", &resource);
    let widget = eventually("widget", async || {
        let widget = DynamicObject::new("w", &resource).data(json!({}));
        widgets.create(&Default::default(), &widget).await.ok()
    })
    .await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "other");
    for (name, uid) in [("owned", widget.uid().unwrap()), ("lost", "nobody".into())] {
        let owner = json!({"apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "uid": uid});
        let metadata = json!({"name": name, "ownerReferences": [owner]});
        cluster
            .apply(
                maps.clone(),
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}),
            )
            .await;
    }
    eventually("collection of what has no owner", async || {
        maps.get_opt("lost").await.ok()?.is_none().then_some(())
    })
    .await;
    assert!(maps.get_opt("owned").await.unwrap().is_some());
    widgets.delete("w", &DeleteParams::default()).await.unwrap();
    eventually("collection with the owner", async || {
        maps.get_opt("owned").await.ok()?.is_none().then_some(())
    })
    .await;
    widgets
        .create(
            &Default::default(),
            &DynamicObject::new("w2", &resource).data(json!({})),
        )
        .await
        .unwrap();
    namespaces
        .delete("other", &DeleteParams::default())
        .await
        .unwrap();
    eventually("end of the namespace", async || {
        namespaces.get_opt("other").await.ok()?.is_none().then_some(())
    })
    .await;
    assert!(
        widgets
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_leads_and_the_other_takes_over() {
    let cluster = Cluster::start().await;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-system");
    let holder = async || {
        leases
            .get_opt("podnet-controller")
            .await
            .ok()??
            .spec?
            .holder_identity
    };
    let first = cluster.controller(&[]);
    let leader = eventually("leader", async || holder().await.filter(|h| !h.is_empty())).await;
    let _second = cluster.controller(&[]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(holder().await.as_ref(), Some(&leader));
    signal(&first, "-TERM");
    eventually("new leader", async || {
        holder().await.filter(|h| !h.is_empty() && *h != leader)
    })
    .await;
    add_node(&cluster, "node1").await;
    eventually("range", async || {
        Api::<Node>::all(cluster.client.clone())
            .get("node1")
            .await
            .ok()?
            .spec?
            .pod_cidr
    })
    .await;
}

#[test]
fn bad_arguments_are_told_apart() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_podnet"))
            .arg("controller")
            .args(args)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(run(&["--controllers", "nonsense"]).0, Some(2));
    let (code, text) = run(&["--cluster-cidr", "10.0.0.0/24", "--node-cidr-mask-size", "16"]);
    assert!(
        code == Some(1) && text.contains("--node-cidr-mask-size"),
        "{code:?} {text}"
    );
    let (code, text) = run(&["--kubeconfig", "/nonexistent"]);
    assert!(
        code == Some(1) && text.contains("/nonexistent"),
        "{code:?} {text}"
    );
}
