//! Bodies in protobuf, as kubectl 1.32 and later sends them for built-in kinds.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};

use crate::server::Server;

#[path = "../../src/kinds/protobuf/recorded.rs"]
mod recorded;

const MEDIA: &str = "application/vnd.kubernetes.protobuf";
const ACCEPT: &str = "application/vnd.kubernetes.protobuf,application/json";

async fn post(server: &Server, path: &str, body: Vec<u8>) -> (u16, Value) {
    let path = format!("{path}?fieldManager=kubectl-create&fieldValidation=Strict");
    let (code, headers, text) = server.send(Method::POST, &path, MEDIA, ACCEPT, body).await;
    assert_eq!(headers["content-type"], "application/json");
    (code, serde_json::from_str(&text).unwrap())
}

#[tokio::test]
async fn what_kubectl_creates_is_created() {
    let server = Server::start().await;
    for (path, recorded, name) in [
        (
            "/apis/apps/v1/namespaces/default/deployments",
            recorded::DEPLOYMENT,
            "web",
        ),
        (
            "/api/v1/namespaces/default/configmaps",
            recorded::CONFIG_MAP,
            "cm",
        ),
        ("/api/v1/namespaces/default/secrets", recorded::SECRET, "s"),
        ("/api/v1/namespaces/default/services", recorded::CLUSTER_IP, "svc"),
        ("/api/v1/namespaces/default/services", recorded::NODE_PORT, "np"),
        (
            "/api/v1/namespaces/default/services",
            recorded::EXTERNAL_NAME,
            "ex",
        ),
        ("/api/v1/namespaces", recorded::NAMESPACE, "ns1"),
        (
            "/api/v1/namespaces/default/serviceaccounts",
            recorded::SERVICE_ACCOUNT,
            "sa",
        ),
    ] {
        let (code, made) = post(&server, path, STANDARD.decode(recorded).unwrap()).await;
        assert_eq!((code, &made["metadata"]["name"]), (201, &json!(name)), "{made}");
    }
    let (_, web) = server
        .get("/apis/apps/v1/namespaces/default/deployments/web")
        .await;
    // Zero replicas are asked for; what was not given has its default.
    assert_eq!(
        (&web["spec"]["replicas"], &web["spec"]["strategy"]["type"]),
        (&json!(0), &json!("RollingUpdate"))
    );
    let container = &web["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        (&container["name"], &container["ports"][0]["protocol"]),
        (&json!("echo"), &json!("TCP"))
    );
    let (_, service) = server.get("/api/v1/namespaces/default/services/np").await;
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "http");
    assert!(
        service["spec"]["clusterIP"]
            .as_str()
            .unwrap()
            .starts_with("10.96.")
    );

    // DeleteOptions{gracePeriodSeconds: 0, preconditions: {uid: "another"}}
    let options =
        b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dDeleteOptions\x12\x0d\x08\x00\x12\x09\x0a\x07another".to_vec();
    let path = "/api/v1/namespaces/default/configmaps/cm";
    let (code, _, text) = server.send(Method::DELETE, path, MEDIA, ACCEPT, options).await;
    assert!(code == 409 && text.contains("another"), "{code} {text}");
}

#[tokio::test]
async fn what_cannot_be_read_is_refused() {
    let server = Server::start().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    let (code, status) = post(&server, maps, b"{}".to_vec()).await;
    assert_eq!((code, &status["reason"]), (400, &json!("BadRequest")), "{status}");
    let torn = STANDARD.decode(recorded::CONFIG_MAP).unwrap()[..40].to_vec();
    let (code, status) = post(&server, maps, torn).await;
    assert!(
        code == 400
            && status["message"]
                .as_str()
                .unwrap()
                .contains("ends within a field"),
        "{status}"
    );
    let (code, status) = post(&server, maps, b"k8s\0\x0a\x0b\x0a\x02v1\x12\x05Thing".to_vec()).await;
    assert_eq!(
        (code, &status["reason"]),
        (415, &json!("UnsupportedMediaType")),
        "{status}"
    );
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("send it as JSON or YAML"),
        "{status}"
    );
    let (code, status) = post(&server, maps, STANDARD.decode(recorded::SECRET).unwrap()).await;
    assert_eq!(code, 400, "{status}");
}
