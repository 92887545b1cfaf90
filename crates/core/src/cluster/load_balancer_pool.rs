//! Pools of addresses for load balancers (`LoadBalancerPool`, podnet.io/v1alpha1): services of type LoadBalancer get
//! theirs from them.
//!
//! Which service has which address stands in the services' statuses and nowhere else.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::node::is_unroutable;
use super::selector_object::{SelectorObject, selector};
use super::{Family, Labels, ObjectRef, Selector};
use crate::ipam::Bounds;

/// A `LoadBalancerPool` object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancerPool {
    /// Its name.
    pub name: String,
    /// When it was created, in seconds since 1970: of two that overlap, the older counts.
    pub created: i64,
    /// What its owner wants, or why that cannot be.
    pub spec: Result<LoadBalancerPoolSpec, String>,
}

/// What the owner of a pool wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadBalancerPoolSpec {
    /// Its addresses; no range overlaps another.
    pub ranges: Vec<Bounds>,
    /// Which services it is for; all, where there is none.
    pub services: Option<Selector>,
    /// Which namespaces' services it is for; all, where there is none.
    pub namespaces: Option<Selector>,
    /// It is only for services that ask for it, or for an address of it, by name.
    pub on_request: bool,
    /// IPv4 addresses that end in .0 or .255, which some devices take for no host's, are left out.
    pub avoid_first_and_last: bool,
    /// Nothing is to be given out of it any more. What was, stays.
    pub disabled: bool,
    /// Nodes answer ARP and NDP for its addresses.
    pub on_local_network: bool,
    /// Which nodes announce its addresses; all, where there is none.
    pub nodes: Option<Selector>,
    /// The links on which they are announced, by name, or by how a name begins before a `*`; where there is none, the link
    /// between nodes.
    pub links: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct SpecObject {
    #[serde(default)]
    ranges: Vec<String>,
    service_selector: Option<SelectorObject>,
    namespace_selector: Option<SelectorObject>,
    auto_assign: Option<bool>,
    #[serde(default)]
    avoid_first_and_last: bool,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    announcement: AnnouncementObject,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct AnnouncementObject {
    local_network: Option<bool>,
    node_selector: Option<SelectorObject>,
    #[serde(default)]
    interfaces: Vec<String>,
}

impl LoadBalancerPool {
    /// Reads an object's `spec`.
    pub fn read(name: impl Into<String>, created: i64, spec: &Value) -> Self {
        LoadBalancerPool {
            name: name.into(),
            created,
            spec: LoadBalancerPoolSpec::read(spec),
        }
    }
}

impl LoadBalancerPoolSpec {
    fn read(value: &Value) -> Result<Self, String> {
        let object: SpecObject = match value {
            Value::Null => SpecObject::default(),
            value => serde_json::from_value(value.clone()).map_err(|error| format!("spec: {error}"))?,
        };
        let announcement = object.announcement;
        Ok(LoadBalancerPoolSpec {
            ranges: ranges(&object.ranges)?,
            services: selector("spec.serviceSelector", object.service_selector)?,
            namespaces: selector("spec.namespaceSelector", object.namespace_selector)?,
            on_request: object.auto_assign == Some(false),
            avoid_first_and_last: object.avoid_first_and_last,
            disabled: object.disabled,
            on_local_network: announcement.local_network != Some(false),
            nodes: selector("spec.announcement.nodeSelector", announcement.node_selector)?,
            links: announcement.interfaces,
        })
    }

    /// Whether it has this address to give.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address)) && !self.avoids(address)
    }

    /// Whether the address is left out though it is in a range.
    pub fn avoids(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.avoid_first_and_last && matches!(address.octets()[3], 0 | 255),
            IpAddr::V6(_) => false,
        }
    }

    /// Whether it is for a service of these labels in a namespace of these.
    pub fn selects(&self, service: &Labels, namespace: Option<&Labels>) -> bool {
        let services = self.services.as_ref();
        let namespaces = self.namespaces.as_ref();
        services.is_none_or(|selector| selector.matches(service))
            && namespaces
                .is_none_or(|selector| namespace.is_some_and(|namespace| selector.matches(namespace)))
    }

    /// Whether it chooses among services at all.
    pub fn is_choosy(&self) -> bool {
        self.services.is_some() || self.namespaces.is_some()
    }

    /// Whether it has addresses of the family.
    pub fn has(&self, family: Family) -> bool {
        self.of_family(family).next().is_some()
    }

    /// Its ranges of one family.
    pub fn of_family(&self, family: Family) -> impl Iterator<Item = &Bounds> {
        let ranges = self.ranges.iter();
        ranges.filter(move |range| range.is_ipv4() == (family == Family::V4))
    }

    /// Whether its addresses are announced on a link of this name, where `underlay` is the link between nodes.
    pub fn announces_on(&self, link: &str, underlay: bool) -> bool {
        is_chosen(&self.links, link, underlay)
    }
}

/// Whether a link is among those that are chosen by name or by how a name begins; by default, the link between nodes is.
pub fn is_chosen(links: &[String], link: &str, underlay: bool) -> bool {
    let named = |pattern: &String| match pattern.strip_suffix('*') {
        Some(begin) => link.starts_with(begin),
        None => link == pattern,
    };
    if links.is_empty() {
        underlay
    } else {
        links.iter().any(named)
    }
}

fn ranges(texts: &[String]) -> Result<Vec<Bounds>, String> {
    let mut ranges: Vec<(Bounds, &String)> = Vec::new();
    for text in texts {
        let range = range(text)?;
        if let Some((_, other)) = ranges.iter().find(|(other, _)| other.intersect(&range).is_some()) {
            return Err(format!("spec.ranges: {text} and {other} overlap"));
        }
        ranges.push((range, text));
    }
    if ranges.is_empty() {
        return Err(
            "spec.ranges is empty: a pool needs a range such as 192.0.2.0/27 or 192.0.2.10-192.0.2.20".into(),
        );
    }
    Ok(ranges.into_iter().map(|(range, _)| range).collect())
}

/// A range in either notation, or one address.
fn range(text: &str) -> Result<Bounds, String> {
    let wrong = || {
        format!(
            "spec.ranges: {text:?} is no range such as 192.0.2.0/27 or 192.0.2.10-192.0.2.20, and no address"
        )
    };
    let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| wrong());
    let range = if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (address(first)?, address(last)?);
        if first.is_ipv4() != last.is_ipv4() || first > last {
            return Err(format!("spec.ranges: {text:?} ends before it begins"));
        }
        Bounds { first, last }
    } else if text.contains('/') {
        let net: IpNet = text.trim().parse().map_err(|_| wrong())?;
        if net.addr() != net.network() {
            let clean = net.trunc();
            return Err(format!(
                "spec.ranges: {net} has bits set beyond its prefix; write {clean}"
            ));
        }
        Bounds::of(net)
    } else {
        Bounds::only(address(text)?)
    };
    if is_unroutable(range.first) || is_unroutable(range.last) {
        return Err(format!(
            "spec.ranges: {text} has addresses that no service can have"
        ));
    }
    Ok(range)
}

impl ObjectRef {
    /// A reference to a pool of load balancers' addresses.
    pub fn load_balancer_pool(name: impl fmt::Display) -> Self {
        ObjectRef {
            kind: "LoadBalancerPool",
            namespace: None,
            name: name.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(spec: Value) -> Result<LoadBalancerPoolSpec, String> {
        LoadBalancerPool::read("p", 0, &spec).spec
    }

    #[test]
    fn ranges_are_written_as_prefixes_or_by_their_ends() {
        let spec = read(json!({
            "ranges": ["192.0.2.0/28", "192.0.2.100-192.0.2.110", "198.51.100.7", "2001:db8::/126"],
            "avoidFirstAndLast": true, "autoAssign": false,
        }))
        .unwrap();
        for (address, expected) in [
            ("192.0.2.0", false),
            ("192.0.2.15", true),
            ("192.0.2.16", false),
            ("192.0.2.110", true),
            ("192.0.2.111", false),
            ("198.51.100.7", true),
            ("2001:db8::", true),
            ("2001:db8::4", false),
        ] {
            assert_eq!(spec.contains(address.parse().unwrap()), expected, "{address}");
        }
        assert!(spec.on_request && spec.has(Family::V6));
    }

    #[test]
    fn what_makes_no_sense_is_told_with_the_field() {
        for (spec, why) in [
            (json!({}), "spec.ranges is empty"),
            (
                json!({"ranges": ["192.0.2.1/24"]}),
                "has bits set beyond its prefix; write 192.0.2.0/24",
            ),
            (
                json!({"ranges": ["192.0.2.9-192.0.2.1"]}),
                "ends before it begins",
            ),
            (
                json!({"ranges": ["192.0.2.9-2001:db8::1"]}),
                "ends before it begins",
            ),
            (
                json!({"ranges": ["192.0.2.0/24", "192.0.2.7"]}),
                "192.0.2.7 and 192.0.2.0/24 overlap",
            ),
            (
                json!({"ranges": ["224.0.0.0/24"]}),
                "addresses that no service can have",
            ),
            (json!({"ranges": ["web"]}), "\"web\" is no range"),
            (
                json!({"ranges": ["192.0.2.1"], "serviceSelector": {"matchLabels": {"-": "a"}}}),
                "spec.serviceSelector: \"-\" is no label key",
            ),
        ] {
            let error = read(spec.clone()).unwrap_err();
            assert!(error.contains(why), "{spec}: {error}");
        }
    }

    #[test]
    fn addresses_are_announced_on_the_link_between_nodes_or_on_those_that_are_named() {
        let spec = |interfaces: &[&str]| {
            read(json!({"ranges": ["192.0.2.1"], "announcement": {"interfaces": interfaces}})).unwrap()
        };
        assert!(spec(&[]).announces_on("eth0", true) && !spec(&[]).announces_on("eth1", false));
        assert!(spec(&[]).on_local_network);
        let routed = json!({"ranges": ["192.0.2.1"], "announcement": {"localNetwork": false}});
        assert!(!read(routed).unwrap().on_local_network);
        let named = spec(&["lan", "bond*"]);
        assert!(named.announces_on("lan", false) && named.announces_on("bond0", false));
        assert!(!named.announces_on("eth0", true) && !named.announces_on("lan1", false));
    }
}
