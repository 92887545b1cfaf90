//! With programs at sockets in front of the table.

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
