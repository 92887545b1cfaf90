//! What a network's configuration says of its pods beyond their addresses: kernel settings, as the reference `tuning`
//! plugin writes them, and routes, as the reference address managers do.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::invalid;
use crate::error::CniError;

/// Settings and routes of every pod of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSettings {
    /// Key `sysctl`: values by path below /proc/sys. Always below `net/`, since nothing else is the pod's own;
    /// `IFNAME` stands for the pod's interface.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Key `routes`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<ExtraRoute>,
}

/// One more destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraRoute {
    /// Where to.
    pub dst: IpNet,
    /// By this router; the pod's own if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
}

impl PodSettings {
    pub(crate) fn parse(document: &Map<String, Value>) -> Result<Self, CniError> {
        Ok(PodSettings {
            sysctls: sysctls(document)?,
            routes: routes(document)?,
        })
    }

    /// The settings with the interface's name in its place.
    pub fn sysctls_of(&self, ifname: &str) -> BTreeMap<String, String> {
        let named = |key: &String| {
            let segments = key
                .split('/')
                .map(|part| if part == "IFNAME" { ifname } else { part });
            segments.collect::<Vec<_>>().join("/")
        };
        self.sysctls
            .iter()
            .map(|(key, value)| (named(key), value.clone()))
            .collect()
    }
}

fn sysctls(document: &Map<String, Value>) -> Result<BTreeMap<String, String>, CniError> {
    const KEY: &str = "sysctl";
    let settings = match document.get(KEY) {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(settings)) => settings,
        Some(other) => return Err(invalid(KEY, format!("{other} is not an object"))),
    };
    let one = |(key, value): (&String, &Value)| {
        let named = format!("{KEY}.{key}");
        let value = value
            .as_str()
            .ok_or_else(|| invalid(&named, format!("{value} is not a string")))?;
        let path = path(key).ok_or_else(|| {
            invalid(
                &named,
                "a pod has settings of its own below net only, such as net.core.somaxconn or net.ipv4.conf.IFNAME.arp_filter",
            )
        })?;
        Ok((path, value.to_owned()))
    };
    settings.iter().map(one).collect()
}

/// As sysctl(8) reads it: whichever of '.' and '/' comes first separates, the other is part of a name.
fn path(key: &str) -> Option<String> {
    let path: String = match key.find(['.', '/']).map(|at| &key[at..=at]) {
        Some(".") => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            key.chars().map(swap).collect()
        }
        _ => key.to_owned(),
    };
    let mut segments = path.split('/');
    let below_net = segments.next() == Some("net") && path.len() > "net/".len();
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    (below_net && segments.all(plain)).then_some(path)
}

fn routes(document: &Map<String, Value>) -> Result<Vec<ExtraRoute>, CniError> {
    const KEY: &str = "routes";
    let Some(value) = document.get(KEY).filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let routes = Vec::<ExtraRoute>::deserialize(value).map_err(|error| invalid(KEY, error))?;
    for (index, route) in routes.iter().enumerate() {
        if route
            .gw
            .is_some_and(|gw| gw.is_ipv4() != route.dst.addr().is_ipv4())
        {
            let why = format!("the router of {} is of the other family", route.dst);
            return Err(invalid(&format!("{KEY}[{index}].gw"), why));
        }
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PodSettings, CniError> {
        PodSettings::parse(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn settings_are_written_as_the_tuning_plugin_has_them() {
        let settings = parse(
            r#"{"sysctl": {"net.core.somaxconn": "500", "net/ipv4/conf/IFNAME/arp_filter": "1",
                "net.ipv4.conf.eth0/5.rp_filter": "2"}}"#,
        );
        let expected = [
            ("net/core/somaxconn", "500"),
            ("net/ipv4/conf/eth0.5/rp_filter", "2"),
            ("net/ipv4/conf/net1/arp_filter", "1"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(settings.unwrap().sysctls_of("net1"), BTreeMap::from(expected));
    }

    #[test]
    fn what_is_not_a_pods_own_is_refused_by_name() {
        for (document, key) in [
            (r#"{"sysctl": {"kernel.panic": "1"}}"#, "sysctl.kernel.panic"),
            (
                r#"{"sysctl": {"net/../kernel/panic": "1"}}"#,
                "sysctl.net/../kernel/panic",
            ),
            (r#"{"sysctl": {"net": "1"}}"#, "sysctl.net"),
            (
                r#"{"sysctl": {"net.core.somaxconn": 500}}"#,
                "sysctl.net.core.somaxconn",
            ),
            (r#"{"sysctl": []}"#, "sysctl"),
            (
                r#"{"routes": [{"dst": "10.0.0.0/8", "gw": "fe80::1"}]}"#,
                "routes[0].gw",
            ),
            (r#"{"routes": [{"dst": "everywhere"}]}"#, "routes"),
        ] {
            let error = parse(document).unwrap_err();
            assert!(error.msg.contains(key), "{document}: {error}");
            assert_eq!(error.code, crate::Code::InvalidConfig);
        }
    }
}
