//! The kernel settings that podnet depends on but leaves to the machine's administrator: which of them are wrong, and
//! why it matters. Those that podnet sets itself are the data plane's.

use std::fmt;

use podnet_core::NodeState;
use podnet_linux::netlink::{Netlink, NetlinkError};

/// A setting that keeps podnet's packets from getting through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Its key, as `sysctl` writes it.
    pub key: String,
    /// Its value.
    pub is: String,
    /// What it should be.
    pub should: &'static str,
    /// What goes wrong otherwise.
    pub why: &'static str,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wrong { key, is, should, why } = self;
        write!(
            f,
            "{key} is {is}: {why}. Set it with `sysctl -w {key}={should}` and in /etc/sysctl.d"
        )
    }
}

/// The wrong ones, of those that `get` finds (by keys with slashes).
///
/// `links` are the links that pods' packets come and go by: the underlay's and pods' own. `bridged` says that pods are
/// on a bridge.
pub fn wrong(
    state: &NodeState,
    links: &[String],
    bridged: bool,
    get: impl Fn(&str) -> Option<String>,
) -> Vec<Wrong> {
    let mut found = Vec::new();
    let mut check = |key: String, right: &dyn Fn(&str) -> bool, should, why| {
        if let Some(is) = get(&key).filter(|value| !right(value)) {
            let key = key.replace('.', "\u{0}").replace('/', ".").replace('\u{0}', "/");
            found.push(Wrong { key, is, should, why });
        }
    };
    let has = |ipv4: bool| {
        state
            .routing
            .pod_ranges
            .iter()
            .any(|range| range.addr().is_ipv4() == ipv4)
    };
    let on = |value: &str| value == "1";
    let off = |value: &str| value == "0";
    if has(true) {
        let why = "new links of pods do not forward packets";
        check("net/ipv4/conf/default/forwarding".into(), &on, "1", why);
        // The stricter of a link's own and `all` counts.
        let strict = |link: &str| format!("net/ipv4/conf/{link}/rp_filter");
        let loose = get(&strict("all")).is_some_and(|value| value == "2");
        let why = "packets that come by another link than their answers would leave by are dropped";
        for link in links.iter().filter(|_| !loose) {
            check(strict(link), &|value| value != "1", "2", why);
        }
        if !loose {
            check(strict("all"), &|value| value != "1", "2", why);
        }
    }
    if has(false) {
        let why = "pods with IPv6 addresses cannot use them";
        check("net/ipv6/conf/all/disable_ipv6".into(), &off, "0", why);
        check("net/ipv6/conf/default/disable_ipv6".into(), &off, "0", why);
    }
    if bridged {
        let why = "what goes from pod to pod on the bridge passes by services and policies";
        check("net/bridge/bridge-nf-call-iptables".into(), &on, "1", why);
        check("net/bridge/bridge-nf-call-ip6tables".into(), &on, "1", why);
    }
    found
}

/// The links that have the node's addresses.
pub fn underlay(state: &NodeState) -> Vec<String> {
    let own = &state.routing.node_addresses;
    let read = || -> Result<Vec<String>, NetlinkError> {
        let mut netlink = Netlink::open()?;
        let addresses = netlink.addresses(None)?;
        let on: Vec<u32> = addresses
            .iter()
            .filter(|address| own.contains(&address.net.addr()))
            .map(|address| address.link)
            .collect();
        let links = netlink.links()?.into_iter();
        Ok(links
            .filter(|link| on.contains(&link.index))
            .map(|link| link.name)
            .collect())
    };
    read().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot look at the settings of the links between nodes");
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use podnet_core::{Cluster, NodeName, compute};

    use super::*;

    fn keys(settings: &[(&str, &str)], bridged: bool) -> Vec<String> {
        let mut state = compute(&Cluster::default(), &NodeName::new("node1").unwrap());
        state.routing.pod_ranges =
            BTreeSet::from(["10.244.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()]);
        let settings: BTreeMap<&str, &str> = settings.iter().copied().collect();
        let get = |key: &str| settings.get(key).map(|value| (*value).to_owned());
        let links = ["eth0".to_owned(), "eth0.5".to_owned()];
        let found = wrong(&state, &links, bridged, get);
        found.into_iter().map(|wrong| wrong.key).collect()
    }

    #[test]
    fn the_wrong_setting_is_named() {
        let right = [
            ("net/ipv4/conf/default/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/eth0/rp_filter", "2"),
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/bridge/bridge-nf-call-iptables", "1"),
        ];
        assert!(keys(&right, true).is_empty());
        for (key, value, name) in [
            (
                "net/ipv4/conf/default/forwarding",
                "0",
                "net.ipv4.conf.default.forwarding",
            ),
            (
                "net/ipv4/conf/eth0/rp_filter",
                "1",
                "net.ipv4.conf.eth0.rp_filter",
            ),
            (
                "net/ipv4/conf/eth0.5/rp_filter",
                "1",
                "net.ipv4.conf.eth0/5.rp_filter",
            ),
            ("net/ipv4/conf/all/rp_filter", "1", "net.ipv4.conf.all.rp_filter"),
            (
                "net/ipv6/conf/all/disable_ipv6",
                "1",
                "net.ipv6.conf.all.disable_ipv6",
            ),
            (
                "net/bridge/bridge-nf-call-iptables",
                "0",
                "net.bridge.bridge-nf-call-iptables",
            ),
        ] {
            let mut settings = right.to_vec();
            settings.push((key, value));
            assert_eq!(keys(&settings, true), [name]);
        }
        // A loose `all` makes strict links loose.
        let loose = [
            ("net/ipv4/conf/all/rp_filter", "2"),
            ("net/ipv4/conf/eth0/rp_filter", "1"),
        ];
        assert!(keys(&loose, false).is_empty());
        assert!(keys(&[("net/bridge/bridge-nf-call-iptables", "0")], false).is_empty());
    }
}
