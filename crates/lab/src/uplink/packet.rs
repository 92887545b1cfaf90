//! The packets that arrive at the gate, as far as it must understand them, and its own answers. Pure.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, TcpHeaderSlice, UdpHeaderSlice, icmpv6};

/// Hops of what we send ourselves.
const HOPS: u8 = 64;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IPV6_FRAGMENT: u8 = 44;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
/// So much of a packet goes back with an error beyond its IP header: its ports (RFC 792), which every receiver needs.
const QUOTED: usize = 8;

/// Who talks to whom, as seen inside the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    /// The pod or node, or the node that stands for its pods.
    pub(super) client: SocketAddr,
    /// Outside.
    pub(super) server: SocketAddr,
}

/// What a packet is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It opens a TCP connection.
    Opening(Flow),
    /// It is of a TCP connection that is not there, and is answered with this packet.
    Stray(Option<Vec<u8>>),
    /// A UDP datagram, or the first fragment of one.
    Datagram(Flow),
    /// A further fragment.
    Fragment,
    /// Something that does not get outside, and whose sender is told so.
    Foreign,
    /// Something that asks for no answer.
    Ignored,
}

/// The IP header, read.
struct Ip<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// In units of eight bytes.
    fragment_offset: u16,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    fn read(packet: &'a [u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::read_v4(packet),
            6 => Self::read_v6(packet),
            _ => None,
        }
    }

    fn read_v4(packet: &'a [u8]) -> Option<Self> {
        let header = usize::from(packet[0] & 0xf) * 4;
        let octets = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(<[u8; 4]>::into);
        Some(Ip {
            source: octets(12).map(|octets: Ipv4Addr| octets.into())?,
            destination: octets(16).map(|octets: Ipv4Addr| octets.into())?,
            protocol: *packet.get(9)?,
            fragment_offset: u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x1fff,
            payload: packet.get(header.max(20)..)?,
        })
    }

    fn read_v6(packet: &'a [u8]) -> Option<Self> {
        let octets = |at: usize| packet.get(at..at + 16)?.try_into().ok().map(<[u8; 16]>::into);
        let mut ip = Ip {
            source: octets(8).map(|octets: Ipv6Addr| octets.into())?,
            destination: octets(24).map(|octets: Ipv6Addr| octets.into())?,
            protocol: *packet.get(6)?,
            fragment_offset: 0,
            payload: packet.get(40..)?,
        };
        if ip.protocol == IPV6_FRAGMENT {
            ip.protocol = *ip.payload.first()?;
            ip.fragment_offset = u16::from_be_bytes([*ip.payload.get(2)?, *ip.payload.get(3)?]) >> 3;
            ip.payload = ip.payload.get(8..)?;
        }
        Some(ip)
    }

    /// Whether there can be one who sent it and one whom it is for.
    fn is_unicast(&self) -> bool {
        let proper = |address: IpAddr| {
            let link_local_v6 = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
            !(address.is_multicast() || address.is_unspecified() || link_local_v6 || broadcast)
        };
        proper(self.source) && proper(self.destination)
    }

    fn flow(&self, source: u16, destination: u16) -> Flow {
        Flow {
            client: SocketAddr::new(self.source, source),
            server: SocketAddr::new(self.destination, destination),
        }
    }
}

/// Looks at an IP packet.
pub(super) fn read(packet: &[u8]) -> Arrival {
    match Ip::read(packet) {
        Some(ip) if ip.is_unicast() => classify(&ip),
        _ => Arrival::Ignored,
    }
}

fn classify(ip: &Ip<'_>) -> Arrival {
    if ip.fragment_offset > 0 {
        return Arrival::Fragment;
    }
    let kind = ip.payload.first().copied();
    match ip.protocol {
        TCP => TcpHeaderSlice::from_slice(ip.payload).map_or(Arrival::Ignored, |tcp| segment(ip, &tcp)),
        UDP => UdpHeaderSlice::from_slice(ip.payload).map_or(Arrival::Ignored, |udp| {
            Arrival::Datagram(ip.flow(udp.source_port(), udp.destination_port()))
        }),
        // An error about an error would be answered in turn.
        ICMP if kind != Some(ECHO_REQUEST) => Arrival::Ignored,
        ICMPV6 if kind != Some(ECHO_REQUEST_V6) => Arrival::Ignored,
        _ => Arrival::Foreign,
    }
}

fn segment(ip: &Ip<'_>, tcp: &TcpHeaderSlice<'_>) -> Arrival {
    if tcp.syn() && !tcp.ack() && !tcp.rst() {
        return Arrival::Opening(ip.flow(tcp.source_port(), tcp.destination_port()));
    }
    // A reset is never answered (RFC 9293, section 3.10.7.1).
    Arrival::Stray((!tcp.rst()).then(|| reset(ip, tcp)).flatten())
}

/// The reset that answers a segment of no connection (RFC 9293, section 3.10.7.1).
fn reset(ip: &Ip<'_>, tcp: &TcpHeaderSlice<'_>) -> Option<Vec<u8>> {
    let (sequence, acknowledged) = match tcp.ack() {
        true => (tcp.acknowledgment_number(), None),
        false => {
            let data = ip.payload.len() - tcp.slice().len();
            let length = data as u32 + u32::from(tcp.syn()) + u32::from(tcp.fin());
            (0, Some(tcp.sequence_number().wrapping_add(length)))
        }
    };
    let builder = match (ip.source, ip.destination) {
        (IpAddr::V4(to), IpAddr::V4(from)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(to), IpAddr::V6(from)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOPS),
        _ => return None,
    };
    let builder = builder
        .tcp(tcp.destination_port(), tcp.source_port(), sequence, 0)
        .rst();
    let builder = match acknowledged {
        Some(number) => builder.ack(number),
        None => builder,
    };
    let mut packet = Vec::with_capacity(builder.size(0));
    builder.write(&mut packet, &[]).ok()?;
    Some(packet)
}

/// Why something does not get outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nobody listens there.
    Port,
    /// There is no way to the host.
    Host,
    /// There is no way to its network.
    Network,
    /// It is forbidden, or podnet cannot do it.
    Prohibited,
}

impl Refusal {
    /// What an error of a socket outside says; nothing for one that the client would not have heard of, such as silence.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Some(Refusal::Port),
            io::ErrorKind::HostUnreachable => Some(Refusal::Host),
            io::ErrorKind::NetworkUnreachable => Some(Refusal::Network),
            io::ErrorKind::PermissionDenied => Some(Refusal::Prohibited),
            _ => None,
        }
    }
}

/// The part of a packet that an error about it brings back.
pub(super) fn quote(packet: &[u8]) -> &[u8] {
    let header = Ip::read(packet).map_or(0, |ip| packet.len() - ip.payload.len());
    &packet[..packet.len().min(header + QUOTED)]
}

/// The answer to a packet that is refused: a reset where a connection to a port is, else an ICMP error.
pub(super) fn refuse(packet: &[u8], refusal: Refusal) -> Option<Vec<u8>> {
    let ip = Ip::read(packet)?;
    match (refusal, ip.protocol) {
        (Refusal::Port, TCP) => reset(&ip, &TcpHeaderSlice::from_slice(ip.payload).ok()?),
        _ => unreachable(&ip, quote(packet), refusal),
    }
}

/// An ICMP error that comes from the address which could not be reached.
fn unreachable(ip: &Ip<'_>, quote: &[u8], refusal: Refusal) -> Option<Vec<u8>> {
    let mut packet = Vec::new();
    match (ip.source, ip.destination) {
        (IpAddr::V4(to), IpAddr::V4(from)) => {
            let code = match refusal {
                Refusal::Port => DestUnreachableHeader::Port,
                Refusal::Host => DestUnreachableHeader::Host,
                Refusal::Network => DestUnreachableHeader::Network,
                Refusal::Prohibited => DestUnreachableHeader::FilterProhibited,
            };
            let builder = PacketBuilder::ipv4(from.octets(), to.octets(), HOPS);
            let builder = builder.icmpv4(Icmpv4Type::DestinationUnreachable(code));
            builder.write(&mut packet, quote).ok()?;
        }
        (IpAddr::V6(to), IpAddr::V6(from)) => {
            use icmpv6::DestUnreachableCode;
            let code = match refusal {
                Refusal::Port => DestUnreachableCode::Port,
                Refusal::Host => DestUnreachableCode::Address,
                Refusal::Network => DestUnreachableCode::NoRoute,
                Refusal::Prohibited => DestUnreachableCode::Prohibited,
            };
            let builder = PacketBuilder::ipv6(from.octets(), to.octets(), HOPS);
            let builder = builder.icmpv6(Icmpv6Type::DestinationUnreachable(code));
            builder.write(&mut packet, quote).ok()?;
        }
        _ => return None,
    }
    Some(packet)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    const CLIENTS: [&str; 2] = ["172.30.0.11:4000", "[fd30::b]:4000"];
    const SERVERS: [&str; 2] = ["192.0.2.1:80", "[2001:db8::1]:80"];

    fn flows() -> [Flow; 2] {
        [0, 1].map(|family| Flow {
            client: CLIENTS[family].parse().unwrap(),
            server: SERVERS[family].parse().unwrap(),
        })
    }

    fn builder(flow: &Flow) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        match (flow.client.ip(), flow.server.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 9),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 9),
            _ => unreachable!(),
        }
    }

    fn segment(flow: &Flow, flags: &str, data: &[u8]) -> Vec<u8> {
        let mut tcp = builder(flow).tcp(flow.client.port(), flow.server.port(), 100, 1000);
        for flag in flags.chars() {
            tcp = match flag {
                's' => tcp.syn(),
                'a' => tcp.ack(7000),
                'f' => tcp.fin(),
                _ => tcp.rst(),
            };
        }
        let mut packet = Vec::new();
        tcp.write(&mut packet, data).unwrap();
        packet
    }

    fn datagram(flow: &Flow, data: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let udp = builder(flow).udp(flow.client.port(), flow.server.port());
        udp.write(&mut packet, data).unwrap();
        packet
    }

    /// Sequence, acknowledgement if any, and ports of a reset.
    fn as_reset(packet: &[u8]) -> (u32, Option<u32>, u16, u16) {
        let Some(TransportSlice::Tcp(tcp)) = SlicedPacket::from_ip(packet).unwrap().transport else {
            panic!("not TCP");
        };
        assert!(tcp.rst() && !tcp.syn());
        let acknowledged = tcp.ack().then(|| tcp.acknowledgment_number());
        (
            tcp.sequence_number(),
            acknowledged,
            tcp.source_port(),
            tcp.destination_port(),
        )
    }

    #[test]
    fn first_packets_are_told_from_those_of_no_connection() {
        for flow in flows() {
            assert_eq!(read(&segment(&flow, "s", b"")), Arrival::Opening(flow));
            assert_eq!(read(&datagram(&flow, b"hi")), Arrival::Datagram(flow));
            assert!(matches!(
                read(&segment(&flow, "a", b"data")),
                Arrival::Stray(Some(_))
            ));
            assert_eq!(read(&segment(&flow, "r", b"")), Arrival::Stray(None));
        }
    }

    #[test]
    fn a_reset_fits_what_it_answers() {
        for flow in flows() {
            let refused = refuse(&segment(&flow, "s", b""), Refusal::Port).unwrap();
            assert_eq!(as_reset(&refused), (0, Some(101), 80, 4000));
            for (flags, data, expected) in [
                ("a", &b"data"[..], (7000, None, 80, 4000)),
                ("f", b"data", (0, Some(105), 80, 4000)),
            ] {
                let Arrival::Stray(Some(reset)) = read(&segment(&flow, flags, data)) else {
                    panic!("no reset");
                };
                assert_eq!(as_reset(&reset), expected);
            }
        }
    }

    #[test]
    fn an_error_quotes_the_ports_and_comes_from_the_server() {
        for flow in flows() {
            let sent = datagram(&flow, b"a long question");
            let answer = refuse(&sent, Refusal::Port).unwrap();
            let sliced = SlicedPacket::from_ip(&answer).unwrap();
            let (from, to) = match sliced.net.unwrap() {
                NetSlice::Ipv4(ip) => (
                    IpAddr::from(ip.header().source_addr()),
                    IpAddr::from(ip.header().destination_addr()),
                ),
                NetSlice::Ipv6(ip) => (
                    IpAddr::from(ip.header().source_addr()),
                    IpAddr::from(ip.header().destination_addr()),
                ),
                _ => panic!("neither"),
            };
            assert_eq!((from, to), (flow.server.ip(), flow.client.ip()));
            let quoted = match sliced.transport.unwrap() {
                TransportSlice::Icmpv4(icmp) => icmp.payload().to_vec(),
                TransportSlice::Icmpv6(icmp) => icmp.payload().to_vec(),
                _ => panic!("no error"),
            };
            assert_eq!(quoted, sent[..sent.len() - b"a long question".len()]);
        }
    }

    #[test]
    fn nobody_is_told_of_errors_and_multicast() {
        for (from, to) in [
            ("172.30.0.11", "224.0.0.1"),
            ("172.30.0.11", "255.255.255.255"),
            ("fe80::1", "ff02::2"),
        ] {
            let flow = Flow {
                client: SocketAddr::new(from.parse().unwrap(), 1),
                server: SocketAddr::new(to.parse().unwrap(), 2),
            };
            assert_eq!(read(&datagram(&flow, b"")), Arrival::Ignored);
        }
        let [flow, _] = flows();
        let error = refuse(&datagram(&flow, b""), Refusal::Host).unwrap();
        assert_eq!(read(&error), Arrival::Ignored);
    }

    #[test]
    fn further_fragments_have_no_ports() {
        let [flow, _] = flows();
        let mut packet = datagram(&flow, b"the first of two");
        packet[6] = 0x20;
        assert_eq!(read(&packet), Arrival::Datagram(flow));
        packet[7] = 3;
        assert_eq!(read(&packet), Arrival::Fragment);
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), version in 0_u8..2) {
            if let Some(first) = bytes.first_mut() {
                *first = (4 + 2 * version) << 4 | *first & 0xf;
            }
            read(&bytes);
            quote(&bytes);
            for refusal in [Refusal::Port, Refusal::Prohibited] {
                refuse(&bytes, refusal);
            }
        }
    }
}
