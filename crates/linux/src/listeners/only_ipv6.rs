//! Which IPv6 sockets were told to leave IPv4 alone, by sock_diag (include/uapi/linux/inet_diag.h).

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};

use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};

use super::Transport;
use crate::netfilter::wire::{self, HEADER, Reader, Received};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// NLM_F_REQUEST and NLM_F_DUMP.
const DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const INET6: u8 = 10;
/// Lengths of `struct inet_diag_req_v2` and `struct inet_diag_msg`.
const REQUEST: usize = 56;
const MESSAGE: usize = 72;
/// INET_DIAG_SKV6ONLY.
const ONLY: u16 = 11;
const BUFFER: usize = 64 * 1024;

/// What sockets that wait are bound to, and whether all that are bound to the same leave IPv4 alone.
pub(super) fn sockets(transport: Transport) -> io::Result<BTreeMap<(Ipv6Addr, u16), bool>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    socket.send(&request(transport), 0)?;
    let mut found = BTreeMap::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        for message in wire::messages(buffer.get(..length).unwrap_or_default()) {
            match message.kind {
                DONE | ERROR if message.errno() != 0 => {
                    return Err(io::Error::from_raw_os_error(message.errno()));
                }
                DONE | ERROR => return Ok(found),
                _ => {
                    if let Some((address, only)) = read(&message) {
                        *found.entry((*address.ip(), address.port())).or_insert(true) &= only;
                    }
                }
            }
        }
    }
}

fn request(transport: Transport) -> Vec<u8> {
    // IPPROTO_*, and the state as a bit (include/net/tcp_states.h): TCP_LISTEN, and TCP_CLOSE for what is not connected.
    let (protocol, states) = match transport {
        Transport::Tcp => (6, 1_u32 << 10),
        Transport::Udp => (17, 1_u32 << 7),
        Transport::Sctp => (132, 1_u32 << 10),
    };
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&DUMP.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[INET6, protocol, 0, 0]);
    bytes.extend_from_slice(&states.to_ne_bytes());
    // Of any address.
    bytes.resize(HEADER + REQUEST, 0);
    bytes
}

fn read(message: &Received<'_>) -> Option<(SocketAddrV6, bool)> {
    let port = u16::from_be_bytes(message.payload.get(4..6)?.try_into().ok()?);
    let address: [u8; 16] = message.payload.get(8..24)?.try_into().ok()?;
    let attributes = Reader::new(message.payload.get(MESSAGE..)?);
    let only = attributes.get(ONLY)?.first().is_some_and(|only| *only != 0);
    Some((SocketAddrV6::new(address.into(), port, 0, 0), only))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            for message in wire::messages(&bytes) {
                let _ = read(&message);
            }
        }
    }
}
