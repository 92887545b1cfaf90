//! Who may ask, and what goes through to a kubelet.

use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::server::Server;

/// TLS without a client certificate.
async fn connect(server: &Server) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(server.ca()).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address).await.unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from("localhost").unwrap(), stream)
        .await
        .unwrap()
}

/// One HTTP/1.1 request and all that comes back before the server closes.
pub(crate) async fn ask(server: &Server, path: &str, headers: &str) -> String {
    let mut stream = connect(server).await;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The server may close without saying so in TLS.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn who_may_ask() {
    let server = Server::start().await;
    let anonymous = ask(&server, "/api/v1/pods", "").await;
    assert!(anonymous.starts_with("HTTP/1.1 401"), "{anonymous}");
    assert!(anonymous.contains(r#""reason":"Unauthorized""#));
    let wrong = ask(&server, "/api/v1/pods", "Authorization: Bearer wrong\r\n").await;
    assert!(wrong.starts_with("HTTP/1.1 401"));
    let right = ask(&server, "/api/v1/pods", "Authorization: Bearer sesame\r\n").await;
    assert!(right.starts_with("HTTP/1.1 200"), "{right}");
    for path in ["/healthz", "/livez", "/readyz?verbose", "/version"] {
        assert!(ask(&server, path, "").await.starts_with("HTTP/1.1 200"), "{path}");
    }
}

async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn exec_is_tunnelled_and_refusals_become_a_status() {
    let server = Server::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "host"}]}});
    let (code, made) = server.post(pods, &pod).await;
    assert_eq!(code, 201, "{made}");
    let (code, status) = server.get(&format!("{pods}/p/log")).await;
    assert_eq!(code, 500, "no kubelet: {status}");
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("error dialing backend")
    );

    let kubelet = UnixListener::bind(server.path("node1.sock")).unwrap();
    let heads = tokio::spawn(async move {
        let (mut exec, _) = kubelet.accept().await.unwrap();
        let first = head(&mut exec).await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\nhello";
        exec.write_all(switch.as_bytes()).await.unwrap();
        let mut bytes = [0; 4];
        exec.read_exact(&mut bytes).await.unwrap();
        exec.write_all(&bytes).await.unwrap();
        drop(exec);
        let (mut log, _) = kubelet.accept().await.unwrap();
        let second = head(&mut log).await;
        let answer = "HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\nnot ready";
        log.write_all(answer.as_bytes()).await.unwrap();
        (first, second)
    });
    let mut stream = connect(&server).await;
    let path = format!("{pods}/p/exec?command=echo&command=a%20b&stdin=true&stdout=true");
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sesame\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = head(&mut stream).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 101"), "{answer}");
    assert!(
        answer.contains("upgrade: spdy/3.1")
            && answer.contains("x-stream-protocol-version: v4.channel.k8s.io")
    );
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"hello");
    stream.write_all(b"ping").await.unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert_eq!(
        rest, b"ping",
        "the end of the kubelet's stream is the end of the client's"
    );

    let (code, status) = server.get(&format!("{pods}/p/log?tailLines=3&follow=true")).await;
    assert_eq!(
        (code, &status["message"], &status["reason"]),
        (400, &json!("not ready"), &json!("BadRequest"))
    );
    let (code, status) = server.get(&format!("{pods}/p/log?container=x")).await;
    assert_eq!(
        (code, &status["message"]),
        (400, &json!("container x is not valid for pod p"))
    );
    let (first, second) = heads.await.unwrap();
    assert!(
        first.starts_with("POST /exec/default/p/c?input=1&output=1&command=echo&command=a%20b HTTP/1.1"),
        "{first}"
    );
    assert!(
        !first.to_lowercase().contains("authorization"),
        "the client's token stays here"
    );
    assert!(
        second.starts_with("GET /containerLogs/default/p/c?follow=true&tailLines=3 HTTP/1.1"),
        "{second}"
    );
}
