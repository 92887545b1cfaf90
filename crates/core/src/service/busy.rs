//! Node ports that programs of the node have: services do not get them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{NodePort, ServiceState};
use crate::cluster::{Family, Protocol};
use crate::shared_map::SharedMap;

/// A program's socket that waits for strangers: what it speaks, and where.
pub type Listener = (Protocol, SocketAddr);

impl ServiceState {
    /// The node ports that `before` has not.
    pub fn new_node_ports(&self, before: Option<&ServiceState>) -> Vec<NodePort> {
        let nothing = SharedMap::default();
        let before = before.map_or(&nothing, |before| &before.node_ports);
        let (now, _) = self.node_ports.unshared(before);
        let ports = now.into_iter().map(|(port, _)| *port);
        ports.filter(|port| !before.contains_key(port)).collect()
    }

    /// Those of `ports` that somebody listens on, on an address that has node ports. Who listens on the unspecified IPv6
    /// address may take IPv4, too.
    pub fn busy(
        &self,
        ports: impl IntoIterator<Item = NodePort>,
        listeners: &[Listener],
    ) -> BTreeSet<NodePort> {
        let is_busy = |port: &NodePort| {
            listeners.iter().any(|(protocol, at)| {
                let address = at.ip();
                let everywhere = address.is_unspecified() && (address.is_ipv6() || port.family == Family::V4);
                let here = Family::of(address) == port.family && self.has_node_ports_on(address);
                *protocol == port.protocol && at.port() == port.port.get() && (everywhere || here)
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
            let listener = (Protocol::Tcp, address.parse().unwrap());
            let found = services.busy([v4, v6, udp], &[listener]);
            assert_eq!(found, busy.into_iter().collect(), "{address}");
        }
    }
}
