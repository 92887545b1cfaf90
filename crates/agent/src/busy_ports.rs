//! Node ports that programs of the node have: services do not get them.

use std::collections::BTreeSet;

use podnet_core::cluster::{Family, Protocol};
use podnet_core::service::{NodePort, ServiceState};
use podnet_core::shared_map::SharedMap;
use podnet_linux::listeners::{Listener, Transport, listening};

/// The node ports that `before` has not.
pub fn new(now: &ServiceState, before: Option<&ServiceState>) -> Vec<NodePort> {
    let nothing = SharedMap::default();
    let before = before.map_or(&nothing, |before| &before.node_ports);
    let (now, _) = now.node_ports.unshared(before);
    let ports = now.into_iter().map(|(port, _)| *port);
    ports.filter(|port| !before.contains_key(port)).collect()
}

/// Those of `ports` that somebody listens on; all of them while that cannot be seen: none is stolen.
pub fn of(ports: impl IntoIterator<Item = NodePort>, services: &ServiceState) -> BTreeSet<NodePort> {
    match listening() {
        Ok(listeners) => among(ports, &listeners, services),
        Err(error) => {
            tracing::warn!("cannot see which ports of the node are in use, new node ports wait: {error}");
            ports.into_iter().collect()
        }
    }
}

/// Those of `ports` that somebody listens on, on an address that has node ports.
fn among(
    ports: impl IntoIterator<Item = NodePort>,
    listeners: &[Listener],
    services: &ServiceState,
) -> BTreeSet<NodePort> {
    let is_busy = |port: &NodePort| {
        listeners.iter().any(|listener| {
            let address = listener.address.ip();
            let everywhere = address.is_unspecified() && (address.is_ipv6() || port.family == Family::V4);
            let here = Family::of(address) == port.family && services.has_node_ports_on(address);
            protocol(listener.transport) == port.protocol
                && listener.address.port() == port.port.get()
                && (everywhere || here)
        })
    };
    ports.into_iter().filter(is_busy).collect()
}

fn protocol(transport: Transport) -> Protocol {
    match transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
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
                transport: Transport::Tcp,
                address: address.parse().unwrap(),
            };
            let found = among([v4, v6, udp], &[listener], services);
            assert_eq!(found, busy.into_iter().collect(), "{address}");
        }
    }
}
