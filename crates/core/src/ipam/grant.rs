//! Which node holds which block of a pool. Decided in one place for the whole cluster, and written into the pools'
//! status with the version that was read.
//!
//! A node gets as many blocks as its pods need; it gives them back itself, since only it knows that nothing lives in
//! them any more. Blocks of a node that is gone come back after a grace period: its pods may still run.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::NetSet;
use super::addressing::usable;
use super::bounds::Bounds;
use super::pools::{self, Pools, Standing};
use crate::cluster::{Block, Cluster, Family, IpPool, NodeName, PoolSpec};

/// Most blocks that are looked at in one range for a free one.
const MOST: u32 = 1 << 16;

/// A pod that needs addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The node it is bound to.
    pub node: NodeName,
    /// Its namespace.
    pub namespace: String,
    /// The addresses it asks for by name.
    pub addresses: Vec<IpAddr>,
}

/// What a pool's status is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The pool.
    pub pool: String,
    /// Who holds what.
    pub blocks: Vec<Block>,
    /// How it stands.
    pub standing: Standing,
    /// The nodes whose pods need more than is left.
    pub wanting: Vec<NodeName>,
}

/// Who is to hold what, given what is held now.
///
/// `expired` says of the time since when a node is gone whether the grace period is over; `now` is the time to note for
/// a node that is gone since.
pub fn grant(cluster: &Cluster, claims: &[Claim], now: &str, expired: impl Fn(&str) -> bool) -> Vec<Grant> {
    let pools = Pools::judge(cluster);
    let mut book = Book::open(cluster, &pools, now, expired);
    let mut by_node: BTreeMap<&NodeName, Vec<&Claim>> = BTreeMap::new();
    for claim in claims {
        by_node.entry(&claim.node).or_default().push(claim);
    }
    for (name, claims) in by_node {
        let Some(node) = cluster.node(name) else { continue };
        let open = pools.open_on(&node.labels);
        if open.is_empty() {
            continue;
        }
        let mut served: BTreeMap<&str, Vec<&Claim>> = BTreeMap::new();
        for claim in claims {
            served.entry(&claim.namespace).or_default().push(claim);
        }
        let families: Vec<Family> = node
            .pod_ranges
            .iter()
            .map(|range| Family::of(range.addr()))
            .collect();
        let mut need = BTreeMap::new();
        for (namespace, claims) in served {
            let Some(known) = cluster.namespaces.get(namespace) else {
                continue;
            };
            let sources = pools::for_namespace(&open, Some(known.labels()));
            for family in &families {
                book.serve(name, *family, &sources, &claims, &mut need);
            }
        }
    }
    book.close(&pools)
}

/// Who holds what, while it is being decided.
struct Book {
    held: BTreeMap<String, Vec<Block>>,
    /// All that is held, of any pool, and the nodes' own ranges.
    taken: NetSet<()>,
    wanting: BTreeMap<String, Vec<NodeName>>,
    reserved: Vec<IpNet>,
}

impl Book {
    fn open(cluster: &Cluster, pools: &Pools<'_>, now: &str, expired: impl Fn(&str) -> bool) -> Self {
        let mut taken = NetSet::default();
        for range in cluster.valid_nodes().flat_map(|node| node.pod_ranges.iter()) {
            taken.insert(range, ());
        }
        let mut held: BTreeMap<String, Vec<Block>> = BTreeMap::new();
        for (pool, _) in pools.iter() {
            let blocks = held.entry(pool.name.clone()).or_default();
            for block in &pool.blocks {
                let exists = cluster.nodes.contains_key(&block.node);
                if !exists && block.gone.as_deref().is_some_and(&expired) {
                    continue;
                }
                // What overlaps stays written until its node gives it back: pods may live there.
                taken.insert(block.range, ());
                let gone = (!exists).then(|| block.gone.clone().unwrap_or_else(|| now.to_owned()));
                blocks.push(Block {
                    gone,
                    ..block.clone()
                });
            }
        }
        let specs = pools.iter().filter_map(|(pool, _)| pool.spec.as_ref().ok());
        let reserved = pools::merged(specs.flat_map(|spec| spec.reserved.iter().copied()));
        Book {
            held,
            taken,
            wanting: BTreeMap::new(),
            reserved,
        }
    }

    /// Sees that a node can serve these claims: the first of the pools as far as it goes, then the next.
    fn serve<'a>(
        &mut self,
        node: &NodeName,
        family: Family,
        sources: &[(&'a IpPool, &'a PoolSpec)],
        claims: &[&Claim],
        need: &mut BTreeMap<(&'a str, Family), u128>,
    ) {
        let of_family = |spec: &PoolSpec| spec.ranges.iter().any(|range| Family::of(range.addr()) == family);
        let sources: Vec<_> = sources
            .iter()
            .filter(|(_, spec)| of_family(spec))
            .copied()
            .collect();
        let mut left = 0;
        for claim in claims {
            let by_name = claim
                .addresses
                .iter()
                .find(|address| Family::of(**address) == family);
            match by_name {
                Some(address) => {
                    if let Some(pool) = self.cut_around(node, &sources, *address) {
                        *need.entry((pool, family)).or_default() += 1;
                    }
                }
                None => left += 1,
            }
        }
        for (pool, spec) in &sources {
            let needed = need.entry((pool.name.as_str(), family)).or_default();
            *needed += left;
            let capacity = self.cut(node, family, pool, spec, *needed);
            left = needed.saturating_sub(capacity);
            *needed -= left;
            if left == 0 {
                return;
            }
        }
        if left > 0
            && let Some((last, _)) = sources.last()
        {
            let wanting = self.wanting.entry(last.name.clone()).or_default();
            if wanting.last() != Some(node) {
                wanting.push(node.clone());
            }
        }
    }

    /// Cuts blocks until the node's hold so many addresses, as far as there are any. Returns how many they hold.
    fn cut(&mut self, node: &NodeName, family: Family, pool: &IpPool, spec: &PoolSpec, needed: u128) -> u128 {
        let of_node = self.held.get(&pool.name).into_iter().flatten();
        let of_node = of_node.filter(|block| block.node == *node && Family::of(block.range.addr()) == family);
        let mut capacity: u128 = of_node.map(|block| self.capacity(spec, block.range)).sum();
        while capacity < needed {
            let Some(range) = self.free(family, spec) else {
                break;
            };
            self.give(node, pool, range);
            capacity += self.capacity(spec, range);
        }
        capacity
    }

    fn capacity(&self, spec: &PoolSpec, block: IpNet) -> u128 {
        usable(spec, block).map_or(0, |hosts: Bounds| hosts.len_without(&self.reserved))
    }

    /// The lowest block that nobody holds and that has an address for a pod.
    fn free(&self, family: Family, spec: &PoolSpec) -> Option<IpNet> {
        let ranges = spec
            .ranges
            .iter()
            .filter(|range| Family::of(range.addr()) == family);
        ranges
            .filter_map(|range| Some(range.subnets(spec.block_length(*range)).ok()?.take(MOST as usize)))
            .flatten()
            .find(|block| self.taken.overlapping(*block).is_none() && self.capacity(spec, *block) > 0)
    }

    /// Gives the node the block that has this address, if it is a pool's and nobody holds it. Returns
    /// the pool, if the node holds that block now.
    fn cut_around<'a>(
        &mut self,
        node: &NodeName,
        sources: &[(&'a IpPool, &'a PoolSpec)],
        address: IpAddr,
    ) -> Option<&'a str> {
        let (pool, block) = sources.iter().find_map(|(pool, spec)| {
            let range = spec.ranges.iter().find(|range| range.contains(&address))?;
            let block = IpNet::new(address, spec.block_length(*range)).ok()?.trunc();
            Some((*pool, block))
        })?;
        if self.taken.overlapping(block).is_none() {
            self.give(node, pool, block);
        }
        let held = self.held.get(&pool.name)?;
        let ours = held.iter().any(|held| held.range == block && held.node == *node);
        ours.then_some(&pool.name)
    }

    fn give(&mut self, node: &NodeName, pool: &IpPool, range: IpNet) {
        self.taken.insert(range, ());
        self.held.entry(pool.name.clone()).or_default().push(Block {
            range,
            node: node.clone(),
            gone: None,
        });
    }

    fn close(mut self, pools: &Pools<'_>) -> Vec<Grant> {
        let grants = pools.iter().map(|(pool, standing)| {
            let mut blocks = self.held.remove(&pool.name).unwrap_or_default();
            blocks.sort();
            Grant {
                pool: pool.name.clone(),
                blocks,
                standing: standing.clone(),
                wanting: self.wanting.remove(&pool.name).unwrap_or_default(),
            }
        });
        grants.collect()
    }
}
