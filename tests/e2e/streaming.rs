//! Exec and attach through the kubelet API, with containers of a real pod sandbox behind it. Needs root.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use podnet_lab::image::Store;
use podnet_lab::runtime::streaming::{Container, Containers, InSandbox, LogSource, Refusal, serve};
use podnet_lab::sandbox::{ContainerSpec, Sandbox, SandboxSpec};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const PODNET: &str = env!("CARGO_BIN_EXE_podnet");
const PATIENCE: Duration = Duration::from_secs(20);

/// A pod whose only container is the one that a test started.
struct Pod {
    sandbox: Sandbox,
    id: String,
    finished: watch::Sender<bool>,
    dir: PathBuf,
}

impl Containers for Pod {
    fn log(&self, _: &str, _: &str, _: &str, _: bool) -> Result<LogSource, Refusal> {
        Ok(LogSource {
            path: self.dir.join("0.log"),
            finished: self.finished.subscribe(),
        })
    }

    fn container(&self, _: &str, _: &str, _: &str) -> Result<Container, Refusal> {
        let exec = Arc::new(InSandbox {
            sandbox: self.sandbox.clone(),
            container: self.id.clone(),
        });
        Ok(Container {
            exec,
            finished: self.finished.subscribe(),
            stdin_once: true,
        })
    }
}

/// The pod and its server; both end with the test, however that ends.
struct Node {
    socket: PathBuf,
    pod: Arc<Pod>,
    server: tokio::task::JoinHandle<()>,
    watcher: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.server.abort();
        self.watcher.abort();
        let pid = self.pod.sandbox.pid();
        let _ = std::process::Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status();
        let deadline = Instant::now() + PATIENCE;
        while Path::new(&format!("/proc/{pid}")).exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Node {
    async fn start(script: &str, stdin: bool, tty: bool) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let spec = SandboxSpec {
            dir: dir.path().join("pod"),
            hostname: "pod".into(),
            ..SandboxSpec::default()
        };
        let sandbox = Sandbox::create_with(Path::new(PODNET), &spec).await.unwrap();
        let container = ContainerSpec {
            id: format!("{:064x}", 1),
            name: "c".into(),
            image: Store::new("/nowhere").resolve("host").unwrap(),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: dir.path().join("0.log"),
            stdin,
            tty,
            ..ContainerSpec::default()
        };
        sandbox.start_container(&container).await.unwrap();
        let finished = watch::Sender::new(false);
        let pod = Arc::new(Pod {
            sandbox,
            id: container.id,
            finished,
            dir: dir.path().to_owned(),
        });
        let socket = dir.path().join("kubelet.sock");
        let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), pod.clone()));
        let watched = pod.clone();
        let watcher = tokio::spawn(async move {
            while watched
                .sandbox
                .containers()
                .await
                .is_ok_and(|all| all.iter().any(|one| one.is_running()))
            {
                if watched.sandbox.changed().await.is_err() {
                    break;
                }
            }
            watched.finished.send_replace(true);
        });
        Node {
            socket,
            pod,
            server,
            watcher,
            _dir: dir,
        }
    }

    async fn connect(&self, path: &str) -> Client {
        let stream = UnixStream::connect(&self.socket).await.unwrap();
        let mut request = format!("ws://kubelet{path}").into_client_request().unwrap();
        request
            .headers_mut()
            .insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        Client {
            socket,
            stdout: String::new(),
            stderr: String::new(),
            status: String::new(),
        }
    }

    async fn exec(&self, script: &str, streams: &str) -> Client {
        let script: String = script.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.connect(&format!(
            "/exec/default/pod/c?command=sh&command=-c&command={script}&{streams}"
        ))
        .await
    }
}

struct Client {
    socket: WebSocketStream<UnixStream>,
    stdout: String,
    stderr: String,
    status: String,
}

impl Client {
    async fn send(&mut self, channel: u8, payload: &[u8]) {
        self.socket
            .send(Message::binary([&[channel], payload].concat()))
            .await
            .unwrap();
    }

    /// False at the end.
    async fn hear(&mut self) -> bool {
        let heard = tokio::time::timeout(PATIENCE, self.socket.next()).await;
        let Some(message) = heard.expect("in time") else {
            return false;
        };
        if let Message::Binary(bytes) = message.unwrap() {
            let text = std::str::from_utf8(&bytes[1..]).unwrap();
            match bytes[0] {
                1 => self.stdout += text,
                2 => self.stderr += text,
                _ => self.status += text,
            }
        }
        true
    }

    async fn read_until(&mut self, text: &str) {
        while !self.stdout.contains(text) {
            assert!(
                self.hear().await,
                "{:?} without {text:?}; {}",
                self.stdout,
                self.status
            );
        }
    }

    async fn finish(&mut self) {
        while self.hear().await {}
    }
}

#[tokio::test]
async fn exec_runs_in_the_container_and_says_its_exit_code() {
    let node = Node::start("sleep 1000", false, false).await;
    let mut exec = node
        .exec("hostname; cat; echo err >&2; exit 42", "input=1&output=1&error=1")
        .await;
    exec.send(0, b"from the client\n").await;
    exec.send(255, &[0]).await;
    exec.finish().await;
    assert_eq!(
        (exec.stdout.as_str(), exec.stderr.as_str()),
        ("pod\nfrom the client\n", "err\n")
    );
    assert!(exec.status.contains(r#""message":"42""#), "{}", exec.status);
}

#[tokio::test]
async fn exec_has_a_terminal_of_the_clients_size() {
    let node = Node::start("sleep 1000", false, false).await;
    let mut exec = node
        .exec(
            "stty size; tty; read w; stty size; echo $w",
            "input=1&output=1&tty=1",
        )
        .await;
    exec.send(4, br#"{"Width":120,"Height":40}"#).await;
    exec.read_until("40 120").await;
    exec.send(4, br#"{"Width":90,"Height":30}"#).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    exec.send(0, b"word\n").await;
    exec.finish().await;
    assert!(exec.stdout.contains("30 90\r\nword\r\n"), "{:?}", exec.stdout);
    assert!(exec.stdout.contains("/dev/pts/"), "{:?}", exec.stdout);
}

#[tokio::test]
async fn exec_of_what_is_not_there_says_so() {
    let node = Node::start("sleep 1000", false, false).await;
    let mut exec = node
        .connect("/exec/default/pod/c?command=no-such-program&output=1")
        .await;
    exec.finish().await;
    assert!(
        exec.status.contains("InternalError") && exec.status.contains("no-such-program"),
        "{}",
        exec.status
    );
}

#[tokio::test]
async fn exec_ends_with_its_client() {
    let node = Node::start("sleep 1000", false, false).await;
    let mut exec = node.exec("echo started; exec sleep 8888", "output=1").await;
    exec.read_until("started").await;
    drop(exec);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut look = node
            .exec("grep -lz 8888 /proc/[0-9]*/cmdline; true", "output=1")
            .await;
        look.finish().await;
        let others = look.stdout.lines().count();
        // The search itself has the number in its own command lines.
        if others <= 2 {
            break;
        }
        assert!(Instant::now() < deadline, "{}", look.stdout);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn attach_talks_to_the_container_until_it_ends() {
    let node = Node::start("cat; echo the end; exit 3", true, false).await;
    let mut attach = node
        .connect("/attach/default/pod/c?input=1&output=1&error=1")
        .await;
    attach.send(0, b"hello\n").await;
    attach.read_until("hello\n").await;
    // stdinOnce: the end of the client's input is the end of the container's.
    attach.send(255, &[0]).await;
    attach.finish().await;
    assert_eq!(attach.stdout, "hello\nthe end\n");
    assert!(attach.status.contains("Success"), "{}", attach.status);
}

#[tokio::test]
async fn attach_to_a_terminal_sets_its_size() {
    let node = Node::start("read w; stty size; echo got $w; read w", true, true).await;
    let mut attach = node.connect("/attach/default/pod/c?input=1&output=1&tty=1").await;
    attach.send(4, br#"{"Width":77,"Height":22}"#).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    attach.send(0, b"word\n").await;
    attach.read_until("got word\r\n").await;
    assert!(attach.stdout.contains("22 77\r\n"), "{:?}", attach.stdout);
    attach.send(0, b"\n").await;
    attach.finish().await;
}
