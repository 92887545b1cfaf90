//! From Services and EndpointSlices to what is behind each service address.
//!
//! A client gets an [`Entry`] by the address it asks for. What the entry holds depends on who asks: a client *inside*
//! is a pod of this node or the node itself, every other is *outside*. They differ under `externalTrafficPolicy: Local`
//! only: there a client outside gets this node's endpoints, while one inside, for whom no load balancer has chosen this
//! node, gets the cluster's.

mod busy;
mod endpoints;
mod explain;
mod frontend;
mod health;
mod host_port;
mod ledger;
pub mod maglev;
mod owner;
pub(crate) mod ranges;
mod served;
mod settle;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::cluster::{Affinity, Algorithm};
use crate::shared_map::{SharedMap, SharedSet};
pub use busy::Listener;
pub use endpoints::Unchosen;
pub use explain::{Client, Explained, Explanation, Guarded, Refusal, Verdict, explain, keep_rivals, served};
pub use frontend::{Frontend, NodePort, PortName};
pub use health::{HealthCheck, HealthChecks};
pub use host_port::{HostAddress, HostPort};
pub(crate) use ledger::Ledger;
pub use owner::{Owner, of_machines};

/// Service addresses of a cluster, as one node sees them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceState {
    /// What is behind each address, protocol and port.
    pub frontends: SharedMap<Frontend, Arc<Entry>>,
    /// What is behind the ports of this node's own addresses.
    pub node_ports: SharedMap<NodePort, Arc<Entry>>,
    /// Which of the node's addresses have node ports: those in these ranges; all but loopback addresses when `None`.
    pub node_port_addresses: Option<BTreeSet<IpNet>>,
    /// The cluster IPs in use: a port of theirs that is no frontend is refused.
    pub cluster_ips: SharedSet<IpAddr>,
    /// Frontends' addresses that are somebody else's too, and whose: of these only the frontends' ports are services'.
    pub borrowed: BTreeMap<IpAddr, Owner>,
    /// The ranges services' addresses are from: an address in them that is not in use is dropped.
    pub ranges: BTreeSet<IpNet>,
    /// Where this node's pods have their addresses from. See [`ServiceState::inside`].
    pub pods: BTreeSet<IpNet>,
    /// Ports of this node that lead into its pods.
    pub host_ports: BTreeMap<HostPort, SocketAddr>,
    /// Endpoints on this node: each may be sent back to itself by its own service or host port.
    pub local_endpoints: BTreeSet<IpAddr>,
    /// What load balancers are told about this node, by port.
    pub health_checks: HealthChecks,
}

/// What clients of one address, protocol and port get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The service's port, whichever of its addresses this one is.
    pub port: Arc<PortName>,
    /// For this node's pods and the node itself.
    pub inside: Arc<Backend>,
    /// For all others, where that differs.
    pub outside: Option<Arc<Backend>>,
    /// Who may come at all; everybody, where there is nothing.
    pub sources: Option<Arc<BTreeSet<IpNet>>>,
    /// Whether a client stays with its endpoint, by whichever of the service's addresses it comes.
    pub affinity: Affinity,
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
}

/// What new connections become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// They go to one of `endpoints`, each as likely as the others.
    Balance {
        /// For new connections: sorted, each once, and at least one.
        endpoints: Box<[SocketAddr]>,
        /// Serving still, but given no new connections: what flows to them goes on. Sorted, each once.
        draining: Box<[SocketAddr]>,
    },
    /// Nobody serves it anywhere: refuse at once.
    Refuse,
    /// Nobody serves it on this node, and its policy allows no other: drop.
    Drop,
}

impl Backend {
    /// Whether a flow that was sent to `endpoint` may go on.
    pub fn keeps(&self, endpoint: SocketAddr) -> bool {
        match self {
            Backend::Balance { endpoints, draining } => {
                endpoints.binary_search(&endpoint).is_ok() || draining.binary_search(&endpoint).is_ok()
            }
            Backend::Refuse | Backend::Drop => false,
        }
    }

    /// Who gets connections, and who may go on with those that there are.
    pub fn serving(&self) -> impl Iterator<Item = SocketAddr> {
        let draining = match self {
            Backend::Balance { draining, .. } => draining.as_ref(),
            Backend::Refuse | Backend::Drop => &[],
        };
        self.endpoints().iter().chain(draining).copied()
    }

    /// Who gets new connections; nobody where they are refused or dropped.
    pub fn endpoints(&self) -> &[SocketAddr] {
        match self {
            Backend::Balance { endpoints, .. } => endpoints,
            Backend::Refuse | Backend::Drop => &[],
        }
    }
}

impl Entry {
    /// The same for everybody.
    pub fn new(port: PortName, backend: Backend) -> Self {
        Entry {
            port: Arc::new(port),
            inside: Arc::new(backend),
            outside: None,
            sources: None,
            affinity: Affinity::None,
            algorithm: Algorithm::Random,
        }
    }

    /// What those outside get.
    pub fn outside(&self) -> &Arc<Backend> {
        self.outside.as_ref().unwrap_or(&self.inside)
    }

    /// Whether a flow that was sent to `endpoint` may go on, whoever sends it.
    pub fn keeps(&self, endpoint: SocketAddr) -> bool {
        self.inside.keeps(endpoint) || self.outside().keeps(endpoint)
    }

    /// Whether a client at `source` may come.
    pub fn admits(&self, source: IpAddr) -> bool {
        let sources = self.sources.as_ref();
        sources.is_none_or(|sources| sources.iter().any(|range| range.contains(&source)))
    }
}

impl ServiceState {
    /// The ranges in which clients are inside: those of this node's pods. A node that knows none, as one that starts while
    /// its object is away, cannot tell its pods from others, and takes everybody for one.
    pub fn inside(&self) -> BTreeSet<IpNet> {
        if self.pods.is_empty() {
            return [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())].into();
        }
        self.pods.clone()
    }

    /// All addresses of services that are nobody else's: the ranges, and the cluster IPs that are in none of them.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpNet> {
        let within = |address: &IpAddr| self.ranges.iter().any(|range| range.contains(address));
        let outside = self.cluster_ips.iter().filter(move |address| !within(address));
        self.ranges
            .iter()
            .copied()
            .chain(outside.map(|address| IpNet::from(*address)))
    }

    /// Whether the node reaches node ports by its IPv4 loopback addresses. There is no such way in IPv6.
    pub fn has_node_ports_on_loopback(&self) -> bool {
        let loopback = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
        let mut ranges = self.node_port_addresses.iter().flatten();
        ranges.any(|range| match range {
            IpNet::V4(range) => loopback.contains(range) || range.contains(&loopback),
            IpNet::V6(_) => false,
        })
    }

    /// Whether node ports are on that address of the node.
    pub fn has_node_ports_on(&self, address: IpAddr) -> bool {
        match &self.node_port_addresses {
            None => !address.is_loopback(),
            Some(ranges) => ranges.iter().any(|range| range.contains(&address)),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Balance { endpoints, draining } => {
                f.write_str("to")?;
                endpoints
                    .iter()
                    .try_for_each(|endpoint| write!(f, " {endpoint}"))?;
                draining
                    .iter()
                    .try_for_each(|endpoint| write!(f, " (draining {endpoint})"))
            }
            Backend::Refuse => f.write_str("refuse"),
            Backend::Drop => f.write_str("drop"),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inside)?;
        if let Some(outside) = &self.outside {
            write!(f, "; from outside {outside}")?;
        }
        if let Some(sources) = &self.sources {
            f.write_str("; only from")?;
            sources.iter().try_for_each(|range| write!(f, " {range}"))?;
            if sources.is_empty() {
                f.write_str(" nobody")?;
            }
        }
        if self.algorithm == Algorithm::Maglev {
            f.write_str("; by Maglev hashing")?;
        }
        match self.affinity {
            Affinity::None => Ok(()),
            Affinity::ClientIp { seconds } => write!(f, "; clients stay for {seconds} s"),
        }
    }
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ranges
            .iter()
            .try_for_each(|range| writeln!(f, "service range {range}"))?;
        self.pods
            .iter()
            .try_for_each(|range| writeln!(f, "inside {range}"))?;
        self.cluster_ips
            .iter()
            .try_for_each(|address| writeln!(f, "cluster ip {address}"))?;
        self.borrowed
            .iter()
            .try_for_each(|(address, owner)| writeln!(f, "borrowed {address}, which is {owner}"))?;
        self.frontends
            .iter()
            .try_for_each(|(frontend, entry)| writeln!(f, "service {frontend} {entry}"))?;
        for range in self.node_port_addresses.iter().flatten() {
            writeln!(f, "node ports on {range}")?;
        }
        self.node_ports
            .iter()
            .try_for_each(|(node_port, entry)| writeln!(f, "node port {node_port} {entry}"))?;
        self.host_ports
            .iter()
            .try_for_each(|(host_port, target)| writeln!(f, "host port {host_port} to {target}"))?;
        self.local_endpoints
            .iter()
            .try_for_each(|address| writeln!(f, "local endpoint {address}"))?;
        write!(f, "{}", self.health_checks)
    }
}

#[cfg(test)]
mod tests;
