//! Of services that claim the same, which has it, and what the others are told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::owner::Owner;
use super::served::Served;
use super::{Entry, Frontend, NodePort, ServiceState};
use crate::cluster::{NodeName, ObjectName, ObjectRef};
use crate::state::Problem;

/// A service that claims something.
pub(super) type Claimant<'a> = (&'a ObjectName, &'a Served);

pub(super) fn problem(name: &ObjectName, why: String) -> Problem {
    Problem {
        object: ObjectRef::service(name),
        why,
    }
}

/// Who has something of an address but services.
pub(super) struct Others<'a> {
    /// This node, whose pods' host ports are meant.
    pub(super) me: &'a NodeName,
    /// Whose the address is.
    pub(super) owner: Option<&'a Owner>,
    /// The host ports.
    pub(super) opened: &'a BTreeSet<Frontend>,
    /// Where the API server is.
    pub(super) api_server: &'a BTreeSet<Frontend>,
}

/// No other address of a service can take a cluster IP away, nor can a pod's host port; but it cannot be one that is
/// somebody else's: all that is sent to it stays on the node. What a pod or the API server has opened on another address
/// stays its own.
pub(super) fn settle_address(
    state: &mut ServiceState,
    address: IpAddr,
    others: &Others<'_>,
    claimants: &[Claimant<'_>],
) -> Vec<Problem> {
    let mut lost = Vec::new();
    let mut had: BTreeMap<Frontend, Arc<Entry>> = BTreeMap::new();
    let mut owner: Option<&ObjectName> = None;
    for &(name, served) in claimants {
        if !served.cluster_ips.contains(&address) {
            continue;
        }
        if let Some(elsewhere) = others.owner {
            let why = format!("its cluster IP {address} is {elsewhere}; it is not served");
            lost.push(problem(name, why));
        } else if let Some(owner) = owner {
            let why = format!("its cluster IP {address} belongs to service {owner}; it is not served");
            lost.push(problem(name, why));
        } else {
            owner = Some(name);
            let its = served
                .internal
                .iter()
                .filter(|(frontend, _)| frontend.address == address);
            had.extend(its.cloned());
        }
    }
    let external = claimants.iter().flat_map(|(name, served)| {
        served
            .external
            .iter()
            .map(move |(frontend, entry)| (name, frontend, entry))
    });
    for (name, frontend, entry) in external.filter(|(_, frontend, _)| frontend.address == address) {
        let why = if let Some(owner) = owner {
            format!("its address {address} is the cluster IP of service {owner}; it is not served")
        } else if let Some(range) = state.ranges.iter().find(|range| range.contains(&address)) {
            format!(
                "its address {address} is in the range {range}, which is for cluster IPs; it is not served"
            )
        } else if others.api_server.contains(frontend) {
            // Whoever took it could not hear of its own end.
            format!("{frontend} is the API server's; it is not served")
        } else if others.opened.contains(frontend) {
            lost.push(Problem {
                object: ObjectRef::node(others.me),
                why: format!(
                    "{frontend} is not served for service {name}: it is the host port of a pod of the node"
                ),
            });
            continue;
        } else if let Some(other) = had.get(frontend) {
            // A service may have one address in both ways.
            if other.port.service == **name {
                continue;
            }
            format!(
                "{frontend} belongs to service {}; it is not served",
                other.port.service
            )
        } else {
            had.insert(*frontend, Arc::clone(entry));
            continue;
        };
        lost.push(problem(name, why));
    }
    if owner.is_some() {
        state.cluster_ips.insert(address);
    } else {
        state.cluster_ips.remove(&address);
    }
    match others.owner.filter(|_| !had.is_empty()) {
        Some(elsewhere) => _ = state.borrowed.insert(address, elsewhere.clone()),
        None => _ = state.borrowed.remove(&address),
    }
    replace_frontends(state, address, had);
    lost
}

fn replace_frontends(state: &mut ServiceState, address: IpAddr, had: BTreeMap<Frontend, Arc<Entry>>) {
    let gone: Vec<Frontend> = state
        .at(address)
        .map(|(frontend, _)| *frontend)
        .filter(|frontend| !had.contains_key(frontend))
        .collect();
    for frontend in &gone {
        state.frontends.remove(frontend);
    }
    state.frontends.extend(had);
}

pub(super) fn settle_node_port(
    state: &mut ServiceState,
    port: NodePort,
    claimants: &[Claimant<'_>],
) -> Vec<Problem> {
    let all = claimants.iter().flat_map(|(name, served)| {
        served
            .node_ports
            .iter()
            .map(move |(node_port, entry)| (name, node_port, entry))
    });
    let mut all = all.filter(|(_, node_port, _)| **node_port == port);
    let Some((_, _, entry)) = all.next() else {
        state.node_ports.remove(&port);
        return Vec::new();
    };
    state.node_ports.insert(port, Arc::clone(entry));
    let owner = &entry.port.service;
    let lost = all.map(|(name, node_port, _)| {
        let (protocol, port) = (node_port.protocol, node_port.port);
        let why = format!("its node port {protocol} {port} belongs to service {owner}; it is not served");
        problem(name, why)
    });
    lost.collect()
}

pub(super) fn settle_health_check(
    state: &mut ServiceState,
    port: NonZeroU16,
    claimants: &[Claimant<'_>],
) -> Vec<Problem> {
    let mut all = claimants
        .iter()
        .filter_map(|(name, served)| Some((name, served.health_check.as_ref()?)));
    let Some((owner, (_, check))) = all.next() else {
        state.health_checks.remove(port);
        return Vec::new();
    };
    state.health_checks.insert(port, check.clone());
    let lost = all.map(|(name, _)| {
        let why = format!("its health check node port {port} belongs to service {owner}; it is not answered");
        problem(name, why)
    });
    lost.collect()
}
