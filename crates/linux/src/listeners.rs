//! Sockets that wait for strangers, as /proc/net lists them: TCP sockets that listen, UDP sockets that are not connected.

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
}

/// A socket that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// What it speaks.
    pub transport: Transport,
    /// What it is bound to. One of the unspecified IPv6 address takes IPv4 as well, unless it was told not to, which
    /// the kernel does not tell here.
    pub address: SocketAddr,
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

/// Those of the calling thread's network namespace. A kernel without IPv6 has none of IPv6.
pub fn listening() -> io::Result<Vec<Listener>> {
    let mut all = Vec::new();
    for (file, transport, state) in FILES {
        let file = match File::open(format!("/proc/thread-self/net/{file}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => BufReader::new(file?),
        };
        for line in file.lines().skip(1) {
            let line = line?;
            let Some((found, address)) = read(&line) else {
                continue;
            };
            if found == state {
                all.push(Listener { transport, address });
            } else if transport == Transport::Tcp {
                // The kernel tells those that listen first (tcp_seq_start), and there may be very many others.
                break;
            }
        }
    }
    Ok(all)
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
        let has = |transport, address| found.contains(&Listener { transport, address });
        assert!(has(Transport::Tcp, tcp.local_addr().unwrap()));
        assert!(has(Transport::Tcp, tcp6.local_addr().unwrap()));
        assert!(has(Transport::Udp, udp.local_addr().unwrap()));
        assert!(!has(Transport::Udp, connected.local_addr().unwrap()));
        assert!(!has(Transport::Tcp, stream.local_addr().unwrap()));
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
}
