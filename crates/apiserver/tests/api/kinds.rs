use http::Method;
use podnet_apiserver::store;
use serde_json::{Value, json};

use crate::server::Server;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn service(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}], "clusterIP": address},
    })
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "host"}]},
            },
        },
    })
}

#[tokio::test]
async fn service_addresses_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    {
        let server = Server::with_store(store::disk(dir.path()).unwrap()).await;
        assert_eq!(
            server.get(&format!("{SERVICES}/kubernetes")).await.1["spec"]["clusterIP"],
            "10.96.0.1"
        );
        assert_eq!(server.post(SERVICES, &service("a", "10.96.7.7")).await.0, 201);
        let (code, status) = server.post(SERVICES, &service("b", "10.96.7.7")).await;
        assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
        let message = status["message"].as_str().unwrap();
        assert!(
            message.starts_with(r#"Service "b" is invalid: spec.clusterIPs: Invalid value: "#),
            "{message}"
        );
        assert!(
            message.ends_with("failed to allocate IP 10.96.7.7: provided IP is already allocated"),
            "{message}"
        );
        // The failed create cost nothing.
        let (code, other) = server.post(SERVICES, &service("b", "10.96.7.8")).await;
        assert_eq!(code, 201, "{other}");
        assert_eq!(server.delete(&format!("{SERVICES}/b"), &Value::Null).await.0, 200);
        assert_eq!(server.post(SERVICES, &service("c", "10.96.7.8")).await.0, 201);
        assert_eq!(
            server.post(SERVICES, &service("c", "10.96.7.8")).await.1["reason"],
            "AlreadyExists"
        );
    }
    let mut store = store::disk(dir.path());
    for _ in 0..100 {
        if store.is_ok() {
            break;
        }
        // Connections of the first server may still be closing.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        store = store::disk(dir.path());
    }
    let server = Server::with_store(store.unwrap()).await;
    assert_eq!(server.post(SERVICES, &service("d", "10.96.7.7")).await.0, 422);
    let (_, list) = server.get(SERVICES).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn status_and_scale_are_apart() {
    let server = Server::start().await;
    let (code, made) = server.post(DEPLOYMENTS, &deployment()).await;
    assert_eq!(
        (code, &made["metadata"]["generation"]),
        (201, &json!(1)),
        "{made}"
    );
    let path = format!("{DEPLOYMENTS}/d");
    let both = json!({"spec": {"replicas": 9}, "status": {"replicas": 2, "observedGeneration": 1}});
    let (_, after) = server.merge(&format!("{path}/status"), &both).await;
    assert_eq!(
        (&after["spec"]["replicas"], &after["status"]["replicas"]),
        (&json!(2), &json!(2)),
        "{after}"
    );
    let (_, after) = server
        .merge(
            &path,
            &json!({"spec": {"replicas": 3}, "status": {"replicas": 7}}),
        )
        .await;
    assert_eq!(
        (&after["spec"]["replicas"], &after["status"]["replicas"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(after["metadata"]["generation"], 2);
    let (_, scale) = server.get(&format!("{path}/scale")).await;
    assert_eq!(
        (&scale["kind"], &scale["apiVersion"]),
        (&json!("Scale"), &json!("autoscaling/v1"))
    );
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!(3), &json!("a=b"))
    );
    let mut wanted = scale.clone();
    wanted["spec"]["replicas"] = json!(5);
    assert_eq!(server.put(&format!("{path}/scale"), &wanted).await.0, 200);
    assert_eq!(server.put(&format!("{path}/scale"), &wanted).await.0, 409);
    let (_, scale) = server
        .merge(&format!("{path}/scale"), &json!({"spec": {"replicas": 6}}))
        .await;
    assert_eq!(scale["spec"]["replicas"], 6);
    let (code, status) = server
        .merge(&format!("{path}/scale"), &json!({"spec": {"replicas": -1}}))
        .await;
    assert_eq!(code, 422, "{status}");
    assert_eq!(server.get(&path).await.1["spec"]["replicas"], 6);
}

#[tokio::test]
async fn all_patch_types() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, &deployment()).await;
    let path = format!("{DEPLOYMENTS}/d");
    let containers = |object: &Value| object["spec"]["template"]["spec"]["containers"].clone();
    let add = json!({"spec": {"template": {"spec": {"containers": [{"name": "d", "image": "x"}]}}}});
    let (code, after) = server
        .call(
            Method::PATCH,
            &path,
            "application/strategic-merge-patch+json",
            &add,
        )
        .await;
    assert_eq!(
        (code, containers(&after).as_array().unwrap().len()),
        (200, 2),
        "{after}"
    );
    let remove = json!([{"op": "remove", "path": "/spec/template/spec/containers/0"}]);
    let (code, after) = server
        .call(Method::PATCH, &path, "application/json-patch+json", &remove)
        .await;
    assert_eq!((code, containers(&after)[0]["name"].clone()), (200, json!("c")));
    let (code, status) = server
        .call(
            Method::PATCH,
            &path,
            "application/json-patch+json",
            &json!([{"op": "test", "path": "/kind", "value": "x"}]),
        )
        .await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
    assert_eq!(server.merge(&path, &json!([1])).await.0, 400);
    assert_eq!(server.merge(&format!("{path}x"), &json!({})).await.0, 404);
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 8}});
    assert_eq!(server.merge(&path, &stale).await.0, 409);
}

#[tokio::test]
async fn custom_resources_come_and_go() {
    let server = Server::start().await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        })
    };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"},
            "versions": [version("v1", true), version("v1beta1", false)],
        },
    });
    let widgets = "/apis/example.com/v1/namespaces/default/widgets";
    assert_eq!(server.get(widgets).await.0, 404);
    let (code, made) = server.post(definitions, &definition).await;
    assert_eq!(code, 201, "{made}");
    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"a": 1}});
    let (code, made) = server.post(widgets, &widget).await;
    assert_eq!(code, 201, "{made}");
    let (_, beta) = server
        .get("/apis/example.com/v1beta1/namespaces/default/widgets/w")
        .await;
    assert_eq!(
        (&beta["apiVersion"], &beta["spec"]["a"]),
        (&json!("example.com/v1beta1"), &json!(1))
    );
    let path = format!("{widgets}/w");
    let strategic = server
        .call(
            Method::PATCH,
            &path,
            "application/strategic-merge-patch+json",
            &json!({}),
        )
        .await;
    assert_eq!(strategic.0, 415);
    let unconditional = server.put(&format!("{widgets}/w"), &widget).await;
    assert_eq!(
        unconditional.0, 422,
        "custom resources are replaced by version only"
    );
    assert_eq!(
        server
            .delete(&format!("{definitions}/widgets.example.com"), &Value::Null)
            .await
            .0,
        200
    );
    for _ in 0..100 {
        if server.get(widgets).await.0 == 404 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(server.get(widgets).await.0, 404);
    let (code, _) = server.post(definitions, &definition).await;
    assert_eq!(code, 201);
    assert_eq!(
        server.get(widgets).await.1["items"],
        json!([]),
        "its objects went with it"
    );
}
