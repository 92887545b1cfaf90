//! Which UDP frontends a transaction changes.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use podnet_core::cluster::{Family, Protocol};

use super::model::{Key, Value};
use super::render::{names, read_frontend, read_node_port, read_socket};
use super::transaction::Transaction;
use crate::services::Touched;

impl Touched {
    pub(super) fn note(&mut self, done: &Transaction) {
        for family in [Family::V4, Family::V6] {
            let names = names(family);
            let changed = |set| done.removed(set).chain(done.added(set));
            for set in [names.services, names.outside, names.endpoints] {
                let frontends = changed(set).filter_map(|(key, _)| Some(read_frontend(family, key)?.0));
                self.frontends
                    .extend(frontends.filter(|frontend| frontend.protocol == Protocol::Udp));
            }
            for set in [
                names.node_ports,
                names.outside_ports,
                names.port_endpoints,
                names.host_ports,
            ] {
                for (key, _) in done.added(set) {
                    self.port(family, key);
                }
                for (key, value) in done.removed(set) {
                    if let (Some(left), Value::Data(data)) = (self.port(family, key), value) {
                        left.extend(read_socket(family, data));
                    }
                }
            }
        }
        // A choice that is taken away whole goes with an element above.
        let choices = done.sets().filter_map(|set| set.strip_prefix("choice"));
        self.sticky
            .extend(choices.filter(|name| name.contains("/udp/")).map(str::to_owned));
    }

    fn port(&mut self, family: Family, key: &Key) -> Option<&mut BTreeSet<SocketAddr>> {
        let (node_port, _) = read_node_port(family, key)?;
        (node_port.protocol == Protocol::Udp).then(|| self.left(node_port))
    }
}
