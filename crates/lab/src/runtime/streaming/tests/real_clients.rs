//! Real clients, kubectl and kube-rs, before a server that does for one pod what the API server does: it translates the query of
//! `pods/exec` into kubelet's and then passes bytes on.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::Command;

use super::*;

async fn serve_api(listener: TcpListener, kubelet: PathBuf) {
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let kubelet = kubelet.clone();
        tokio::spawn(async move { connection(client, &kubelet).await });
    }
}

async fn connection(mut client: TcpStream, kubelet: &Path) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let (line, headers) = head.split_once("\r\n").unwrap();
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pod = "/api/v1/namespaces/default/pods/pod";
    let to_kubelet = match path.strip_prefix(pod) {
        Some("/exec") => format!("/exec/default/pod/c?{}", kubelet_query(query)),
        Some("/log") => format!("/containerLogs/default/pod/c?{query}"),
        _ => return client.write_all(answer(path, pod).as_bytes()).await,
    };
    let mut server = UnixStream::connect(kubelet).await?;
    server
        .write_all(format!("{method} {to_kubelet} HTTP/1.1\r\n{headers}").as_bytes())
        .await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

fn kubelet_query(query: &str) -> String {
    let name = |name: &str| match name {
        "stdin" => "input".to_owned(),
        "stdout" => "output".to_owned(),
        "stderr" => "error".to_owned(),
        other => other.to_owned(),
    };
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap();
        format!("{}={value}", name(key))
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(pair)
        .collect::<Vec<_>>()
        .join("&")
}

fn answer(path: &str, pod: &str) -> String {
    let resource = |name: &str| json!({"name": name, "singularName": "", "namespaced": true, "kind": "Pod", "verbs": ["get"]});
    let body = match path {
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
        "/api/v1" => {
            json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [resource("pods")]})
        }
        path if path == pod => json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "pod", "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "host", "tty": false}]}, "status": {"phase": "Running"},
        }),
        _ => return "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into(),
    };
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

struct Kubectl {
    node: Node,
    api: tokio::task::JoinHandle<()>,
    address: std::net::SocketAddr,
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        self.api.abort();
    }
}

impl Kubectl {
    async fn start() -> Self {
        let node = Node::start();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let api = tokio::spawn(serve_api(listener, node.socket.clone()));
        Kubectl { node, api, address }
    }

    async fn run(&self, input: &[u8], args: &[&str]) -> Output {
        let mut command = Command::new("kubectl");
        command
            .arg("--server")
            .arg(format!("http://{}", self.address))
            .args(args);
        self.finish(command, input).await
    }

    /// At a terminal that `script` makes.
    async fn run_at_terminal(&self, input: &[u8], line: &str) -> Output {
        let mut command = Command::new("script");
        let line = format!(
            "stty rows 33 cols 99; kubectl --server http://{} {line}",
            self.address
        );
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        self.finish(command, input).await
    }

    async fn finish(&self, mut command: Command, input: &[u8]) -> Output {
        // Neither a kubeconfig nor a cache of the person who runs the tests.
        command
            .env("KUBECONFIG", "/dev/null")
            .env("HOME", self.node.machine.dir.path());
        command
            .stdin(ChildStdio::piped())
            .stdout(ChildStdio::piped())
            .stderr(ChildStdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("kubectl is installed");
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let feed = tokio::spawn(async move { stdin.write_all(&input).await });
        let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
        feed.abort();
        output.expect("in time").unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn kubectl_execs() {
    let kubectl = Kubectl::start().await;
    let script = "echo out; echo err >&2; exit 42";
    let output = kubectl.run(b"", &["exec", "pod", "--", "sh", "-c", script]).await;
    assert_eq!(output.status.code(), Some(42), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "out\n");
    assert!(text(&output.stderr).starts_with("err\n"));
}

#[tokio::test]
async fn kubectl_pipes_its_input_through() {
    let kubectl = Kubectl::start().await;
    let much = vec![b'x'; 1 << 20];
    let output = kubectl
        .run(&much, &["exec", "-i", "pod", "--", "sh", "-c", "cat; echo end"])
        .await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stdout.len() == much.len() + 4 && output.stdout.ends_with(b"xend\n"));
}

#[tokio::test]
async fn kubectl_reads_logs() {
    let kubectl = Kubectl::start().await;
    let output = kubectl.run(b"", &["logs", "pod", "--timestamps"]).await;
    assert_eq!(
        text(&output.stdout),
        "2026-01-01T00:00:00.000000000Z hello\n",
        "{}",
        text(&output.stderr)
    );
}

#[tokio::test]
async fn kubectl_works_at_a_terminal() {
    let kubectl = Kubectl::start().await;
    let line = "exec -it pod -- sh -c 'stty size; read word; echo got $word; exit 5'";
    let output = kubectl.run_at_terminal(b"hello\n", line).await;
    let said = text(&output.stdout);
    assert!(
        said.contains("33 99\r\n") && said.contains("got hello\r\n"),
        "{said:?}"
    );
    assert_eq!(output.status.code(), Some(5), "{said:?}");
}

#[tokio::test]
async fn kube_rs_execs() {
    use kube::api::{Api, AttachParams};
    let kubectl = Kubectl::start().await;
    let config = kube::Config::new(format!("http://{}", kubectl.address).parse().unwrap());
    let client = kube::Client::try_from(config).unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client, "default");
    let streams = AttachParams::default().stdin(true).stdout(true).stderr(true);
    let mut exec = pods
        .exec("pod", ["sh", "-c", "cat; echo err >&2; exit 7"], &streams)
        .await
        .unwrap();
    let (mut stdin, mut stdout) = (exec.stdin().unwrap(), exec.stdout().unwrap());
    let (mut stderr, status) = (exec.stderr().unwrap(), exec.take_status().unwrap());
    stdin.write_all(b"there and back").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    let read = async {
        tokio::join!(
            stdout.read_to_string(&mut out),
            stderr.read_to_string(&mut err),
            status
        )
    };
    let (.., status) = tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .expect("in time");
    assert_eq!((out.as_str(), err.as_str()), ("there and back", "err\n"));
    let causes = status.unwrap().details.unwrap().causes.unwrap();
    assert_eq!(causes[0].message.as_deref(), Some("7"));
}
