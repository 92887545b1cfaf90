//! A node as the scheduler sees it.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

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
        self.cpu += requested(pod, "cpu", 1000);
        self.memory += requested(pod, "memory", 1);
        self.ports.extend(host_ports(pod));
    }

    pub(super) fn label(&self, key: &str) -> Option<&'a str> {
        self.node.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    pub(super) fn labels(&self) -> Option<&'a Labels> {
        self.node.metadata.labels.as_ref()
    }

    /// What it can give of a resource, in the unit; none if it does not say.
    pub(super) fn allocatable(&self, resource: &str, unit: i128) -> Option<i128> {
        let status = self.node.status.as_ref()?;
        quantity(status.allocatable.as_ref()?.get(resource)?, unit)
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
pub(super) fn requested(pod: &Pod, resource: &str, unit: i128) -> i128 {
    let Some(spec) = &pod.spec else { return 0 };
    let of = |container: &Container| {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        requests
            .and_then(|r| r.get(resource))
            .and_then(|q| quantity(q, unit))
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
        .and_then(|q| quantity(q, unit));
    running.max(peak) + overhead.unwrap_or(0)
}

/// A quantity in units of 1/`unit`, rounded up.
pub(super) fn quantity(quantity: &Quantity, unit: i128) -> Option<i128> {
    let text = quantity.0.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (multiply, divide): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let exponent: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            (10i128.checked_pow(exponent)?, 1)
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let scale = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value: i128 = format!("{whole}{fraction}").parse().ok()?;
    let numerator = value.checked_mul(multiply)?.checked_mul(unit)?;
    let denominator = divide.checked_mul(scale)?;
    Some(numerator.div_euclid(denominator) + i128::from(numerator.rem_euclid(denominator) != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_quantities() {
        let cases = [
            ("100m", 1000, 100),
            ("1", 1000, 1000),
            ("1.5", 1000, 1500),
            ("2Gi", 1, 2 << 30),
            ("1e3", 1, 1000),
            ("0.5Ki", 1, 512),
            ("1n", 1000, 1),
        ];
        for (text, unit, expected) in cases {
            assert_eq!(quantity(&Quantity(text.into()), unit), Some(expected), "{text}");
        }
        assert_eq!(quantity(&Quantity("much".into()), 1), None);
    }

    #[test]
    fn ports_clash_where_addresses_meet() {
        let port = |address: &str, number| (address.to_owned(), "TCP".to_owned(), number);
        assert!(ports_clash(&port("", 80), &port("10.0.0.1", 80)));
        assert!(!ports_clash(&port("10.0.0.2", 80), &port("10.0.0.1", 80)));
        assert!(!ports_clash(&port("", 80), &port("", 81)));
    }
}
