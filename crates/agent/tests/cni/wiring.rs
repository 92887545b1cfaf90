//! What a pod can have beside an address: limits and host ports.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use podnet_cni::WiringName;
use podnet_linux::ns::Namespace;
use serde_json::{Value, json};

use crate::node::{Node, Pod, answer, error_code};
use crate::{addresses, answer_nothing};

pub(crate) fn sh(place: &Namespace, script: &str) {
    let output = place.run(|| Command::new("sh").args(["-ec", script]).output().unwrap());
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

pub(crate) fn with(wishes: &Value) -> Value {
    json!({ "runtimeConfig": wishes })
}

pub(crate) fn check(node: &Node, pod: &Pod, wishes: &Value, result: &Value) -> std::process::Output {
    let more = json!({ "runtimeConfig": wishes, "prevResult": result });
    node.cni_with("CHECK", pod, "1.1.0", more)
}

/// Connects to `to`, behind which `server` is at `at`.
pub(crate) fn through(from: &Namespace, to: &str, server: &Namespace, at: SocketAddr) {
    let listener = server.run(|| TcpListener::bind(at).unwrap()).unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let connected = from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)));
    let mut client = connected.unwrap().unwrap_or_else(|error| panic!("{to}: {error}"));
    let (mut stream, _) = listener.accept().unwrap();
    client.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
}

#[test]
fn host_ports_hold_over_a_restart_and_go_with_their_pod() {
    host_ports_of(WiringName::Ptp);
}

pub(crate) fn host_ports_of(wiring: WiringName) {
    let mut node = Node::wired(wiring);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let wishes = json!({ "portMappings": [
        { "hostPort": 8081, "containerPort": 8080, "protocol": "tcp" },
        { "hostPort": 8081, "containerPort": 8080, "protocol": "udp", "hostIP": "172.30.0.10" },
    ] });
    let result = answer(&node.cni_with("ADD", &one, "1.1.0", with(&wishes)));
    let serving = SocketAddr::new(addresses(&result)[0], 8080);
    through(&node.netns, "172.30.0.10:8081", &one.netns, serving);
    through(&node.netns, "127.0.0.1:8081", &one.netns, serving);
    answer_nothing(&check(&node, &one, &wishes, &result));

    let taken = node.cni_with("ADD", &two, "1.1.0", with(&wishes));
    assert_eq!(error_code(&taken), 11);
    let said = String::from_utf8_lossy(&taken.stdout).into_owned();
    assert!(
        said.contains("tcp 0.0.0.0:8081") && said.contains("container one"),
        "{said}"
    );
    assert_eq!(node.leases(), 1);

    node.stop();
    node.restart();
    through(&node.netns, "172.30.0.10:8081", &one.netns, serving);
    assert_eq!(
        error_code(&node.cni_with("ADD", &two, "1.1.0", with(&wishes))),
        11
    );
    answer_nothing(&node.cni("DEL", &one, "1.1.0", None));
    let result = answer(&node.cni_with("ADD", &two, "1.1.0", with(&wishes)));
    let serving = SocketAddr::new(addresses(&result)[0], 8080);
    through(&node.netns, "127.0.0.1:8081", &two.netns, serving);
    answer_nothing(&node.cni("DEL", &two, "1.1.0", None));
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
    let connected = node.netns.run(|| TcpStream::connect("127.0.0.1:8081"));
    assert!(connected.unwrap().is_err(), "the port is closed");
}

#[test]
fn a_failed_add_leaves_no_link_address_route_firewall_rule_or_lease() {
    let node = Node::start();
    node.wait_until("the tables are there", || node.snapshot().contains("hostport4"));
    let before = node.snapshot();
    // The last thing that is done for a pod fails.
    let more = json!({
        "sysctl": { "net.no.such": "1" }, "routes": [{ "dst": "192.0.2.0/24" }],
        "runtimeConfig": {
            "portMappings": [{ "hostPort": 8081, "containerPort": 8080, "protocol": "tcp" }],
            "bandwidth": { "ingressRate": 16_000_000, "egressRate": 8_000_000 },
        },
    });
    for n in 0..3 {
        let output = node.cni_with("ADD", &Pod::new(&format!("failing-{n}")), "1.1.0", more.clone());
        assert_eq!(error_code(&output), 100, "{output:?}");
        assert_eq!(node.leases(), 0);
        assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
    }
    node.wait_until("the firewall is as before, too", || node.snapshot() == before);
    let fine = Pod::new("fine");
    answer(&node.cni("ADD", &fine, "1.1.0", None));
    assert_ne!(node.snapshot(), before, "the snapshot sees what an ADD does");
}

#[test]
fn check_sees_a_host_port_that_is_closed() {
    let node = Node::start();
    let pod = Pod::new("closed");
    let wishes = json!({ "portMappings": [{ "hostPort": 8081, "containerPort": 8080, "protocol": "tcp" }] });
    let result = answer(&node.cni_with("ADD", &pod, "1.1.0", with(&wishes)));
    answer_nothing(&check(&node, &pod, &wishes, &result));
    // Somebody took it away; nobody puts it back here.
    sh(&node.netns, "nft flush map inet podnet hostport4");
    let gone = check(&node, &pod, &wishes, &result);
    assert_eq!(error_code(&gone), 101);
    assert!(
        String::from_utf8_lossy(&gone.stdout).contains("tcp 0.0.0.0:8081"),
        "{gone:?}"
    );
}

#[test]
fn bandwidth_is_limited_in_both_directions() {
    limits_of(WiringName::Ptp);
}

pub(crate) fn limits_of(wiring: WiringName) {
    const RATE: u64 = 16_000_000;
    const BYTES: usize = 1_500_000;
    let node = Node::wired(wiring);
    let (limited, other) = (Pod::new("limited"), Pod::new("other"));
    let burst = 800_000;
    let wishes = json!({ "bandwidth": {
        "ingressRate": RATE, "ingressBurst": burst, "egressRate": RATE / 2, "egressBurst": burst,
    } });
    let result = answer(&node.cni_with("ADD", &limited, "1.1.0", with(&wishes)));
    let here = addresses(&result)[0];
    let there = addresses(&answer(&node.cni("ADD", &other, "1.1.0", None)))[0];
    answer_nothing(&check(&node, &limited, &wishes, &result));
    // What is more than the burst cannot have gone quicker than the rate; how much slower does not matter here.
    let least = |rate: u64| Duration::from_secs_f64((BYTES as f64 * 8.0 - burst as f64) / rate as f64 * 0.9);
    let ingress = transfer(&other.netns, &limited.netns, here, BYTES);
    assert!(
        ingress >= least(RATE),
        "{ingress:?} to receive, {:?} at least",
        least(RATE)
    );
    let egress = transfer(&limited.netns, &other.netns, there, BYTES);
    assert!(
        egress >= least(RATE / 2),
        "{egress:?} to send, {:?} at least",
        least(RATE / 2)
    );

    answer_nothing(&node.cni("DEL", &limited, "1.1.0", None));
    answer_nothing(&node.cni("DEL", &other, "1.1.0", None));
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn check_sees_a_limit_that_is_changed() {
    let node = Node::start();
    let limited = Pod::new("limited");
    let wishes = json!({ "bandwidth": { "ingressRate": 16_000_000, "egressRate": 8_000_000 } });
    let result = answer(&node.cni_with("ADD", &limited, "1.1.0", with(&wishes)));
    answer_nothing(&check(&node, &limited, &wishes, &result));
    sh(&limited.netns, "tc qdisc del dev eth0 root");
    let changed = check(&node, &limited, &wishes, &result);
    assert_eq!(error_code(&changed), 101);
    assert!(
        String::from_utf8_lossy(&changed.stdout).contains("egress limit"),
        "{changed:?}"
    );
    let link = result["interfaces"][0]["name"].as_str().unwrap();
    sh(
        &node.netns,
        &format!("tc qdisc change dev {link} root tbf rate 1gbit burst 100k limit 200k"),
    );
    let changed = check(&node, &limited, &wishes, &result);
    assert!(
        String::from_utf8_lossy(&changed.stdout).contains("ingress limit"),
        "{changed:?}"
    );
}

/// How long so many bytes take from one pod to another.
pub(crate) fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, bytes: usize) -> Duration {
    let server = SocketAddr::new(address, 9000);
    let listener = to.run(|| TcpListener::bind(server).unwrap()).unwrap();
    let mut client = from.run(|| TcpStream::connect(server).unwrap()).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let begin = Instant::now();
    let sending = std::thread::spawn(move || client.write_all(&vec![7; bytes]).unwrap());
    let received = std::io::copy(&mut (&mut stream).take(bytes as u64), &mut std::io::sink()).unwrap();
    assert_eq!(received, bytes as u64);
    sending.join().unwrap();
    begin.elapsed()
}
