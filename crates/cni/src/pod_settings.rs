//! What a network's configuration says of its pods beyond their addresses: kernel settings, as the reference `tuning`
//! plugin writes them, routes, as the reference address managers do, and how they are wired. A pod's annotation may say
//! more about its kernel settings.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::invalid;
use crate::error::CniError;
use crate::wiring::WiringName;

/// The annotation that asks for kernel settings: `net.core.somaxconn=500,net.ipv4.tcp_syncookies=1`, as Kubernetes'
/// annotation was written before it became a field, or a JSON object as in a network's configuration.
pub const SYSCTLS_ANNOTATION: &str = "podnet.io/sysctls";

/// Settings and routes of every pod of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodSettings {
    /// Key `wiring`: in place of what the node's agent was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wiring: Option<WiringName>,
    /// Key `sysctl`, and over it `args.cni.sysctl`: values by path below /proc/sys. Always below `net/`, since nothing else is the pod's own;
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
        let mut sysctls = sysctls("sysctl", document.get("sysctl"))?;
        let args = document.get("args").and_then(|args| args.get("cni"));
        sysctls.extend(self::sysctls(
            "args.cni.sysctl",
            args.and_then(|args| args.get("sysctl")),
        )?);
        Ok(PodSettings {
            wiring: wiring(document)?,
            sysctls,
            routes: routes(document)?,
        })
    }

    /// The same, and over it the settings of one pod.
    pub fn and(mut self, sysctls: &BTreeMap<String, String>) -> Self {
        let more = sysctls.iter().map(|(path, value)| (path.clone(), value.clone()));
        self.sysctls.extend(more);
        self
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

fn wiring(document: &Map<String, Value>) -> Result<Option<WiringName>, CniError> {
    const KEY: &str = "wiring";
    let Some(value) = document.get(KEY).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let text = value
        .as_str()
        .ok_or_else(|| invalid(KEY, format!("{value} is not a string")))?;
    text.parse().map(Some).map_err(|why: String| invalid(KEY, why))
}

const NOT_A_PODS_OWN: &str = "a pod has settings of its own below net only, such as net.core.somaxconn or \
                              net.ipv4.conf.IFNAME.arp_filter";

fn sysctls(key: &str, value: Option<&Value>) -> Result<BTreeMap<String, String>, CniError> {
    let settings = match value {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(settings)) => settings,
        Some(other) => return Err(invalid(key, format!("{other} is not an object"))),
    };
    let one = |(name, value): (&String, &Value)| {
        let named = format!("{key}.{name}");
        let value = value
            .as_str()
            .ok_or_else(|| invalid(&named, format!("{value} is not a string")))?;
        let path = path(name).ok_or_else(|| invalid(&named, NOT_A_PODS_OWN))?;
        Ok((path, value.to_owned()))
    };
    settings.iter().map(one).collect()
}

/// The settings that a pod's annotation asks for, by path. An error names the annotation and what is wrong with it.
pub(crate) fn of_annotation(
    annotations: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, (String, String)> {
    let Some(text) = annotations.get(SYSCTLS_ANNOTATION) else {
        return Ok(BTreeMap::new());
    };
    let wrong = |why: String| (SYSCTLS_ANNOTATION.to_owned(), why);
    let pairs = pairs(text).ok_or_else(|| {
        wrong(format!(
            "{text:?} is not written as net.core.somaxconn=500,net.ipv4.tcp_syncookies=1, or as a JSON object of texts"
        ))
    })?;
    let one = |(name, value): (String, String)| match path(&name) {
        Some(path) => Ok((path, value)),
        None => Err(wrong(format!("{name:?}: {NOT_A_PODS_OWN}"))),
    };
    pairs.into_iter().map(one).collect()
}

fn pairs(text: &str) -> Option<BTreeMap<String, String>> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).ok();
    }
    let pairs = text.split(',').map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    });
    pairs.collect()
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
    fn the_settings_of_a_container_come_over_those_of_the_network() {
        let settings = parse(
            r#"{"sysctl": {"net.core.somaxconn": "1", "net.ipv4.tcp_fin_timeout": "1"},
                "args": {"cni": {"sysctl": {"net.core.somaxconn": "2"}, "labels": [{"key": "a", "value": "b"}]}}}"#,
        );
        let annotations = BTreeMap::from([(
            SYSCTLS_ANNOTATION.to_owned(),
            "net.ipv4.tcp_fin_timeout=3".to_owned(),
        )]);
        let settings = settings.unwrap().and(&of_annotation(&annotations).unwrap());
        let values: Vec<&str> = settings.sysctls.values().map(String::as_str).collect();
        assert_eq!(values, ["2", "3"]);
    }

    #[test]
    fn sysctls_of_an_annotation_are_written_with_commas_or_as_json() {
        let of = |text: &str| {
            let annotations = BTreeMap::from([(SYSCTLS_ANNOTATION.to_owned(), text.to_owned())]);
            of_annotation(&annotations)
        };
        let expected = BTreeMap::from(
            [
                ("net/core/somaxconn", "500"),
                ("net/ipv4/tcp_rmem", "4096 8192 16384"),
            ]
            .map(|(path, value)| (path.to_owned(), value.to_owned())),
        );
        for text in [
            "net.core.somaxconn=500,net.ipv4.tcp_rmem=4096 8192 16384",
            "net/core/somaxconn = 500, net.ipv4.tcp_rmem=4096 8192 16384",
            r#"{"net.core.somaxconn": "500", "net.ipv4.tcp_rmem": "4096 8192 16384"}"#,
        ] {
            assert_eq!(of(text).unwrap(), expected, "{text}");
        }
        for (text, why) in [
            ("", "is not written as"),
            ("net.core.somaxconn", "is not written as"),
            ("net.core.somaxconn=1,", "is not written as"),
            ("{", "is not written as"),
            (r#"{"net.core.somaxconn": 500}"#, "is not written as"),
            (
                "kernel.panic=1",
                "\"kernel.panic\": a pod has settings of its own below net only",
            ),
            ("net.ipv4...=1", "below net only"),
        ] {
            let (key, found) = of(text).unwrap_err();
            assert_eq!(key, SYSCTLS_ANNOTATION);
            assert!(found.contains(why), "{text}: {found}");
        }
    }

    #[test]
    fn a_network_chooses_its_wiring() {
        for (text, expected) in [
            ("{}", None),
            (r#"{"wiring": null}"#, None),
            (r#"{"wiring": "ptp"}"#, Some(WiringName::Ptp)),
            (r#"{"wiring": "netkit"}"#, Some(WiringName::Netkit)),
            (r#"{"wiring": "bridge"}"#, Some(WiringName::Bridge)),
            (r#"{"wiring": "auto"}"#, Some(WiringName::Auto)),
        ] {
            assert_eq!(parse(text).unwrap().wiring, expected, "{text}");
        }
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
                r#"{"args": {"cni": {"sysctl": {"kernel.panic": "1"}}}}"#,
                "args.cni.sysctl.kernel.panic",
            ),
            (r#"{"wiring": "macvlan"}"#, "wiring"),
            (r#"{"wiring": 1}"#, "wiring"),
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
