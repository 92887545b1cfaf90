//! The whole server on a unix socket, with real processes behind it and hand-made clients before it.

mod client;
mod real_clients;

use std::path::PathBuf;
use std::process::Stdio as ChildStdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::process::{Child, Command};

use super::*;
use client::{SpdyClient, WebSocketClient, get};

/// A "node" on which the pod `pod` has one container `c`, which is this machine itself.
struct Machine {
    dir: tempfile::TempDir,
    finished: watch::Sender<bool>,
}

struct ThisMachine(watch::Sender<bool>);

struct Spawned(Child);

impl Execute for ThisMachine {
    fn exec(&self, command: Vec<String>, stdio: Stdio) -> BoxFuture<'_, Result<Box<dyn Process>, String>> {
        let started = async move {
            let mut words = command.iter();
            let mut child = if stdio.tty {
                let mut child = Command::new("setsid");
                child.args(["--ctty", "--wait"]);
                child
            } else {
                Command::new(words.next().ok_or("no command")?)
            };
            let end = |fd: Option<OwnedFd>| fd.map_or_else(ChildStdio::null, ChildStdio::from);
            child
                .args(words)
                .stdin(end(stdio.stdin))
                .stdout(end(stdio.stdout))
                .stderr(end(stdio.stderr));
            let child = child.kill_on_drop(true).spawn();
            let child = child.map_err(|error| format!("exec: {:?}: {error}", command[0]))?;
            Ok(Box::new(Spawned(child)) as Box<dyn Process>)
        };
        started.boxed()
    }

    /// A container that starts when it is attached to.
    fn attach(
        &self,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> BoxFuture<'_, Result<Attached, String>> {
        let attached = async move {
            let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            let end = |fd: Option<OwnedFd>| fd.map_or_else(ChildStdio::null, ChildStdio::from);
            let mut child = Command::new("sh");
            child.args(["-c", "cat; echo end of input >&2"]);
            let mut child = child
                .stdin(theirs)
                .stdout(end(stdout))
                .stderr(end(stderr))
                .spawn()
                .unwrap();
            let finished = self.0.clone();
            tokio::spawn(async move {
                child.wait().await.unwrap();
                finished.send_replace(true);
            });
            Ok(Attached {
                stdin: Some(ours),
                tty: false,
            })
        };
        attached.boxed()
    }

    fn close_stdin(&self) -> BoxFuture<'_, Result<(), String>> {
        async { Ok(()) }.boxed()
    }
}

impl Process for Spawned {
    fn wait(&mut self) -> BoxFuture<'_, Result<i32, String>> {
        use std::os::unix::process::ExitStatusExt;
        let code = async {
            let status = self.0.wait().await.map_err(|error| error.to_string())?;
            Ok(status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
        };
        code.boxed()
    }
}

impl Containers for Machine {
    fn log(
        &self,
        _namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<LogSource, Refusal> {
        match (pod, container, previous) {
            ("pod", "c", false) => Ok(LogSource {
                path: self.dir.path().join("0.log"),
                finished: self.finished.subscribe(),
            }),
            ("pod", "c", true) => Err(Refusal::no_previous(container, pod)),
            ("pod", "starting", _) => Err(Refusal::waiting(container, pod, "ContainerCreating")),
            ("pod", ..) => Err(Refusal::no_container(container, pod)),
            _ => Err(Refusal::no_pod(pod)),
        }
    }

    fn container(&self, namespace: &str, pod: &str, container: &str) -> Result<Container, Refusal> {
        if container == "starting" {
            return Err(Refusal::not_running(container));
        }
        let finished = self.log(namespace, pod, container, false)?.finished;
        Ok(Container {
            exec: Arc::new(ThisMachine(self.finished.clone())),
            finished,
            stdin_once: true,
        })
    }
}

struct Node {
    socket: PathBuf,
    machine: Arc<Machine>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Node {
    fn start() -> Node {
        let machine = Arc::new(Machine {
            dir: tempfile::tempdir().unwrap(),
            finished: watch::Sender::new(false),
        });
        std::fs::write(
            machine.dir.path().join("0.log"),
            "2026-01-01T00:00:00Z stdout F hello\n",
        )
        .unwrap();
        let socket = machine.dir.path().join("kubelet.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(serve(listener, machine.clone()));
        Node {
            socket,
            machine,
            server,
        }
    }

    fn append(&self, line: &str) {
        use std::io::Write as _;
        let path = self.machine.dir.path().join("0.log");
        std::fs::OpenOptions::new()
            .append(true)
            .open(path)
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
    }
}

fn exec(streams: &str, command: &[&str]) -> String {
    let command: String = command
        .iter()
        .map(|word| format!("&command={}", percent(word)))
        .collect();
    format!("/exec/default/pod/c?{streams}{command}")
}

fn percent(word: &str) -> String {
    word.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn sh(streams: &str, script: &str) -> String {
    exec(streams, &["sh", "-c", script])
}

/// Waits until nothing runs a command line with this word in it.
async fn wait_until_gone(word: &str) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let runs = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(word)
        });
        if !runs {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

const BOTH: &str = "output=1&error=1";
const ALL: &str = "input=1&output=1&error=1";

#[tokio::test]
async fn refusals_have_kubelets_words() {
    let node = Node::start();
    let cases = [
        ("/healthz", 200, "ok"),
        ("/nonsense", 404, "404 page not found"),
        (
            "/containerLogs/default/nopod/c",
            404,
            "pod \"nopod\" does not exist",
        ),
        (
            "/containerLogs/default/pod/x",
            404,
            "container \"x\" not found in pod \"pod\"",
        ),
        (
            "/containerLogs/default/pod/starting",
            400,
            "container \"starting\" in pod \"pod\" is waiting to start: ContainerCreating",
        ),
        (
            "/containerLogs/default/pod/c?previous=true",
            400,
            "previous terminated container \"c\" in pod \"pod\" not found",
        ),
        (
            "/exec/default/pod/starting?command=ls&output=1",
            400,
            "container not found (\"starting\")",
        ),
        (
            "/exec/default/pod/c?command=ls&output=1",
            400,
            "unable to upgrade: missing upgrade headers in request",
        ),
    ];
    for (path, status, body) in cases {
        assert_eq!(get(&node.socket, path).await, (status, body.to_owned()), "{path}");
    }
}

#[tokio::test]
async fn logs_are_served_and_followed() {
    let node = Node::start();
    let path = "/containerLogs/default/pod/c";
    assert_eq!(get(&node.socket, path).await, (200, "hello\n".to_owned()));
    let followed = {
        let socket = node.socket.clone();
        tokio::spawn(async move { get(&socket, &format!("{path}?follow=true")).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    node.append("2026-01-01T00:00:01Z stderr F more\n");
    node.machine.finished.send_replace(true);
    assert_eq!(followed.await.unwrap(), (200, "hello\nmore\n".to_owned()));
}

#[tokio::test]
async fn spdy_keeps_streams_apart_and_says_the_exit_code() {
    let node = Node::start();
    let mut client = SpdyClient::start(&node.socket, &sh(BOTH, "echo out; echo err >&2; exit 42")).await;
    let end = client.finish().await;
    assert_eq!((end.stdout.as_str(), end.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(end.exit_code(), 42);
}

#[tokio::test]
async fn websocket_keeps_streams_apart_and_says_the_exit_code() {
    let node = Node::start();
    for protocol in [
        "v5.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
    ] {
        let path = sh(BOTH, "echo out; echo err >&2; exit 42");
        let end = WebSocketClient::start(&node.socket, &path, protocol)
            .await
            .finish()
            .await;
        assert_eq!(
            (end.stdout.as_str(), end.stderr.as_str()),
            ("out\n", "err\n"),
            "{protocol}"
        );
        assert_eq!(end.exit_code(), 42, "{protocol}");
    }
}

#[tokio::test]
async fn the_first_protocol_versions_get_a_bare_message() {
    let node = Node::start();
    let path = sh(BOTH, "exit 3");
    let end = WebSocketClient::start(&node.socket, &path, "channel.k8s.io")
        .await
        .finish()
        .await;
    assert_eq!(
        end.status,
        "command terminated with non-zero exit code: exit status 3"
    );
}

#[tokio::test]
async fn a_closed_input_ends_the_command_while_its_output_goes_on() {
    let node = Node::start();
    let path = sh(ALL, "cat; echo end");
    let mut spdy = SpdyClient::start(&node.socket, &path).await;
    spdy.stdin(b"one ").await;
    spdy.stdin(b"two ").await;
    spdy.close_stdin().await;
    let end = spdy.finish().await;
    assert_eq!((end.stdout.as_str(), end.exit_code()), ("one two end\n", 0));

    let mut websocket = WebSocketClient::start(&node.socket, &path, "v5.channel.k8s.io").await;
    websocket.stdin(b"one ").await;
    websocket.stdin(b"two ").await;
    websocket.close_stdin().await;
    let end = websocket.finish().await;
    assert_eq!((end.stdout.as_str(), end.exit_code()), ("one two end\n", 0));
}

#[tokio::test]
async fn much_goes_through_both_ways() {
    let node = Node::start();
    let much = vec![b'x'; 3 << 20];
    let mut spdy = SpdyClient::start(&node.socket, &exec(ALL, &["cat"])).await;
    let end = spdy.echo(&much).await;
    assert!(end.stdout.len() == much.len() && end.exit_code() == 0);
    let websocket = WebSocketClient::start(&node.socket, &exec(ALL, &["cat"]), "v5.channel.k8s.io").await;
    let end = websocket.echo(&much).await;
    assert!(end.stdout.len() == much.len() && end.exit_code() == 0);
}

#[tokio::test]
async fn a_command_that_takes_no_input_does_not_hold_up_the_client() {
    let node = Node::start();
    let mut spdy = SpdyClient::start(&node.socket, &sh(ALL, "exec 0<&-; sleep 0.3; echo done")).await;
    let end = spdy.echo(&vec![b'x'; 3 << 20]).await;
    assert_eq!(end.stdout, "done\n");
}

#[tokio::test]
async fn a_terminal_has_the_clients_size_and_hears_of_changes() {
    let node = Node::start();
    let streams = "input=1&output=1&tty=1";
    let script = "test -t 0 && stty size; read line; stty size; echo got $line";
    let mut spdy = SpdyClient::start(&node.socket, &sh(streams, script)).await;
    spdy.resize(120, 40).await;
    spdy.read_until("40 120").await;
    spdy.resize(90, 30).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    spdy.stdin(b"word\n").await;
    let end = spdy.finish().await;
    assert!(end.stdout.ends_with("30 90\r\ngot word\r\n"), "{:?}", end.stdout);

    let mut websocket = WebSocketClient::start(&node.socket, &sh(streams, script), "v5.channel.k8s.io").await;
    websocket.resize(120, 40).await;
    websocket.stdin(b"word\n").await;
    let end = websocket.finish().await;
    assert!(
        end.stdout.contains("40 120\r\n") && end.stdout.ends_with("got word\r\n"),
        "{:?}",
        end.stdout
    );
}

#[tokio::test]
async fn a_client_that_goes_takes_its_command_along() {
    let node = Node::start();
    let spdy = SpdyClient::start(&node.socket, &exec(ALL, &["sleep", "7777.1"])).await;
    let websocket = WebSocketClient::start(
        &node.socket,
        &exec(ALL, &["sleep", "7777.2"]),
        "v5.channel.k8s.io",
    )
    .await;
    // One that does not read its input, of which more has come than is read ahead.
    let mut busy = SpdyClient::start(&node.socket, &exec(ALL, &["sleep", "7777.3"])).await;
    let _ = tokio::time::timeout(Duration::from_millis(300), busy.stdin(&vec![0; 4 << 20])).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop((spdy, websocket, busy));
    assert!(wait_until_gone("7777.").await);
}

#[tokio::test]
async fn output_that_is_held_open_does_not_hold_up_the_end() {
    let node = Node::start();
    let started = Instant::now();
    let mut spdy = SpdyClient::start(&node.socket, &sh(BOTH, "sleep 5 & echo hi")).await;
    let end = spdy.finish().await;
    assert_eq!((end.stdout.as_str(), end.exit_code()), ("hi\n", 0));
    assert!(started.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_command_that_cannot_start_says_why() {
    let node = Node::start();
    let mut spdy = SpdyClient::start(&node.socket, &exec(BOTH, &["/no/such/command"])).await;
    let end = spdy.finish().await;
    assert!(
        end.status.contains("/no/such/command") && end.status.contains("InternalError"),
        "{}",
        end.status
    );
}

#[tokio::test]
async fn attach_connects_with_the_containers_own_process() {
    let node = Node::start();
    let mut spdy = SpdyClient::start(&node.socket, &format!("/attach/default/pod/c?{ALL}")).await;
    spdy.stdin(b"to and fro\n").await;
    spdy.read_until("to and fro\n").await;
    spdy.close_stdin().await;
    let end = spdy.finish().await;
    assert_eq!(
        (end.stdout.as_str(), end.stderr.as_str()),
        ("to and fro\n", "end of input\n")
    );
    assert_eq!(end.exit_code(), 0);
}
