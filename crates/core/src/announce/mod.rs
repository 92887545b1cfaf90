//! Load balancers' addresses on the local network: who answers for them by ARP and NDP.
//!
//! - [`compute`] says from the objects alone which addresses are announced, where, and which nodes may have each. Whatever
//!   announces addresses starts from this: neighbours of a link here, routers elsewhere.
//! - [`speaker()`] chooses one of the nodes that may and are there.
//! - [`Announcer`] is a node's part on one link: frames and time in, frames out.
//!
//! Which nodes are there is known from their heartbeats on that very link, and from nothing else: a node that the API
//! server takes for healthy may have lost its link, and the other way round.

mod announcer;
mod speaker;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::{
    AddressFamily, Cluster, ExternalPolicy, Family, LoadBalancerPoolSpec, NodeName, ObjectName, Service,
    is_chosen,
};
use crate::load_balancer::Pools;
use crate::service::of_machines;
pub use announcer::{Announcer, BEAT, Candidates, DEAD};
pub use speaker::{Standing, speaker};
pub use wire::{ALL_AGENTS, ETHERTYPE, Mac, solicited_node};

/// The label that takes a node out of load balancing (well known to Kubernetes).
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Which addresses are announced, and who may have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announcements {
    /// By address.
    pub addresses: BTreeMap<IpAddr, Announcement>,
    /// The address of every node, by which its heartbeats are told from those of its namesake in another cluster. Empty
    /// where nothing is announced.
    pub nodes: Arc<BTreeMap<NodeName, IpAddr>>,
}

/// How one address is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The nodes that can serve it.
    pub nodes: Arc<BTreeSet<NodeName>>,
    /// The links it is announced on, as its pool names them.
    links: Arc<[String]>,
}

impl Announcement {
    /// Whether it is announced on a link of this name, where `underlay` is the link between nodes.
    pub fn is_on(&self, link: &str, underlay: bool) -> bool {
        is_chosen(&self.links, link, underlay)
    }
}

/// What is announced, given the objects that exist now.
pub fn compute(cluster: &Cluster) -> Announcements {
    if cluster.load_balancer_pools.is_empty() {
        return Announcements::default();
    }
    let pools = Pools::judge(cluster);
    // Whoever answers for one of these takes it from that machine.
    let machines = of_machines(cluster, |address| pools.of(address).is_some());
    let mut terms: BTreeMap<&str, Announcement> = BTreeMap::new();
    let mut addresses: BTreeMap<IpAddr, Announcement> = BTreeMap::new();
    let services = cluster
        .valid_services()
        .filter(|(_, service)| service.is_carried());
    for (name, service) in services {
        for address in announced(service).filter(|address| !machines.contains_key(address)) {
            let Some((pool, spec)) = pools.of(address).filter(|(_, spec)| spec.on_local_network) else {
                continue;
            };
            let terms = terms.entry(pool).or_insert_with(|| of_pool(cluster, spec));
            let mut nodes = Arc::clone(&terms.nodes);
            if service.external.policy == ExternalPolicy::Local {
                let serving = serving(cluster, name, Family::of(address));
                nodes = Arc::new(nodes.intersection(&serving).cloned().collect());
            }
            let links = Arc::clone(&terms.links);
            addresses
                .entry(address)
                .and_modify(|shared| {
                    // Whoever has the address gets the packets of all that share it.
                    if shared.nodes != nodes {
                        shared.nodes = Arc::new(shared.nodes.intersection(&nodes).cloned().collect());
                    }
                })
                .or_insert(Announcement { nodes, links });
        }
    }
    let nodes = match addresses.is_empty() {
        true => BTreeMap::new(),
        false => cluster
            .valid_nodes()
            .filter_map(|node| Some((node.name.clone(), node.address(node.primary?)?)))
            .collect(),
    };
    Announcements {
        addresses,
        nodes: Arc::new(nodes),
    }
}

/// The load balancer's addresses of a service that it serves.
fn announced(service: &Service) -> impl Iterator<Item = IpAddr> {
    let families: Vec<Family> = service
        .cluster_ips()
        .iter()
        .map(|address| Family::of(*address))
        .collect();
    let addresses = service.external.load_balancer.iter().copied();
    addresses.filter(move |address| families.contains(&Family::of(*address)))
}

/// What holds for all addresses of a pool. Whether a node is Ready is not asked: its heartbeats tell.
fn of_pool(cluster: &Cluster, spec: &LoadBalancerPoolSpec) -> Announcement {
    let nodes = cluster.valid_nodes().filter(|node| {
        let chosen = spec
            .nodes
            .as_ref()
            .is_none_or(|selector| selector.matches(&node.labels));
        chosen && !node.labels.contains_key(EXCLUDED)
    });
    Announcement {
        nodes: Arc::new(nodes.map(|node| node.name.clone()).collect()),
        links: spec.links.clone().into(),
    }
}

/// The nodes with endpoints that serve under `externalTrafficPolicy: Local`: ready ones, and where there is none anywhere,
/// those that serve until they end.
fn serving(cluster: &Cluster, name: &ObjectName, family: Family) -> BTreeSet<NodeName> {
    let on = |ready: bool| -> BTreeSet<NodeName> {
        let slices = cluster.slices.of(name);
        let of_family = slices.filter(|slice| slice.family() == AddressFamily::Ip(family));
        let serving = of_family
            .flat_map(|slice| slice.endpoints())
            .filter(|endpoint| match ready {
                true => endpoint.ready,
                false => endpoint.serving && endpoint.terminating,
            });
        serving.filter_map(|endpoint| endpoint.node.clone()).collect()
    };
    let ready = on(true);
    if ready.is_empty() { on(false) } else { ready }
}

impl fmt::Display for Announcements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (address, announcement) in &self.addresses {
            write!(f, "announce {address} on")?;
            if announcement.links.is_empty() {
                f.write_str(" the link between nodes")?;
            }
            announcement
                .links
                .iter()
                .try_for_each(|link| write!(f, " {link}"))?;
            f.write_str(", by one of")?;
            announcement
                .nodes
                .iter()
                .try_for_each(|node| write!(f, " {node}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
