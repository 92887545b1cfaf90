//! What one node may hand out, and to whom.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;

use super::NetSet;
use super::bounds::{Bounds, hosts};
use super::pools::{self, Pools, Standing};
use crate::cluster::{Cluster, Family, IpPool, Node, NodeName, ObjectRef, PoolSpec};
use crate::state::Problem;

/// Where an address comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolId {
    /// The node's own ranges (`Node.spec.podCIDRs`).
    Node,
    /// An IP pool.
    Pool(String),
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolId::Node => f.write_str("node"),
            PoolId::Pool(name) => f.write_str(name),
        }
    }
}

/// A range that this node hands out of: its own, or a block of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldRange {
    /// What it is of.
    pub pool: PoolId,
    /// The range.
    pub range: IpNet,
    /// The addresses of it that a pod may have.
    pub hosts: Bounds,
    /// Whether new addresses come from it; else it is held only as long as pods live in it.
    pub open: bool,
}

impl HeldRange {
    /// A node's own range.
    pub fn of_node(range: IpNet) -> Self {
        let range = range.trunc();
        HeldRange {
            pool: PoolId::Node,
            range,
            hosts: hosts(range),
            open: true,
        }
    }
}

/// For every family of the node, where a pod's address of it comes from, in the order of preference.
pub type Sources = Vec<(Family, Vec<PoolId>)>;

/// What one node may hand out, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addressing {
    /// The ranges this node holds.
    pub ranges: Vec<HeldRange>,
    /// Never handed out; none overlaps another.
    pub reserved: Vec<IpNet>,
    /// By namespace, where pools make a difference between namespaces.
    namespaces: BTreeMap<String, Sources>,
    /// For all other containers.
    others: Sources,
    /// Whether pools make a difference between namespaces.
    by_namespace: bool,
}

impl Addressing {
    /// A node that has ranges of its own, and no pools.
    pub fn of_node(ranges: &[IpNet]) -> Self {
        let mut kept: NetSet<()> = NetSet::default();
        // Of overlapping ranges the first counts: an address must be of one range only.
        let ranges: Vec<HeldRange> = ranges
            .iter()
            .filter(|range| kept.insert(**range, ()))
            .map(|range| HeldRange::of_node(*range))
            .collect();
        let mut others: Sources = Vec::new();
        for range in &ranges {
            let family = Family::of(range.range.addr());
            if !others.iter().any(|(other, _)| *other == family) {
                others.push((family, vec![PoolId::Node]));
            }
        }
        Addressing {
            ranges,
            others,
            ..Addressing::default()
        }
    }

    /// The node's own ranges.
    pub fn node_ranges(&self) -> Vec<IpNet> {
        let own = self.ranges.iter().filter(|range| range.pool == PoolId::Node);
        own.map(|range| range.range).collect()
    }

    /// The same, with nothing handed out of these ranges.
    pub fn reserving(self, reserved: &[IpNet]) -> Self {
        Addressing {
            reserved: pools::merged(reserved.iter().copied()),
            ..self
        }
    }

    /// Where the addresses of a pod of this namespace come from; `None` if the namespace is not known yet and it
    /// matters. A container that is of no namespace has an empty one.
    pub fn sources(&self, namespace: &str) -> Option<&Sources> {
        if !self.by_namespace || namespace.is_empty() {
            return Some(&self.others);
        }
        self.namespaces.get(namespace)
    }

    /// Every set of sources that some pod may have.
    pub fn all_sources(&self) -> impl Iterator<Item = &Sources> {
        std::iter::once(&self.others).chain(self.namespaces.values())
    }
}

/// The addressing part of [`crate::compute`].
pub(crate) fn compute(cluster: &Cluster, me: &NodeName, problems: &mut Vec<Problem>) -> Addressing {
    let pools = Pools::judge(cluster);
    for (pool, standing) in pools.iter() {
        let wrong = match standing {
            Standing::Wrong(why) => Some(why.clone()),
            _ => None,
        };
        problems.extend(
            wrong
                .into_iter()
                .chain(pool.torn.iter().cloned())
                .map(|why| Problem {
                    object: ObjectRef::pool(&pool.name),
                    why,
                }),
        );
    }
    let Some(own) = cluster.node(me) else {
        return Addressing::default();
    };
    let mut addressing = Addressing::of_node(&own.pod_ranges.iter().collect::<Vec<_>>());
    let open = pools.open_on(&own.labels);
    addressing.ranges.extend(blocks_of(own, &pools, &open));
    let specs = pools.iter().filter_map(|(pool, _)| pool.spec.as_ref().ok());
    addressing.reserved = pools::merged(specs.flat_map(|spec| spec.reserved.iter().copied()));
    let families: Vec<Family> = addressing.others.iter().map(|(family, _)| *family).collect();
    let sources = |labels| sources(&families, &pools::for_namespace(&open, labels));
    addressing.others = sources(None);
    addressing.by_namespace = open.iter().any(|(_, spec)| spec.namespaces.is_some());
    if addressing.by_namespace {
        let known = cluster.namespaces.iter();
        addressing.namespaces = known
            .map(|(name, namespace)| (name.clone(), sources(Some(namespace.labels()))))
            .collect();
    }
    addressing
}

fn sources(families: &[Family], pools: &[(&IpPool, &PoolSpec)]) -> Sources {
    let of_family = |family: Family| {
        let has = |spec: &PoolSpec| spec.ranges.iter().any(|range| Family::of(range.addr()) == family);
        let mut ids: Vec<PoolId> = pools
            .iter()
            .filter(|(_, spec)| has(spec))
            .map(|(pool, _)| PoolId::Pool(pool.name.clone()))
            .collect();
        if ids.is_empty() {
            ids.push(PoolId::Node);
        }
        (family, ids)
    };
    families.iter().copied().map(of_family).collect()
}

/// The blocks that a node holds, less those that overlap what somebody else holds.
fn blocks_of(own: &Node, pools: &Pools<'_>, open: &[(&IpPool, &PoolSpec)]) -> Vec<HeldRange> {
    let mut held: NetSet<()> = NetSet::default();
    for range in own.pod_ranges.iter() {
        held.insert(range, ());
    }
    let mut blocks = Vec::new();
    for (pool, _) in pools.iter() {
        for block in &pool.blocks {
            let free = held.insert(block.range, ());
            if !free || block.node != own.name {
                continue;
            }
            let spec = open
                .iter()
                .find(|(other, _)| other.name == pool.name)
                .map(|(_, spec)| *spec);
            let usable = spec.and_then(|spec| usable(spec, block.range));
            blocks.push(HeldRange {
                pool: PoolId::Pool(pool.name.clone()),
                range: block.range,
                hosts: usable.unwrap_or_else(|| hosts(block.range)),
                open: usable.is_some(),
            });
        }
    }
    blocks
}

/// The addresses of a block that a pod may have: those that a pod may have in the pool's range. A block within is no
/// network of its own, so that its first and last address are as good as any.
pub(super) fn usable(spec: &PoolSpec, block: IpNet) -> Option<Bounds> {
    let range = spec.ranges.iter().find(|range| range.contains(&block))?;
    hosts(*range).intersect(&Bounds::of(block))
}

impl fmt::Display for Addressing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = self.ranges.iter().filter(|range| range.pool != PoolId::Node);
        for HeldRange {
            pool, range, open, ..
        } in blocks
        {
            let closed = if *open { "" } else { " closed" };
            writeln!(f, "block {range} of pool {pool}{closed}")?;
        }
        Ok(())
    }
}
