//! The kubelet HTTP API of a lab node: container logs, exec and attach.
//!
//! It is served on a unix socket. The API server forwards requests for `pods/log`, `pods/exec` and `pods/attach` to it
//! and, after an upgrade, tunnels bytes; so what arrives here is what kubectl sent: SPDY/3.1 from kubectl before
//! 1.30, WebSocket from later ones and from the client libraries.

pub(crate) mod channel;
mod log;
mod remote;
mod request;
mod sandbox;
pub mod spdy;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

pub use sandbox::InSandbox;

use remote::Session;
use request::{Asked, LogOptions, Target};

/// A body of this server: text, or a log that grows.
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The containers of the node, as this server sees them; the runtime implements it.
pub trait Containers: Send + Sync + 'static {
    /// The log of a container: of its present or last run, or of the run before that (`previous`).
    fn log(&self, namespace: &str, pod: &str, container: &str, previous: bool) -> Result<LogSource, Refusal>;

    /// A container that runs now.
    fn container(&self, namespace: &str, pod: &str, container: &str) -> Result<Container, Refusal>;
}

/// A container's log.
#[derive(Debug, Clone)]
pub struct LogSource {
    /// The file, in the CRI log format. When it is rotated, the new file takes this path.
    pub path: PathBuf,
    /// Becomes true when nothing more will be written: the container has ended. A sender that is gone means the same.
    pub finished: watch::Receiver<bool>,
}

/// A running container.
#[derive(Clone)]
pub struct Container {
    /// Runs commands in it.
    pub exec: Arc<dyn Execute>,
    /// Becomes true when the container has ended. A sender that is gone means the same.
    pub finished: watch::Receiver<bool>,
    /// The container's input ends with the first client that is attached to it (`stdinOnce`).
    pub stdin_once: bool,
}

/// Runs commands in one container, and talks to its own process. [`InSandbox`] is the one of a lab node.
pub trait Execute: Send + Sync {
    /// Starts `command` on `stdio`. The error is what the caller is told, such as `exec: "x": executable file not
    /// found in $PATH`.
    fn exec(&self, command: Vec<String>, stdio: Stdio) -> BoxFuture<'_, Result<Box<dyn Process>, String>>;

    /// The `ptmx` of the container's own devpts, if it has one: a terminal made there has a name in the container.
    fn terminals(&self) -> BoxFuture<'_, Option<PathBuf>> {
        std::future::ready(None).boxed()
    }

    /// Copies what the container writes from now on to `stdout` and `stderr`, until it ends or nobody reads.
    fn attach(
        &self,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> BoxFuture<'_, Result<Attached, String>>;

    /// Ends the container's input.
    fn close_stdin(&self) -> BoxFuture<'_, Result<(), String>>;
}

/// What attaching gives.
#[derive(Debug)]
pub struct Attached {
    /// The container's input, if it has one: a pipe, or the master of its terminal.
    pub stdin: Option<OwnedFd>,
    /// Whether it is a terminal.
    pub tty: bool,
}

/// A command that was started; dropping it kills the process.
pub trait Process: Send {
    /// The exit code once it has ended, or 128 + the signal that ended it.
    fn wait(&mut self) -> BoxFuture<'_, Result<i32, String>>;
}

/// The standard streams of a command.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input; nothing when not asked for.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
    /// The three are the slave of one pseudo terminal, which is to be the controlling terminal of the command.
    pub tty: bool,
}

/// Why a request is not served: the HTTP status and the text, in kubelet's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body; kubectl prints it.
    pub message: String,
}

impl Refusal {
    /// Any other reason.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Refusal {
            status,
            message: message.into(),
        }
    }

    /// No such pod on this node.
    pub fn no_pod(pod: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist"))
    }

    /// The pod has no container of that name.
    pub fn no_container(container: &str, pod: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("container {container:?} not found in pod {pod:?}"),
        )
    }

    /// The container has not started yet; `reason` is its waiting reason, such as `ContainerCreating`.
    pub fn waiting(container: &str, pod: &str, reason: &str) -> Self {
        let message = if reason.is_empty() {
            format!("container {container:?} in pod {pod:?} is waiting to start - no logs yet")
        } else {
            format!("container {container:?} in pod {pod:?} is waiting to start: {reason}")
        };
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// `previous` was asked for, and there was no run before this one.
    pub fn no_previous(container: &str, pod: &str) -> Self {
        let message = format!("previous terminated container {container:?} in pod {pod:?} not found");
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Exec or attach, and the container does not run.
    pub fn not_running(container: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            format!("container not found ({container:?})"),
        )
    }
}

/// Serves the API until the task is dropped.
pub async fn serve(listener: UnixListener, containers: Arc<dyn Containers>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors or memory: those who hold them will give them back.
                tracing::warn!(%error, "cannot accept on the kubelet socket");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let containers = containers.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let containers = containers.clone();
                async move { Ok::<_, Infallible>(answer(request, containers).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the kubelet socket ended");
            }
        });
    }
}

async fn answer(mut request: Request<Incoming>, containers: Arc<dyn Containers>) -> Response<Body> {
    let asked = request::parse(request.method(), request.uri(), jiff::Timestamp::now());
    let answered = match asked {
        Ok(Asked::Health) => Ok(text(StatusCode::OK, "ok")),
        Ok(Asked::Log(target, options)) => log_response(&target, options, &*containers),
        Ok(Asked::Exec(target, options)) => {
            start(&mut request, &target, Session::Exec(options), &*containers)
        }
        Ok(Asked::Attach(target, streams)) => {
            start(&mut request, &target, Session::Attach(streams), &*containers)
        }
        Err(refusal) => Err(refusal),
    };
    answered.unwrap_or_else(|refusal| text(refusal.status, refusal.message))
}

fn start(
    request: &mut Request<Incoming>,
    Target {
        namespace,
        pod,
        container,
    }: &Target,
    session: Session,
    containers: &dyn Containers,
) -> Result<Response<Body>, Refusal> {
    remote::serve(request, containers.container(namespace, pod, container)?, session)
}

fn log_response(
    Target {
        namespace,
        pod,
        container,
    }: &Target,
    options: LogOptions,
    containers: &dyn Containers,
) -> Result<Response<Body>, Refusal> {
    let source = containers.log(namespace, pod, container, options.previous)?;
    // The log of a container that has just started may not be there yet; one that was there never goes.
    if let Err(error) = std::fs::metadata(&source.path) {
        let message = format!("cannot read the log of container {container:?} in pod {pod:?}: {error}");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    let (sink, chunks) = mpsc::channel(4);
    tokio::spawn(async move {
        if let Err(error) = log::send(source, options, sink).await {
            tracing::debug!(%error, "a log could not be read to its end");
        }
    });
    let frames = ReceiverStream::new(chunks).map(|chunk| Ok(Frame::data(chunk)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// The readiness of a descriptor that tokio has no type for.
#[expect(
    deprecated,
    reason = "what it warns of, that others close the descriptor, an OwnedFd does not allow"
)]
fn readiness(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(descriptor)
}

fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let body = Full::new(Bytes::from(message.into())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
