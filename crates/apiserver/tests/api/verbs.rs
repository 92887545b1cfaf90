use http::Method;
use serde_json::{Value, json};

use crate::server::Server;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}

#[tokio::test]
async fn create_get_conflict_and_refusals() {
    let server = Server::start().await;
    let (code, made) = server.post(MAPS, &map("a", "1")).await;
    assert_eq!(code, 201);
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string());

    let (code, status) = server.post(MAPS, &map("a", "1")).await;
    assert_eq!((code, &status["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(status["message"], r#"configmaps "a" already exists"#);
    assert_eq!(status["details"], json!({"name": "a", "kind": "configmaps"}));

    let (code, status) = server.get("/apis/apps/v1/namespaces/default/deployments/x").await;
    assert_eq!(
        (code, &status["message"]),
        (404, &json!(r#"deployments.apps "x" not found"#))
    );
    assert_eq!(
        status["details"],
        json!({"name": "x", "group": "apps", "kind": "deployments"})
    );

    let mut changed = made.clone();
    changed["data"]["k"] = json!("2");
    assert_eq!(server.put(&format!("{MAPS}/a"), &changed).await.0, 200);
    let (code, status) = server.put(&format!("{MAPS}/a"), &changed).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    assert_eq!(
        status["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes \
         to the latest version and try again"
    );
    let (code, status) = server.put(&format!("{MAPS}/b"), &changed).await;
    assert_eq!(code, 400, "{status}");
    assert_eq!(
        status["message"],
        "the name of the object (a) does not match the name on the URL (b)"
    );
    assert_eq!(server.put(&format!("{MAPS}/b"), &map("b", "1")).await.0, 404);

    for (path, code, reason) in [
        ("/api/v1/nothings", 404, "NotFound"),
        ("/apis/nope/v1/things", 404, "NotFound"),
        ("/apis/nope", 404, "NotFound"),
        (
            "/api/v1/namespaces/default/pods?fieldSelector=a%3Db",
            400,
            "BadRequest",
        ),
        (
            "/api/v1/namespaces/default/pods?labelSelector=a%20b",
            400,
            "BadRequest",
        ),
        ("/api/v1/pods?continue=rubbish", 400, "BadRequest"),
        ("/api/v1/pods?resourceVersion=x", 422, "Invalid"),
    ] {
        let (got, status) = server.get(path).await;
        assert_eq!(
            (got, status["reason"].as_str()),
            (code, Some(reason)),
            "{path}: {status}"
        );
    }
    let (code, status) = server.post("/api/v1/configmaps", &map("a", "1")).await;
    assert_eq!((code, &status["reason"]), (405, &json!("MethodNotAllowed")));
    let (code, status) = server
        .post("/api/v1/namespaces/none/configmaps", &map("a", "1"))
        .await;
    assert_eq!(
        (code, &status["message"]),
        (404, &json!(r#"namespaces "none" not found"#))
    );
    let (code, ..) = server
        .call(Method::POST, MAPS, "application/cbor", &map("c", "1"))
        .await;
    assert_eq!(code, 415);
    let (code, ..) = server
        .raw(
            Method::GET,
            MAPS,
            "",
            "application/vnd.kubernetes.protobuf",
            &Value::Null,
        )
        .await;
    assert_eq!(code, 406);
    let (code, _) = server
        .call(
            Method::PATCH,
            &format!("{MAPS}/a"),
            "application/apply-patch+yaml",
            &map("a", "1"),
        )
        .await;
    assert_eq!(code, 415);
}

#[tokio::test]
async fn writes_that_change_nothing_keep_the_version() {
    let server = Server::start().await;
    let (_, made) = server.post(MAPS, &map("a", "1")).await;
    for body in [json!({}), json!({"data": {"k": "1"}})] {
        let (code, same) = server.merge(&format!("{MAPS}/a"), &body).await;
        assert_eq!((code, &same), (200, &made));
    }
    let (code, dry) = server.post(&format!("{MAPS}?dryRun=All"), &map("dry", "1")).await;
    assert_eq!((code, dry["metadata"]["uid"].is_string()), (201, true));
    assert_eq!(server.get(&format!("{MAPS}/dry")).await.0, 404);
    assert_eq!(
        server.post(&format!("{MAPS}?dryRun=x"), &map("dry", "1")).await.0,
        422
    );
}

#[tokio::test]
async fn generated_names_and_concurrent_patches() {
    let server = Server::start().await;
    let object = json!({"metadata": {"generateName": "g-"}, "data": {}});
    let (code, made) = server.post(MAPS, &object).await;
    assert_eq!(code, 201, "{made}");
    let path = format!("{MAPS}/{}", made["metadata"]["name"].as_str().unwrap());
    let patches: Vec<Value> = (0..10).map(|n| json!({"data": {format!("k{n}"): "x"}})).collect();
    let all = futures::future::join_all(patches.iter().map(|patch| server.merge(&path, patch))).await;
    assert!(all.iter().all(|(code, _)| *code == 200), "{all:?}");
    assert_eq!(server.get(&path).await.1["data"].as_object().unwrap().len(), 10);
}

#[tokio::test]
async fn pages_are_one_consistent_list() {
    let server = Server::start().await;
    for n in 0..7 {
        server.post(MAPS, &map(&format!("m{n}"), "old")).await;
    }
    let (_, first) = server.get(&format!("{MAPS}?limit=3")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    server.delete(&format!("{MAPS}/m5"), &Value::Null).await;
    server
        .merge(&format!("{MAPS}/m6"), &json!({"data": {"k": "new"}}))
        .await;
    server.post(MAPS, &map("m9", "new")).await;
    let mut names: Vec<Value> = Vec::new();
    let mut page = first.clone();
    loop {
        for item in page["items"].as_array().unwrap() {
            assert_eq!(item["data"]["k"], "old");
            names.push(item["metadata"]["name"].clone());
        }
        assert_eq!(
            page["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        let Some(token) = page["metadata"]["continue"].as_str() else {
            break;
        };
        page = server.get(&format!("{MAPS}?limit=3&continue={token}")).await.1;
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = server
        .get(&format!(
            "{MAPS}?resourceVersion={version}&resourceVersionMatch=Exact"
        ))
        .await
        .1;
    assert_eq!(exact["items"].as_array().unwrap().len(), 7);
    // Not through the client, which tries again and again after a 504.
    let path = format!("{MAPS}?resourceVersion=999999");
    let answer = crate::streams::ask(&server, &path, "Authorization: Bearer sesame\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 504") && answer.contains(r#""reason":"Timeout""#),
        "{answer}"
    );
}

#[tokio::test]
async fn watches_start_resume_select_and_expire() {
    let server = Server::start().await;
    let labelled = |value: &str| json!({"metadata": {"labels": {"l": value}}});
    let (_, made) = server.post(MAPS, &map("a", "1")).await;
    let start = made["metadata"]["resourceVersion"].as_str().unwrap();
    server.merge(&format!("{MAPS}/a"), &labelled("yes")).await;
    server
        .merge(&format!("{MAPS}/a"), &json!({"data": {"k": "2"}}))
        .await;
    server.merge(&format!("{MAPS}/a"), &labelled("no")).await;
    server.merge(&format!("{MAPS}/a"), &labelled("yes")).await;
    let (_, gone) = server.delete(&format!("{MAPS}/a"), &Value::Null).await;
    assert_eq!(gone["status"], "Success");
    let kinds = |events: &[Value]| -> Vec<String> {
        events
            .iter()
            .map(|event| event["type"].as_str().unwrap().to_owned())
            .collect()
    };
    let path = format!("{MAPS}?watch=1&timeoutSeconds=1&resourceVersion={start}");
    let events = server.watch(&format!("{path}&labelSelector=l%3Dyes")).await;
    assert_eq!(
        kinds(&events),
        ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
    );
    // What leaves the selection is shown as it was last selected, at the revision of its leaving.
    assert_eq!(events[2]["object"]["metadata"]["labels"]["l"], "yes");
    let events = server.watch(&format!("{path}&allowWatchBookmarks=true")).await;
    assert_eq!(
        kinds(&events),
        [
            "MODIFIED", "MODIFIED", "MODIFIED", "MODIFIED", "DELETED", "BOOKMARK"
        ]
    );
    let versions: Vec<u64> = events
        .iter()
        .map(|event| {
            event["object"]["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    assert!(versions.is_sorted());
    server.post(MAPS, &map("b", "1")).await;
    let fresh = server.watch(&format!("{MAPS}?watch=true&timeoutSeconds=1")).await;
    assert_eq!(kinds(&fresh), ["ADDED"]);
    let streamed = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let streamed = server
        .watch(&format!("{MAPS}?watch=true&timeoutSeconds=1&{streamed}"))
        .await;
    assert_eq!(
        streamed[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    // As with etcd compaction: whoever comes from before this history lists anew.
    let (code, status) = server
        .get("/api/v1/configmaps?limit=1&resourceVersion=1&resourceVersionMatch=Exact")
        .await;
    assert!(code == 200 || status["reason"] == "Expired", "{status}");
    let expired = server
        .watch("/api/v1/configmaps?watch=1&resourceVersion=0&timeoutSeconds=1")
        .await;
    assert_eq!(kinds(&expired), ["ADDED"]);
}

#[tokio::test]
async fn unknown_fields_are_warned_of_or_refused() {
    let server = Server::start().await;
    let mut object = map("a", "1");
    object["dada"] = json!({"x": 1});
    let (code, headers, text) = server
        .raw(
            Method::POST,
            MAPS,
            "application/json",
            "application/json",
            &object,
        )
        .await;
    assert_eq!(code, 201, "{text}");
    assert_eq!(headers["warning"], r#"299 - "unknown field \"dada\"""#);
    assert!(serde_json::from_str::<Value>(&text).unwrap()["dada"].is_null());
    object["metadata"]["name"] = json!("b");
    let (code, status) = server
        .post(&format!("{MAPS}?fieldValidation=Strict"), &object)
        .await;
    assert_eq!(code, 400);
    let want = r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "dada""#;
    assert_eq!(status["message"], want);
}

#[tokio::test]
async fn tables_and_metadata_only() {
    let server = Server::start().await;
    server.post(MAPS, &map("a", "1")).await;
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let (_, _, text) = server.raw(Method::GET, MAPS, "", accept, &Value::Null).await;
    let table: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&table["kind"], &table["apiVersion"]),
        (&json!("Table"), &json!("meta.k8s.io/v1"))
    );
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let (_, _, text) = server.raw(Method::GET, MAPS, "", accept, &Value::Null).await;
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert!(list["items"][0]["data"].is_null());
}

#[tokio::test]
async fn discovery_plain_and_aggregated() {
    let server = Server::start().await;
    let (_, list) = server.get("/apis/apps/v1").await;
    let names: Vec<&str> = list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["name"].as_str().unwrap())
        .collect();
    assert!(
        [
            "deployments",
            "deployments/scale",
            "deployments/status",
            "replicasets"
        ]
        .iter()
        .all(|n| names.contains(n))
    );
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let (_, headers, text) = server.raw(Method::GET, "/apis", "", accept, &Value::Null).await;
    assert_eq!(
        headers["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    let list: Value = serde_json::from_str(&text).unwrap();
    assert!(
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|group| group["metadata"]["name"] == "apps")
    );
    assert_eq!(server.get("/openapi/v3").await.0, 404);
    assert_eq!(server.get("/version").await.1["major"], "1");
}
