//! Which kernel settings a pod's annotation may make. Whoever may make pods chooses an annotation's text, so that what
//! kubelet would refuse as unsafe is refused here, too, unless the node's administrator allows it.

use std::str::FromStr;

/// Those that Kubernetes lets every pod have (`safe sysctls`), as far as they are of the network.
const SAFE: [&str; 11] = [
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/ping_group_range",
    "net/ipv4/tcp_fin_timeout",
    "net/ipv4/tcp_keepalive_intvl",
    "net/ipv4/tcp_keepalive_probes",
    "net/ipv4/tcp_keepalive_time",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_wmem",
];

/// A setting's name, or the beginning of one with `*` behind it, as in kubelet's `allowedUnsafeSysctls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedSysctl {
    /// The path below /proc/sys, or its beginning.
    path: String,
    all_below: bool,
}

impl FromStr for AllowedSysctl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, all_below) = match text.strip_suffix('*') {
            Some(beginning) => (beginning, true),
            None => (text, false),
        };
        let path = name.replace('.', "/");
        if !path.starts_with("net/") || path.contains('*') {
            return Err(format!(
                "{text:?}: give a setting below net, such as net.core.somaxconn or net.ipv4.*"
            ));
        }
        Ok(AllowedSysctl { path, all_below })
    }
}

/// Whether a pod's annotation may make a setting, by its path below /proc/sys.
pub fn may_set(path: &str, allowed: &[AllowedSysctl]) -> bool {
    let covers = |allowed: &AllowedSysctl| match allowed.all_below {
        true => path.starts_with(&allowed.path),
        false => path == allowed.path,
    };
    SAFE.contains(&path) || allowed.iter().any(covers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_makes_safe_settings_and_those_that_are_allowed() {
        let allowed = ["net.core.somaxconn", "net.ipv4.conf.*"].map(|text| text.parse().unwrap());
        for (path, may) in [
            ("net/ipv4/tcp_syncookies", true),
            ("net/core/somaxconn", true),
            ("net/core/somaxconn2", false),
            ("net/core/rmem_max", false),
            ("net/ipv4/conf/eth0/arp_filter", true),
            ("net/ipv4/ip_forward", false),
        ] {
            assert_eq!(may_set(path, &allowed), may, "{path}");
        }
        assert!(!may_set("net/core/somaxconn", &[]));
    }

    #[test]
    fn what_is_no_network_setting_is_refused_by_name() {
        for text in ["", "*", "kernel.*", "net", "net.*.x", "kernel.panic"] {
            let error = text.parse::<AllowedSysctl>().unwrap_err();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
        "net.*".parse::<AllowedSysctl>().unwrap();
    }
}
