//! What a pod is called inside.

use k8s_openapi::api::core::v1::Pod;

use super::spec;

/// The longest name that Linux takes.
const LONGEST: usize = 64;

/// A pod's host name and, with a subdomain, its domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What `hostname` prints.
    pub hostname: String,
    /// The name without the domain.
    pub short: String,
    /// `SUBDOMAIN.NAMESPACE.svc.CLUSTER_DOMAIN`.
    pub domain: Option<String>,
}

/// The pod's names.
pub fn identity(pod: &Pod, node: &str, cluster_domain: &str) -> Result<Identity, String> {
    let spec = spec::spec(pod);
    if let Some(name) = &spec.hostname_override {
        return Ok(Identity {
            hostname: name.clone(),
            short: name.clone(),
            domain: None,
        });
    }
    if spec::host_network(pod) {
        return Ok(Identity {
            hostname: node.to_owned(),
            short: node.to_owned(),
            domain: None,
        });
    }
    let short = match spec.hostname.as_deref().filter(|it| !it.is_empty()) {
        Some(name) => name.to_owned(),
        None => label(spec::name(pod)),
    };
    let domain = spec
        .subdomain
        .as_deref()
        .filter(|it| !it.is_empty())
        .map(|subdomain| format!("{subdomain}.{}.svc.{cluster_domain}", spec::namespace(pod)));
    let hostname = match &domain {
        Some(domain) if spec.set_hostname_as_fqdn == Some(true) => format!("{short}.{domain}"),
        _ => short.clone(),
    };
    if hostname.len() > LONGEST {
        return Err(format!(
            "Failed to construct FQDN from pod hostname and cluster domain, FQDN {hostname} is too long ({LONGEST} \
             characters is the max, {} characters requested)",
            hostname.len()
        ));
    }
    Ok(Identity {
        hostname,
        short,
        domain,
    })
}

/// A pod's name cut to a DNS label.
fn label(name: &str) -> String {
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::testing::pod;

    fn of(spec: &str) -> Result<Identity, String> {
        identity(&pod(spec), "node1", "cluster.local")
    }

    #[test]
    fn names_follow_the_specification() {
        assert_eq!(of(r#"{"containers":[]}"#).unwrap().hostname, "web");
        assert_eq!(
            of(r#"{"hostNetwork":true,"containers":[]}"#).unwrap().hostname,
            "node1"
        );
        let named = of(r#"{"hostname":"a","subdomain":"b","containers":[]}"#).unwrap();
        assert_eq!(named.hostname, "a");
        assert_eq!(named.domain.as_deref(), Some("b.default.svc.cluster.local"));
        let full = of(r#"{"subdomain":"b","setHostnameAsFQDN":true,"containers":[]}"#).unwrap();
        assert_eq!(full.hostname, "web.b.default.svc.cluster.local");
        let long = "x".repeat(60);
        let spec = format!(r#"{{"subdomain":"{long}","setHostnameAsFQDN":true,"containers":[]}}"#);
        assert!(of(&spec).unwrap_err().contains("too long"));
    }

    #[test]
    fn a_long_pod_name_is_cut_to_a_label() {
        let mut pod = pod(r#"{"containers":[]}"#);
        pod.metadata.name = Some(format!("{}--tail", "x".repeat(62)));
        assert_eq!(identity(&pod, "n", "d").unwrap().hostname, "x".repeat(62));
    }
}
