//! What an agent may not read: an API server that forbids it one kind, as far as a watch asks it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use podnet_agent::watch::{self, Change, Update};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const GROUP: &str = "/apis/policy.networking.k8s.io/v1alpha2";
const POLICIES: &str = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";

/// Answers each path as it is told; the others do not exist.
struct Server {
    address: SocketAddr,
    answers: Arc<Mutex<BTreeMap<&'static str, (u16, Value)>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            address: listener.local_addr().unwrap(),
            answers: Arc::default(),
            asked: Arc::default(),
        };
        let (answers, asked) = (server.answers.clone(), server.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let Some(request) = lines.next() else { continue };
                // The rest of the head; none of these requests has a body.
                lines.find(|line| line.is_empty());
                let path = request.split([' ', '?']).nth(1).unwrap().to_owned();
                let known = answers.lock().unwrap().get(path.as_str()).cloned();
                asked.lock().unwrap().push(path);
                let (code, body) = known.unwrap_or_else(|| (404, status(404, "NotFound")));
                let body = body.to_string();
                // A client that is gone needs no answer.
                let _ = write!(
                    &stream,
                    "HTTP/1.1 {code} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        server
    }

    fn answer(&self, path: &'static str, code: u16, body: Value) {
        self.answers.lock().unwrap().insert(path, (code, body));
    }

    fn times_asked(&self, path: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|asked| *asked == path).count()
    }

    fn client(&self) -> kube::Client {
        let url = format!("http://{}", self.address).parse().unwrap();
        kube::Client::try_from(kube::Config::new(url)).unwrap()
    }
}

fn status(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason })
}

fn group() -> Value {
    json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "policy.networking.k8s.io/v1alpha2",
        "resources": [{
            "name": "clusternetworkpolicies", "singularName": "", "namespaced": false,
            "kind": "ClusterNetworkPolicy", "verbs": ["list", "watch"],
        }],
    })
}

/// How many policies an update tells of, if it tells of them all.
fn all_policies(update: &Update) -> Option<usize> {
    match update {
        Update::ClusterNetworkPolicies(Change::All(all)) => Some(all.len()),
        _ => None,
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let asked = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asked)
        .await
        .unwrap();
}

/// Waits for an update of which that is so.
async fn until_told(told: &mut mpsc::UnboundedReceiver<Update>, is: impl Fn(&Update) -> bool) {
    let mut found = false;
    until(|| {
        while let Ok(update) = told.try_recv() {
            found |= is(&update);
        }
        found
    })
    .await;
}

#[tokio::test]
async fn policies_that_may_not_be_read_are_not_none_where_the_cluster_knows_them() {
    let server = Server::start();
    server.answer(POLICIES, 403, status(403, "Forbidden"));
    server.answer(GROUP, 200, group());
    let (updates, mut told) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    watch::start(&server.client(), updates, &mut tasks);
    until(|| server.times_asked(POLICIES) > 2).await;
    while let Ok(update) = told.try_recv() {
        assert_eq!(all_policies(&update), None, "{update:?}");
    }
    // Granted: there are none, and that is told.
    let list = json!({
        "kind": "ClusterNetworkPolicyList", "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "metadata": { "resourceVersion": "1" }, "items": [],
    });
    server.answer(POLICIES, 200, list);
    until_told(&mut told, |update| all_policies(update) == Some(0)).await;
}

#[tokio::test]
async fn policies_that_may_not_be_read_are_none_where_the_cluster_does_not_know_them() {
    let server = Server::start();
    server.answer(POLICIES, 403, status(403, "Forbidden"));
    let (updates, mut told) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    watch::start(&server.client(), updates, &mut tasks);
    until_told(&mut told, |update| all_policies(update) == Some(0)).await;
    // Somebody installs them, and nobody says that they may be read: from then on it is not known whether there are any.
    server.answer(GROUP, 200, group());
    let is_unknown = |update: &Update| matches!(update, Update::ClusterNetworkPolicies(Change::Unknown));
    until_told(&mut told, is_unknown).await;
}
