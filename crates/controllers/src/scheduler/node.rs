//! A node as the scheduler sees it.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource as api;
use podnet_core::quantity::Quantity;

use crate::selector::Labels;

/// A node with the pods on it.
pub(super) struct Candidate<'a> {
    pub(super) name: &'a str,
    pub(super) node: &'a Node,
    pub(super) pods: Vec<&'a Arc<Pod>>,
    /// CPU in thousandths and memory in bytes that its pods ask for.
    pub(super) cpu: i128,
    pub(super) memory: i128,
    /// Host ports in use, with protocol and address.
    pub(super) ports: BTreeSet<HostPort>,
}

/// Address, protocol and number of a port on a node; the address is empty for all.
pub(super) type HostPort = (String, String, i32);

impl<'a> Candidate<'a> {
    pub(super) fn new(node: &'a Node) -> Candidate<'a> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        Candidate {
            name,
            node,
            pods: Vec::new(),
            cpu: 0,
            memory: 0,
            ports: BTreeSet::new(),
        }
    }

    pub(super) fn add(&mut self, pod: &'a Arc<Pod>) {
        self.pods.push(pod);
        self.cpu += requested(pod, "cpu", Quantity::MILLI);
        self.memory += requested(pod, "memory", Quantity::ONE);
        self.ports.extend(host_ports(pod));
    }

    pub(super) fn label(&self, key: &str) -> Option<&'a str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    pub(super) fn labels(&self) -> Option<&'a Labels> {
        self.node.metadata.labels.as_ref()
    }

    /// What it can give of a resource, in the unit; none if it does not say.
    pub(super) fn allocatable(&self, resource: &str, unit: Quantity) -> Option<i128> {
        let status = self.node.status.as_ref()?;
        count(status.allocatable.as_ref()?.get(resource)?, unit)
    }

    /// Its taints, and that it is not ready even before somebody noted that as a taint.
    pub(super) fn taints(&self) -> Vec<Taint> {
        let spec = self.node.spec.as_ref();
        let mut taints: Vec<Taint> = spec.and_then(|s| s.taints.clone()).unwrap_or_default();
        let noted = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
        if !ready(self.node) && !taints.iter().any(|t| noted.contains(&t.key.as_str())) {
            taints.push(Taint {
                key: noted[0].into(),
                effect: "NoSchedule".into(),
                ..Taint::default()
            });
        }
        taints
    }
}

pub(super) fn ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether a change of the node, heartbeats aside, may let a pod fit.
pub(super) fn differ(old: &Node, new: &Node) -> bool {
    let spec = |node: &Node| node.spec.as_ref().map(|s| (s.taints.clone(), s.unschedulable));
    let allocatable = |node: &Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
    ready(old) != ready(new)
        || old.metadata.labels != new.metadata.labels
        || spec(old) != spec(new)
        || allocatable(old) != allocatable(new)
}

pub(super) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let ports = spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|n| *n > 0)?;
            let address = port
                .host_ip
                .clone()
                .filter(|ip| ip != "0.0.0.0" && ip != "::")
                .unwrap_or_default();
            Some((
                address,
                port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                number,
            ))
        })
        .collect()
}

pub(super) fn ports_clash(one: &HostPort, other: &HostPort) -> bool {
    let (address, protocol, number) = one;
    let everywhere = address.is_empty() || other.0.is_empty();
    *protocol == other.1 && *number == other.2 && (everywhere || *address == other.0)
}

/// What a pod asks for: all its containers and sidecars together, or its greediest init container.
pub(super) fn requested(pod: &Pod, resource: &str, unit: Quantity) -> i128 {
    let Some(spec) = &pod.spec else { return 0 };
    let of = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        requests
            .and_then(|r| r.get(resource))
            .and_then(|q| count(q, unit))
            .unwrap_or(0)
    };
    let mut running: i128 = spec.containers.iter().map(of).sum();
    let mut peak = 0;
    let mut sidecars = 0;
    for init in spec.init_containers.iter().flatten() {
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars += of(init);
        } else {
            peak = peak.max(of(init) + sidecars);
        }
    }
    running += sidecars;
    let overhead = spec
        .overhead
        .as_ref()
        .and_then(|o| o.get(resource))
        .and_then(|q| count(q, unit));
    running.max(peak) + overhead.unwrap_or(0)
}

/// How many units a quantity of the API's is, rounded up.
fn count(text: &api::Quantity, unit: Quantity) -> Option<i128> {
    text.0.parse::<Quantity>().ok()?.divided(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_clash_where_addresses_meet() {
        let port = |address: &str, number| (address.to_owned(), "TCP".to_owned(), number);
        assert!(ports_clash(&port("", 80), &port("10.0.0.1", 80)));
        assert!(!ports_clash(&port("10.0.0.2", 80), &port("10.0.0.1", 80)));
        assert!(!ports_clash(&port("", 80), &port("", 81)));
    }
}
