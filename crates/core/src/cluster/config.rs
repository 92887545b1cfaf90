//! What is set for the whole cluster, by flags rather than by objects.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

/// Settings that every node of a cluster shares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterConfig {
    /// The ranges all pods' addresses are from, one per family; empty when not told.
    pub cluster_cidrs: Vec<IpNet>,
    /// The ranges all services' addresses are from, one per family; empty when not told.
    pub service_cidrs: Vec<IpNet>,
    /// How packets for pods get from node to node.
    pub routing: Routing,
    /// With [`Routing::Vxlan`]: packets to nodes on one's own subnet go as they are, and only those to other subnets
    /// through the tunnel.
    pub cross_subnet: bool,
    /// Destinations beyond the cluster that pods reach with their own address; all others see the node's. None if
    /// pods always keep theirs, because the world around the cluster knows the way back to them.
    pub masquerade: Option<Vec<IpNet>>,
}

/// How packets for pods get from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// In VXLAN packets (RFC 7348) between the nodes: any underlay does.
    Vxlan(Vxlan),
    /// As they are, the other node being the next hop: all nodes must be on one link, or the underlay must know the
    /// pod ranges.
    Direct,
}

impl Default for Routing {
    fn default() -> Self {
        Routing::Vxlan(Vxlan::default())
    }
}

/// The parameters of the cluster's VXLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
}

impl Default for Vxlan {
    /// Port 4789 is IANA's. The VNI differs from Flannel's (1) so that one may replace the other node by node.
    fn default() -> Self {
        Vxlan { vni: 112, port: 4789 }
    }
}

/// Why a setting cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A routing mode of the design that this version does not have.
    #[error("routing {0:?} is not supported by this version; choose vxlan or direct")]
    RoutingNotSupported(String),
    /// No routing mode at all.
    #[error("{0:?} is no routing mode; choose vxlan or direct")]
    RoutingUnknown(String),
}

impl FromStr for Routing {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "vxlan" => Ok(Routing::default()),
            "direct" => Ok(Routing::Direct),
            "geneve" | "ipip" | "bgp" => Err(ConfigError::RoutingNotSupported(text.into())),
            _ => Err(ConfigError::RoutingUnknown(text.into())),
        }
    }
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Routing::Vxlan(vxlan) => write!(f, "vxlan vni {} port {}", vxlan.vni, vxlan.port),
            Routing::Direct => f.write_str("direct"),
        }
    }
}
