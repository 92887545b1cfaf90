//! Pods of the lab: processes in namespaces that behave as kubelet's do.

use std::collections::BTreeSet;

use crate::support::{Lab, kill_9, stderr, stdout, text};
use serde_json::Value;

fn one_node(test: &str) -> Lab {
    Lab::up(test, &["--nodes", "1"])
}

fn wait_ready(lab: &Lab, pod: &str) {
    lab.kubectl_ok(&[
        "wait",
        "--for=condition=Ready",
        &format!("pod/{pod}"),
        "--timeout=60s",
    ]);
}

fn pod(lab: &Lab, name: &str) -> Value {
    lab.kubectl_json(&["get", "pod", name])
}

#[test]
fn containers_of_a_pod_share_localhost_and_one_port_space() {
    let lab = one_node("share");
    lab.apply(
        r#"{apiVersion: v1, kind: Pod, metadata: {name: two}, spec: {containers: [
            {name: server, image: podnet/echo, args: [--http, "8080"]},
            {name: shell, image: host, command: [sleep, infinity]}]}}"#,
    );
    wait_ready(&lab, "two");
    let shell = |script: &str| {
        let args = [
            "lab", "exec", "--name", &lab.name, "two", "-c", "shell", "--", "sh", "-c", script,
        ];
        lab.podnet(&args)
    };
    let answer = shell("curl -sS -m 5 http://localhost:8080/");
    assert!(stdout(&answer).contains("\"pod\":\"two\""), "{}", text(&answer));
    let second = shell("python3 -c 'import socket; socket.create_server((\"\", 8080))'");
    assert!(
        !second.status.success() && stderr(&second).contains("in use"),
        "{}",
        text(&second)
    );
    // Mounts and PIDs are the container's own.
    assert_eq!(
        stdout(&shell(
            "touch /tmp/mine; ps ax -o comm= | sort | uniq | head -1; echo $(cat /proc/1/comm)"
        ))
        .lines()
        .last(),
        Some("sleep")
    );
}

#[test]
fn a_shared_process_namespace_has_pause_first_and_it_reaps_orphans() {
    let lab = one_node("pidns");
    lab.apply(
        r#"{apiVersion: v1, kind: Pod, metadata: {name: shared}, spec: {shareProcessNamespace: true, containers: [
            {name: a, image: host, command: [sleep, infinity]},
            {name: b, image: host, command: [sleep, "100000"]}]}}"#,
    );
    wait_ready(&lab, "shared");
    let all = lab.sh("shared", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
    assert!(
        all.contains("pause") && all.contains("sleep infinity") && all.contains("sleep 100000"),
        "{all}"
    );
    // An orphan ends as a zombie nowhere.
    lab.sh("shared", "sh -c 'sleep 0.1 & exit 0'; sleep 0.5");
    let zombies = lab.sh("shared", "grep -l '^State:.Z' /proc/[0-9]*/status || true");
    assert_eq!(zombies, "");
}

#[test]
fn a_killed_container_is_started_again_and_the_pod_keeps_its_address() {
    let lab = one_node("restart");
    lab.apply(
        r#"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [
            {name: c, image: host, command: [sleep, "424242"]}]}}"#,
    );
    wait_ready(&lab, "p");
    let before = pod(&lab, "p");
    lab.pids("sleep 424242").iter().for_each(|pid| kill_9(*pid));
    let after = lab.until("the restart", || {
        let now = pod(&lab, "p");
        let status = &now["status"]["containerStatuses"][0];
        (status["restartCount"] == 1 && status["state"]["running"].is_object()).then_some(now)
    });
    assert_eq!(before["status"]["podIPs"], after["status"]["podIPs"]);
    let last = &after["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 137, "{last}");
    // Without its pause process the pod has no namespaces: it gets new ones, and a new address is allowed.
    lab.pids("podnet pause").iter().for_each(|pid| kill_9(*pid));
    lab.until("the new sandbox", || {
        let now = pod(&lab, "p");
        (now["status"]["containerStatuses"][0]["restartCount"].as_u64() > Some(1)
            && lab.exec("p", &["true"]).status.success())
        .then_some(())
    });
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let lab = one_node("init");
    lab.apply(
        r#"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {
          volumes: [{name: v, emptyDir: {}}],
          initContainers: [
            {name: first, image: host, command: [sh, -c, "echo first >> /v/order"], volumeMounts: [{name: v, mountPath: /v}]},
            {name: side, image: host, restartPolicy: Always, command: [sh, -c, "echo side >> /v/order; sleep infinity"], volumeMounts: [{name: v, mountPath: /v}],
             startupProbe: {exec: {command: [grep, side, /v/order]}, periodSeconds: 1}},
            {name: second, image: host, command: [sh, -c, "echo second >> /v/order"], volumeMounts: [{name: v, mountPath: /v}]}],
          containers: [{name: c, image: host, command: [sh, -c, "echo main >> /v/order; sleep infinity"], volumeMounts: [{name: v, mountPath: /v}]}]}}"#,
    );
    wait_ready(&lab, "p");
    let order = stdout(&lab.podnet(&[
        "lab", "exec", "--name", &lab.name, "p", "-c", "c", "--", "cat", "/v/order",
    ]));
    assert_eq!(order, "first\nside\nsecond\nmain");
    let status = pod(&lab, "p")["status"].clone();
    let reasons: Vec<&Value> = status["initContainerStatuses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| &s["ready"])
        .collect();
    assert_eq!(reasons, [true, true, true], "{status}");
}

#[test]
fn configuration_comes_through_env_and_volumes_and_changes_live() {
    let lab = one_node("config");
    lab.apply(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: cm}
data: {colour: blue, "file.txt": "one"}
---
apiVersion: v1
kind: Secret
metadata: {name: se}
stringData: {password: s3cret}
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: x}, annotations: {note: hello}}
spec:
  hostAliases: [{ip: 10.9.8.7, hostnames: [elsewhere]}]
  volumes:
  - {name: cm, configMap: {name: cm}}
  - {name: se, secret: {secretName: se, defaultMode: 0400}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  containers:
  - name: c
    image: host
    workingDir: /tmp
    command: [sh, -c, "echo $(GREETING) > /tmp/greeting; sleep infinity"]
    env:
    - {name: WHO, value: world}
    - {name: GREETING, value: "hello $(WHO)"}
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: cm, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: se, key: password}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    volumeMounts: [{name: cm, mountPath: /cm}, {name: se, mountPath: /se}, {name: down, mountPath: /down}]
"#,
    );
    wait_ready(&lab, "p");
    let ip = pod(&lab, "p")["status"]["podIP"].as_str().unwrap().to_owned();
    assert_eq!(lab.sh("p", "cat /tmp/greeting"), "hello world");
    assert_eq!(
        lab.sh("p", "echo $COLOUR $PASSWORD $NODE $POD_IP; pwd"),
        format!("blue s3cret node1 {ip}\n/tmp")
    );
    assert_eq!(
        lab.sh(
            "p",
            "cat /cm/file.txt /se/password; stat -Lc %a /se/password; cat /down/labels"
        ),
        "ones3cret400\napp=\"x\""
    );
    let hosts = lab.sh("p", "cat /etc/hosts; cat /etc/hostname; cat /etc/resolv.conf");
    for part in [
        "elsewhere",
        &ip,
        "p\n",
        "nameserver 10.96.0.10",
        "default.svc.cluster.local",
        "ndots:5",
    ] {
        assert!(hosts.contains(part), "{part} is not in {hosts}");
    }
    lab.kubectl_ok(&["patch", "configmap", "cm", "-p", r#"{"data":{"file.txt":"two"}}"#]);
    lab.until("the change in the volume", || {
        (lab.sh("p", "cat /cm/file.txt") == "two").then_some(())
    });
}

#[test]
fn probes_decide_readiness_and_restarts() {
    let lab = one_node("probes");
    lab.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: ready}
spec:
  containers:
  - name: c
    image: podnet/echo
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    startupProbe: {httpGet: {path: /status/200, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: live}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: podnet/echo
    livenessProbe: {httpGet: {path: /status/500, port: 8080}, periodSeconds: 1, failureThreshold: 2}
"#,
    );
    let ready = |lab: &Lab| {
        let pod = pod(lab, "ready");
        let conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    lab.until("the start", || {
        lab.exec("ready", &["true"]).status.success().then_some(())
    });
    assert!(!ready(&lab));
    lab.sh("ready", "touch /tmp/ready");
    lab.until("readiness", || ready(&lab).then_some(()));
    lab.sh("ready", "rm /tmp/ready");
    lab.until("the loss of readiness", || (!ready(&lab)).then_some(()));
    lab.until("a restart by the liveness probe", || {
        (pod(&lab, "live")["status"]["containerStatuses"][0]["restartCount"].as_u64() > Some(0)).then_some(())
    });
    let events = lab.kubectl_ok(&["get", "events", "--field-selector", "involvedObject.name=live"]);
    assert!(
        events.contains("Unhealthy") && events.contains("Killing"),
        "{events}"
    );
}

#[test]
fn restart_policies_and_phases_are_kubelets() {
    let lab = one_node("policies");
    let pod_of = |name: &str, policy: &str, code: u8| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n  containers:\n  - \
             {{name: c, image: host, command: [sh, -c, 'echo said; exit {code}']}}\n---\n"
        )
    };
    lab.apply(
        &[
            pod_of("good", "Never", 0),
            pod_of("bad", "Never", 3),
            pod_of("again", "OnFailure", 1),
        ]
        .concat(),
    );
    let phase = |name: &str| {
        pod(&lab, name)["status"]["phase"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    lab.until("success", || (phase("good") == "Succeeded").then_some(()));
    lab.until("failure", || (phase("bad") == "Failed").then_some(()));
    assert_eq!(
        pod(&lab, "bad")["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"],
        3
    );
    lab.until("the back-off", || {
        let status = pod(&lab, "again")["status"]["containerStatuses"][0].clone();
        (status["state"]["waiting"]["reason"] == "CrashLoopBackOff").then_some(())
    });
    assert_eq!(lab.kubectl_ok(&["logs", "good"]), "said");
    assert_eq!(lab.kubectl_ok(&["logs", "again", "--previous"]), "said");
}

#[test]
fn host_network_pods_have_the_nodes_addresses() {
    let lab = one_node("hostnet");
    lab.apply(
        r#"{apiVersion: v1, kind: Pod, metadata: {name: h}, spec: {hostNetwork: true, containers: [
            {name: c, image: podnet/echo, args: [--http, "18080"]}]}}"#,
    );
    wait_ready(&lab, "h");
    let status = pod(&lab, "h")["status"].clone();
    assert_eq!(status["podIP"], status["hostIP"]);
    assert!(
        lab.node_sh("node1", "curl -sS -m 5 http://localhost:18080/")
            .contains("\"pod\":\"h\"")
    );
}

#[test]
fn kubectl_exec_logs_and_delete_work_as_everywhere() {
    let lab = one_node("kubectl");
    lab.apply(
        r#"{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {terminationGracePeriodSeconds: 30, containers: [
            {name: c, image: host, command: [sh, -c, "trap 'echo bye; exit 0' TERM; echo one; echo two; while :; do sleep 0.1; done"]}]}}"#,
    );
    wait_ready(&lab, "p");
    assert_eq!(lab.kubectl_ok(&["exec", "p", "--", "sh", "-c", "echo hi"]), "hi");
    let failed = lab.kubectl(&["exec", "p", "--", "sh", "-c", "echo oops >&2; exit 9"]);
    assert_eq!(failed.status.code(), Some(9));
    assert!(stderr(&failed).contains("oops"), "{}", text(&failed));
    assert_eq!(lab.kubectl_ok(&["logs", "p"]), "one\ntwo");
    assert_eq!(lab.kubectl_ok(&["logs", "p", "--tail=1"]), "two");
    let started = std::time::Instant::now();
    lab.kubectl_ok(&["delete", "pod", "p"]);
    assert!(
        started.elapsed().as_secs() < 25,
        "SIGTERM is heard, the grace period is not waited out"
    );
    assert!(stderr(&lab.kubectl(&["get", "pod", "p"])).contains("not found"));
    assert_eq!(lab.pids("trap").len(), 0);
}

/// 200 pods come up; scaling up and down 20 times leaks no address, link or process.
#[test]
fn two_hundred_pods_come_and_go_without_a_trace() {
    let lab = Lab::up("many", &["--nodes", "3"]);
    lab.apply(
        r#"{apiVersion: apps/v1, kind: Deployment, metadata: {name: many}, spec: {replicas: 0,
            selector: {matchLabels: {app: many}}, template: {metadata: {labels: {app: many}}, spec: {
            terminationGracePeriodSeconds: 0, containers: [{name: c, image: host, command: [sleep, infinity]}]}}}}"#,
    );
    let nodes = ["node1", "node2", "node3"];
    let count =
        |script: &str| -> Vec<String> { nodes.iter().map(|node| lab.node_sh(node, script)).collect() };
    let links = || count("ip -o link | wc -l");
    let leases = || count("ls /var/lib/podnet/leases 2>/dev/null | wc -l");
    let processes = || lab.pids("").len();
    lab.until("quiet", || (lab.pids("podnet pause").is_empty()).then_some(()));
    let before = (links(), leases(), processes());

    let scale = |replicas: usize| {
        lab.kubectl_ok(&["scale", "deployment", "many", &format!("--replicas={replicas}")]);
        lab.until(&format!("{replicas} pods"), || {
            let pods = lab.kubectl_json(&["get", "pods"]);
            let pods = pods["items"].as_array().unwrap();
            let running = pods
                .iter()
                .filter(|pod| pod["status"]["phase"] == "Running")
                .count();
            (pods.len() == replicas && running == replicas).then_some(())
        });
    };
    scale(200);
    let addresses: Vec<String> = lab.pods("default").into_iter().flat_map(|pod| pod.ips).collect();
    assert_eq!(addresses.len(), 400, "two addresses each");
    assert_eq!(
        addresses.iter().collect::<BTreeSet<_>>().len(),
        400,
        "no address twice"
    );
    for round in 0..20 {
        scale(if round % 2 == 0 { 20 } else { 60 });
    }
    scale(0);
    lab.until("the end of all links, leases and processes", || {
        ((links(), leases(), processes()) == before).then_some(())
    });
}
