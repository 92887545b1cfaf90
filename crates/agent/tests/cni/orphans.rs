//! Pods that are gone, and whose network namespaces something keeps.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, Command};

use podnet_agent::orphans::Orphans;
use serde_json::{Value, json};

use crate::answer_nothing;
use crate::node::{Node, Pod, answer};

/// An API server that knows these pods, by the ends of their paths.
fn api(pods: &'static [(&'static str, &'static str, &'static str)]) -> kube::Client {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap())
                .lines()
                .map_while(Result::ok);
            let path = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let found = pods
                .iter()
                .find(|(name, ..)| path.contains(&format!("/pods/{name} ")));
            let (status, body) = match found {
                Some((name, uid, hash)) => ("200 OK", pod(name, uid, hash)),
                None => (
                    "404 Not Found",
                    json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404,
                        "reason": "NotFound", "message": "no such pod",
                    }),
                ),
            };
            let body = body.to_string();
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            );
            stream.write_all((head + &body).as_bytes()).unwrap();
        }
    });
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap()
}

fn pod(name: &str, uid: &str, hash: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": { "name": name, "namespace": "default", "uid": uid, "annotations": { "kubernetes.io/config.hash": hash } },
    })
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
    let node = Node::start();
    let names = ["gone", "replaced", "gone-but-running", "there", "of-a-file"];
    let pods = names.map(Pod::new);
    for pod in &pods {
        answer(&node.cni("ADD", pod, "1.1.0", None));
    }
    let _running = Inhabitant::of(&pods[2]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap();
    let client = {
        let _inside = runtime.enter();
        api(&[
            ("replaced", "another", ""),
            ("there", "u-there", ""),
            ("of-a-file", "the mirror's", "u-of-a-file"),
        ])
    };
    let mut orphans = Orphans::default();
    let reclaimer = node.reclaimer();
    let mut round = || runtime.block_on(orphans.round(&client, &reclaimer));
    round();
    assert_eq!(node.leases(), 5, "seen once");
    round();
    node.settle();
    assert_eq!((node.leases(), node.pod_links()), (3, 3));
    drop(reclaimer);
    for pod in &pods {
        answer_nothing(&node.cni("DEL", pod, "1.1.0", None));
    }
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn who_sees_no_process_of_any_pod_frees_nothing() {
    let node = Node::start();
    let pod = Pod::new("gone");
    answer(&node.cni("ADD", &pod, "1.1.0", None));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap();
    let client = {
        let _inside = runtime.enter();
        api(&[])
    };
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
