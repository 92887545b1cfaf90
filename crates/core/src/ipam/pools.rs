//! Which pools are in force, and for whom.

use ipnet::IpNet;

use super::NetSet;
use crate::cluster::{Cluster, IpPool, Labels, PoolSpec};
use crate::service;

/// How a pool stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Addresses are handed out of it.
    Open,
    /// None are any more: its owner wants it so.
    Closed(&'static str),
    /// None are, though its owner wants it: why.
    Wrong(String),
}

/// One pool and how it stands.
#[derive(Debug, Clone)]
struct Judged<'a> {
    pool: &'a IpPool,
    standing: Standing,
}

/// All pools, the oldest first.
#[derive(Debug, Clone)]
pub struct Pools<'a>(Vec<Judged<'a>>);

impl<'a> Pools<'a> {
    /// Judges the pools of a cluster. Of two that overlap the older is in force; and ranges of nodes, of the cluster and
    /// of services come before all pools.
    pub fn judge(cluster: &'a Cluster) -> Self {
        let mut pools: Vec<&IpPool> = cluster.valid_ip_pools().collect();
        pools.sort_by_key(|pool| (pool.created, &pool.name));
        let mut occupied = occupied(cluster);
        let judged = pools.into_iter().map(|pool| Judged {
            pool,
            standing: judge(pool, &mut occupied),
        });
        Pools(judged.collect())
    }

    /// The pools with how they stand.
    pub fn iter(&self) -> impl Iterator<Item = (&'a IpPool, &Standing)> {
        self.0.iter().map(|judged| (judged.pool, &judged.standing))
    }

    /// The pools that addresses are handed out of on a node with these labels.
    pub(super) fn open_on(&self, node: &Labels) -> Vec<(&'a IpPool, &'a PoolSpec)> {
        let open = self.0.iter().filter(|judged| judged.standing == Standing::Open);
        let specs = open.filter_map(|judged| Some((judged.pool, judged.pool.spec.as_ref().ok()?)));
        specs
            .filter(|(_, spec)| spec.nodes.as_ref().is_none_or(|nodes| nodes.matches(node)))
            .collect()
    }
}

/// Of `open`, the pools for pods of a namespace with these labels (no labels for a container that is of no namespace):
/// those that choose it first, then those for all.
pub(super) fn for_namespace<'a>(
    open: &[(&'a IpPool, &'a PoolSpec)],
    namespace: Option<&Labels>,
) -> Vec<(&'a IpPool, &'a PoolSpec)> {
    let chosen = open.iter().filter(|(_, spec)| {
        let selector = spec.namespaces.as_ref();
        selector.is_some_and(|selector| namespace.is_some_and(|labels| selector.matches(labels)))
    });
    let for_all = open.iter().filter(|(_, spec)| spec.namespaces.is_none());
    chosen.chain(for_all).copied().collect()
}

/// What no pool may overlap, and what it is called.
pub(crate) fn occupied(cluster: &Cluster) -> NetSet<String> {
    let mut occupied = NetSet::default();
    for range in &cluster.config.cluster_cidrs {
        occupied.insert(*range, "the cluster's range".to_owned());
    }
    for range in service::ranges::compute(cluster, &mut Vec::new()) {
        occupied.insert(range, "the services' range".to_owned());
    }
    for node in cluster.valid_nodes() {
        for range in node.pod_ranges.iter() {
            occupied.insert(range, format!("the range of node {}", node.name));
        }
    }
    occupied
}

fn judge(pool: &IpPool, occupied: &mut NetSet<String>) -> Standing {
    let spec = match &pool.spec {
        Ok(spec) => spec,
        Err(why) => return Standing::Wrong(why.clone()),
    };
    let clash = spec
        .ranges
        .iter()
        .find_map(|range| Some((range, occupied.overlapping(*range)?)));
    if let Some((range, (other, whose))) = clash {
        let whose = match other == *range {
            true => whose.clone(),
            false => format!("{other}, {whose}"),
        };
        return Standing::Wrong(format!("spec.ranges: {range} overlaps {whose}"));
    }
    for range in &spec.ranges {
        occupied.insert(*range, format!("a range of the older pool {}", pool.name));
    }
    match (pool.deleting, spec.disabled) {
        (true, _) => Standing::Closed("it is being deleted"),
        (_, true) => Standing::Closed("it is disabled"),
        _ => Standing::Open,
    }
}

/// Single nets that do not overlap, from many that may.
pub(super) fn merged(nets: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
    IpNet::aggregate(&nets.collect())
}

/// Where pods may have addresses from but nodes' own ranges.
pub(crate) fn ranges_of_pools(cluster: &Cluster) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for (pool, standing) in Pools::judge(cluster).iter() {
        ranges.extend(pool.blocks.iter().map(|block| block.range));
        if !matches!(standing, Standing::Wrong(_)) {
            ranges.extend(pool.spec.iter().flat_map(|spec| spec.ranges.iter().copied()));
        }
    }
    ranges
}
