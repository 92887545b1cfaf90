//! pods/log, pods/exec and pods/attach: the request is handed to the kubelet of the pod's node over its unix
//! socket, and after an upgrade (SPDY/3.1, WebSocket) the bytes go both ways untouched.

use std::sync::Arc;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::body::{self, Body};
use super::path::ObjectPath;
use super::query::{Query, percent_encode};
use crate::api::{Api, Target};
use crate::registry::Registry;
use crate::status::Refusal;

/// A part of a pod that its node answers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Log,
    Exec,
    Attach,
}

/// Which of these a path names. Port-forward is known, but not served.
pub(super) fn part(path: &ObjectPath) -> Result<Option<Part>, Refusal> {
    if !path.group.is_empty() || path.version != "v1" || path.plural != "pods" || path.namespace.is_none() {
        return Ok(None);
    }
    match path.subresource.as_deref() {
        Some("log") => Ok(Some(Part::Log)),
        Some("exec") => Ok(Some(Part::Exec)),
        Some("attach") => Ok(Some(Part::Attach)),
        Some("portforward") => Err(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            "NotImplemented",
            "this API server does not serve port-forward; call the pod from inside: kubectl exec, podnet lab node",
            serde_json::json!({}),
        )),
        _ => Ok(None),
    }
}

/// Hands the request to the pod's node.
pub(super) async fn forward(
    api: &Arc<Api>,
    part: Part,
    path: &ObjectPath,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let allowed = match part {
        Part::Log => request.method() == Method::GET,
        Part::Exec | Part::Attach => matches!(*request.method(), Method::GET | Method::POST),
    };
    if !allowed {
        return Err(Refusal::method_not_allowed());
    }
    let (namespace, name) = (
        path.namespace.as_deref().unwrap_or_default(),
        path.name.as_deref().unwrap_or_default(),
    );
    let target = Target::new(Registry::builtin("", "v1", "pods"), Some(namespace), name);
    let answer = api.get(&target).await?;
    let pod = answer.object.value();
    let container = container(pod, query.non_empty("container"))?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if node.is_empty() {
        return match part {
            // There is nothing to read yet.
            Part::Log => Ok(body::typed(StatusCode::OK, "text/plain", "")),
            _ => Err(Refusal::bad_request(format!(
                "pod {name} does not have a host assigned"
            ))),
        };
    }
    let pod_path = format!(
        "{}/{}/{}",
        percent_encode(namespace),
        percent_encode(name),
        percent_encode(&container)
    );
    let uri = match part {
        Part::Log => format!("/containerLogs/{pod_path}?{}", log_query(query)),
        Part::Exec => format!("/exec/{pod_path}?{}", stream_query(query, true)),
        Part::Attach => format!("/attach/{pod_path}?{}", stream_query(query, false)),
    };
    let upgrade = request
        .headers()
        .contains_key(UPGRADE)
        .then(|| hyper::upgrade::on(&mut request));
    if part != Part::Log && upgrade.is_none() {
        return Err(Refusal::bad_request("Upgrade request required"));
    }
    let sent = ask(api, node, &uri, &request).await?;
    match (sent.status(), upgrade) {
        (StatusCode::SWITCHING_PROTOCOLS, Some(client)) => Ok(tunnel(client, sent)),
        (status, _) if status.is_success() => Ok(pass(sent)),
        _ => Err(refused(sent).await),
    }
}

/// The named container, or the default one.
fn container(pod: &Value, asked: Option<&str>) -> Result<String, Refusal> {
    let names = |field: &str| {
        let list = pod["spec"][field].as_array().into_iter().flatten();
        list.filter_map(|container| container["name"].as_str())
            .collect::<Vec<_>>()
    };
    let annotated = || {
        let annotation = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
        annotation.filter(|name| names("containers").contains(name))
    };
    let Some(asked) = asked else {
        let first = annotated().or_else(|| names("containers").first().copied());
        return first
            .map(str::to_owned)
            .ok_or_else(|| Refusal::bad_request("the pod has no containers"));
    };
    let known = ["containers", "initContainers", "ephemeralContainers"]
        .into_iter()
        .any(|f| names(f).contains(&asked));
    match known {
        true => Ok(asked.to_owned()),
        false => {
            let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
            Err(Refusal::bad_request(format!(
                "container {asked} is not valid for pod {pod}"
            )))
        }
    }
}

fn log_query(query: &Query) -> String {
    const NAMES: [&str; 7] = [
        "follow",
        "tailLines",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "limitBytes",
        "previous",
    ];
    let pairs = NAMES
        .into_iter()
        .filter_map(|name| Some(format!("{name}={}", percent_encode(query.non_empty(name)?))));
    pairs.collect::<Vec<_>>().join("&")
}

/// The API's names of the streams to the kubelet's.
fn stream_query(query: &Query, command: bool) -> String {
    const STREAMS: [(&str, &str); 4] = [
        ("stdin", "input"),
        ("stdout", "output"),
        ("stderr", "error"),
        ("tty", "tty"),
    ];
    let streams = STREAMS
        .into_iter()
        .filter(|(name, _)| query.is_true(name))
        .map(|(_, name)| format!("{name}=1"));
    let commands = query
        .all("command")
        .filter(|_| command)
        .map(|word| format!("command={}", percent_encode(word)));
    streams.chain(commands).collect::<Vec<_>>().join("&")
}

async fn ask(
    api: &Api,
    node: &str,
    uri: &str,
    request: &Request<Incoming>,
) -> Result<Response<Incoming>, Refusal> {
    let dialing =
        |error: &dyn std::fmt::Display| Refusal::internal(format!("error dialing backend: {node}: {error}"));
    let dir = api
        .kubelets()
        .ok_or_else(|| dialing(&"this server knows no kubelets (--kubelet-socket-dir)"))?;
    if node.contains('/') {
        return Err(dialing(&"no such node"));
    }
    let stream = UnixStream::connect(dir.join(format!("{node}.sock")))
        .await
        .map_err(|error| dialing(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| dialing(&error))?;
    tokio::spawn(connection.with_upgrades());
    let mut forwarded = Request::new(Empty::<Bytes>::new());
    *forwarded.method_mut() = request.method().clone();
    *forwarded.uri_mut() = uri
        .parse()
        .map_err(|error| Refusal::bad_request(format!("{uri}: {error}")))?;
    copy_headers(request.headers(), forwarded.headers_mut());
    sender
        .send_request(forwarded)
        .await
        .map_err(|error| dialing(&error))
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        if ![HOST, AUTHORIZATION, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name) {
            to.append(name, value.clone());
        }
    }
    to.insert(HOST, HeaderValue::from_static("kubelet"));
}

/// Both sides have agreed to the upgrade: from now on only bytes.
fn tunnel(client: hyper::upgrade::OnUpgrade, mut kubelet: Response<Incoming>) -> Response<Body> {
    let mut response = Response::new(body::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in kubelet.headers() {
        if ![CONTENT_LENGTH, TRANSFER_ENCODING].contains(name) {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
        .headers_mut()
        .entry(CONNECTION)
        .or_insert(HeaderValue::from_static("Upgrade"));
    let kubelet = hyper::upgrade::on(&mut kubelet);
    tokio::spawn(async move {
        match tokio::try_join!(client, kubelet) {
            Ok((client, kubelet)) => {
                let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
                // Either side going away ends the tunnel; there is nobody left to tell.
                drop(tokio::io::copy_bidirectional(&mut client, &mut kubelet).await);
            }
            Err(error) => tracing::debug!(%error, "a stream to a container was not upgraded"),
        }
    });
    response
}

/// The kubelet's answer as it comes, chunk by chunk.
fn pass(kubelet: Response<Incoming>) -> Response<Body> {
    let (parts, incoming) = kubelet.into_parts();
    let mut response = Response::new(incoming.map_err(std::io::Error::other).boxed_unsync());
    *response.status_mut() = parts.status;
    let media = parts.headers.get(CONTENT_TYPE).cloned();
    response.headers_mut().insert(
        CONTENT_TYPE,
        media.unwrap_or(HeaderValue::from_static("text/plain")),
    );
    response
}

/// The kubelet's refusal as a Status.
async fn refused(kubelet: Response<Incoming>) -> Refusal {
    let code = kubelet.status();
    let text = match kubelet.into_body().collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    if let Ok(status) = serde_json::from_str::<Value>(&text)
        && status["kind"] == "Status"
    {
        return Refusal { status };
    }
    match code {
        StatusCode::BAD_REQUEST => Refusal::bad_request(text),
        StatusCode::NOT_FOUND => Refusal::new(code, "NotFound", text, Value::Null),
        StatusCode::FORBIDDEN => Refusal::new(code, "Forbidden", text, Value::Null),
        _ => Refusal::internal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn queries_are_translated() {
        let query = Query::parse(
            "container=c&command=sh&command=-c&command=a%20b&stdin=true&stdout=1&stderr=false&tty=true",
        );
        assert_eq!(
            stream_query(&query, true),
            "input=1&output=1&tty=1&command=sh&command=-c&command=a%20b"
        );
        let query = Query::parse("follow=true&tailLines=5&container=x&insecureSkipTLSVerifyBackend=true");
        assert_eq!(log_query(&query), "follow=true&tailLines=5");
    }

    #[test]
    fn the_default_container() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&pod, None).unwrap(), "a");
        assert_eq!(container(&pod, Some("i")).unwrap(), "i");
        assert_eq!(
            container(&pod, Some("x")).unwrap_err().message(),
            "container x is not valid for pod p"
        );
        pod["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/default-container": "b"});
        assert_eq!(container(&pod, None).unwrap(), "b");
    }
}
