//! Services beyond the cluster IP, in a whole lab: through the API, the agents and the kernel.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Output;

use serde_json::Value;
use support::{DEMO, Lab, stderr, stdout, text};

const OUTER: &str = "
apiVersion: v1
kind: Service
metadata: {name: outer}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  externalIPs: [203.0.113.7]
  selector: {app: echo}
  ports:
    - {name: http, port: 80, targetPort: http}
    - {name: dgram, port: 90, targetPort: dgram, protocol: UDP}
";

/// A lab of two nodes; the echo pods are on both.
fn lab(name: &str) -> Lab {
    let lab = Lab::up(name, &["--nodes", "2", "-f", DEMO]);
    lab.apply(OUTER);
    lab
}

fn address(lab: &Lab, node: &str) -> String {
    let path = "-ojsonpath={.status.addresses[?(@.type=='InternalIP')].address}";
    let addresses = lab.kubectl_ok(&["get", "node", node, path]);
    addresses.split(' ').next().unwrap().to_owned()
}

/// Asks from a node's own network until an answer comes.
fn curl(lab: &Lab, node: &str, url: &str) -> Value {
    lab.until(&format!("an answer from {url}"), || {
        let output = lab.node(node, &["curl", "-sS", "--max-time", "2", url]);
        serde_json::from_str(&stdout(&output)).ok()
    })
}

#[test]
fn a_service_is_reached_from_outside_by_its_node_port_and_external_address() {
    let lab = lab("outer");
    let service = lab.kubectl_json(&["get", "service", "outer"]);
    let node_port = &service["spec"]["ports"][0]["nodePort"];
    let (near, far) = (address(&lab, "node1"), address(&lab, "node2"));
    // The second node is outside to the first one: under Local it gets that node's endpoints, which see its address.
    let by_node_port = format!("http://{near}:{node_port}/");
    for _ in 0..10 {
        let answer = curl(&lab, "node2", &by_node_port);
        assert_eq!(answer["node"], "node1", "{answer}");
        let client = answer["client"].as_str().unwrap();
        assert!(client.starts_with(&format!("{far}:")), "{client}");
    }
    // The node itself gets all of them, by either address.
    for url in [by_node_port.as_str(), "http://203.0.113.7/"] {
        let mut seen = std::collections::BTreeSet::new();
        lab.until("answers from both nodes", || {
            seen.insert(curl(&lab, "node1", url)["node"].to_string());
            (seen.len() == 2).then_some(())
        });
    }
    // A load balancer hears how many endpoints a node has.
    let check = service["spec"]["healthCheckNodePort"].as_u64().unwrap();
    let answer = curl(&lab, "node2", &format!("http://{near}:{check}/"));
    let here = lab
        .pods("default")
        .iter()
        .filter(|pod| pod.node == "node1" && pod.name.starts_with("echo"))
        .count();
    assert_eq!(answer["localEndpoints"], here);
    assert_eq!(answer["service"]["name"], "outer");
    assert_eq!(answer["serviceProxyHealthy"], true);
    // It is one of the services that can be opened and closed while the lab runs.
    let cluster_ip =
        r#"{"spec": {"type": "ClusterIP", "externalTrafficPolicy": null, "healthCheckNodePort": null}}"#;
    lab.kubectl_ok(&["patch", "service", "outer", "-p", cluster_ip]);
    lab.until("the node port closes", || {
        let output = lab.node("node2", &["curl", "-sS", "--max-time", "2", &by_node_port]);
        // What curl says of a refusal.
        (output.status.code() == Some(7)).then_some(())
    });
    lab.down();
}

#[test]
fn service_explain_says_which_endpoints_clients_get_and_why_not_the_others() {
    let lab = lab("explain");
    let kubeconfig = lab.kubeconfig();
    let explain = |args: &[&str]| -> Output {
        lab.podnet(&[&["service", "explain", "--kubeconfig", &kubeconfig], args].concat())
    };
    lab.kubectl_ok(&["rollout", "status", "deployment/echo"]);
    let inside = explain(&["outer", "--from", "toolbox"]);
    assert!(inside.status.success(), "{}", text(&inside));
    assert!(stdout(&inside).contains("one in 3"), "{}", text(&inside));
    let outside = explain(&["default/outer", "--node", "node1"]);
    assert!(outside.status.success(), "{}", text(&outside));
    let why = "on node2: not chosen: it is on another node, and the traffic policy is Local";
    assert!(stdout(&outside).contains(why), "{}", text(&outside));
    let json = explain(&["outer", "--output", "json"]);
    let json: Value = serde_json::from_str(&stdout(&json)).unwrap();
    let addresses = json[0]["ports"][1]["addresses"].as_array().unwrap();
    assert!(addresses.contains(&"203.0.113.7:80".into()), "{json:#}");
    let weights = json[0]["ports"][0]["endpoints"].as_array().unwrap().iter();
    let sum: f64 = weights.map(|endpoint| endpoint["weight"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9, "{json:#}");

    lab.kubectl_ok(&["scale", "deployment/echo", "--replicas", "0"]);
    lab.until("no endpoint is left", || {
        let output = explain(&["outer", "--from", "toolbox"]);
        let refused = stdout(&output).contains("refused: no endpoint is ready anywhere");
        (output.status.code() == Some(1) && refused).then_some(())
    });
    for (args, message) in [
        (&["nothing"][..], "there is no service default/nothing"),
        (&["outer", "--from", "nobody"], "there is no pod default/nobody"),
        (&["outer", "--node", "node9"], "there is no node node9"),
    ] {
        let output = explain(args);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(stderr(&output).contains(message), "{}", text(&output));
    }
    lab.down();
}
