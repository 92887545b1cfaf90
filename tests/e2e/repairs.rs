//! What others do to a node's tables while services change all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::support::{DEMO, Lab, stdout};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

/// A service whose endpoints are written by hand.
const RESTLESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: restless}
spec:
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: restless
  labels: {kubernetes.io/service-name: restless}
addressType: IPv4
ports: [{name: http, port: 8000}]
endpoints: [{addresses: [10.244.0.250]}]
";
/// So many writers, none of which waits for the agent.
const WRITERS: usize = 3;

/// Writes another port into the slice until it is enough.
async fn write(slices: Api<EndpointSlice>, written: &AtomicU64, enough: &AtomicBool) {
    while !enough.load(Ordering::Relaxed) {
        let port = 8000 + written.fetch_add(1, Ordering::Relaxed) % 1000;
        let patch = Patch::Merge(json!({"ports": [{"name": "http", "port": port}]}));
        let params = PatchParams::default();
        slices.patch("restless", &params, &patch).await.unwrap();
    }
}

/// Has them written while it does something.
fn while_written<T>(lab: &Lab, work: impl FnOnce(&AtomicU64) -> T) -> T {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    static ENOUGH: AtomicBool = AtomicBool::new(false);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let slices = Api::default_namespaced(lab.client(&runtime));
    let writers = (0..WRITERS).map(|_| runtime.spawn(write(slices.clone(), &WRITTEN, &ENOUGH)));
    let writers: Vec<_> = writers.collect();
    let done = work(&WRITTEN);
    ENOUGH.store(true, Ordering::Relaxed);
    for writer in writers {
        runtime.block_on(writer).unwrap();
    }
    done
}

#[test]
fn what_others_flush_is_told_though_services_change_all_the_time() {
    let lab = Lab::up("restless", &["--nodes", "1", "-f", DEMO]);
    lab.apply(RESTLESS);
    let service = lab.kubectl_json(&["get", "service", "echo"]);
    let url = format!("http://{}/", service["spec"]["clusterIP"].as_str().unwrap());
    let answered = || {
        lab.until("an answer", || {
            let output = lab.node("node1", &["curl", "-sS", "--max-time", "2", &url]);
            serde_json::from_str::<Value>(&stdout(&output)).ok()
        })
    };
    let put_back = || {
        let metrics = lab.node_sh("node1", "curl -sS http://127.0.0.1:9980/metrics");
        let figure = |line: &str| line.strip_prefix("podnet_put_back_total ")?.parse::<f64>().ok();
        metrics.lines().find_map(figure).unwrap()
    };
    answered();
    while_written(&lab, |written| {
        lab.until("changes", || (written.load(Ordering::Relaxed) > 50).then_some(()));
        assert_eq!(put_back(), 0.0, "our own changes are no repair");
        lab.node_sh("node1", "nft add table inet theirs");
        for harm in ["flush", "delete", "flush", "delete", "flush"] {
            let before = put_back();
            lab.node_sh("node1", &format!("nft {harm} table inet podnet"));
            answered();
            lab.until("a repair", || (put_back() > before).then_some(()));
        }
        let before = put_back();
        lab.node_sh("node1", "nft delete table inet theirs");
        answered();
        assert_eq!(put_back(), before, "what is theirs is no repair");
    });
    lab.until("an Event on the node", || {
        let selector = "--field-selector=reason=NetworkPutBack,involvedObject.name=node1";
        let events = lab.kubectl_json(&["get", "events", "-ojson", selector]);
        let event = events["items"].as_array()?.first()?.clone();
        event["message"]
            .as_str()?
            .contains("somebody else changed")
            .then_some(())
    });
    lab.down();
}
