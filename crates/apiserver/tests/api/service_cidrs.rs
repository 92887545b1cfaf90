//! Where cluster IPs come from, and whose they are: ServiceCIDRs and IPAddresses.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use ipnet::IpNet;
use podnet_apiserver::api::Api;
use podnet_apiserver::services::Allocations;
use podnet_apiserver::store::{self, Listing, RevisionError, Store, Stored, Subscription, Write, WriteError};
use serde_json::{Value, json};

use crate::server::Server;

const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Six addresses, of which the Service `kubernetes` has the first.
fn tiny() -> Vec<IpNet> {
    vec!["10.96.0.0/29".parse().unwrap()]
}

fn cidr(name: &str, ranges: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": name}, "spec": {"cidrs": ranges},
    })
}

fn service(name: &str, address: Option<&str>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}], "clusterIP": address},
    })
}

fn address(service: &Value) -> String {
    service["spec"]["clusterIP"].as_str().unwrap().to_owned()
}

fn names(list: &Value) -> BTreeSet<String> {
    let items = list["items"].as_array().unwrap().iter();
    items
        .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

async fn row(server: &Server, path: &str) -> Vec<Value> {
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let (.., text) = server.raw(http::Method::GET, path, "", table, &Value::Null).await;
    let table: Value = serde_json::from_str(&text).unwrap();
    let columns = table["columnDefinitions"].as_array().unwrap().iter();
    let columns: Vec<Value> = columns.map(|column| column["name"].clone()).collect();
    let cells = table["rows"][0]["cells"].as_array().unwrap().clone();
    assert_eq!(columns.len(), cells.len());
    columns
        .into_iter()
        .zip(cells)
        .flat_map(|(column, cell)| [column, cell])
        .collect()
}

#[tokio::test]
async fn the_default_service_cidr_and_the_address_of_the_api_are_there_from_the_start() {
    let server = Server::start().await;
    let (code, made) = server.get(&format!("{CIDRS}/kubernetes")).await;
    assert_eq!(code, 200, "{made}");
    assert_eq!(made["spec"]["cidrs"], json!(["10.96.0.0/16", "fd00:10:96::/112"]));
    let condition = &made["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"]),
        (&json!("Ready"), &json!("True"))
    );
    assert_eq!(
        made["metadata"]["finalizers"],
        json!(["networking.k8s.io/service-cidr-finalizer"])
    );
    let shown = row(&server, &format!("{CIDRS}/kubernetes")).await;
    assert_eq!(
        shown[..5],
        [
            json!("Name"),
            json!("kubernetes"),
            json!("CIDRs"),
            json!("10.96.0.0/16,fd00:10:96::/112"),
            json!("Age")
        ]
    );
    let shown = row(&server, &format!("{ADDRESSES}/10.96.0.1")).await;
    assert_eq!(
        shown,
        [
            json!("Name"),
            json!("10.96.0.1"),
            json!("ParentRef"),
            json!("services/default/kubernetes")
        ]
    );
    let (_, group) = server.get("/apis/networking.k8s.io/v1").await;
    let resources = group["resources"].as_array().unwrap();
    let of = |name: &str| resources.iter().find(|one| one["name"] == name).unwrap().clone();
    assert_eq!(of("servicecidrs")["namespaced"], false);
    assert!(of("servicecidrs/status").is_object());
    assert_eq!(of("ipaddresses")["shortNames"], json!(["ip"]));
}

#[tokio::test]
async fn a_second_service_cidr_is_used_when_the_first_is_full_and_for_static_requests() {
    let server = Server::with_ranges(store::memory(), &tiny()).await;
    for n in 0..5 {
        assert_eq!(
            server.post(SERVICES, &service(&format!("s{n}"), None)).await.0,
            201
        );
    }
    let (code, full) = server.post(SERVICES, &service("more", None)).await;
    assert_eq!(code, 500, "{full}");
    let message = full["message"].as_str().unwrap();
    assert!(
        message.contains("all addresses of 10.96.0.0/29 are in use; make a ServiceCIDR"),
        "{message}"
    );
    let (code, refused) = server.post(SERVICES, &service("more", Some("10.97.0.10"))).await;
    assert_eq!(code, 422, "{refused}");
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("The range of valid IPs is 10.96.0.0/29: choose an address in it, or make"),
        "{message}"
    );

    assert_eq!(server.post(CIDRS, &cidr("more", &["10.97.0.0/24"])).await.0, 201);
    let (code, wanted) = server
        .post(SERVICES, &service("wanted", Some("10.97.0.10")))
        .await;
    assert_eq!(
        (code, address(&wanted)),
        (201, "10.97.0.10".to_owned()),
        "{wanted}"
    );
    let (code, twice) = server.post(SERVICES, &service("twice", Some("10.97.0.10"))).await;
    assert_eq!(code, 422, "{twice}");
    let (code, given) = server.post(SERVICES, &service("more", None)).await;
    assert_eq!(code, 201, "{given}");
    assert!(address(&given).starts_with("10.97.0."), "{given}");

    // An IPAddress for each, which goes with its Service and comes back when somebody else deletes it.
    let (_, all) = server.get(SERVICES).await;
    let mut held: BTreeSet<String> = all["items"].as_array().unwrap().iter().map(address).collect();
    assert_eq!(held.len(), 8);
    assert_eq!(names(&server.get(ADDRESSES).await.1), held);
    assert_eq!(
        server.delete(&format!("{SERVICES}/wanted"), &Value::Null).await.0,
        200
    );
    held.remove("10.97.0.10");
    assert_eq!(
        server
            .delete(&format!("{ADDRESSES}/10.96.0.1"), &Value::Null)
            .await
            .0,
        200
    );
    assert_eq!(names(&server.get(ADDRESSES).await.1), held);
    // A Service that becomes an ExternalName gives its address back.
    let external = json!({"spec": {"type": "ExternalName", "externalName": "example.org", "clusterIP": null,
        "clusterIPs": null}});
    assert_eq!(server.merge(&format!("{SERVICES}/more"), &external).await.0, 200);
    held.remove(&address(&given));
    assert_eq!(names(&server.get(ADDRESSES).await.1), held);
}

#[tokio::test]
async fn a_deleted_service_cidr_waits_for_its_addresses_and_gives_no_more() {
    let server = Server::with_ranges(store::memory(), &tiny()).await;
    let path = format!("{CIDRS}/more");
    assert_eq!(server.post(CIDRS, &cidr("more", &["10.97.0.0/24"])).await.0, 201);
    // Nobody takes the finalizer away by mistake.
    let (code, held) = server
        .merge(&path, &json!({"metadata": {"finalizers": null}}))
        .await;
    assert_eq!(code, 200);
    assert_eq!(
        held["metadata"]["finalizers"],
        json!(["networking.k8s.io/service-cidr-finalizer"])
    );
    // Nor does anybody close it by its status, which nothing else would write again.
    let nothing = json!({"status": {"conditions": null}});
    let (code, ready) = server.merge(&format!("{path}/status"), &nothing).await;
    assert_eq!(
        (code, &ready["status"]["conditions"][0]["status"]),
        (200, &json!("True"))
    );
    for (name, host) in [("a", "10.97.0.10"), ("b", "10.97.0.11")] {
        assert_eq!(server.post(SERVICES, &service(name, Some(host))).await.0, 201);
    }
    // Somebody else's address in it holds up nothing.
    let theirs = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.97.0.99"},
        "spec": {"parentRef": {"group": "example.org", "resource": "gateways", "namespace": "default", "name": "g"}},
    });
    assert_eq!(server.post(ADDRESSES, &theirs).await.0, 201);
    assert_eq!(server.delete(&path, &Value::Null).await.0, 200);
    let (code, waiting) = server.get(&path).await;
    assert_eq!(code, 200);
    assert!(waiting["metadata"]["deletionTimestamp"].is_string());
    let condition = &waiting["status"]["conditions"][0];
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("False"), &json!("Terminating"))
    );
    let (code, refused) = server.post(SERVICES, &service("c", Some("10.97.0.12"))).await;
    assert_eq!(code, 422);
    let message = refused["message"].as_str().unwrap();
    assert!(
        message.contains("of the ServiceCIDR more, which is being deleted"),
        "{message}"
    );
    // What has its address keeps it through changes.
    let (code, changed) = server
        .merge(
            &format!("{SERVICES}/a"),
            &json!({"metadata": {"labels": {"x": "y"}}}),
        )
        .await;
    assert_eq!((code, address(&changed)), (200, "10.97.0.10".to_owned()));
    assert_eq!(server.delete(&format!("{SERVICES}/a"), &Value::Null).await.0, 200);
    assert_eq!(server.get(&path).await.0, 200);
    assert_eq!(server.delete(&format!("{SERVICES}/b"), &Value::Null).await.0, 200);
    assert_eq!(server.get(&path).await.0, 404);
    // One that is not in use goes at once, and one whose addresses another has.
    assert_eq!(server.post(CIDRS, &cidr("more", &["10.97.0.0/24"])).await.0, 201);
    assert_eq!(
        server.post(SERVICES, &service("a", Some("10.97.0.10"))).await.0,
        201
    );
    assert_eq!(server.post(CIDRS, &cidr("wide", &["10.97.0.0/16"])).await.0, 201);
    assert_eq!(server.delete(&path, &Value::Null).await.0, 200);
    assert_eq!(server.get(&path).await.0, 404);
}

/// A store that at times does not tell what it has.
struct Silent {
    store: Arc<dyn Store>,
    is_silent: AtomicBool,
}

impl Store for Silent {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Option<Arc<Stored>>> {
        self.store.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str, at: Option<u64>) -> BoxFuture<'a, Result<Listing, RevisionError>> {
        if self.is_silent.load(Ordering::Relaxed) {
            let error = RevisionError::Compacted { asked: 1, oldest: 2 };
            return Box::pin(async move { Err(error) });
        }
        self.store.list(prefix, at)
    }

    fn write(&self, write: Write) -> BoxFuture<'_, Result<Arc<Stored>, WriteError>> {
        self.store.write(write)
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: u64,
    ) -> BoxFuture<'a, Result<Subscription, RevisionError>> {
        self.store.watch(prefix, after)
    }
}

#[tokio::test]
async fn while_the_store_tells_nothing_a_reserved_address_stays_so_and_no_server_starts() {
    let silent = Arc::new(Silent {
        store: store::memory(),
        is_silent: AtomicBool::new(false),
    });
    let server = Server::with_ranges(silent.clone(), &tiny()).await;
    let kept = |address: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": address},
            "spec": {"parentRef": {
                "group": "example.org", "resource": "gateways", "namespace": "default", "name": "g",
            }},
        })
    };
    assert_eq!(server.post(ADDRESSES, &kept("10.96.0.3")).await.0, 201);
    silent.is_silent.store(true, Ordering::Relaxed);
    // For it the lists are read anew, and cannot be.
    assert_eq!(server.post(ADDRESSES, &kept("10.96.0.4")).await.0, 201);
    let (code, made) = server.post(SERVICES, &service("a", Some("10.96.0.3"))).await;
    assert_eq!(code, 422, "{made}");
    let (code, made) = server.post(SERVICES, &service("b", Some("10.96.0.5"))).await;
    assert_eq!(code, 201, "{made}");

    let ranges = Allocations::new(&tiny(), 30000..=32767);
    let started = Api::new(silent.clone(), ranges, None).await;
    assert!(started.is_err());
}

#[tokio::test]
async fn an_ip_address_that_somebody_makes_keeps_its_address_from_services() {
    let server = Server::with_ranges(store::memory(), &tiny()).await;
    let kept = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.96.0.3"},
        "spec": {"parentRef": {"group": "example.org", "resource": "gateways", "namespace": "default", "name": "g"}},
    });
    assert_eq!(server.post(ADDRESSES, &kept).await.0, 201);
    for n in 0..4 {
        let (code, made) = server.post(SERVICES, &service(&format!("s{n}"), None)).await;
        assert_eq!(code, 201, "{made}");
        assert_ne!(address(&made), "10.96.0.3");
    }
    assert_eq!(server.post(SERVICES, &service("s4", None)).await.0, 500);
    assert_eq!(
        server.post(SERVICES, &service("s4", Some("10.96.0.3"))).await.0,
        422
    );
    assert_eq!(
        server
            .delete(&format!("{ADDRESSES}/10.96.0.3"), &Value::Null)
            .await
            .0,
        200
    );
    let (code, made) = server.post(SERVICES, &service("s4", None)).await;
    assert_eq!((code, address(&made)), (201, "10.96.0.3".to_owned()), "{made}");
    // Nor can anybody take one that a Service has.
    assert_eq!(server.post(ADDRESSES, &kept).await.0, 409);
}

#[tokio::test]
async fn a_restart_keeps_ranges_addresses_and_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Store> = store::disk(dir.path()).unwrap();
    let server = Server::with_ranges(disk.clone(), &tiny()).await;
    assert_eq!(server.post(CIDRS, &cidr("more", &["10.97.0.0/29"])).await.0, 201);
    assert_eq!(server.post(CIDRS, &cidr("going", &["10.98.0.0/29"])).await.0, 201);
    for (name, host) in [("a", "10.97.0.3"), ("b", "10.98.0.3")] {
        assert_eq!(server.post(SERVICES, &service(name, Some(host))).await.0, 201);
    }
    assert_eq!(
        server.delete(&format!("{CIDRS}/going"), &Value::Null).await.0,
        200
    );
    // What a crash between a Service's write and its IPAddress's leaves.
    let lost = "networking.k8s.io/ipaddresses/10.97.0.3";
    let revision = disk.get(lost).await.unwrap().revision;
    let write = store::Write {
        key: lost.to_owned(),
        expect: store::Expect::At(revision),
        change: store::Change::Delete(None),
    };
    disk.write(write).await.unwrap();
    let before = names(&server.get(CIDRS).await.1);
    drop((server, disk));

    let disk: Arc<dyn Store> = loop {
        // The first server's tasks let go of the file when they have ended.
        match store::disk(dir.path()) {
            Ok(disk) => break disk,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    };
    let server = Server::with_ranges(disk, &tiny()).await;
    assert_eq!(names(&server.get(CIDRS).await.1), before);
    assert_eq!(
        names(&server.get(ADDRESSES).await.1),
        ["10.96.0.1", "10.97.0.3", "10.98.0.3"].map(str::to_owned).into()
    );
    assert_eq!(
        server.post(SERVICES, &service("c", Some("10.97.0.3"))).await.0,
        422
    );
    assert_eq!(
        server.post(SERVICES, &service("c", Some("10.98.0.4"))).await.0,
        422
    );
    assert_eq!(
        server.post(SERVICES, &service("c", Some("10.97.0.4"))).await.0,
        201
    );
    assert_eq!(server.delete(&format!("{SERVICES}/b"), &Value::Null).await.0, 200);
    assert_eq!(server.get(&format!("{CIDRS}/going")).await.0, 404);
}

#[tokio::test]
async fn the_default_service_cidr_gets_the_second_family_and_otherwise_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut has = Vec::new();
    for flag in [
        &["10.96.0.0/29"][..],
        &["10.96.0.0/29", "fd00:96::/112"],
        &["10.99.0.0/24"],
    ] {
        let disk: Arc<dyn Store> = loop {
            match store::disk(dir.path()) {
                Ok(disk) => break disk,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        };
        let ranges: Vec<IpNet> = flag.iter().map(|range| range.parse().unwrap()).collect();
        let server = Server::with_ranges(disk, &ranges).await;
        let (_, stored) = server.get(&format!("{CIDRS}/kubernetes")).await;
        has.push(stored["spec"]["cidrs"].clone());
        // With another flag it cannot be made anew, and all else goes on.
        let kubernetes = format!("{SERVICES}/kubernetes");
        server.delete(&kubernetes, &Value::Null).await;
    }
    let dual = json!(["10.96.0.0/29", "fd00:96::/112"]);
    assert_eq!(has, [json!(["10.96.0.0/29"]), dual.clone(), dual]);
}

#[tokio::test]
async fn wrong_service_cidrs_are_refused_and_change_nothing() {
    let server = Server::start().await;
    let cases: [(&[&str], &str); 5] = [
        (&[], "spec.cidrs: Required value: at least one CIDR required"),
        (
            &["10.97.0.0"],
            "spec.cidrs[0]: Invalid value: \"10.97.0.0\": must be a valid CIDR value",
        ),
        (&["10.97.0.1/24"], "must be in canonical form (\"10.97.0.0/24\")"),
        (
            &["10.97.0.0/24", "10.98.0.0/24"],
            "may specify no more than one CIDR for each IP family",
        ),
        (
            &["10.97.0.0/24", "fd00::/112", "fd01::/112"],
            "may only hold up to 2 values",
        ),
    ];
    for (ranges, why) in cases {
        let (code, refused) = server.post(CIDRS, &cidr("bad", ranges)).await;
        let message = refused["message"].as_str().unwrap();
        assert!(
            code == 422 && message.contains(why),
            "{ranges:?}: {code} {message}"
        );
    }
    let path = format!("{CIDRS}/kubernetes");
    let (code, refused) = server
        .merge(&path, &json!({"spec": {"cidrs": ["10.97.0.0/24"]}}))
        .await;
    assert_eq!(code, 422, "{refused}");
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("field is immutable"),
        "{refused}"
    );
    assert_eq!(
        names(&server.get(CIDRS).await.1),
        ["kubernetes".to_owned()].into()
    );
}
