//! What is set for the cluster's DNS.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::DomainName;

/// Settings of the cluster's DNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// The cluster's domain.
    pub zone: DomainName,
    /// Ranges of addresses whose names (`in-addr.arpa`, `ip6.arpa`) nobody else knows: an address of theirs without
    /// a name does not exist. Names of other addresses are asked for elsewhere.
    pub reverse_zones: Vec<IpNet>,
    /// How long records may be kept, in seconds.
    pub ttl: u32,
    /// How long it may be kept that there is no such record, in seconds.
    pub negative_ttl: u32,
    /// Which pods have names made of their addresses.
    pub pods: PodRecords,
    /// Where the cluster's DNS is served: the addresses of `ns.dns.ZONE`.
    pub servers: Vec<IpAddr>,
}

impl Default for DnsConfig {
    fn default() -> Self {
        DnsConfig {
            zone: DomainName::from_str("cluster.local").unwrap_or_else(|_| DomainName::root()),
            reverse_zones: Vec::new(),
            ttl: 5,
            negative_ttl: 5,
            pods: PodRecords::default(),
            servers: Vec::new(),
        }
    }
}

/// Which names `A-B-C-D.NAMESPACE.pod.ZONE` there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodRecords {
    /// None.
    Off,
    /// One for every address in every namespace, whether or not a pod has it: what the specification asks for.
    #[default]
    Insecure,
    /// One for every pod's address, in the pod's namespace. It needs the cluster's pods.
    Verified,
}
