//! Attaching a pod to a network and detaching it: the chain of plugins.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use podnet_core::quantity::Quantity;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::CniError;
use super::conf::NetworkList;
use super::exec::{Plugins, Verb};
use crate::runtime::pod::spec;

/// A node's network as its pods are attached to it.
#[derive(Debug, Clone)]
pub struct Network {
    /// The directory with the configurations, as the runtime sees it.
    pub conf_dir: PathBuf,
    /// The plugins.
    pub plugins: Plugins,
}

/// What is to be attached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The sandbox's ID.
    pub container_id: String,
    /// The path of the network namespace.
    pub netns: String,
    /// The interface's name in the pod.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// Values for the capabilities that plugins may declare.
    pub capabilities: BTreeMap<String, Value>,
}

/// A pod that is attached, with what DEL and CHECK need.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network as it was at ADD.
    pub network: NetworkList,
    /// What was asked.
    pub request: Request,
    /// The result of the last plugin of the chain; `None` when ADD did not get that far.
    pub result: Option<Value>,
}

impl Request {
    /// The request for a pod's sandbox.
    pub fn new(pod: &Pod, container_id: &str, netns: &std::path::Path) -> Request {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={container_id};\
             K8S_POD_UID={}",
            spec::namespace(pod),
            spec::name(pod),
            spec::uid(pod)
        );
        Request {
            container_id: container_id.to_owned(),
            netns: netns.display().to_string(),
            ifname: "eth0".into(),
            args,
            capabilities: capabilities(pod),
        }
    }

    fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("CNI_CONTAINERID", self.container_id.clone()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", self.ifname.clone()),
            ("CNI_ARGS", self.args.clone()),
        ]
    }
}

/// What the pod asks for beyond an address: host ports, bandwidth, and what its annotations say.
fn capabilities(pod: &Pod) -> BTreeMap<String, Value> {
    let mut capabilities = BTreeMap::new();
    let ports: Vec<_> = spec::members(pod)
        .flat_map(|member| member.container.ports.iter().flatten())
        .filter_map(|port| {
            let host_port = port.host_port.filter(|it| *it > 0)?;
            Some(json!({
                "hostPort": host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                "hostIP": port.host_ip.as_deref().unwrap_or_default(),
            }))
        })
        .collect();
    if !ports.is_empty() {
        capabilities.insert("portMappings".into(), Value::Array(ports));
    }
    let mut bandwidth = Map::new();
    for direction in ["ingress", "egress"] {
        if let Some(rate) = bandwidth_annotation(pod, direction) {
            bandwidth.insert(format!("{direction}Rate"), rate.into());
            // containerd's burst: as much as fits, so that the rate alone decides.
            bandwidth.insert(format!("{direction}Burst"), i64::from(i32::MAX).into());
        }
    }
    if !bandwidth.is_empty() {
        capabilities.insert("bandwidth".into(), Value::Object(bandwidth));
    }
    if let Some(annotations) = pod.metadata.annotations.as_ref().filter(|it| !it.is_empty()) {
        // As containerd and CRI-O name it.
        capabilities.insert("io.kubernetes.cri.pod-annotations".into(), json!(annotations));
    }
    capabilities
}

/// `kubernetes.io/ingress-bandwidth: 10M` in bits per second.
fn bandwidth_annotation(pod: &Pod, direction: &str) -> Option<u64> {
    let key = format!("kubernetes.io/{direction}-bandwidth");
    let text = pod.metadata.annotations.as_ref()?.get(&key)?;
    let rate: Quantity = text.parse().ok()?;
    u64::try_from(rate.whole()).ok().filter(|rate| *rate > 0)
}

impl Network {
    /// What an attachment to the node's network starts from. It is to be kept before [`Network::attach`], so that
    /// what that leaves behind when it is interrupted can be taken back.
    pub fn plan(&self, request: Request) -> Result<Attachment, CniError> {
        Ok(Attachment {
            network: NetworkList::first(&self.conf_dir)?,
            request,
            result: None,
        })
    }

    /// Attaches: ADD through the chain. The caller detaches what a failed ADD may have left.
    pub async fn attach(&self, attachment: &mut Attachment) -> Result<(), CniError> {
        attachment.result = Some(self.add(attachment).await?);
        Ok(())
    }

    async fn add(&self, attachment: &Attachment) -> Result<Value, CniError> {
        let mut result = None;
        for plugin in &attachment.network.plugins {
            let conf = plugin_conf(attachment, plugin, result.as_ref());
            result = self
                .plugins
                .run(Verb::Add, &conf, &attachment.request.env())
                .await?;
        }
        result.ok_or_else(|| CniError::Answer {
            plugin: attachment.network.name.clone(),
            verb: "add",
            problem: "it is empty".into(),
        })
    }

    /// Detaches: DEL through the chain in reverse. It may be called again and again, also for what was never
    /// attached. It goes on after a failure and returns the first one.
    pub async fn detach(&self, attachment: &Attachment) -> Result<(), CniError> {
        let mut first = Ok(());
        for plugin in attachment.network.plugins.iter().rev() {
            let conf = plugin_conf(attachment, plugin, attachment.result.as_ref());
            let outcome = self
                .plugins
                .run(Verb::Del, &conf, &attachment.request.env())
                .await;
            first = first.and(outcome.map(drop));
        }
        first
    }

    /// CHECK through the chain.
    pub async fn check(&self, attachment: &Attachment) -> Result<(), CniError> {
        if attachment.network.disable_check {
            return Ok(());
        }
        for plugin in &attachment.network.plugins {
            let conf = plugin_conf(attachment, plugin, attachment.result.as_ref());
            self.plugins
                .run(Verb::Check, &conf, &attachment.request.env())
                .await?;
        }
        Ok(())
    }
}

/// What a plugin reads on stdin: its own configuration, the network's name and version, the result of the
/// plugin before it, and the values of the capabilities that it declares.
fn plugin_conf(
    attachment: &Attachment,
    plugin: &Map<String, Value>,
    previous: Option<&Value>,
) -> Map<String, Value> {
    let mut conf = plugin.clone();
    let declared = conf.remove("capabilities");
    conf.insert("name".into(), attachment.network.name.clone().into());
    conf.insert("cniVersion".into(), attachment.network.version.clone().into());
    if let Some(previous) = previous {
        conf.insert("prevResult".into(), previous.clone());
    }
    let wanted = |key: &str| {
        declared
            .as_ref()
            .and_then(|it| it.get(key))
            .and_then(Value::as_bool)
            == Some(true)
    };
    let values: Map<_, _> = attachment
        .request
        .capabilities
        .iter()
        .filter(|(key, _)| wanted(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if !values.is_empty() {
        conf.insert("runtimeConfig".into(), Value::Object(values));
    }
    conf
}

impl Attachment {
    /// The pod's addresses: those of its interface, the first one of the family of `primary` first.
    pub fn ips(&self, primary: Option<IpAddr>) -> Vec<IpAddr> {
        let Some(result) = &self.result else {
            return Vec::new();
        };
        let interfaces = result.get("interfaces").and_then(Value::as_array);
        let in_pod = |entry: &Value| {
            let index = entry
                .get("interface")
                .and_then(Value::as_u64)
                .and_then(|it| usize::try_from(it).ok());
            let interface = index.and_then(|index| interfaces?.get(index));
            interface.is_none_or(|it| it.get("name").and_then(Value::as_str) == Some(&self.request.ifname))
        };
        let address = |entry: &Value| {
            let text = entry.get("address")?.as_str()?;
            text.parse::<IpNet>()
                .map(|net| net.addr())
                .or_else(|_| text.parse())
                .ok()
        };
        let entries = result.get("ips").and_then(Value::as_array).into_iter().flatten();
        let mut ips: Vec<IpAddr> = entries
            .filter(|entry| in_pod(entry))
            .filter_map(address)
            .collect();
        if let Some(primary) = primary {
            ips.sort_by_key(|ip| ip.is_ipv4() != primary.is_ipv4());
        }
        ips
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::testing::pod;
    use std::path::Path;

    fn attachment(result: Option<Value>) -> Attachment {
        let mut pod = pod(
            r#"{"containers":[{"name":"a","ports":[{"containerPort":80,"hostPort":8080},{"containerPort":81}]}]}"#,
        );
        pod.metadata.annotations = Some(BTreeMap::from([(
            "kubernetes.io/ingress-bandwidth".into(),
            "10M".into(),
        )]));
        let text = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"x","capabilities":{"portMappings":true},"keep":1}]}"#;
        Attachment {
            network: NetworkList::parse(text.as_bytes()).unwrap(),
            request: Request::new(&pod, "abc", Path::new("/proc/7/ns/net")),
            result,
        }
    }

    #[test]
    fn a_plugin_gets_the_capabilities_it_declares() {
        let attachment = attachment(None);
        let previous = json!({"cniVersion": "1.0.0"});
        let conf = plugin_conf(&attachment, &attachment.network.plugins[0], Some(&previous));
        assert_eq!(
            Value::Object(conf),
            json!({
                "type": "x", "keep": 1, "name": "net", "cniVersion": "1.0.0",
                "prevResult": {"cniVersion": "1.0.0"},
                "runtimeConfig": {"portMappings":
                    [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]},
            })
        );
        assert_eq!(
            attachment.request.capabilities["bandwidth"]["ingressRate"],
            10_000_000
        );
        assert_eq!(
            attachment.request.capabilities["io.kubernetes.cri.pod-annotations"],
            json!({ "kubernetes.io/ingress-bandwidth": "10M" })
        );
        assert!(attachment.request.args.contains("K8S_POD_NAME=web;"));
    }

    #[test]
    fn addresses_are_those_of_the_pods_interface_in_the_nodes_order() {
        let result = json!({
            "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/proc/7/ns/net"}],
            "ips": [
                {"address": "10.244.1.5/32", "interface": 1},
                {"address": "fd00::5/128", "interface": 1},
                {"address": "169.254.1.1/32", "interface": 0},
            ],
        });
        let attachment = attachment(Some(result));
        let text = |primary: &str| {
            attachment
                .ips(primary.parse().ok())
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(text("172.30.0.1"), ["10.244.1.5", "fd00::5"]);
        assert_eq!(text("fd30::1"), ["fd00::5", "10.244.1.5"]);
    }

    /// Debian's own plugin, in a namespace of the test.
    #[tokio::test]
    async fn a_real_plugin_attaches_and_detaches() {
        let bin = Path::new("/usr/lib/cni");
        assert!(
            bin.join("loopback").exists(),
            "install containernetworking-plugins"
        );
        let dir = tempfile::tempdir().unwrap();
        let conf = r#"{"cniVersion":"1.0.0","name":"lo","plugins":[{"type":"loopback"}]}"#;
        std::fs::write(dir.path().join("10-lo.conflist"), conf).unwrap();
        let mounts = podnet_linux::ns::Namespace::create(podnet_linux::ns::Kind::Mount).unwrap();
        let network = Network {
            conf_dir: dir.path().to_owned(),
            plugins: Plugins {
                dir: bin.to_owned(),
                mounts: Some(std::sync::Arc::new(mounts)),
            },
        };
        let netns = podnet_linux::ns::Namespace::create(podnet_linux::ns::Kind::Net).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&netns));
        let path = format!("/proc/{}/fd/{fd}", std::process::id());
        let mut request = Request::new(&pod(r#"{"containers":[]}"#), "abc", Path::new(&path));
        request.ifname = "lo".into();
        let mut attachment = network.plan(request).unwrap();
        network.attach(&mut attachment).await.unwrap();
        assert!(
            attachment.ips(None).contains(&"127.0.0.1".parse().unwrap()),
            "{attachment:?}"
        );
        network.check(&attachment).await.unwrap();
        network.detach(&attachment).await.unwrap();
        network.detach(&attachment).await.unwrap();
    }

    #[tokio::test]
    async fn a_plugin_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let conf = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"nowhere"}]}"#;
        std::fs::write(dir.path().join("10.conflist"), conf).unwrap();
        let network = Network {
            conf_dir: dir.path().to_owned(),
            plugins: Plugins {
                dir: dir.path().to_owned(),
                mounts: None,
            },
        };
        let request = Request::new(
            &pod(r#"{"containers":[]}"#),
            "abc",
            Path::new("/proc/self/ns/net"),
        );
        let mut attachment = network.plan(request).unwrap();
        let error = network.attach(&mut attachment).await.unwrap_err().to_string();
        assert!(
            error.contains("nowhere") && error.contains(&dir.path().display().to_string()),
            "{error}"
        );
    }
}
