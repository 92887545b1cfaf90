//! Which UDP flows are to be forgotten after a change: those whose frontend now leads elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU16;

use podnet_core::NodeState;
use podnet_core::cluster::{Family, Protocol};
use podnet_core::service::{Frontend, HostAddress, HostPort};

use super::model::{Key, Value};
use super::render::{frontend_key, names, split_address};
use super::transaction::Transaction;
use super::{frontend_width, read_socket};

/// Protocol number of UDP.
const UDP: u8 = 17;

/// UDP frontends that transactions changed and whose flows have not been looked through yet.
#[derive(Debug, Default)]
pub(super) struct Touched {
    frontends: BTreeSet<Key>,
    /// Host ports of all the node's addresses, with the pods' sockets that were behind them.
    host_ports: BTreeMap<(Family, u16), BTreeSet<SocketAddr>>,
}

impl Touched {
    pub(super) fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.host_ports.is_empty()
    }

    pub(super) fn note(&mut self, done: &Transaction) {
        for family in [Family::V4, Family::V6] {
            let names = names(family);
            for set in [names.services, names.endpoints] {
                for key in done.removed(set).chain(done.added(set)).map(|(key, _)| key) {
                    if let Some((_, [UDP, ..])) = split_address(family, key) {
                        let width = key.len().min(frontend_width(family));
                        self.frontends.insert(key[..width].to_vec());
                    }
                }
            }
            for (key, _) in done.added(names.host_ports) {
                if let Some(port) = udp_port(key) {
                    self.host_ports.entry((family, port)).or_default();
                }
            }
            for (key, value) in done.removed(names.host_ports) {
                if let (Some(port), Value::Data(data)) = (udp_port(key), value) {
                    let left = self.host_ports.entry((family, port)).or_default();
                    left.extend(read_socket(family, data));
                }
            }
        }
    }

    /// Whether a flow goes on to what `state` no longer has there.
    pub(super) fn is_stale(&self, state: &NodeState, sent_to: SocketAddr, answered_from: SocketAddr) -> bool {
        let Some(port) = NonZeroU16::new(sent_to.port()) else {
            return false;
        };
        let frontend = Frontend {
            address: sent_to.ip(),
            protocol: Protocol::Udp,
            port,
        };
        let target = |address| {
            let host_port = HostPort {
                address,
                protocol: Protocol::Udp,
                port,
            };
            state.services.host_ports.get(&host_port).copied()
        };
        if self.frontends.contains(&frontend_key(&frontend)) {
            let backend = state.services.frontends.get(&frontend);
            let kept = backend.map(|backend| backend.keeps(answered_from));
            return !kept.unwrap_or_else(|| target(HostAddress::One(sent_to.ip())) == Some(answered_from));
        }
        let family = Family::of(sent_to.ip());
        let Some(left) = self.host_ports.get(&(family, sent_to.port())) else {
            return false;
        };
        // What was sent to the node itself before there was a host port, too.
        let own = sent_to.ip().is_loopback() || state.routing.node_addresses.contains(&sent_to.ip());
        let was_ours = left.contains(&answered_from) || own && answered_from == sent_to;
        was_ours && target(HostAddress::Any(family)) != Some(answered_from)
    }
}

fn udp_port(key: &[u8]) -> Option<u16> {
    match key {
        [UDP, _, _, _, high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}
