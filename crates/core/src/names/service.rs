//! What one service's name stands for, and the names below it.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::{Dashed, EndpointSlice, Resolution, Service, dashed};
use crate::cluster::{DomainName, EndpointPort, Protocol};

/// A service, as far as its names go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedService {
    key: Arc<[u8]>,
    cluster_ips: Box<[IpAddr]>,
    resolution: Resolution,
    ports: Box<[PortOf]>,
    /// By address; one address comes once for each slice that has it.
    endpoints: Box<[NamedEndpoint]>,
    /// The endpoints that have hostnames, by these.
    hosts: Box<[u32]>,
    /// The ports of each slice; none where none of its endpoints is named.
    slice_ports: Box<[Box<[PortOf]>]>,
}

/// An endpoint that a service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its name below the service's; without one its address is made into a name.
    hostname: Option<Arc<str>>,
    /// Whose ports it has.
    slice: u32,
}

/// A port as `_name._protocol` finds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortOf {
    /// Its name; empty when it has none, and then it has no name in DNS either.
    pub name: Box<str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub number: NonZeroU16,
}

impl PortOf {
    /// Whether labels (without their underscores) name it.
    pub fn is(&self, name: &[u8], protocol: &[u8]) -> bool {
        !self.name.is_empty() && self.name.as_bytes().eq_ignore_ascii_case(name) && self.speaks(protocol)
    }

    fn speaks(&self, protocol: &[u8]) -> bool {
        label_of(self.protocol).as_bytes().eq_ignore_ascii_case(protocol)
    }
}

fn label_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// The label of an endpoint.
#[derive(Debug, Clone)]
pub enum EndpointLabel<'a> {
    /// Its hostname.
    Host(&'a str),
    /// Made of its address.
    Dashed(Dashed),
}

impl EndpointLabel<'_> {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            EndpointLabel::Host(name) => name.as_bytes(),
            EndpointLabel::Dashed(label) => label.as_bytes(),
        }
    }
}

impl NamedEndpoint {
    /// Its label below the service's name.
    pub fn label(&self) -> EndpointLabel<'_> {
        match &self.hostname {
            Some(name) => EndpointLabel::Host(name),
            None => EndpointLabel::Dashed(Dashed::new(self.address)),
        }
    }
}

impl NamedService {
    pub(super) fn new(key: Arc<[u8]>, service: &Service, slices: &[&EndpointSlice]) -> Self {
        let ports = service.ports().iter().map(|port| PortOf {
            name: port.name.as_str().into(),
            protocol: port.protocol,
            number: port.port,
        });
        let alias = matches!(service.resolution, Resolution::Alias(_));
        // Slices that are left over from before a service became an alias stand for nothing.
        let slices = if alias { &[] } else { slices };
        let mut endpoints: Vec<NamedEndpoint> = (0..)
            .zip(slices)
            .flat_map(|(number, slice)| slice.endpoints().iter().map(move |endpoint| (number, endpoint)))
            .filter(|(_, endpoint)| endpoint.ready || service.publish_not_ready)
            .map(|(slice, endpoint)| NamedEndpoint {
                address: endpoint.address,
                // One that is what its address is made into says nothing new.
                hostname: endpoint
                    .hostname
                    .clone()
                    .filter(|name| name.as_bytes() != Dashed::new(endpoint.address).as_bytes()),
                slice,
            })
            .collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        let mut hosts: Vec<u32> = (0..)
            .zip(&endpoints)
            .filter_map(|(index, endpoint)| endpoint.hostname.is_some().then_some(index))
            .collect();
        hosts.sort_by(|&a, &b| {
            let name = |index: u32| &endpoints[index as usize].hostname;
            name(a).cmp(name(b))
        });
        let mut named = vec![false; slices.len()];
        endpoints
            .iter()
            .for_each(|endpoint| named[endpoint.slice as usize] = true);
        let slice_ports = slices.iter().zip(named);
        let slice_ports = slice_ports
            .map(|(slice, named)| {
                if named {
                    ports_of(&slice.ports)
                } else {
                    Box::default()
                }
            })
            .collect();
        NamedService {
            key,
            cluster_ips: service.cluster_ips().into(),
            resolution: service.resolution.clone(),
            ports: ports.collect(),
            endpoints: endpoints.into(),
            hosts: hosts.into(),
            slice_ports,
        }
    }

    /// Its name and its namespace's, each behind its length.
    pub fn key(&self) -> &Arc<[u8]> {
        &self.key
    }

    /// Its namespace behind the length.
    pub fn namespace(&self) -> &[u8] {
        let name = self.key.first().map_or(0, |length| usize::from(*length) + 1);
        &self.key[name..]
    }

    /// The name it stands for, if it is an alias.
    pub fn alias(&self) -> Option<&DomainName> {
        match &self.resolution {
            Resolution::Alias(name) => Some(name),
            Resolution::ClusterIps | Resolution::Endpoints => None,
        }
    }

    /// Whether its name stands for its endpoints.
    pub fn is_headless(&self) -> bool {
        self.resolution == Resolution::Endpoints
    }

    /// Whether there is nothing that its name could stand for.
    pub(super) fn is_silent(&self) -> bool {
        self.is_headless() && self.endpoints.is_empty()
    }

    /// Its cluster IPs.
    pub fn cluster_ips(&self) -> &[IpAddr] {
        &self.cluster_ips
    }

    /// Its ports; for endpoints' own numbers see [`NamedService::ports_of`].
    pub fn ports(&self) -> &[PortOf] {
        &self.ports
    }

    /// Its endpoints, by address; one that several slices have comes several times.
    pub fn endpoints(&self) -> &[NamedEndpoint] {
        &self.endpoints
    }

    /// The ports an endpoint has.
    pub fn ports_of(&self, endpoint: &NamedEndpoint) -> &[PortOf] {
        &self.slice_ports[endpoint.slice as usize]
    }

    /// Whether a named port has the protocol of that label (without its underscore).
    pub fn speaks(&self, protocol: &[u8]) -> bool {
        self.named_ports().any(|port| port.speaks(protocol))
    }

    /// Whether labels (without their underscores) name a port.
    pub fn has_port(&self, name: &[u8], protocol: &[u8]) -> bool {
        self.named_ports().any(|port| port.is(name, protocol))
    }

    /// The ports that have names: a headless service's are its endpoints'.
    fn named_ports(&self) -> impl Iterator<Item = &PortOf> {
        let own = self.ports.iter().filter(|_| !self.is_headless());
        let theirs = self.slice_ports.iter().filter(|_| self.is_headless());
        own.chain(theirs.flat_map(|ports| &**ports))
            .filter(|port| !port.name.is_empty())
    }

    /// The endpoints of a lower-case label, in a fixed order.
    pub fn endpoints_labelled(&self, label: &[u8]) -> impl Iterator<Item = &NamedEndpoint> + Clone {
        let host = |index: &u32| {
            self.endpoints[*index as usize]
                .hostname
                .as_deref()
                .unwrap_or_default()
                .as_bytes()
        };
        let first = self.hosts.partition_point(|index| host(index) < label);
        let end = first + self.hosts[first..].partition_point(|index| host(index) == label);
        let hosts = self.hosts[first..end]
            .iter()
            .map(|&index| &self.endpoints[index as usize]);
        // One spelling of an address only is its label.
        let address = dashed::parse(label).filter(|&address| Dashed::new(address).as_bytes() == label);
        hosts.chain(
            address
                .map(|address| self.endpoints_at(address))
                .unwrap_or_default()
                .iter()
                .filter(|endpoint| endpoint.hostname.is_none()),
        )
    }

    fn endpoints_at(&self, address: IpAddr) -> &[NamedEndpoint] {
        let first = self.endpoints.partition_point(|at| at.address < address);
        let end = first + self.endpoints[first..].partition_point(|at| at.address == address);
        &self.endpoints[first..end]
    }

    /// The endpoints with their places, each address and label once.
    pub(super) fn distinct_endpoints(&self) -> impl Iterator<Item = (u32, &NamedEndpoint)> {
        let mut before: Option<&NamedEndpoint> = None;
        (0..).zip(&self.endpoints).filter(move |(_, endpoint)| {
            let same =
                before.is_some_and(|it| it.address == endpoint.address && it.hostname == endpoint.hostname);
            before = Some(endpoint);
            !same
        })
    }
}

fn ports_of(ports: &[EndpointPort]) -> Box<[PortOf]> {
    let numbered = ports.iter().filter_map(|port| {
        Some(PortOf {
            name: port.name.as_str().into(),
            protocol: port.protocol,
            number: port.port?,
        })
    });
    numbered.collect()
}

impl fmt::Display for NamedService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &*self.key;
        f.write_str("name ")?;
        while let Some((&length, after)) = rest.split_first() {
            let (label, after) = after.split_at(usize::from(length));
            write!(f, "{}.", String::from_utf8_lossy(label))?;
            rest = after;
        }
        self.cluster_ips
            .iter()
            .try_for_each(|address| write!(f, " {address}"))?;
        if let Some(alias) = self.alias() {
            write!(f, " alias {alias}")?;
        }
        for port in &self.ports {
            write!(f, " _{}._{}:{}", port.name, port.protocol, port.number)?;
        }
        writeln!(f)?;
        for (_, endpoint) in self.distinct_endpoints() {
            let label = endpoint.label();
            let label = String::from_utf8_lossy(label.as_bytes());
            writeln!(f, "  {label} {}", endpoint.address)?;
        }
        Ok(())
    }
}
