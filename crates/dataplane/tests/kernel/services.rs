//! Services as the outside and the inside reach them: real sockets through what was applied.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::common::{BackEnd, Lab, Lack, Machine, PATIENCE, answerers, ask, eventually};
use ipnet::IpNet;
use podnet_core::cluster::{
    Affinity, Algorithm, DataplaneName, ExternalPolicy, Family, ObjectName, Protocol, Routing, Service,
};
use podnet_dataplane::{Dataplane, Kernel};
use podnet_linux::netlink::{Address, Route};
use podnet_linux::sysctl;
use socket2::{Domain, Socket, Type};

use crate::talk::Talk;

on_every_back_end!(
    the_outside_reaches_every_endpoint_over_vxlan,
    the_outside_reaches_every_endpoint_over_direct_routes,
    external_policy_local_keeps_the_clients_address_and_drops_where_no_endpoint_is,
    without_endpoints_every_way_refuses_at_once,
    source_ranges_guard_the_load_balancers_address_and_never_the_node_port,
    node_ports_are_on_the_chosen_addresses_and_not_on_loopback,
    a_client_stays_with_its_endpoint_by_whichever_address_it_comes,
    a_client_that_was_idle_for_long_enough_chooses_anew,
    a_datagram_client_of_a_node_port_moves_when_its_endpoint_goes,
    a_datagram_flow_ends_with_its_node_port_whether_clients_stay_or_not,
    what_somebody_else_translated_keeps_its_source,
    every_node_chooses_the_same_endpoint_by_maglev_hashing,
    every_node_chooses_the_same_endpoint_for_a_connection_by_whichever_address_it_comes,
    node_ports_are_on_loopback_where_that_is_configured,
);

pub(crate) fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two nodes, a pod `a` on the first and `b` on the second, and the outside, which has routes to 203.0.113.0/24 and
/// 2001:db8::/64 by the first node. What leaves for a cluster IP that nobody has, 10.96.0.99 or fd00:10:96::99, it answers.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) a: Machine,
    pub(crate) b: Machine,
    pub(crate) client: Machine,
}

pub(crate) const BOTH: [(usize, u8); 2] = [(0, 2), (1, 2)];

impl Scene {
    pub(crate) fn new(routing: Routing, on: BackEnd) -> Scene {
        let lab = Lab::new(2, routing, Family::V4, 1500).carried_by(on);
        let (a, b, client) = (lab.pod(0, 2), lab.pod(1, 2), lab.pod(0, 9));
        a.serve("a", 8080);
        b.serve("b", 8080);
        let bridge = lab.underlay.link("br0").index;
        lab.underlay.netlink(|netlink| {
            for (range, gateway) in [("203.0.113.0/24", "172.30.0.11"), ("2001:db8::/64", "fd30::11")] {
                let route = Route::via(range.parse().unwrap(), address(gateway), Some(bridge), 3);
                netlink.request(route.add()).unwrap();
            }
        });
        // Who has a cluster IP that nobody has: a packet that leaves its node is answered.
        let leak = "ip address add 10.96.0.99/32 dev lo; ip address add fd00:10:96::99/128 dev lo nodad";
        lab.underlay.command(leak);
        lab.underlay.serve("leak", 80);
        Scene { lab, a, b, client }
    }

    /// The same with agents that stay, and follow the cluster from state to state.
    pub(crate) fn followed(routing: Routing, on: BackEnd) -> Scene {
        let scene = Scene::new(routing, on);
        Scene {
            lab: scene.lab.followed(),
            ..scene
        }
    }

    pub(crate) fn outside(&self) -> &Machine {
        &self.lab.underlay
    }

    pub(crate) fn expose(&mut self, host: u8, pods: &[(usize, u8)], change: impl FnOnce(&mut Service)) {
        self.lab.exposed(host, pods, |service| {
            service.external.ips = vec![
                address(&format!("203.0.113.{host}")),
                address(&format!("2001:db8::{host}")),
            ];
            change(service);
        });
        self.lab.apply_all();
    }
}

/// The ways from outside to the service exposed as HOST: node ports of both nodes, external IPs.
pub(crate) fn ways(host: u8) -> Vec<String> {
    let port = 30_000 + u16::from(host);
    vec![
        format!("172.30.0.11:{port}"),
        format!("[fd30::11]:{port}"),
        format!("203.0.113.{host}:80"),
        format!("[2001:db8::{host}]:80"),
    ]
}

pub(crate) fn local(service: &mut Service) {
    service.external.policy = ExternalPolicy::Local;
}

fn the_outside_reaches_every_endpoint(routing: Routing, on: BackEnd) {
    let mut scene = Scene::new(routing, on);
    scene.expose(1, &BOTH, |_| {});
    scene.expose(2, &BOTH[..1], |_| {});
    scene.expose(3, &BOTH[1..], |_| {});
    let outside = scene.outside();
    for to in ways(1) {
        assert_eq!(answerers(40, || outside.tcp(&to)), set(&["a", "b"]), "{to}");
        assert_eq!(answerers(40, || outside.udp(&to)), set(&["a", "b"]), "{to}");
    }
    let own = |to: &str| {
        address(if to.starts_with('[') {
            "fd30::1"
        } else {
            "172.30.0.1"
        })
    };
    // The client's address is kept where the endpoint is on the node that was asked, and the node's stands for it where
    // it is not.
    for to in ways(2) {
        let expected = on.seen(("a".into(), own(&to)));
        assert_eq!(on.seen(outside.tcp(&to).unwrap()), expected, "{to}");
        assert_eq!(on.seen(outside.udp(&to).unwrap()), expected, "{to}");
    }
    for to in ways(3) {
        let (who, seen) = outside.tcp(&to).unwrap();
        assert_eq!(who, "b", "{to}");
        assert_ne!(seen, own(&to), "{to}");
        assert_eq!(outside.udp(&to).unwrap().0, "b", "{to}");
    }
    // Pods of the node keep their address wherever the endpoint is, and the node gets through, too.
    for (to, source) in ways(3)
        .iter()
        .zip(["10.244.0.9", "fd00:10:244:0::9"].into_iter().cycle())
    {
        assert_eq!(
            on.seen(scene.client.tcp(to).unwrap()),
            on.seen(("b".into(), address(source))),
            "{to}"
        );
        assert_eq!(scene.lab.nodes[0].tcp(to).unwrap().0, "b", "{to}");
    }
    // So does it by an address of its own that others do not know the way to.
    scene.lab.nodes[0].netlink(|netlink| {
        let lo = netlink.link("lo").unwrap().unwrap().index;
        for own in ["192.168.77.1/32", "fd77::1/128"] {
            netlink
                .request(Address::new(lo, own.parse().unwrap()).add())
                .unwrap();
        }
    });
    for to in ["192.168.77.1:30003", "[fd77::1]:30003"] {
        eventually(to, || scene.lab.nodes[0].tcp(to).is_ok_and(|(who, _)| who == "b"));
    }
    // A pod that asks another node's port is answered there.
    for to in ["172.30.0.12:30001", "[fd30::12]:30001"] {
        assert_eq!(answerers(40, || scene.client.tcp(to)), set(&["a", "b"]), "{to}");
        assert_eq!(answerers(40, || scene.b.tcp(to)), set(&["a", "b"]), "{to}");
    }
}

fn the_outside_reaches_every_endpoint_over_vxlan(on: BackEnd) {
    the_outside_reaches_every_endpoint(Routing::default(), on);
}

fn the_outside_reaches_every_endpoint_over_direct_routes(on: BackEnd) {
    the_outside_reaches_every_endpoint(Routing::Direct, on);
}

fn external_policy_local_keeps_the_clients_address_and_drops_where_no_endpoint_is(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    scene.expose(1, &BOTH, local);
    scene.expose(3, &BOTH[1..], local);
    let outside = scene.outside();
    for to in ways(1) {
        let own = address(if to.starts_with('[') {
            "fd30::1"
        } else {
            "172.30.0.1"
        });
        for _ in 0..10 {
            let expected = on.seen(("a".into(), own));
            assert_eq!(on.seen(outside.tcp(&to).unwrap()), expected, "{to}");
            assert_eq!(on.seen(outside.udp(&to).unwrap()), expected, "{to}");
        }
        // The node itself, and its pods, get all endpoints.
        assert_eq!(answerers(40, || scene.client.tcp(&to)), set(&["a", "b"]), "{to}");
        assert_eq!(
            answerers(40, || scene.lab.nodes[0].tcp(&to)),
            set(&["a", "b"]),
            "{to}"
        );
    }
    for to in ways(3) {
        let silence = outside.udp(&to).unwrap_err().kind();
        assert!(
            matches!(silence, ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "{to}: {silence}"
        );
        assert_eq!(scene.client.udp(&to).unwrap().0, "b", "{to}");
        assert_eq!(scene.lab.nodes[0].tcp(&to).unwrap().0, "b", "{to}");
    }
    // A pod that reaches another node's port is outside there.
    let to_other = |to: &str| answerers(20, || scene.client.tcp(to));
    assert_eq!(to_other("172.30.0.12:30001"), set(&["b"]));
    assert_eq!(to_other("[fd30::12]:30001"), set(&["b"]));
    assert_eq!(answerers(20, || scene.a.tcp("172.30.0.12:30001")), set(&["b"]));
}

fn without_endpoints_every_way_refuses_at_once(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    let balanced = |host: u8| {
        let addresses = [
            format!("203.0.113.{}", 100 + host),
            format!("2001:db8::{}", 100 + host),
        ];
        move |service: &mut Service| {
            service.external.load_balancer = addresses.map(|text| address(&text)).into()
        }
    };
    scene.expose(1, &[], balanced(1));
    scene.expose(2, &[], |service| {
        balanced(2)(service);
        local(service);
    });
    let load_balancers = [
        "203.0.113.101:80",
        "[2001:db8::101]:80",
        "203.0.113.102:80",
        "[2001:db8::102]:80",
    ];
    let load_balancers = load_balancers.map(str::to_owned);
    let askers = [scene.outside(), &scene.client, &scene.lab.nodes[0]];
    for to in ways(1).into_iter().chain(ways(2)).chain(load_balancers) {
        for from in askers {
            assert_eq!(
                from.tcp(&to).unwrap_err().kind(),
                ErrorKind::ConnectionRefused,
                "{to}"
            );
            let refusal = from.udp(&to).unwrap_err().kind();
            // The node's own datagram is refused on its way out already, which is EPERM.
            let expected = [ErrorKind::ConnectionRefused, ErrorKind::PermissionDenied];
            assert!(expected.contains(&refusal), "{to}: {refusal}");
        }
    }
    // At once: nobody had to knock twice.
    for asker in askers {
        assert_eq!(asker.tcp_segments_sent_again(), 0);
    }
}

fn source_ranges_guard_the_load_balancers_address_and_never_the_node_port(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    let ranges = |scene: &mut Scene, ranges: &[&str]| {
        let ranges: BTreeSet<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        scene.expose(1, &BOTH[..1], |service| {
            service.external.load_balancer = std::mem::take(&mut service.external.ips);
            service.external.sources = (!ranges.is_empty()).then_some(ranges);
        });
    };
    let closed = |from: &Machine, to: &str| {
        let silence = from.udp(to).unwrap_err().kind();
        let expected = [
            ErrorKind::WouldBlock,
            ErrorKind::TimedOut,
            ErrorKind::PermissionDenied,
        ];
        assert!(expected.contains(&silence), "{to}: {silence}");
    };
    ranges(&mut scene, &["172.30.0.1/32", "10.244.0.0/24"]);
    assert_eq!(scene.outside().tcp("203.0.113.1:80").unwrap().0, "a");
    assert_eq!(scene.client.tcp("203.0.113.1:80").unwrap().0, "a");
    closed(&scene.lab.nodes[0], "203.0.113.1:80");
    closed(scene.outside(), "[2001:db8::1]:80");
    assert_eq!(scene.outside().tcp("[fd30::11]:30001").unwrap().0, "a");
    ranges(&mut scene, &["172.30.0.11/32", "fd00::/8"]);
    closed(scene.outside(), "203.0.113.1:80");
    closed(&scene.client, "203.0.113.1:80");
    // The node is within the range.
    assert_eq!(scene.lab.nodes[0].tcp("203.0.113.1:80").unwrap().0, "a");
    assert_eq!(scene.client.tcp("[2001:db8::1]:80").unwrap().0, "a");
    assert_eq!(scene.outside().tcp("172.30.0.11:30001").unwrap().0, "a");
    // So it is when it has the load balancer's address itself, and therefore asks from there.
    scene.lab.nodes[0].command("ip address add 203.0.113.1/32 dev lo");
    // A proxy hears of it in its own time.
    eventually("it is served", || {
        scene.lab.nodes[0]
            .tcp("203.0.113.1:80")
            .is_ok_and(|(who, _)| who == "a")
    });
    scene.lab.nodes[0].command("ip address del 203.0.113.1/32 dev lo");
    ranges(&mut scene, &["0.0.0.0/0", "::/0"]);
    assert_eq!(scene.outside().tcp("203.0.113.1:80").unwrap().0, "a");
    assert_eq!(scene.outside().tcp("[2001:db8::1]:80").unwrap().0, "a");
}

fn node_ports_are_on_the_chosen_addresses_and_not_on_loopback(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    scene.expose(1, &BOTH[..1], |_| {});
    let node = |scene: &Scene, to: &str| scene.lab.nodes[0].tcp(to).map(|(who, _)| who);
    assert_eq!(
        node(&scene, "127.0.0.1:30001").unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(
        node(&scene, "[::1]:30001").unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(node(&scene, "172.30.0.11:30001").unwrap(), "a");
    scene.lab.cluster.config.node_port_addresses = Some(vec!["172.30.0.0/24".parse().unwrap()]);
    scene.lab.apply_all();
    assert_eq!(scene.outside().tcp("172.30.0.11:30001").unwrap().0, "a");
    assert_eq!(
        scene.outside().tcp("[fd30::11]:30001").unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}

fn node_ports_are_on_loopback_where_that_is_configured(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    scene.lab.cluster.config.node_port_addresses = Some(
        ["127.0.0.0/8", "172.30.0.0/24"]
            .map(|range| range.parse().unwrap())
            .into(),
    );
    scene.expose(1, &BOTH[..1], |_| {});
    scene.expose(2, &BOTH[1..], |_| {});
    let node = &scene.lab.nodes[0];
    for (port, name) in [(30_001, "a"), (30_002, "b")] {
        let mut ways = vec![format!("127.0.0.1:{port}"), format!("172.30.0.11:{port}")];
        if !on.lacks(Lack::OtherLoopbackAddresses) {
            ways.push(format!("127.1.2.3:{port}"));
        }
        for to in ways {
            assert_eq!(node.tcp(&to).unwrap().0, name, "{to}");
            assert_eq!(node.udp(&to).unwrap().0, name, "{to}");
        }
    }
    assert_eq!(scene.outside().tcp("172.30.0.11:30002").unwrap().0, "b");
    // What else listens on loopback is as far from a pod as before, which sends what is for it to the node.
    node.serve("node", 7777);
    let pod = &scene.a;
    pod.command(
        "sysctl -qw net.ipv4.conf.all.route_localnet=1; ip address del 127.0.0.1/8 dev lo; \
         ip route add 127.0.0.1 via 169.254.1.1 dev eth0 onlink",
    );
    assert!(pod.tcp("127.0.0.1:7777").is_err());
    if on == BackEnd::Userspace {
        // Loopback is not routed for it: there is nothing to guard.
        return;
    }
    node.command("nft flush chain inet podnet loopback-guard");
    assert_eq!(pod.tcp("127.0.0.1:7777").unwrap().0, "node", "it is the guard");
}

#[test]
fn loopback_is_routed_as_long_as_node_ports_are_there() {
    let mut lab = Lab::new(1, Routing::default(), Family::V4, 1500);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("settings");
    // By an agent that starts anew each time.
    let routed_by = |lab: &Lab| {
        let state = lab.state(0);
        lab.nodes[0].run(|| {
            let mut kernel = Kernel::open(None, DataplaneName::Nftables).unwrap();
            kernel.keep_settings_in(&file).unwrap();
            kernel.apply(&state).unwrap();
            sysctl::get("net/ipv4/conf/all/route_localnet").unwrap()
        })
    };
    assert_eq!(routed_by(&lab), "0");
    lab.cluster.config.node_port_addresses = Some(vec!["127.0.0.0/8".parse().unwrap()]);
    assert_eq!(routed_by(&lab), "1");
    assert_eq!(routed_by(&lab), "1");
    lab.cluster.config.node_port_addresses = None;
    assert_eq!(routed_by(&lab), "0");
    assert!(!std::fs::read_to_string(&file).unwrap().contains("route_localnet"));
}

fn stay(seconds: u32) -> impl Fn(&mut Service) {
    move |service| service.affinity = Affinity::ClientIp { seconds }
}

fn a_client_stays_with_its_endpoint_by_whichever_address_it_comes(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    let stay = |seconds| {
        move |service: &mut Service| {
            stay(seconds)(service);
            service.external.load_balancer = ["203.0.113.101", "2001:db8::101"].map(address).into();
        }
    };
    for (family, cluster_ip) in [(0, "10.96.0.1:80"), (1, "[fd00:10:96::1]:80")] {
        scene.expose(1, &BOTH, stay(600));
        let of_family = |to: &String| to.starts_with('[') == (family == 1);
        let load_balancer = ["203.0.113.101:80", "[2001:db8::101]:80"].map(str::to_owned);
        let ways: Vec<String> = ways(1)
            .into_iter()
            .chain(load_balancer)
            .filter(of_family)
            .collect();
        let by = |from: &Machine, to: &str| {
            let mut who = answerers(15, || from.tcp(to));
            who.extend(answerers(15, || from.udp(to)));
            who
        };
        // TCP and UDP are two ports: each has its own endpoint, and keeps it.
        let tcp = answerers(30, || scene.client.tcp(cluster_ip));
        let udp = answerers(30, || scene.client.udp(cluster_ip));
        assert_eq!((tcp.len(), udp.len()), (1, 1), "{cluster_ip}");
        for to in &ways {
            assert_eq!(answerers(15, || scene.client.tcp(to)), tcp, "{to}");
            assert_eq!(answerers(15, || scene.client.udp(to)), udp, "{to}");
        }
        // Another agent takes over without anybody moving.
        scene.lab.apply_all();
        assert_eq!(
            answerers(15, || scene.client.tcp(cluster_ip)),
            tcp,
            "{cluster_ip}"
        );
        // Its endpoint goes: it gets the other one, and stays there when the first is back.
        let left = if tcp == set(&["a"]) { BOTH[1] } else { BOTH[0] };
        scene.expose(1, &[left], stay(600));
        let other = answerers(15, || scene.client.tcp(cluster_ip));
        assert_ne!(other, tcp);
        scene.expose(1, &BOTH, stay(600));
        assert_eq!(
            answerers(30, || scene.client.tcp(cluster_ip)),
            other,
            "{cluster_ip}"
        );
        for to in &ways {
            assert_eq!(answerers(15, || scene.client.tcp(to)), other, "{to}");
        }
        // Switched off, every connection chooses anew; switched on again, it stays again.
        scene.expose(1, &BOTH, |_| {});
        assert_eq!(by(&scene.client, cluster_ip), set(&["a", "b"]));
        scene.expose(1, &BOTH, stay(600));
        assert_eq!(answerers(30, || scene.client.tcp(cluster_ip)).len(), 1);
        assert_eq!(answerers(30, || scene.outside().tcp(&ways[0])).len(), 1);
    }
}

fn a_client_that_was_idle_for_long_enough_chooses_anew(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    scene.expose(1, &BOTH, stay(1));
    let mut seen = BTreeSet::new();
    // Each time it may come to the same endpoint by chance: one in 2^20 that it always does.
    for _ in 0..20 {
        seen.extend(answerers(1, || scene.client.tcp("10.96.0.1:80")));
        if seen.len() == 2 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1100));
    }
    panic!("it never moved");
}

fn a_datagram_client_of_a_node_port_moves_when_its_endpoint_goes(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    for to in ways(1) {
        for change in [stay(600), stay(0)] {
            let change = |service: &mut Service| {
                change(service);
                if service.affinity == (Affinity::ClientIp { seconds: 0 }) {
                    service.affinity = Affinity::None;
                }
            };
            scene.expose(1, &[], change);
            let socket = scene.outside().udp_socket(&to);
            assert!(ask(&socket).is_err(), "{to}");
            scene.expose(1, &BOTH[..1], change);
            assert_eq!(ask(&socket).unwrap().0, "a", "{to}");
            scene.expose(1, &BOTH[1..], change);
            assert_eq!(ask(&socket).unwrap().0, "b", "{to}");
            // One more endpoint takes no flow away.
            scene.expose(1, &BOTH, change);
            assert_eq!(answerers(5, || ask(&socket)), set(&["b"]), "{to}");
        }
    }
}

fn a_datagram_flow_ends_with_its_node_port_whether_clients_stay_or_not(on: BackEnd) {
    let mut scene = Scene::new(Routing::default(), on);
    for to in &ways(1)[..2] {
        for seconds in [Some(600), None] {
            scene.expose(1, &BOTH[..1], |service| {
                if let Some(seconds) = seconds {
                    stay(seconds)(service);
                }
            });
            let socket = scene.outside().udp_socket(to);
            assert_eq!(ask(&socket).unwrap().0, "a", "{to}");
            scene
                .lab
                .cluster
                .services
                .remove(&ObjectName::new("default", "svc1"));
            scene.lab.apply_all();
            assert!(ask(&socket).is_err(), "{to} {seconds:?}");
        }
    }
}

/// The addresses of some clients outside.
const CLIENTS: std::ops::Range<u16> = 100..140;

fn add_clients(scene: &Scene) {
    for host in CLIENTS {
        let addresses = format!(
            "ip address add 172.30.0.{host}/24 dev br0; ip address add fd30::{host}/64 dev br0 nodad"
        );
        scene.outside().command(&addresses);
    }
}

/// Who answers each of the clients outside, all with the same port, at an address.
fn answered(scene: &Scene, protocol: Protocol, to: &str) -> Vec<String> {
    let to: SocketAddr = to.parse().unwrap();
    let clients = CLIENTS.map(|host| match to {
        SocketAddr::V4(_) => format!("172.30.0.{host}:4000"),
        SocketAddr::V6(_) => format!("[fd30::{host}]:4000"),
    });
    let by_tcp = |client: SocketAddr| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        // The same port again, at once.
        socket.set_reuse_address(true).unwrap();
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        socket.bind(&client.into()).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        let mut talk = Talk(socket.into());
        talk.ask()
    };
    let by_udp = |client: SocketAddr| {
        let socket = UdpSocket::bind(client).unwrap();
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        ask(&socket).unwrap().0
    };
    let answers = clients.map(|client| {
        let client = client.parse().unwrap();
        scene.outside().run(|| match protocol {
            Protocol::Tcp => by_tcp(client),
            _ => by_udp(client),
        })
    });
    answers.collect()
}

/// No flow is known any more: who is chosen is chosen by the hash.
fn forget_flows(scene: &Scene) {
    for node in &scene.lab.nodes {
        node.command("conntrack -F 2>&1");
    }
}

fn every_node_chooses_the_same_endpoint_by_maglev_hashing(on: BackEnd) {
    let mut scene = Scene::new(Routing::Direct, on);
    scene.client.serve("c", 8080);
    add_clients(&scene);
    let all = [(0, 2), (1, 2), (0, 9)];
    for affinity in [Affinity::None, Affinity::ClientIp { seconds: 100 }] {
        for nodes in [
            ["172.30.0.11:30001", "172.30.0.12:30001"],
            ["[fd30::11]:30001", "[fd30::12]:30001"],
        ] {
            let maglev = |service: &mut Service| {
                service.external.algorithm = Algorithm::Maglev;
                service.affinity = affinity;
            };
            scene.expose(1, &all, maglev);
            let [before, other] = nodes.map(|node| answered(&scene, Protocol::Udp, node));
            assert_eq!(before, other, "{affinity:?}");
            let seen: BTreeSet<String> = before.iter().cloned().collect();
            assert_eq!(seen, set(&["a", "b", "c"]), "{affinity:?}");
            // Whoever was with an endpoint that is still there is with it still, but for a few.
            scene.expose(1, &all[..2], maglev);
            forget_flows(&scene);
            let [after, other] = nodes.map(|node| answered(&scene, Protocol::Udp, node));
            assert_eq!(after, other, "{affinity:?}");
            assert!(!after.contains(&"c".to_owned()));
            let kept = before.iter().zip(&after).filter(|(before, _)| *before != "c");
            let moved = kept.filter(|(before, after)| before != after).count();
            assert!(moved <= 6, "{affinity:?}: {moved}: {before:?} {after:?}");
            scene.expose(1, &[], maglev);
        }
    }
}

/// Node ports, external IPs and the load balancer's addresses.
fn every_node_chooses_the_same_endpoint_for_a_connection_by_whichever_address_it_comes(on: BackEnd) {
    let mut scene = Scene::new(Routing::Direct, on);
    add_clients(&scene);
    scene.expose(1, &BOTH, |service| {
        service.external.algorithm = Algorithm::Maglev;
        service.external.load_balancer = ["203.0.113.101", "2001:db8::101"].map(address).into();
    });
    let by_node = [("172.30.0.11", "fd30::11"), ("172.30.0.12", "fd30::12")].map(|(v4, v6)| {
        let routes = format!(
            "ip route replace 203.0.113.0/24 via {v4} proto 3; ip -6 route flush 2001:db8::/64; \
             ip route add 2001:db8::/64 via {v6} proto 3"
        );
        scene.outside().command(&routes);
        let ways = [
            format!("{v4}:30001"),
            format!("[{v6}]:30001"),
            "203.0.113.1:80".into(),
            "[2001:db8::1]:80".into(),
            "203.0.113.101:80".into(),
            "[2001:db8::101]:80".into(),
        ];
        ways.map(|to| {
            forget_flows(&scene);
            answered(&scene, Protocol::Tcp, &to)
        })
    });
    assert_eq!(by_node[0], by_node[1]);
    for answers in &by_node[0] {
        let seen: BTreeSet<String> = answers.iter().cloned().collect();
        assert_eq!(seen, set(&["a", "b"]));
    }
}

/// As a container engine's published port is: to something of the node's that is no pod.
fn what_somebody_else_translated_keeps_its_source(on: BackEnd) {
    let mut scene = Scene::new(Routing::Direct, on);
    scene.expose(1, &BOTH[1..], |_| {});
    let node = &scene.lab.nodes[0];
    let container = &scene.client;
    container.serve("container", 8080);
    container.command("ip address add 192.0.2.5/32 dev lo; ip address add 2001:db8:5::5/128 dev lo nodad");
    node.command(
        "ip route add 192.0.2.5/32 via 10.244.0.9; ip route add 2001:db8:5::5/128 via fd00:10:244::9",
    );
    node.command(
        "nft 'add table inet theirs; add chain inet theirs c { type nat hook prerouting priority dstnat; }; \
         add rule inet theirs c tcp dport 7777 dnat ip to 192.0.2.5:8080; \
         add rule inet theirs c tcp dport 7777 dnat ip6 to [2001:db8:5::5]:8080'",
    );
    for (to, source) in [("172.30.0.11:7777", "172.30.0.1"), ("[fd30::11]:7777", "fd30::1")] {
        let answer = scene.outside().tcp(to).unwrap();
        assert_eq!(answer, ("container".into(), address(source)), "{to}");
    }
    // What we translate is answered past no node.
    for to in ways(1) {
        let (who, seen) = scene.outside().tcp(&to).unwrap();
        assert_eq!(who, "b", "{to}");
        assert!(
            seen != address("172.30.0.1") && seen != address("fd30::1"),
            "{to}: {seen}"
        );
    }
}

#[test]
fn nft_prints_all_of_it() {
    let mut scene = Scene::new(Routing::default(), BackEnd::Nftables);
    scene.expose(1, &BOTH, |service| {
        stay(600)(service);
        local(service);
        service.external.load_balancer = std::mem::take(&mut service.external.ips);
        service.external.sources = Some(["192.0.2.0/24".parse().unwrap()].into());
    });
    let _ = scene.client.tcp("10.96.0.1:80").unwrap();
    let rules = scene.lab.nodes[0].nft();
    for part in [
        "set stay4-default/svc1/tcp/80-10.244.0.2/8080 {",
        "flags dynamic,timeout",
        "10.244.0.9 timeout 600s",
        "0x00000001 : goto stay4-default/svc1/tcp/80-10.244.1.2/8080",
        "update @stay4-default/svc1/tcp/80-10.244.1.2/8080 { ip saddr timeout 600s }",
        "dnat ip to 10.244.1.2:8080",
        "numgen random mod 2 vmap @choice4-default/svc1/tcp/80-external",
        "ip saddr 192.0.2.0/24",
    ] {
        assert!(rules.contains(part), "{part}:\n{rules}");
    }
}
