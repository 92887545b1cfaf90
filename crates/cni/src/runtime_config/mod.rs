//! What a runtime passes on of a pod's wishes, key by key of `runtimeConfig` (the project's CONVENTIONS.md,
//! "Dynamic plugin specific fields"), and the annotations and arguments that say the same.
//!
//! Parsed here once. The agent gets it with the attachment, enforces it, and refuses what it cannot enforce: see
//! [`RuntimeConfig::wishes`].

mod bandwidth;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use podnet_core::cluster::Protocol;
use podnet_linux::MacAddr;
use serde::{Deserialize, Serialize};

pub use bandwidth::{Bandwidth, Rate};

use crate::result::Dns;

/// A pod's wishes. Everything is empty unless it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// `ips`: the addresses that the pod is to have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// `mac`: the Ethernet address of its end of the link. Always unicast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// `ipRanges`: the pod has one address out of each of these sets, whose members do not overlap.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// `dns`: how it looks up names, in place of what the network says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// `portMappings`: ports of the node that lead to the pod. No two of them claim the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// `bandwidth`, or the annotations for it.
    #[serde(skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// Kernel settings that the pod's annotation asks for, by path below /proc/sys; see [`crate::PodSettings::sysctls`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// `io.kubernetes.cri.pod-annotations`: all of the pod's annotations, for whoever reads others.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Addresses to choose from. All of one family and within the subnet, the first not after the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpRange {
    /// The subnet.
    pub subnet: IpNet,
    /// The first address for pods, if it is not the subnet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<IpAddr>,
    /// The last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<IpAddr>,
    /// The subnet's router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A port of the node that leads to a port of the pod (`hostPort` in Kubernetes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's address; every one of its addresses when none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The node's port.
    pub host_port: NonZeroU16,
    /// The pod's port.
    pub container_port: NonZeroU16,
    /// The transport protocol.
    #[serde(with = "protocol")]
    pub protocol: Protocol,
}

/// A protocol by its name, in capital letters or not.
mod protocol {
    use podnet_core::cluster::Protocol;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(protocol)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Protocol, D::Error> {
        let name = String::deserialize(deserializer)?.to_ascii_uppercase();
        name.parse().map_err(D::Error::custom)
    }
}

/// A kind of wish, by the name of the capability that a network's configuration declares for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Static addresses.
    Ips,
    /// A static Ethernet address.
    Mac,
    /// Addresses out of ranges.
    IpRanges,
    /// Name servers.
    Dns,
    /// Ports of the node.
    PortMappings,
    /// Limits on traffic.
    Bandwidth,
    /// The pod's annotations.
    Annotations,
}

impl Capability {
    /// Every capability.
    pub const ALL: [Capability; 7] = [
        Capability::Ips,
        Capability::Mac,
        Capability::IpRanges,
        Capability::Dns,
        Capability::PortMappings,
        Capability::Bandwidth,
        Capability::Annotations,
    ];

    /// Its key in `capabilities` and `runtimeConfig`.
    pub fn key(self) -> &'static str {
        match self {
            Capability::Ips => "ips",
            Capability::Mac => "mac",
            Capability::IpRanges => "ipRanges",
            Capability::Dns => "dns",
            Capability::PortMappings => "portMappings",
            Capability::Bandwidth => "bandwidth",
            Capability::Annotations => "io.kubernetes.cri.pod-annotations",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key())
    }
}

impl RuntimeConfig {
    /// What is asked for, so that whoever cannot do it all can refuse.
    pub fn wishes(&self) -> Vec<Capability> {
        let asked = |capability: &Capability| match capability {
            Capability::Ips => !self.ips.is_empty(),
            Capability::Mac => self.mac.is_some(),
            Capability::IpRanges => !self.ip_ranges.is_empty(),
            Capability::Dns => self.dns.is_some(),
            Capability::PortMappings => !self.port_mappings.is_empty(),
            Capability::Bandwidth => !self.bandwidth.is_unlimited(),
            // To be told them is no wish.
            Capability::Annotations => false,
        };
        Capability::ALL.into_iter().filter(asked).collect()
    }
}
