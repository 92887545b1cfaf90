//! What NetworkPolicies mean, statement by statement.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use podnet_core::cluster::{
    Direction, Family, NetworkPolicy, NetworkPolicyPort, ObjectName, PolicyPort, Protocol, Wired,
};
use podnet_linux::sysctl;

use super::{Who, World, block, namespaces, pods, policy, range, rule, selector, tcp};

fn ingress(pods: &str, rules: Vec<podnet_core::cluster::NetworkPolicyRule>) -> NetworkPolicy {
    NetworkPolicy {
        ingress: Some(rules),
        ..policy(pods)
    }
}

fn egress(pods: &str, rules: Vec<podnet_core::cluster::NetworkPolicyRule>) -> NetworkPolicy {
    NetworkPolicy {
        types: Some(Ok([Direction::Egress].into())),
        egress: Some(rules),
        ..policy(pods)
    }
}

fn named(protocol: Protocol) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol),
        port: Some(PolicyPort::Named("http".into())),
    }
}

#[test]
fn a_block_matches_pods_too_and_another_rule_may_allow_its_hole_again() {
    let mut world = World::of(&["a"], 3);
    // Pods 0 and 2 are on node 0, pod 1 is on node 1.
    let all = || {
        vec![
            block("10.244.0.0/16", &["10.244.0.0/24"]),
            block("fd00:10:244::/48", &["fd00:10:244:0::/64"]),
        ]
    };
    world.set([("a", ingress("app=x", vec![rule(all(), vec![])]))]);
    world.reach(Who::Pod(1), 0, |_| true);
    world.reach(Who::Pod(2), 0, |_| false);
    let again = rule(vec![block("10.244.0.0/16", &[])], vec![tcp(80, 80)]);
    world.set([("a", ingress("app=x", vec![rule(all(), vec![]), again]))]);
    world.reach(Who::Pod(2), 0, |probe| {
        probe.family == Family::V4 && probe.protocol == Protocol::Tcp && probe.port == 80
    });
}

#[test]
fn a_named_port_is_the_destinations_own_and_a_missing_protocol_is_tcp() {
    let mut world = World::of(&["a"], 3);
    let missing = NetworkPolicyPort {
        protocol: None,
        ..named(Protocol::Tcp)
    };
    // `http` is 80 in pod 0 and 81 in the others.
    world.set([("a", ingress("", vec![rule(vec![], vec![missing])]))]);
    world.reach(Who::Pod(2), 0, |probe| {
        probe.protocol == Protocol::Tcp && probe.port == 80
    });
    world.reach(Who::Pod(2), 1, |probe| {
        probe.protocol == Protocol::Tcp && probe.port == 81
    });
    world.set([(
        "a",
        egress("app=z", vec![rule(vec![pods("")], vec![named(Protocol::Udp)])]),
    )]);
    world.reach(Who::Pod(2), 0, |probe| {
        probe.protocol == Protocol::Udp && probe.port == 80
    });
    world.reach(Who::Pod(2), 1, |probe| {
        probe.protocol == Protocol::Udp && probe.port == 81
    });
}

#[test]
fn a_range_of_ports_ends_where_it_says() {
    let mut world = World::of(&["a"], 2);
    world.set([("a", ingress("app=x", vec![rule(vec![], vec![tcp(81, 8079)])]))]);
    world.reach(Who::Pod(1), 0, |probe| {
        probe.protocol == Protocol::Tcp && probe.port == 81
    });
    world.set([("a", ingress("app=x", vec![rule(vec![], vec![tcp(81, 8080)])]))]);
    world.reach(Who::Pod(1), 0, |probe| {
        probe.protocol == Protocol::Tcp && probe.port >= 81
    });
    world.set([("a", ingress("app=x", vec![rule(vec![], vec![tcp(1, 65535)])]))]);
    world.reach(Who::Pod(1), 0, |probe| probe.protocol == Protocol::Tcp);
}

#[test]
fn protocols_are_separate_and_one_that_is_allowed_isolates_for_the_others() {
    let mut world = World::of(&["a"], 2);
    for (protocol, allowed) in [(Protocol::Sctp, None), (Protocol::Udp, Some(Protocol::Udp))] {
        let every = NetworkPolicyPort {
            protocol: Some(protocol),
            port: None,
        };
        world.set([("a", ingress("app=x", vec![rule(vec![], vec![every])]))]);
        world.reach(Who::Pod(1), 0, |probe| Some(probe.protocol) == allowed);
    }
}

#[test]
fn missing_policy_types_are_ingress_and_egress_only_with_an_egress_section() {
    let mut world = World::of(&["a"], 2);
    world.set([("a", policy("app=x"))]);
    world.reach(Who::Pod(1), 0, |_| false);
    world.reach(Who::Pod(0), 1, |_| true);
    let both = NetworkPolicy {
        egress: Some(Vec::new()),
        ..policy("app=x")
    };
    world.set([("a", both)]);
    world.reach(Who::Pod(1), 0, |_| false);
    world.reach(Who::Pod(0), 1, |_| false);
}

#[test]
fn empty_is_not_absent() {
    let mut world = World::of(&["a", "b"], 2);
    let (a0, a1, b0) = (world.pod("a", 0), world.pod("a", 1), world.pod("b", 0));
    // No selector's labels: every pod of the namespace. No rules: nobody.
    world.set([("a", ingress("", vec![]))]);
    world.reach(Who::Pod(b0), a0, |_| false);
    world.reach(Who::Pod(a0), a1, |_| false);
    world.reach(Who::Pod(a0), b0, |_| true);
    // A rule without peers: everybody. Without ports: every port.
    world.set([("a", ingress("", vec![rule(vec![], vec![])]))]);
    world.reach(Who::Pod(b0), a0, |_| true);
    world.set([("a", ingress("", vec![rule(vec![], vec![tcp(80, 80)])]))]);
    world.reach(Who::Pod(b0), a0, |probe| {
        probe.protocol == Protocol::Tcp && probe.port == 80
    });
}

#[test]
fn two_selectors_in_a_peer_are_and_two_peers_are_or() {
    let mut world = World::of(&["a", "b"], 2);
    let [a0, a1, b0, b1] =
        [("a", 0), ("a", 1), ("b", 0), ("b", 1)].map(|(space, name)| world.pod(space, name));
    let both = podnet_core::cluster::NetworkPolicyPeer::Pods {
        namespaces: Some(selector("team=b")),
        pods: Some(selector("app=y")),
    };
    world.set([("a", ingress("app=x", vec![rule(vec![both], vec![])]))]);
    for (from, allowed) in [(a1, false), (b0, false), (b1, true)] {
        world.reach(Who::Pod(from), a0, |_| allowed);
    }
    world.set([(
        "a",
        ingress(
            "app=x",
            vec![rule(vec![namespaces("team=b"), pods("app=y")], vec![])],
        ),
    )]);
    for from in [a1, b0, b1] {
        world.reach(Who::Pod(from), a0, |_| true);
    }
    // Pods' labels alone are about the policy's own namespace.
    world.set([("a", ingress("app=x", vec![rule(vec![pods("app=y")], vec![])]))]);
    for (from, allowed) in [(a1, true), (b0, false), (b1, false)] {
        world.reach(Who::Pod(from), a0, |_| allowed);
    }
}

#[test]
fn a_namespace_is_selected_by_its_name() {
    let mut world = World::of(&["a", "b"], 1);
    world.set([(
        "a",
        ingress(
            "",
            vec![rule(vec![namespaces("kubernetes.io/metadata.name=b")], vec![])],
        ),
    )]);
    world.reach(Who::Pod(1), 0, |_| true);
    world.set([(
        "a",
        ingress(
            "",
            vec![rule(vec![namespaces("kubernetes.io/metadata.name=a")], vec![])],
        ),
    )]);
    world.reach(Who::Pod(1), 0, |_| false);
}

#[test]
fn labels_of_pods_and_namespaces_change_what_running_pods_may() {
    let mut world = World::of(&["a", "b"], 1);
    world.set([(
        "a",
        ingress("app=x", vec![rule(vec![namespaces("team=b")], vec![])]),
    )]);
    world.reach(Who::Pod(1), 0, |_| true);
    let renamed = [("team".to_owned(), "c".to_owned())].into();
    let namespace = podnet_core::cluster::Namespace::new("b", renamed);
    world.lab.cluster.namespaces.insert("b".into(), namespace);
    world.apply();
    world.reach(Who::Pod(1), 0, |_| false);
    world.object(0).labels.insert("app".into(), "other".into());
    world.apply();
    world.reach(Who::Pod(1), 0, |_| true);
}

#[test]
fn a_node_and_its_own_pods_always_reach_each_other_and_its_hosts_pods_are_not_isolated() {
    let mut world = World::of(&["a"], 2);
    let nothing = NetworkPolicy {
        egress: Some(Vec::new()),
        ..policy("")
    };
    world.set([("a", nothing)]);
    // Pod 0 is on node 0, pod 1 on node 1. A pod on its node's network is the node.
    world.reach(Who::Node(0), 0, |_| true);
    world.reach(Who::Node(1), 0, |_| false);
    world.reach(Who::Node(1), 1, |_| true);
    for node in [0, 1] {
        world.lab.nodes[node].serve("node", 9000);
        for family in [Family::V4, Family::V6] {
            let to = SocketAddr::new(world.address(Who::Node(node), family), 9000);
            let answered = world.pods[0].machine.run(|| {
                let stream = TcpStream::connect_timeout(&to, std::time::Duration::from_secs(1));
                stream.is_ok()
            });
            assert_eq!(answered, node == 0, "{to}");
        }
    }
}

#[test]
fn a_pod_always_reaches_itself_directly_and_through_its_service() {
    let mut world = World::of(&["a"], 1);
    let host = world.pods[0].host;
    world.lab.service(1, &[(0, host)]);
    world.pods[0].machine.serve("itself", 9000);
    let nothing = NetworkPolicy {
        egress: Some(Vec::new()),
        ..policy("")
    };
    world.set([("a", nothing)]);
    world.reach(Who::Pod(0), 0, |_| true);
    for family in ["10.96.0.1:80", "[fd00:10:96::1]:80"] {
        let to: SocketAddr = family.parse().unwrap();
        let connected = world.pods[0]
            .machine
            .run(|| TcpStream::connect_timeout(&to, super::PATIENCE).map(drop));
        connected.unwrap_or_else(|error| panic!("{to}: {error}"));
    }
}

#[test]
fn through_a_service_the_chosen_pod_and_the_clients_own_address_are_judged() {
    let mut world = World::of(&["a", "b"], 2);
    let [a0, a1, b0] = [("a", 0), ("a", 1), ("b", 0)].map(|(space, name)| world.pod(space, name));
    let place = |world: &World, pod: usize| (world.pods[pod].node, world.pods[pod].host);
    let endpoint = place(&world, a0);
    world.lab.exposed(1, &[endpoint], |_| {});
    world.set([
        // The service's own port and address say nothing.
        (
            "a",
            ingress("app=x", vec![rule(vec![pods("app=y")], vec![tcp(8080, 8080)])]),
        ),
        ("b", egress("", vec![rule(vec![namespaces("team=b")], vec![])])),
    ]);
    for (from, allowed) in [(a1, true), (b0, false)] {
        let node = world.address(Who::Node(world.pods[from].node), Family::V4);
        for to in [
            "10.96.0.1:80".to_owned(),
            "[fd00:10:96::1]:80".to_owned(),
            format!("{node}:30001"),
        ] {
            // Through a node port of another node than the endpoint's, that node is the client.
            if to.ends_with("30001") && world.pods[from].node != world.pods[a0].node {
                continue;
            }
            let to: SocketAddr = to.parse().unwrap();
            let patience = std::time::Duration::from_secs(if allowed { 20 } else { 1 });
            let connected = world.pods[from]
                .machine
                .run(|| TcpStream::connect_timeout(&to, patience).is_ok());
            assert_eq!(connected, allowed, "{from} to {to}");
        }
    }
}

#[test]
fn a_pod_that_has_ended_leaves_every_set_at_once() {
    let mut world = World::of(&["a"], 2);
    world.set([("a", ingress("app=x", vec![rule(vec![pods("app=y")], vec![])]))]);
    world.reach(Who::Pod(1), 0, |_| true);
    world.object(1).ended = true;
    world.apply();
    world.reach(Who::Pod(1), 0, |_| false);
}

fn ping(world: &World, from: usize, to: usize, size: u16) -> bool {
    let to = world.address(Who::Pod(to), Family::V4);
    let ping = || {
        std::process::Command::new("ping")
            .args(["-c", "1", "-W", "1", "-s", &size.to_string(), &to.to_string()])
            .output()
            .unwrap()
    };
    world.pods[from].machine.run(ping).status.success()
}

#[test]
fn icmp_passes_where_a_rule_without_ports_allows_the_peer_and_errors_of_allowed_flows_always_do() {
    let mut world = World::of(&["a"], 3);
    world.set([(
        "a",
        ingress(
            "app=x",
            vec![
                rule(vec![pods("app=y")], vec![]),
                rule(vec![pods("app=z")], vec![tcp(80, 80)]),
            ],
        ),
    )]);
    assert!(ping(&world, 1, 0, 56));
    assert!(!ping(&world, 2, 0, 56));
    // In fragments, too: they are judged as the whole that they make.
    assert!(ping(&world, 1, 0, 4000));
    // A router on the way has a narrow link: without its word that packets are too big nothing large arrives.
    let nothing = NetworkPolicy {
        egress: Some(vec![rule(vec![pods("")], vec![tcp(80, 80)])]),
        ..ingress("", vec![rule(vec![pods("")], vec![tcp(80, 80)])])
    };
    world.set([("a", nothing)]);
    for node in &world.lab.nodes {
        node.command("ip link set eth0 mtu 1300; ip route flush cache");
    }
    for family in [Family::V4, Family::V6] {
        let to = SocketAddr::new(world.address(Who::Pod(1), family), 80);
        let mut client = world.pods[0].machine.run(|| {
            sysctl::set("net/ipv4/tcp_mtu_probing", "0").unwrap();
            TcpStream::connect_timeout(&to, super::PATIENCE).unwrap()
        });
        let mut server = loop {
            let mut accepted = world.pods[1]
                .tcp
                .iter()
                .filter_map(|listener| listener.accept().ok());
            if let Some((stream, _)) = accepted.next() {
                break stream;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        server.set_nonblocking(false).unwrap();
        server.set_read_timeout(Some(super::PATIENCE)).unwrap();
        let sent = vec![7; 60_000];
        client.write_all(&sent).unwrap();
        let mut got = vec![0; sent.len()];
        server
            .read_exact(&mut got)
            .unwrap_or_else(|error| panic!("{family:?}: {error}"));
    }
}

#[test]
fn large_datagrams_are_judged_by_their_ports_in_fragments_too() {
    let mut world = World::of(&["a"], 2);
    let udp = NetworkPolicyPort {
        protocol: Some(Protocol::Udp),
        port: Some(PolicyPort::Numbers(range(80, 80))),
    };
    world.set([("a", ingress("app=x", vec![rule(vec![pods("")], vec![udp])]))]);
    for family in [Family::V4, Family::V6] {
        let to = world.address(Who::Pod(0), family);
        let client = &world.pods[1].clients[usize::from(to.is_ipv6())];
        // What is denied is sent first.
        for port in [81, 80] {
            client.send_to(&[0; 5000], SocketAddr::new(to, port)).unwrap();
        }
        let mut buffer = [0; 8000];
        let mut arrived = |of: u16| {
            let (_, server) = world.pods[0].udp.iter().find(|(port, _)| *port == of).unwrap();
            server
                .recv_from(&mut buffer)
                .is_ok_and(|(length, _)| length == 5000)
        };
        let end = std::time::Instant::now() + super::PATIENCE;
        while !arrived(80) {
            assert!(std::time::Instant::now() < end, "{family:?}: nothing arrived");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!arrived(81), "{family:?}");
    }
}

#[test]
fn a_pod_is_never_open_while_policies_about_it_change() {
    let mut world = World::of(&["a"], 3);
    // Pod 2 may never reach pod 0, whichever of these is in force; pod 1 always may.
    let rules = |one: u16| vec![rule(vec![pods("app=y")], vec![tcp(80, one)])];
    world.set([("a", ingress("app=x", rules(80)))]);
    let to = SocketAddr::new(world.address(Who::Pod(0), Family::V4), 80);
    let denied = world.pods[2].machine.again();
    let allowed = world.pods[1].machine.again();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stop = &stop;
    let stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
    let listener = &world.pods[0].tcp[0].try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !stopped() {
                while listener.accept().is_ok() {}
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        // Many first packets: a datagram from a new port each.
        let attempts = scope.spawn(move || {
            denied.run(|| {
                let mut attempts = 0;
                while !stopped() {
                    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                    socket.send_to(b"denied", to).unwrap();
                    attempts += 1;
                }
                attempts
            })
        });
        let connections = scope.spawn(move || {
            allowed.run(|| {
                let mut connections = 0;
                while !stopped() {
                    TcpStream::connect_timeout(&to, super::PATIENCE).unwrap();
                    connections += 1;
                    // Each keeps its port for a minute, and there are not so many.
                    std::thread::sleep(std::time::Duration::from_millis(3));
                }
                connections
            })
        });
        for change in 0..30 {
            let more = NetworkPolicy {
                egress: (change % 3 == 0).then(Vec::new),
                ..ingress("app=x", rules(80 + change % 5))
            };
            let other = ingress("", rules(8080));
            let policies = if change % 2 == 0 {
                vec![("a", more)]
            } else {
                vec![("a", more), ("a", other)]
            };
            world.set(policies);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(attempts.join().unwrap() > 100);
        assert!(
            connections.join().unwrap() > 20,
            "what is allowed always was goes on"
        );
    });
    let (_, server) = &world.pods[0].udp[0];
    let mut buffer = [0; 16];
    assert!(
        server.recv_from(&mut buffer).is_err(),
        "a datagram passed that no policy allowed"
    );
}

/// What the agent does when it adds a pod: first the addresses that it gives, then the link.
#[test]
fn a_pods_first_packet_is_judged_though_the_api_does_not_know_its_address() {
    let mut world = World::of(&["a"], 2);
    world.set([("a", ingress("", vec![]))]);
    for index in 0..2 {
        let addresses = world.object(index).addresses.drain(..).collect();
        let wired = Wired {
            uid: format!("uid{index}"),
            addresses,
            ..Wired::default()
        };
        let name = world.pods[index].name.clone();
        world.lab.cluster.local.pods.insert(name, vec![wired]);
        world.object(index).uids = vec![format!("uid{index}")];
    }
    world.apply();
    let all = super::each(Who::Pod(1), 0).map(|probe| (probe, false)).collect();
    world.expect(&all);
    // Nothing is known of a pod: it is closed. Where there are no policies, it is open.
    let name = ObjectName::new("a", "0");
    let object = world.lab.cluster.pods.remove(&name).unwrap();
    world.set([("a", policy("app=nobody"))]);
    world.expect(&all);
    world.set([]);
    let open = super::each(Who::Pod(1), 0).map(|probe| (probe, true)).collect();
    world.expect(&open);
    world.lab.cluster.pods.insert(name, object);
}

#[test]
fn both_families_of_a_peer_are_matched() {
    let mut world = World::of(&["a"], 3);
    world.set([("a", ingress("app=x", vec![rule(vec![pods("app=y")], vec![])]))]);
    world.reach(Who::Pod(1), 0, |_| true);
    world.reach(Who::Pod(2), 0, |_| false);
    // One that has one family only is matched by that.
    world.object(1).addresses.retain(std::net::IpAddr::is_ipv6);
    world.apply();
    let v6 = super::each(Who::Pod(1), 0).map(|probe| (probe, probe.family == Family::V6));
    world.expect(&v6.collect());
}
