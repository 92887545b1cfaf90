//! What a service was, and is no more: its type, its addresses, its node port, itself.

use std::io::ErrorKind;

use podnet_core::cluster::{ObjectName, Protocol, Resolution, Routing, Service, ServicePort};

use crate::common::{BackEnd, Lack, Machine, ask};
use crate::services::{BOTH, Scene, address};

on_every_back_end!(
    a_service_becomes_a_name_and_is_a_service_again,
    a_service_that_another_proxy_takes_is_left_to_it_and_comes_back,
    a_service_that_another_proxy_takes_is_carried_by_that,
    two_services_swap_their_addresses,
    two_services_swap_what_the_outside_knows_them_by,
    a_node_port_keeps_its_number_and_changes_its_protocol,
    a_service_that_is_made_anew_under_its_name_is_the_new_one,
);

const A: (usize, u8) = BOTH[0];
const B: (usize, u8) = BOTH[1];
const CLUSTER_IPS: [&str; 2] = ["10.96.0.1:80", "[fd00:10:96::1]:80"];
const NODE_PORTS: [&str; 2] = ["172.30.0.11:30001", "[fd30::11]:30001"];

fn name(host: u8) -> ObjectName {
    ObjectName::new("default", format!("svc{host}"))
}

/// Replaces the service by one with these addresses (`None`: it becomes a name) and ports.
fn become_of(scene: &mut Scene, host: u8, addresses: Option<u8>, ports: &[ServicePort]) {
    let addresses = addresses.map(|host| [format!("10.96.0.{host}"), format!("fd00:10:96::{host}")]);
    let addresses = addresses.iter().flatten().map(|text| address(text)).collect();
    let mut service = Service::new(addresses, ports.to_vec()).unwrap();
    if service.cluster_ips().is_empty() {
        service.resolution = Resolution::Alias("www.example.org".parse().unwrap());
    }
    scene.lab.cluster.services.insert(name(host), Ok(service));
}

fn ports(node_port: Option<u16>) -> Vec<ServicePort> {
    let port = |name, protocol| ServicePort {
        node_port: node_port.map(|number| number.try_into().unwrap()),
        ..ServicePort::new(name, protocol, 80.try_into().unwrap())
    };
    vec![port("tcp", Protocol::Tcp), port("udp", Protocol::Udp)]
}

/// Everybody is answered by that endpoint, by TCP and UDP.
fn answered(from: &[&Machine], to: &[&str], who: &str, when: &str) {
    for from in from {
        for to in to {
            assert_eq!(from.tcp(to).unwrap().0, who, "{to} {when}");
            assert_eq!(from.udp(to).unwrap().0, who, "{to} {when}");
        }
    }
}

/// Nobody hears anything: at once, since silence takes its time.
fn silent(from: &[&Machine], to: &[&str]) {
    std::thread::scope(|scope| {
        for from in from {
            for to in to {
                scope.spawn(move || {
                    let kind = from.tcp(to).unwrap_err().kind();
                    let silence = [ErrorKind::TimedOut, ErrorKind::WouldBlock];
                    assert!(silence.contains(&kind), "{to}: {kind}");
                });
            }
        }
    });
}

fn refused(from: &[&Machine], to: &[&str], protocol: Protocol) {
    for from in from {
        for to in to {
            let answer = match protocol {
                Protocol::Tcp => from.tcp(to),
                _ => from.udp(to),
            };
            assert_eq!(
                answer.unwrap_err().kind(),
                ErrorKind::ConnectionRefused,
                "{protocol} {to}"
            );
        }
    }
}

fn a_service_becomes_a_name_and_is_a_service_again(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    scene.expose(2, &[B], |_| {});
    scene.lab.endpoints(1, &[A], &[]);
    // A name, ClusterIP, a name, NodePort, ClusterIP, NodePort, a name.
    let kinds = [
        None,
        Some(None),
        None,
        Some(Some(30_001)),
        Some(None),
        Some(Some(30_001)),
        None,
    ];
    let mut flow = None;
    for kind in kinds {
        match kind {
            None => become_of(&mut scene, 1, None, &[]),
            Some(node_port) => become_of(&mut scene, 1, Some(1), &ports(node_port)),
        }
        scene.lab.apply_all();
        let inside = [&scene.client, &scene.lab.nodes[0]];
        let when = format!("{kind:?}");
        match kind {
            None => {
                silent(&inside, &CLUSTER_IPS);
                if let Some(flow) = &flow {
                    assert!(ask(flow).is_err(), "the flow outlives its service");
                }
            }
            Some(_) => answered(&inside, &CLUSTER_IPS, "a", &when),
        }
        match kind {
            Some(Some(_)) => {
                answered(&[scene.outside()], &NODE_PORTS, "a", &when);
                answered(&inside, &NODE_PORTS, "a", &when);
            }
            _ => {
                refused(&[scene.outside()], &NODE_PORTS, Protocol::Tcp);
                refused(&[scene.outside()], &NODE_PORTS, Protocol::Udp);
            }
        }
        if kind.is_some() {
            let socket = scene.client.udp_socket(CLUSTER_IPS[0]);
            assert_eq!(ask(&socket).unwrap().0, "a");
            flow = Some(socket);
        }
        // It is nothing to others.
        answered(&inside, &["10.96.0.2:80", "[fd00:10:96::2]:80"], "b", &when);
    }
}

/// Another proxy, which was there before us or came after us, carries the first service on the first node, to B.
fn another_proxy(scene: &Scene) {
    let rules: String = ["prerouting", "output"]
        .map(|hook| {
            format!(
                "add chain inet theirs {hook} {{ type nat hook {hook} priority -100; }}; \
                 add rule inet theirs {hook} ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.244.1.2:8080; \
                 add rule inet theirs {hook} ip daddr 10.96.0.1 udp dport 80 dnat ip to 10.244.1.2:8080; \
                 add rule inet theirs {hook} ip6 daddr fd00:10:96::1 tcp dport 80 dnat ip6 to [fd00:10:244:1::2]:8080; \
                 add rule inet theirs {hook} ip6 daddr fd00:10:96::1 udp dport 80 dnat ip6 to [fd00:10:244:1::2]:8080; "
            )
        })
        .concat();
    scene.lab.nodes[0].command(&format!("nft 'add table inet theirs; {rules}'"));
}

fn no_other_proxy(scene: &Scene) {
    scene.lab.nodes[0].command("nft delete table inet theirs");
}

fn a_service_that_another_proxy_takes_is_carried_by_that(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    become_of(&mut scene, 1, Some(1), &ports(Some(30_001)));
    scene.lab.endpoints(1, &[A], &[]);
    for is_first in [true, false] {
        if is_first {
            another_proxy(&scene);
        }
        let service = scene.lab.cluster.services.get_mut(&name(1)).unwrap();
        service.as_mut().unwrap().proxied_elsewhere = true;
        scene.lab.apply_all();
        if !is_first {
            another_proxy(&scene);
        }
        let when = format!("the other is first: {is_first}");
        answered(&[&scene.client], &CLUSTER_IPS, "b", &when);
        if !on.lacks(Lack::OthersProxies) {
            answered(&[&scene.lab.nodes[0]], &CLUSTER_IPS, "b", &when);
        }
        no_other_proxy(&scene);
        let service = scene.lab.cluster.services.get_mut(&name(1)).unwrap();
        service.as_mut().unwrap().proxied_elsewhere = false;
        scene.lab.apply_all();
        answered(&[&scene.client, &scene.lab.nodes[0]], &CLUSTER_IPS, "a", &when);
    }
}

/// `service.kubernetes.io/service-proxy-name`, and `headless` likewise, come and go.
fn a_service_that_another_proxy_takes_is_left_to_it_and_comes_back(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    scene.expose(2, &[B], |_| {});
    become_of(&mut scene, 1, Some(1), &ports(Some(30_001)));
    scene.lab.endpoints(1, &[A], &[]);
    for round in 0..2 {
        scene.lab.apply_all();
        let inside = [&scene.client, &scene.lab.nodes[0]];
        answered(&inside, &CLUSTER_IPS, "a", &format!("round {round}"));
        answered(&[scene.outside()], &NODE_PORTS, "a", &format!("round {round}"));
        let flow = scene.client.udp_socket(CLUSTER_IPS[0]);
        assert_eq!(ask(&flow).unwrap().0, "a");
        let taken = |scene: &mut Scene, is_taken| {
            let service = scene.lab.cluster.services.get_mut(&name(1)).unwrap();
            service.as_mut().unwrap().proxied_elsewhere = is_taken;
        };
        taken(&mut scene, true);
        scene.lab.apply_all();
        let inside = [&scene.client, &scene.lab.nodes[0]];
        silent(&inside, &CLUSTER_IPS);
        assert!(ask(&flow).is_err(), "the flow outlives its service");
        refused(&[scene.outside()], &NODE_PORTS, Protocol::Tcp);
        refused(&[scene.outside()], &NODE_PORTS, Protocol::Udp);
        answered(&inside, &["10.96.0.2:80", "[fd00:10:96::2]:80"], "b", "beside it");
        taken(&mut scene, false);
    }
}

fn two_services_swap_their_addresses(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    scene.lab.service(1, &[A]);
    scene.lab.service(2, &[B]);
    scene.lab.apply_all();
    let others = ["10.96.0.2:80", "[fd00:10:96::2]:80"];
    let all = [CLUSTER_IPS, others].concat();
    let flows: Vec<_> = all.iter().map(|to| scene.client.udp_socket(to)).collect();
    for round in 0..4 {
        let swapped = round % 2 == 1;
        let (first, second) = if swapped { (2, 1) } else { (1, 2) };
        become_of(&mut scene, 1, Some(first), &ports(None));
        become_of(&mut scene, 2, Some(second), &ports(None));
        scene.lab.apply_all();
        let (at_first, at_second) = if swapped { ("b", "a") } else { ("a", "b") };
        let inside = [&scene.client, &scene.lab.nodes[0]];
        answered(&inside, &CLUSTER_IPS, at_first, "the first addresses");
        answered(&inside, &others, at_second, "the second addresses");
        // So do clients that keep their port.
        for (number, (flow, to)) in flows.iter().zip(&all).enumerate() {
            let who = if number < 2 { at_first } else { at_second };
            assert_eq!(ask(flow).unwrap().0, who, "{to} in round {round}");
        }
    }
}

/// Node ports, external IPs and load balancers' addresses.
fn two_services_swap_what_the_outside_knows_them_by(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    let known_by = |host: u8| {
        [
            format!("172.30.0.11:{}", 30_000 + u16::from(host)),
            format!("[fd30::11]:{}", 30_000 + u16::from(host)),
            format!("203.0.113.{host}:80"),
            format!("[2001:db8::{host}]:80"),
            format!("203.0.113.10{host}:80"),
            format!("[2001:db8::10{host}]:80"),
        ]
    };
    let known = [known_by(1), known_by(2)];
    let mut flows = Vec::new();
    for round in 0..4 {
        let by = if round % 2 == 1 { [2, 1] } else { [1, 2] };
        for (host, by) in [1, 2].into_iter().zip(by) {
            become_of(&mut scene, host, Some(host), &ports(Some(30_000 + u16::from(by))));
            let service = scene.lab.cluster.services.get_mut(&name(host)).unwrap();
            let external = &mut service.as_mut().unwrap().external;
            let both =
                |by: u8| [format!("203.0.113.{by}"), format!("2001:db8::{by}")].map(|text| address(&text));
            external.ips = both(by).into();
            external.load_balancer = both(100 + by).into();
        }
        scene.lab.endpoints(1, &[A], &[]);
        scene.lab.endpoints(2, &[B], &[]);
        scene.lab.apply_all();
        let who = if round % 2 == 1 { ["b", "a"] } else { ["a", "b"] };
        for (known, who) in known.iter().zip(who) {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let from = [scene.outside(), &scene.client, &scene.lab.nodes[0]];
            answered(&from, &known, who, &format!("in round {round}"));
        }
        if flows.is_empty() {
            let all = known.iter().flatten();
            flows.extend(all.map(|to| (scene.outside().udp_socket(to), to)));
        }
        // So do clients that keep their port.
        for (number, (flow, to)) in flows.iter().enumerate() {
            assert_eq!(ask(flow).unwrap().0, who[number / 6], "{to} in round {round}");
        }
    }
}

fn a_node_port_keeps_its_number_and_changes_its_protocol(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    scene.lab.service(1, &[A]);
    scene.lab.service(2, &[B]);
    let mut both = ports(Some(30_001));
    let udp = both.split_off(1);
    let tcp = both;
    // One service alone, then each of two with a protocol of its own, then the other way round.
    for (of_first, of_second) in [
        (Some(&tcp), None),
        (Some(&udp), None),
        (Some(&tcp), Some(&udp)),
        (Some(&udp), Some(&tcp)),
        (None, Some(&udp)),
        (None, Some(&tcp)),
    ] {
        for (host, of) in [(1, of_first), (2, of_second)] {
            become_of(&mut scene, host, Some(host), of.unwrap_or(&ports(None)));
        }
        scene.lab.apply_all();
        for (protocol, wanted) in [(Protocol::Tcp, &tcp), (Protocol::Udp, &udp)] {
            let who = match (of_first == Some(wanted), of_second == Some(wanted)) {
                (true, _) => Some("a"),
                (_, true) => Some("b"),
                _ => None,
            };
            let from = [scene.outside(), &scene.client];
            let Some(who) = who else {
                refused(&from, &NODE_PORTS, protocol);
                continue;
            };
            for (from, to) in from.iter().flat_map(|from| NODE_PORTS.map(|to| (from, to))) {
                let answer = match protocol {
                    Protocol::Tcp => from.tcp(to),
                    _ => from.udp(to),
                };
                assert_eq!(answer.unwrap().0, who, "{protocol} {to}");
            }
        }
    }
}

fn a_service_that_is_made_anew_under_its_name_is_the_new_one(on: BackEnd) {
    let mut scene = Scene::followed(Routing::default(), on);
    scene.expose(1, &[A], |_| {});
    let inside = |scene: &Scene, to: &[&str], who: &str, when: &str| {
        answered(&[&scene.client, &scene.lab.nodes[0]], to, who, when);
    };
    let flow = scene.client.udp_socket(CLUSTER_IPS[0]);
    inside(&scene, &CLUSTER_IPS, "a", "at first");
    assert_eq!(ask(&flow).unwrap().0, "a");
    let gone = |scene: &mut Scene| {
        scene.lab.cluster.services.remove(&name(1)).unwrap().unwrap();
        scene.lab.endpoints(1, &[], &[]);
        scene.lab.apply_all();
        silent(&[&scene.client, &scene.lab.nodes[0]], &CLUSTER_IPS);
        refused(&[scene.outside()], &NODE_PORTS, Protocol::Tcp);
        assert!(ask(&flow).is_err());
    };
    // With the same addresses and another endpoint.
    gone(&mut scene);
    scene.expose(1, &[B], |_| {});
    inside(&scene, &CLUSTER_IPS, "b", "made anew");
    answered(&[scene.outside()], &NODE_PORTS, "b", "made anew");
    assert_eq!(ask(&flow).unwrap().0, "b");
    // With other addresses; another service has the old ones.
    gone(&mut scene);
    become_of(&mut scene, 1, Some(7), &ports(Some(30_007)));
    become_of(&mut scene, 2, Some(1), &ports(Some(30_001)));
    scene.lab.endpoints(1, &[A], &[]);
    scene.lab.endpoints(2, &[B], &[]);
    scene.lab.apply_all();
    inside(&scene, &["10.96.0.7:80", "[fd00:10:96::7]:80"], "a", "elsewhere");
    inside(&scene, &CLUSTER_IPS, "b", "of the other");
    answered(
        &[scene.outside()],
        &["172.30.0.11:30007", "[fd30::11]:30007"],
        "a",
        "elsewhere",
    );
    answered(&[scene.outside()], &NODE_PORTS, "b", "of the other");
    assert_eq!(ask(&flow).unwrap().0, "b");
    // Without a step between: its last state alone is seen.
    become_of(&mut scene, 2, Some(8), &ports(None));
    become_of(&mut scene, 1, Some(1), &ports(Some(30_001)));
    scene.lab.apply_all();
    inside(&scene, &CLUSTER_IPS, "a", "back at once");
    answered(&[scene.outside()], &NODE_PORTS, "a", "back at once");
    assert_eq!(ask(&flow).unwrap().0, "a");
}
