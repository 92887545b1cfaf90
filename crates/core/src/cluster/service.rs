//! Services.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use ipnet::IpNet;

use super::node::is_unroutable;
use super::{DomainName, Family};

/// A service. Those without a cluster IP have a name all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its cluster IPs, two at most, in the object's order; headless and ExternalName services have none.
    cluster_ips: Vec<IpAddr>,
    /// Its ports, no two with the same name, nor with the same protocol and number.
    ports: Vec<ServicePort>,
    /// Which endpoints clients within the cluster get.
    pub internal_policy: InternalPolicy,
    /// Whether a client stays with its endpoint.
    pub affinity: Affinity,
    /// How else than by its cluster IPs it is reached.
    pub external: External,
    /// What its name stands for.
    pub resolution: Resolution,
    /// Another proxy carries its packets (`service.kubernetes.io/service-proxy-name`); its name is ours still.
    pub proxied_elsewhere: bool,
    /// Its name stands for endpoints that are not ready, too.
    pub publish_not_ready: bool,
}

/// What a service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Resolution {
    /// Its cluster IPs.
    #[default]
    ClusterIps,
    /// Its endpoints (`clusterIP: None`).
    Endpoints,
    /// Another name (`type: ExternalName`).
    Alias(DomainName),
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// Its name, empty when it is the only one; slices name their ports the same.
    pub name: String,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: NonZeroU16,
    /// The port of every node that leads to it (`nodePort`).
    pub node_port: Option<NonZeroU16>,
}

impl ServicePort {
    /// A port that no node has a port for.
    pub fn new(name: impl Into<String>, protocol: Protocol, port: NonZeroU16) -> Self {
        ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port: None,
        }
    }
}

/// How a service is reached otherwise than by its cluster IPs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct External {
    /// `spec.externalIPs`.
    pub ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`: the addresses that reach the nodes as they are (`ipMode: VIP`). One whose packets
    /// the load balancer sends to node ports (`ipMode: Proxy`) is not among them.
    pub load_balancer: Vec<IpAddr>,
    /// Who may come to the load balancer's addresses (`spec.loadBalancerSourceRanges`); everybody, where there is no list.
    pub sources: Option<BTreeSet<IpNet>>,
    /// Which endpoints clients from outside get.
    pub policy: ExternalPolicy,
    /// How one of them is chosen.
    pub algorithm: Algorithm,
    /// Where a load balancer asks whether this node has endpoints (`spec.healthCheckNodePort`).
    pub health_check: Option<NonZeroU16>,
    /// What of it could not be read, and why. It hurts nothing else of the service.
    pub unread: Vec<String>,
}

impl External {
    /// Who may come to the load balancer's addresses of a family; everybody, where there is nothing. A list that has no
    /// range of the family lets nobody of it in, unless all it has is /0, be it of one family only: that is no list.
    pub fn sources_of(&self, family: Family) -> Option<BTreeSet<IpNet>> {
        let listed = self.sources.as_ref()?;
        if !listed.is_empty() && listed.iter().all(|range| range.prefix_len() == 0) {
            return None;
        }
        let all = listed.iter();
        let ranges = all.filter(|range| Family::of(range.addr()) == family);
        let ranges: BTreeSet<IpNet> = ranges.map(IpNet::trunc).collect();
        ranges
            .iter()
            .all(|range| range.prefix_len() > 0)
            .then_some(ranges)
    }
}

/// A transport protocol that services can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// IANA's number, as in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol of that number, if services can have it.
    pub fn from_number(number: u8) -> Option<Self> {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }
}

/// A protocol that services cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("protocol {0:?}: supported are TCP, UDP and SCTP")]
pub struct UnknownProtocol(String);

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, UnknownProtocol> {
        match text {
            "TCP" => Ok(Protocol::Tcp),
            "UDP" => Ok(Protocol::Udp),
            "SCTP" => Ok(Protocol::Sctp),
            _ => Err(UnknownProtocol(text.into())),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// `spec.internalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InternalPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Endpoints on the client's node only.
    Local,
}

/// `spec.externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExternalPolicy {
    /// Any endpoint of the cluster.
    #[default]
    Cluster,
    /// Endpoints on the node that the packet reached, which then sees the client's address.
    Local,
}

/// How an endpoint is chosen for a new connection to an external address or a node port (the annotation
/// `podnet.io/load-balancing`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Algorithm {
    /// By lot.
    #[default]
    Random,
    /// By a hash of the client, so that every node chooses the same ([`crate::service::maglev`]).
    Maglev,
}

impl fmt::Display for Algorithm {
    /// As the annotation has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Algorithm::Random => "random",
            Algorithm::Maglev => "maglev",
        })
    }
}

/// `spec.sessionAffinity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Affinity {
    /// Every connection chooses anew.
    #[default]
    None,
    /// A client address stays with its endpoint until it was idle for so many seconds.
    ClientIp {
        /// Idle time in seconds.
        seconds: u32,
    },
}

/// Why a service's object cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// A cluster IP that no packet can be sent to.
    #[error("spec.clusterIPs: {0} is no address for a service")]
    Address(IpAddr),
    /// Kubernetes allows one cluster IP per family.
    #[error("spec.clusterIPs: two addresses of one family")]
    TwoOfOneFamily,
    /// Two ports that a packet could not tell apart.
    #[error("spec.ports: {1} port {0} comes twice")]
    PortTwice(NonZeroU16, Protocol),
    /// Two ports of one number on every node.
    #[error("spec.ports: {1} node port {0} comes twice")]
    NodePortTwice(NonZeroU16, Protocol),
    /// Two ports that a slice could not tell apart.
    #[error("spec.ports: the name {0:?} comes twice")]
    NameTwice(String),
}

impl Service {
    /// A service from its parts.
    pub fn new(cluster_ips: Vec<IpAddr>, ports: Vec<ServicePort>) -> Result<Self, ServiceError> {
        let mut families = BTreeSet::new();
        for &address in &cluster_ips {
            if is_unroutable(address) {
                return Err(ServiceError::Address(address));
            }
            if !families.insert(address.is_ipv4()) {
                return Err(ServiceError::TwoOfOneFamily);
            }
        }
        let (mut numbers, mut names, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for port in &ports {
            if let Some(node_port) = port.node_port
                && !node_ports.insert((port.protocol, node_port))
            {
                return Err(ServiceError::NodePortTwice(node_port, port.protocol));
            }
            if !numbers.insert((port.protocol, port.port)) {
                return Err(ServiceError::PortTwice(port.port, port.protocol));
            }
            if !names.insert(&port.name) {
                return Err(ServiceError::NameTwice(port.name.clone()));
            }
        }
        Ok(Service {
            cluster_ips,
            ports,
            internal_policy: InternalPolicy::default(),
            affinity: Affinity::default(),
            external: External::default(),
            resolution: Resolution::default(),
            proxied_elsewhere: false,
            publish_not_ready: false,
        })
    }

    /// Whether our data plane is to carry packets to it.
    pub fn is_carried(&self) -> bool {
        !self.cluster_ips.is_empty() && !self.proxied_elsewhere
    }

    /// Its cluster IPs, two at most, in the object's order.
    pub fn cluster_ips(&self) -> &[IpAddr] {
        &self.cluster_ips
    }

    /// Its ports.
    pub fn ports(&self) -> &[ServicePort] {
        &self.ports
    }
}
