//! Node ports that programs of the node have, as the kernel tells.

use std::collections::BTreeSet;

use podnet_core::cluster::Protocol;
use podnet_core::service::{NodePort, ServiceState};
use podnet_linux::listeners::{Listener, Transport, listening};

/// Those of `ports` that somebody listens on; all of them while that cannot be seen: none is stolen.
pub fn of(ports: impl IntoIterator<Item = NodePort>, services: &ServiceState) -> BTreeSet<NodePort> {
    match listening() {
        Ok(listeners) => {
            let listeners: Vec<_> = listeners.iter().map(read).collect();
            services.busy(ports, &listeners)
        }
        Err(error) => {
            tracing::warn!("cannot see which ports of the node are in use, new node ports wait: {error}");
            ports.into_iter().collect()
        }
    }
}

fn read(listener: &Listener) -> podnet_core::service::Listener {
    let protocol = match listener.transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
        Transport::Sctp => Protocol::Sctp,
    };
    podnet_core::service::Listener {
        protocol,
        address: listener.address,
        takes_ipv4: listener.takes_ipv4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use podnet_core::cluster::Family;
    use podnet_linux::ns::{Kind, Namespace};

    use super::*;

    /// Ports 30001 and 30002 of either family and protocol.
    fn all() -> impl Iterator<Item = NodePort> {
        let ports = [30_001_u16, 30_002].into_iter();
        ports.flat_map(|port| {
            let both = [Family::V4, Family::V6].into_iter();
            both.flat_map(move |family| {
                [Protocol::Tcp, Protocol::Udp].map(|protocol| NodePort {
                    family,
                    protocol,
                    port: port.try_into().unwrap(),
                })
            })
        })
    }

    #[test]
    fn what_a_program_of_the_node_listens_on_is_busy_until_it_ends() {
        let node = Namespace::create(Kind::Net).unwrap();
        let busy = || {
            let found = node.run(|| of(all(), &ServiceState::default())).unwrap();
            found.iter().map(NodePort::to_string).collect::<BTreeSet<_>>()
        };
        let ports = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        assert_eq!(busy(), ports(&[]));
        let (tcp, udp, loopback) = node
            .run(|| {
                podnet_linux::netlink::Netlink::open()
                    .unwrap()
                    .request(podnet_linux::netlink::LinkChange::named("lo").up(true).apply())
                    .unwrap();
                (
                    TcpListener::bind("0.0.0.0:30001").unwrap(),
                    UdpSocket::bind("[::]:30002").unwrap(),
                    TcpListener::bind("127.0.0.1:30002").unwrap(),
                )
            })
            .unwrap();
        // One of [::] takes IPv4, too; what is on loopback alone is in nobody's way: node ports are not there.
        let of_udp = ["udp 0.0.0.0:30002", "udp [::]:30002"];
        assert_eq!(busy(), ports(&["tcp 0.0.0.0:30001", of_udp[0], of_udp[1]]));
        drop((tcp, loopback));
        assert_eq!(busy(), ports(&of_udp));
        drop(udp);
        assert_eq!(busy(), ports(&[]));
    }
}
