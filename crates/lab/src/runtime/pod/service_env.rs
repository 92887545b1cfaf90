//! The environment variables that tell a container of the services.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Service};

use super::spec;

/// The variables for a pod: of the services in its namespace if it wants them (`enableServiceLinks`), and of
/// `default/kubernetes` in any case.
pub fn service_environment<'a>(
    pod: &Pod,
    services: impl Iterator<Item = &'a Service>,
) -> BTreeMap<String, String> {
    let links = spec::spec(pod).enable_service_links.unwrap_or(true);
    let mut env = BTreeMap::new();
    let mut visible: Vec<_> = services
        .filter(|service| {
            let namespace = service.metadata.namespace.as_deref();
            let api = namespace == Some("default") && service.metadata.name.as_deref() == Some("kubernetes");
            api || (links && namespace == Some(spec::namespace(pod)))
        })
        .collect();
    // A service of the pod's own namespace called kubernetes wins over the API's.
    visible.sort_by_key(|service| service.metadata.namespace.as_deref() == Some(spec::namespace(pod)));
    visible.into_iter().for_each(|service| add(service, &mut env));
    env
}

fn add(service: &Service, env: &mut BTreeMap<String, String>) {
    let (Some(name), Some(spec)) = (&service.metadata.name, &service.spec) else {
        return;
    };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first().filter(|_| !ip.is_empty() && ip != "None") else {
        return;
    };
    let prefix = name.to_uppercase().replace('-', "_");
    env.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    env.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    let bracketed = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    for (index, port) in ports.iter().enumerate() {
        if let Some(port_name) = port.name.as_deref().filter(|it| !it.is_empty()) {
            let suffix = port_name.to_uppercase().replace('-', "_");
            env.insert(format!("{prefix}_SERVICE_PORT_{suffix}"), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{bracketed}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            env.insert(format!("{prefix}_PORT"), url.clone());
        }
        let port_prefix = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        env.insert(format!("{port_prefix}_PROTO"), protocol.to_lowercase());
        env.insert(format!("{port_prefix}_PORT"), port.port.to_string());
        env.insert(format!("{port_prefix}_ADDR"), ip.to_owned());
        env.insert(port_prefix, url);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::testing::pod;

    fn service(namespace: &str, name: &str, ip: &str) -> Service {
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80}, {"port": 53, "protocol": "UDP"}]},
        }))
        .unwrap()
    }

    #[test]
    fn services_become_variables() {
        let services = [
            service("default", "my-web", "10.96.0.9"),
            service("default", "headless", "None"),
            service("other", "far", "10.96.0.8"),
            service("default", "kubernetes", "10.96.0.1"),
        ];
        let env = service_environment(&pod(r#"{"containers":[]}"#), services.iter());
        insta::assert_snapshot!(
            env.iter().filter(|(key, _)| key.starts_with("MY_WEB")).map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join("\n"),
            @r"
        MY_WEB_PORT=tcp://10.96.0.9:80
        MY_WEB_PORT_53_UDP=udp://10.96.0.9:53
        MY_WEB_PORT_53_UDP_ADDR=10.96.0.9
        MY_WEB_PORT_53_UDP_PORT=53
        MY_WEB_PORT_53_UDP_PROTO=udp
        MY_WEB_PORT_80_TCP=tcp://10.96.0.9:80
        MY_WEB_PORT_80_TCP_ADDR=10.96.0.9
        MY_WEB_PORT_80_TCP_PORT=80
        MY_WEB_PORT_80_TCP_PROTO=tcp
        MY_WEB_SERVICE_HOST=10.96.0.9
        MY_WEB_SERVICE_PORT=80
        MY_WEB_SERVICE_PORT_HTTP=80
        "
        );
        assert!(
            env.keys()
                .all(|key| !key.starts_with("FAR") && !key.starts_with("HEADLESS"))
        );
        assert_eq!(env["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
    }

    #[test]
    fn without_links_only_the_api_is_told() {
        let services = [
            service("default", "my-web", "10.96.0.9"),
            service("default", "kubernetes", "10.96.0.1"),
        ];
        let env = service_environment(
            &pod(r#"{"enableServiceLinks":false,"containers":[]}"#),
            services.iter(),
        );
        assert!(env.keys().all(|key| key.starts_with("KUBERNETES_")), "{env:?}");
        assert_eq!(env["KUBERNETES_SERVICE_PORT"], "80");
    }
}
