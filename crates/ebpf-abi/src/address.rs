//! Addresses and ports, both as packets and sockets have them: in network byte order.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address of either family, 16 bytes; of IPv4 as an IPv4-mapped one (RFC 4291, 2.5.5.2).
///
/// So a socket of IPv6 that asks for a mapped address asks for what a socket of IPv4 would.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Address(pub [u8; 16]);

/// The first 12 bytes of a mapped address.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

impl Address {
    /// From an IPv4 address' bytes.
    #[inline(always)]
    pub const fn v4([a, b, c, d]: [u8; 4]) -> Self {
        let [.., high, low] = MAPPED;
        Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low, a, b, c, d])
    }

    /// In two words, for comparisons that are quick and say no more than whether two are the same.
    #[inline(always)]
    pub(crate) const fn words(&self) -> (u64, u64) {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        (
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        )
    }

    /// The bytes of an IPv4 address, where it is one.
    #[inline(always)]
    pub fn as_v4(&self) -> Option<[u8; 4]> {
        let [front @ .., a, b, c, d] = self.0;
        (front == MAPPED).then_some([a, b, c, d])
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Address::v4(address.octets()),
            IpAddr::V6(address) => Address(address.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address.as_v4() {
            Some(octets) => Ipv4Addr::from(octets).into(),
            None => Ipv6Addr::from(address.0).into(),
        }
    }
}

/// A transport protocol by its number (IANA).
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Protocol(pub u8);

impl Protocol {
    /// RFC 9293.
    pub const TCP: Protocol = Protocol(6);
    /// RFC 768.
    pub const UDP: Protocol = Protocol(17);
    /// RFC 9260.
    pub const SCTP: Protocol = Protocol(132);
}

/// What a service is asked for by: 20 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Frontend {
    /// One of the service's addresses, or of the node's where it is a node port.
    pub address: Address,
    /// In network byte order.
    pub port: [u8; 2],
    /// The protocol.
    pub protocol: Protocol,
    zero: u8,
}

impl Frontend {
    /// A port of an address.
    #[inline(always)]
    pub const fn new(address: Address, port: [u8; 2], protocol: Protocol) -> Self {
        Frontend {
            address,
            port,
            protocol,
            zero: 0,
        }
    }

    /// The address and port alone.
    pub const fn socket(&self) -> Endpoint {
        Endpoint::new(self.address, self.port)
    }
}

/// An address and a port, of an endpoint of a service or of whatever else a socket speaks to: 20 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// In network byte order.
    pub port: [u8; 2],
    zero: [u8; 2],
}

impl Endpoint {
    /// A port of an address.
    #[inline(always)]
    pub const fn new(address: Address, port: [u8; 2]) -> Self {
        Endpoint {
            address,
            port,
            zero: [0; 2],
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(socket: SocketAddr) -> Self {
        Endpoint::new(socket.ip().into(), socket.port().to_be_bytes())
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        SocketAddr::new(endpoint.address.into(), u16::from_be_bytes(endpoint.port))
    }
}
