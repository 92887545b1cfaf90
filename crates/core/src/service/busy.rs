//! Node ports that programs of the node have: services do not get them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{NodePort, ServiceState};
use crate::cluster::{Family, Protocol};
use crate::shared_map::SharedMap;

/// A program's socket that waits for strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// What it speaks.
    pub protocol: Protocol,
    /// What it is bound to.
    pub address: SocketAddr,
    /// Whether it takes IPv4 as well, if it is bound to the unspecified IPv6 address.
    pub takes_ipv4: bool,
}

impl ServiceState {
    /// The node ports that `before` has not.
    pub fn new_node_ports(&self, before: Option<&ServiceState>) -> Vec<NodePort> {
        let nothing = SharedMap::default();
        let before = before.map_or(&nothing, |before| &before.node_ports);
        let (now, _) = self.node_ports.unshared(before);
        let ports = now.into_iter().map(|(port, _)| *port);
        ports.filter(|port| !before.contains_key(port)).collect()
    }

    /// Those of `ports` that somebody listens on, on an address that has node ports.
    pub fn busy(
        &self,
        ports: impl IntoIterator<Item = NodePort>,
        listeners: &[Listener],
    ) -> BTreeSet<NodePort> {
        let is_busy = |port: &NodePort| {
            listeners.iter().any(|listener| {
                let address = listener.address.ip();
                let same = Family::of(address) == port.family;
                let everywhere =
                    address.is_unspecified() && (same || port.family == Family::V4 && listener.takes_ipv4);
                let here = same && self.has_node_ports_on(address);
                listener.protocol == port.protocol
                    && listener.address.port() == port.port.get()
                    && (everywhere || here)
            })
        };
        ports.into_iter().filter(is_busy).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_busy_where_node_ports_are() {
        let port = |family, protocol| NodePort {
            family,
            protocol,
            port: 30080.try_into().unwrap(),
        };
        let (v4, v6) = (port(Family::V4, Protocol::Tcp), port(Family::V6, Protocol::Tcp));
        let udp = port(Family::V4, Protocol::Udp);
        let all_but_loopback = ServiceState::default();
        let one_range = ServiceState {
            node_port_addresses: Some(["172.30.0.0/24".parse().unwrap()].into()),
            ..ServiceState::default()
        };
        for (address, services, busy) in [
            ("0.0.0.0:30080", &all_but_loopback, vec![v4]),
            ("[::]:30080", &all_but_loopback, vec![v4, v6]),
            ("172.30.0.11:30080", &all_but_loopback, vec![v4]),
            ("172.30.0.11:30080", &one_range, vec![v4]),
            ("0.0.0.0:30080", &one_range, vec![v4]),
            ("172.31.0.11:30080", &one_range, vec![]),
            ("127.0.0.1:30080", &all_but_loopback, vec![]),
            ("0.0.0.0:30081", &all_but_loopback, vec![]),
        ] {
            let listener = Listener {
                protocol: Protocol::Tcp,
                address: address.parse().unwrap(),
                takes_ipv4: true,
            };
            let found = services.busy([v4, v6, udp], &[listener]);
            assert_eq!(found, busy.into_iter().collect(), "{address}");
            if listener.address.is_ipv6() {
                let alone = Listener {
                    takes_ipv4: false,
                    ..listener
                };
                assert_eq!(services.busy([v4, v6, udp], &[alone]), [v6].into());
            }
        }
    }
}
