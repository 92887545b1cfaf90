//! Services beyond the cluster IP, in a whole lab: through the API, the agents and the kernel.

mod programs;

use std::net::SocketAddr;
use std::process::Output;

use crate::support::{DEMO, Lab, kill_9, stderr, stdout, text};
use serde_json::Value;

/// Reached by EXTERNAL-IP, too.
const OUTER: &str = "
apiVersion: v1
kind: Service
metadata: {name: outer}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  externalIPs: [EXTERNAL-IP]
  selector: {app: echo}
  ports:
    - {name: http, port: 80, targetPort: http}
    - {name: dgram, port: 90, targetPort: dgram, protocol: UDP}
";

const EXTERNAL_IP: &str = "203.0.113.7";

/// A lab of two nodes; the echo pods are on both.
fn lab(name: &str) -> Lab {
    lab_with(name, EXTERNAL_IP, &[])
}

/// The same with more arguments.
fn lab_with(name: &str, external_ip: &str, args: &[&str]) -> Lab {
    let lab = Lab::up(name, &[&["--nodes", "2", "-f", DEMO], args].concat());
    lab.apply(&OUTER.replace("EXTERNAL-IP", external_ip));
    lab
}

pub(crate) fn address(lab: &Lab, node: &str) -> String {
    let path = "-ojsonpath={.status.addresses[?(@.type=='InternalIP')].address}";
    let addresses = lab.kubectl_ok(&["get", "node", node, path]);
    addresses.split(' ').next().unwrap().to_owned()
}

/// Asks from a node's own network until an answer comes.
pub(crate) fn curl(lab: &Lab, node: &str, url: &str) -> Value {
    lab.until(&format!("an answer from {url}"), || {
        let output = lab.node(node, &["curl", "-sS", "-g", "--max-time", "2", url]);
        serde_json::from_str(&stdout(&output)).ok()
    })
}

/// What a URL has between // and /.
pub(crate) fn authority(address: &str, port: u64) -> String {
    SocketAddr::new(address.parse().unwrap(), port.try_into().unwrap()).to_string()
}

/// The URL at a service's cluster IP.
fn url(lab: &Lab, service: &str) -> String {
    let service = lab.kubectl_json(&["get", "service", service]);
    let address = service["spec"]["clusterIP"].as_str().unwrap();
    format!("http://{}/", authority(address, 80))
}

/// The ways to the echo pods: the cluster IP, the second node's port, and the external address.
fn ways(lab: &Lab) -> [String; 3] {
    let outer = lab.kubectl_json(&["get", "service", "outer"]);
    let node_port = outer["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let external = outer["spec"]["externalIPs"][0].as_str().unwrap();
    [
        url(lab, "echo"),
        format!("http://{}/", authority(&address(lab, "node2"), node_port)),
        format!("http://{}/", authority(external, 80)),
    ]
}

/// The Event that says that others' changes were put back, and what it says.
fn put_back(lab: &Lab) -> String {
    lab.until("an Event on the node", || {
        let selector = ["--field-selector", "reason=NetworkPutBack"];
        let events = lab.kubectl_json(&[&["get", "events", "-ojson"], &selector[..]].concat());
        let event = events["items"].as_array()?.first()?.clone();
        assert_eq!(event["involvedObject"]["name"], "node1", "{event:#}");
        Some(event["message"].as_str()?.to_owned())
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
    // Its slices follow the pods.
    let inside = lab.until("three endpoints", || {
        let output = explain(&["outer", "--from", "toolbox"]);
        stdout(&output).contains("one in 3").then_some(output)
    });
    assert!(inside.status.success(), "{}", text(&inside));
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
        let refused = stdout(&output).contains("refused: it has no endpoint of this family");
        (output.status.code() == Some(1) && refused).then_some(())
    });
    for (args, message) in [
        (&["nothing"][..], "there is no service default/nothing"),
        (&["outer", "--from", "nobody"], "there is no pod default/nobody"),
        (&["outer", "--node", "node9"], "there is no node node9"),
        (
            &["outer", "--from", "toolbox", "--node", "node9"],
            "--node is for clients from outside",
        ),
    ] {
        let output = explain(args);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(stderr(&output).contains(message), "{}", text(&output));
    }
    lab.down();
}

#[test]
fn services_in_user_space_go_on_without_an_agent_and_come_back_when_their_proxy_is_killed() {
    let lab = lab_with("proxied", EXTERNAL_IP, &["--dataplane", "userspace"]);
    let ways = ways(&lab);
    let proxies = || lab.pids("podnet proxy --run-dir");
    assert_eq!(proxies().len(), 2, "one per node");
    for way in &ways {
        curl(&lab, "node1", way);
    }
    // A transfer that takes seconds, while every agent is killed and comes back.
    let slowly = format!(
        "curl -sSf --max-time 60 --limit-rate 200k -o /tmp/part {}bytes/2000000; wc -c < /tmp/part",
        ways[0]
    );
    let before = proxies();
    let old = lab.pids("podnet agent --node");
    let transferred = std::thread::scope(|scope| {
        let transfer = scope.spawn(|| lab.sh("toolbox", &slowly));
        lab.until("the transfer begins", || {
            let begun = lab.exec("toolbox", &["test", "-s", "/tmp/part"]);
            begun.status.success().then_some(())
        });
        old.iter().for_each(|pid| kill_9(*pid));
        transfer.join().unwrap()
    });
    assert_eq!(transferred.trim(), "2000000");
    lab.until("the agents' return", || {
        let new = lab.pids("podnet agent --node");
        (new.len() == 2 && new.iter().all(|pid| !old.contains(pid))).then_some(())
    });
    assert_eq!(proxies(), before, "agents find the proxies that are there");
    // What changes now is carried out by them.
    lab.kubectl_ok(&["scale", "deployment", "echo", "--replicas=5"]);
    lab.kubectl_ok(&["rollout", "status", "deployment", "echo", "--timeout=60s"]);
    let mut seen = std::collections::BTreeSet::new();
    lab.until("answers from all five", || {
        seen.insert(curl(&lab, "node1", &ways[0])["pod"].to_string());
        (seen.len() == 5).then_some(())
    });
    before.iter().for_each(|pid| kill_9(*pid));
    lab.until("other proxies", || {
        let new = proxies();
        (new.len() == 2 && new.iter().all(|pid| !before.contains(pid))).then_some(())
    });
    for way in &ways {
        curl(&lab, "node1", way);
    }
    lab.node_sh("node1", "nft delete table inet podnet");
    put_back(&lab);
    lab.down();
}

#[test]
fn services_through_iptables_are_reached_and_what_others_flush_is_put_back() {
    let lab = lab_with("iptables", EXTERNAL_IP, &["--dataplane", "iptables"]);
    let ways = ways(&lab);
    for way in &ways {
        curl(&lab, "node1", way);
    }
    // Whichever variant the node uses.
    let variant = lab.node_sh(
        "node1",
        "iptables-legacy-save 2>/dev/null | grep -q PODNET && echo legacy || echo nft",
    );
    let flush = format!(
        "iptables-{0} -t nat -F; iptables-{0} -t filter -F",
        variant.trim()
    );
    lab.node_sh("node1", &flush);
    for way in &ways {
        curl(&lab, "node1", way);
    }
    put_back(&lab);
    lab.down();
}

#[test]
fn a_node_that_cannot_apply_says_so_to_load_balancers_and_catches_up() {
    let lab = lab_with("unfit", EXTERNAL_IP, &["--dataplane", "iptables"]);
    let outer = lab.kubectl_json(&["get", "service", "outer"]);
    let check = outer["spec"]["healthCheckNodePort"].as_u64().unwrap();
    let check = format!("http://{}/", authority(&address(&lab, "node1"), check));
    curl(&lab, "node2", &check);
    let healthz = || lab.node_sh("node1", "curl -s -w '%{http_code}' http://127.0.0.1:9980/healthz");
    assert_eq!(healthz(), "ok\n200");

    lab.node_sh(
        "node1",
        "for program in /usr/sbin/xtables-*-multi; do mount --bind /bin/false $program; done",
    );
    lab.kubectl_ok(&[
        "patch",
        "service",
        "echo",
        "--type=json",
        "-p",
        r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#,
    ]);
    let answer = lab.until("it is not healthy", || {
        Some(healthz()).filter(|answer| answer.ends_with("503"))
    });
    assert!(answer.contains("iptables"), "{answer}");
    let answer = lab.until("load balancers hear of it", || {
        let answer = curl(&lab, "node2", &check);
        (answer["serviceProxyHealthy"] == false).then_some(answer)
    });
    let status = lab.node(
        "node2",
        &["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &check],
    );
    assert_eq!(stdout(&status), "503");
    assert_eq!(
        answer["localEndpoints"].as_u64().map(|count| count > 0),
        Some(true),
        "{answer}"
    );
    // What was in force goes on.
    let before = url(&lab, "echo");
    curl(&lab, "node1", &before);

    lab.node_sh(
        "node1",
        "for program in /usr/sbin/xtables-*-multi; do umount $program; done",
    );
    lab.until("it is healthy again", || (healthz() == "ok\n200").then_some(()));
    curl(&lab, "node1", &before.replace(":80/", ":81/"));
    assert_eq!(curl(&lab, "node2", &check)["serviceProxyHealthy"], true);
    lab.down();
}

#[test]
fn services_of_an_ipv6_only_cluster_are_reached_every_way() {
    let lab = lab_with("six-services", "2001:db8::7", &["--ip-family", "ipv6"]);
    for way in ways(&lab) {
        assert!(way.starts_with("http://["), "{way}");
        for node in ["node1", "node2"] {
            curl(&lab, node, &way);
        }
        let answer = lab.sh("toolbox", &format!("curl -sS -g --max-time 10 '{way}'"));
        assert!(answer.contains("\"pod\""), "{way}: {answer}");
    }
    lab.down();
}

mod linux_6_12 {
    use super::*;

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn services_through_ipvs_are_reached_and_what_others_clear_is_put_back() {
        let lab = lab_with("ipvs", EXTERNAL_IP, &["--dataplane", "ipvs"]);
        let ways = ways(&lab);
        for way in &ways {
            curl(&lab, "node1", way);
            lab.sh("toolbox", &format!("curl -sS --max-time 30 '{way}'"));
        }
        let virtual_services = lab.node_sh("node1", "cat /proc/net/ip_vs");
        assert!(virtual_services.contains("\n  -> "), "{virtual_services}");
        lab.node_sh("node1", "nft flush ruleset");
        for way in &ways {
            curl(&lab, "node1", way);
        }
        put_back(&lab);
        lab.down();
    }
}

#[test]
fn pods_prefer_the_endpoints_of_their_zone_where_the_service_asks_for_it() {
    // The first and the third node are in one zone.
    let lab = Lab::up("zones", &["--nodes", "3", "--zones", "2", "-f", DEMO]);
    let zone = |node: &str| {
        let path = r"-ojsonpath={.metadata.labels.topology\.kubernetes\.io/zone}";
        lab.kubectl_ok(&["get", "node", node, path])
    };
    assert_eq!(zone("node1"), zone("node3"));
    assert_ne!(zone("node1"), zone("node2"));
    lab.kubectl_ok(&["scale", "deployment/echo", "--replicas", "6"]);
    lab.kubectl_ok(&["rollout", "status", "deployment/echo", "--timeout=60s"]);
    let url = url(&lab, "echo");
    let nodes_of = |from: &str, asked: usize| -> std::collections::BTreeSet<String> {
        let nodes = (0..asked).map(|_| curl(&lab, from, &url)["node"].as_str().unwrap().to_owned());
        nodes.collect()
    };
    let until = |from: &str, what: &str, expected: &[&str]| {
        lab.until(&format!("{what} from {from}"), || {
            let found = nodes_of(from, 24);
            found.iter().eq(expected.iter()).then_some(())
        });
    };
    const ALL: &[&str] = &["node1", "node2", "node3"];
    for (distribution, expected) in [
        ("null", [ALL, ALL]),
        ("\"PreferSameZone\"", [&["node1", "node3"], &["node2"]]),
        ("null", [ALL, ALL]),
        ("\"PreferSameNode\"", [&["node1"], &["node2"]]),
    ] {
        let patch = format!("{{\"spec\":{{\"trafficDistribution\":{distribution}}}}}");
        lab.kubectl_ok(&["patch", "service", "echo", "-p", &patch]);
        for (node, expected) in ["node1", "node2"].into_iter().zip(expected) {
            until(node, distribution, expected);
        }
    }
    // Where a zone has none left, its clients go to the other.
    lab.kubectl_ok(&["cordon", "node2"]);
    lab.kubectl_ok(&[
        "delete",
        "pod",
        "-l",
        "app=echo",
        "--field-selector",
        "spec.nodeName=node2",
    ]);
    until("node2", "the other zone's", &["node1", "node3"]);
    lab.down();
}

/// Never ready, and on the node's own network: a program of the node's, but for its name.
const UNREADY_AND_SQUATTER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: unready, labels: {app: unready}}
spec:
  containers:
    - name: c
      image: podnet/echo
      args: [--http, '8080']
      readinessProbe: {exec: {command: ['false']}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: unready}
spec:
  selector: {app: unready}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: squatter}
spec:
  nodeName: node1
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
    - {name: c, image: podnet/echo, args: [--http, '30777']}
---
apiVersion: v1
kind: Pod
metadata: {name: guest}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
    - {name: c, image: host, command: [sleep, infinity]}
";

#[test]
fn who_is_not_ready_is_served_where_the_service_publishes_it_and_a_port_in_use_is_told_and_never_taken() {
    let lab = Lab::up("odd", &["--nodes", "2", "-f", DEMO]);
    lab.apply(UNREADY_AND_SQUATTER);
    let unready = url(&lab, "unready");
    let refused = |when: &str| {
        lab.until(&format!("a refusal {when}"), || {
            let output = lab.node("node2", &["curl", "-sS", "--max-time", "2", &unready]);
            // curl's code for a refused connection.
            (output.status.code() == Some(7)).then_some(())
        });
    };
    refused("before");
    for (publish, when) in [(true, ""), (false, "after")] {
        let patch = format!("{{\"spec\":{{\"publishNotReadyAddresses\":{publish}}}}}");
        lab.kubectl_ok(&["patch", "service", "unready", "-p", &patch]);
        match publish {
            true => assert_eq!(curl(&lab, "node2", &unready)["pod"], "unready"),
            false => refused(when),
        }
    }

    let near = format!("http://{}:30777/", address(&lab, "node1"));
    let far = format!("http://{}:30777/", address(&lab, "node2"));
    assert_eq!(curl(&lab, "node2", &near)["pod"], "squatter");
    let ports = r#"{"spec":{"type":"NodePort","ports":[{"name":"http","port":80,"targetPort":"http","nodePort":30777}]}}"#;
    lab.kubectl_ok(&["patch", "service", "echo", "-p", ports]);
    let is_echo = |answer: &Value| answer["pod"].as_str().unwrap().starts_with("echo-");
    assert!(is_echo(&curl(&lab, "node1", &far)));
    lab.until("an Event about the port", || {
        let events = lab.kubectl_json(&["get", "events", "-ojson"]);
        let mut events = events["items"].as_array()?.iter();
        let told = events.find(|event| event["message"].as_str().unwrap().contains("30777 is not served"))?;
        assert_eq!(told["involvedObject"]["name"], "node1", "{told:#}");
        Some(())
    });
    for _ in 0..10 {
        assert_eq!(curl(&lab, "node2", &near)["pod"], "squatter");
    }
    // A pod on its node's network is a client as any other.
    lab.kubectl_ok(&["wait", "--for=condition=Ready", "pod/guest", "--timeout=60s"]);
    let answer = lab.sh("guest", &format!("curl -sS --max-time 5 {}", url(&lab, "echo")));
    assert!(is_echo(&serde_json::from_str(&answer).unwrap()), "{answer}");
    lab.kubectl_ok(&["delete", "pod", "squatter"]);
    lab.until("the service's having its port", || {
        let output = lab.node("node2", &["curl", "-sS", "--max-time", "2", &near]);
        let answer: Value = serde_json::from_str(&stdout(&output)).ok()?;
        is_echo(&answer).then_some(())
    });
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
    // Who reads no more of it has read enough.
    lab.node_sh(
        "node1",
        "bash -c 'set -o pipefail; (sleep 1; podnet status services) | true'",
    );
    let status = lab.node("node1", &["podnet", "status", "services"]);
    let status = stdout(&status);
    assert!(
        status.contains(&format!("left out: Service default/contradictory: {of_range}")),
        "{status}"
    );
    assert!(status.contains(&format!("tcp {address}:80")), "{status}");
    assert!(!status.contains("tcp 10.96.0.250:80"), "{status}");
    let explain = [
        "service",
        "explain",
        "contradictory",
        "--kubeconfig",
        &lab.kubeconfig(),
    ];
    let explained = lab.podnet(&explain);
    assert_eq!(explained.status.code(), Some(1), "{}", text(&explained));
    let left_out = format!("left out: {of_range}");
    assert!(stdout(&explained).contains(&left_out), "{}", text(&explained));
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
    let message = put_back(&lab);
    assert!(
        message.contains("somebody else changed podnet's tables"),
        "{message}"
    );
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
