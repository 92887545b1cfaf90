//! Which UDP flows are to be forgotten after a change: those whose frontend now leads elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU16;

use podnet_core::NodeState;
use podnet_core::cluster::{Family, Protocol};
use podnet_core::service::{Entry, Frontend, HostAddress, HostPort, NodePort};

use super::model::{Key, Value};
use super::render::{names, read_frontend, read_node_port, read_socket};
use super::transaction::Transaction;

/// What transactions changed for UDP, and whose flows have not been looked through yet.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Addresses and ports.
    frontends: BTreeSet<Frontend>,
    /// Service ports whose clients stay with their endpoint, as the names of their sets end.
    sticky: BTreeSet<String>,
    /// Ports of the node's own addresses, with what was behind them.
    ports: BTreeMap<(Family, u16), BTreeSet<SocketAddr>>,
    /// What changed before is not known: who made the table may have ended before it came to the flows.
    everything: bool,
}

impl Touched {
    pub(super) fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.sticky.is_empty() && self.ports.is_empty() && !self.everything
    }

    /// Every flow is to be looked at: the table is somebody else's.
    pub(super) fn note_all(&mut self) {
        self.everything = true;
    }

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
        let key = (family, node_port.port.get());
        (node_port.protocol == Protocol::Udp).then(|| self.ports.entry(key).or_default())
    }

    /// Whether a flow goes on to what `state` no longer has there.
    pub(super) fn is_stale(&self, state: &NodeState, sent_to: SocketAddr, answered_from: SocketAddr) -> bool {
        let Some(port) = NonZeroU16::new(sent_to.port()) else {
            return false;
        };
        let (protocol, family) = (Protocol::Udp, Family::of(sent_to.ip()));
        let host_port = |address| {
            let host_port = HostPort {
                address,
                protocol,
                port,
            };
            state.services.host_ports.get(&host_port) == Some(&answered_from)
        };
        let frontend = Frontend {
            address: sent_to.ip(),
            protocol,
            port,
        };
        let services = &state.services;
        let entry = services.frontends.get(&frontend);
        let translated = answered_from != sent_to;
        let is_cluster_ip = || services.ranges.iter().any(|range| range.contains(&sent_to.ip()));
        let perhaps = self.everything && (entry.is_some() || translated && is_cluster_ip());
        if perhaps
            || self.frontends.contains(&frontend)
            || entry.is_some_and(|entry| self.has_touched(family, entry))
        {
            return match entry {
                Some(entry) => !entry.keeps(answered_from),
                None => !host_port(HostAddress::One(sent_to.ip())),
            };
        }
        let node_port = NodePort {
            family,
            protocol,
            port,
        };
        let node_port = state.services.node_ports.get(&node_port);
        let left = self.ports.get(&(family, sent_to.port()));
        // On the node's own addresses whatever was sent there: to the node itself before the port led anywhere, and to
        // endpoints that only the choices of sticky clients named.
        let own = sent_to.ip().is_loopback() || state.routing.node_addresses.contains(&sent_to.ip());
        let was_there = left.is_some_and(|left| own || left.contains(&answered_from))
            || self.everything && own && (node_port.is_some() || translated);
        let was_sticky = own && node_port.is_some_and(|entry| self.has_touched(family, entry));
        let kept =
            node_port.is_some_and(|entry| entry.keeps(answered_from)) || host_port(HostAddress::Any(family));
        (was_there || was_sticky) && !kept
    }

    fn has_touched(&self, family: Family, entry: &Entry) -> bool {
        let name = format!("{}-{}", super::model::digit(family), entry.port);
        let mut touched = self.sticky.range(name.clone()..);
        touched.next().is_some_and(|found| found.starts_with(&name))
    }
}
