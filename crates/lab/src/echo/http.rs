//! HTTP/1.1 and HTTP/2: the JSON object, and paths that do what they say.
//!
//! `/status/CODE`, `/delay/MILLISECONDS`, `/bytes/N` and `/stream/N`; WebSocket messages and gRPC messages are
//! sent back as they came.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::reply::{Content, Identity, Reply, show};
use super::stream::accept;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Size of a piece of `/bytes/N`.
const PIECE: u64 = 16 << 10;

/// How many requests wait for their answer: each holds a weak reference to `busy`.
pub(super) fn requests(busy: &Rc<()>) -> usize {
    Rc::weak_count(busy)
}

/// Serves until the process ends.
pub(super) async fn serve(listener: TcpListener, identity: Arc<Identity>, busy: Rc<()>) {
    loop {
        let stream = accept(&listener).await;
        tokio::task::spawn_local(connection(stream, identity.clone(), busy.clone()));
    }
}

/// Who talks to whom.
#[derive(Clone)]
struct Ends {
    identity: Arc<Identity>,
    client: SocketAddr,
    server: SocketAddr,
}

async fn connection(stream: TcpStream, identity: Arc<Identity>, busy: Rc<()>) {
    let addresses = stream
        .set_nodelay(true)
        .and_then(|()| Ok((stream.peer_addr()?, stream.local_addr()?)));
    let Ok((client, server)) = addresses else { return };
    let ends = Ends {
        identity,
        client,
        server,
    };
    let service = service_fn(move |request| {
        let (ends, under_way) = (ends.clone(), Rc::downgrade(&busy));
        async move {
            let response = answer(&ends, request).await;
            drop(under_way);
            Ok::<_, Infallible>(response)
        }
    });
    let builder = auto::Builder::new(LocalExecutor);
    // A client that breaks off is no error of ours.
    drop(
        builder
            .serve_connection_with_upgrades(TokioIo::new(stream), service)
            .await,
    );
}

/// Runs HTTP/2's tasks on this thread.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

async fn answer(ends: &Ends, request: Request<Incoming>) -> Response<Body> {
    if is_grpc(request.headers()) {
        return grpc(ends, request);
    }
    if let Some(key) = websocket_key(&request) {
        return websocket(request, &key);
    }
    let line = reply(ends, &request);
    let path = request.uri().path().to_owned();
    let json = |status| with_type(status, full(line.clone()), "application/json");
    let (what, argument) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or((path.as_str(), ""));
    match (what, argument.parse::<u64>()) {
        ("status", Ok(code)) => {
            match u16::try_from(code)
                .ok()
                .filter(|&code| code >= 200)
                .and_then(|c| StatusCode::from_u16(c).ok())
            {
                Some(status) if matches!(status.as_u16(), 204 | 304) => empty(status),
                Some(status) => json(status),
                None => refuse(&format!("{code} is no status that can end a response")),
            }
        }
        ("delay", Ok(milliseconds)) => {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            json(StatusCode::OK)
        }
        ("bytes", Ok(count)) => bytes(count),
        ("stream", Ok(count)) => {
            let lines = stream::iter((0..count).map(move |_| Ok(Frame::data(line.clone()))));
            with_type(
                StatusCode::OK,
                StreamBody::new(lines).boxed_unsync(),
                "application/json",
            )
        }
        ("status" | "delay" | "bytes" | "stream", Err(_)) => refuse(&format!("{argument:?} is no number")),
        _ => json(StatusCode::OK),
    }
}

fn reply(ends: &Ends, request: &Request<Incoming>) -> Bytes {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut headers = BTreeMap::<String, String>::new();
    for (name, value) in request.headers() {
        let all = headers.entry(name.to_string()).or_default();
        if !all.is_empty() {
            all.push_str(", ");
        }
        all.push_str(&text(value));
    }
    let authority = request.uri().authority().map(ToString::to_string);
    let content = Content::Http {
        method: request.method().to_string(),
        path: request
            .uri()
            .path_and_query()
            .map_or_else(|| "/".into(), ToString::to_string),
        host: request
            .headers()
            .get(header::HOST)
            .map(text)
            .or(authority)
            .unwrap_or_default(),
        headers,
    };
    let reply = Reply {
        identity: &ends.identity,
        client: show(ends.client),
        server: show(ends.server),
        protocol: match request.version() {
            Version::HTTP_2 => "HTTP/2.0",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        },
        content,
    };
    reply.line().into()
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn with_type(status: StatusCode, body: Body, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = status;
    response
}

fn refuse(why: &str) -> Response<Body> {
    let line = serde_json::json!({ "error": why }).to_string() + "\n";
    with_type(StatusCode::BAD_REQUEST, full(line.into()), "application/json")
}

fn bytes(count: u64) -> Response<Body> {
    let piece = Bytes::from(vec![b'x'; PIECE.min(count) as usize]);
    let pieces = (0..count.div_ceil(PIECE)).map(move |index| {
        let size = PIECE.min(count - index * PIECE) as usize;
        Ok(Frame::data(piece.slice(..size)))
    });
    let body = StreamBody::new(stream::iter(pieces)).boxed_unsync();
    let mut response = with_type(StatusCode::OK, body, "application/octet-stream");
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from(count));
    response
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.starts_with("application/grpc") && !value.contains("grpc-web"))
}

/// Any method of any service: its messages back, then an OK in the trailers.
fn grpc(ends: &Ends, request: Request<Incoming>) -> Response<Body> {
    const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
    let (parts, body) = request.into_parts();
    let mut status = HeaderMap::new();
    status.insert("grpc-status", HeaderValue::from_static("0"));
    let end = stream::iter([Ok(Frame::trailers(status))]);
    let mut response = Response::new(StreamBody::new(data(body).chain(end)).boxed_unsync());
    let headers = response.headers_mut();
    for name in [header::CONTENT_TYPE, ENCODING] {
        if let Some(value) = parts.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    // Metadata, so that a client sees who answered.
    let identity = &ends.identity;
    for (name, value) in [
        ("pod", &identity.pod),
        ("namespace", &identity.namespace),
        ("node", &identity.node),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

/// The data of a body without its trailers.
fn data(body: Incoming) -> impl Stream<Item = Result<Frame<Bytes>, hyper::Error>> {
    stream::unfold(body, async |mut body| {
        loop {
            match body.frame().await? {
                Ok(frame) if frame.is_data() => return Some((Ok(frame), body)),
                Ok(_) => {}
                Err(error) => return Some((Err(error), body)),
            }
        }
    })
}

fn websocket_key(request: &Request<Incoming>) -> Option<HeaderValue> {
    let upgrade = request.headers().get(header::UPGRADE)?.to_str().ok()?;
    let wanted = upgrade.eq_ignore_ascii_case("websocket");
    request
        .headers()
        .get(header::SEC_WEBSOCKET_KEY)
        .filter(|_| wanted)
        .cloned()
}

fn websocket(request: Request<Incoming>, key: &HeaderValue) -> Response<Body> {
    let accepted = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
    let Ok(accepted) = accepted else {
        return refuse("a WebSocket key that is none");
    };
    tokio::task::spawn_local(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else {
            return;
        };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let (to, from) = socket.split();
        // Pings and closing are the library's; either side's end ends it.
        let messages = from.filter(|message| {
            let keep = message
                .as_ref()
                .is_ok_and(|message| message.is_text() || message.is_binary());
            std::future::ready(keep || message.is_err())
        });
        drop(messages.forward(to).await);
    });
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    response
}
