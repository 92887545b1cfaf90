//! The result of an ADD (specification section 5, "Success"), written in any version.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::version::CniVersion;

/// What ADD made.
///
/// In a chain it is passed on from plugin to plugin, so that what podnet does not know (`more`, here and in the parts)
/// has to come out as it came in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AddResult {
    /// The links, on the node and in the container.
    #[serde(default, deserialize_with = "null_is_nothing")]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default, deserialize_with = "null_is_nothing")]
    pub ips: Vec<IpConfig>,
    /// The container's routes.
    #[serde(default, deserialize_with = "null_is_nothing")]
    pub routes: Vec<RouteConfig>,
    /// How the container looks up names.
    #[serde(default, deserialize_with = "null_is_nothing")]
    pub dns: Dns,
    /// Other plugins' keys.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Plugins in Go print an empty list as `null`.
fn null_is_nothing<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
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
    /// Other plugins' keys.
    #[serde(flatten)]
    pub more: Map<String, Value>,
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
    /// Other plugins' keys.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A route of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteConfig {
    /// Where to.
    pub dst: IpNet,
    /// The router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// Other plugins' keys.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// How names are looked up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Dns {
    /// The servers. Text, since in a chain it is another plugin's word.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_nothing"
    )]
    pub nameservers: Vec<String>,
    /// The domain of short names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The domains in which short names are looked up.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_nothing"
    )]
    pub search: Vec<String>,
    /// The resolver's options.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_nothing"
    )]
    pub options: Vec<String>,
    /// Other plugins' keys.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Dns {
    /// These servers and nothing else.
    pub fn of(nameservers: impl IntoIterator<Item = IpAddr>) -> Self {
        Dns {
            nameservers: nameservers.into_iter().map(|server| server.to_string()).collect(),
            ..Dns::default()
        }
    }

    /// What both say, the first one's word before the second one's.
    fn and(mut self, other: Dns) -> Self {
        self.domain = self.domain.or(other.domain);
        for (ours, theirs) in [
            (&mut self.nameservers, other.nameservers),
            (&mut self.search, other.search),
            (&mut self.options, other.options),
        ] {
            for text in theirs {
                if !ours.contains(&text) {
                    ours.push(text);
                }
            }
        }
        self.more.extend(other.more);
        self
    }
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
        object.extend(self.more.clone());
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
        chained.dns = chained.dns.and(self.dns);
        chained.more.extend(self.more);
        chained
    }

    /// Reads a result of any version.
    pub fn from_json(value: &Value) -> Result<Self, serde_json::Error> {
        let mut result = Self::deserialize(value)?;
        // Both are written anew, for the version that is asked for.
        result.more.shift_remove("cniVersion");
        for ip in &mut result.ips {
            ip.more.shift_remove("version");
        }
        Ok(result)
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
                    more: Map::new(),
                },
                Interface {
                    name: "eth0".into(),
                    mac: mac(2),
                    mtu: Some(1450),
                    sandbox: Some("/proc/7/ns/net".into()),
                    more: Map::new(),
                },
            ],
            ips: vec![
                IpConfig {
                    interface: Some(1),
                    address: "10.244.0.2/32".parse().unwrap(),
                    gateway: Some("169.254.1.1".parse().unwrap()),
                    more: Map::new(),
                },
                IpConfig {
                    interface: Some(1),
                    address: "fd00:10:244::2/128".parse().unwrap(),
                    gateway: Some("fe80::1".parse().unwrap()),
                    more: Map::new(),
                },
            ],
            routes: vec![RouteConfig {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some("169.254.1.1".parse().unwrap()),
                more: Map::new(),
            }],
            dns: Dns::of(["10.96.0.10".parse().unwrap()]),
            more: Map::new(),
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
    fn other_plugins_keys_survive_a_chain() {
        let previous = json!({
            "cniVersion": "1.0.0", "kept": { "a": 1 },
            "interfaces": [{ "name": "lo", "sandbox": "/n", "socketPath": "/s" }],
            "ips": [{ "address": "127.0.0.1/8", "interface": 0, "ours": true }],
            "routes": null,
            "dns": { "nameservers": ["ns.example"], "domain": "d", "search": ["s"], "options": ["o"], "x": 1 },
        });
        let chained = sample().behind(AddResult::from_json(&previous).unwrap());
        let printed = chained.to_json(CniVersion::V0_4_0);
        assert_eq!(printed["cniVersion"], "0.4.0");
        assert_eq!(printed["kept"], json!({ "a": 1 }));
        assert_eq!(printed["interfaces"][0], previous["interfaces"][0]);
        assert_eq!(
            printed["ips"][0],
            json!({ "interface": 0, "address": "127.0.0.1/8", "ours": true, "version": "4" })
        );
        assert_eq!(
            printed["dns"],
            json!({
                "nameservers": ["ns.example", "10.96.0.10"], "domain": "d", "search": ["s"], "options": ["o"], "x": 1,
            })
        );
    }

    #[test]
    fn a_result_reads_back() {
        assert_eq!(
            AddResult::from_json(&sample().to_json(CniVersion::V1_1_0)).unwrap(),
            sample()
        );
        for version in CniVersion::ALL {
            let old = AddResult::from_json(&sample().to_json(version)).unwrap();
            assert_eq!(old.ips, sample().ips, "{version}");
            assert!(old.more.is_empty(), "{version}");
        }
    }
}
