//! What a pod gets beside an address, end to end: ports of its node, and limits on its traffic.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::support::{Lab, PODNET, stdout, text};
use serde_json::Value;

/// A server on node1 with more of a container's and of a pod's specification.
fn server(name: &str, annotations: &str, ports: &str) -> String {
    format!(
        r#"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, annotations: {{{annotations}}}}}, spec: {{
             nodeName: node1, terminationGracePeriodSeconds: 0, containers: [
               {{name: echo, image: podnet/echo, args: [--http, "8080", --udp, "9090"], ports: [{ports}]}},
               {{name: shell, image: host, command: [sleep, infinity]}}]}}}}"#
    )
}

/// A pod on a node to look around from.
fn toolbox(name: &str, node: &str) -> String {
    format!(
        r#"{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: {node}, containers: [
             {{name: shell, image: host, command: [sleep, infinity]}}]}}}}"#
    )
}

fn start(lab: &Lab, manifests: &[String]) {
    lab.apply(&manifests.join("\n---\n"));
    lab.kubectl_ok(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
}

/// The addresses of a node, without those of its tunnel and pods: one of each family.
fn addresses(lab: &Lab, node: &str) -> Vec<String> {
    let node = lab.kubectl_json(&["get", "node", node]);
    let all = node["status"]["addresses"].as_array().unwrap().iter();
    let internal = all.filter(|address| address["type"] == "InternalIP");
    internal
        .map(|address| address["address"].as_str().unwrap().to_owned())
        .collect()
}

fn bracketed(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

/// Which pod answers, and whom it takes the caller for.
fn seen(answer: &str) -> (String, String) {
    let answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    let (client, _) = answer["client"].as_str().unwrap().rsplit_once(':').unwrap();
    let pod = answer["pod"].as_str().unwrap();
    (pod.to_owned(), client.trim_matches(['[', ']']).to_owned())
}

const ASK: &str = "curl -gsS --max-time 20 --retry 5 --retry-connrefused";

/// A datagram and its answer.
const DATAGRAM: &str = r#"python3 -c '
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
for attempt in range(10):
    s.sendto(b"hello\n", (host, port))
    try:
        print(s.recv(65536).decode()); break
    except OSError:
        pass
' "#;

#[test]
fn a_host_port_works_from_the_node_itself_from_other_pods_and_from_outside() {
    let lab = Lab::up("hostport", &["--nodes", "2", "--ip-family", "dual"]);
    let ports = "{containerPort: 8080, hostPort: 8088}, {containerPort: 9090, hostPort: 8088, protocol: UDP}";
    start(
        &lab,
        &[
            server("web", "", ports),
            toolbox("near", "node1"),
            toolbox("far", "node2"),
        ],
    );
    let pods = lab.pods("default");
    let ips = |name: &str| pods.iter().find(|pod| pod.name == name).unwrap().ips.clone();
    let (here, there) = (addresses(&lab, "node1"), addresses(&lab, "node2"));
    for (family, address) in here.iter().enumerate() {
        let ask = format!("{ASK} http://{}:8088/", bracketed(address));
        let outside = seen(&lab.node_sh("node2", &ask));
        assert_eq!(outside, ("web".into(), there[family].clone()), "from outside");
        for pod in ["near", "far"] {
            assert_eq!(
                seen(&lab.sh(pod, &ask)),
                ("web".into(), ips(pod)[family].clone()),
                "from a pod"
            );
        }
        assert_eq!(seen(&lab.node_sh("node1", &ask)).0, "web", "from the node");
        // The pod itself: its answers come back to it.
        assert_eq!(seen(&shell(&lab, "web", &ask)).0, "web", "from the pod itself");
        let datagram = format!("{DATAGRAM} {address} 8088");
        assert_eq!(
            seen(&lab.node_sh("node2", &datagram)).0,
            "web",
            "by UDP from outside"
        );
        assert_eq!(seen(&lab.sh("far", &datagram)).0, "web", "by UDP from a pod");
    }
    let loopback = seen(&lab.node_sh("node1", &format!("{ASK} http://127.0.0.1:8088/")));
    assert_eq!(loopback.0, "web", "from the node on 127.0.0.1");
    // It is the first node's only.
    let refused = lab.node(
        "node1",
        &[
            "curl",
            "-gsS",
            "-m",
            "5",
            &format!("http://{}:8088/", bracketed(&there[0])),
        ],
    );
    assert!(!refused.status.success());
}

/// A script in a server's second container.
fn shell(lab: &Lab, pod: &str, script: &str) -> String {
    let args = [
        "lab", "exec", "--name", &lab.name, pod, "-c", "shell", "--", "sh", "-c", script,
    ];
    let output = lab.podnet(&args);
    assert!(output.status.success(), "in {pod}: {script}: {}", text(&output));
    stdout(&output)
}

#[test]
fn two_pods_share_a_port_number_on_different_host_ips_or_protocols() {
    let lab = Lab::up("hostips", &["--nodes", "2"]);
    let own = &addresses(&lab, "node1")[0];
    // Another address of the same link.
    let (network, _) = own.rsplit_once('.').unwrap();
    let second = format!("{network}.250");
    lab.node_sh("node1", &format!("ip address add {second}/32 dev eth0"));
    let bound = |to: &str| format!("{{containerPort: 8080, hostPort: 8088, hostIP: '{to}'}}");
    start(
        &lab,
        &[
            server("first", "", &bound(own)),
            server("second", "", &bound(&second)),
            server(
                "third",
                "",
                "{containerPort: 9090, hostPort: 8088, protocol: UDP}",
            ),
        ],
    );
    lab.node_sh("node2", &format!("ip route add {second} via {own}"));
    for (address, pod) in [(own, "first"), (&second, "second")] {
        for node in ["node1", "node2"] {
            let answer = lab.node_sh(node, &format!("{ASK} http://{address}:8088/"));
            assert_eq!(seen(&answer).0, pod, "{address} from {node}");
            let answer = lab.node_sh(node, &format!("{DATAGRAM} {address} 8088"));
            assert_eq!(seen(&answer).0, "third", "UDP {address} from {node}");
        }
    }
}

/// One socket with one source port that never falls silent, so that what tracking knows of it never expires.
const STEADY_CLIENT: &str = r#"
import json, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 40404))
s.settimeout(0.2)
last = None
while True:
    s.sendto(b"hello\n", (sys.argv[1], 8088))
    try:
        pod = json.loads(s.recv(65536))["pod"]
        if pod != last:
            print(pod, flush=True)
        last = pod
        time.sleep(0.05)
    except OSError:
        pass
"#;

#[test]
fn udp_conntrack_entries_of_a_host_port_are_flushed_when_its_pod_goes() {
    let lab = Lab::up("hostudp", &["--nodes", "2"]);
    let port = "{containerPort: 9090, hostPort: 8088, protocol: UDP}";
    start(&lab, &[server("before", "", port)]);
    let node = addresses(&lab, "node1")[0].clone();
    let args = [
        "lab",
        "node",
        "--name",
        &lab.name,
        "node2",
        "--",
        "python3",
        "-c",
        STEADY_CLIENT,
        &node,
    ];
    let mut client = Command::new(PODNET)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let out = BufReader::new(client.stdout.take().unwrap());
    std::thread::spawn(move || {
        out.lines()
            .map_while(Result::ok)
            .try_for_each(|line| tell.send(line))
    });
    let next = || told.recv_timeout(std::time::Duration::from_secs(60));
    assert_eq!(next().as_deref(), Ok("before"));
    lab.kubectl_ok(&["delete", "pod", "before", "--wait=true"]);
    start(&lab, &[server("after", "", port)]);
    let moved = next();
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(
        moved.as_deref(),
        Ok("after"),
        "the client's flow stays with the pod that is gone"
    );
}

#[test]
fn bandwidth_annotations_shape_what_a_pod_receives_and_sends() {
    let lab = Lab::up("shaped", &["--nodes", "1"]);
    let limits = "kubernetes.io/ingress-bandwidth: 8M, kubernetes.io/egress-bandwidth: 4M";
    start(
        &lab,
        &[
            server("slow", limits, "{containerPort: 8080}"),
            server("fast", "", "{containerPort: 8080}"),
        ],
    );
    let received = lab.node_sh("node1", "tc qdisc show");
    let buckets: Vec<&str> = received.lines().filter(|line| line.contains("tbf")).collect();
    assert!(
        buckets.len() == 1 && buckets[0].contains("rate 8Mbit"),
        "{received}"
    );
    let sent = shell(&lab, "slow", "tc qdisc show dev eth0");
    assert!(sent.contains("tbf") && sent.contains("rate 4Mbit"), "{sent}");
    let unlimited = shell(&lab, "fast", "tc qdisc show dev eth0");
    assert!(!unlimited.contains("tbf"), "{unlimited}");

    let pods = lab.pods("default");
    let ip = |name: &str| pods.iter().find(|pod| pod.name == name).unwrap().ips[0].clone();
    let speed = |from: &str, to: &str, bytes: u64| -> f64 {
        let url = format!("http://{}:8080/bytes/{bytes}", ip(to));
        let printed = shell(
            &lab,
            from,
            &format!("curl -gsS -m 60 -o /dev/null -w '%{{speed_download}}' {url}"),
        );
        printed.parse().unwrap()
    };
    // Bytes per second, of which only ratios are judged: whoever is not limited takes a small part of the time.
    let free = speed("fast", "fast", 3_000_000);
    let receiving = speed("slow", "fast", 3_000_000);
    let sending = speed("fast", "slow", 1_500_000);
    assert!(
        free > 4.0 * receiving,
        "receives {receiving} of {free} bytes a second"
    );
    assert!(free > 8.0 * sending, "sends {sending} of {free} bytes a second");
}
