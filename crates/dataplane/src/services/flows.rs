//! Which UDP flows are to be forgotten after a change: those whose frontend now leads elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use podnet_core::NodeState;
use podnet_core::cluster::{Family, Protocol};
use podnet_core::route::Hop;
use podnet_core::service::{Entry, Frontend, HostAddress, HostPort, NodePort, ServiceState};

use super::dump::{Services, Target};
use crate::conntrack;
use crate::delta::Delta;
use crate::nftables::digit;
use crate::own;
use podnet_linux::netfilter::{Netfilter, NetfilterError};

/// What was changed for UDP, and whose flows have not been looked through yet.
#[derive(Debug, Default)]
pub struct Touched {
    /// Addresses and ports.
    pub(crate) frontends: BTreeSet<Frontend>,
    /// Service ports whose clients stay with their endpoint, as the names of nftables' sets for them end.
    pub(crate) sticky: BTreeSet<String>,
    /// Ports of the node's own addresses, with what was behind them.
    ports: BTreeMap<(Family, u16), BTreeSet<SocketAddr>>,
    /// What changed before is not known: who made what carries services may have ended before it came to the flows.
    everything: bool,
}

impl Touched {
    pub(crate) fn is_empty(&self) -> bool {
        self.frontends.is_empty() && self.sticky.is_empty() && self.ports.is_empty() && !self.everything
    }

    /// Every flow is to be looked at: what carries services is somebody else's.
    pub(crate) fn note_all(&mut self) {
        self.everything = true;
    }

    /// What was behind a port of the node, which has changed.
    pub(crate) fn left(&mut self, node_port: NodePort) -> &mut BTreeSet<SocketAddr> {
        let key = (node_port.family, node_port.port.get());
        self.ports.entry(key).or_default()
    }

    /// Notes what differs between two states, one of which took the other's place.
    pub fn note_change(&mut self, old: &ServiceState, new: &ServiceState) {
        let frontends = Delta::between_shared(&new.frontends, &old.frontends);
        self.frontends.extend(frontends.keys().filter(is_udp));
        let node_ports = Delta::between_shared(&new.node_ports, &old.node_ports);
        for node_port in node_ports
            .keys()
            .filter(|node_port| node_port.protocol == Protocol::Udp)
        {
            let left = self.left(*node_port);
            if let Some(old) = old.node_ports.get(node_port) {
                left.extend(old.inside.serving());
                left.extend(old.outside().serving());
            }
        }
    }

    /// The same where all that is known of the old state is what the kernel had.
    pub fn note_found(&mut self, old: &Services, new: &ServiceState) {
        let new = Services::of(new);
        for (old, new) in [(&old.frontends, &new.frontends), (&old.outside, &new.outside)] {
            let delta = Delta::between(new, old);
            self.frontends.extend(delta.keys().filter(is_udp));
        }
        for (old, new) in [
            (&old.node_ports, &new.node_ports),
            (&old.outside_ports, &new.outside_ports),
        ] {
            let delta = Delta::between(new, old);
            for node_port in delta
                .keys()
                .filter(|node_port| node_port.protocol == Protocol::Udp)
            {
                let endpoints = old.get(node_port).map_or(&[][..], Target::endpoints);
                self.left(*node_port).extend(endpoints);
            }
        }
    }

    /// Forgets the flows that `state` no longer has an endpoint for. After a failure they are tried again the next time.
    pub(crate) fn forget(&mut self, socket: &mut Netfilter, state: &NodeState) -> Result<(), NetfilterError> {
        if self.is_empty() {
            return Ok(());
        }
        let own = own::addresses(state.routing.node_addresses.iter().copied());
        conntrack::forget(socket, |sent_to, answered_from| {
            self.is_stale(state, &own, sent_to, answered_from)
        })?;
        *self = Touched::default();
        Ok(())
    }

    /// Whether a flow goes on to what `state` no longer has there. `own` are the node's addresses.
    pub(crate) fn is_stale(
        &self,
        state: &NodeState,
        own: &BTreeSet<IpAddr>,
        sent_to: SocketAddr,
        answered_from: SocketAddr,
    ) -> bool {
        let Some(port) = NonZeroU16::new(sent_to.port()) else {
            return false;
        };
        let (protocol, family) = (Protocol::Udp, Family::of(sent_to.ip()));
        let host_port = || {
            [HostAddress::One(sent_to.ip()), HostAddress::Any(family)]
                .into_iter()
                .any(|address| {
                    let host_port = HostPort {
                        address,
                        protocol,
                        port,
                    };
                    state.services.host_ports.get(&host_port) == Some(&answered_from)
                })
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
                None => !host_port(),
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
        let own = sent_to.ip().is_loopback() || own.contains(&sent_to.ip());
        // A port that leads nowhere now may have led to a pod; what leads elsewhere is somebody else's translation.
        let was_ours = || node_port.is_some() || translated && is_pod(state, answered_from.ip());
        let was_there = left.is_some_and(|left| own || left.contains(&answered_from))
            || self.everything && own && was_ours();
        let was_sticky = own && node_port.is_some_and(|entry| self.has_touched(family, entry));
        let kept = node_port.is_some_and(|entry| entry.keeps(answered_from)) || host_port();
        (was_there || was_sticky) && !kept
    }

    fn has_touched(&self, family: Family, entry: &Entry) -> bool {
        let name = format!("{}-{}", digit(family), entry.port);
        let mut touched = self.sticky.range(name.clone()..);
        touched.next().is_some_and(|found| found.starts_with(&name))
    }
}

/// Whether a pod of some node may have that address.
fn is_pod(state: &NodeState, address: IpAddr) -> bool {
    let mut routes = state.routing.routes.iter();
    state.services.pods.iter().any(|range| range.contains(&address))
        || routes.any(|(range, hop)| *hop != Hop::Sink && range.contains(&address))
}

fn is_udp(frontend: &&Frontend) -> bool {
    frontend.protocol == Protocol::Udp
}
