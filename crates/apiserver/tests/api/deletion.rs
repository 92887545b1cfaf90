use serde_json::{Value, json};

use crate::server::Server;

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "host"}]},
    })
}

async fn bind(server: &Server, name: &str) {
    let binding = json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "node1"}});
    let (code, status) = server.post(&format!("{PODS}/{name}/binding"), &binding).await;
    assert_eq!(code, 201, "{status}");
}

#[tokio::test]
async fn pods_get_their_grace_when_they_run() {
    let server = Server::start().await;
    server.post(PODS, &pod("waiting")).await;
    let (code, last) = server.delete(&format!("{PODS}/waiting"), &Value::Null).await;
    assert_eq!((code, &last["kind"]), (200, &json!("Pod")));
    assert_eq!(server.get(&format!("{PODS}/waiting")).await.0, 404);

    server.post(PODS, &pod("bound")).await;
    bind(&server, "bound").await;
    let again = server
        .post(
            &format!("{PODS}/bound/binding"),
            &json!({"target": {"name": "node2"}}),
        )
        .await;
    assert_eq!((again.0, &again.1["reason"]), (409, &json!("Conflict")));
    let path = format!("{PODS}/bound");
    let (_, marked) = server.delete(&path, &Value::Null).await;
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let (_, longer) = server.delete(&path, &json!({"gracePeriodSeconds": 60})).await;
    assert_eq!(longer, marked, "a second delete cannot prolong the grace");
    let (_, shorter) = server.delete(&path, &json!({"gracePeriodSeconds": 5})).await;
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    assert_eq!(
        server
            .delete(&format!("{path}?gracePeriodSeconds=0"), &Value::Null)
            .await
            .0,
        200
    );
    assert_eq!(server.get(&path).await.0, 404);
}

#[tokio::test]
async fn finalizers_hold_and_preconditions_refuse() {
    let server = Server::start().await;
    let path = format!("{MAPS}/a");
    let object = json!({"metadata": {"name": "a", "finalizers": ["example.com/hold"]}});
    let (code, made) = server.post(MAPS, &object).await;
    assert_eq!(code, 201, "{made}");
    let (code, status) = server
        .delete(&path, &json!({"preconditions": {"uid": "other"}}))
        .await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("Precondition failed: UID in precondition: other")
    );
    let (code, marked) = server.delete(&path, &Value::Null).await;
    assert_eq!(
        (code, &marked["metadata"]["deletionGracePeriodSeconds"]),
        (200, &json!(0))
    );
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/new"]}});
    let (code, status) = server.merge(&path, &more).await;
    assert_eq!(code, 422);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("no new finalizers can be added"),
        "{status}"
    );
    let (code, _) = server
        .merge(&path, &json!({"metadata": {"finalizers": null}}))
        .await;
    assert_eq!(code, 200);
    assert_eq!(server.get(&path).await.0, 404);
}

#[tokio::test]
async fn propagation_is_left_to_the_garbage_collector() {
    let server = Server::start().await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        server.post(MAPS, &json!({"metadata": {"name": "a"}})).await;
        let (_, marked) = server
            .delete(&format!("{MAPS}/a"), &json!({"propagationPolicy": policy}))
            .await;
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
        let (code, _) = server
            .delete(&format!("{MAPS}/a"), &json!({"propagationPolicy": "Background"}))
            .await;
        assert_eq!(code, 200);
        assert_eq!(server.get(&format!("{MAPS}/a")).await.0, 404);
    }
    let (code, status) = server
        .delete(&format!("{MAPS}/a"), &json!({"propagationPolicy": "Sideways"}))
        .await;
    assert_eq!(code, 422, "{status}");
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let server = Server::start().await;
    for (name, label) in [("a", "x"), ("b", "x"), ("c", "y")] {
        server
            .post(MAPS, &json!({"metadata": {"name": name, "labels": {"l": label}}}))
            .await;
    }
    let (code, list) = server
        .delete(&format!("{MAPS}?labelSelector=l%3Dx"), &Value::Null)
        .await;
    assert_eq!((code, list["items"].as_array().unwrap().len()), (200, 2));
    assert_eq!(server.get(MAPS).await.1["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn namespaces_wait_for_their_finalizer() {
    let server = Server::start().await;
    let (_, made) = server
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}}))
        .await;
    assert_eq!(
        (&made["status"]["phase"], &made["spec"]["finalizers"]),
        (&json!("Active"), &json!(["kubernetes"]))
    );
    assert_eq!(
        server.get("/api/v1/namespaces/n/serviceaccounts/default").await.0,
        200
    );
    let (_, marked) = server.delete("/api/v1/namespaces/n", &Value::Null).await;
    assert_eq!(marked["status"]["phase"], "Terminating");
    let (code, status) = server
        .post(
            "/api/v1/namespaces/n/configmaps",
            &json!({"metadata": {"name": "a"}}),
        )
        .await;
    assert_eq!(code, 403);
    assert_eq!(
        status["message"],
        r#"configmaps "a" is forbidden: unable to create new content in namespace n because it is being terminated"#
    );
    assert_eq!(status["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut finalized = marked.clone();
    finalized["spec"]["finalizers"] = json!([]);
    assert_eq!(
        server.put("/api/v1/namespaces/n/finalize", &finalized).await.0,
        200
    );
    assert_eq!(server.get("/api/v1/namespaces/n").await.0, 404);
    assert_eq!(
        server.delete("/api/v1/namespaces/default", &Value::Null).await.0,
        403
    );
}
