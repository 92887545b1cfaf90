//! What a pod can have beside an address: a bridge, limits, host ports, settings, routes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use podnet_agent::cni_server::Wiring;
use podnet_linux::netlink::{Netlink, RouteFilter};
use podnet_linux::ns::Namespace;
use podnet_linux::sysctl;
use serde_json::{Value, json};

use crate::node::{self, Node, Pod, answer, error_code};
use crate::{addresses, answer_nothing};

fn sh(place: &Namespace, script: &str) {
    let output = place.run(|| Command::new("sh").args(["-ec", script]).output().unwrap());
    let output = output.unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

fn with(wishes: &Value) -> Value {
    json!({ "runtimeConfig": wishes })
}

fn check(node: &Node, pod: &Pod, wishes: &Value, result: &Value) -> std::process::Output {
    let more = json!({ "runtimeConfig": wishes, "prevResult": result });
    node.cni_with("CHECK", pod, "1.1.0", more)
}

#[test]
fn a_bridge_joins_pods_with_each_other_and_their_node() {
    let mut node = Node::wired(Wiring::Bridged);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let results = [&one, &two].map(|pod| answer(&node.cni("ADD", pod, "1.1.0", None)));
    assert_eq!(results[0]["ips"][0]["gateway"], "10.244.1.1");
    assert!(results[0]["ips"][0]["address"].as_str().unwrap().ends_with("/24"));
    assert_eq!(results[0]["ips"][1]["gateway"], "fd00:10:244:1::1");
    let (first, second) = (addresses(&results[0]), addresses(&results[1]));
    for family in 0..2 {
        let (from, to) = (first[family], second[family]);
        let server = SocketAddr::new(to, 8080);
        assert_eq!(node::connect(&one.netns, &two.netns, server), from, "pod to pod");
        let gateway: IpAddr = ["10.244.1.1", "fd00:10:244:1::1"][family].parse().unwrap();
        assert_eq!(
            node::connect(&node.netns, &two.netns, server),
            gateway,
            "node to pod"
        );
        let server = SocketAddr::new(node.addresses()[family], 8080);
        assert_eq!(
            node::connect(&one.netns, &node.netns, server),
            from,
            "pod to node"
        );
    }
    // Between two pods no router is on the way: one knows the other as a neighbour.
    let other = format!("ip neigh show dev eth0 | grep -q '{} lladdr'", second[0]);
    sh(&one.netns, &other);
    node.stop();
    node.restart();
    for (pod, result) in [&one, &two].into_iter().zip(&results) {
        answer_nothing(&node.cni("CHECK", pod, "1.1.0", Some(result)));
        answer_nothing(&node.cni("DEL", pod, "1.1.0", None));
    }
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
    let known = node.netns.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let bridge = netlink.link("cbr0").unwrap().unwrap();
        let known = netlink.neighbours(Some(bridge.index)).unwrap();
        known.into_iter().filter(|known| known.permanent).count()
    });
    assert_eq!(known.unwrap(), 0, "the bridge knows no pod any more");
}

#[test]
fn a_pod_on_a_bridge_reaches_itself_through_a_host_port() {
    let node = Node::wired(Wiring::Bridged);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let wishes = json!({ "portMappings": [{ "hostPort": 8081, "containerPort": 8080, "protocol": "tcp" }] });
    let own = addresses(&answer(&node.cni_with("ADD", &one, "1.1.0", with(&wishes))));
    answer(&node.cni("ADD", &two, "1.1.0", None));
    for (family, to) in ["172.30.0.10:8081", "[fd30::a]:8081"].into_iter().enumerate() {
        let serving = SocketAddr::new(own[family], 8080);
        for from in [&one, &two] {
            through(&from.netns, to, &one.netns, serving);
        }
        through(&node.netns, to, &one.netns, serving);
    }
    through(
        &node.netns,
        "127.0.0.1:8081",
        &one.netns,
        SocketAddr::new(own[0], 8080),
    );
}

/// Connects to `to`, behind which `server` is at `at`.
fn through(from: &Namespace, to: &str, server: &Namespace, at: SocketAddr) {
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
    let mut node = Node::start();
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
    // Somebody took it away; nobody puts it back here.
    sh(&node.netns, "nft flush map inet podnet hostport4");
    let gone = check(&node, &one, &wishes, &result);
    assert_eq!(error_code(&gone), 101);
    assert!(
        String::from_utf8_lossy(&gone.stdout).contains("tcp 0.0.0.0:8081"),
        "{gone:?}"
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
fn limits_hold_in_both_directions_and_check_sees_them() {
    const RATE: u64 = 16_000_000;
    const BYTES: usize = 1_500_000;
    let node = Node::start();
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
    answer_nothing(&node.cni("DEL", &limited, "1.1.0", None));
    answer_nothing(&node.cni("DEL", &other, "1.1.0", None));
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

/// How long so many bytes take from one pod to another.
fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, bytes: usize) -> Duration {
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

#[test]
fn a_network_gives_its_pods_settings_and_routes() {
    let node = Node::start();
    let pod = Pod::new("tuned");
    let more = json!({
        "sysctl": { "net.core.somaxconn": "77", "net.ipv4.conf.IFNAME.arp_filter": "1" },
        "routes": [{ "dst": "192.0.2.0/24" }, { "dst": "198.51.100.0/24", "gw": "169.254.1.1" }, { "dst": "2001:db8::/32" }],
    });
    let result = answer(&node.cni_with("ADD", &pod, "1.1.0", more));
    assert_eq!(result["routes"].as_array().unwrap().len(), 5);
    let seen = pod.netns.run(|| {
        let routes = Netlink::open().unwrap().routes(RouteFilter::default()).unwrap();
        let to = |text: &str| {
            let route = routes
                .iter()
                .find(|route| route.destination == text.parse().unwrap());
            route.and_then(|route| route.via).unwrap().to_string()
        };
        let routes = ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"].map(to);
        let setting = |key| sysctl::get(key).unwrap();
        (
            routes,
            setting("net/core/somaxconn"),
            setting("net/ipv4/conf/eth0/arp_filter"),
        )
    });
    let (routes, queue, filter) = seen.unwrap();
    assert_eq!(routes, ["169.254.1.1", "169.254.1.1", "fe80::1"]);
    assert_eq!((queue.as_str(), filter.as_str()), ("77", "1"));
    answer_nothing(&node.cni("CHECK", &pod, "1.1.0", Some(&result)));

    let wrong = node.cni_with(
        "ADD",
        &Pod::new("wrong"),
        "1.1.0",
        json!({ "sysctl": { "kernel.panic": "1" } }),
    );
    assert_eq!(error_code(&wrong), 7);
    let none = node.cni_with(
        "ADD",
        &Pod::new("none"),
        "1.1.0",
        json!({ "sysctl": { "net.no.such": "1" } }),
    );
    assert_eq!(error_code(&none), 100);
    assert!(
        String::from_utf8_lossy(&none.stdout).contains("net/no/such"),
        "{none:?}"
    );
    assert_eq!(node.leases(), 1, "a failed ADD leaves nothing");
}
