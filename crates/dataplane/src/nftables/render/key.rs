//! How the model's addresses and ports stand in sets.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use podnet_core::cluster::{Family, Protocol};
use podnet_core::service::{Frontend, HostAddress, HostPort, NodePort};

use super::super::model::Key;
use super::super::rule::octets;

/// Protocol and port, as the sets of the node's own ports have them.
fn port_key(protocol: Protocol, port: NonZeroU16) -> Key {
    let mut key = vec![protocol.number(), 0, 0, 0];
    key.extend_from_slice(&port_bytes(port.get()));
    key
}

pub(crate) fn host_port_key(host_port: &HostPort) -> Key {
    port_key(host_port.protocol, host_port.port)
}

pub(crate) fn node_port_key(node_port: &NodePort) -> Key {
    port_key(node_port.protocol, node_port.port)
}

pub(crate) fn frontend_key(frontend: &Frontend) -> Key {
    let mut key = octets(frontend.address);
    key.extend(port_key(frontend.protocol, frontend.port));
    key
}

/// A number as numgen gives it.
pub(crate) fn number_bytes(number: u32) -> [u8; 4] {
    number.to_ne_bytes()
}

pub(crate) fn socket_bytes(socket: SocketAddr) -> Vec<u8> {
    let mut bytes = octets(socket.ip());
    bytes.extend_from_slice(&port_bytes(socket.port()));
    bytes
}

fn port_bytes(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The address, and what follows it, of a key that begins with one.
pub(crate) fn split_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => {
            let (address, rest) = bytes.split_first_chunk::<4>()?;
            Some((IpAddr::from(*address), rest))
        }
        Family::V6 => {
            let (address, rest) = bytes.split_first_chunk::<16>()?;
            Some((IpAddr::from(*address), rest))
        }
    }
}

fn split_port(key: &[u8]) -> Option<(Protocol, NonZeroU16, &[u8])> {
    let (protocol, rest) = key.split_first_chunk::<4>()?;
    let (port, rest) = rest.split_first_chunk::<4>()?;
    let port = NonZeroU16::new(u16::from_be_bytes([port[0], port[1]]))?;
    Some((Protocol::from_number(protocol[0])?, port, rest))
}

/// The frontend that a key begins with, and what follows it.
pub(crate) fn read_frontend(family: Family, key: &[u8]) -> Option<(Frontend, &[u8])> {
    let (address, rest) = split_address(family, key)?;
    let (protocol, port, rest) = split_port(rest)?;
    let frontend = Frontend {
        address,
        protocol,
        port,
    };
    Some((frontend, rest))
}

/// The node port that a key begins with, and what follows it.
pub(crate) fn read_node_port(family: Family, key: &[u8]) -> Option<(NodePort, &[u8])> {
    let (protocol, port, rest) = split_port(key)?;
    let node_port = NodePort {
        family,
        protocol,
        port,
    };
    Some((node_port, rest))
}

pub(crate) fn read_host_port(family: Family, key: &[u8]) -> Option<HostPort> {
    let (protocol, port, _) = split_port(key)?;
    Some(HostPort {
        address: HostAddress::Any(family),
        protocol,
        port,
    })
}

pub(crate) fn read_number(rest: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(rest.try_into().ok()?))
}

pub(crate) fn read_socket(family: Family, data: &[u8]) -> Option<SocketAddr> {
    let (address, port) = split_address(family, data)?;
    let port = u16::from_be_bytes([*port.first()?, *port.get(1)?]);
    Some(SocketAddr::new(address, port))
}
