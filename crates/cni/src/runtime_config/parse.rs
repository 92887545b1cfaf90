//! From JSON. Every error names the key, down to the element of a list.

use std::fmt::Display;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU64};
use std::str::FromStr;

use ipnet::IpNet;
use podnet_core::cluster::Protocol;
use podnet_linux::MacAddr;
use serde_json::{Map, Value};

use super::{Bandwidth, Capability, IpRange, PortMapping, Rate, RuntimeConfig};
use crate::cni_args::{self, CniArgs};
use crate::error::{CniError, Code};
use crate::pod_settings;
use crate::result::Dns;

/// The key of the network configuration.
const KEY: &str = "runtimeConfig";

/// A value, and the way to it.
struct At<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> At<'a> {
    fn wrong(&self, why: impl Display) -> CniError {
        let msg = format!("the network configuration's {:?} is wrong", self.path);
        CniError::new(Code::InvalidConfig, msg).with_details(why.to_string())
    }

    fn object(&self) -> Result<&'a Map<String, Value>, CniError> {
        self.value
            .as_object()
            .ok_or_else(|| self.wrong(format!("{} is not an object", self.value)))
    }

    /// A member of an object; none if it is missing or null.
    fn get(&self, key: &str) -> Result<Option<At<'a>>, CniError> {
        let value = self.object()?.get(key).filter(|value| !value.is_null());
        Ok(value.map(|value| At {
            path: format!("{}.{key}", self.path),
            value,
        }))
    }

    fn list(&self) -> Result<Vec<At<'a>>, CniError> {
        let list = self
            .value
            .as_array()
            .ok_or_else(|| self.wrong(format!("{} is not a list", self.value)))?;
        let elements = list.iter().enumerate().map(|(index, value)| At {
            path: format!("{}[{index}]", self.path),
            value,
        });
        Ok(elements.collect())
    }

    fn list_of<T>(&self, parse: impl Fn(&At<'a>) -> Result<T, CniError>) -> Result<Vec<T>, CniError> {
        self.list()?.iter().map(parse).collect()
    }

    fn text(&self) -> Result<&'a str, CniError> {
        self.value
            .as_str()
            .ok_or_else(|| self.wrong(format!("{} is not a string", self.value)))
    }

    fn parse<T: FromStr<Err: Display>>(&self) -> Result<T, CniError> {
        let text = self.text()?;
        text.parse()
            .map_err(|error| self.wrong(format!("{text:?}: {error}")))
    }

    fn number(&self) -> Result<u64, CniError> {
        self.value.as_u64().ok_or_else(|| {
            self.wrong(format!(
                "{} is not a whole number that is not negative",
                self.value
            ))
        })
    }
}

/// Reads a member that may be missing.
fn optional<'a, T>(
    parent: &At<'a>,
    key: &str,
    parse: impl Fn(&At<'a>) -> Result<T, CniError>,
) -> Result<Option<T>, CniError> {
    parent.get(key)?.map(|at| parse(&at)).transpose()
}

impl RuntimeConfig {
    /// Reads what a network configuration says of one pod: `runtimeConfig`, and `ips` and `mac` of `args.cni`, where
    /// runtimes that know no capabilities put them. They add up.
    pub fn parse(configuration: &Map<String, Value>) -> Result<Self, CniError> {
        let mut wishes = Self::of_runtime_config(configuration)?;
        let args = configuration.get("args").filter(|value| !value.is_null());
        let args = args.map(|value| At {
            path: "args".into(),
            value,
        });
        // Further keys, such as `labels`, are there for whoever wants them.
        if let Some(args) = args
            && let Some(args) = args.get("cni")?
        {
            wishes
                .ips
                .extend(optional(&args, "ips", |at| at.list_of(address))?.unwrap_or_default());
            wishes.mac = wishes.mac.or(optional(&args, "mac", mac)?.flatten());
        }
        wishes.with_one_address_of_each_family()
    }

    /// These wishes, and those in the environment.
    pub fn with(mut self, args: &CniArgs) -> Result<Self, CniError> {
        self.ips.extend(args.ip);
        self.mac = self.mac.or(args.mac);
        self.with_one_address_of_each_family()
    }

    fn with_one_address_of_each_family(mut self) -> Result<Self, CniError> {
        let mut kept: Vec<IpAddr> = Vec::new();
        for address in std::mem::take(&mut self.ips) {
            match kept.iter().find(|other| other.is_ipv4() == address.is_ipv4()) {
                Some(other) if *other == address => {}
                Some(other) => {
                    let msg = format!("the runtime asks for {other} and {address} in \"ips\"");
                    return Err(CniError::new(Code::InvalidConfig, msg).with_details(
                        "a pod has one address of each family: see runtimeConfig.ips and args.cni.ips of the \
                         configuration, and IP in CNI_ARGS",
                    ));
                }
                None => kept.push(address),
            }
        }
        self.ips = kept;
        Ok(self)
    }

    /// Keys that podnet does not know belong to others, except `infinibandGUID`: it is a wish for this very link, which
    /// is no InfiniBand port (code 2).
    fn of_runtime_config(configuration: &Map<String, Value>) -> Result<Self, CniError> {
        let Some(value) = configuration.get(KEY).filter(|value| !value.is_null()) else {
            return Ok(RuntimeConfig::default());
        };
        let at = At {
            path: KEY.into(),
            value,
        };
        if at.get("infinibandGUID")?.is_some() {
            return Err(CniError::new(
                Code::UnsupportedField,
                "the network configuration's \"runtimeConfig.infinibandGUID\" is not supported",
            )
            .with_details(
                "podnet's links are Ethernet; give InfiniBand ports to pods with an SR-IOV plugin",
            ));
        }
        let list = |capability: Capability| -> Result<Vec<At<'_>>, CniError> {
            Ok(optional(&at, capability.key(), At::list)?.unwrap_or_default())
        };
        let annotations = optional(&at, Capability::Annotations.key(), annotations)?.unwrap_or_default();
        let of_annotations = Bandwidth::from_annotations(&annotations).map_err(wrong_annotation)?;
        let sysctls = pod_settings::of_annotation(&annotations).map_err(wrong_annotation)?;
        let bandwidth = optional(&at, Capability::Bandwidth.key(), bandwidth)?.unwrap_or_default();
        Ok(RuntimeConfig {
            ips: list(Capability::Ips)?
                .iter()
                .map(address)
                .collect::<Result<_, _>>()?,
            mac: optional(&at, Capability::Mac.key(), mac)?.flatten(),
            ip_ranges: list(Capability::IpRanges)?
                .iter()
                .map(range_set)
                .collect::<Result<_, _>>()?,
            dns: optional(&at, Capability::Dns.key(), dns)?.flatten(),
            port_mappings: optional(&at, Capability::PortMappings.key(), port_mappings)?.unwrap_or_default(),
            bandwidth: bandwidth.or(of_annotations),
            sysctls,
            annotations,
        })
    }
}

fn wrong_annotation((key, why): (String, String)) -> CniError {
    let msg = format!("the pod's annotation {key:?} is wrong");
    CniError::new(Code::InvalidConfig, msg).with_details(why)
}

fn annotations(at: &At<'_>) -> Result<std::collections::BTreeMap<String, String>, CniError> {
    at.object()?
        .iter()
        .map(|(key, value)| {
            let at = At {
                path: format!("{}.{key}", at.path),
                value,
            };
            Ok((key.clone(), at.text()?.to_owned()))
        })
        .collect()
}

fn address(at: &At<'_>) -> Result<IpAddr, CniError> {
    cni_args::ip(at.text()?).map_err(|why| at.wrong(why))
}

/// Runtimes pass an empty text for no wish.
fn mac(at: &At<'_>) -> Result<Option<MacAddr>, CniError> {
    if at.text()?.is_empty() {
        return Ok(None);
    }
    let mac = cni_args::mac(at.text()?);
    mac.map(Some).map_err(|why| at.wrong(why))
}

fn range_set(at: &At<'_>) -> Result<Vec<IpRange>, CniError> {
    let set = at.list_of(ip_range)?;
    let Some(first) = set.first() else {
        return Err(at.wrong("the set is empty"));
    };
    let ipv4 = first.subnet.addr().is_ipv4();
    if set.iter().any(|range| range.subnet.addr().is_ipv4() != ipv4) {
        return Err(at.wrong("a set has ranges of one family, since the pod gets one address of it"));
    }
    for (index, range) in set.iter().enumerate() {
        if let Some(other) = set[..index].iter().find(|other| other.overlaps(range)) {
            return Err(at.wrong(format!("{} overlaps {}", range.subnet, other.subnet)));
        }
    }
    Ok(set)
}

fn ip_range(at: &At<'_>) -> Result<IpRange, CniError> {
    let subnet = at
        .get("subnet")?
        .ok_or_else(|| at.wrong("\"subnet\" is missing"))?
        .parse::<IpNet>()?
        .trunc();
    let within = |at: &At<'_>| {
        let address: IpAddr = at.parse()?;
        if subnet.contains(&address) {
            Ok(address)
        } else {
            Err(at.wrong(format!("{address} is not in {subnet}")))
        }
    };
    let range = IpRange {
        subnet,
        first: optional(at, "rangeStart", within)?,
        last: optional(at, "rangeEnd", within)?,
        gateway: optional(at, "gateway", within)?,
    };
    if range.bounds().0 > range.bounds().1 {
        return Err(at.wrong("rangeStart is after rangeEnd"));
    }
    Ok(range)
}

impl IpRange {
    /// The first and the last address.
    pub fn bounds(&self) -> (IpAddr, IpAddr) {
        (
            self.first.unwrap_or(self.subnet.network()),
            self.last.unwrap_or(self.subnet.broadcast()),
        )
    }

    fn overlaps(&self, other: &IpRange) -> bool {
        let ((first, last), (other_first, other_last)) = (self.bounds(), other.bounds());
        first <= other_last && other_first <= last
    }
}

/// CONVENTIONS.md says `servers` and `searches`; results say `nameservers` and `search`. Runtimes pass empty lists for
/// no wish.
fn dns(at: &At<'_>) -> Result<Option<Dns>, CniError> {
    let texts = |keys: [&str; 2]| -> Result<Vec<String>, CniError> {
        for key in keys {
            if let Some(list) = at.get(key)? {
                return list.list_of(|text| Ok(text.text()?.to_owned()));
            }
        }
        Ok(Vec::new())
    };
    let servers = at.get("servers")?.or(at.get("nameservers")?);
    let nameservers = servers
        .map(|list| list.list_of(At::parse::<IpAddr>))
        .transpose()?;
    let wish = Dns {
        nameservers: nameservers
            .unwrap_or_default()
            .iter()
            .map(ToString::to_string)
            .collect(),
        domain: optional(at, "domain", |text| Ok(text.text()?.to_owned()))?,
        search: texts(["searches", "search"])?,
        options: texts(["options", "options"])?,
        ..Dns::default()
    };
    Ok((wish != Dns::default()).then_some(wish))
}

fn port_mappings(at: &At<'_>) -> Result<Vec<PortMapping>, CniError> {
    let mut mappings: Vec<PortMapping> = Vec::new();
    for at in at.list()? {
        let mapping = port_mapping(&at)?;
        if mappings.contains(&mapping) {
            continue;
        }
        if let Some(other) = mappings.iter().find(|other| other.collides(&mapping)) {
            return Err(at.wrong(format!(
                "port {} of the node leads to port {} already",
                other.host_port, other.container_port
            )));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

fn port_mapping(at: &At<'_>) -> Result<PortMapping, CniError> {
    let port = |key: &str| -> Result<NonZeroU16, CniError> {
        let at = at
            .get(key)?
            .ok_or_else(|| at.wrong(format!("{key:?} is missing")))?;
        let number = at.number()?;
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        port.ok_or_else(|| at.wrong(format!("{number} is no port, which is between 1 and 65535")))
    };
    let protocol = |at: &At<'_>| -> Result<Protocol, CniError> {
        let text = at.text()?;
        let text = if text.is_empty() { "TCP" } else { text };
        text.to_ascii_uppercase().parse().map_err(|error| at.wrong(error))
    };
    let host_ip = |at: &At<'_>| match at.text()? {
        // Every address, and what runtimes pass for it.
        "" => Ok(None),
        _ => at.parse().map(Some),
    };
    Ok(PortMapping {
        host_ip: optional(at, "hostIP", host_ip)?.flatten(),
        host_port: port("hostPort")?,
        container_port: port("containerPort")?,
        protocol: optional(at, "protocol", protocol)?.unwrap_or(Protocol::Tcp),
    })
}

impl PortMapping {
    /// Both claim a port of the same address: no packet to it could tell them apart. An unspecified address is every
    /// one of its family.
    pub fn collides(&self, other: &PortMapping) -> bool {
        let same_address = match (self.host_ip, other.host_ip) {
            (None, _) | (_, None) => true,
            (Some(one), Some(two)) => {
                one == two
                    || (one.is_ipv4() == two.is_ipv4() && (one.is_unspecified() || two.is_unspecified()))
            }
        };
        same_address && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

fn bandwidth(at: &At<'_>) -> Result<Bandwidth, CniError> {
    let limit = |direction: &str| -> Result<Option<Rate>, CniError> {
        // Runtimes pass 0 for no limit.
        let number = |what: &str| -> Result<Option<NonZeroU64>, CniError> {
            Ok(optional(at, &format!("{direction}{what}"), At::number)?.and_then(NonZeroU64::new))
        };
        let (rate, burst) = (number("Rate")?, number("Burst")?);
        match rate {
            Some(rate) => Ok(Some(Rate { rate, burst })),
            None if burst.is_some() => {
                Err(at.wrong(format!("{direction}Burst says nothing without {direction}Rate")))
            }
            None => Ok(None),
        }
    };
    Ok(Bandwidth {
        ingress: limit("ingress")?,
        egress: limit("egress")?,
    })
}
