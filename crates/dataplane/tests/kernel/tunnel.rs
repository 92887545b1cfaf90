//! Packets of pods in the tunnel: programs at both ends, at one, and none.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use podnet_core::cluster::{DataplaneName, Family, Routing};
use podnet_dataplane::Dataplane;

use crate::common::{BackEnd, Lab, Machine, PATIENCE, any};
use crate::talk::Talk;

const DEVICE: &str = "podnet.vxlan";
const SERVERS: [&str; 2] = ["10.244.1.2", "fd00:10:244:1::2"];

/// Two nodes, with a pod that asks on the first and one that serves on the second.
struct Scene {
    lab: Lab,
    client: Machine,
    server: Machine,
}

impl Scene {
    fn new(primary: Family) -> Self {
        let lab = Lab::new(2, Routing::default(), primary, 1500).carried_by(BackEnd::Ebpf);
        let (client, server) = (lab.pod(0, 9), lab.pod(1, 2));
        server.serve("a", 8080);
        lab.apply_all();
        Scene { lab, client, server }
    }

    /// How many packets the tunnels' devices have sent and received.
    fn by_devices(&self) -> u64 {
        let packets = |node: &Machine| {
            let told = node.command(&format!("ip -s link show {DEVICE}"));
            // The counts are below the words RX and TX, after the bytes.
            let lines: Vec<&str> = told.lines().collect();
            let below = lines.windows(2).filter(|pair| pair[0].contains("bytes"));
            let counts = below.map(|pair| pair[1].split_whitespace().nth(1).unwrap());
            counts.map(|count| count.parse::<u64>().unwrap()).sum::<u64>()
        };
        self.lab.nodes.iter().map(packets).sum()
    }

    fn answers(&self) {
        for server in SERVERS {
            let to = SocketAddr::new(server.parse().unwrap(), 8080).to_string();
            assert_eq!(self.client.tcp(&to).unwrap().0, "a", "{to}");
            assert_eq!(self.client.udp(&to).unwrap().0, "a", "{to}");
        }
    }

    /// Sends much in either direction, all of which has to arrive as it was.
    fn exchange_much(&self) {
        const MUCH: usize = 4 << 20;
        let listener = self.server.run(|| TcpListener::bind("[::]:9001").unwrap());
        for server in SERVERS {
            let to = SocketAddr::new(server.parse().unwrap(), 9001);
            let stream = self.client.run(|| TcpStream::connect(to).unwrap());
            let (far, _) = listener.accept().unwrap();
            let text: Vec<u8> = (0..MUCH).map(|at| ((at * 31) >> 3) as u8).collect();
            std::thread::scope(|scope| {
                for (mut from, mut to) in [
                    (stream.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far, stream),
                ] {
                    let text = &text;
                    scope.spawn(move || {
                        from.write_all(text).unwrap();
                        from.shutdown(std::net::Shutdown::Write).unwrap();
                    });
                    scope.spawn(move || {
                        to.set_read_timeout(Some(4 * PATIENCE)).unwrap();
                        let mut arrived = Vec::new();
                        to.read_to_end(&mut arrived).unwrap();
                        assert!(arrived == *text, "{} bytes", arrived.len());
                    });
                }
            });
        }
    }
}

#[test]
fn what_programs_put_into_the_tunnel_passes_no_device() {
    let scene = Scene::new(Family::V4);
    // The first that is too large for the tunnel is answered by the stack, and senders learn.
    scene.exchange_much();
    let before = scene.by_devices();
    scene.answers();
    scene.exchange_much();
    assert_eq!(scene.by_devices(), before);
    let known = scene.lab.nodes[1].command("conntrack -L -p tcp --dport 8080 2>/dev/null; true");
    assert_eq!(known, "");
}

#[test]
fn what_is_no_pods_or_nothing_ordinary_goes_by_the_device() {
    let scene = Scene::new(Family::V4);
    let sink = scene.server.run(|| UdpSocket::bind("[::]:9000").unwrap());
    sink.set_read_timeout(Some(PATIENCE)).unwrap();
    // As the plugin has it.
    scene.client.command("ip link set eth0 mtu 1450");
    for to in SERVERS {
        let before = scene.by_devices();
        let to = SocketAddr::new(to.parse().unwrap(), 9000);
        let socket = scene.client.run(|| UdpSocket::bind(any(to, 0)).unwrap());
        // In fragments.
        socket.send_to(&[7; 6000], to).unwrap();
        let mut buffer = [0; 8192];
        assert_eq!(sink.recv(&mut buffer).unwrap(), 6000);
        assert!(scene.by_devices() > before);
        // From the node itself.
        let before = scene.by_devices();
        let of_node = scene.lab.nodes[0].run(|| UdpSocket::bind(any(to, 0)).unwrap());
        of_node.send_to(&[7; 60], to).unwrap();
        assert_eq!(sink.recv(&mut buffer).unwrap(), 60);
        assert!(scene.by_devices() > before);
    }
}

/// As QUIC sends them (UDP_SEGMENT): they are one packet as far as the links take it.
#[test]
fn datagrams_that_are_sent_in_one_arrive_one_by_one() {
    for routing in [Routing::Direct, Routing::default()] {
        let lab = Lab::new(2, routing, Family::V4, 1500).carried_by(BackEnd::Ebpf);
        let (client, near, far) = (lab.pod(0, 9), lab.pod(0, 2), lab.pod(1, 2));
        lab.apply_all();
        for (server, to) in [(&near, ["10.244.0.2", "fd00:10:244::2"]), (&far, SERVERS)] {
            let sink = server.run(|| UdpSocket::bind("[::]:9000").unwrap());
            sink.set_read_timeout(Some(PATIENCE)).unwrap();
            for to in to {
                client.command(&format!(
                    "python3 -c \"import socket; s = socket.socket(socket.AF_INET{}, socket.SOCK_DGRAM); \
                     s.setsockopt(17, 103, 1200); \
                     s.sendto(b''.join(bytes([at]) * 1200 for at in range(10)), ('{to}', 9000))\"",
                    if to.contains(':') { "6" } else { "" },
                ));
                for number in 0..10 {
                    let mut buffer = [0xff; 2048];
                    let length = sink.recv(&mut buffer).unwrap();
                    assert_eq!(buffer[..length], [number; 1200], "{to} {routing:?}");
                }
            }
        }
    }
}

/// The device at the other end takes what programs send, and programs take what it sends.
#[test]
fn an_end_without_programs_is_none_the_wiser() {
    let scene = Scene::new(Family::V4);
    for without in 0..2 {
        let node = &scene.lab.nodes[without];
        let mut state = scene.lab.state(without);
        state.wired = Default::default();
        node.run(|| node.kernel(DataplaneName::Nftables).apply(&state).unwrap());
        scene.answers();
        scene.exchange_much();
        scene.lab.apply(without);
        let before = scene.by_devices();
        scene.answers();
        assert_eq!(scene.by_devices(), before);
    }
}

#[test]
fn over_ipv6_the_device_puts_packets_into_the_tunnel() {
    let scene = Scene::new(Family::V6);
    let before = scene.by_devices();
    scene.answers();
    scene.exchange_much();
    assert!(scene.by_devices() > before);
}

/// Whoever chooses between links, or others, does so for the stack.
#[test]
fn a_node_that_is_reached_otherwise_is_heard_of() {
    let scene = Scene::new(Family::V4);
    let node = &scene.lab.nodes[0];
    let mut talk = Talk::begin(&scene.client, "10.244.1.2:8080");
    let state = scene.lab.state(0);
    let (mut kernel, disturbed) = node.watched(&state);
    assert!(disturbed.recv_timeout(Duration::from_secs(2)).is_err());
    node.command(
        "ip link add other up type bridge; ip addr add 172.30.9.1/24 dev other; \
         ip route add 172.30.0.12/32 nexthop dev eth0 nexthop via 172.30.9.2 dev other weight 1",
    );
    disturbed.recv_timeout(PATIENCE).unwrap();
    node.command("ip route replace 172.30.0.12/32 dev eth0 mtu 1400");
    node.run(|| kernel.apply(&state).unwrap());
    assert_eq!(talk.ask(), "a");
    let by_program = scene.by_devices();
    scene.answers();
    assert_eq!(scene.by_devices(), by_program);
    // What is larger than that goes by the device, which cuts it.
    scene.exchange_much();
    assert!(scene.by_devices() > by_program);
    node.command("ip route replace 172.30.0.12/32 nexthop dev eth0 nexthop dev eth0 weight 2");
    node.run(|| kernel.apply(&state).unwrap());
    assert_eq!(talk.ask(), "a");
    let before = scene.by_devices();
    scene.answers();
    assert!(scene.by_devices() > before);
}

mod linux_6_12 {
    mod ebpf {
        use super::super::*;

        #[test]
        #[ignore = "needs another kernel: cargo xtask vm"]
        fn tunnel() {
            what_programs_put_into_the_tunnel_passes_no_device();
            an_end_without_programs_is_none_the_wiser();
            datagrams_that_are_sent_in_one_arrive_one_by_one();
            what_is_no_pods_or_nothing_ordinary_goes_by_the_device();
        }
    }
}
