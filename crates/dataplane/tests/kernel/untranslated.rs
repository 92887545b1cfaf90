//! Packets that connection tracking does not translate: out of a connection's window, or of no connection at all.
//! No rule of ours sees them, and still none may end a connection, leave the node, or be answered.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;

use crate::common::{BackEnd, Lab, Machine, PATIENCE};
use podnet_core::cluster::{Family, Routing};
use podnet_dataplane::Dataplane;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, sockopt};

on_every_back_end!(
    a_segment_out_of_the_window_ends_no_connection,
    a_connection_that_tracking_forgot_goes_on,
    what_belongs_to_no_connection_stays_on_the_node_and_is_not_answered,
    a_node_without_a_default_route_reaches_services,
);

const SYN_FIN: u8 = 0x02 | 0x01;
const ACK: u8 = 0x10;

/// A TCP segment of five bytes in an IPv4 packet.
fn segment(from: SocketAddrV4, to: SocketAddrV4, flags: u8, (sequence, acknowledged): (u32, u32)) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledged.to_be_bytes());
    tcp.extend([5 << 4, flags, 0x10, 0, 0, 0, 0, 0]);
    tcp.extend(b"stray");
    let mut pseudo = [from.ip().octets(), to.ip().octets()].concat();
    pseudo.extend([0, 6, 0, tcp.len() as u8]);
    let sum = checksum(&[pseudo, tcp.clone()].concat());
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x45, 0, 0, 20 + tcp.len() as u8, 0, 0, 0, 0, 64, 6, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(tcp);
    packet
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("{address} is not IPv4"),
    }
}

fn send(machine: &Machine, packet: &[u8]) {
    let to = SocketAddrV4::new(Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]), 0);
    machine.run(|| {
        let raw = Protocol::from_raw(rustix::net::RawProtocol::new(255).unwrap());
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(raw)).unwrap();
        match rustix::net::sendto(&socket, packet, SendFlags::empty(), &to) {
            // A rule stopped it on its way out.
            Ok(_) | Err(Errno::PERM) => {}
            Err(error) => panic!("{to}: {error}"),
        }
    });
}

/// Sees every IPv4 packet of a machine, in and out.
struct Sniffer(std::os::fd::OwnedFd);

impl Sniffer {
    fn new(machine: &Machine) -> Self {
        // ETH_P_ALL, in network order: of a single protocol one sees only what arrives.
        let all = Protocol::from_raw(rustix::net::RawProtocol::new(3_u16.to_be().into()).unwrap());
        let socket = machine.run(|| {
            let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::DGRAM, Some(all)).unwrap();
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
            socket
        });
        Sniffer(socket)
    }

    /// The next IPv4 packet, header first.
    fn next(&self) -> rustix::io::Result<Vec<u8>> {
        let mut buffer = [0_u8; 2048];
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            if length >= 20 && buffer[0] >> 4 == 4 {
                return Ok(buffer[..length].to_vec());
            }
        }
    }

    /// Sources and destinations of what passes until something goes to `last`.
    fn until(&self, last: Ipv4Addr) -> Vec<(Ipv4Addr, Ipv4Addr)> {
        let mut seen = Vec::new();
        loop {
            let packet = self.next();
            let packet =
                packet.unwrap_or_else(|error| panic!("nothing to {last} came ({error}) after {seen:?}"));
            let (from, to) = addresses(&packet);
            if to == last {
                return seen;
            }
            seen.push((from, to));
        }
    }

    /// The sequence and acknowledgement numbers of a data segment from there.
    fn numbers(&self, from: SocketAddrV4) -> (u32, u32) {
        loop {
            let packet = self.next().expect("no data segment came");
            let (ip, port) = (addresses(&packet).0, u16::from_be_bytes([packet[20], packet[21]]));
            let payload = packet.len() - 20 - usize::from(packet[32] >> 4) * 4;
            if (ip, port) == (*from.ip(), from.port()) && payload > 0 {
                let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
                return (word(24), word(28));
            }
        }
    }
}

/// Source and destination.
fn addresses(packet: &[u8]) -> (Ipv4Addr, Ipv4Addr) {
    let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    (address(12), address(16))
}

struct Connection(TcpStream);

impl Connection {
    fn open(from: &Machine, to: &str) -> Self {
        let to: SocketAddr = to.parse().unwrap();
        let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection(stream)
    }

    fn ask(&self) -> std::io::Result<String> {
        (&self.0).write_all(b"?\n")?;
        let mut line = String::new();
        BufReader::new(&self.0).read_line(&mut line)?;
        Ok(line)
    }
}

fn address(text: &str) -> SocketAddrV4 {
    text.parse().unwrap()
}

fn a_segment_out_of_the_window_ends_no_connection(on: BackEnd) {
    for server_node in [0, 1] {
        let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500).carried_by(on);
        let (client, server) = (lab.pod(0, 9), lab.pod(server_node, 2));
        server.serve("a", 8080);
        lab.service(1, &[(server_node, 2)]);
        lab.apply_all();
        // Where the client is: behind a proxy, the server has other numbers.
        let sniffer = Sniffer::new(&client);
        let connection = Connection::open(&client, "10.96.0.1:80");
        let answer = connection.ask().unwrap();
        let client_end = v4(connection.0.local_addr().unwrap());
        let (service, endpoint) = (address("10.96.0.1:80"), format!("10.244.{server_node}.2:8080"));
        let endpoint = address(&endpoint);
        // Far beyond the window; what is acknowledged is right, so that a reset in answer would count.
        let beyond = 1 << 28;
        // A socket that was led to its endpoint speaks to that.
        let peer = if on == BackEnd::Ebpf { endpoint } else { service };
        let (ours, theirs) = sniffer.numbers(peer);
        let stray = |from, to, sequence: u32, acknowledged| {
            segment(from, to, ACK, (sequence.wrapping_add(beyond), acknowledged))
        };
        send(&server, &stray(endpoint, client_end, ours, theirs));
        send(&client, &stray(client_end, peer, theirs, ours));
        for _ in 0..3 {
            assert_eq!(connection.ask().unwrap(), answer, "server on node {server_node}");
        }
    }
}

fn a_connection_that_tracking_forgot_goes_on(on: BackEnd) {
    let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500).carried_by(on);
    let (client, server) = (lab.pod(0, 9), lab.pod(1, 2));
    server.serve("a", 8080);
    lab.service(1, &[(1, 2)]);
    lab.apply_all();
    for to in ["10.96.0.1:80", "[fd00:10:96::1]:80"] {
        let connection = Connection::open(&client, to);
        let answer = connection.ask().unwrap();
        for family in ["ipv4", "ipv6"] {
            let flush = || {
                Command::new("conntrack")
                    .args(["-F", "-f", family])
                    .output()
                    .unwrap()
            };
            assert!(lab.nodes[0].run(flush).status.success());
        }
        assert_eq!(connection.ask().unwrap(), answer, "{to}");
    }
}

fn what_belongs_to_no_connection_stays_on_the_node_and_is_not_answered(on: BackEnd) {
    let mut lab = Lab::new(1, Routing::Direct, Family::V4, 1500).carried_by(on);
    let client = lab.pod(0, 9);
    lab.service(1, &[(0, 2)]);
    // Of no range, as after the ranges were changed.
    lab.cluster
        .config
        .service_cidrs
        .retain(|range| range.addr().is_ipv6());
    lab.service(2, &[]);
    lab.apply_all();
    let services = [address("10.96.0.1:80"), address("10.96.0.2:80")];
    let outside = Ipv4Addr::new(172, 30, 0, 1);
    let node = &lab.nodes[0];
    // The link has only just come up.
    assert!((0..10).any(|_| node.ping(&outside.to_string())));
    let stray = |from: &Machine, source: &str| {
        for to in services {
            send(
                from,
                &segment(
                    SocketAddrV4::new(source.parse().unwrap(), 4000),
                    to,
                    SYN_FIN,
                    (1, 1),
                ),
            );
        }
        // What is known to leave the node, behind what must not.
        let socket = from.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
        socket.send_to(b"last", (outside, 9)).unwrap();
    };
    let is_service = |address: &Ipv4Addr| services.iter().any(|service| service.ip() == address);
    for (from, source) in [(&client, "10.244.0.9"), (node, "172.30.0.11")] {
        let (wire, own) = (Sniffer::new(&lab.underlay), Sniffer::new(from));
        stray(from, source);
        let left = wire.until(outside);
        assert!(!left.iter().any(|(_, to)| is_service(to)), "{source}: {left:?}");
        let seen = own.until(outside);
        // A proxy's node is the service itself, and refuses as any host does what is of no connection of its own.
        let may_answer = |from: &Ipv4Addr| on == BackEnd::Userspace && is_service(from);
        let answered = seen
            .iter()
            .any(|(by, to)| to.to_string() == source && !may_answer(by));
        assert!(!answered, "{source}: {seen:?}");
    }
    if on == BackEnd::Userspace {
        // Its proxy puts routes back at once, as `a_route_that_somebody_removed_is_put_back` shows.
        return;
    }
    // The same without the route, to see that it would be seen.
    node.run(|| {
        for service in services {
            let service = service.ip().to_string();
            let status = Command::new("ip").args(["route", "del", &service]).status();
            assert!(status.unwrap().success());
        }
    });
    let wire = Sniffer::new(&lab.underlay);
    stray(&client, "10.244.0.9");
    let left = wire.until(outside);
    assert!(left.iter().any(|(_, to)| is_service(to)), "{left:?}");
    // Put back by the next application.
    let state = lab.state(0);
    let applied = node.run(|| node.kernel(on.name()).apply(&state).unwrap());
    assert_eq!(applied.route_changes, 2);
    let wire = Sniffer::new(&lab.underlay);
    stray(&client, "10.244.0.9");
    let left = wire.until(outside);
    assert!(!left.iter().any(|(_, to)| is_service(to)), "{left:?}");
}

fn a_node_without_a_default_route_reaches_services(on: BackEnd) {
    let mut lab = Lab::new(1, Routing::Direct, Family::V4, 1500).carried_by(on);
    let server = lab.pod(0, 2);
    server.serve("a", 8080);
    lab.service(1, &[(0, 2)]);
    lab.apply_all();
    let node = &lab.nodes[0];
    node.run(|| {
        for family in ["-4", "-6"] {
            let status = Command::new("ip")
                .args([family, "route", "del", "default"])
                .status();
            assert!(status.unwrap().success());
        }
    });
    for (to, endpoint, source) in [
        ("10.96.0.1:80", "10.244.0.2:8080", "172.30.0.11"),
        ("[fd00:10:96::1]:80", "[fd00:10:244::2]:8080", "fd30::11"),
    ] {
        let expected = on.seen(("a".into(), source.parse().unwrap()));
        assert_eq!(on.seen(node.udp(to).unwrap()), expected, "{to}");
        // A socket that is led to the endpoint asks from the address that the way there has.
        let expected = match on {
            BackEnd::Ebpf => on.seen(node.tcp(endpoint).unwrap()),
            _ => expected,
        };
        assert_eq!(on.seen(node.tcp(to).unwrap()), expected, "{to}");
    }
}
