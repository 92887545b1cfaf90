//! Pods that are gone, and whose network namespaces something keeps; and the real API server, which knows them no more.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::api::{Api, PostParams};
use podnet_agent::orphans::Orphans;
use serde_json::json;
use tokio::runtime::Runtime;

use crate::answer_nothing;
use crate::node::{Node, Pod, answer, built};

/// The real API server, alone.
struct ApiServer {
    child: Child,
    directory: tempfile::TempDir,
}

impl ApiServer {
    fn start() -> Self {
        let podnet = built().join("podnet");
        assert!(
            podnet.exists(),
            "{} is missing: build the package podnet with the profile of this test",
            podnet.display()
        );
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        let child = Command::new(podnet)
            .args(["apiserver", "--listen", "127.0.0.1:0", "--pki-dir"])
            .arg(directory.path().join("pki"))
            .arg("--write-kubeconfig")
            .arg(format!("{}=https://127.0.0.1:{{port}}", kubeconfig.display()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = ApiServer { child, directory };
        let end = Instant::now() + Duration::from_secs(30);
        while !kubeconfig.exists() {
            assert!(Instant::now() < end, "the API server does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// A client with a configuration that is changed before.
    fn client_with(&self, runtime: &Runtime, change: impl FnOnce(&mut kube::Config)) -> kube::Client {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        runtime.block_on(async {
            let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig()).unwrap();
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await;
            let mut config = config.unwrap();
            change(&mut config);
            kube::Client::try_from(config).unwrap()
        })
    }

    fn client(&self, runtime: &Runtime) -> kube::Client {
        self.client_with(runtime, |_| ())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Makes a pod in the API; its UID.
fn create(runtime: &Runtime, client: &kube::Client, name: &str, annotation: Option<&str>) -> String {
    let pod: ApiPod = serde_json::from_value(json!({
        "metadata": { "name": name, "annotations": annotation.map(|hash| json!({ "kubernetes.io/config.hash": hash })) },
        "spec": { "containers": [{ "name": "c", "image": "host" }] },
    }))
    .unwrap();
    let api: Api<ApiPod> = Api::namespaced(client.clone(), "default");
    let created = runtime.block_on(async {
        // It may not serve yet.
        loop {
            match api.create(&PostParams::default(), &pod).await {
                Ok(created) => return created,
                Err(kube::Error::Api(status)) => panic!("{status:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    created.metadata.uid.unwrap()
}

/// A server that lets nobody do anything, as the real one of a cluster does without the agent's role. The lab's has no
/// roles.
fn forbidding(runtime: &Runtime) -> kube::Client {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .for_each(drop);
            let body = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 403,
                "reason": "Forbidden", "message": "pods \"gone\" is forbidden", "details": { "name": "gone", "kind": "pods" },
            })
            .to_string();
            let length = body.len();
            let head = format!(
                "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            );
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    let _inside = runtime.enter();
    kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap()
}

fn runtime() -> Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap()
}

/// A process in a pod's network namespace.
struct Inhabitant(Child);

impl Inhabitant {
    fn of(pod: &Pod) -> Self {
        let child = pod
            .netns
            .run(|| Command::new("sleep").arg("infinity").spawn().unwrap());
        Inhabitant(child.unwrap())
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_pod_that_is_gone_is_freed_though_its_namespace_is_pinned() {
    let runtime = runtime();
    let server = ApiServer::start();
    let client = server.client(&runtime);
    create(&runtime, &client, "replaced", None);
    let there = create(&runtime, &client, "there", None);
    create(&runtime, &client, "of-a-file", Some("u-of-a-file"));

    let node = Node::start();
    let names = [
        "gone",
        "replaced",
        "gone-but-running",
        "there",
        "of-a-file",
        "nowhere",
    ];
    let pods = names.map(Pod::new);
    for pod in &pods {
        let further = match pod.id.as_str() {
            "there" => format!("K8S_POD_UID={there}"),
            "nowhere" => "K8S_POD_NAMESPACE=no-such-namespace".into(),
            _ => String::new(),
        };
        answer(&node.cni_args("ADD", pod, &further, json!({})));
    }
    let _running = Inhabitant::of(&pods[2]);
    let mut orphans = Orphans::default();
    let reclaimer = node.reclaimer();
    let mut round = || runtime.block_on(orphans.round(&client, &reclaimer));
    round();
    assert_eq!(node.leases(), names.len(), "seen once");
    round();
    node.settle();
    assert_eq!((node.leases(), node.pod_links()), (3, 3));
    let left = reclaimer.leases().into_iter().map(|lease| lease.pod.name);
    let left: BTreeSet<String> = left.collect();
    assert_eq!(
        left,
        ["gone-but-running", "of-a-file", "there"]
            .map(str::to_owned)
            .into()
    );
    drop(reclaimer);
    for pod in &pods {
        answer_nothing(&node.cni("DEL", pod, "1.1.0", None));
    }
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn an_api_server_that_cannot_tell_frees_nothing() {
    let runtime = runtime();
    let (server, away) = (ApiServer::start(), ApiServer::start());
    let client = server.client(&runtime);
    create(&runtime, &client, "there", None);
    let without_key = server.client_with(&runtime, |config| config.auth_info = Default::default());
    let wrong_url = server.client_with(&runtime, |config| {
        config.cluster_url = format!("{}elsewhere", config.cluster_url).parse().unwrap();
    });
    let of_one_away = away.client(&runtime);
    drop(away);

    let node = Node::start();
    let (gone, running) = (Pod::new("gone"), Pod::new("running"));
    for pod in [&gone, &running] {
        answer(&node.cni("ADD", pod, "1.1.0", None));
    }
    let _running = Inhabitant::of(&running);
    let reclaimer = node.reclaimer();
    let rounds = |client: &kube::Client| {
        let mut orphans = Orphans::default();
        for _ in 0..3 {
            runtime.block_on(orphans.round(client, &reclaimer));
        }
        node.settle();
        node.leases()
    };
    for (what, client) in [
        ("it does not know who asks", without_key),
        ("it does not let the agent ask", forbidding(&runtime)),
        ("the URL is not the API's", wrong_url),
        ("it is away", of_one_away),
    ] {
        assert_eq!(rounds(&client), 2, "{what}");
    }
    assert_eq!(rounds(&client), 1, "one that can tell");
}

#[test]
fn who_sees_no_process_of_any_pod_frees_nothing() {
    let node = Node::start();
    let pod = Pod::new("gone");
    answer(&node.cni("ADD", &pod, "1.1.0", None));
    let runtime = runtime();
    let server = ApiServer::start();
    let client = server.client(&runtime);
    // It serves.
    create(&runtime, &client, "another", None);
    let mut orphans = Orphans::default();
    let reclaimer = node.reclaimer();
    for _ in 0..3 {
        runtime.block_on(orphans.round(&client, &reclaimer));
    }
    node.settle();
    // In the machine's first PID namespace everything is seen; in one below it, as in a container, it may not be.
    let all = std::fs::read_link("/proc/self/ns/pid").unwrap().to_str() == Some("pid:[4026531836]");
    assert_eq!(node.leases(), usize::from(!all));
}
