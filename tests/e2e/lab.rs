//! The lab as its users meet it: raised by the real executable, looked at with kubectl and from inside pods.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{DEMO, Lab, Machine, PODNET, Pod, kill_9, stderr, stdout, text};
use serde_json::Value;

/// Sends a datagram from a new socket as often as told and prints each answer.
const ASK_OVER_UDP: &str = r#"
import socket, sys
address = (sys.argv[1], int(sys.argv[2]))
family = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0][0]
for _ in range(int(sys.argv[3])):
    asking = socket.socket(family, socket.SOCK_DGRAM)
    asking.settimeout(5)
    asking.sendto(b"hi", address)
    print(asking.recv(65535).decode().strip())
"#;

/// What curl ends with when it is refused, and when nothing answers.
const REFUSED: Option<i32> = Some(7);
const SILENCE: Option<i32> = Some(28);

/// Asks every server from every pod, over every address, and compares the address that the server saw.
fn every_pod_reaches_every_pod(lab: &Lab) {
    let pods = lab.pods("default");
    let servers: Vec<&Pod> = pods.iter().filter(|pod| pod.is_app("echo")).collect();
    assert_eq!(
        servers.iter().map(|pod| &pod.node).collect::<BTreeSet<_>>().len(),
        3,
        "spread over the nodes"
    );
    for client in &pods {
        let urls: Vec<String> = servers
            .iter()
            .flat_map(|server| &server.ips)
            .map(|ip| {
                if ip.contains(':') {
                    format!("'http://[{ip}]:8080/'")
                } else {
                    format!("http://{ip}:8080/")
                }
            })
            .collect();
        let printed = lab.sh(
            &client.name,
            &format!("for u in {}; do curl -sS -m 5 -g $u; echo; done", urls.join(" ")),
        );
        let answers: Vec<Value> = printed
            .lines()
            .filter(|l| !l.is_empty())
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(answers.len(), urls.len(), "{printed}");
        for answer in answers {
            let seen = answer["client"].as_str().unwrap();
            let seen = seen
                .rsplit_once(':')
                .unwrap()
                .0
                .trim_matches(['[', ']'])
                .to_owned();
            assert!(
                client.ips.contains(&seen),
                "{} came from {seen}, is {:?}: {answer}",
                client.name,
                client.ips
            );
        }
    }
}

#[test]
fn pods_reach_each_other_through_vxlan_with_their_own_addresses() {
    let lab = Lab::up("vxlan", &["--routing", "vxlan", "-f", DEMO]);
    assert!(
        lab.pods("default").iter().all(|pod| pod.ips.len() == 2),
        "dual stack"
    );
    every_pod_reaches_every_pod(&lab);
    assert!(
        lab.node_sh("node1", "ip -d link").contains("vxlan id"),
        "a tunnel"
    );
    assert!(
        lab.sh("toolbox", "cat /sys/class/net/eth0/mtu") == "1450",
        "the tunnel's header leaves 1450"
    );
}

#[test]
fn pods_reach_each_other_over_direct_routes() {
    let lab = Lab::up("direct", &["--routing", "direct", "-f", DEMO]);
    every_pod_reaches_every_pod(&lab);
    assert!(
        !lab.node_sh("node1", "ip -d link").contains("vxlan id"),
        "no tunnel"
    );
    assert_eq!(lab.sh("toolbox", "cat /sys/class/net/eth0/mtu"), "1500");
}

#[test]
fn the_tunnel_crosses_subnets() {
    let lab = Lab::up("subnets", &["--subnets", "2", "--zones", "3", "-f", DEMO]);
    every_pod_reaches_every_pod(&lab);
    assert!(
        lab.node_sh("node2", "ip -4 -o addr show dev eth0")
            .contains("172.30.1.")
    );
    let zones = lab.kubectl_ok(&[
        "get",
        "nodes",
        "-o",
        r"jsonpath={.items[*].metadata.labels.topology\.kubernetes\.io/zone}",
    ]);
    assert_eq!(zones, "zone1 zone2 zone3");
}

#[test]
fn an_ipv6_only_cluster_works() {
    let lab = Lab::up("six", &["--ip-family", "ipv6", "-f", DEMO]);
    assert!(
        lab.pods("default")
            .iter()
            .all(|pod| pod.ips.len() == 1 && pod.ips[0].contains(':'))
    );
    every_pod_reaches_every_pod(&lab);
}

#[test]
fn replicas_take_turns_behind_the_cluster_ip_over_tcp_and_udp() {
    let lab = Lab::up("turns", &["-f", DEMO]);
    let service = lab.kubectl_json(&["get", "service", "echo"]);
    let servers: BTreeSet<String> = lab
        .pods("default")
        .iter()
        .filter(|p| p.is_app("echo"))
        .map(|p| p.name.clone())
        .collect();
    let toolbox = lab
        .pods("default")
        .into_iter()
        .find(|p| p.name == "toolbox")
        .unwrap();
    for ip in service["spec"]["clusterIPs"].as_array().unwrap() {
        let ip = ip.as_str().unwrap();
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_owned()
        };
        let ask =
            |times: u32| format!("for i in $(seq {times}); do curl -sS -m 5 -g 'http://{host}/'; echo; done");
        // Pods are Ready before every node has heard of it.
        lab.until("all replicas behind the service", || {
            let printed = lab.exec("toolbox", &["sh", "-c", &ask(15)]).stdout;
            let printed = String::from_utf8_lossy(&printed);
            servers
                .iter()
                .all(|server| printed.contains(server))
                .then_some(())
        });
        let tcp = lab.sh("toolbox", &ask(40));
        let udp = lab.sh("toolbox", &format!("python3 -c '{ASK_OVER_UDP}' {ip} 90 40"));
        for (protocol, printed) in [("tcp", tcp), ("udp", udp)] {
            let answers: Vec<Value> = printed
                .lines()
                .filter(|l| !l.is_empty())
                .map(|l| serde_json::from_str(l).unwrap())
                .collect();
            assert_eq!(answers.len(), 40, "{protocol} {ip}: {printed}");
            let seen: BTreeSet<String> = answers
                .iter()
                .map(|a| a["pod"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(
                seen, servers,
                "{protocol} {ip}: 40 calls miss a replica with a chance of 1 in 3 million"
            );
            for answer in &answers {
                let client = answer["client"].as_str().unwrap();
                assert!(
                    toolbox.ips.iter().any(|ip| client.contains(ip.as_str())),
                    "{protocol} source kept: {client}"
                );
            }
        }
    }
    // From the node itself, and a port that the service does not have.
    let ip = service["spec"]["clusterIP"].as_str().unwrap();
    lab.node_sh("node2", &format!("curl -sS -m 5 http://{ip}/"));
    let refused = lab.exec(
        "toolbox",
        &["curl", "-sS", "-m", "5", &format!("http://{ip}:81/")],
    );
    assert_eq!(refused.status.code(), REFUSED, "{}", text(&refused));
}

#[test]
fn a_service_follows_its_pods() {
    let lab = Lab::up("follows", &["-f", DEMO]);
    let ip = lab.kubectl_json(&["get", "service", "echo"])["spec"]["clusterIP"]
        .as_str()
        .unwrap()
        .to_owned();
    lab.kubectl_ok(&["scale", "deployment", "echo", "--replicas=0"]);
    lab.until("refusal without endpoints", || {
        let answer = lab.exec("toolbox", &["curl", "-sS", "-m", "5", &format!("http://{ip}/")]);
        (answer.status.code() == REFUSED).then_some(())
    });
    lab.kubectl_ok(&["scale", "deployment", "echo", "--replicas=2"]);
    lab.until("an answer from a new endpoint", || {
        lab.exec("toolbox", &["curl", "-sS", "-m", "5", &format!("http://{ip}/")])
            .status
            .success()
            .then_some(())
    });
    lab.kubectl_ok(&["delete", "service", "echo"]);
    lab.until("silence from an address that nobody has", || {
        let answer = lab.exec("toolbox", &["curl", "-sS", "-m", "1", &format!("http://{ip}/")]);
        (answer.status.code() == SILENCE).then_some(())
    });
}

#[test]
fn agents_that_are_killed_lose_no_packet_and_come_back() {
    let lab = Lab::up("killed", &["-f", DEMO]);
    let ip = lab.kubectl_json(&["get", "service", "echo"])["spec"]["clusterIP"]
        .as_str()
        .unwrap()
        .to_owned();
    // Who is dead learns of no endpoints: the agent of the client's node is to know them.
    lab.until("an answer", || {
        let answer = lab.exec("toolbox", &["curl", "-sS", "-m", "2", &format!("http://{ip}/")]);
        answer.status.success().then_some(())
    });
    // Requests one after the other, each on a new connection, while every agent dies and returns.
    let script = format!(
        "for i in $(seq 400); do curl -s -m 2 -o /dev/null http://{ip}/ || echo lost $i; sleep 0.01; done"
    );
    let traffic = Command::new(PODNET)
        .args([
            "lab", "exec", "--name", &lab.name, "toolbox", "--", "sh", "-c", &script,
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let old = lab.pids("podnet agent --node");
    assert_eq!(old.len(), 3);
    old.iter().for_each(|pid| kill_9(*pid));
    let output = traffic.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(stdout(&output), "", "requests were lost");
    lab.until("the agents' return", || {
        let new = lab.pids("podnet agent --node");
        (new.len() == 3 && new.iter().all(|pid| !old.contains(pid))).then_some(())
    });
    // What changes now is carried out by the new agents.
    lab.kubectl_ok(&["scale", "deployment", "echo", "--replicas=6"]);
    lab.kubectl_ok(&["rollout", "status", "deployment", "echo", "--timeout=60s"]);
}

#[test]
fn a_runtime_that_is_killed_leaves_its_pods_running() {
    let lab = Lab::up("runtime", &["-f", DEMO]);
    let before = lab.pods("default");
    let started = lab.sh("toolbox", "cat /proc/1/stat | cut -d' ' -f22");
    let old = lab.pids("podnet runtime --node");
    old.iter().for_each(|pid| kill_9(*pid));
    lab.until("the runtimes' return", || {
        lab.exec("toolbox", &["true"]).status.success().then_some(())
    });
    assert_eq!(
        lab.sh("toolbox", "cat /proc/1/stat | cut -d' ' -f22"),
        started,
        "the same process"
    );
    let after = lab.pods("default");
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((&before.name, &before.ips), (&after.name, &after.ips));
    }
    let restarts = lab.kubectl_ok(&[
        "get",
        "pods",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[*].restartCount}",
    ]);
    assert!(restarts.split(' ').all(|count| count == "0"), "{restarts}");
    lab.kubectl_ok(&["delete", "pod", "toolbox", "--grace-period=1", "--timeout=60s"]);
}

#[test]
fn the_api_server_on_disk_comes_back_with_everything() {
    let lab = Lab::up("disk", &["--nodes", "1", "--datastore", "disk", "-f", DEMO]);
    let before = lab.kubectl_json(&["get", "pods"]);
    lab.pids("podnet apiserver").iter().for_each(|pid| kill_9(*pid));
    let after = lab.until("the API server's return", || {
        let output = lab.kubectl(&["get", "pods", "-o", "json"]);
        output
            .status
            .success()
            .then(|| serde_json::from_str::<Value>(&stdout(&output)).unwrap())
    });
    let uids = |list: &Value| -> BTreeSet<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["metadata"]["uid"].to_string())
            .collect()
    };
    assert_eq!(uids(&before), uids(&after));
}

#[test]
fn the_machine_is_as_before_whatever_happens_to_a_lab() {
    let before = Machine::now();
    let lab = Lab::up("same", &["-f", DEMO]);
    Machine::assert_as_beside(&lab, &before);
    let again = lab.podnet(&["lab", "up", "--name", &lab.name]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("already a lab named"), "{}", text(&again));
    lab.exec("toolbox", &["true"]);

    // Every process of the lab, at once.
    lab.pids("").iter().for_each(|pid| kill_9(*pid));
    let listed = lab.until("a dead lab", || {
        let labs: Value = serde_json::from_str(&stdout(&lab.podnet(&["lab", "list", "-o", "json"]))).unwrap();
        let ours = labs
            .as_array()
            .unwrap()
            .iter()
            .find(|l| l["name"] == *lab.name)
            .unwrap()
            .clone();
        (ours["state"] == "dead").then_some(ours)
    });
    assert_eq!(listed["nodes"], 3, "what was known of it is still told");
    lab.until("the end of all", || {
        lab.podnet(&["lab", "status", "--name", &lab.name])
            .status
            .code()
            .filter(|c| *c == 1)
    });
    let status = lab.podnet(&["lab", "status", "--name", &lab.name]);
    assert!(stderr(&status).contains("is dead"), "{}", text(&status));
    lab.raise(&["--nodes", "1"]);
    lab.down();
    lab.down();
    Machine::assert_as(&before, "after a lab");
}

#[test]
fn up_can_be_interrupted_at_any_moment() {
    let before = Machine::now();
    let lab = Lab::named("interrupted");
    for step in 0..16u64 {
        let mut up = Command::new(PODNET)
            .args(["lab", "up", "--name", &lab.name, "--nodes", "2", "-f", DEMO])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(step * 60));
        // Half of the time as ^C, half of the time without any chance to react.
        let signal = if step % 2 == 0 { "-INT" } else { "-KILL" };
        Command::new("kill")
            .args([signal, &up.id().to_string()])
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let status = up.wait().unwrap();
        if signal == "-INT" && !status.success() {
            assert!(!lab.dir().exists(), "^C leaves nothing");
            // Before it listens, the signal itself ends it; afterwards it says so as a shell would.
            assert!(
                matches!((status.code(), status.signal()), (Some(130), _) | (None, Some(2))),
                "{status}"
            );
        }
        lab.down();
    }
    lab.raise(&["--nodes", "1"]);
    lab.down();
    Machine::assert_as(&before, "after a lab");
}

#[test]
fn labs_live_side_by_side_and_know_nothing_of_each_other() {
    let (a, b) = (
        Lab::up("side-a", &["--nodes", "1", "-f", DEMO]),
        Lab::up("side-b", &["--nodes", "2"]),
    );
    let list = stdout(&a.podnet(&["lab", "list", "--output", "json"]));
    assert!(list.contains(&a.name) && list.contains(&b.name), "{list}");
    assert_eq!(a.pods("default").len(), 4);
    assert_eq!(b.pods("default").len(), 0);
    a.down();
    assert!(b.podnet(&["lab", "status", "--name", &b.name]).status.success());
    let missing = a.podnet(&["lab", "kubeconfig", "--name", &a.name]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(
        stderr(&missing).contains("there is no lab named"),
        "{}",
        text(&missing)
    );
}

#[test]
fn an_ordinary_user_can_raise_a_lab() {
    let mut lab = Lab::named("user");
    lab.user = Some(65534);
    lab.raise(&["-f", DEMO]);
    // kubectl runs as root here and may read the user's kubeconfig.
    every_pod_reaches_every_pod(&lab);
    lab.down();
}

#[test]
fn the_command_in_a_pod_or_node_gives_its_exit_code_and_streams() {
    let lab = Lab::up("codes", &["--nodes", "1", "-f", DEMO]);
    assert_eq!(
        lab.exec("toolbox", &["sh", "-c", "exit 42"]).status.code(),
        Some(42)
    );
    let both = lab.exec("toolbox", &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!((stdout(&both).as_str(), stderr(&both).as_str()), ("out", "err"));
    assert_eq!(lab.node("node1", &["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(lab.node_sh("node1", "hostname"), "node1");
    assert_eq!(
        lab.node_sh("node1", "ls /etc/cni/net.d /opt/cni/bin"),
        "/etc/cni/net.d:\n10-podnet.conflist\n\n/opt/cni/bin:\npodnet-cni"
    );
    assert!(stderr(&lab.exec("nobody", &["true"])).contains("no node of the lab runs a pod"));
    assert!(stderr(&lab.node("node9", &["true"])).contains("has no node node9"));
}

/// What is wrong, what must be said, and with which exit code.
#[test]
fn bad_input_is_told_by_name_and_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> String {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let wrong_field = write(
        "field.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: c\n    imagee: host\n",
    );
    let unknown_kind = write("kind.yaml", "apiVersion: v1\nkind: Pot\nmetadata: {name: a}\n");
    let not_yaml = write("yaml.yaml", "a: [\n");
    let no_image = write(
        "image.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - {name: c, image: nginx}\n",
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let lab = Lab::named("bad");
    let name = lab.name.clone();
    let up = |args: &[&str]| lab.podnet(&[&["lab", "up", "--name", &name, "--nodes", "1"], args].concat());
    let cases: Vec<(&str, std::process::Output, i32, Vec<&str>)> = vec![
        (
            "no nodes",
            lab.podnet(&["lab", "up", "--nodes", "0"]),
            2,
            vec!["0", "1..=100"],
        ),
        (
            "500 nodes",
            lab.podnet(&["lab", "up", "--nodes", "500"]),
            2,
            vec!["500", "1..=100"],
        ),
        (
            "a bad name",
            lab.podnet(&["lab", "up", "--name", "A/B"]),
            2,
            vec!["cannot name a lab"],
        ),
        (
            "a data plane",
            up(&["--dataplane", "magic"]),
            2,
            vec![
                "magic",
                "choose auto, nftables, ebpf, ipvs, iptables or userspace",
            ],
        ),
        (
            "direct routes across subnets",
            lab.podnet(&["lab", "up", "--routing", "direct", "--subnets", "2"]),
            2,
            vec!["same subnet", "--routing vxlan"],
        ),
        (
            "a scheduler for nobody",
            up(&["--ipvs-scheduler", "wrr"]),
            2,
            vec!["--ipvs-scheduler needs --dataplane ipvs"],
        ),
        (
            "a wrong field",
            up(&["-f", &wrong_field]),
            1,
            vec!["field.yaml:7", "spec.containers[0].imagee"],
        ),
        (
            "an unknown kind",
            up(&["-f", &unknown_kind]),
            1,
            vec!["kind.yaml:2", "Pot"],
        ),
        (
            "no YAML",
            up(&["-f", &not_yaml]),
            1,
            vec!["yaml.yaml:", "not valid YAML"],
        ),
        ("no file", up(&["-f", "/no/such.yaml"]), 1, vec!["/no/such.yaml"]),
        (
            "a port in use",
            up(&["--api-port", &port]),
            1,
            vec!["already in use", &port],
        ),
    ];
    for (what, output, code, parts) in cases {
        let said = stderr(&output).replace("\n  │", "").replace('\n', " ");
        assert_eq!(output.status.code(), Some(code), "{what}: {}", text(&output));
        for part in parts {
            assert!(
                said.replace(' ', "").contains(&part.replace(' ', "")),
                "{what} lacks {part}: {said}"
            );
        }
        assert!(!lab.dir().exists(), "{what} leaves a lab");
    }
    let image = up(&["-f", &no_image]);
    assert_eq!(image.status.code(), Some(1), "{}", text(&image));
    assert!(
        stderr(&image).contains("ErrImageNeverPull") && stderr(&image).contains("podnet lab load"),
        "{}",
        text(&image)
    );
    let archive = lab.podnet(&["lab", "load", "--name", &name, &not_yaml]);
    assert_eq!(archive.status.code(), Some(1));
    assert!(stderr(&archive).contains("yaml.yaml"), "{}", text(&archive));
}

#[test]
fn a_missing_capability_is_named() {
    let output = Command::new("setpriv")
        .args([
            "--bounding-set",
            "-net_admin",
            "--inh-caps",
            "-net_admin",
            PODNET,
            "lab",
            "up",
            "--name",
            "nocap",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        stderr(&output).contains("NET_ADMIN") && stderr(&output).contains("--cap-add"),
        "{}",
        text(&output)
    );
}

#[test]
fn the_kubeconfig_of_a_dead_lab_is_told() {
    let lab = Lab::up("gone", &["--nodes", "1"]);
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::copy(lab.kubeconfig(), &kubeconfig).unwrap();
    lab.down();
    let url = std::fs::read_to_string(&kubeconfig).unwrap();
    let url = url
        .lines()
        .find_map(|line| line.trim().strip_prefix("server: "))
        .unwrap()
        .trim_matches('"')
        .to_owned();
    // It goes on trying, as a controller must; what it says first is what counts.
    let output = Command::new("timeout")
        .args(["3", PODNET, "controller", "--leader-elect=false", "--kubeconfig"])
        .arg(&kubeconfig)
        .output()
        .unwrap();
    let said = stderr(&output);
    assert!(
        said.contains("cannot reach the API server") && said.contains(url.trim_end_matches('/')),
        "{said}"
    );
    assert!(said.contains(kubeconfig.to_str().unwrap()), "{said}");
    let missing = lab.podnet(&["controller", "--kubeconfig", "/no/such/kubeconfig"]);
    assert_eq!(missing.status.code(), Some(1), "{}", text(&missing));
}
