//! Services beyond the cluster IP, in a whole lab: through the API, the agents and the kernel.

use std::process::Output;

use crate::support::{DEMO, Lab, stderr, stdout, text};
use serde_json::Value;

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

/// Addresses of the range of cluster IPs are nobody's external address; the rest of it is sound.
const CONTRADICTORY: &str = "
apiVersion: v1
kind: Service
metadata: {name: contradictory}
spec:
  externalIPs: [10.96.0.250]
  selector: {app: echo}
  ports: [{name: http, port: 80, targetPort: http}]
";

/// Kubernetes lets any number be a port of a slice.
const ODD: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: odd, labels: {kubernetes.io/service-name: outer}}
addressType: IPv4
ports: [{name: http, port: 70000}]
endpoints: [{addresses: [10.9.9.9]}]
";

/// What the API server refuses, and the field that it names.
const REFUSED: [(&str, &str); 2] = [
    (
        "[{addresses: ['fd00::9']}]",
        "endpoints[0].addresses[0]: Invalid value: \"fd00::9\"",
    ),
    (
        "[MANY]",
        "endpoints: Too many: 5000: must have at most 1000 items",
    ),
];

#[test]
fn an_object_that_cannot_be_hurts_itself_only_and_has_an_event() {
    let lab = lab("contradictory");
    let many = vec!["{addresses: [10.9.9.9]}"; 5000].join(", ");
    for (endpoints, message) in REFUSED {
        let endpoints = endpoints.replace("MANY", &many);
        let slice = format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: refused}}, addressType: IPv4, \
             ports: [{{name: http, port: 80}}], endpoints: {endpoints}}}"
        );
        let output = lab.apply_output(&slice);
        assert!(!output.status.success(), "{}", text(&output));
        assert!(stderr(&output).contains(message), "{}", stderr(&output));
    }
    lab.apply(CONTRADICTORY);
    lab.apply(ODD);
    let address = lab.kubectl_ok(&["get", "service", "contradictory", "-ojsonpath={.spec.clusterIP}"]);
    curl(&lab, "node1", &format!("http://{address}/"));
    let of_range = "its address 10.96.0.250 is in the range";
    let of_port = "ports: 70000 is no port";
    for (object, why) in [("contradictory", of_range), ("odd", of_port)] {
        lab.until(&format!("an Event on {object}"), || {
            let selector = format!("involvedObject.name={object},reason=NetworkNotApplied");
            let events = lab.kubectl_json(&["get", "events", "--field-selector", &selector]);
            let event = events["items"].as_array()?.first()?.clone();
            let message = event["message"].as_str()?;
            assert!(message.contains(why), "{message}");
            Some(())
        });
    }
    // The rest of them is served, and of the service with the odd slice the endpoints of the others.
    for _ in 0..20 {
        let answer = curl(&lab, "node1", "http://203.0.113.7/");
        assert!(answer["pod"].as_str().unwrap().starts_with("echo"), "{answer}");
    }
    let status = lab.node("node1", &["podnet", "status", "services"]);
    let status = stdout(&status);
    assert!(
        status.contains(&format!("left out: Service default/contradictory: {of_range}")),
        "{status}"
    );
    assert!(status.contains(&format!("tcp {address}:80")), "{status}");
    assert!(!status.contains("tcp 10.96.0.250:80"), "{status}");
    lab.down();
}

#[test]
fn what_others_flush_is_put_back_and_told_as_an_event_and_their_own_is_left_alone() {
    let lab = lab("flushed");
    lab.node_sh("node1", "nft add table inet theirs; nft add chain inet theirs c");
    curl(&lab, "node1", "http://203.0.113.7/");
    let rules = || lab.node_sh("node1", "nft list table inet podnet");
    // Rules move when they are written anew; what they say stays.
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = sorted(&rules());
    for (what, harm) in [
        ("flushed", "nft flush table inet podnet"),
        ("deleted", "nft delete table inet podnet"),
        ("edited", "nft flush map inet podnet service4"),
    ] {
        let begin = std::time::Instant::now();
        lab.node_sh("node1", harm);
        lab.until(&format!("what was {what} is back"), || {
            let now = lab.node("node1", &["nft", "list", "table", "inet", "podnet"]);
            (sorted(&stdout(&now)) == before).then_some(())
        });
        println!("{what}: back after {:?}", begin.elapsed());
        // Because it was seen, not because the agent looks now and then: that is every 30 seconds.
        assert!(begin.elapsed() < std::time::Duration::from_secs(10), "{what}");
    }
    curl(&lab, "node1", "http://203.0.113.7/");
    assert!(
        lab.node_sh("node1", "nft list ruleset")
            .contains("table inet theirs")
    );
    lab.until("an Event on the node", || {
        let args = [
            "get",
            "events",
            "--field-selector",
            "reason=NetworkPutBack",
            "-ojson",
        ];
        let events = lab.kubectl_json(&args);
        let event = events["items"].as_array()?.first()?.clone();
        assert_eq!(event["involvedObject"]["name"], "node1", "{event:#}");
        let message = event["message"].as_str()?;
        assert!(
            message.contains("somebody else changed podnet's tables"),
            "{message}"
        );
        Some(())
    });
    let metrics = lab.node_sh("node1", "curl -sS http://127.0.0.1:9980/metrics");
    let figure = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}"))[name.len() + 1..]
            .parse()
            .unwrap()
    };
    assert!(figure("podnet_put_back_total") > 0.0);
    assert!(figure("podnet_sync_full_proxy_rules_duration_seconds_count") > 0.0);
    assert!(figure("podnet_sync_proxy_rules_endpoint_changes_total") > 0.0);
    assert_eq!(figure("podnet_sync_proxy_rules_endpoint_changes_pending"), 0.0);
    lab.down();
}
