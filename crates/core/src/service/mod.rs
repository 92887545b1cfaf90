//! From Services and EndpointSlices to what is behind each service address.

mod host_port;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use ipnet::IpNet;

use crate::cluster::{
    AddressFamily, Affinity, Cluster, Endpoint, EndpointSlice, Family, InternalPolicy, NodeName, ObjectName,
    ObjectRef, Protocol, Service, ServicePort,
};
use crate::state::Problem;
pub use host_port::{HostAddress, HostPort};

/// Service addresses of a cluster, as one node sees them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceState {
    /// What is behind each address, protocol and port.
    pub frontends: BTreeMap<Frontend, Backend>,
    /// The cluster IPs in use: a port of theirs that is no frontend is refused.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// The ranges services' addresses are from: an address in them that is not in use is dropped.
    pub ranges: BTreeSet<IpNet>,
    /// Ports of this node that lead into its pods.
    pub host_ports: BTreeMap<HostPort, SocketAddr>,
    /// Endpoints on this node: each may be sent back to itself by its own service or host port.
    pub local_endpoints: BTreeSet<IpAddr>,
}

/// An address, protocol and port that clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The cluster IP.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: NonZeroU16,
}

/// What is behind a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// New connections go to one of `endpoints` (never empty), each as likely as the others.
    Balance {
        /// For new connections.
        endpoints: BTreeSet<SocketAddr>,
        /// Serving still, but given no new connections: what flows to them goes on.
        draining: BTreeSet<SocketAddr>,
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
                endpoints.contains(&endpoint) || draining.contains(&endpoint)
            }
            Backend::Refuse | Backend::Drop => false,
        }
    }
}

impl ServiceState {
    /// All addresses that are services': the ranges, and the cluster IPs that are in none of them.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpNet> {
        let within = |address: &IpAddr| self.ranges.iter().any(|range| range.contains(address));
        let outside = self.cluster_ips.iter().filter(move |address| !within(address));
        self.ranges
            .iter()
            .copied()
            .chain(outside.map(|address| IpNet::from(*address)))
    }
}

/// The service part of [`crate::compute`].
pub(crate) fn compute(cluster: &Cluster, me: &NodeName, problems: &mut Vec<Problem>) -> ServiceState {
    let mut slices: BTreeMap<&ObjectName, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in cluster.valid_slices() {
        if let Some(service) = &slice.service {
            slices.entry(service).or_default().push(slice);
        }
    }
    let mut state = ServiceState {
        ranges: cluster.config.service_cidrs.iter().map(IpNet::trunc).collect(),
        host_ports: cluster.host_ports.clone(),
        local_endpoints: cluster.host_ports.values().map(SocketAddr::ip).collect(),
        ..Default::default()
    };
    let mut owners: BTreeMap<IpAddr, &ObjectName> = BTreeMap::new();
    for (name, service) in cluster
        .valid_services()
        .filter(|(_, service)| service.is_carried())
    {
        if let Affinity::ClientIp { .. } = service.affinity {
            let why =
                "sessionAffinity ClientIP is not supported by this version: every connection chooses anew";
            problems.push(Problem {
                object: ObjectRef::service(name),
                why: why.into(),
            });
        }
        for &address in service.cluster_ips() {
            if let Some(owner) = owners.get(&address) {
                let why = format!("its cluster IP {address} belongs to service {owner}; it is not served");
                problems.push(Problem {
                    object: ObjectRef::service(name),
                    why,
                });
                continue;
            }
            owners.insert(address, name);
            state.cluster_ips.insert(address);
            let slices = slices.get(name).map_or(&[][..], Vec::as_slice);
            for port in service.ports() {
                let candidates = Candidates::of(slices, address, port);
                let backend = candidates.choose(service, me);
                state.local_endpoints.extend(candidates.local(me, &backend));
                let frontend = Frontend {
                    address,
                    protocol: port.protocol,
                    port: port.port,
                };
                state.frontends.insert(frontend, backend);
            }
        }
    }
    state
}

/// The endpoints of one service port in one family, from all its slices.
struct Candidates<'a>(Vec<(SocketAddr, &'a Endpoint)>);

impl<'a> Candidates<'a> {
    /// A slice's port is the service's when it has its name and protocol; one name may stand for different numbers
    /// in different slices.
    fn of(slices: &[&'a EndpointSlice], address: IpAddr, port: &ServicePort) -> Self {
        let family = AddressFamily::Ip(Family::of(address));
        let mut found = Vec::new();
        for slice in slices.iter().filter(|slice| slice.family() == family) {
            let numbers = slice
                .ports
                .iter()
                .filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in numbers.filter_map(|p| p.port) {
                found.extend(
                    slice
                        .endpoints()
                        .iter()
                        .map(|e| (SocketAddr::new(e.address, number.get()), e)),
                );
            }
        }
        Candidates(found)
    }

    fn choose(&self, service: &Service, me: &NodeName) -> Backend {
        let local_only = service.internal_policy == InternalPolicy::Local;
        let allowed = |endpoint: &Endpoint| !local_only || endpoint.node.as_ref() == Some(me);
        let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
            let of_these = self
                .0
                .iter()
                .filter(|(_, endpoint)| allowed(endpoint) && wanted(endpoint));
            of_these.map(|(address, _)| *address).collect()
        };
        let mut endpoints = pick(&|endpoint| endpoint.ready);
        if endpoints.is_empty() {
            endpoints = pick(&|endpoint| endpoint.serving && endpoint.terminating);
        }
        if !endpoints.is_empty() {
            let draining = &pick(&|endpoint| endpoint.serving) - &endpoints;
            return Backend::Balance { endpoints, draining };
        }
        let usable = |endpoint: &Endpoint| endpoint.ready || endpoint.serving && endpoint.terminating;
        let elsewhere = self.0.iter().any(|(_, endpoint)| usable(endpoint));
        if local_only && elsewhere {
            Backend::Drop
        } else {
            Backend::Refuse
        }
    }

    fn local(&self, me: &NodeName, backend: &Backend) -> impl Iterator<Item = IpAddr> {
        let here = self
            .0
            .iter()
            .filter(|(_, endpoint)| endpoint.node.as_ref() == Some(me));
        here.filter(|(address, _)| backend.keeps(*address))
            .map(|(address, _)| address.ip())
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}",
            self.protocol,
            SocketAddr::new(self.address, self.port.get())
        )
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

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ranges
            .iter()
            .try_for_each(|range| writeln!(f, "service range {range}"))?;
        self.cluster_ips
            .iter()
            .try_for_each(|address| writeln!(f, "cluster ip {address}"))?;
        self.frontends
            .iter()
            .try_for_each(|(frontend, backend)| writeln!(f, "service {frontend} {backend}"))?;
        self.host_ports
            .iter()
            .try_for_each(|(host_port, target)| writeln!(f, "host port {host_port} to {target}"))?;
        self.local_endpoints
            .iter()
            .try_for_each(|address| writeln!(f, "local endpoint {address}"))
    }
}

#[cfg(test)]
mod tests;
