//! Which pools are in force, and for whom.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::Claim;
use crate::cluster::{Cluster, Labels, LoadBalancerPool, LoadBalancerPoolSpec};
use crate::ipam::{self, Bounds, NetSet, Standing};

/// All pools of load balancers' addresses, the oldest first.
#[derive(Debug, Clone)]
pub struct Pools<'a>(Vec<(&'a LoadBalancerPool, Standing)>);

impl<'a> Pools<'a> {
    /// Judges the pools of a cluster. Of two that overlap the older is in force; and where pods and cluster IPs have their
    /// addresses from comes before all of them.
    pub fn judge(cluster: &'a Cluster) -> Self {
        let mut pools: Vec<_> = cluster.valid_load_balancer_pools().collect();
        pools.sort_by_key(|pool| (pool.created, &pool.name));
        let mut occupied = occupied(cluster);
        let judged = pools.into_iter().map(|pool| (pool, judge(pool, &mut occupied)));
        Pools(judged.collect())
    }

    /// The pools with how they stand.
    pub fn iter(&self) -> impl Iterator<Item = &(&'a LoadBalancerPool, Standing)> {
        self.0.iter()
    }

    /// Those whose addresses services have: they are given, or were.
    pub(super) fn in_force(&self) -> impl Iterator<Item = (&'a str, &'a LoadBalancerPoolSpec)> {
        let right = self
            .0
            .iter()
            .filter(|(_, standing)| !matches!(standing, Standing::Wrong(_)));
        right.filter_map(|(pool, _)| Some((pool.name.as_str(), pool.spec.as_ref().ok()?)))
    }

    /// The one in force that has this address.
    pub fn of(&self, address: IpAddr) -> Option<(&'a str, &'a LoadBalancerPoolSpec)> {
        self.in_force().find(|(_, spec)| spec.contains(address))
    }

    /// Those that a service gets addresses from that it does not ask for: those that choose it first, then those for all;
    /// or the one that it names.
    pub(super) fn open_for(
        &self,
        claim: &Claim,
        namespace: Option<&Labels>,
        named: Option<&str>,
    ) -> Vec<(&'a str, &'a LoadBalancerPoolSpec)> {
        let open = self.in_force().filter(|(name, spec)| {
            let asked = named.map_or(!spec.on_request, |named| named == *name);
            asked && !spec.disabled && spec.selects(&claim.labels, namespace)
        });
        let mut open: Vec<_> = open.collect();
        open.sort_by_key(|(_, spec)| !spec.is_choosy());
        open
    }
}

/// What no pool may overlap, and what it is called: what is no IP pool's either, and those.
fn occupied(cluster: &Cluster) -> NetSet<String> {
    let mut occupied = ipam::occupied(cluster);
    for pool in cluster.valid_ip_pools() {
        for range in pool.spec.iter().flat_map(|spec| &spec.ranges) {
            occupied.insert(*range, format!("a range of the IPPool {}", pool.name));
        }
    }
    occupied
}

fn judge(pool: &LoadBalancerPool, occupied: &mut NetSet<String>) -> Standing {
    let spec = match &pool.spec {
        Ok(spec) => spec,
        Err(why) => return Standing::Wrong(why.clone()),
    };
    let nets: Vec<IpNet> = spec.ranges.iter().flat_map(nets).collect();
    let clash = nets
        .iter()
        .find_map(|net| Some((net, occupied.overlapping(*net)?)));
    if let Some((net, (other, whose))) = clash {
        return Standing::Wrong(format!("spec.ranges: {net} overlaps {other}, {whose}"));
    }
    for net in nets {
        occupied.insert(net, format!("of the older LoadBalancerPool {}", pool.name));
    }
    match spec.disabled {
        true => Standing::Closed("it is disabled"),
        false => Standing::Open,
    }
}

/// The prefixes that make up a range.
fn nets(range: &Bounds) -> Vec<IpNet> {
    match (range.first, range.last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
        (IpAddr::V6(first), IpAddr::V6(last)) => Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect(),
        // Both ends are of one family.
        _ => Vec::new(),
    }
}
