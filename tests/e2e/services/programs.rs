//! With programs in front of the table: at sockets, and at pods' links.

use super::*;

#[test]
fn services_are_reached_past_translation_and_what_others_take_off_is_put_back() {
    let lab = lab_with("programs", EXTERNAL_IP, &["--dataplane", "ebpf"]);
    let ways = ways(&lab);
    for way in &ways {
        curl(&lab, "node1", way);
    }
    let home = lab.kubectl_ok(&["get", "pod", "toolbox", "-ojsonpath={.spec.nodeName}"]);
    let translated = || lab.node_sh(&home, "conntrack -L --dst-nat 2>/dev/null");
    let echo = url(&lab, "echo");
    let ask = || lab.sh("toolbox", &format!("curl -sS -g --max-time 10 '{echo}'"));
    lab.until("the toolbox's network is known", || {
        lab.node_sh(&home, "conntrack -F 2>/dev/null");
        ask();
        translated().is_empty().then_some(())
    });
    // The node's own processes, too.
    curl(&lab, &home, &echo);
    assert_eq!(translated(), "");

    let dump = lab.node_sh("node1", "podnet bpf dump");
    let service = echo.trim_start_matches("http://").trim_end_matches('/');
    for what in [
        &format!("service tcp {service} to 10.244."),
        "client in network namespace",
        "connect4",
    ] {
        assert!(dump.contains(what), "{what}: {dump}");
    }
    let json: Value = serde_json::from_str(&lab.node_sh("node1", "podnet bpf dump -o json")).unwrap();
    assert!(json["services"].as_array().unwrap().len() > 1, "{json}");

    let pins = "ls -d /sys/fs/bpf/podnet/hooks-*";
    let hooks = lab.node_sh("node1", pins);
    lab.node_sh("node1", "rm -r /sys/fs/bpf/podnet/hooks-*");
    lab.until("they are there again", || {
        (stdout(&lab.node("node1", &["sh", "-c", pins])) == hooks).then_some(())
    });
    put_back(&lab);
    for way in &ways {
        curl(&lab, "node1", way);
    }

    // An agent that starts knows the pods that are there; one that goes is no client any more.
    let clients = || {
        let dump = lab.node_sh(&home, "podnet bpf dump");
        dump.lines().filter(|line| line.starts_with("client")).count()
    };
    let before = clients();
    let agents = lab.pids(&format!("agent --node {home}"));
    assert!(!agents.is_empty());
    agents.iter().for_each(|pid| kill_9(*pid));
    lab.node_sh(&home, "conntrack -F 2>/dev/null");
    ask();
    assert_eq!(translated(), "");
    lab.until("another agent is there", || {
        let status = lab.node(&home, &["podnet", "status"]);
        stdout(&status).contains("generation").then_some(())
    });
    assert_eq!(clients(), before);
    lab.kubectl_ok(&["delete", "pod", "toolbox", "--wait=true"]);
    lab.until("its network is forgotten", || {
        (clients() + 1 == before).then_some(())
    });

    let group = std::fs::read_to_string(lab.dir().join("cgroup")).unwrap();
    let group = std::path::Path::new(&group);
    assert!(group.join("node1").exists());
    lab.down();
    assert!(!group.exists());
}

const TRUSTING: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: trusting}
spec:
  podSelector: {matchLabels: {app: echo}}
  ingress: [{}]
";

#[test]
fn packets_between_pods_go_past_the_stack_until_a_policy_is_about_them() {
    let lab = Lab::up("path", &["--nodes", "2", "-f", DEMO, "--dataplane", "ebpf"]);
    let pods = lab.kubectl_json(&["get", "pods", "-ojson", "-l", "app=echo"]);
    let of_echo = pods["items"].as_array().unwrap().iter().map(|pod| {
        let text = |path: &str| pod.pointer(path).unwrap().as_str().unwrap().to_owned();
        (text("/status/podIP"), text("/spec/nodeName"))
    });
    let of_echo: Vec<_> = of_echo.collect();
    let nodes: std::collections::BTreeSet<&str> = of_echo.iter().map(|(_, node)| node.as_str()).collect();
    assert_eq!(nodes.len(), 2, "{of_echo:?}");
    let rows = |node: &str| {
        let dump = lab.node_sh(node, "podnet bpf dump");
        dump.lines().filter(|line| line.starts_with("pod ")).count()
    };
    let ask = |address: &str| {
        let url = format!("http://{}/", authority(address, 8080));
        let answer = lab.sh("toolbox", &format!("curl -sS -g --max-time 10 '{url}'"));
        assert!(answer.contains("\"pod\""), "{answer}");
    };
    let tracked = |address: &str| {
        let list = format!("conntrack -L -p tcp -d {address} 2>/dev/null");
        let of_node = |node: &&str| lab.node_sh(node, &list);
        nodes.iter().map(of_node).collect::<String>()
    };
    lab.until("the pods are on the path", || {
        let conntrack = |node: &&str| drop(lab.node_sh(node, "conntrack -F 2>/dev/null"));
        nodes.iter().for_each(conntrack);
        of_echo.iter().for_each(|(address, _)| ask(address));
        let is_past = |(address, _): &(String, String)| tracked(address).is_empty();
        of_echo.iter().all(is_past).then_some(())
    });
    let status = nodes.iter().map(|node| lab.node_sh(node, "podnet status"));
    for status in status {
        assert!(!status.contains("do not go past"), "{status}");
    }

    // Both programs ran for these, and the kernel counts how long.
    let measure = |node: &str| lab.node_sh(node, "podnet bpf costs --seconds 2 -o json");
    let costs = std::thread::scope(|scope| {
        let measured: Vec<_> = nodes.iter().map(|node| scope.spawn(|| measure(node))).collect();
        while !measured.iter().all(|thread| thread.is_finished()) {
            of_echo.iter().for_each(|(address, _)| ask(address));
        }
        measured
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Vec<_>>()
    });
    for costs in costs {
        let costs: Value = serde_json::from_str(&costs).unwrap();
        let programs = costs["programs"].as_array().unwrap();
        let of = |name: &str| programs.iter().find(|of| of["program"] == name).unwrap();
        for name in ["pod_sends", "node_sends"] {
            assert!(of(name)["nanosecondsEach"].as_u64() > Some(0), "{costs}");
        }
        assert!(of("connect4")["codeBytes"].as_u64() > Some(0), "{costs}");
    }
    let refused = lab.node("node1", &["podnet", "bpf", "costs", "--seconds", "0"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");

    // Whoever is judged is seen by the table.
    let before: Vec<usize> = nodes.iter().map(|node| rows(node)).collect();
    lab.apply(TRUSTING);
    lab.until("the policed pods take the stack", || {
        of_echo.iter().for_each(|(address, _)| ask(address));
        let takes_it = |(address, _): &(String, String)| !tracked(address).is_empty();
        of_echo.iter().all(takes_it).then_some(())
    });
    lab.kubectl_ok(&["delete", "networkpolicy", "trusting"]);
    lab.until("they are on the path again", || {
        let now: Vec<usize> = nodes.iter().map(|node| rows(node)).collect();
        (now == before).then_some(())
    });

    // One that is gone is gone from the maps, and its link's programs with it.
    let home = lab.kubectl_ok(&["get", "pod", "toolbox", "-ojsonpath={.spec.nodeName}"]);
    let links = || {
        lab.node_sh(&home, "ls /sys/fs/bpf/podnet/path/links")
            .lines()
            .count()
    };
    let (rows_before, links_before) = (rows(&home), links());
    lab.kubectl_ok(&["delete", "pod", "toolbox", "--wait=true"]);
    lab.until("its rows are gone", || {
        (rows(&home) < rows_before && links() + 2 == links_before).then_some(())
    });
    lab.down();
}
