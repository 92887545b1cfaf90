//! What clients connect to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::{Entry, ServiceState};
use crate::cluster::{Family, ObjectName, Protocol};

/// An address, protocol and port that clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// A cluster IP, an external IP or a load balancer's address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: NonZeroU16,
}

impl Frontend {
    /// The least of those that an address can have.
    pub fn first_of(address: IpAddr) -> Self {
        Frontend {
            address,
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
        }
    }
}

/// A port that a service has on the addresses of every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePort {
    /// The family of the node's addresses.
    pub family: Family,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: NonZeroU16,
}

/// Which port of which service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    /// The service.
    pub service: ObjectName,
    /// Its port's protocol.
    pub protocol: Protocol,
    /// Its port's number.
    pub port: NonZeroU16,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = SocketAddr::new(self.address, self.port.get());
        write!(f, "{} {socket}", self.protocol)
    }
}

impl fmt::Display for NodePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = match self.family {
            Family::V4 => "0.0.0.0",
            Family::V6 => "[::]",
        };
        write!(f, "{} {any}:{}", self.protocol, self.port)
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.service, self.protocol, self.port)
    }
}

impl ServiceState {
    /// What is at an address, port by port.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = (&Frontend, &Arc<Entry>)> {
        let from = self.frontends.range(&Frontend::first_of(address));
        from.take_while(move |(frontend, _)| frontend.address == address)
    }
}
