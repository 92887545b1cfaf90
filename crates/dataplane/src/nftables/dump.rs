//! What the kernel does with services' addresses, in the model's words.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use podnet_core::cluster::Family;
use podnet_core::service::{Frontend, HostAddress, HostPort, NodePort};

use super::found::Found;
use super::model::{Key, Value, Verdict};
use super::render::{
    OUTSIDE, names, read_endpoint, read_frontend, read_host_port, read_node_port, read_number, read_socket,
    split_address,
};

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
    /// Whether new connections to a host port go to `target`.
    pub fn leads(&self, host_port: &HostPort, target: SocketAddr) -> bool {
        match host_port.address {
            HostAddress::Any(_) => self.host_ports.get(host_port) == Some(&target),
            HostAddress::One(address) => {
                let frontend = Frontend {
                    address,
                    protocol: host_port.protocol,
                    port: host_port.port,
                };
                let found = self.frontends.get(&frontend);
                found.is_some_and(|found| found.fate == Fate::Balance(vec![target]))
            }
        }
    }

    pub(super) fn from_found(found: &Found) -> Self {
        let mut services = Services::default();
        for family in [Family::V4, Family::V6] {
            services.read(&Reader { family, found });
        }
        services
    }

    fn read(&mut self, reader: &Reader<'_>) {
        let (family, names) = (reader.family, names(reader.family));
        let frontend = |key: &[u8]| Some(read_frontend(family, key)?.0);
        let node_port = |key: &[u8]| Some(read_node_port(family, key)?.0);
        self.frontends
            .extend(reader.targets(names.services, names.endpoints, 0, frontend));
        self.outside
            .extend(reader.targets(names.outside, names.endpoints, OUTSIDE, frontend));
        self.node_ports
            .extend(reader.targets(names.node_ports, names.port_endpoints, 0, node_port));
        self.outside_ports.extend(reader.targets(
            names.outside_ports,
            names.port_endpoints,
            OUTSIDE,
            node_port,
        ));
        let addresses = reader.elements(names.cluster_ips);
        let addresses = addresses.filter_map(|(key, _)| split_address(family, key));
        self.cluster_ips.extend(addresses.map(|(address, _)| address));
        let host_ports = reader
            .elements(names.host_ports)
            .filter_map(|(key, value)| match value {
                Value::Data(data) => Some((read_host_port(family, key)?, read_socket(family, data)?)),
                _ => None,
            });
        self.host_ports.extend(host_ports);
    }
}

/// Reads the sets of one family.
struct Reader<'a> {
    family: Family,
    found: &'a Found,
}

impl<'a> Reader<'a> {
    fn elements(&self, set: &str) -> impl Iterator<Item = (&'a Key, &'a Value)> + use<'a> {
        self.found.elements.get(set).into_iter().flatten()
    }

    /// What the elements of a verdict map lead to. Endpoints are those in `endpoints` under the element's own key and a
    /// number from `first`, or the ones of the service port whose chain the verdict names.
    fn targets<K: Ord>(
        &self,
        verdicts: &str,
        endpoints: &str,
        first: u32,
        read: impl Fn(&[u8]) -> Option<K>,
    ) -> BTreeMap<K, Target> {
        let mut by_key: BTreeMap<&[u8], Vec<SocketAddr>> = BTreeMap::new();
        for (key, value) in self.elements(endpoints) {
            let Some((key, number)) = key.split_last_chunk::<4>() else {
                continue;
            };
            let wanted = read_number(number).is_some_and(|number| (number >= OUTSIDE) == (first >= OUTSIDE));
            if let (true, Value::Data(data)) = (wanted, value) {
                by_key
                    .entry(key)
                    .or_default()
                    .extend(read_socket(self.family, data));
            }
        }
        let targets = self.elements(verdicts).filter_map(|(key, value)| {
            let mut own = by_key.get(key.as_slice()).cloned().unwrap_or_default();
            let target = match value {
                Value::Verdict(Verdict::Goto(chain)) => {
                    let port = chain.split_once('-').map_or("", |(_, port)| port);
                    let (guarded, named) = (chain.starts_with("sources"), chain.starts_with("sticky"));
                    let sticky = named || guarded && own.is_empty() && !self.choices(port).is_empty();
                    if sticky {
                        own = self.choices(port);
                    }
                    let fate = if own.is_empty() {
                        Fate::Refuse
                    } else {
                        Fate::Balance(own)
                    };
                    Target {
                        guarded,
                        sticky,
                        fate,
                    }
                }
                _ => Target {
                    guarded: false,
                    sticky: false,
                    fate: Fate::Drop,
                },
            };
            Some((read(key)?, target))
        });
        targets.collect()
    }

    /// The endpoints among which a service port chooses whose clients stay.
    fn choices(&self, port: &str) -> Vec<SocketAddr> {
        let set = format!("choice{}-{port}", super::model::digit(self.family));
        let endpoints = self.elements(&set).filter_map(|(_, value)| match value {
            Value::Verdict(Verdict::Goto(chain)) => read_endpoint(self.family, chain),
            _ => None,
        });
        endpoints.collect()
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
