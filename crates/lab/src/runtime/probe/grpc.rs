//! grpc probes: one call of `grpc.health.v1.Health/Check`.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// `HealthCheckResponse.ServingStatus`.
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// Asks the server at `address` about `service`.
pub(super) async fn check(address: SocketAddr, service: &str, timeout: Duration) -> Result<(), String> {
    let overdue = |error: String| {
        format!(
            "timeout: failed to connect service \"{address}\" within {}s: {error}",
            timeout.as_secs()
        )
    };
    let told = |error: hyper::Error| format!("rpc failed: {error}");
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .map_err(|error| overdue(error.to_string()))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| overdue(error.to_string()))?;
    let driver = tokio::spawn(connection);
    let outcome = async {
        let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "kube-probe/1.36")
            .body(Full::new(request(service)))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(told)?;
        let early = grpc_status(response.headers());
        let body = response.into_body().collect().await.map_err(told)?;
        let status = early.or_else(|| body.trailers().and_then(grpc_status));
        judge(status.as_deref(), &body.to_bytes())
    }
    .await;
    driver.abort();
    outcome
}

fn grpc_status(headers: &http::HeaderMap) -> Option<String> {
    Some(headers.get("grpc-status")?.to_str().ok()?.to_owned())
}

/// The frame of a `HealthCheckRequest`: uncompressed, length, field 1 as a string.
fn request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put(message);
    frame.freeze()
}

fn judge(status: Option<&str>, body: &[u8]) -> Result<(), String> {
    match status {
        Some("0") | None => {}
        Some("12") => {
            return Err(
                "this server does not implement the grpc health protocol (grpc.health.v1.Health)".into(),
            );
        }
        Some(code) => return Err(format!("service health rpc failed with code {code}")),
    }
    // An empty message is status 0, UNKNOWN; field 1 is the status as a varint below 128.
    let serving = match body.get(5..) {
        Some([0x08, status, ..]) => usize::from(*status),
        _ => 0,
    };
    match STATUSES.get(serving).copied().unwrap_or("UNKNOWN") {
        "SERVING" => Ok(()),
        other => Err(format!("service unhealthy (responded with \"{other}\")")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_and_judged() {
        assert_eq!(&request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(judge(Some("0"), &[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        assert!(
            judge(Some("0"), &[0, 0, 0, 0, 2, 8, 2])
                .unwrap_err()
                .contains("NOT_SERVING")
        );
        assert!(
            judge(Some("0"), &[0, 0, 0, 0, 0])
                .unwrap_err()
                .contains("UNKNOWN")
        );
        assert!(judge(Some("12"), &[]).unwrap_err().contains("does not implement"));
        assert!(judge(Some("5"), &[]).unwrap_err().contains("code 5"));
    }
}
