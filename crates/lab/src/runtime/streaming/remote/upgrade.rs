//! The HTTP upgrade: which protocol the client speaks, and the answer that switches to it.

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Parts;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::super::request::{ExecOptions, StreamOptions};
use super::super::{Body, Container, Refusal};
use super::spdy::{Carrier, Version};
use super::websocket::{self, Subprotocol};
use super::{attach, channels, exec};

const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// What is to be done once the connection is the client's alone.
pub(in super::super) enum Session {
    Exec(ExecOptions),
    Attach(StreamOptions),
}

impl Session {
    fn streams(&self) -> StreamOptions {
        match self {
            Session::Exec(options) => options.streams,
            Session::Attach(streams) => *streams,
        }
    }
}

/// How the client wants to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Spdy(Version),
    WebSocket(Subprotocol),
}

/// Answers with the switch of protocols, and serves the session from then on.
pub(in super::super) fn serve(
    request: &mut Request<Incoming>,
    container: Container,
    session: Session,
) -> Result<Response<Body>, Refusal> {
    let (protocol, response) = negotiate(request.headers())?;
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let parts = upgraded.downcast::<TokioIo<UnixStream>>();
                let Parts { io, read_buf, .. } = parts.expect("the listener's connections are unix streams");
                run(io.into_inner(), read_buf, protocol, container, session).await;
            }
            Err(error) => tracing::debug!(%error, "a client went before its exec or attach began"),
        }
    });
    Ok(response)
}

async fn run(stream: UnixStream, early: Bytes, protocol: Protocol, container: Container, session: Session) {
    let wanted = session.streams();
    let (session_ends, carrier_ends) = channels(wanted);
    let start = || match session {
        Session::Exec(options) => tokio::spawn(exec::run(container, options, session_ends)),
        Session::Attach(streams) => tokio::spawn(attach::run(container, streams, session_ends)),
    };
    let carried = match protocol {
        Protocol::WebSocket(subprotocol) => {
            start();
            websocket::carry(stream, early, subprotocol, wanted, carrier_ends).await
        }
        // The command starts only when all its streams are there.
        Protocol::Spdy(version) => match Carrier::accept(stream, early, version, wanted).await {
            Ok(carrier) => {
                start();
                carrier.carry(carrier_ends).await
            }
            Err(error) => Err(error),
        },
    };
    if let Err(error) = carried {
        tracing::debug!(%error, "an exec or attach ended early");
    }
}

fn negotiate(headers: &HeaderMap) -> Result<(Protocol, Response<Body>), Refusal> {
    let upgrade = headers
        .get(UPGRADE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let connection_upgrade = tokens(headers, "connection").any(|token| token.eq_ignore_ascii_case("upgrade"));
    if !connection_upgrade {
        return Err(bad("unable to upgrade: missing upgrade headers in request"));
    }
    if upgrade.eq_ignore_ascii_case("websocket") {
        websocket_switch(headers)
    } else if upgrade.eq_ignore_ascii_case("SPDY/3.1") {
        spdy_switch(headers)
    } else {
        Err(bad(format!(
            "unable to upgrade: {upgrade:?} is neither SPDY/3.1 nor websocket"
        )))
    }
}

fn spdy_switch(headers: &HeaderMap) -> Result<(Protocol, Response<Body>), Refusal> {
    let offered: Vec<&str> = tokens(headers, STREAM_PROTOCOL).collect();
    // Clients from before there were versions name none.
    let version = if offered.is_empty() {
        Some(Version::V1)
    } else {
        offered.iter().find_map(|name| Version::parse(name))
    };
    let Some(version) = version else {
        let message = format!("unable to upgrade: unable to negotiate protocol: client supports {offered:?}");
        return Err(Refusal::new(StatusCode::FORBIDDEN, message));
    };
    let mut response = switch("SPDY/3.1");
    if !offered.is_empty() {
        response
            .headers_mut()
            .insert(STREAM_PROTOCOL, HeaderValue::from_static(version.name()));
    }
    Ok((Protocol::Spdy(version), response))
}

fn websocket_switch(headers: &HeaderMap) -> Result<(Protocol, Response<Body>), Refusal> {
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(bad("unable to upgrade: missing or bad WebSocket Version"));
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .ok_or_else(|| bad("unable to upgrade: no Sec-WebSocket-Key"))?;
    let mut offered = tokens(headers, SEC_WEBSOCKET_PROTOCOL.as_str()).peekable();
    let chosen = if offered.peek().is_none() {
        Subprotocol::choose(std::iter::once(""))
    } else {
        Subprotocol::choose(offered)
    };
    let chosen = chosen.ok_or_else(|| bad("unable to upgrade: missing or bad WebSocket-Protocol"))?;
    let accept = derive_accept_key(key.as_bytes());
    let accept =
        HeaderValue::try_from(accept).map_err(|_| bad("unable to upgrade: bad Sec-WebSocket-Key"))?;
    let mut response = switch("websocket");
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !chosen.name().is_empty() {
        response
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen.name()));
    }
    Ok((Protocol::WebSocket(chosen), response))
}

fn switch(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(Empty::new().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// The comma-separated words of a header that may occur several times.
fn tokens<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

fn bad(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn spdy_takes_the_clients_first_choice_that_is_known() {
        let (protocol, response) = negotiate(&headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v9.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "channel.k8s.io"),
        ]))
        .unwrap();
        assert_eq!(protocol, Protocol::Spdy(Version::V4));
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(
            response.headers()["x-stream-protocol-version"],
            "v4.channel.k8s.io"
        );
    }

    #[test]
    fn websocket_proves_that_it_has_read_the_key() {
        // The example of RFC 6455, section 1.3.
        let (_, response) = negotiate(&headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io,v4.channel.k8s.io"),
        ]))
        .unwrap();
        assert_eq!(
            response.headers()[SEC_WEBSOCKET_ACCEPT],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(response.headers()[SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
    }

    #[test]
    fn others_are_refused() {
        let refused = |pairs: &[(&'static str, &'static str)]| negotiate(&headers(pairs)).unwrap_err().status;
        assert_eq!(refused(&[]), StatusCode::BAD_REQUEST);
        assert_eq!(
            refused(&[("connection", "upgrade"), ("upgrade", "h2c")]),
            StatusCode::BAD_REQUEST
        );
        let unknown = [
            ("connection", "upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v9"),
        ];
        assert_eq!(refused(&unknown), StatusCode::FORBIDDEN);
    }
}
