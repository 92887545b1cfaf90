//! A pod's policies are in force before its network is there.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use podnet_cni::WiringName;
use podnet_core::cluster::{
    Direction, Existing, NetworkPolicy, NetworkPolicyRule, NodeName, ObjectName, Selector,
};
use serde_json::{Value, json};

use crate::addresses;
use crate::node::{Node, Pod, answer, error_code};

/// About pods with the label app=closed: nothing in, nothing out; and about those with app=open: everything.
fn policies(node: &mut Node) {
    let policy = |rules: Vec<NetworkPolicyRule>, pods: &str| NetworkPolicy {
        pods: Ok(pods.parse::<Selector>().unwrap()),
        types: Some(Ok([Direction::Ingress, Direction::Egress].into())),
        ingress: Some(rules.clone()),
        egress: Some(rules),
        existing: Ok(Existing::Cut),
    };
    node.cluster.send_modify(|cluster| {
        for (name, rules) in [("closed", vec![]), ("open", vec![NetworkPolicyRule::default()])] {
            cluster.network_policies.insert(
                ObjectName::new("default", name),
                Ok(policy(rules, &format!("app={name}"))),
            );
        }
    });
    // Whoever starts has seen them before anything else.
    node.restart();
}

/// The API knows a pod, and not its addresses.
fn know(node: &Node, pod: &Pod, app: &str) {
    let name = ObjectName::new("default", pod.id.clone());
    let mut object = podnet_core::cluster::Pod::new(name.clone());
    object.node = Some(NodeName::new("node1").unwrap());
    object.uids = vec![format!("u-{}", pod.id)];
    object.labels = [("app".to_owned(), app.to_owned())].into();
    node.cluster
        .send_modify(|cluster| _ = cluster.pods.insert(name, Ok(object)));
}

#[test]
fn a_pod_that_nobody_knows_yet_is_not_added_where_there_are_policies() {
    let mut node = Node::start();
    let early = Pod::new("early");
    answer(&node.cni("ADD", &early, "1.1.0", None));
    policies(&mut node);
    let pod = Pod::new("web");
    let refused = node.cni("ADD", &pod, "1.1.0", None);
    assert_eq!(error_code(&refused), 11, "try again later");
    let text = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(
        text.contains("default/web") && text.contains("has not been seen yet"),
        "{text}"
    );
    node.settle();
    assert_eq!(node.pod_links(), 1);
    know(&node, &pod, "closed");
    answer(&node.cni("ADD", &pod, "1.1.0", None));
}

#[test]
fn a_container_that_no_kubernetes_made_is_not_policed() {
    let mut node = Node::start();
    policies(&mut node);
    let container = Pod::new("container");
    let args = "K8S_POD_UID=";
    answer(&node.cni_args("ADD", &container, args, json!({})));
}

fn nft(node: &Node, command: &str) {
    let output = node
        .netns
        .run(|| Command::new("nft").arg(command).output().unwrap())
        .unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
}

#[test]
fn a_check_fails_and_names_the_policy_that_is_not_in_force() {
    let mut node = Node::start();
    policies(&mut node);
    let (pod, other) = (Pod::new("checked"), Pod::new("other"));
    know(&node, &pod, "closed");
    know(&node, &other, "open");
    let added: Value = answer(&node.cni("ADD", &pod, "1.1.0", None));
    let of_other: Value = answer(&node.cni("ADD", &other, "1.1.0", None));
    let check = node.cni("CHECK", &pod, "1.1.0", Some(&added));
    assert!(check.status.success(), "{check:?}");
    let address = addresses(&added)[0];
    nft(
        &node,
        &format!("delete element inet podnet egress4 {{ {address} }}"),
    );
    let check = node.cni("CHECK", &pod, "1.1.0", Some(&added));
    assert_eq!(error_code(&check), 101, "{check:?}");
    let text = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(
        text.contains("of container checked") && text.contains(&address.to_string()),
        "{text}"
    );
    let check = node.cni("CHECK", &other, "1.1.0", Some(&of_other));
    assert!(check.status.success(), "another pod's gap: {check:?}");
}

/// The client sends before there is a link, and never stops.
#[test]
fn not_one_packet_of_a_new_pod_passes_that_its_policies_deny() {
    for wiring in [WiringName::Ptp, WiringName::Bridge] {
        not_one_packet_passes(wiring);
    }
}

fn not_one_packet_passes(wiring: WiringName) {
    let mut node = Node::wired(wiring);
    policies(&mut node);
    let server = Pod::new("server");
    know(&node, &server, "open");
    let to = addresses(&answer(&node.cni("ADD", &server, "1.1.0", None)))[0];
    let socket = server.netns.run(|| UdpSocket::bind((to, 9)).unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    for number in 0..30 {
        let pod = Pod::new(&format!("closed-{number}"));
        know(&node, &pod, "closed");
        let stop = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                pod.netns
                    .run(|| {
                        let mut sent = 0;
                        let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                        while !stop.load(Ordering::Relaxed) || sent == 0 {
                            sent += u32::from(client.send_to(b"denied", (to, 9)).is_ok());
                        }
                        sent
                    })
                    .unwrap()
            });
            answer(&node.cni("ADD", &pod, "1.1.0", None));
            stop.store(true, Ordering::Relaxed);
            client.join().unwrap()
        });
        assert!(sent > 0);
        let del = node.cni("DEL", &pod, "1.1.0", None);
        assert!(del.status.success(), "{del:?}");
    }
    let mut buffer = [0; 16];
    assert!(
        socket.recv_from(&mut buffer).is_err(),
        "a packet passed, with {wiring:?}"
    );
}

#[test]
fn a_new_pods_first_connection_passes_where_its_policies_allow_it() {
    let mut node = Node::start();
    policies(&mut node);
    let server = Pod::new("server");
    know(&node, &server, "open");
    let to = SocketAddr::new(
        addresses(&answer(&node.cni("ADD", &server, "1.1.0", None)))[1],
        80,
    );
    let listener = server.netns.run(|| TcpListener::bind(to).unwrap()).unwrap();
    for number in 0..20 {
        let pod = Pod::new(&format!("open-{number}"));
        know(&node, &pod, "open");
        answer(&node.cni("ADD", &pod, "1.1.0", None));
        let patience = Duration::from_secs(20);
        let connected = pod
            .netns
            .run(|| TcpStream::connect_timeout(&to, patience))
            .unwrap();
        connected.unwrap_or_else(|error| panic!("{number}: {error}"));
        listener.accept().unwrap();
    }
}
