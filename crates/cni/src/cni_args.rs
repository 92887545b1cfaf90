//! `CNI_ARGS`: what a runtime or a person says of one container in the environment, as pairs `KEY=VALUE` between
//! semicolons (the project's CONVENTIONS.md).

use std::net::IpAddr;

use podnet_linux::MacAddr;
use serde::{Deserialize, Serialize};

use crate::error::CniError;
use crate::invocation::wrong;

/// The pod a container belongs to, as Kubernetes' runtimes say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodReference {
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its unique identifier.
    #[serde(default)]
    pub uid: String,
}

/// The whole variable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CniArgs {
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME` and `K8S_POD_UID`.
    pub pod: PodReference,
    /// `IP`: an address that the container is to have.
    pub ip: Option<IpAddr>,
    /// `MAC`: the Ethernet address of its end of the link.
    pub mac: Option<MacAddr>,
}

impl CniArgs {
    /// Reads the variable. A key that podnet does not know is an error unless `IgnoreUnknown` says otherwise, as with the
    /// reference plugins.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let mut args = CniArgs::default();
        let mut ignore_unknown = false;
        let mut unknown = None;
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| wrong(format!("CNI_ARGS has {pair:?} where KEY=VALUE was expected")))?;
            match key {
                "K8S_POD_NAMESPACE" => args.pod.namespace = value.into(),
                "K8S_POD_NAME" => args.pod.name = value.into(),
                "K8S_POD_UID" => args.pod.uid = value.into(),
                // The container's ID again.
                "K8S_POD_INFRA_CONTAINER_ID" => {}
                "IP" => args.ip = Some(ip(value).map_err(|why| of_key(key, value, &why))?),
                "MAC" => args.mac = Some(mac(value).map_err(|why| of_key(key, value, &why))?),
                "IgnoreUnknown" => {
                    ignore_unknown =
                        flag(value).ok_or_else(|| of_key(key, value, "it can be 1, true, 0 or false"))?;
                }
                other => unknown = unknown.or(Some(other)),
            }
        }
        match unknown {
            Some(key) if !ignore_unknown => {
                Err(wrong(format!("CNI_ARGS has {key:?}, which podnet does not know"))
                    .with_details("take it out, or add IgnoreUnknown=1"))
            }
            _ => Ok(args),
        }
    }
}

fn of_key(key: &str, value: &str, why: &str) -> CniError {
    wrong(format!("CNI_ARGS has {key}={value}")).with_details(why)
}

fn flag(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// An address that a pod can have, with a prefix length, as results have it, or without.
pub(crate) fn ip(text: &str) -> Result<IpAddr, String> {
    let address = match text.parse::<ipnet::IpNet>() {
        Ok(net) => net.addr(),
        Err(_) => text.parse().map_err(|_| format!("{text:?} is no IP address"))?,
    };
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(format!("no pod can have the address {address}"));
    }
    Ok(address)
}

/// The address of one Ethernet interface.
pub(crate) fn mac(text: &str) -> Result<MacAddr, String> {
    let mac: MacAddr = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
    if mac.0[0] & 1 == 1 || mac.0 == [0; 6] {
        return Err(format!("{mac} is no unicast address"));
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn cni_args_name_the_pod_an_address_and_a_mac() {
        let args = CniArgs::parse(
            "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=abc;;IP=10.0.0.7/24;MAC=0a:58:0a:00:00:07",
        )
        .unwrap();
        assert_eq!(
            (args.pod.namespace.as_str(), args.pod.name.as_str()),
            ("default", "web")
        );
        assert_eq!(args.ip.unwrap().to_string(), "10.0.0.7");
        assert_eq!(args.mac.unwrap().to_string(), "0a:58:0a:00:00:07");
        assert_eq!(
            CniArgs::parse("IP=fd00::7").unwrap().ip.unwrap().to_string(),
            "fd00::7"
        );
    }

    #[test]
    fn an_unknown_key_of_cni_args_is_refused_unless_ignore_unknown_is_set() {
        for set in ["1", "true", "True"] {
            CniArgs::parse(&format!("OTHER=x;IgnoreUnknown={set}")).unwrap();
        }
        for unset in [
            "OTHER=x",
            "OTHER=x;IgnoreUnknown=0",
            "OTHER=x;IgnoreUnknown=false",
        ] {
            let error = CniArgs::parse(unset).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert!(error.msg.contains("CNI_ARGS has \"OTHER\""), "{error}");
        }
    }

    #[test]
    fn a_wrong_value_in_cni_args_is_code_4_and_named() {
        for (text, part) in [
            ("IP=10.0.0.256", "IP=10.0.0.256"),
            ("IP=", "IP="),
            ("IP=127.0.0.1", "IP=127.0.0.1"),
            ("MAC=01:00:5e:00:00:01", "MAC="),
            ("MAC=7", "MAC=7"),
            ("IgnoreUnknown=perhaps", "IgnoreUnknown=perhaps"),
            ("=", "\"\""),
            ("nonsense", "nonsense"),
        ] {
            let error = CniArgs::parse(text).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{text}");
            assert!(
                error.msg.contains("CNI_ARGS") && error.msg.contains(part),
                "{text}: {error}"
            );
        }
    }
}
