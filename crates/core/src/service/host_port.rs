//! Ports of the node itself that lead into its pods: `hostPort`.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use super::Frontend;
use crate::cluster::{Family, Protocol};

/// A port of this node. Pods may share a number on different addresses or protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Where on the node.
    pub address: HostAddress,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: NonZeroU16,
}

/// Which of the node's addresses a host port is bound to (`hostIP`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostAddress {
    /// Every address that the node has, of this family.
    Any(Family),
    /// This one.
    One(IpAddr),
}

impl HostAddress {
    /// What `hostIP` says: nothing means every address of both families, an unspecified address every one of its own.
    pub fn of(host_ip: Option<IpAddr>) -> Vec<HostAddress> {
        match host_ip {
            None => vec![HostAddress::Any(Family::V4), HostAddress::Any(Family::V6)],
            Some(address) if address.is_unspecified() => vec![HostAddress::Any(Family::of(address))],
            Some(address) => vec![HostAddress::One(address)],
        }
    }

    /// Its family.
    pub fn family(self) -> Family {
        match self {
            HostAddress::Any(family) => family,
            HostAddress::One(address) => Family::of(address),
        }
    }

    /// Whether the node reaches it by its IPv4 loopback address. There is no such way in IPv6: the kernel sends
    /// nothing from ::1 to another link.
    pub fn is_on_loopback(self) -> bool {
        match self {
            HostAddress::Any(family) => family == Family::V4,
            HostAddress::One(address) => address.is_ipv4() && address.is_loopback(),
        }
    }
}

impl HostPort {
    /// The host ports that one mapping of a pod makes: one for each family which both `hostIP` and the pod have.
    pub fn mapped(
        host_ip: Option<IpAddr>,
        protocol: Protocol,
        port: NonZeroU16,
        pod: &[IpAddr],
        container_port: NonZeroU16,
    ) -> impl Iterator<Item = (HostPort, SocketAddr)> {
        HostAddress::of(host_ip).into_iter().filter_map(move |address| {
            let target = pod.iter().find(|ip| Family::of(**ip) == address.family())?;
            let host_port = HostPort {
                address,
                protocol,
                port,
            };
            Some((host_port, SocketAddr::new(*target, container_port.get())))
        })
    }

    /// The one address and port where it is, unless it is on all of the node's.
    pub fn frontend(&self) -> Option<Frontend> {
        match self.address {
            HostAddress::Any(_) => None,
            HostAddress::One(address) => Some(self.on(address)),
        }
    }

    /// Every address and port where it is, on a node that has the addresses `own`.
    pub(super) fn places<'a>(&'a self, own: &'a BTreeSet<IpAddr>) -> impl Iterator<Item = Frontend> + 'a {
        let own = own.iter().filter(|address| match self.address {
            HostAddress::Any(family) => Family::of(**address) == family,
            HostAddress::One(_) => false,
        });
        self.frontend()
            .into_iter()
            .chain(own.map(|address| self.on(*address)))
    }

    fn on(&self, address: IpAddr) -> Frontend {
        Frontend {
            address,
            protocol: self.protocol,
            port: self.port,
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = (self.protocol, self.port);
        match self.address {
            HostAddress::Any(Family::V4) => write!(f, "{protocol} 0.0.0.0:{port}"),
            HostAddress::Any(Family::V6) => write!(f, "{protocol} [::]:{port}"),
            HostAddress::One(address) => write!(f, "{protocol} {}", SocketAddr::new(address, port.get())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(host_ip: &str) -> Vec<String> {
        let pod = ["10.244.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        let (port, inside) = (NonZeroU16::new(8080).unwrap(), NonZeroU16::new(80).unwrap());
        HostPort::mapped(host_ip.parse().ok(), Protocol::Tcp, port, &pod, inside)
            .map(|(host_port, target)| format!("{host_port} to {target}"))
            .collect()
    }

    #[test]
    fn a_host_port_is_bound_to_its_host_ip() {
        assert_eq!(
            mapped(""),
            [
                "tcp 0.0.0.0:8080 to 10.244.0.7:80",
                "tcp [::]:8080 to [fd00::7]:80"
            ]
        );
        assert_eq!(mapped("0.0.0.0"), ["tcp 0.0.0.0:8080 to 10.244.0.7:80"]);
        assert_eq!(mapped("::"), ["tcp [::]:8080 to [fd00::7]:80"]);
        assert_eq!(mapped("172.30.0.11"), ["tcp 172.30.0.11:8080 to 10.244.0.7:80"]);
        assert_eq!(mapped("fd30::b"), ["tcp [fd30::b]:8080 to [fd00::7]:80"]);
    }
}
