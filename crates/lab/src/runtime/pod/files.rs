//! `/etc/hosts` and `/etc/resolv.conf` of a pod, as kubelet writes them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use super::identity::Identity;
use super::spec;

/// A resolver's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Domains tried after a name.
    pub searches: Vec<String>,
    /// Options, `name` or `name:value`.
    pub options: Vec<String>,
}

/// What the cluster says about names.
#[derive(Debug, Clone)]
pub struct ClusterDns {
    /// The cluster's name servers.
    pub servers: Vec<IpAddr>,
    /// Such as `cluster.local`.
    pub domain: String,
}

impl Resolver {
    /// Reads a `resolv.conf`.
    pub fn parse(text: &str) -> Resolver {
        let mut resolver = Resolver::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let keyword = words.next();
            let words = words.map(str::to_owned);
            match keyword {
                Some("nameserver") => resolver.servers.extend(words.take(1)),
                // The last line of these wins.
                Some("search") => resolver.searches = words.collect(),
                Some("options") => resolver.options = words.collect(),
                _ => {}
            }
        }
        resolver
    }

    /// Writes a `resolv.conf`.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if !self.searches.is_empty() {
            out.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.servers {
            out.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            out.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        out
    }
}

/// The pod's resolver, from its `dnsPolicy` and `dnsConfig`. `machine` is the node's own.
pub fn resolver(pod: &Pod, cluster: &ClusterDns, machine: &Resolver) -> Resolver {
    let spec = spec::spec(pod);
    let in_cluster = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => return with_config(pod, Resolver::default()),
        "Default" => false,
        "ClusterFirstWithHostNet" => true,
        _ => !spec::host_network(pod),
    };
    if !in_cluster || cluster.servers.is_empty() {
        return with_config(pod, machine.clone());
    }
    let domain = &cluster.domain;
    let namespace = spec::namespace(pod);
    let mut searches = vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.clone(),
    ];
    searches.extend(machine.searches.iter().filter(|it| *it != ".").cloned());
    let resolver = Resolver {
        servers: cluster.servers.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".into()],
    };
    with_config(pod, resolver)
}

fn with_config(pod: &Pod, mut resolver: Resolver) -> Resolver {
    let Some(config) = &spec::spec(pod).dns_config else {
        return resolver;
    };
    append_new(&mut resolver.servers, config.nameservers.iter().flatten());
    append_new(&mut resolver.searches, config.searches.iter().flatten());
    for option in config.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        let text = match option.value.as_deref().filter(|it| !it.is_empty()) {
            Some(value) => format!("{name}:{value}"),
            None => name.clone(),
        };
        let same = |known: &String| known.split(':').next() == Some(name);
        match resolver.options.iter_mut().find(|known| same(known)) {
            Some(known) => *known = text,
            None => resolver.options.push(text),
        }
    }
    resolver
}

fn append_new<'a>(list: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for it in more {
        if !list.contains(it) {
            list.push(it.clone());
        }
    }
}

/// The pod's `/etc/hosts`. `machine` is the node's own, which a pod in the node's network gets.
pub fn hosts(pod: &Pod, identity: &Identity, ips: &[IpAddr], machine: &str) -> String {
    let mut out = if spec::host_network(pod) {
        format!("# Kubernetes-managed hosts file (host network).\n{machine}")
    } else {
        own_hosts(identity, ips)
    };
    let aliases = spec::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        out.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    out
}

fn own_hosts(identity: &Identity, ips: &[IpAddr]) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        match &identity.domain {
            Some(domain) => out.push_str(&format!("{ip}\t{0}.{domain}\t{0}\n", identity.short)),
            None => out.push_str(&format!("{ip}\t{}\n", identity.short)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::testing::pod;

    fn resolv_conf(spec: &str) -> String {
        let cluster = ClusterDns {
            servers: vec!["10.96.0.10".parse().unwrap()],
            domain: "cluster.local".into(),
        };
        let machine = Resolver::parse("# mine\nnameserver 9.9.9.9\nsearch corp.example\noptions edns0\n");
        resolver(&pod(spec), &cluster, &machine).text()
    }

    #[test]
    fn cluster_first_is_the_default() {
        insta::assert_snapshot!(resolv_conf(r#"{"containers":[]}"#), @r"
        search default.svc.cluster.local svc.cluster.local cluster.local corp.example
        nameserver 10.96.0.10
        options ndots:5
        ");
    }

    #[test]
    fn host_network_and_default_use_the_machines() {
        let own = "search corp.example\nnameserver 9.9.9.9\noptions edns0\n";
        assert_eq!(resolv_conf(r#"{"dnsPolicy":"Default","containers":[]}"#), own);
        assert_eq!(
            resolv_conf(r#"{"hostNetwork":true,"dnsPolicy":"ClusterFirst","containers":[]}"#),
            own
        );
        let both =
            resolv_conf(r#"{"hostNetwork":true,"dnsPolicy":"ClusterFirstWithHostNet","containers":[]}"#);
        assert!(both.contains("10.96.0.10"));
    }

    #[test]
    fn dns_config_is_added_and_its_options_win() {
        insta::assert_snapshot!(resolv_conf(r#"{"dnsPolicy":"None","containers":[],"dnsConfig":{
            "nameservers":["1.2.3.4"],"searches":["a.b"],"options":[{"name":"ndots","value":"2"},{"name":"edns0"}]}}"#), @r"
        search a.b
        nameserver 1.2.3.4
        options ndots:2 edns0
        ");
        let merged =
            resolv_conf(r#"{"containers":[],"dnsConfig":{"options":[{"name":"ndots","value":"1"}]}}"#);
        assert!(merged.ends_with("options ndots:1\n"), "{merged}");
    }

    #[test]
    fn hosts_of_a_pod_with_a_subdomain_and_aliases() {
        let pod = pod(
            r#"{"subdomain":"sub","containers":[],"hostAliases":[{"ip":"1.2.3.4","hostnames":["foo","bar"]}]}"#,
        );
        let identity = crate::runtime::pod::identity::identity(&pod, "node1", "cluster.local").unwrap();
        let ips = ["10.244.1.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        insta::assert_snapshot!(hosts(&pod, &identity, &ips, ""), @r"
        # Kubernetes-managed hosts file.
        127.0.0.1	localhost
        ::1	localhost ip6-localhost ip6-loopback
        fe00::0	ip6-localnet
        fe00::0	ip6-mcastprefix
        fe00::1	ip6-allnodes
        fe00::2	ip6-allrouters
        10.244.1.5	web.sub.default.svc.cluster.local	web
        fd00::5	web.sub.default.svc.cluster.local	web

        # Entries added by HostAliases.
        1.2.3.4	foo	bar
        ");
    }

    #[test]
    fn hosts_of_a_host_network_pod_are_the_machines() {
        let pod = pod(r#"{"hostNetwork":true,"containers":[]}"#);
        let identity = crate::runtime::pod::identity::identity(&pod, "node1", "cluster.local").unwrap();
        assert_eq!(
            hosts(&pod, &identity, &[], "127.0.0.1 localhost\n"),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n"
        );
    }
}
