//! What is particular to programs in front of the table: sockets that are led, and all that keeps them from it.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use podnet_core::cluster::{DataplaneName, Family, Routing};
use podnet_core::state::NodeState;
use podnet_dataplane::ebpf::Sizes;
use podnet_dataplane::{Applied, Dataplane, Kernel, ebpf};
use socket2::{Domain, Socket, Type};

use crate::common::{BackEnd, Lab, Machine, eventually, parse};

const SERVICE: &str = "10.96.0.1:80";
const SERVICE_SIX: &str = "[fd00:10:96::1]:80";

/// A node with a service of one endpoint, `a`, and a client; `b` is in no service yet.
struct Scene {
    lab: Lab,
    client: Machine,
    pods: [Machine; 2],
}

/// What is left out, but for what a kernel does not have at links (Linux 6.1).
fn of_sockets(applied: &Applied) -> Vec<&str> {
    let told = applied.left_out.iter().map(String::as_str);
    told.filter(|told| !told.contains("tcx")).collect()
}

impl Scene {
    fn new() -> Self {
        let mut lab = Lab::new(1, Routing::default(), Family::V4, 1500).carried_by(BackEnd::Ebpf);
        lab.exposed(1, &[(0, 2)], |_| {});
        let pods = [lab.pod(0, 2), lab.pod(0, 3)];
        for (pod, name) in pods.iter().zip(["a", "b"]) {
            for own in [
                format!("10.244.0.{}", 2 + u8::from(name == "b")),
                format!("fd00:10:244::{}", 2 + u8::from(name == "b")),
            ] {
                pod.serve_at(name, SocketAddr::new(own.parse().unwrap(), 8080));
            }
        }
        let client = lab.pod(0, 9);
        let applied = lab.apply(0);
        assert_eq!(of_sockets(&applied), [""; 0]);
        Scene { lab, client, pods }
    }

    fn node(&self) -> &Machine {
        &self.lab.nodes[0]
    }

    /// Connections that the node's table translated, as connection tracking has them.
    fn translated(&self) -> String {
        self.node()
            .command("conntrack -L --dst-nat 2>/dev/null; conntrack -L -f ipv6 --dst-nat 2>/dev/null")
    }

    fn apply(&self) -> Applied {
        self.lab.apply(0)
    }

    fn hooks(&self) -> Vec<PathBuf> {
        let pins = std::fs::read_dir(self.node().programs().bpffs.join("podnet")).unwrap();
        let names = pins.map(|entry| entry.unwrap().path());
        names
            .filter(|path| path.is_dir() && !path.ends_with("path"))
            .collect()
    }
}

/// A datagram by a socket that is not connected, and who it takes for the sender of the answer.
fn exchange(socket: &UdpSocket, to: &str) -> std::io::Result<(String, SocketAddr)> {
    socket.send_to(b"?", to)?;
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let (name, _) = parse(std::str::from_utf8(&buffer[..length]).unwrap())?;
    Ok((name, from))
}

fn unconnected(machine: &Machine, at: &str) -> UdpSocket {
    let socket = machine.run(|| UdpSocket::bind(at).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

#[test]
fn a_connection_goes_to_its_endpoint_untranslated_and_its_peer_is_the_service() {
    let scene = Scene::new();
    let node = scene.node();
    let from = [&scene.client, node];
    let by_node_port = ["172.30.0.11:30001", "[fd30::11]:30001"];
    for (client, to) in from.into_iter().flat_map(|client| {
        [SERVICE, SERVICE_SIX]
            .into_iter()
            .chain(by_node_port)
            .map(move |to| (client, to))
    }) {
        let (name, _) = client.tcp(to).unwrap();
        assert_eq!(name, "a", "{to}");
        let stream = client.run(|| TcpStream::connect(to).unwrap());
        assert_eq!(stream.peer_addr().unwrap(), to.parse().unwrap());
    }
    assert_eq!(scene.client.tcp(SERVICE).unwrap().1, Ipv4Addr::new(10, 244, 0, 9));
    assert_eq!(scene.translated(), "");
    // Nobody else's sockets are led: the table has these.
    assert_eq!(scene.lab.underlay.tcp("172.30.0.11:30001").unwrap().0, "a");
    assert!(
        scene.translated().contains("dport=30001"),
        "{}",
        scene.translated()
    );
}

#[test]
fn a_socket_of_ipv6_reaches_services_of_ipv4() {
    let scene = Scene::new();
    let mapped: SocketAddr = "[::ffff:10.96.0.1]:80".parse().unwrap();
    let stream = scene.client.run(|| TcpStream::connect(mapped).unwrap());
    assert_eq!(stream.peer_addr().unwrap(), mapped);
    let socket = scene.client.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
        socket.set_only_v6(false).unwrap();
        socket
            .bind(&"[::]:0".parse::<SocketAddr>().unwrap().into())
            .unwrap();
        UdpSocket::from(socket)
    });
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(
        exchange(&socket, "[::ffff:10.96.0.1]:80").unwrap(),
        ("a".into(), mapped)
    );
    assert_eq!(scene.translated(), "");
}

#[test]
fn datagrams_are_led_one_by_one_and_answers_come_from_the_service() {
    let mut scene = Scene::new();
    for (any, to) in [("0.0.0.0:0", SERVICE), ("[::]:0", SERVICE_SIX)] {
        let socket = unconnected(&scene.client, any);
        assert_eq!(exchange(&socket, to).unwrap(), ("a".into(), to.parse().unwrap()));
        // Somebody else answers under his own address.
        let direct = if any.starts_with('0') {
            "10.244.0.3:8080"
        } else {
            "[fd00:10:244::3]:8080"
        };
        assert_eq!(
            exchange(&socket, direct).unwrap(),
            ("b".into(), direct.parse().unwrap())
        );
    }
    assert_eq!(scene.translated(), "");
    // One socket stays with its endpoint while that serves, and goes to another when it does not.
    let socket = unconnected(&scene.client, "0.0.0.0:0");
    assert_eq!(exchange(&socket, SERVICE).unwrap().0, "a");
    scene.lab.endpoints(1, &[(0, 3)], &[(0, 2)]);
    scene.apply();
    assert_eq!(exchange(&socket, SERVICE).unwrap().0, "a");
    assert_eq!(
        exchange(&unconnected(&scene.client, "0.0.0.0:0"), SERVICE)
            .unwrap()
            .0,
        "b"
    );
    scene.lab.endpoints(1, &[(0, 3)], &[]);
    scene.apply();
    assert_eq!(
        exchange(&socket, SERVICE).unwrap(),
        ("b".into(), SERVICE.parse().unwrap())
    );
    let [_, b] = &scene.pods;
    drop(b.link("eth0"));
}

#[test]
fn a_connected_socket_of_udp_is_left_to_the_table_and_outlives_its_endpoint() {
    let mut scene = Scene::new();
    let socket = scene.client.udp_socket(SERVICE);
    assert_eq!(crate::common::ask(&socket).unwrap().0, "a");
    assert!(
        scene.translated().contains("dst=10.96.0.1"),
        "{}",
        scene.translated()
    );
    scene.lab.endpoints(1, &[(0, 3)], &[]);
    scene.apply();
    assert_eq!(crate::common::ask(&socket).unwrap().0, "b");
}

/// Such a socket takes answers from its peer alone.
#[test]
fn a_connected_socket_that_names_its_peer_is_left_to_the_table() {
    let scene = Scene::new();
    for to in [SERVICE, SERVICE_SIX] {
        let socket = scene.client.udp_socket(to);
        assert_eq!(exchange(&socket, to).unwrap(), ("a".into(), to.parse().unwrap()));
    }
    assert!(
        scene.translated().contains("dst=10.96.0.1"),
        "{}",
        scene.translated()
    );
}

#[test]
fn an_endpoint_that_is_asked_by_its_own_address_answers_by_it() {
    let scene = Scene::new();
    let socket = unconnected(&scene.client, "0.0.0.0:0");
    let direct = "10.244.0.2:8080";
    for to in [SERVICE, direct, SERVICE] {
        assert_eq!(exchange(&socket, to).unwrap(), ("a".into(), to.parse().unwrap()));
    }
}

/// One that was led there would go on to be, though nobody keeps its rows.
#[test]
fn a_service_that_has_outgrown_its_room_is_led_no_more() {
    let mut scene = Scene::new();
    scene
        .node()
        .run(|| scene.node().kernel(DataplaneName::Ebpf).clean().unwrap());
    let (mut kernel, state) = changed(&scene, |site| {
        site.sizes = Sizes {
            services: 100,
            endpoints: 8,
        }
    });
    let applied = scene.node().run(|| kernel.apply(&state).unwrap());
    assert_eq!(of_sockets(&applied), [""; 0]);
    // Two other pods, and no room for more than one.
    let third = scene.lab.pod(0, 4);
    third.serve_at("c", "10.244.0.4:8080".parse().unwrap());
    scene.lab.endpoints(1, &[(0, 3), (0, 4)], &[]);
    let state = scene.lab.state(0);
    let applied = scene.node().run(|| kernel.follow(&state).unwrap());
    assert!(
        of_sockets(&applied).iter().all(|told| told.contains("is full")),
        "{applied:?}"
    );
    assert!(!of_sockets(&applied).is_empty());
    for _ in 0..8 {
        for who in [scene.client.tcp(SERVICE), scene.client.tcp("172.30.0.11:30001")] {
            assert!(["b", "c"].contains(&who.unwrap().0.as_str()));
        }
    }
    // It takes no room either: with one endpoint everything is led again.
    scene.lab.endpoints(1, &[(0, 3)], &[]);
    let state = scene.lab.state(0);
    let applied = scene.node().run(|| kernel.follow(&state).unwrap());
    assert_eq!(of_sockets(&applied), [""; 0]);
    scene.node().command("conntrack -F 2>/dev/null");
    assert_eq!(scene.client.tcp(SERVICE).unwrap().0, "b");
    assert_eq!(scene.translated(), "");
}

/// Its addresses may be the services', and mean something else.
#[test]
fn a_network_that_is_none_of_ours_is_left_alone() {
    let scene = Scene::new();
    let stranger = Machine::alone(&["10.96.0.1/24"]);
    let listener = stranger.run(|| TcpListener::bind(SERVICE).unwrap());
    let mut stream = stranger.run(|| TcpStream::connect(SERVICE).unwrap());
    drop(listener.accept().unwrap());
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(scene.client.tcp(SERVICE).unwrap().0, "a");
}

/// A node, and a data plane of it at a site that is made different.
fn changed(scene: &Scene, change: impl FnOnce(&mut ebpf::Site)) -> (Kernel, NodeState) {
    let mut site = scene.node().programs();
    change(&mut site);
    let open = || {
        Kernel::open(None, DataplaneName::Ebpf)
            .unwrap()
            .with_programs(site)
            .unwrap()
    };
    (scene.node().run(open), scene.lab.state(0))
}

#[test]
fn what_the_kernel_cannot_have_is_told_and_the_table_carries_services() {
    let scene = Scene::new();
    scene
        .node()
        .run(|| scene.node().kernel(DataplaneName::Ebpf).clean().unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    let place = elsewhere.path().to_owned();
    let no_group = place.join("missing");
    for (why, change) in [
        (
            "is no bpffs",
            Box::new(|site: &mut ebpf::Site| site.bpffs = place.clone()) as Box<dyn FnOnce(&mut ebpf::Site)>,
        ),
        (
            "No such file or directory",
            Box::new(|site| site.cgroup = Some(no_group.clone())),
        ),
        // A directory, and no group.
        (
            "the kernel does not take the hook recvmsg4",
            Box::new(|site| site.cgroup = Some(place.clone())),
        ),
    ] {
        let (mut kernel, state) = changed(&scene, change);
        let applied = scene.node().run(|| kernel.apply(&state).unwrap());
        // A group is for sockets alone.
        let told = of_sockets(&applied);
        let (told, rest) = told.split_first().unwrap();
        assert!(
            told.contains(why) && told.contains("nftables translates"),
            "{told}"
        );
        let of_path = rest
            .iter()
            .filter(|told| told.contains("they are routed instead"));
        assert_eq!(
            (of_path.count(), rest.len()),
            match why {
                "is no bpffs" => (1, 1),
                _ => (0, 0),
            }
        );
        assert_eq!(scene.client.tcp(SERVICE).unwrap().0, "a");
        // It is the same the next time.
        let again = scene.node().run(|| kernel.follow(&state).unwrap());
        assert_eq!((again.left_out, again.service_changes), (applied.left_out, 0));
    }
}

#[test]
fn a_service_for_which_there_is_no_room_is_left_to_the_table() {
    let mut scene = Scene::new();
    scene
        .node()
        .run(|| scene.node().kernel(DataplaneName::Ebpf).clean().unwrap());
    // Of two protocols and families each, with two node ports: eight, and eight slots.
    let room = |services, endpoints| move |site: &mut ebpf::Site| site.sizes = Sizes { services, endpoints };
    for (sizes, led) in [((3, 100), 3), ((100, 5), 5)] {
        let (mut kernel, state) = changed(&scene, room(sizes.0, sizes.1));
        let applied = scene.node().run(|| kernel.apply(&state).unwrap());
        assert_eq!(of_sockets(&applied).len(), 8 - led, "{applied:?}");
        assert!(
            of_sockets(&applied).iter().all(|told| told.contains("is full")),
            "{applied:?}"
        );
        for to in [SERVICE, SERVICE_SIX, "172.30.0.11:30001", "[fd30::11]:30001"] {
            assert_eq!(scene.client.tcp(to).unwrap().0, "a", "{to}");
            assert_eq!(scene.client.udp(to).unwrap().0, "a", "{to}");
        }
        // What others free is given to who waits.
        scene.lab.endpoints(1, &[], &[]);
        let none = scene.lab.state(0);
        let applied = scene.node().run(|| kernel.follow(&none).unwrap());
        assert_eq!(of_sockets(&applied), [""; 0]);
        scene.lab.endpoints(1, &[(0, 2)], &[]);
        scene.node().run(|| kernel.clean().unwrap());
    }
}

/// As if another build had attached them.
fn be_of_another_build(hooks: &Path) {
    let name = hooks.file_name().unwrap().to_str().unwrap();
    let (_, group) = name.rsplit_once('-').unwrap();
    std::fs::rename(hooks, hooks.with_file_name(format!("hooks-other-{group}"))).unwrap();
}

#[test]
fn an_agent_that_starts_goes_on_and_one_of_another_build_takes_over() {
    let scene = Scene::new();
    let hooks = scene.hooks();
    assert_eq!(hooks.len(), 1);
    let socket = unconnected(&scene.client, "0.0.0.0:0");
    assert_eq!(exchange(&socket, SERVICE).unwrap().0, "a");
    let stream = scene.client.run(|| TcpStream::connect(SERVICE).unwrap());
    // Each application is of a new data plane.
    assert!(scene.apply().is_nothing());
    assert_eq!(scene.hooks(), hooks);
    for _ in 0..10 {
        be_of_another_build(&hooks[0]);
        assert!(scene.apply().is_nothing());
        assert_eq!(scene.hooks(), hooks);
        assert_eq!(exchange(&socket, SERVICE).unwrap().1, SERVICE.parse().unwrap());
    }
    // What programs remember is still there.
    assert_eq!(stream.peer_addr().unwrap(), SERVICE.parse().unwrap());
    assert_eq!(
        exchange(&socket, SERVICE).unwrap(),
        ("a".into(), SERVICE.parse().unwrap())
    );
    assert_eq!(scene.translated(), "");
}

#[test]
fn what_others_take_off_is_put_back() {
    let scene = Scene::new();
    let node = scene.node();
    let mut kernel = node.run(|| node.kernel(DataplaneName::Ebpf));
    let state = scene.lab.state(0);
    assert!(node.run(|| kernel.apply(&state).unwrap()).is_nothing());
    std::fs::remove_dir_all(&scene.hooks()[0]).unwrap();
    let applied = node.run(|| kernel.apply(&state).unwrap());
    assert_eq!(of_sockets(&applied), [""; 0]);
    assert_eq!(applied.put_back.services, 1);
    assert_eq!(scene.client.tcp(SERVICE).unwrap().0, "a");
    assert_eq!(scene.translated(), "");
}

#[test]
fn what_others_take_out_of_a_map_is_put_back() {
    let scene = Scene::new();
    let node = scene.node();
    let mut kernel = node.run(|| node.kernel(DataplaneName::Ebpf));
    let state = scene.lab.state(0);
    node.run(|| kernel.apply(&state).unwrap());
    // By another data plane of the node, which has no services, so that sockets are led nowhere.
    let none = Lab::new(1, Routing::default(), Family::V4, 1500).state(0);
    let mut other = node.run(|| node.kernel(DataplaneName::Ebpf));
    node.run(|| other.apply(&none).unwrap());
    let applied = node.run(|| kernel.apply(&state).unwrap());
    assert!(applied.put_back.services > 8, "{applied:?}");
    assert_eq!(scene.client.tcp(SERVICE).unwrap().0, "a");
    assert_eq!(scene.translated(), "");
    let again = node.run(|| kernel.apply(&state).unwrap());
    assert!(again.is_nothing() && again.put_back.is_nothing(), "{again:?}");
}

#[test]
fn another_back_end_leaves_nothing_of_it() {
    let scene = Scene::new();
    let node = scene.node();
    let present = || node.run(|| node.kernel(DataplaneName::Nftables).present().unwrap());
    assert!(
        present().iter().any(|what| what.contains("eBPF programs")),
        "{:?}",
        present()
    );
    let state = scene.lab.state(0);
    node.run(|| node.kernel(DataplaneName::Nftables).apply(&state).unwrap());
    assert!(
        !present().iter().any(|what| what.contains("eBPF")),
        "{:?}",
        present()
    );
    // The kernel takes hooks off a moment after their pins are gone.
    eventually("connections are translated", || {
        assert_eq!(scene.client.tcp(SERVICE).unwrap().0, "a");
        scene.translated().contains("dst=10.96.0.1")
    });
}

/// All of it after one another, for a kernel that is slow to boot.
pub(crate) fn everything() {
    a_connection_goes_to_its_endpoint_untranslated_and_its_peer_is_the_service();
    a_socket_of_ipv6_reaches_services_of_ipv4();
    datagrams_are_led_one_by_one_and_answers_come_from_the_service();
    a_connected_socket_of_udp_is_left_to_the_table_and_outlives_its_endpoint();
    a_connected_socket_that_names_its_peer_is_left_to_the_table();
    an_endpoint_that_is_asked_by_its_own_address_answers_by_it();
    a_service_that_has_outgrown_its_room_is_led_no_more();
    a_network_that_is_none_of_ours_is_left_alone();
    what_the_kernel_cannot_have_is_told_and_the_table_carries_services();
    a_service_for_which_there_is_no_room_is_left_to_the_table();
    an_agent_that_starts_goes_on_and_one_of_another_build_takes_over();
    what_others_take_off_is_put_back();
    what_others_take_out_of_a_map_is_put_back();
    another_back_end_leaves_nothing_of_it();
}
