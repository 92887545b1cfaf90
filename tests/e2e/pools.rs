//! IP pools and addresses by name, with the real executables: a pool's blocks come to the nodes whose pods need them,
//! and other nodes find the way.

use crate::support::{Lab, Pod};
use ipnet::IpNet;
use serde_json::Value;

const DEFINITION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/crds/ippools.podnet.io.yaml");
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ip-pool.yaml");

fn fixed_on(node: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod",
            "metadata": {{"name": "fixed", "namespace": "fixed", "annotations": {{"podnet.io/ips": "10.91.0.77"}}}},
            "spec": {{"nodeName": "{node}", "containers": [{{"name": "echo", "image": "podnet/echo"}}]}}}}"#
    )
}

/// What the lab's first node gets from a pod, over each of its addresses.
fn reach(lab: &Lab, pod: &Pod) {
    for ip in &pod.ips {
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.clone()
        };
        for node in ["node1", "node2"] {
            let ask = format!("curl -sS -m 5 -g 'http://{host}:8080/'");
            // Another node hears of a block that moved when the pod's status is there, and not before.
            let answer = lab.until(&format!("{node} to reach {ip}"), || {
                let output = lab.node(node, &["sh", "-c", &ask]);
                output.status.success().then_some(output.stdout)
            });
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert_eq!(answer["pod"], pod.name.as_str(), "from {node}");
        }
    }
}

fn blocks(lab: &Lab, pool: &str) -> Vec<(IpNet, String)> {
    let object = lab.kubectl_json(&["get", "ippool", pool]);
    let blocks = object["status"]["blocks"].as_array().cloned().unwrap_or_default();
    let block = |block: &Value| {
        let text = |key: &str| block[key].as_str().unwrap().to_owned();
        (text("range").parse().unwrap(), text("node"))
    };
    blocks.iter().map(block).collect()
}

/// The pools first, and what uses them when the nodes know them: they do when they have a route to their ranges.
fn apply_example(lab: &Lab) {
    let example = std::fs::read_to_string(EXAMPLE).unwrap();
    let (pools, pods): (Vec<&str>, Vec<&str>) = example
        .split("\n---\n")
        .partition(|object| object.contains("kind: Namespace") || object.contains("kind: IPPool"));
    lab.apply(&pools.join("\n---\n"));
    for node in ["node1", "node2"] {
        lab.until("the pools' routes", || {
            let routes = lab.node_sh(node, "ip route");
            (routes.contains("10.90.0.0/20") && routes.contains("10.91.0.0/24")).then_some(())
        });
    }
    lab.apply(&pods.join("\n---\n"));
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        "--timeout=60s",
        "-n",
    ];
    for (namespace, count) in [("payments", 3), ("fixed", 1)] {
        lab.until("all pods", || (lab.pods(namespace).len() == count).then_some(()));
        lab.kubectl_ok(&[&ready[..], &[namespace]].concat());
    }
}

#[test]
fn pods_have_addresses_of_their_namespaces_pool_and_static_addresses_follow_their_pods() {
    let lab = Lab::up("pools", &["--nodes", "2", "-f", DEFINITION]);
    apply_example(&lab);
    let pool: [IpNet; 2] = ["10.90.0.0/20".parse().unwrap(), "fd00:90::/108".parse().unwrap()];
    let pods = lab.pods("payments");
    assert_eq!(pods.len(), 3);
    let held = blocks(&lab, "payments");
    for pod in &pods {
        assert_eq!(pod.ips.len(), 2, "{pod:?}");
        for ip in &pod.ips {
            let ip: std::net::IpAddr = ip.parse().unwrap();
            assert!(pool.iter().any(|range| range.contains(&ip)), "{pod:?}");
            assert!(
                held.iter()
                    .any(|(range, node)| range.contains(&ip) && *node == pod.node),
                "{pod:?} is in none of its node's blocks {held:?}"
            );
            assert_ne!(ip.to_string(), "10.90.0.2", "reserved");
        }
        reach(&lab, pod);
    }

    let fixed = lab.pods("fixed").remove(0);
    assert_eq!(fixed.ips[0], "10.91.0.77");
    reach(&lab, &fixed);
    let other = if fixed.node == "node1" { "node2" } else { "node1" };
    lab.kubectl_ok(&[
        "delete",
        "pod",
        "-n",
        "fixed",
        "fixed",
        "--grace-period=0",
        "--force",
    ]);
    lab.apply(&fixed_on(other));
    let moved = lab.until("the pod with the same address on the other node", || {
        let pod = lab.pods("fixed").into_iter().next()?;
        (!pod.ips.is_empty()).then_some(pod)
    });
    assert_eq!(
        (moved.node.as_str(), moved.ips[0].as_str()),
        (other, "10.91.0.77")
    );
    let single = "10.91.0.77/32".parse().unwrap();
    assert_eq!(blocks(&lab, "fixed"), [(single, other.to_owned())]);
    reach(&lab, &moved);

    bad_input_is_told(&lab);
    a_deleted_pool_waits_for_its_pods(&lab);
}

fn bad_input_is_told(lab: &Lab) {
    lab.apply(
        r#"{"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "bad", "annotations": {"podnet.io/ips": "10.91.0.777"}},
            "spec": {"containers": [{"name": "echo", "image": "podnet/echo"}]}}"#,
    );
    lab.apply(
        r#"{"apiVersion": "podnet.io/v1alpha1", "kind": "IPPool", "metadata": {"name": "clash"},
            "spec": {"ranges": ["10.90.8.0/24"]}}"#,
    );
    lab.until("an event that names the annotation", || {
        let events = lab.kubectl_ok(&["get", "events", "--field-selector", "involvedObject.name=bad"]);
        events.contains("podnet.io/ips has \"10.91.0.777\"").then_some(())
    });
    lab.until("a condition that names the other pool", || {
        let pool = lab.kubectl_json(&["get", "ippool", "clash"]);
        let message = pool["status"]["conditions"][0]["message"].as_str()?.to_owned();
        message.contains("the older pool payments").then_some(())
    });
    lab.kubectl_ok(&["delete", "pod", "bad", "--grace-period=0", "--force"]);
}

fn a_deleted_pool_waits_for_its_pods(lab: &Lab) {
    lab.kubectl_ok(&["delete", "ippool", "payments", "--wait=false"]);
    let pods = lab.pods("payments");
    reach(lab, &pods[0]);
    lab.kubectl_ok(&["delete", "deployment", "-n", "payments", "api"]);
    lab.until("the end of the pool", || {
        let found = lab.kubectl(&["get", "ippool", "payments"]);
        (!found.status.success()).then_some(())
    });
}
