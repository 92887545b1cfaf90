//! The Node object and its status.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::Machine;
use crate::runtime::pod::status::whole_seconds;

/// The Kubernetes version whose kubelet the runtime acts as.
const KUBELET_VERSION: &str = "v1.36.0+podnet";
/// Kubelet's default.
const MAX_PODS: u32 = 110;

/// What is known of a node.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its addresses, the primary family first.
    pub ips: Vec<IpAddr>,
    /// Labels beyond the usual ones.
    pub labels: BTreeMap<String, String>,
    /// The machine it is on.
    pub machine: Machine,
}

/// The object that the node registers as.
pub fn node_object(facts: &NodeFacts, network: Result<(), String>, now: Timestamp) -> Node {
    Node {
        metadata: ObjectMeta {
            name: Some(facts.name.clone()),
            labels: Some(labels(facts)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec::default()),
        status: Some(node_status(facts, None, network, now)),
    }
}

/// The labels that every node has, and those it was given.
pub(super) fn labels(facts: &NodeFacts) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for prefix in ["", "beta."] {
        labels.insert(format!("{prefix}kubernetes.io/os"), "linux".to_owned());
        labels.insert(
            format!("{prefix}kubernetes.io/arch"),
            facts.machine.architecture.clone(),
        );
    }
    labels.insert("kubernetes.io/hostname".into(), facts.name.clone());
    labels.extend(facts.labels.clone());
    labels
}

/// The node's status. `known` is the one that the API has: times of transition are kept from it.
pub fn node_status(
    facts: &NodeFacts,
    known: Option<&NodeStatus>,
    network: Result<(), String>,
    now: Timestamp,
) -> NodeStatus {
    let resources = resources(&facts.machine);
    NodeStatus {
        addresses: Some(addresses(facts)),
        capacity: Some(resources.clone()),
        allocatable: Some(resources),
        conditions: Some(conditions(known, network, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: 10250 }),
        }),
        node_info: Some(system_info(&facts.machine)),
        ..NodeStatus::default()
    }
}

fn addresses(facts: &NodeFacts) -> Vec<NodeAddress> {
    let ips = facts.ips.iter().map(|ip| ("InternalIP", ip.to_string()));
    ips.chain([("Hostname", facts.name.clone())])
        .map(|(type_, address)| NodeAddress {
            type_: type_.into(),
            address,
        })
        .collect()
}

fn resources(machine: &Machine) -> BTreeMap<String, Quantity> {
    [
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Ki", machine.memory / 1024)),
        ("pods", MAX_PODS.to_string()),
    ]
    .into_iter()
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .collect()
}

fn system_info(machine: &Machine) -> NodeSystemInfo {
    NodeSystemInfo {
        architecture: machine.architecture.clone(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: format!("podnet://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: machine.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.into(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".into(),
        os_image: machine.os.clone(),
        system_uuid: machine.machine_id.clone(),
        swap: None,
    }
}

fn conditions(known: Option<&NodeStatus>, network: Result<(), String>, now: Timestamp) -> Vec<NodeCondition> {
    let ready = match network {
        Ok(()) => (
            "Ready",
            true,
            "KubeletReady",
            "podnet runtime is posting ready status".to_owned(),
        ),
        Err(problem) => (
            "Ready",
            false,
            "KubeletNotReady",
            format!(
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{problem}"
            ),
        ),
    };
    let calm = |type_, reason, message: &str| (type_, false, reason, message.to_owned());
    let all = [
        calm(
            "MemoryPressure",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        calm(
            "DiskPressure",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        calm(
            "PIDPressure",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        ready,
    ];
    let now = Time(whole_seconds(now));
    let before = known
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    all.into_iter()
        .map(|(type_, holds, reason, message)| {
            let status = if holds { "True" } else { "False" };
            let same = before.iter().find(|it| it.type_ == type_ && it.status == status);
            NodeCondition {
                type_: type_.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: same
                    .and_then(|it| it.last_transition_time.clone())
                    .or_else(|| Some(now.clone())),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> NodeFacts {
        NodeFacts {
            name: "node1".into(),
            ips: vec!["172.30.0.10".parse().unwrap(), "fd30::a".parse().unwrap()],
            labels: BTreeMap::from([("topology.kubernetes.io/zone".into(), "zone1".into())]),
            machine: Machine {
                kernel: "6.18".into(),
                os: "Debian GNU/Linux 12 (bookworm)".into(),
                architecture: "amd64".into(),
                machine_id: "m".into(),
                boot_id: "b".into(),
                cpus: 2,
                memory: 24 << 30,
            },
        }
    }

    #[test]
    fn a_node_without_network_is_registered_and_not_ready() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut node = node_object(&facts(), Err("cni plugin not initialized".into()), now);
        if let Some(info) = node.status.as_mut().and_then(|it| it.node_info.as_mut()) {
            info.container_runtime_version = "podnet://VERSION".into();
        }
        insta::assert_json_snapshot!(node);
    }

    #[test]
    fn becoming_ready_moves_only_its_own_transition() {
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let before = node_status(&facts(), None, Err("no".into()), at(0));
        let after = node_status(&facts(), Some(&before), Ok(()), at(60));
        let moved: Vec<_> = after
            .conditions
            .unwrap()
            .into_iter()
            .filter(|it| it.last_transition_time.as_ref().unwrap().0 == at(60))
            .map(|it| (it.type_, it.status))
            .collect();
        assert_eq!(moved, [("Ready".to_owned(), "True".to_owned())]);
    }
}
