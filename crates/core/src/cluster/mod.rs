//! The cluster's objects, parsed once at the edge into types that cannot hold nonsense.
//!
//! An object that does not parse stays in the cluster as an [`Invalid`] with the reason: it hurts itself only, and it
//! is never silently dropped.

mod config;
mod dataplane;
mod dns;
pub(crate) mod domain;
mod load_balancer_pool;
mod local;
mod names;
mod node;
mod pod;
mod policy;
mod pool;
mod selector;
mod selector_object;
mod service;
mod service_cidr;
mod slice;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use config::{ClusterConfig, ConfigError, Routing, Vxlan, parse_range};
pub use dataplane::{DataplaneName, DataplaneNameError, IpvsScheduler, UnknownScheduler};
pub use dns::{DnsConfig, PodRecords};
pub use domain::{DomainName, DomainNameError};
pub use load_balancer_pool::{LoadBalancerPool, LoadBalancerPoolSpec, is_chosen};
pub use local::{Local, NetnsCookie, Wired};
pub use names::{NameError, NodeName, ObjectName};
pub use node::{Family, Node, NodeError, PodRanges};
pub use pod::{NamedPort, Namespace, Pod};
pub use policy::{
    Action, BlockError, ClusterMatch, ClusterNetworkPolicy, ClusterPeer, ClusterPort, ClusterRule, Direction,
    DomainError, DomainPattern, Existing, IpBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicyRule, Part, PodSelection, PolicyPort, PortRange, Tier, Unread,
};
pub use pool::{Block, IpPool, PoolSpec};
pub use selector::{LabelTest, Labels, NAMESPACE_NAME, Requirement, Selector, SelectorError};
pub use service::{
    Affinity, Algorithm, External, ExternalPolicy, InternalPolicy, Protocol, Resolution, Service,
    ServiceError, ServicePort, UnknownProtocol,
};
pub use service_cidr::ServiceCidr;
pub use slice::{AddressFamily, Endpoint, EndpointPort, EndpointSlice, Hints, SliceError};
pub use table::{Changes, Index, OfService, Services, Slices, Table};

use crate::service::{Frontend, HostPort};

/// One value per IP family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dual<T4, T6> {
    /// The IPv4 one.
    pub v4: Option<T4>,
    /// The IPv6 one.
    pub v6: Option<T6>,
}

impl<T4, T6> Default for Dual<T4, T6> {
    fn default() -> Self {
        Dual { v4: None, v6: None }
    }
}

/// Which object of the API is meant, as people write it: `Service default/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// The API kind, such as `Service`.
    pub kind: &'static str,
    /// Namespace, where the kind has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// A reference to a node.
    pub fn node(name: impl fmt::Display) -> Self {
        ObjectRef {
            kind: "Node",
            namespace: None,
            name: name.to_string(),
        }
    }

    /// A reference to a service.
    pub fn service(name: &ObjectName) -> Self {
        ObjectRef {
            kind: "Service",
            namespace: Some(name.namespace.clone()),
            name: name.name.clone(),
        }
    }

    /// A reference to a ServiceCIDR.
    pub fn service_cidr(name: &str) -> Self {
        ObjectRef {
            kind: "ServiceCIDR",
            namespace: None,
            name: name.to_owned(),
        }
    }

    /// A reference to a pod.
    pub fn pod(name: &ObjectName) -> Self {
        ObjectRef {
            kind: "Pod",
            namespace: Some(name.namespace.clone()),
            name: name.name.clone(),
        }
    }

    /// A reference to a network policy.
    pub fn network_policy(name: &ObjectName) -> Self {
        ObjectRef {
            kind: "NetworkPolicy",
            namespace: Some(name.namespace.clone()),
            name: name.name.clone(),
        }
    }

    /// A reference to a cluster network policy.
    pub fn cluster_network_policy(name: &str) -> Self {
        ObjectRef {
            kind: "ClusterNetworkPolicy",
            namespace: None,
            name: name.to_owned(),
        }
    }

    /// A reference to an endpoint slice.
    pub fn slice(name: &ObjectName) -> Self {
        ObjectRef {
            kind: "EndpointSlice",
            namespace: Some(name.namespace.clone()),
            name: name.name.clone(),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// An object that could not be parsed, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Invalid {
    /// The object.
    pub object: ObjectRef,
    /// The reason, in words for its owner.
    pub why: String,
}

/// An object as the cluster keeps it: parsed, or invalid with a reason.
pub type Parsed<T> = Result<T, Invalid>;

/// The objects that exist now, by key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    /// What is set for the whole cluster.
    pub config: ClusterConfig,
    /// Nodes by name.
    pub nodes: BTreeMap<NodeName, Parsed<Node>>,
    /// Services by namespace and name.
    pub services: Services,
    /// Endpoint slices by namespace and name.
    pub slices: Slices,
    /// Pods by namespace and name. Only those a feature asks for are watched.
    pub pods: BTreeMap<ObjectName, Parsed<Pod>>,
    /// IP pools by name; none where their kind is not installed.
    pub ip_pools: BTreeMap<String, Parsed<IpPool>>,
    /// ServiceCIDRs by name; none where the cluster has no such kind, or does not show it.
    pub service_cidrs: BTreeMap<String, Parsed<ServiceCidr>>,
    /// Pools of load balancers' addresses by name; none where their kind is not installed.
    pub load_balancer_pools: BTreeMap<String, Parsed<LoadBalancerPool>>,
    /// What this node knows by itself.
    pub local: Local,
    /// Host ports that pods of this node have, as its container runtime asked for them.
    pub host_ports: BTreeMap<HostPort, SocketAddr>,
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Network policies by namespace and name.
    pub network_policies: BTreeMap<ObjectName, Parsed<NetworkPolicy>>,
    /// Cluster network policies by name.
    pub cluster_network_policies: BTreeMap<String, Parsed<ClusterNetworkPolicy>>,
}

impl Cluster {
    /// A cluster with no objects.
    pub fn new(config: ClusterConfig) -> Self {
        Cluster {
            config,
            ..Cluster::default()
        }
    }

    /// The node of that name, if it exists and is valid.
    pub fn node(&self, name: &NodeName) -> Option<&Node> {
        self.nodes.get(name)?.as_ref().ok()
    }

    /// The valid nodes, by name.
    pub fn valid_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter_map(|node| node.as_ref().ok())
    }

    /// The valid nodes, and this node as it was last: while its object is away it is there all the same.
    pub fn known_nodes(&self) -> impl Iterator<Item = &Node> {
        self.valid_nodes().chain(&self.local.node)
    }

    /// The valid services, by name.
    pub fn valid_services(&self) -> impl Iterator<Item = (&ObjectName, &Service)> {
        self.services
            .iter()
            .filter_map(|(name, service)| Some((name, service.as_ref().ok()?)))
    }

    /// The valid slices, by name.
    pub fn valid_slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values().filter_map(|slice| slice.as_ref().ok())
    }

    /// The IP pools, by name.
    pub fn valid_ip_pools(&self) -> impl Iterator<Item = &IpPool> {
        self.ip_pools.values().filter_map(|pool| pool.as_ref().ok())
    }

    /// The API server's own service.
    pub fn api_server() -> ObjectName {
        ObjectName::new("default", "kubernetes")
    }

    /// Where the API server is reached: the endpoints of its own service.
    pub fn api_server_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let endpoints = self
            .slices
            .of(&Self::api_server())
            .flat_map(|slice| slice.endpoints());
        endpoints.map(|endpoint| endpoint.address)
    }

    /// The same with the ports, and in words of services.
    pub fn api_server_frontends(&self) -> impl Iterator<Item = Frontend> {
        self.slices.of(&Self::api_server()).flat_map(|slice| {
            let ports = slice
                .ports
                .iter()
                .filter_map(|port| Some((port.protocol, port.port?)));
            ports.flat_map(move |(protocol, port)| {
                let endpoints = slice.endpoints().iter();
                endpoints.map(move |endpoint| Frontend {
                    address: endpoint.address,
                    protocol,
                    port,
                })
            })
        })
    }

    /// The pools of load balancers' addresses, by name.
    pub fn valid_load_balancer_pools(&self) -> impl Iterator<Item = &LoadBalancerPool> {
        let pools = self.load_balancer_pools.values();
        pools.filter_map(|pool| pool.as_ref().ok())
    }

    /// The valid pods, by name.
    pub fn valid_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().filter_map(|pod| pod.as_ref().ok())
    }

    /// A pod's addresses: those that the API knows, and those that this node has given it.
    pub fn addresses_of<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = IpAddr> + 'a {
        let wired = self.local.pods.get(&pod.name).into_iter().flatten();
        let given = wired
            .filter(|wired| wired.is_of(pod))
            .flat_map(|wired| &wired.addresses);
        pod.addresses.iter().chain(given).copied()
    }

    /// The objects that could not be parsed.
    pub fn invalid(&self) -> impl Iterator<Item = &Invalid> {
        let nodes = self.nodes.values().filter_map(|object| object.as_ref().err());
        let services = self.services.values().filter_map(|object| object.as_ref().err());
        let slices = self.slices.values().filter_map(|object| object.as_ref().err());
        let pods = self.pods.values().filter_map(|object| object.as_ref().err());
        let policies = self
            .network_policies
            .values()
            .filter_map(|object| object.as_ref().err());
        let cluster_policies = self
            .cluster_network_policies
            .values()
            .filter_map(|object| object.as_ref().err());
        let policies = policies.chain(cluster_policies);
        let pools = self.ip_pools.values().filter_map(|object| object.as_ref().err());
        let service_cidrs = self.service_cidrs.values();
        let pools = pools.chain(service_cidrs.filter_map(|object| object.as_ref().err()));
        let balancer_pools = self.load_balancer_pools.values();
        let pools = pools.chain(balancer_pools.filter_map(|object| object.as_ref().err()));
        nodes
            .chain(services)
            .chain(slices)
            .chain(pods)
            .chain(pools)
            .chain(policies)
    }
}
