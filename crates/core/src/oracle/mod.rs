//! What should happen to a packet, worked out the slow way from the API's text. Tests hold it against
//! [`crate::compute`] and against real kernels; it shares no code with either.

pub mod policy;

use std::net::{IpAddr, SocketAddr};

use crate::cluster::{AddressFamily, Cluster, Family, InternalPolicy, NodeName, Protocol};

/// What becomes of a new connection to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is no service's address: the packet goes where it is sent.
    NotAService,
    /// It reaches one of these, sorted.
    OneOf(Vec<SocketAddr>),
    /// It is refused at once.
    Refused,
    /// It is never answered.
    Dropped,
}

/// Where a packet to a pod's address goes from a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It is for a pod of this node.
    Here,
    /// To the node of that name.
    Node(NodeName),
    /// It is in the cluster's pod ranges, but nobody's.
    Nobody,
    /// It is not ours.
    Outside,
}

/// The fate of a new connection from somewhere on `node` to `to`.
pub fn connect(cluster: &Cluster, node: &NodeName, protocol: Protocol, to: SocketAddr) -> Fate {
    let mut owner = None;
    // Of two services with one address the first by name has it.
    for (name, service) in &cluster.services {
        if let Ok(service) = service
            && !service.proxied_elsewhere
            && service.cluster_ips().contains(&to.ip())
            && owner.is_none()
        {
            owner = Some((name, service));
        }
    }
    let Some((name, service)) = owner else {
        let in_range = cluster
            .config
            .service_cidrs
            .iter()
            .any(|range| range.contains(&to.ip()));
        return if in_range {
            Fate::Dropped
        } else {
            Fate::NotAService
        };
    };
    let mut port_name = None;
    for port in service.ports() {
        if port.protocol == protocol && port.port.get() == to.port() {
            port_name = Some(port.name.as_str());
        }
    }
    let Some(port_name) = port_name else {
        return Fate::Refused;
    };
    let (mut ready, mut ready_here, mut ending, mut ending_here) = (vec![], vec![], vec![], vec![]);
    for slice in cluster.slices.values() {
        let Ok(slice) = slice else { continue };
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        if slice.service.as_ref() != Some(name) || slice.family() != AddressFamily::Ip(family) {
            continue;
        }
        for port in &slice.ports {
            let Some(number) = port.port else { continue };
            if port.name != port_name || port.protocol != protocol {
                continue;
            }
            for endpoint in slice.endpoints() {
                let address = SocketAddr::new(endpoint.address, number.get());
                let here = endpoint.node.as_ref() == Some(node);
                if endpoint.ready {
                    ready.push(address);
                    if here {
                        ready_here.push(address);
                    }
                }
                if endpoint.serving && endpoint.terminating {
                    ending.push(address);
                    if here {
                        ending_here.push(address);
                    }
                }
            }
        }
    }
    let anywhere = !ready.is_empty() || !ending.is_empty();
    let mut chosen = match (service.internal_policy, ready.is_empty(), ready_here.is_empty()) {
        (InternalPolicy::Cluster, false, _) => ready,
        (InternalPolicy::Cluster, true, _) => ending,
        (InternalPolicy::Local, _, false) => ready_here,
        (InternalPolicy::Local, _, true) => ending_here,
    };
    chosen.sort();
    chosen.dedup();
    match (chosen.is_empty(), service.internal_policy, anywhere) {
        (false, _, _) => Fate::OneOf(chosen),
        (true, InternalPolicy::Local, true) => Fate::Dropped,
        (true, _, _) => Fate::Refused,
    }
}

/// The way of a packet from `node` to the pod address `to`, in a cluster whose ranges do not overlap and whose nodes
/// all have addresses.
pub fn way(cluster: &Cluster, node: &NodeName, to: IpAddr) -> Way {
    for (name, object) in &cluster.nodes {
        let Ok(object) = object else { continue };
        for range in object.pod_ranges.iter() {
            if range.contains(&to) {
                return if name == node {
                    Way::Here
                } else {
                    Way::Node(name.clone())
                };
            }
        }
    }
    if cluster
        .config
        .cluster_cidrs
        .iter()
        .any(|range| range.contains(&to))
    {
        Way::Nobody
    } else {
        Way::Outside
    }
}
