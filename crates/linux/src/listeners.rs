//! Sockets that wait for strangers, as /proc/net lists them: TCP and SCTP sockets that listen, UDP sockets that are not
//! connected.

mod only_ipv6;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A socket that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// What it speaks.
    pub transport: Transport,
    /// What it is bound to.
    pub address: SocketAddr,
    /// Whether it takes IPv4 as well: so does one of the unspecified IPv6 address, unless it was told not to.
    pub takes_ipv4: bool,
}

impl Listener {
    /// One that was told nothing about IPv4.
    fn at(transport: Transport, address: SocketAddr) -> Self {
        Listener {
            transport,
            address,
            takes_ipv4: address.is_ipv4() || address.ip().is_unspecified(),
        }
    }
}

/// States in /proc/net/tcp and udp (include/net/tcp_states.h): TCP_LISTEN, and TCP_CLOSE for UDP that is not connected.
const LISTENS: &str = "0A";
const UNCONNECTED: &str = "07";

const FILES: [(&str, Transport, &str); 4] = [
    ("tcp", Transport::Tcp, LISTENS),
    ("tcp6", Transport::Tcp, LISTENS),
    ("udp", Transport::Udp, UNCONNECTED),
    ("udp6", Transport::Udp, UNCONNECTED),
];

/// Those of the calling thread's network namespace. A kernel without IPv6 or SCTP has none of these.
pub fn listening() -> io::Result<Vec<Listener>> {
    let mut all = Vec::new();
    for (file, transport, state) in FILES {
        let Some(file) = open(file)? else {
            continue;
        };
        for line in file.lines().skip(1) {
            let line = line?;
            let Some((found, address)) = read(&line) else {
                continue;
            };
            if found == state {
                all.push(Listener::at(transport, address));
            } else if transport == Transport::Tcp {
                // The kernel tells those that listen first (tcp_seq_start), and there may be very many others.
                break;
            }
        }
    }
    for line in open("sctp/eps")?.into_iter().flat_map(BufRead::lines) {
        all.extend(read_endpoint(&line?));
    }
    for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
        let mut dual = all
            .iter_mut()
            .filter(|listener| {
                listener.transport == transport && listener.address.is_ipv6() && listener.takes_ipv4
            })
            .peekable();
        if dual.peek().is_some() {
            let known = told(transport);
            for listener in dual {
                listener.takes_ipv4 = !known.get(&listener.address).is_some_and(|only| *only);
            }
        }
    }
    Ok(all)
}

fn open(file: &str) -> io::Result<Option<BufReader<File>>> {
    match File::open(format!("/proc/thread-self/net/{file}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => Ok(Some(BufReader::new(file?))),
    }
}

/// Whether sockets of IPv6 leave IPv4 alone. Nothing, where the kernel does not tell: then they may take it.
fn told(transport: Transport) -> BTreeMap<SocketAddr, bool> {
    let found = only_ipv6::sockets(transport).unwrap_or_default();
    let found = found.into_iter();
    found
        .map(|((address, port), only)| (SocketAddr::from((address, port)), only))
        .collect()
}

/// State and address of `sl local_address rem_address st ...`, addresses as words of 32 bits in the machine's byte order.
fn read(line: &str) -> Option<(&str, SocketAddr)> {
    let mut fields = line.split_whitespace();
    let (local, _, state) = (fields.nth(1)?, fields.next()?, fields.next()?);
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(address.get(8 * at..8 * at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let address = if address.len() == 8 {
        IpAddr::from(Ipv4Addr::from(word(0)?))
    } else {
        let mut bytes = [0; 16];
        for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
            four.copy_from_slice(&word(at)?);
        }
        IpAddr::from(Ipv6Addr::from(bytes))
    };
    Some((state, SocketAddr::new(address, port)))
}

/// A line `ENDPT SOCK STY SST HBKT LPORT UID INODE LADDRS` of /proc/net/sctp/eps (net/sctp/proc.c), where sockets are as
/// long as they listen: one for each address that it is bound to, of whichever family.
fn read_endpoint(line: &str) -> Vec<Listener> {
    let mut fields = line.split_whitespace();
    let Some(port) = fields.nth(5).and_then(|port| port.parse().ok()) else {
        return Vec::new();
    };
    let addresses = fields
        .skip(2)
        .filter_map(|address| address.parse::<IpAddr>().ok());
    addresses
        .map(|address| Listener::at(Transport::Sctp, SocketAddr::new(address.to_canonical(), port)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn what_waits_is_found_and_what_is_connected_is_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp6 = TcpListener::bind("[::1]:0").unwrap();
        let udp = UdpSocket::bind("[::]:0").unwrap();
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect(udp_address(&udp)).unwrap();
        let stream = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let found = listening().unwrap();
        let has = |transport, address| found.contains(&Listener::at(transport, address));
        assert!(has(Transport::Tcp, tcp.local_addr().unwrap()));
        assert!(has(Transport::Tcp, tcp6.local_addr().unwrap()));
        assert!(has(Transport::Udp, udp.local_addr().unwrap()));
        assert!(!has(Transport::Udp, connected.local_addr().unwrap()));
        assert!(!has(Transport::Tcp, stream.local_addr().unwrap()));
    }

    #[test]
    fn a_socket_that_leaves_ipv4_alone_is_known() {
        use rustix::net::sockopt::set_ipv6_v6only;
        use rustix::net::{AddressFamily, SocketType, bind, ipproto, listen, socket};

        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let bound = |kind, protocol| {
            let socket = socket(AddressFamily::INET6, kind, Some(protocol)).unwrap();
            set_ipv6_v6only(&socket, true).unwrap();
            bind(&socket, &any).unwrap();
            socket
        };
        let tcp = bound(SocketType::STREAM, ipproto::TCP);
        listen(&tcp, 1).unwrap();
        let (tcp, udp) = (
            TcpListener::from(tcp),
            UdpSocket::from(bound(SocketType::DGRAM, ipproto::UDP)),
        );
        let found = listening().unwrap();
        for (transport, address) in [
            (Transport::Tcp, tcp.local_addr().unwrap()),
            (Transport::Udp, udp.local_addr().unwrap()),
        ] {
            let alone = Listener {
                transport,
                address,
                takes_ipv4: false,
            };
            assert!(found.contains(&alone), "{alone:?}");
        }
    }

    fn udp_address(socket: &UdpSocket) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], socket.local_addr().unwrap().port()))
    }

    #[test]
    fn a_line_that_is_not_understood_is_no_listener() {
        for line in ["", "0: 0100007F", "0: x:1F90 0:0 0A"] {
            assert_eq!(read(line), None, "{line}");
        }
    }

    #[test]
    fn sctp_sockets_are_found_by_every_address_they_are_bound_to() {
        // As Linux prints it; where pointers are hidden, zeros.
        let text = " ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS
ffff88017e0a0200 ffff880299f7fa00 2   10  29   11165   200 299689357 10.0.0.102 10.0.0.70\x20
       0        0 1   10  24   30001     0 227065 0.0.0.0\x20
       0        0 1   10  25   30002     0 227066 0000:0000:0000:0000:0000:0000:0000:0000\x20
       0        0 2   10  26   30003     0 227067 fd30:0000:0000:0000:0000:0000:0000:0011 172.30.0.11\x20
       0        0 2   10  27   30004     0 227068\x20
";
        let found: Vec<_> = text.lines().flat_map(read_endpoint).collect();
        let expected = [
            ("10.0.0.102:11165", true),
            ("10.0.0.70:11165", true),
            ("0.0.0.0:30001", true),
            ("[::]:30002", true),
            ("[fd30::11]:30003", false),
            ("172.30.0.11:30003", true),
        ];
        let expected = expected.map(|(address, takes_ipv4)| Listener {
            transport: Transport::Sctp,
            address: address.parse().unwrap(),
            takes_ipv4,
        });
        assert_eq!(found, expected);
    }
}
