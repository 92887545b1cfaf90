//! Random clusters: objects from few names and addresses, so that they meet, and edits of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use podnet_core::cluster::{
    AddressFamily, Affinity, Algorithm, Cluster, ClusterConfig, DnsConfig, Endpoint, EndpointPort,
    EndpointSlice, External, ExternalPolicy, Family, Hints, InternalPolicy, Invalid, Node, NodeName,
    ObjectName, ObjectRef, PodRanges, Protocol, Resolution, Routing, Service, ServiceCidr, ServicePort,
};
use podnet_core::service::{HostAddress, HostPort, NodePort};
use proptest::prelude::*;

pub(crate) const NODES: u8 = 4;
const SERVICES: u8 = 4;

pub(crate) fn node_name(index: u8) -> NodeName {
    NodeName::new(format!("node{index}")).unwrap()
}

pub(crate) fn service_name(index: u8) -> ObjectName {
    ObjectName::new(format!("ns{}", index % 2), format!("svc{index}"))
}

pub(crate) fn v4(a: u8, b: u8, c: u8) -> IpAddr {
    Ipv4Addr::new(10, a, b, c).into()
}

pub(crate) fn v6(a: u16, b: u8, c: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, a, 0, u16::from(b), 0, 0, 0, u16::from(c)).into()
}

/// One edit of a cluster: an object set or removed.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    Node(u8, Option<Node>),
    Service(u8, Option<Service>),
    Slice(u8, Option<EndpointSlice>),
    /// A service that cannot be read any more.
    BrokenService(u8),
    /// A slice that cannot be read any more.
    BrokenSlice(u8),
    /// A program of the node listens on a port, or does so no more.
    Busy(NodePort, bool),
    /// A pod has a port of the node, or has it no more.
    HostPort(HostPort, bool),
    /// A ServiceCIDR, whose range may be within another's.
    ServiceCidr(u8, bool),
    /// Which of the nodes' addresses have node ports: one of [`NODE_PORT_ADDRESSES`], or all of them.
    NodePorts(Option<u8>),
}

impl Edit {
    pub(crate) fn apply(&self, cluster: &mut Cluster) {
        match self.clone() {
            Edit::Node(key, Some(node)) => _ = cluster.nodes.insert(node_name(key), Ok(node)),
            Edit::Node(key, None) => _ = cluster.nodes.remove(&node_name(key)),
            Edit::Service(key, Some(service)) => _ = cluster.services.insert(service_name(key), Ok(service)),
            Edit::Service(key, None) => _ = cluster.services.remove(&service_name(key)),
            Edit::Slice(key, Some(slice)) => _ = cluster.slices.insert(slice_name(key), Ok(slice)),
            Edit::Slice(key, None) => _ = cluster.slices.remove(&slice_name(key)),
            Edit::BrokenService(key) => {
                let name = service_name(key);
                let object = ObjectRef::service(&name);
                _ = cluster.services.insert(name, Err(broken(object)));
            }
            Edit::BrokenSlice(key) => {
                let name = slice_name(key);
                let object = ObjectRef::slice(&name);
                _ = cluster.slices.insert(name, Err(broken(object)));
            }
            Edit::Busy(port, true) => _ = cluster.local.busy_ports.insert(port),
            Edit::HostPort(port, true) => {
                let target = match port.address.family() {
                    Family::V4 => v4(244, 0, 2),
                    Family::V6 => v6(0x10, 0, 2),
                };
                let target = SocketAddr::new(target, port.port.get());
                _ = cluster.host_ports.insert(port, target);
            }
            Edit::HostPort(port, false) => _ = cluster.host_ports.remove(&port),
            Edit::ServiceCidr(key, true) => {
                let ranges = SERVICE_CIDRS[usize::from(key)];
                let cidr = ServiceCidr::read(ranges.iter().copied()).unwrap();
                _ = cluster.service_cidrs.insert(key.to_string(), Ok(cidr));
            }
            Edit::ServiceCidr(key, false) => _ = cluster.service_cidrs.remove(&key.to_string()),
            Edit::NodePorts(chosen) => {
                let ranges = chosen.map(|chosen| NODE_PORT_ADDRESSES[usize::from(chosen)]);
                cluster.config.node_port_addresses =
                    ranges.map(|ranges| ranges.iter().map(|range| range.parse().unwrap()).collect());
            }
            Edit::Busy(port, false) => _ = cluster.local.busy_ports.remove(&port),
        }
    }
}

/// What no pod or node has.
const SERVICE_CIDRS: [&[&str]; 3] = [
    &["10.97.0.0/24", "fd00:97::/112"],
    &["10.96.0.0/24"],
    &["10.97.0.0/16"],
];

const NODE_PORT_ADDRESSES: [&[&str]; 4] = [
    &["10.0.0.0/24"],
    &["10.0.0.8/30", "fd00:ff::/64"],
    &["127.0.0.0/8", "10.0.0.0/8"],
    &[],
];

fn broken(object: ObjectRef) -> Invalid {
    Invalid {
        object,
        why: "it is broken".into(),
    }
}

fn slice_name(index: u8) -> ObjectName {
    ObjectName::new("any", format!("slice{index}"))
}

fn node(index: u8) -> impl Strategy<Value = Node> {
    (any::<bool>(), any::<bool>()).prop_map(move |(six, ready)| {
        let mut addresses = vec![v4(0, 0, 10 + index)];
        let mut ranges = vec![format!("10.244.{index}.0/24").parse().unwrap()];
        if six {
            addresses.push(v6(0xff, 0, 10 + index));
            ranges.push(format!("fd00:10:0:{index:x}::/64").parse().unwrap());
        }
        let mut node = Node::new(node_name(index), &addresses, PodRanges::new(ranges).unwrap());
        node.ready = ready;
        node.labels
            .insert("topology.kubernetes.io/zone".into(), zone(index));
        node
    })
}

fn zone(node: u8) -> String {
    format!("zone{}", node % 2)
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn number() -> impl Strategy<Value = NonZeroU16> {
    (80_u16..84).prop_map(|number| NonZeroU16::new(number).unwrap())
}

fn port_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["".to_owned(), "a".to_owned(), "b".to_owned()])
}

fn service() -> impl Strategy<Value = Service> {
    let port = (port_name(), protocol(), number(), prop::option::of(node_port()));
    let port = port.prop_map(|(name, protocol, port, node_port)| ServicePort {
        node_port,
        ..ServicePort::new(name, protocol, port)
    });
    let ports = prop::collection::vec(port, 1..4);
    // Few addresses, so that services claim each other's.
    (
        cluster_ip(),
        any::<bool>(),
        any::<bool>(),
        ports,
        external(),
        traits(),
    )
        .prop_map(|(address, dual, local, ports, external, traits)| {
            let mut addresses = vec![address];
            if dual {
                addresses.push(v6(0x96, 0, last_of(address)));
            }
            let mut kept: Vec<ServicePort> = Vec::new();
            for port in ports {
                let clash = |other: &ServicePort| {
                    other.name == port.name
                        || (other.protocol, other.port) == (port.protocol, port.port)
                        || port.node_port.is_some()
                            && (other.protocol, other.node_port) == (port.protocol, port.node_port)
                };
                if !kept.iter().any(clash) {
                    kept.push(port);
                }
            }
            if traits.resolution != Resolution::ClusterIps {
                addresses.clear();
            }
            let mut service = Service::new(addresses, kept).unwrap();
            service.affinity = traits.affinity;
            service.resolution = traits.resolution;
            service.proxied_elsewhere = traits.proxied_elsewhere;
            service.publish_not_ready = traits.publish_not_ready;
            service.internal_policy = if local {
                InternalPolicy::Local
            } else {
                InternalPolicy::Cluster
            };
            service.external = external;
            service
        })
}

fn cluster_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        12 => (1..6_u8).prop_map(|host| v4(96, 0, host)),
        // Of no range: nobody's, and maybe a pod's or a node's.
        1 => (1..6_u8).prop_map(|host| v4(97, 0, host)),
        1 => (1..6_u8).prop_map(|host| v4(244, 1, host)),
        1 => (0..NODES).prop_map(|node| v4(0, 0, 10 + node)),
    ]
}

fn last_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    }
}

/// What sets some services apart from the others.
#[derive(Debug, Clone)]
struct Traits {
    affinity: Affinity,
    resolution: Resolution,
    proxied_elsewhere: bool,
    publish_not_ready: bool,
}

fn traits() -> impl Strategy<Value = Traits> {
    let affinity = prop_oneof![
        3 => Just(Affinity::None),
        1 => (10..13_u32).prop_map(|seconds| Affinity::ClientIp { seconds }),
    ];
    let resolution = prop_oneof![
        16 => Just(Resolution::ClusterIps),
        1 => Just(Resolution::Endpoints),
        1 => Just(Resolution::Alias("example.org".parse().unwrap())),
    ];
    let flags = [0.1, 0.2].map(prop::bool::weighted);
    (affinity, resolution, flags).prop_map(
        |(affinity, resolution, [proxied_elsewhere, publish_not_ready])| Traits {
            affinity,
            resolution,
            proxied_elsewhere,
            publish_not_ready,
        },
    )
}

/// Few addresses again, some of them another service's cluster IP, or in the range of these.
fn external() -> impl Strategy<Value = External> {
    let address = prop_oneof![
        8 => (0..4_u8, any::<bool>()).prop_map(|(host, six)| if six { v6(0xcb, 0, host) } else { v4(203, 0, host) }),
        1 => (1..8_u8).prop_map(|host| v4(96, 0, host)),
        // A node's own.
        1 => (0..NODES).prop_map(|node| v4(0, 0, 10 + node)),
    ];
    let addresses = || prop::collection::vec(address.clone(), 0..3);
    let range = prop::sample::select(vec!["10.244.1.0/24", "172.16.0.0/12", "0.0.0.0/0", "fd00::/16"]);
    let sources = prop::collection::btree_set(range.prop_map(|range| range.parse().unwrap()), 0..3);
    let sources = prop::option::of(sources);
    let check = 32_000..32_003_u16;
    let algorithm = prop_oneof![19 => Just(Algorithm::Random), 1 => Just(Algorithm::Maglev)];
    (addresses(), addresses(), sources, any::<bool>(), check, algorithm).prop_map(
        |(ips, load_balancer, sources, local, check, algorithm)| External {
            ips,
            load_balancer,
            sources,
            policy: if local {
                ExternalPolicy::Local
            } else {
                ExternalPolicy::Cluster
            },
            algorithm,
            health_check: local.then_some(check).and_then(NonZeroU16::new),
            unread: Vec::new(),
        },
    )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (port_name(), protocol(), prop::option::weighted(0.9, number()));
    let port = port.prop_map(|(name, protocol, port)| EndpointPort { name, protocol, port });
    let endpoint = (0..NODES, 2..6_u8, any::<[bool; 3]>(), any::<bool>(), hints());
    let endpoints = prop::collection::vec(endpoint, 0..5);
    let ports = prop::collection::vec(port, 0..4);
    (
        any::<bool>(),
        prop::option::weighted(0.9, 0..SERVICES),
        ports,
        endpoints,
    )
        .prop_map(|(six, of, ports, endpoints)| {
            let endpoints =
                endpoints
                    .into_iter()
                    .map(
                        |(on, host, [ready, serving, terminating], placed, hints)| Endpoint {
                            hostname: None,
                            hints,
                            address: if six {
                                v6(0x10, on, host)
                            } else {
                                v4(244, on, host)
                            },
                            ready,
                            serving,
                            terminating,
                            node: placed.then(|| node_name(on)),
                        },
                    );
            let family = AddressFamily::Ip(if six { Family::V6 } else { Family::V4 });
            EndpointSlice::new(of.map(service_name), family, ports, endpoints.collect()).unwrap()
        })
}

fn hints() -> impl Strategy<Value = Hints> {
    let zones = prop::option::weighted(0.8, 0..2_u8);
    let nodes = prop::option::weighted(0.3, 0..NODES);
    (zones, nodes).prop_map(|(zones, nodes)| Hints {
        zones: zones.map(|index| zone(index).into()).into_iter().collect(),
        nodes: nodes.map(node_name).into_iter().collect(),
    })
}

fn busy_port() -> impl Strategy<Value = NodePort> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    (family, protocol(), node_port()).prop_map(|(family, protocol, port)| NodePort {
        family,
        protocol,
        port,
    })
}

/// On addresses of nodes, of services, and on all.
fn host_port() -> impl Strategy<Value = HostPort> {
    let one = prop_oneof![
        3 => (0..NODES).prop_map(|node| v4(0, 0, 10 + node)),
        1 => (0..NODES).prop_map(|node| v6(0xff, 0, 10 + node)),
        2 => (0..4_u8).prop_map(|host| v4(203, 0, host)),
        1 => (1..6_u8).prop_map(|host| v4(96, 0, host)),
        1 => Just(Ipv4Addr::LOCALHOST.into()),
    ];
    let address = prop_oneof![
        1 => prop::sample::select(vec![Family::V4, Family::V6]).prop_map(HostAddress::Any),
        2 => one.prop_map(HostAddress::One),
    ];
    (address, protocol(), prop_oneof![number(), node_port()]).prop_map(|(address, protocol, port)| HostPort {
        address,
        protocol,
        port,
    })
}

fn node_port() -> impl Strategy<Value = NonZeroU16> {
    (30_000..30_003_u16).prop_map(|port| NonZeroU16::new(port).unwrap())
}

pub(crate) fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        6 => (0..NODES)
            .prop_flat_map(|key| (Just(key), prop::option::weighted(0.8, node(key))))
            .prop_map(|(key, node)| Edit::Node(key, node)),
        6 => (0..SERVICES, prop::option::weighted(0.8, service()))
            .prop_map(|(key, service)| Edit::Service(key, service)),
        6 => (0..6_u8, prop::option::weighted(0.8, slice())).prop_map(|(key, slice)| Edit::Slice(key, slice)),
        1 => (0..SERVICES).prop_map(Edit::BrokenService),
        1 => (0..6_u8).prop_map(Edit::BrokenSlice),
        1 => (busy_port(), any::<bool>()).prop_map(|(port, busy)| Edit::Busy(port, busy)),
        2 => (host_port(), any::<bool>()).prop_map(|(port, open)| Edit::HostPort(port, open)),
        1 => (0..3_u8, any::<bool>()).prop_map(|(key, there)| Edit::ServiceCidr(key, there)),
        1 => prop::option::of(0..4_u8).prop_map(Edit::NodePorts),
    ]
}

pub(crate) fn empty(routing: Routing) -> Cluster {
    Cluster::new(ClusterConfig {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10::/56".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
        routing,
        masquerade: Some(vec!["192.168.0.0/16".parse().unwrap()]),
        dns: Some(DnsConfig::default()),
        ..ClusterConfig::default()
    })
}

pub(crate) fn cluster(edits: &[Edit]) -> Cluster {
    let mut cluster = empty(Routing::default());
    edits.iter().for_each(|edit| edit.apply(&mut cluster));
    cluster
}
