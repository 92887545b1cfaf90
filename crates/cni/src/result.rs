//! The result of an ADD (specification section 5, "Success"), written in any version.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::version::CniVersion;

/// What ADD made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AddResult {
    /// The links, on the node and in the container.
    #[serde(default)]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default)]
    pub ips: Vec<IpConfig>,
    /// The container's routes.
    #[serde(default)]
    pub routes: Vec<RouteConfig>,
    /// How the container looks up names.
    #[serde(default)]
    pub dns: Dns,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address. Text, since in a chain it may be another plugin's link, and no Ethernet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Largest packet in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The container's network namespace; none on the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index into the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address and its prefix.
    pub address: IpNet,
    /// The router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteConfig {
    /// Where to.
    pub dst: IpNet,
    /// The router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

/// How names are looked up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// The servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<IpAddr>,
}

impl AddResult {
    /// The object to print.
    pub fn to_json(&self, version: CniVersion) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".into(), json!(version.as_str()));
        let interfaces = self.interfaces.iter().map(|interface| {
            let mut interface = interface.clone();
            if version < CniVersion::V1_1_0 {
                interface.mtu = None;
            }
            json!(interface)
        });
        object.insert("interfaces".into(), interfaces.collect());
        let ips = self.ips.iter().map(|ip| {
            let mut ip_object = json!(ip);
            if version < CniVersion::V1_0_0 {
                ip_object["version"] = json!(if ip.address.addr().is_ipv4() { "4" } else { "6" });
            }
            ip_object
        });
        object.insert("ips".into(), ips.collect());
        object.insert("routes".into(), json!(self.routes));
        object.insert("dns".into(), json!(self.dns));
        Value::Object(object)
    }

    /// This result behind that of the plugins before us in a chain.
    pub fn behind(self, previous: AddResult) -> Self {
        let offset = previous.interfaces.len();
        let mut chained = previous;
        chained.interfaces.extend(self.interfaces);
        chained.ips.extend(self.ips.into_iter().map(|mut ip| {
            ip.interface = ip.interface.map(|index| index + offset);
            ip
        }));
        chained.routes.extend(self.routes);
        chained.dns.nameservers.extend(self.dns.nameservers);
        chained
    }

    /// Reads a result of any version; what we do not use is left out.
    pub fn from_json(value: &Value) -> Result<Self, serde_json::Error> {
        Self::deserialize(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> AddResult {
        let mac = |last: u8| Some(format!("02:00:00:00:00:{last:02x}"));
        AddResult {
            interfaces: vec![
                Interface {
                    name: "podnetabcdefghi".into(),
                    mac: mac(1),
                    mtu: Some(1450),
                    sandbox: None,
                },
                Interface {
                    name: "eth0".into(),
                    mac: mac(2),
                    mtu: Some(1450),
                    sandbox: Some("/proc/7/ns/net".into()),
                },
            ],
            ips: vec![
                IpConfig {
                    interface: Some(1),
                    address: "10.244.0.2/32".parse().unwrap(),
                    gateway: Some("169.254.1.1".parse().unwrap()),
                },
                IpConfig {
                    interface: Some(1),
                    address: "fd00:10:244::2/128".parse().unwrap(),
                    gateway: Some("fe80::1".parse().unwrap()),
                },
            ],
            routes: vec![RouteConfig {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some("169.254.1.1".parse().unwrap()),
            }],
            dns: Dns {
                nameservers: vec!["10.96.0.10".parse().unwrap()],
            },
        }
    }

    #[test]
    fn every_version_is_written_as_it_wants() {
        let old = sample().to_json(CniVersion::V0_4_0);
        assert_eq!(
            (&old["ips"][0]["version"], &old["ips"][1]["version"]),
            (&json!("4"), &json!("6"))
        );
        assert_eq!(old["interfaces"][1].get("mtu"), None);
        let middle = sample().to_json(CniVersion::V1_0_0);
        assert_eq!(middle["ips"][0].get("version"), None);
        let new = sample().to_json(CniVersion::V1_1_0);
        assert_eq!(new["interfaces"][1]["mtu"], json!(1450));
        insta::assert_snapshot!(serde_json::to_string_pretty(&new).unwrap());
    }

    #[test]
    fn in_a_chain_the_indices_move() {
        let chained = sample().behind(sample());
        let indices: Vec<_> = chained.ips.iter().map(|ip| ip.interface).collect();
        assert_eq!(indices, [Some(1), Some(1), Some(3), Some(3)]);
        assert_eq!(chained.interfaces[3].name, "eth0");
    }

    #[test]
    fn a_result_reads_back() {
        assert_eq!(
            AddResult::from_json(&sample().to_json(CniVersion::V1_1_0)).unwrap(),
            sample()
        );
        let old = AddResult::from_json(&sample().to_json(CniVersion::V0_3_1)).unwrap();
        assert_eq!(old.ips, sample().ips);
    }
}
