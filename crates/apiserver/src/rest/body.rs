//! Bodies: reading them with a limit, and making answers.

use bytes::Bytes;
use futures::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, WARNING};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::Value;

use crate::api::WatchStream;
use crate::kinds::protobuf::{self, ProtobufError};
use crate::status::Refusal;

/// An answer's body.
pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// As kube-apiserver's.
const LIMIT: usize = 3 * 1024 * 1024;

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// Reads a whole body.
pub(super) async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::too_large(LIMIT)),
        Err(error) => Err(Refusal::bad_request(format!(
            "cannot read the request's body: {error}"
        ))),
    }
}

/// The media type without parameters, in lower case.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// What objects are read from.
const OBJECT_TYPES: [&str; 3] = ["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// Reads an object: JSON, or YAML or protobuf where the client says so.
pub(super) fn parse(media: &str, body: &[u8]) -> Result<Value, Refusal> {
    match media {
        "" | "application/json" | "text/json" => serde_json::from_slice(body).map_err(|error| {
            Refusal::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
        }),
        "application/yaml" | "text/yaml" | "application/x-yaml" => {
            let text = std::str::from_utf8(body).map_err(|error| Refusal::bad_request(error.to_string()))?;
            serde_saphyr::from_str(text).map_err(|error| Refusal::bad_request(format!("yaml: {error}")))
        }
        protobuf::MEDIA_TYPE => protobuf::decode(body).map_err(|error| match error {
            ProtobufError::Malformed(message) => Refusal::bad_request(message),
            ProtobufError::UnknownKind { .. } => {
                let mut refusal = Refusal::unsupported_media_type(&OBJECT_TYPES[..2]);
                refusal.status["message"] = format!("{error} ({})", refusal.message()).into();
                refusal
            }
        }),
        _ => Err(Refusal::unsupported_media_type(&OBJECT_TYPES)),
    }
}

/// An answer of encoded JSON.
pub(super) fn json(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    typed(code, "application/json", body)
}

/// An answer of some media type.
pub(super) fn typed(code: StatusCode, media: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A refusal's answer.
pub(super) fn refusal(refusal: &Refusal) -> Response<Body> {
    let mut response = json(refusal.code(), refusal.status.to_string());
    if let Some(seconds) = refusal.status["details"]["retryAfterSeconds"].as_u64() {
        response
            .headers_mut()
            .insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds `Warning` headers.
pub(super) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// A watch's answer.
pub(super) fn watch(watch: WatchStream) -> Response<Body> {
    let lines = stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next().await?;
        Some((Ok(Frame::data(chunk)), watch))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}
