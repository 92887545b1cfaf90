//! What becomes of a connection to a service.

use std::net::{IpAddr, SocketAddr};

use crate::cluster::{
    AddressFamily, Cluster, Endpoint, ExternalPolicy, Family, InternalPolicy, NodeName, ObjectName, Protocol,
    Service,
};
use crate::service::HostAddress;

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

/// Which of a service's addresses was asked.
#[derive(PartialEq)]
enum Asked {
    ClusterIp,
    LoadBalancer,
    ExternalIp,
    NodePort,
}

/// The fate of a new connection with the source address `from` that `node` sees, to `to`.
pub fn connect(cluster: &Cluster, node: &NodeName, from: IpAddr, protocol: Protocol, to: SocketAddr) -> Fate {
    let mut ranges = cluster.config.service_cidrs.clone();
    for cidr in cluster.service_cidrs.values().flatten() {
        ranges.extend(&cidr.ranges);
    }
    let mut in_range = false;
    for range in ranges {
        in_range |= range.contains(&to.ip());
    }
    // Of two services with one cluster IP the first by name has it, whatever ports they have.
    for (name, service) in carried(cluster) {
        if service.cluster_ips().contains(&to.ip()) && (in_range || !is_anothers(cluster, to.ip())) {
            let mut port_name = None;
            for port in service.ports() {
                if port.protocol == protocol && port.port.get() == to.port() {
                    port_name = Some(port.name.as_str());
                }
            }
            return match port_name {
                None => Fate::Refused,
                Some(port) => behind(
                    cluster,
                    node,
                    from,
                    name,
                    service,
                    port,
                    protocol,
                    Asked::ClusterIp,
                    to.ip(),
                ),
            };
        }
    }
    if in_range {
        return Fate::Dropped;
    }
    let own = cluster.node(node);
    let is_own = own.is_some_and(|own| own.all_addresses.contains(&to.ip()));
    let has_node_ports = |address: IpAddr| match &cluster.config.node_port_addresses {
        None => !address.is_loopback(),
        Some(ranges) => ranges.iter().any(|range| range.contains(&address)),
    };
    // A pod that has the port on this address has it before any service; so it has the node port, whichever address it
    // has that on.
    let mut busy = false;
    for host_port in cluster.host_ports.keys() {
        if (host_port.protocol, host_port.port.get()) != (protocol, to.port()) {
            continue;
        }
        let (here, among_node_ports) = match host_port.address {
            HostAddress::Any(family) => (
                is_own && family == Family::of(to.ip()),
                family == Family::of(to.ip()),
            ),
            HostAddress::One(address) => (
                address == to.ip(),
                address.is_ipv4() == to.is_ipv4() && has_node_ports(address),
            ),
        };
        if here {
            return Fate::NotAService;
        }
        busy |= among_node_ports;
    }
    // Nor does anybody take the API server's own port away.
    let is_api_server = is_api_server(cluster, protocol, to);
    for (name, service) in carried(cluster) {
        if is_api_server || !has_family(service, to.ip()) {
            continue;
        }
        for port in service.ports() {
            if port.protocol != protocol || port.port.get() != to.port() {
                continue;
            }
            let asked = if service.external.load_balancer.contains(&to.ip()) {
                Asked::LoadBalancer
            } else if service.external.ips.contains(&to.ip()) {
                Asked::ExternalIp
            } else {
                continue;
            };
            return behind(
                cluster,
                node,
                from,
                name,
                service,
                &port.name,
                protocol,
                asked,
                to.ip(),
            );
        }
    }
    for port in &cluster.local.busy_ports {
        busy |=
            port.protocol == protocol && port.port.get() == to.port() && port.family == Family::of(to.ip());
    }
    if is_own && has_node_ports(to.ip()) && !busy {
        for (name, service) in carried(cluster) {
            if !has_family(service, to.ip()) {
                continue;
            }
            for port in service.ports() {
                if port.protocol == protocol && port.node_port.map(|port| port.get()) == Some(to.port()) {
                    return behind(
                        cluster,
                        node,
                        from,
                        name,
                        service,
                        &port.name,
                        protocol,
                        Asked::NodePort,
                        to.ip(),
                    );
                }
            }
        }
    }
    Fate::NotAService
}

/// Whether an endpoint sees the source `from` of a connection that `node` sent to it, by whichever of a service's addresses.
/// It does unless it is the client itself, whose packets would not come back by the node, or is on another node than a
/// client from outside came to.
pub fn keeps_source(cluster: &Cluster, node: &NodeName, from: IpAddr, endpoint: IpAddr) -> bool {
    if from == endpoint {
        return false;
    }
    is_inside(cluster, node, from) || is_inside(cluster, node, endpoint)
}

fn carried(cluster: &Cluster) -> Vec<(&ObjectName, &Service)> {
    let mut carried = Vec::new();
    for (name, service) in cluster.services.iter() {
        if let Ok(service) = service
            && !service.proxied_elsewhere
            && !service.cluster_ips().is_empty()
        {
            carried.push((name, service));
        }
    }
    carried
}

/// Whether the API server listens there.
fn is_api_server(cluster: &Cluster, protocol: Protocol, to: SocketAddr) -> bool {
    let mut found = false;
    for slice in cluster.valid_slices() {
        if slice.service != Some(ObjectName::new("default", "kubernetes")) {
            continue;
        }
        for port in &slice.ports {
            for endpoint in slice.endpoints() {
                found |= port.protocol == protocol
                    && port.port.map(|port| port.get()) == Some(to.port())
                    && endpoint.address == to.ip();
            }
        }
    }
    found
}

/// Whether a node, a pod or the API server may have an address.
fn is_anothers(cluster: &Cluster, address: IpAddr) -> bool {
    let mut anothers = false;
    for range in &cluster.config.cluster_cidrs {
        anothers |= range.contains(&address);
    }
    for node in cluster.valid_nodes() {
        anothers |= node.all_addresses.contains(&address);
        for range in node.pod_ranges.iter() {
            anothers |= range.contains(&address);
        }
    }
    for slice in cluster.valid_slices() {
        if slice.service == Some(ObjectName::new("default", "kubernetes")) {
            for endpoint in slice.endpoints() {
                anothers |= endpoint.address == address;
            }
        }
    }
    for pool in cluster.valid_ip_pools() {
        for block in &pool.blocks {
            anothers |= block.range.contains(&address);
        }
    }
    anothers
}

fn has_family(service: &Service, address: IpAddr) -> bool {
    service
        .cluster_ips()
        .iter()
        .any(|ip| ip.is_ipv4() == address.is_ipv4())
}

/// Whether a source is one of the node's own pods, or the node.
fn is_inside(cluster: &Cluster, node: &NodeName, from: IpAddr) -> bool {
    let mut ranges = Vec::new();
    let mut inside = false;
    if let Some(own) = cluster.node(node).or(cluster.local.node.as_ref()) {
        inside = own.all_addresses.contains(&from);
        ranges.extend(own.pod_ranges.iter());
    }
    for pool in cluster.valid_ip_pools() {
        for block in &pool.blocks {
            if block.node == *node {
                ranges.push(block.range);
            }
        }
    }
    // Whoever has none may have had some, and cannot tell its pods from others.
    inside || ranges.is_empty() || ranges.iter().any(|range| range.contains(&from))
}

#[expect(clippy::too_many_arguments, reason = "the facts of one question")]
fn behind(
    cluster: &Cluster,
    node: &NodeName,
    from: IpAddr,
    name: &ObjectName,
    service: &Service,
    port_name: &str,
    protocol: Protocol,
    asked: Asked,
    address: IpAddr,
) -> Fate {
    if asked == Asked::LoadBalancer
        && let Some(sources) = &service.external.sources
    {
        let mut admitted = sources.iter().all(|range| range.prefix_len() == 0) && !sources.is_empty();
        let own = cluster.node(node).or(cluster.local.node.as_ref());
        for range in sources {
            admitted |= range.contains(&from);
            // A node in a range may ask from the load balancer's own address, where it has that.
            if let Some(own) = own
                && service.external.load_balancer.contains(&from)
                && from.is_ipv4() == address.is_ipv4()
            {
                for own in &own.all_addresses {
                    admitted |= own.is_ipv4() == from.is_ipv4() && range.contains(own);
                }
            }
        }
        if !admitted {
            return Fate::Dropped;
        }
    }
    let local = match asked {
        Asked::ClusterIp => service.internal_policy == InternalPolicy::Local,
        _ => service.external.policy == ExternalPolicy::Local && !is_inside(cluster, node, from),
    };
    let zone = cluster.node(node).and_then(|node| node.zone());
    let mut all: Vec<(SocketAddr, &Endpoint)> = Vec::new();
    let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
    for slice in cluster.slices.values() {
        let Ok(slice) = slice else { continue };
        if slice.service.as_ref() != Some(name) || slice.family() != AddressFamily::Ip(family) {
            continue;
        }
        for port in &slice.ports {
            if let Some(number) = port.port
                && port.name == port_name
                && port.protocol == protocol
            {
                for endpoint in slice.endpoints() {
                    all.push((SocketAddr::new(endpoint.address, number.get()), endpoint));
                }
            }
        }
    }
    let here = |endpoint: &Endpoint| endpoint.node.as_ref() == Some(node);
    let ending = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let anywhere = all.iter().any(|(_, endpoint)| endpoint.ready || ending(endpoint));
    let mut chosen: Vec<SocketAddr> = Vec::new();
    if local {
        let mine = || all.iter().filter(|(_, endpoint)| here(endpoint));
        chosen.extend(
            mine()
                .filter(|(_, endpoint)| endpoint.ready)
                .map(|(address, _)| *address),
        );
        if chosen.is_empty() {
            chosen.extend(
                mine()
                    .filter(|(_, endpoint)| ending(endpoint))
                    .map(|(address, _)| *address),
            );
        }
    } else {
        let ready: Vec<_> = all.iter().filter(|(_, endpoint)| endpoint.ready).collect();
        let for_me = |endpoint: &Endpoint| endpoint.hints.nodes.iter().any(|hint| hint == node);
        let for_my_zone = |endpoint: &Endpoint| {
            endpoint
                .hints
                .zones
                .iter()
                .any(|hint| Some(hint.as_ref()) == zone)
        };
        let nodes_told = ready.iter().all(|(_, endpoint)| !endpoint.hints.nodes.is_empty());
        let zones_told = ready.iter().all(|(_, endpoint)| !endpoint.hints.zones.is_empty());
        let near: Vec<SocketAddr> = ready.iter().filter(|(_, e)| for_me(e)).map(|(a, _)| *a).collect();
        let in_zone: Vec<SocketAddr> = ready
            .iter()
            .filter(|(_, e)| for_my_zone(e))
            .map(|(a, _)| *a)
            .collect();
        chosen = if nodes_told && !near.is_empty() {
            near
        } else if zones_told && !in_zone.is_empty() {
            in_zone
        } else {
            ready.iter().map(|(address, _)| *address).collect()
        };
        if chosen.is_empty() {
            chosen.extend(
                all.iter()
                    .filter(|(_, endpoint)| ending(endpoint))
                    .map(|(address, _)| *address),
            );
        }
    }
    chosen.sort();
    chosen.dedup();
    if !chosen.is_empty() {
        Fate::OneOf(chosen)
    } else if local && anywhere {
        Fate::Dropped
    } else {
        Fate::Refused
    }
}
