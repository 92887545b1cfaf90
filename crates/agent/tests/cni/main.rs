//! The real plugin executable against a real server, in network namespaces made here: what a runtime does.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod addresses;
mod args;
mod bridge;
mod crash;
mod input;
mod linux_6_12;
mod node;
mod orphans;
mod policies;
mod settings;
mod tunnel;
mod verbs;
mod wiring;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use node::{Node, Pod, answer, error_code};
use podnet_agent::cni_server::Readiness;
use podnet_linux::netlink::Netlink;
use serde_json::{Value, json};

pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    result["ips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ip| {
            ip["address"]
                .as_str()
                .unwrap()
                .split('/')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect()
}

#[test]
fn add_check_and_del_work_in_every_version_and_answer_in_it() {
    let node = Node::start();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod::new(&format!("version-{version}"));
        let result = answer(&node.cni("ADD", &pod, version, None));
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        assert_eq!(
            result["interfaces"][1]["sandbox"],
            pod.netns_path().to_str().unwrap()
        );
        assert_eq!(result["ips"].as_array().unwrap().len(), 2);
        assert_eq!(result["ips"][0].get("version").is_some(), version < "1.0.0");
        assert_eq!(result["interfaces"][1].get("mtu").is_some(), version >= "1.1.0");
        assert_eq!(result["dns"]["nameservers"], json!(["10.96.0.10"]));
        assert_eq!(
            result["routes"],
            json!([
                { "dst": "0.0.0.0/0", "gw": "169.254.1.1" }, { "dst": "::/0", "gw": "fe80::1" }
            ])
        );

        let again = node.cni("ADD", &pod, version, None);
        assert_eq!(error_code(&again), 4, "the interface exists");
        let check = node.cni("CHECK", &pod, version, Some(&result));
        if version < "0.4.0" {
            assert_eq!(error_code(&check), 1);
        } else {
            assert!(check.status.success() && check.stdout.is_empty(), "{check:?}");
        }
        for _ in 0..2 {
            let del = node.cni("DEL", &pod, version, Some(&result));
            assert!(del.status.success() && del.stdout.is_empty(), "{del:?}");
        }
        node.settle();
    }
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn a_pod_sees_its_own_address_as_other_pods_and_its_node_do() {
    let node = Node::start();
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let first = addresses(&answer(&node.cni("ADD", &one, "1.0.0", None)));
    let second = addresses(&answer(&node.cni("ADD", &two, "1.0.0", None)));
    for family in 0..2 {
        let (from, to) = (first[family], second[family]);
        // At once, with nothing sent before: the carrier, the routes and the neighbours are there.
        assert_eq!(
            node::connect(&one.netns, &two.netns, SocketAddr::new(to, 8080)),
            from,
            "pod to pod"
        );
        assert_eq!(
            node::connect(&two.netns, &one.netns, SocketAddr::new(from, 8080)),
            to,
            "and back"
        );
        let node_address = node.addresses()[family];
        assert_eq!(
            node::connect(&one.netns, &node.netns, SocketAddr::new(node_address, 8080)),
            from,
            "pod to node"
        );
        assert_eq!(
            node::connect(&node.netns, &one.netns, SocketAddr::new(from, 8080)),
            node_address,
            "node to pod"
        );
        one.netns.run(|| node::ping(to)).unwrap();
        two.netns.run(|| node::ping(from)).unwrap();
    }
    let inside = one
        .netns
        .run(|| Netlink::open().unwrap().link("eth0").unwrap().unwrap())
        .unwrap();
    assert_eq!(inside.mtu, 1450);
    let lo = one
        .netns
        .run(|| Netlink::open().unwrap().link("lo").unwrap().unwrap())
        .unwrap();
    assert!(lo.up);
    for pod in [&one, &two] {
        answer_nothing(&node.cni("DEL", pod, "1.0.0", None));
    }
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

pub(crate) fn answer_nothing(output: &std::process::Output) {
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
}

/// Whether the kernel takes packets to the calling thread's pod.
fn is_reachable() -> bool {
    let mut netlink = Netlink::open().unwrap();
    let eth0 = netlink.link("eth0").unwrap().unwrap();
    eth0.running && !netlink.is_tentative(eth0.index).unwrap()
}

#[test]
fn a_hundred_and_ten_pods_at_once_after_a_reboot_need_no_retry() {
    let node = Node::rebooted(110);
    assert_eq!(node.leases(), 0, "an earlier boot's leases are over");
    let pods: Vec<Pod> = (0..110).map(|n| Pod::new(&format!("many-{n}"))).collect();
    let begin = Instant::now();
    let results: Vec<Value> = std::thread::scope(|scope| {
        let adds: Vec<_> = pods
            .iter()
            .map(|pod| {
                scope.spawn(|| {
                    let result = answer(&node.cni("ADD", pod, "1.1.0", None));
                    assert!(pod.netns.run(is_reachable).unwrap(), "when ADD answers");
                    result
                })
            })
            .collect();
        adds.into_iter().map(|add| add.join().unwrap()).collect()
    });
    println!("110 ADDs at once took {:?}", begin.elapsed());
    let mut all: Vec<IpAddr> = results.iter().flat_map(addresses).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 220, "no address twice");
    for (pod, result) in pods.iter().zip(&results) {
        answer_nothing(&node.cni("CHECK", pod, "1.1.0", Some(result)));
    }
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| answer_nothing(&node.cni("DEL", pod, "1.1.0", None)));
        }
    });
    println!("110 DELs at once took {:?}", begin.elapsed());
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn one_add_and_one_del_are_quick() {
    let node = Node::start();
    let mut took = Vec::new();
    for n in 0..30 {
        let pod = Pod::new(&format!("timed-{n}"));
        let begin = Instant::now();
        answer(&node.cni("ADD", &pod, "1.0.0", None));
        let add = begin.elapsed();
        let begin = Instant::now();
        answer_nothing(&node.cni("DEL", &pod, "1.0.0", None));
        took.push((add, begin.elapsed()));
        node.settle();
    }
    took.sort();
    let dels = {
        let mut dels: Vec<Duration> = took.iter().map(|(_, del)| *del).collect();
        dels.sort();
        dels
    };
    println!(
        "ADD p50 {:?} p90 {:?}; DEL p50 {:?} p90 {:?}",
        took[15].0, took[27].0, dels[15], dels[27]
    );
}

#[test]
fn without_an_agent_add_fails_at_once_and_del_does_its_work() {
    let mut node = Node::start();
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let result = answer(&node.cni("ADD", &one, "1.1.0", None));
    answer(&node.cni("ADD", &two, "1.1.0", None));
    node.stop();

    let begin = Instant::now();
    let add = node.cni("ADD", &Pod::new("three"), "1.1.0", None);
    assert_eq!(error_code(&add), 11);
    assert!(String::from_utf8_lossy(&add.stdout).contains("agent"), "{add:?}");
    // At once means without waiting for any time-out of the plugin's, the shortest of which is longer.
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(error_code(&node.bare("STATUS", "1.1.0", json!({}))), 50);
    answer_nothing(&node.cni("CHECK", &one, "1.1.0", Some(&result)));
    for _ in 0..2 {
        answer_nothing(&node.cni("DEL", &one, "1.1.0", None));
    }
    assert!(
        one.netns
            .run(|| Netlink::open().unwrap().link("eth0").unwrap())
            .unwrap()
            .is_none()
    );
    assert_eq!(error_code(&node.cni("CHECK", &one, "1.1.0", Some(&result))), 101);
    // The other still has its link and its lease.
    assert_eq!(node.pod_links(), 1);

    node.restart();
    node.settle();
    assert_eq!(node.leases(), 1);
    let gone = addresses(&result);
    let next = addresses(&answer(&node.cni("ADD", &Pod::new("four"), "1.1.0", None)));
    assert_ne!(gone, next, "the address rests first");
}

#[test]
fn a_delete_noted_while_an_agent_is_starting_is_honoured() {
    let node = Node::start();
    let pod = Pod::new("noted");
    answer(&node.cni("ADD", &pod, "1.0.0", None));
    // What the plugin does when it finds no agent, while one has the lease in memory.
    let wrong_socket = json!({ "socket": "/nonexistent/cni.sock" });
    answer_nothing(&node.cni_with("DEL", &pod, "1.0.0", wrong_socket));
    node.wait_until("the agent takes note", || {
        node.leases() == 0 && node.leftovers().is_empty()
    });
}

#[test]
fn a_leak_is_found_when_a_container_is_gone() {
    let node = Node::start();
    let pod = Pod::new("vanishing");
    answer(&node.cni("ADD", &pod, "1.0.0", None));
    drop(pod);
    node.wait_until("the lease is freed", || node.leftovers().is_empty());
}

#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::start();
    let pod = Pod::new("taken");
    pod.netns
        .run(|| {
            let taken = podnet_linux::netlink::NewLink::veth("eth0", "other", None);
            Netlink::open().unwrap().request(taken.create()).unwrap();
        })
        .unwrap();
    let output = node.cni("ADD", &pod, "1.0.0", None);
    assert_eq!(error_code(&output), 4);
    assert!(String::from_utf8_lossy(&output.stdout).contains("already has an interface called eth0"));
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
    // Its DEL, which the runtime will send, must not take what is not ours.
    answer_nothing(&node.cni("DEL", &pod, "1.0.0", None));
    assert!(
        pod.netns
            .run(|| Netlink::open().unwrap().link("eth0").unwrap())
            .unwrap()
            .is_some()
    );

    let no_namespace = node.cni_in("ADD", "c1", "/etc/passwd", "1.0.0");
    assert_eq!(error_code(&no_namespace), 8, "{no_namespace:?}");
    assert_eq!(error_code(&node.cni_in("ADD", "c1", "/nonexistent", "1.0.0")), 3);
    assert_eq!(
        error_code(&node.cni_in("ADD", "c1", &node.netns_path(), "1.0.0")),
        8
    );
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn status_is_50_and_add_11_with_the_cause_when_not_ready_or_no_address_is_left() {
    let node = Node::start();
    node.set(Readiness::NotReady("no range yet".into()));
    let pod = Pod::new("early");
    let output = node.cni("ADD", &pod, "1.1.0", None);
    assert_eq!(error_code(&output), 11);
    assert!(String::from_utf8_lossy(&output.stdout).contains("no range yet"));
    assert_eq!(error_code(&node.bare("STATUS", "1.1.0", json!({}))), 50);

    node.set_ranges(&["10.244.1.7/32"]);
    answer_nothing(&node.bare("STATUS", "1.1.0", json!({})));
    let result = answer(&node.cni("ADD", &pod, "1.1.0", None));
    assert_eq!(addresses(&result), ["10.244.1.7".parse::<IpAddr>().unwrap()]);
    let full = node.cni("ADD", &Pod::new("late"), "1.1.0", None);
    assert_eq!(error_code(&full), 11);
    let text = String::from_utf8_lossy(&full.stdout);
    let exhausted = "no address is left in the node's range 10.244.1.7/32: all 1 are in use; most (1) by pods of namespace default";
    assert!(text.contains(exhausted), "{text}");
    assert_eq!(error_code(&node.bare("STATUS", "1.1.0", json!({}))), 50);
    answer_nothing(&node.cni("DEL", &pod, "1.1.0", None));
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn a_changed_pod_fails_its_check() {
    let node = Node::start();
    let pod = Pod::new("changed");
    let result = answer(&node.cni("ADD", &pod, "1.0.0", None));
    assert_eq!(
        error_code(&node.cni("CHECK", &pod, "1.0.0", None)),
        7,
        "prevResult is missing"
    );
    pod.netns
        .run(|| {
            let mut netlink = Netlink::open().unwrap();
            let routes = netlink.routes(Default::default()).unwrap();
            let default = routes
                .iter()
                .find(|route| route.destination.prefix_len() == 0)
                .unwrap();
            netlink.request(default.delete()).unwrap();
        })
        .unwrap();
    let output = node.cni("CHECK", &pod, "1.0.0", Some(&result));
    assert_eq!(error_code(&output), 101);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("no route to 0.0.0.0/0"),
        "{output:?}"
    );
}

#[test]
fn garbage_collection_frees_what_is_not_named_and_an_empty_list_frees_everything() {
    let node = Node::start();
    let (alive, dead) = (Pod::new("alive"), Pod::new("dead"));
    for pod in [&alive, &dead] {
        answer(&node.cni("ADD", pod, "1.1.0", None));
    }
    let valid = json!([{ "containerID": alive.id, "ifname": "eth0" }]);
    answer_nothing(&node.bare("GC", "1.1.0", json!({ "cni.dev/valid-attachments": valid })));
    node.settle();
    assert_eq!((node.leases(), node.pod_links()), (1, 1));
    assert_eq!(error_code(&node.bare("GC", "1.1.0", json!({}))), 7);
    answer_nothing(&node.bare(
        "GC",
        "1.1.0",
        json!({ "name": "another", "cni.dev/valid-attachments": [] }),
    ));
    node.settle();
    assert_eq!(node.leases(), 1, "another network's garbage collection");
    answer_nothing(&node.bare("GC", "1.1.0", json!({ "cni.dev/valid-attachments": [] })));
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn an_add_again_right_after_a_del_of_the_same_container() {
    let node = Node::start();
    let pod = Pod::new("again");
    for _ in 0..3 {
        answer(&node.cni("ADD", &pod, "1.0.0", None));
        answer_nothing(&node.cni("DEL", &pod, "1.0.0", None));
    }
    node.settle();
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[test]
fn the_server_restarts_under_running_pods() {
    let mut node = Node::start();
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let first = answer(&node.cni("ADD", &one, "1.0.0", None));
    node.stop();
    node.restart();
    let second = answer(&node.cni("ADD", &two, "1.0.0", None));
    assert_ne!(addresses(&first), addresses(&second));
    answer_nothing(&node.cni("CHECK", &one, "1.0.0", Some(&first)));
    let to = SocketAddr::new(addresses(&second)[0], 8080);
    assert_eq!(node::connect(&one.netns, &two.netns, to), addresses(&first)[0]);
}
