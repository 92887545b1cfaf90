//! What a lab will look like, worked out before anything is made. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A lab's name: also its directory's name, so a DNS label of at most 32 characters.
///
/// The limit keeps the paths of unix sockets below the lab's directory under the kernel's 108 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inner = name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if name.len() > 32 || !inner || !edge(name.chars().next()) || !edge(name.chars().last()) {
            return Err(format!(
                "'{name}' cannot name a lab: use 1 to 32 lower-case letters, digits and '-', with a letter or digit \
                 at both ends"
            ));
        }
        Ok(LabName(name.to_owned()))
    }
}

impl TryFrom<String> for LabName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> String {
        name.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which address families pods and services get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Both, IPv4 first.
    Dual,
}

impl IpFamily {
    /// The addresses of this choice, in order of preference.
    fn select<T>(self, v4: T, v6: T) -> Vec<T> {
        match self {
            IpFamily::Ipv4 => vec![v4],
            IpFamily::Ipv6 => vec![v6],
            IpFamily::Dual => vec![v4, v6],
        }
    }
}

/// How packets cross nodes in the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// Encapsulated in VXLAN.
    Vxlan,
    /// By plain routes to the other nodes.
    Direct,
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Routing::Vxlan => "vxlan",
            Routing::Direct => "direct",
        })
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Switch::On => "on",
            Switch::Off => "off",
        })
    }
}

/// What the API server keeps its objects in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Datastore {
    /// Gone with the API server.
    Memory,
    /// Outlives the API server.
    Disk,
}

/// The most nodes of a lab: its subnets number them with one byte.
pub const MAX_NODES: u16 = 100;

/// What was asked for, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The lab's name.
    pub name: LabName,
    /// 1 to [`MAX_NODES`].
    pub nodes: u16,
    /// Underlay subnets, 1 to the number of nodes; nodes are spread over them in turn.
    pub subnets: u16,
    /// Zones, 1 to the number of nodes; nodes are spread over them in turn.
    pub zones: u16,
    /// `--dataplane` of the agents.
    pub dataplane: String,
    /// `--ipvs-scheduler` of the agents, where it was given.
    #[serde(default)]
    pub ipvs_scheduler: Option<String>,
    /// `--routing` of the agents.
    pub routing: Routing,
    /// `--cross-subnet` of the agents.
    #[serde(default)]
    pub cross_subnet: bool,
    /// Address families of pods and services.
    pub ip_family: IpFamily,
    /// Where the API server stores.
    pub datastore: Datastore,
    /// The port on the machine's loopback for kubectl; 0 takes a free one.
    pub api_port: u16,
    /// Whether there is a way to the outside.
    #[serde(default)]
    pub uplink: bool,
    /// `--masquerade` of the agents.
    pub masquerade: Switch,
    /// `--non-masquerade-cidr` of the agents.
    pub non_masquerade_cidrs: Vec<IpNet>,
}

/// The port on which the API server listens on the underlay.
pub const UNDERLAY_API_PORT: u16 = 6443;

/// The ranges of all subnets of the underlay.
const UNDERLAY: [IpNet; 2] = [
    IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(172, 30, 0, 0), 16)),
    IpNet::V6(ipnet::Ipv6Net::new_assert(
        Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, 0),
        48,
    )),
];

/// The addresses by which pods and nodes reach the loopback of the machine, when there is an uplink.
pub const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(172, 30, 255, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd30, 0, 0, 0xff, 0, 0, 0, 1)),
];

/// One subnet of the underlay: a bridge with a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// The bridge's name in the underlay namespace.
    pub bridge: String,
    /// The gateway's addresses with the subnet's prefix.
    pub gateways: Vec<IpNet>,
}

/// One node to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// node1, node2, ...
    pub name: String,
    /// Index into [`Plan::subnets`].
    pub subnet: usize,
    /// eth0's addresses with the subnet's prefix.
    pub addresses: Vec<IpNet>,
    /// topology.kubernetes.io/zone.
    pub zone: String,
}

/// The lab to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The underlay.
    pub subnets: Vec<Subnet>,
    /// The nodes, in order.
    pub nodes: Vec<NodePlan>,
    /// Pod ranges, cut into node ranges by the controller.
    pub cluster_cidrs: Vec<IpNet>,
    /// Service ranges.
    pub service_cidrs: Vec<IpNet>,
}

impl Plan {
    /// The lab that `request` asks for. The underlay always has both families: nodes do, whatever pods have.
    pub fn new(request: &Request) -> Self {
        let subnets = (0..request.subnets).map(subnet).collect();
        let nodes = (1..=request.nodes)
            .map(|number| {
                let subnet = (number - 1) % request.subnets;
                NodePlan {
                    name: format!("node{number}"),
                    subnet: subnet.into(),
                    addresses: vec![v4(subnet, number + 10), v6(subnet, number + 10)],
                    zone: format!("zone{}", (number - 1) % request.zones + 1),
                }
            })
            .collect();
        let net = |text: &str| text.parse().expect("a constant network parses");
        Plan {
            subnets,
            nodes,
            cluster_cidrs: request
                .ip_family
                .select(net("10.244.0.0/16"), net("fd00:10:244::/56")),
            service_cidrs: request
                .ip_family
                .select(net("10.96.0.0/16"), net("fd00:10:96::/112")),
        }
    }

    /// The addresses under which the API server is reached from the nodes, in the order of the pods' families.
    pub fn api_addresses(&self) -> Vec<IpAddr> {
        self.cluster_cidrs
            .iter()
            .filter_map(|cidr| {
                let gateways = &self.subnets.first()?.gateways;
                gateways
                    .iter()
                    .map(IpNet::addr)
                    .find(|gateway| gateway.is_ipv4() == cidr.addr().is_ipv4())
            })
            .collect()
    }

    /// Everything that is the lab's own: of these ranges nothing is outside.
    pub fn own_ranges(&self) -> Vec<IpNet> {
        let clusters = self.cluster_cidrs.iter().chain(&self.service_cidrs).copied();
        clusters.chain(UNDERLAY).collect()
    }

    /// The cluster DNS address of each service range: its tenth.
    pub fn cluster_dns(&self) -> Vec<IpAddr> {
        self.service_cidrs
            .iter()
            .map(|cidr| nth(cidr.network(), 10))
            .collect()
    }

    /// Every name and address under which a client may call the API server.
    pub fn api_names(&self) -> Vec<String> {
        let kubernetes = self
            .service_cidrs
            .iter()
            .map(|cidr| nth(cidr.network(), 1).to_string());
        let gateways = self
            .subnets
            .iter()
            .flat_map(|s| s.gateways.iter().map(|g| g.addr().to_string()));
        [
            "localhost",
            "127.0.0.1",
            "::1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ]
        .into_iter()
        .map(str::to_owned)
        .chain(["kubernetes.default.svc.cluster.local".to_owned()])
        .chain(kubernetes)
        .chain(gateways)
        .collect()
    }
}

impl NodePlan {
    /// The node's addresses in the order of the pods' families, so that the primary one is of the primary family.
    pub fn node_ips(&self, cluster_cidrs: &[IpNet]) -> Vec<IpAddr> {
        let first_is_v4 = cluster_cidrs.first().is_none_or(|cidr| cidr.addr().is_ipv4());
        let mut addresses: Vec<IpAddr> = self.addresses.iter().map(IpNet::addr).collect();
        addresses.sort_by_key(|address| address.is_ipv4() != first_is_v4);
        addresses
    }
}

fn subnet(number: u16) -> Subnet {
    Subnet {
        bridge: format!("subnet{number}"),
        gateways: vec![v4(number, 1), v6(number, 1)],
    }
}

fn v4(subnet: u16, host: u16) -> IpNet {
    let [_, subnet] = subnet.to_be_bytes();
    let [_, host] = host.to_be_bytes();
    IpNet::new_assert(Ipv4Addr::new(172, 30, subnet, host).into(), 24)
}

fn v6(subnet: u16, host: u16) -> IpNet {
    IpNet::new_assert(Ipv6Addr::new(0xfd30, 0, 0, subnet, 0, 0, 0, host).into(), 64)
}

fn nth(network: IpAddr, n: u8) -> IpAddr {
    match network {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() + u32::from(n)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() + u128::from(n)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(nodes: u16, subnets: u16, ip_family: IpFamily) -> Request {
        Request {
            name: "t".parse().unwrap(),
            nodes,
            subnets,
            zones: 2,
            dataplane: "auto".into(),
            ipvs_scheduler: None,
            routing: Routing::Vxlan,
            cross_subnet: false,
            ip_family,
            datastore: Datastore::Memory,
            api_port: 0,
            uplink: false,
            masquerade: Switch::On,
            non_masquerade_cidrs: Vec::new(),
        }
    }

    #[test]
    fn no_two_nodes_share_an_address_and_none_has_a_gateways() {
        let plan = Plan::new(&request(MAX_NODES, 3, IpFamily::Dual));
        let mut all: Vec<IpAddr> = plan
            .nodes
            .iter()
            .flat_map(|n| n.addresses.iter().map(IpNet::addr))
            .collect();
        all.extend(
            plan.subnets
                .iter()
                .flat_map(|s| s.gateways.iter().map(IpNet::addr)),
        );
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn the_underlay_is_within_its_ranges_and_leaves_the_loopback_its_addresses() {
        let plan = Plan::new(&request(MAX_NODES, MAX_NODES, IpFamily::Dual));
        for subnet in &plan.subnets {
            for gateway in &subnet.gateways {
                assert!(UNDERLAY.iter().any(|range| range.contains(gateway)), "{gateway}");
                assert!(
                    !LOOPBACK.iter().any(|address| gateway.contains(address)),
                    "{gateway}"
                );
            }
        }
        assert!(
            LOOPBACK
                .iter()
                .all(|address| UNDERLAY.iter().any(|range| range.contains(address)))
        );
    }

    #[test]
    fn nodes_are_spread_over_subnets_and_zones() {
        let plan = Plan::new(&request(3, 2, IpFamily::Ipv4));
        assert_eq!(plan.nodes.iter().map(|n| n.subnet).collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!(
            plan.nodes.iter().map(|n| n.zone.as_str()).collect::<Vec<_>>(),
            ["zone1", "zone2", "zone1"]
        );
        assert_eq!(plan.nodes[1].addresses[0].to_string(), "172.30.1.12/24");
    }

    #[test]
    fn ipv6_only_puts_ipv6_first_everywhere() {
        let plan = Plan::new(&request(1, 1, IpFamily::Ipv6));
        assert!(plan.cluster_cidrs.iter().all(|cidr| cidr.addr().is_ipv6()));
        assert!(plan.nodes[0].node_ips(&plan.cluster_cidrs)[0].is_ipv6());
        assert_eq!(plan.cluster_dns(), ["fd00:10:96::a".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_lab_name_is_a_label() {
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "..", &"a".repeat(33)] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
        assert!("my-lab-2".parse::<LabName>().is_ok());
    }
}
