//! `podnet lab exec`: a command in a pod, through the socket of the node's runtime.
//!
//! It does not ask the API server, so it works while that is away. The protocol is the one kubectl speaks to a
//! kubelet: WebSocket, subprotocol v5.channel.k8s.io, the first byte of each message naming its channel.

use std::io::IsTerminal;
use std::process::ExitCode;

use futures::{SinkExt, StreamExt};
use miette::{IntoDiagnostic, miette};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::layout::LabDir;
use super::record::Record;
use crate::runtime::streaming::channel::{CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT};

/// What to run where.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod.
    pub pod: &'a str,
    /// The container; none is the pod's only or default one.
    pub container: Option<&'a str>,
    /// The command.
    pub command: &'a [String],
}

/// Runs the command with this process's standard streams and returns its exit code.
pub async fn run(dir: &LabDir, record: &Record, exec: &Exec<'_>) -> miette::Result<ExitCode> {
    let tty = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let socket = connect(dir, record, exec, tty).await?;
    let _raw = tty.then(RawTerminal::enter).transpose().into_diagnostic()?;
    relay(socket, tty).await
}

type Socket = WebSocketStream<UnixStream>;

/// Asks each node's runtime for the pod; the one that has it takes the command.
async fn connect(dir: &LabDir, record: &Record, exec: &Exec<'_>, tty: bool) -> miette::Result<Socket> {
    let mut silent = Vec::new();
    for node in record.nodes.keys() {
        let Ok(stream) = UnixStream::connect(dir.kubelet_socket(node)).await else {
            silent.push(node.as_str());
            continue;
        };
        match tokio_tungstenite::client_async(request(exec, tty)?, stream).await {
            Ok((socket, _)) => return Ok(socket),
            Err(WsError::Http(answer)) if answer.status() == 404 => {}
            Err(WsError::Http(answer)) => {
                let body = answer
                    .body()
                    .as_deref()
                    .map(String::from_utf8_lossy)
                    .unwrap_or_default();
                return Err(miette!("{}", refusal(&body)));
            }
            Err(error) => return Err(error).into_diagnostic(),
        }
    }
    let pod = format!("{}/{}", exec.namespace, exec.pod);
    if silent.is_empty() {
        return Err(miette!(
            help = "kubectl get pods -A lists the pods; -n NAMESPACE chooses the namespace",
            "no node of the lab runs a pod {pod}"
        ));
    }
    Err(miette!(
        "no node that answers runs a pod {pod}; the runtimes of {} do not answer",
        silent.join(", ")
    ))
}

/// The message of a metav1.Status, or the body as it is.
fn refusal(body: &str) -> String {
    let status: Value = serde_json::from_str(body).unwrap_or_default();
    status["message"].as_str().unwrap_or(body).trim().to_owned()
}

fn request(exec: &Exec<'_>, tty: bool) -> miette::Result<http::Request<()>> {
    let mut query = format!("input=1&output=1&tty={}", u8::from(tty));
    if !tty {
        query.push_str("&error=1");
    }
    for word in exec.command {
        query.push_str("&command=");
        query.push_str(&escape(word));
    }
    let container = exec.container.unwrap_or_default();
    let uri = format!(
        "ws://node/exec/{}/{}/{container}?{query}",
        exec.namespace, exec.pod
    );
    let mut request = uri.into_client_request().into_diagnostic()?;
    request.headers_mut().insert(
        "sec-websocket-protocol",
        HeaderValue::from_static("v5.channel.k8s.io"),
    );
    Ok(request)
}

/// Percent-encoding of a query value (RFC 3986, section 2.3: the unreserved characters stay).
fn escape(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    for byte in word.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Carries bytes both ways until the command has ended.
async fn relay(socket: Socket, tty: bool) -> miette::Result<ExitCode> {
    let (mut to, mut from) = socket.split();
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let mut keys = stdin_chunks();
    let mut resized =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change()).into_diagnostic()?;
    if tty {
        to.send(window_size()?).await.into_diagnostic()?;
    }
    let mut stdin_open = true;
    loop {
        tokio::select! {
            message = from.next() => match message {
                Some(Ok(Message::Binary(data))) => match data.split_first() {
                    Some((&STDOUT, bytes)) => write(&mut stdout, bytes).await?,
                    Some((&STDERR, bytes)) => write(&mut stderr, bytes).await?,
                    Some((&ERROR, status)) => return exit_code(status),
                    _ => {}
                },
                Some(Ok(Message::Close(_))) | None => return Err(miette!("the runtime ended the connection")),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).into_diagnostic(),
            },
            chunk = keys.recv(), if stdin_open => {
                let message = match chunk {
                    Some(bytes) => channel(STDIN, &bytes),
                    None => { stdin_open = false; channel(CLOSE, &[STDIN]) }
                };
                // The command may be gone by now; its status is still to come.
                if to.send(message).await.is_err() { stdin_open = false; }
            },
            Some(()) = resized.recv(), if tty => to.send(window_size()?).await.into_diagnostic()?,
        }
    }
}

async fn write(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) -> miette::Result<()> {
    stream.write_all(bytes).await.into_diagnostic()?;
    stream.flush().await.into_diagnostic()
}

fn channel(number: u8, bytes: &[u8]) -> Message {
    let mut data = Vec::with_capacity(bytes.len() + 1);
    data.push(number);
    data.extend_from_slice(bytes);
    Message::binary(data)
}

fn stdin_chunks() -> tokio::sync::mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 32 * 1024];
        while let Ok(count) = stdin.read(&mut buffer).await {
            if count == 0 || sender.send(buffer[..count].to_vec()).await.is_err() {
                break;
            }
        }
    });
    receiver
}

fn window_size() -> miette::Result<Message> {
    let size = tcgetwinsize(std::io::stdout()).into_diagnostic()?;
    let text = json!({"Width": size.ws_col, "Height": size.ws_row}).to_string();
    Ok(channel(RESIZE, text.as_bytes()))
}

/// The exit code in the metav1.Status that ends a command.
fn exit_code(status: &[u8]) -> miette::Result<ExitCode> {
    let status: Value = serde_json::from_slice(status).into_diagnostic()?;
    if status["status"] == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let code = status["details"]["causes"]
        .as_array()
        .and_then(|causes| causes.iter().find(|cause| cause["reason"] == "ExitCode")?["message"].as_str())
        .and_then(|code| code.parse::<u8>().ok());
    match code {
        Some(code) => Ok(ExitCode::from(code)),
        None => Err(miette!(
            "{}",
            status["message"].as_str().unwrap_or("the command failed")
        )),
    }
}

/// The terminal passes every key on as it is; back to what it was when dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> std::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
        Ok(RawTerminal(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_read_from_the_status() {
        let text = |code: miette::Result<ExitCode>| format!("{:?}", code.unwrap());
        assert_eq!(
            text(exit_code(br#"{"status":"Success"}"#)),
            format!("{:?}", ExitCode::SUCCESS)
        );
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#;
        assert_eq!(text(exit_code(failed)), format!("{:?}", ExitCode::from(42)));
        assert!(
            exit_code(br#"{"status":"Failure","message":"no"}"#)
                .unwrap_err()
                .to_string()
                .contains("no")
        );
    }

    #[test]
    fn words_are_escaped_for_the_query() {
        assert_eq!(escape("a b&c=d/é"), "a%20b%26c%3Dd%2F%C3%A9");
    }
}
