//! What is peculiar to services in user space: connections that the proxy relays, and the process itself.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU16;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::common::{BackEnd, Lab, Lack, Machine, PATIENCE, answerers, ask, eventually, node_name};
use crate::talk::Talk;
use podnet_core::cluster::{DataplaneName, Family, ObjectName, Protocol, Routing, Service, ServicePort};
use podnet_dataplane::userspace::SOCKET;
use podnet_dataplane::userspace::proxy::{self, GATE_LINK};
use podnet_dataplane::{Applied, Dataplane};
use podnet_linux::netlink::{RouteFilter, RouteKind};

/// A node with the pods `a` (.2), `b` (.3) and a client (.9).
struct Scene {
    lab: Lab,
    _servers: [Machine; 2],
    client: Machine,
    by_hand: Option<Machine>,
}

/// RTPROT_KERNEL.
const KERNEL: u8 = 2;
const A: &[(usize, u8)] = &[(0, 2)];
const B: &[(usize, u8)] = &[(0, 3)];
const BOTH: &[(usize, u8)] = &[(0, 2), (0, 3)];
const SERVICE: [&str; 2] = ["10.96.0.1:80", "[fd00:10:96::1]:80"];

impl Scene {
    fn new() -> Scene {
        let lab = Lab::new(1, Routing::default(), Family::V4, 1500).carried_by(BackEnd::Userspace);
        let (a, b, client) = (lab.pod(0, 2), lab.pod(0, 3), lab.pod(0, 9));
        a.serve("a", 8080);
        b.serve("b", 8080);
        Scene {
            lab,
            _servers: [a, b],
            client,
            by_hand: None,
        }
    }

    fn node(&self) -> &Machine {
        &self.lab.nodes[0]
    }

    fn socket(&self) -> PathBuf {
        self.node().run_dir.path().join(SOCKET)
    }

    fn apply_by(&self, name: DataplaneName) -> Applied {
        let state = self.lab.state(0);
        self.node()
            .run(|| self.node().kernel(name).apply(&state).unwrap())
    }

    /// By an agent of another build.
    fn apply_of(&self, identity: &'static str) {
        let (node, state) = (self.node(), self.lab.state(0));
        let applied = node.run(|| {
            let mut kernel = node.kernel_of(identity, DataplaneName::Userspace);
            kernel.apply(&state).unwrap()
        });
        let nothing = Vec::<String>::new();
        assert_eq!((applied.refused, applied.left_out), (nothing.clone(), nothing));
    }

    /// Who is behind the socket: how every proxy begins.
    fn greeting(&self) -> String {
        let mut line = String::new();
        let stream = UnixStream::connect(self.socket()).unwrap();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    }

    fn remove(&mut self) {
        let name = ObjectName::new("default", "svc1");
        self.lab.cluster.services.remove(&name);
    }

    /// The addresses that the node leads to the proxy.
    fn led(&self) -> BTreeSet<IpAddr> {
        let filter = RouteFilter {
            link: Some(self.node().link(GATE_LINK).index),
            ..RouteFilter::default()
        };
        let mut routes = self.node().netlink(|netlink| netlink.routes(filter).unwrap());
        routes.retain(|route| route.kind == RouteKind::Unicast);
        routes.iter().map(|route| route.destination.addr()).collect()
    }

    fn apply(&self) {
        let applied = self.apply_by(DataplaneName::Userspace);
        let nothing = Vec::<String>::new();
        assert_eq!((applied.refused, applied.left_out), (nothing.clone(), nothing));
    }

    fn serve(&mut self, pods: &[(usize, u8)]) {
        self.lab.exposed(1, pods, |_| {});
        self.apply();
    }

    /// The service's only endpoint is a pod (.4) whose connections the test itself accepts.
    fn serve_by_hand(&mut self) -> TcpListener {
        let pod = self.lab.pod(0, 4);
        let listener = pod.run(|| TcpListener::bind("[::]:8080")).unwrap();
        self.by_hand = Some(pod);
        self.serve(&[(0, 4)]);
        listener
    }
}

#[test]
fn established_connections_go_on_whatever_becomes_of_their_endpoint_service_and_agent() {
    let mut scene = Scene::new();
    scene.serve(A);
    let ways = [SERVICE[0], SERVICE[1], "172.30.0.11:30001", "[fd30::11]:30001"];
    let mut talks: Vec<Talk> = ways.map(|to| Talk::begin(&scene.client, to)).into();
    talks.push(Talk::begin(scene.node(), SERVICE[0]));
    talks.push(Talk::begin(&scene.lab.underlay, ways[2]));
    let mut all_answer = |when: &str| {
        for talk in &mut talks {
            assert_eq!(talk.ask(), "a", "{when}");
        }
    };
    all_answer("at first");
    scene.serve(B);
    all_answer("with another endpoint");
    assert_eq!(
        answerers(5, || scene.client.tcp(SERVICE[0])),
        ["b".to_owned()].into()
    );
    scene.serve(&[]);
    all_answer("without endpoints");
    scene.remove();
    scene.apply();
    all_answer("without the service");
    assert!(scene.client.tcp(ways[2]).is_err());
    scene.serve(B);
    all_answer("with the service again");
    // Another back end takes over.
    assert_eq!(
        scene.apply_by(DataplaneName::Nftables).refused,
        Vec::<String>::new()
    );
    all_answer("with nftables");
    for to in ways {
        assert_eq!(scene.client.tcp(to).unwrap().0, "b", "{to}");
    }
    drop(talks);
    eventually("the proxy ends with its last connection", || {
        !scene.socket().exists()
            && scene
                .node()
                .netlink(|netlink| netlink.link(GATE_LINK).unwrap().is_none())
    });
    for to in ways {
        assert_eq!(scene.client.tcp(to).unwrap().0, "b", "{to}");
    }
}

#[test]
fn connections_and_flows_by_nftables_go_on_in_user_space() {
    let mut scene = Scene::new();
    scene.lab.exposed(1, A, |_| {});
    scene.apply_by(DataplaneName::Nftables);
    let mut talk = Talk::begin(&scene.client, SERVICE[0]);
    let flow = scene.client.udp_socket(SERVICE[1]);
    assert_eq!((talk.ask(), ask(&flow).unwrap().0), ("a".into(), "a".into()));
    scene.serve(BOTH);
    assert_eq!((talk.ask(), ask(&flow).unwrap().0), ("a".into(), "a".into()));
    // The flow does not outlive its endpoint.
    scene.serve(B);
    assert_eq!((talk.ask(), ask(&flow).unwrap().0), ("a".into(), "b".into()));
}

#[test]
fn bytes_arrive_whole_both_ways_and_each_end_learns_of_the_others_end() {
    const MUCH: usize = 32 << 20;
    let mut scene = Scene::new();
    let pattern = |seed: u8| {
        (0..MUCH)
            .map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed)
            .collect::<Vec<u8>>()
    };
    let listener = scene.serve_by_hand();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let answers = std::thread::spawn(move || {
            writer.write_all(&pattern(2)).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        answers.join().unwrap();
        received
    });
    let mut stream = Talk::begin(&scene.client, SERVICE[0]).0;
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        writer.write_all(&pattern(1)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    sender.join().unwrap();
    assert!(received == pattern(2), "{} bytes came back", received.len());
    let received = server.join().unwrap();
    assert!(received == pattern(1), "{} bytes arrived", received.len());
}

#[test]
fn nothing_is_left_after_cleaning() {
    let mut scene = Scene::new();
    let found = |scene: &Scene| {
        scene.node().netlink(|netlink| {
            let links = netlink.links().unwrap().into_iter().map(|link| link.name);
            let mut routes = netlink.routes(RouteFilter::default()).unwrap();
            // The kernel makes its own in its own time.
            routes.retain(|route| route.protocol != KERNEL);
            (links.collect::<Vec<_>>(), routes)
        })
    };
    let before = found(&scene);
    scene.serve(BOTH);
    let talk = Talk::begin(&scene.client, SERVICE[0]);
    let mut kernel = scene.node().run(|| scene.node().kernel(DataplaneName::Nftables));
    let present = scene.node().run(|| kernel.present().unwrap());
    assert!(
        present.iter().any(|what| what.starts_with("service proxy at ")),
        "{present:?}"
    );
    scene.node().run(|| kernel.clean().unwrap());
    assert_eq!(found(&scene), before);
    let files = std::fs::read_dir(scene.node().run_dir.path()).unwrap();
    assert_eq!(files.count(), 0, "the proxy's socket and lock are gone");
    assert_eq!(
        scene.node().run(|| kernel.present().unwrap()),
        Vec::<String>::new()
    );
    drop(talk);
}

#[test]
fn what_listens_on_the_node_is_not_reached_by_a_services_address_and_keeps_its_ports() {
    let mut scene = Scene::new();
    scene.node().serve("node", 81);
    scene.node().serve("node", 80);
    scene.node().serve("node", 30_001);
    scene.lab.exposed(1, A, |_| {});
    let applied = scene.apply_by(DataplaneName::Userspace);
    for to in SERVICE {
        assert_eq!(scene.client.tcp(to).unwrap().0, "a", "{to}");
    }
    for to in ["10.96.0.1:81", "[fd00:10:96::1]:81"] {
        assert_eq!(
            scene.client.tcp(to).unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{to}"
        );
        assert_eq!(
            scene.client.udp(to).unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{to}"
        );
    }
    for to in ["172.30.0.11:30001", "[fd30::11]:30001"] {
        assert_eq!(scene.client.tcp(to).unwrap().0, "node", "{to}");
        let told = |protocol: Protocol| {
            let told = applied.left_out.iter();
            let mut told = told.filter(|why| why.contains(to) && why.contains("used by another program"));
            told.any(|why| why.starts_with(&protocol.to_string()))
        };
        assert!(
            told(Protocol::Tcp) && told(Protocol::Udp),
            "{to}: {:?}",
            applied.left_out
        );
    }
}

#[test]
fn node_ports_come_to_addresses_that_the_node_gets_later() {
    let mut scene = Scene::new();
    scene.serve(A);
    assert!(scene.client.tcp("192.168.77.1:30001").is_err());
    scene.node().netlink(|netlink| {
        let lo = netlink.link("lo").unwrap().unwrap().index;
        let address = podnet_linux::netlink::Address::new(lo, "192.168.77.1/32".parse().unwrap());
        netlink.request(address.add()).unwrap();
    });
    eventually("it is served", || scene.client.tcp("192.168.77.1:30001").is_ok());
}

#[test]
fn a_route_that_somebody_removed_is_put_back() {
    let mut scene = Scene::new();
    scene.serve(A);
    let node = scene.node();
    let filter = RouteFilter {
        link: Some(node.link(GATE_LINK).index),
        ..RouteFilter::default()
    };
    let mut routes = node.netlink(|netlink| netlink.routes(filter).unwrap());
    routes.retain(|route| route.kind == RouteKind::Unicast);
    assert_eq!(routes.len(), 2, "{routes:?}");
    for route in &routes {
        node.netlink(|netlink| netlink.request(route.delete()).unwrap());
        eventually("it is there again", || scene.led().len() == 2);
    }
    for to in SERVICE {
        assert_eq!(scene.client.tcp(to).unwrap().0, "a", "{to}");
    }
    // Without its link a proxy ends, and the next application starts another.
    let gate = node.link(GATE_LINK);
    node.netlink(|netlink| netlink.request(gate.delete()).unwrap());
    eventually("the proxy ends", || !scene.socket().exists());
    scene.apply();
    for to in SERVICE {
        assert_eq!(scene.client.tcp(to).unwrap().0, "a", "{to}");
    }
}

#[test]
fn a_proxy_of_another_build_takes_over_and_connections_go_on() {
    let mut scene = Scene::new();
    scene.lab.exposed(1, A, |_| {});
    scene.apply_of("first");
    let ways = [SERVICE[0], SERVICE[1], "172.30.0.11:30001", "[fd30::11]:30001"];
    let mut talks: Vec<Talk> = ways.map(|to| Talk::begin(&scene.client, to)).into();
    let flow = scene.client.udp_socket(SERVICE[0]);
    assert_eq!(ask(&flow).unwrap().0, "a");
    for identity in ["second", "third"] {
        scene.lab.exposed(1, B, |_| {});
        scene.apply_of(identity);
        assert_eq!(scene.greeting(), format!("podnet proxy {identity}\n"));
        for (talk, to) in talks.iter_mut().zip(ways) {
            assert_eq!(talk.ask(), "a", "{identity}: {to}");
            assert_eq!(scene.client.tcp(to).unwrap().0, "b", "{identity}: {to}");
        }
        // Datagrams begin anew.
        assert_eq!(ask(&flow).unwrap().0, "b");
    }
    // An address that nobody asks any more leads there for as long as the first one's connections last.
    let addresses = SERVICE.map(|to| to.parse::<SocketAddr>().unwrap().ip()).into();
    scene.remove();
    scene.apply_of("third");
    assert_eq!(scene.led(), addresses);
    talks.iter_mut().for_each(|talk| assert_eq!(talk.ask(), "a"));
    drop(talks);
    eventually("the addresses go with the first proxy", || scene.led().is_empty());
    scene.lab.exposed(1, BOTH, |_| {});
    scene.apply_of("third");
    assert_eq!(scene.led(), addresses);
    assert!(scene.client.tcp(SERVICE[0]).is_ok());
}

#[test]
fn what_user_space_lacks_is_told_and_what_else_a_service_has_is_served() {
    let on = BackEnd::Userspace;
    let mut scene = Scene::new();
    scene.lab.exposed(1, A, |_| {});
    assert!(on.lacks(Lack::Sctp));
    let ports = vec![ServicePort::new(
        "s",
        Protocol::Sctp,
        NonZeroU16::new(80).unwrap(),
    )];
    let sctp = Service::new(vec!["10.96.0.7".parse().unwrap()], ports).unwrap();
    let name = ObjectName::new("default", "sctp");
    scene.lab.cluster.services.insert(name, Ok(sctp));
    let applied = scene.apply_by(on.name());
    assert_eq!(
        applied.left_out,
        ["sctp 10.96.0.7:80: the userspace proxy carries TCP and UDP only"]
    );
    assert!(scene.client.ping("10.96.0.7"));
    assert!(on.lacks(Lack::ClientsAddress));
    let (who, seen) = scene.client.tcp(SERVICE[0]).unwrap();
    assert_eq!((who.as_str(), seen), ("a", "172.30.0.11".parse().unwrap()));
    // Its only endpoint refuses: the client is connected before that is known.
    assert!(on.lacks(Lack::LateRefusal));
    let _silent = scene.lab.pod(0, 4);
    scene.lab.exposed(1, &[(0, 4)], |_| {});
    scene.apply_by(on.name());
    let reset = scene.client.tcp(SERVICE[0]).unwrap_err();
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset, "{reset}");
}

#[test]
fn an_external_ip_that_is_another_nodes_or_a_pods_address_cuts_nobody_off() {
    let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500).carried_by(BackEnd::Userspace);
    let (a, client, b) = (lab.pod(0, 2), lab.pod(0, 9), lab.pod(1, 3));
    a.serve("a", 8080);
    b.serve("b", 8080);
    lab.nodes[1].serve("node1", 9000);
    lab.exposed(1, A, |service| {
        let ips = ["172.30.0.12", "fd30::12", "10.244.1.3", "203.0.113.1"];
        service.external.ips = ips.map(|ip| ip.parse().unwrap()).into();
    });
    let other = lab.cluster.nodes.remove(&node_name(1)).unwrap();
    // Nobody's as yet, as far as the cluster says.
    let applied = lab.apply(0);
    assert!(
        !applied.left_out.iter().any(|why| why.contains("172.30.0.12")),
        "{applied:?}"
    );
    let mut talk = Talk::begin(&client, "172.30.0.12:80");
    assert_eq!(talk.ask(), "a");
    assert!(client.tcp("172.30.0.12:9000").is_err());
    // Its connection holds nothing up.
    lab.cluster.nodes.insert(node_name(1), other);
    let [here, there] = [0, 1].map(|node| lab.apply(node).left_out);
    let told = |protocol: &str, to: &str, whose: &str| {
        format!(
            "{protocol} {to}:80: {} of service default/svc1 is {whose}; the userspace proxy does not take it from there",
            to.trim_matches(['[', ']'])
        )
    };
    let pods = "in the pods' range 10.244.0.0/16";
    let node = format!("an address of node {}", node_name(1));
    for protocol in ["tcp", "udp"] {
        assert!(there.contains(&told(protocol, "10.244.1.3", pods)), "{there:?}");
        for (to, whose) in [
            ("10.244.1.3", pods),
            ("172.30.0.12", &*node),
            ("[fd30::12]", &*node),
        ] {
            assert!(here.contains(&told(protocol, to, whose)), "{here:?}");
        }
    }
    assert_eq!((here.len(), there.len()), (6, 2), "{here:?} {there:?}");
    for from in [&client, &lab.nodes[0]] {
        for to in ["172.30.0.12:9000", "[fd30::12]:9000"] {
            assert_eq!(from.tcp(to).unwrap().0, "node1", "{to}");
        }
        // By the tunnel.
        for to in ["10.244.1.3:8080", "[fd00:10:244:1::3]:8080"] {
            assert_eq!(from.tcp(to).unwrap().0, "b", "{to}");
        }
        assert!(from.ping("172.30.0.12") && from.ping("fd30::12") && from.ping("10.244.1.3"));
        // The other node serves its own address; the rest is served everywhere.
        for to in ["172.30.0.12:80", "[fd30::12]:80", "203.0.113.1:80", SERVICE[0]] {
            assert_eq!(from.tcp(to).unwrap().0, "a", "{to}");
        }
    }
    assert_eq!(lab.nodes[1].tcp(SERVICE[0]).unwrap().0, "a");
}

#[test]
fn an_address_leads_to_the_proxy_until_its_last_connection_ends() {
    let mut scene = Scene::new();
    scene.serve(A);
    let v4: IpAddr = "10.96.0.1".parse().unwrap();
    let mut talks = [SERVICE[0]; 2].map(|to| Talk::begin(&scene.client, to));
    scene.remove();
    scene.apply();
    assert_eq!(scene.led(), [v4].into());
    let [first, second] = &mut talks;
    assert_eq!(first.ask(), "a");
    first.0.shutdown(Shutdown::Both).unwrap();
    assert_eq!(second.ask(), "a");
    assert_eq!(scene.led(), [v4].into());
    drop(talks);
    eventually("nothing leads there", || scene.led().is_empty());
}

#[test]
fn one_proxy_at_a_time_serves_and_one_that_ends_leaves_the_next_one_alone() {
    let mut scene = Scene::new();
    scene.serve(A);
    let (node, socket) = (scene.node(), scene.socket());
    let second = node.run(|| proxy::run(&socket, "this")).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::AddrInUse, "{second}");
    // While one ends the next begins, again and again.
    for _ in 0..20 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"stop\n").unwrap();
        // As an agent does that finds nobody.
        eventually("it is ending", || UnixStream::connect(&socket).is_err());
        let next = socket.clone();
        node.run(|| std::thread::spawn(move || proxy::run(&next, "this")));
        // The old one has ended.
        stream.read_to_end(&mut Vec::new()).unwrap();
        eventually("the next one serves", || UnixStream::connect(&socket).is_ok());
        scene.apply();
        for to in SERVICE {
            assert_eq!(scene.client.tcp(to).unwrap().0, "a", "{to}");
        }
    }
}

#[test]
fn no_datagram_goes_to_an_endpoint_that_was_gone_when_its_flow_began() {
    let mut scene = Scene::new();
    scene.serve(A);
    let (node, stop) = (scene.node(), AtomicBool::new(false));
    let mut kernel = node.run(|| node.kernel(DataplaneName::Userspace));
    let client = scene.client.again();
    std::thread::scope(|scope| {
        let (flows, begun) = mpsc::sync_channel(64);
        let stop = &stop;
        // Flows begin without a pause, whatever changes.
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let flow = client.udp_socket(SERVICE[0]);
                flow.send(b"?").unwrap();
                if flows.send(flow).is_err() {
                    break;
                }
            }
        });
        for round in 0..100 {
            let (pods, name) = if round % 2 == 0 { (B, "b") } else { (A, "a") };
            scene.lab.exposed(1, pods, |_| {});
            let state = scene.lab.state(0);
            scene.node().run(|| kernel.follow(&state).unwrap());
            for flow in begun.try_iter().take(32) {
                // Answers to what was sent before the change may be on their way still.
                flow.set_nonblocking(true).unwrap();
                while flow.recv(&mut [0; 100]).is_ok() {}
                flow.set_nonblocking(false).unwrap();
                let before = std::iter::from_fn(|| Some(ask(&flow).unwrap().0)).take(3);
                assert_eq!(before.last().unwrap(), name, "in round {round}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        drop(begun);
    });
}

#[test]
fn a_client_whose_endpoint_refuses_gets_another() {
    let mut scene = Scene::new();
    // Nobody listens on the second one.
    let _silent = scene.lab.pod(0, 4);
    scene.serve(&[(0, 2), (0, 4)]);
    let answers = answerers(40, || scene.client.tcp(SERVICE[0]));
    assert_eq!(answers, ["a".to_owned()].into());
}

#[test]
fn a_connection_that_is_reset_at_one_end_is_reset_at_the_other() {
    let mut scene = Scene::new();
    let listener = scene.serve_by_hand();
    let reset = |stream: TcpStream| {
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    };
    let end = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read(&mut [0]).map_err(|error| error.kind())
    };
    let client = Talk::begin(&scene.client, SERVICE[0]).0;
    let server = listener.accept().unwrap().0;
    reset(server);
    assert_eq!(end(client), Err(ErrorKind::ConnectionReset));
    let client = Talk::begin(&scene.client, SERVICE[0]).0;
    let server = listener.accept().unwrap().0;
    reset(client);
    assert_eq!(end(server), Err(ErrorKind::ConnectionReset));
}

mod linux_6_12 {
    /// What it takes out of the kernel, every test beside it would miss.
    mod alone {
        use super::super::*;

        /// Here netfilter is made of modules: it is taken out, and stays out while this is held.
        struct WithoutNetfilter(String);

        const MODPROBE: &str = "/proc/sys/kernel/modprobe";

        impl WithoutNetfilter {
            fn new(scene: &Scene) -> Self {
                scene.node().command(
                    "modprobe=$(cat /proc/sys/kernel/modprobe)
                    $modprobe -a veth bridge vxlan
                    for turn in $(seq 50); do
                        for module in $(cut -d ' ' -f 1 /proc/modules | grep -E '^(nf_|nft_|nfnetlink|ip_set|ip_vs|x_tables|xt_|ip6?t_|ip6?_?table)'); do
                            $modprobe -r $module 2>/dev/null || true
                        done
                        # Namespaces that have ended hold their tables for a moment yet.
                        grep -qE '^nfnetlink|^nf_' /proc/modules || exit 0
                        sleep 0.2
                    done
                    cat /proc/modules
                    exit 1",
                );
                let before = std::fs::read_to_string(MODPROBE).unwrap();
                std::fs::write(MODPROBE, "/bin/false").unwrap();
                WithoutNetfilter(before)
            }
        }

        impl Drop for WithoutNetfilter {
            fn drop(&mut self) {
                std::fs::write(MODPROBE, &self.0).unwrap();
            }
        }

        #[test]
        #[ignore = "needs Linux 6.12: cargo xtask vm"]
        fn a_kernel_without_netfilter_has_services_all_the_same() {
            let mut scene = Scene::new();
            let _without = WithoutNetfilter::new(&scene);
            scene.lab.exposed(1, BOTH, |_| {});
            let applied = scene.apply_by(DataplaneName::Userspace);
            assert_eq!(applied.refused, Vec::<String>::new());
            let left_out: Vec<&str> = applied
                .left_out
                .iter()
                .filter_map(|why| why.split(':').next())
                .collect();
            assert_eq!(left_out, ["host ports and masquerading are not in force"]);
            let both = || ["a".to_owned(), "b".to_owned()].into();
            for to in SERVICE {
                assert_eq!(answerers(40, || scene.client.tcp(to)), both(), "{to}");
                assert_eq!(answerers(40, || scene.node().udp(to)), both(), "{to}");
            }
            for to in ["172.30.0.11:30001", "[fd30::11]:30001"] {
                assert_eq!(answerers(40, || scene.lab.underlay.tcp(to)), both(), "{to}");
                assert_eq!(answerers(40, || scene.client.udp(to)), both(), "{to}");
            }
            // The state is in force: nothing is to be done a second time.
            assert!(scene.apply_by(DataplaneName::Userspace).is_nothing());
            let node = scene.node();
            let removed = node.run(|| node.kernel(DataplaneName::Nftables).clean().unwrap());
            assert!(
                removed.iter().any(|what| what.starts_with("service proxy at ")),
                "{removed:?}"
            );
            let left = node.run(|| node.kernel(DataplaneName::Nftables).present().unwrap());
            assert_eq!(left, Vec::<String>::new());
        }
    }
}
