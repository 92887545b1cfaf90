//! What is set for the whole cluster, by flags rather than by objects.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use super::DnsConfig;

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
    /// The cluster's DNS; `None` where somebody else answers the cluster's names.
    pub dns: Option<DnsConfig>,
}

/// Reads a range of addresses from a flag; the error says what is wrong with it and what would be right.
pub fn parse_range(text: &str) -> Result<IpNet, String> {
    let right = "write ADDRESS/LENGTH, such as 10.244.0.0/16 or fd00:10:244::/56";
    let Some((address, length)) = text.split_once('/') else {
        return Err(format!("there is no prefix length; {right}"));
    };
    let address: std::net::IpAddr = address
        .parse()
        .map_err(|_| format!("{address:?} is no IP address; {right}"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    match length.parse::<u8>() {
        Ok(length) if length <= most => {
            IpNet::new(address, length).map_err(|error| format!("{error}; {right}"))
        }
        _ => Err(format!(
            "the prefix length {length:?} is no number from 0 to {most}; {right}"
        )),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_range_is_told_with_what_would_be_right() {
        assert_eq!(parse_range("10.244.0.0/16"), Ok("10.244.0.0/16".parse().unwrap()));
        assert_eq!(parse_range("fd00::/128"), Ok("fd00::/128".parse().unwrap()));
        for (text, wrong) in [
            (
                "10.0.0.0/33",
                "the prefix length \"33\" is no number from 0 to 32",
            ),
            (
                "fd00::/129",
                "the prefix length \"129\" is no number from 0 to 128",
            ),
            ("10.0.0.0/", "the prefix length \"\" is no number"),
            (
                "10.0.0.0/255.0.0.0",
                "the prefix length \"255.0.0.0\" is no number",
            ),
            ("10.0.0/8", "\"10.0.0\" is no IP address"),
            ("10.0.0.0", "there is no prefix length"),
            ("", "there is no prefix length"),
        ] {
            let error = parse_range(text).unwrap_err();
            assert!(
                error.starts_with(wrong) && error.contains("such as 10.244.0.0/16"),
                "{text}: {error}"
            );
        }
    }
}
