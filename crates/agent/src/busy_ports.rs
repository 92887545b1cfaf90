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
    };
    (protocol, listener.address)
}
