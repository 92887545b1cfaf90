//! What the kernel does with services' addresses, in the model's words, whichever back end does it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use podnet_core::cluster::Affinity;
use podnet_core::service::{Backend, Entry, Frontend, HostPort, NodePort, ServiceState};

/// What the kernel does with services' addresses, in the model's words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Services {
    /// Frontends and what new connections to them become.
    pub frontends: BTreeMap<Frontend, Target>,
    /// The same for clients outside, where that differs.
    pub outside: BTreeMap<Frontend, Target>,
    /// Ports of the node's own addresses.
    pub node_ports: BTreeMap<NodePort, Target>,
    /// The same for clients outside, where that differs.
    pub outside_ports: BTreeMap<NodePort, Target>,
    /// Addresses whose other ports are refused.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Host ports of all the node's addresses. One of a single address is a frontend.
    pub host_ports: BTreeMap<HostPort, SocketAddr>,
}

/// What becomes of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Whether only some sources may come.
    pub guarded: bool,
    /// Whether clients stay with their endpoint.
    pub sticky: bool,
    /// What it comes to.
    pub fate: Fate,
}

/// What a connection comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It goes to one of these.
    Balance(Vec<SocketAddr>),
    /// It is refused.
    Refuse,
    /// It is dropped.
    Drop,
}

impl Services {
    /// What there is to be seen where a state's services are in force. A cluster IP's port without endpoints is not
    /// listed: it is refused as all its other ports are.
    pub fn of(state: &ServiceState) -> Self {
        let mut services = Services {
            cluster_ips: state.cluster_ips.iter().copied().collect(),
            ..Services::default()
        };
        for (frontend, entry) in &state.frontends {
            let refused_anyway = *entry.inside == Backend::Refuse
                && entry.sources.is_none()
                && state.cluster_ips.contains(&frontend.address);
            if !refused_anyway {
                services
                    .frontends
                    .insert(*frontend, Target::of(entry, &entry.inside));
            }
            if let Some(outside) = &entry.outside {
                services.outside.insert(*frontend, Target::of(entry, outside));
            }
        }
        for (node_port, entry) in &state.node_ports {
            services
                .node_ports
                .insert(*node_port, Target::of(entry, &entry.inside));
            if let Some(outside) = &entry.outside {
                services
                    .outside_ports
                    .insert(*node_port, Target::of(entry, outside));
            }
        }
        services
    }

    /// Adds what another part of the kernel does.
    pub(crate) fn add(&mut self, other: Services) {
        self.frontends.extend(other.frontends);
        self.outside.extend(other.outside);
        self.node_ports.extend(other.node_ports);
        self.outside_ports.extend(other.outside_ports);
        self.cluster_ips.extend(other.cluster_ips);
        self.host_ports.extend(other.host_ports);
    }

    /// Whether new connections to a host port go to `target`.
    pub fn leads(&self, host_port: &HostPort, target: SocketAddr) -> bool {
        match host_port.frontend() {
            None => self.host_ports.get(host_port) == Some(&target),
            Some(frontend) => {
                let found = self.frontends.get(&frontend);
                found.is_some_and(|found| found.fate == Fate::Balance(vec![target]))
            }
        }
    }
}

impl Target {
    fn of(entry: &Entry, backend: &Backend) -> Self {
        let fate = match backend {
            Backend::Balance { endpoints, .. } => Fate::Balance(endpoints.to_vec()),
            Backend::Refuse => Fate::Refuse,
            Backend::Drop => Fate::Drop,
        };
        Target {
            guarded: entry.sources.is_some() && fate != Fate::Drop,
            sticky: entry.affinity != Affinity::None && matches!(fate, Fate::Balance(_)),
            fate,
        }
    }

    /// Who gets new connections.
    pub fn endpoints(&self) -> &[SocketAddr] {
        match &self.fate {
            Fate::Balance(endpoints) => endpoints,
            Fate::Refuse | Fate::Drop => &[],
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fate {
            Fate::Balance(endpoints) => {
                f.write_str("to")?;
                endpoints
                    .iter()
                    .try_for_each(|endpoint| write!(f, " {endpoint}"))?;
            }
            Fate::Refuse => f.write_str("refuse")?,
            Fate::Drop => f.write_str("drop")?,
        }
        if self.guarded {
            f.write_str("; only from some")?;
        }
        if self.sticky {
            f.write_str("; clients stay")?;
        }
        Ok(())
    }
}

impl fmt::Display for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses = self.cluster_ips.iter();
        addresses
            .into_iter()
            .try_for_each(|address| writeln!(f, "cluster ip {address}"))?;
        for (frontend, target) in &self.frontends {
            writeln!(f, "service {frontend} {target}")?;
        }
        for (frontend, target) in &self.outside {
            writeln!(f, "from outside {frontend} {target}")?;
        }
        for (node_port, target) in &self.node_ports {
            writeln!(f, "node port {node_port} {target}")?;
        }
        for (node_port, target) in &self.outside_ports {
            writeln!(f, "from outside node port {node_port} {target}")?;
        }
        let mut host_ports = self.host_ports.iter();
        host_ports.try_for_each(|(host_port, target)| writeln!(f, "host port {host_port} to {target}"))
    }
}
