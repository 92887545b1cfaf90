//! Hands out a node's addresses.
//!
//! Addresses are handed out next-fit: the search goes on where the last one ended, so that an address which
//! was given back rests for as long as the range allows. Beyond that it rests for a cool-down, since clients of
//! the pod that had it may still send to it; only when nothing else is left is the address taken that has
//! rested longest.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::bounds::{self, Bounds};
use super::{Addressing, HeldRange, PoolId};

/// One address that a pod is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// Any of a family, from the first of these pools that has one.
    Any {
        /// Whether an IPv4 address.
        ipv4: bool,
        /// The pools, in the order of preference.
        pools: Vec<PoolId>,
    },
    /// Any within these bounds.
    Within(Vec<Bounds>, Vec<PoolId>),
    /// This one.
    Exactly(IpAddr, Vec<PoolId>),
}

/// Why an address is not handed out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// All are in use.
    #[error("no address is left in {}: all {size} are in use", Named(.pool, .ranges))]
    Exhausted {
        /// The pool asked last.
        pool: PoolId,
        /// Its ranges on this node.
        ranges: Vec<IpNet>,
        /// How many addresses they have for pods.
        size: u128,
    },
    /// The pool has no block on this node yet, or none any more.
    #[error("this node holds no block of the pool {0}")]
    NoBlock(PoolId),
    /// Another pod has it.
    #[error("the address {0} is in use already")]
    Taken(IpAddr),
    /// It is of no range of this node that the pod may have an address from.
    #[error("the address {address} is in none of the ranges that this pod can have one from on this node: {}", List(.ranges))]
    Elsewhere {
        /// The address asked for.
        address: IpAddr,
        /// The ranges.
        ranges: Vec<IpNet>,
    },
    /// It is reserved, or a network's, gateway's or broadcast address.
    #[error(
        "the address {0} is never given to a pod: it is reserved, or is its range's network, gateway or broadcast address"
    )]
    Reserved(IpAddr),
    /// What was asked for has nothing in common with what the node has.
    #[error("the ranges asked for have no address in common with those that this pod can have one from on this node: {}", List(.0))]
    Disjoint(Vec<IpNet>),
}

struct Named<'a>(&'a PoolId, &'a [IpNet]);

impl std::fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            PoolId::Node => write!(f, "the node's range {}", List(self.1)),
            PoolId::Pool(name) => write!(f, "the pool {name} on this node ({})", List(self.1)),
        }
    }
}

struct List<'a>(&'a [IpNet]);

impl std::fmt::Display for List<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if index > 0 { ", " } else { "" })?;
        }
        if self.0.is_empty() {
            f.write_str("there is none")?;
        }
        Ok(())
    }
}

/// How much of a pool is in use on this node, in one IP family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The pool.
    pub pool: PoolId,
    /// Whether this is about its IPv4 addresses.
    pub ipv4: bool,
    /// Addresses for pods.
    pub size: u128,
    /// In use.
    pub leased: usize,
    /// Given back not long ago.
    pub cooling: usize,
}

#[derive(Debug, Clone)]
struct Range {
    held: HeldRange,
    /// Where the next search begins.
    cursor: IpAddr,
}

/// Hands out a node's addresses. What is in use stays in use, within the node's ranges or not.
#[derive(Debug, Clone)]
pub struct Allocator {
    cool_down: Duration,
    ranges: Vec<Range>,
    reserved: Vec<IpNet>,
    used: BTreeSet<IpAddr>,
    /// Given back and still warm; the longest rested first. `warm` holds the same addresses.
    resting: VecDeque<(Duration, IpAddr)>,
    warm: BTreeSet<IpAddr>,
}

impl Allocator {
    /// An allocator without ranges.
    pub fn new(cool_down: Duration) -> Self {
        Allocator {
            cool_down,
            ranges: Vec::new(),
            reserved: Vec::new(),
            used: BTreeSet::new(),
            resting: VecDeque::new(),
            warm: BTreeSet::new(),
        }
    }

    /// The node holds these ranges from now on.
    pub fn set(&mut self, addressing: &Addressing) {
        let before = std::mem::take(&mut self.ranges);
        self.reserved.clone_from(&addressing.reserved);
        self.ranges = addressing
            .ranges
            .iter()
            .map(|held| {
                let same = before.iter().find(|old| old.held.hosts == held.hosts);
                Range {
                    held: held.clone(),
                    cursor: same.map_or(held.hosts.first, |old| old.cursor),
                }
            })
            .collect();
    }

    /// The ranges it hands out of.
    pub fn ranges(&self) -> impl Iterator<Item = &HeldRange> {
        self.ranges.iter().map(|range| &range.held)
    }

    /// Every address in use.
    pub fn in_use(&self) -> &BTreeSet<IpAddr> {
        &self.used
    }

    /// Whether an address was given back and rests.
    pub fn is_resting(&self, address: IpAddr) -> bool {
        self.warm.contains(&address)
    }

    /// Addresses for one pod, one for each slot. All or none.
    ///
    /// `now` is the time since any fixed moment.
    pub fn allocate(&mut self, now: Duration, slots: &[Slot]) -> Result<Vec<IpAddr>, Refused> {
        self.wake(now);
        let mut addresses = Vec::new();
        for slot in slots {
            match self.one(slot) {
                Ok(address) => addresses.push(address),
                Err(refused) => {
                    // Nothing was handed out: they need no rest.
                    for address in addresses {
                        self.used.remove(&address);
                    }
                    return Err(refused);
                }
            }
        }
        Ok(addresses)
    }

    /// Whether a pod could have addresses for these slots.
    pub fn check(&self, slots: &[Slot]) -> Result<(), Refused> {
        self.clone().allocate(Duration::ZERO, slots).map(drop)
    }

    /// What has rested for long enough is as good as any.
    fn wake(&mut self, now: Duration) {
        while let Some((since, rested)) = self.resting.front().copied()
            && now.saturating_sub(since) >= self.cool_down
        {
            self.resting.pop_front();
            self.warm.remove(&rested);
        }
    }

    fn one(&mut self, slot: &Slot) -> Result<IpAddr, Refused> {
        let found = match slot {
            Slot::Any { ipv4, pools } => self.any(*ipv4, pools)?,
            Slot::Within(bounds, pools) => self.within(bounds, pools)?,
            Slot::Exactly(address, pools) => self.exactly(*address, pools)?,
        };
        self.take(found);
        Ok(found)
    }

    fn open<'a>(&'a self, pools: &'a [PoolId]) -> impl Iterator<Item = usize> + 'a {
        let all = self.ranges.iter().enumerate();
        let open = all.filter(|(_, range)| range.held.open && pools.contains(&range.held.pool));
        open.map(|(index, _)| index)
    }

    fn nets(&self, pools: &[PoolId]) -> Vec<IpNet> {
        self.open(pools)
            .map(|index| self.ranges[index].held.range)
            .collect()
    }

    fn any(&mut self, ipv4: bool, pools: &[PoolId]) -> Result<IpAddr, Refused> {
        let mut refused = None;
        for pool in pools {
            let of_pool = self.open(std::slice::from_ref(pool));
            let ranges: Vec<usize> = of_pool
                .filter(|index| self.ranges[*index].held.hosts.is_ipv4() == ipv4)
                .collect();
            if let Some(found) = self.search(&ranges) {
                return Ok(found);
            }
            let sizes = ranges
                .iter()
                .map(|index| self.ranges[*index].held.hosts.len_without(&self.reserved));
            refused = Some(match ranges.is_empty() {
                true => Refused::NoBlock(pool.clone()),
                false => Refused::Exhausted {
                    pool: pool.clone(),
                    size: sizes.sum(),
                    ranges: ranges
                        .iter()
                        .map(|index| self.ranges[*index].held.range)
                        .collect(),
                },
            });
        }
        Err(refused.unwrap_or(Refused::NoBlock(PoolId::Node)))
    }

    /// An address of these ranges: a rested one by next-fit, else the one that has rested longest.
    fn search(&mut self, ranges: &[usize]) -> Option<IpAddr> {
        for &index in ranges {
            let Range { held, cursor } = &self.ranges[index];
            let Bounds { first, last } = held.hosts;
            let found = self.free(*cursor, last).or_else(|| self.free(first, *cursor));
            if let Some(found) = found {
                self.ranges[index].pass(found);
                return Some(found);
            }
        }
        self.longest_rested(|address| {
            ranges
                .iter()
                .any(|index| self.ranges[*index].held.hosts.contains(address))
        })
    }

    fn longest_rested(&self, wanted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        let mut rested = self.resting.iter().map(|(_, address)| *address);
        rested.find(|address| wanted(*address) && !self.is_reserved(*address))
    }

    fn within(&mut self, bounds: &[Bounds], pools: &[PoolId]) -> Result<IpAddr, Refused> {
        let ranges: Vec<Bounds> = self
            .open(pools)
            .map(|index| self.ranges[index].held.hosts)
            .collect();
        let both = bounds
            .iter()
            .flat_map(|bounds| ranges.iter().filter_map(|range| range.intersect(bounds)));
        let both: Vec<Bounds> = both.collect();
        if both.is_empty() {
            return Err(Refused::Disjoint(self.nets(pools)));
        }
        let fresh = both
            .iter()
            .find_map(|bounds| self.free(bounds.first, bounds.last));
        let found = fresh
            .or_else(|| self.longest_rested(|address| both.iter().any(|bounds| bounds.contains(address))));
        found.ok_or_else(|| Refused::Exhausted {
            pool: pools.last().cloned().unwrap_or(PoolId::Node),
            ranges: self.nets(pools),
            size: both.iter().map(|bounds| bounds.len_without(&self.reserved)).sum(),
        })
    }

    /// Named addresses are given without a rest: it is the same pod, or one that takes its place.
    fn exactly(&self, address: IpAddr, pools: &[PoolId]) -> Result<IpAddr, Refused> {
        let range = self
            .open(pools)
            .map(|index| &self.ranges[index].held)
            .find(|held| held.range.contains(&address));
        let Some(range) = range else {
            return Err(Refused::Elsewhere {
                address,
                ranges: self.nets(pools),
            });
        };
        if !range.hosts.contains(address) || self.is_reserved(address) {
            return Err(Refused::Reserved(address));
        }
        if self.used.contains(&address) {
            return Err(Refused::Taken(address));
        }
        Ok(address)
    }

    fn is_reserved(&self, address: IpAddr) -> bool {
        self.reserved.iter().any(|net| net.contains(&address))
    }

    /// The lowest address in from..=to that is neither in use nor warm nor reserved.
    fn free(&self, from: IpAddr, to: IpAddr) -> Option<IpAddr> {
        if from > to {
            return None;
        }
        let mut used = self.used.range(from..=to).copied().peekable();
        let mut warm = self.warm.range(from..=to).copied().peekable();
        let mut candidate = from;
        while candidate <= to {
            if let Some(net) = self.reserved.iter().find(|net| net.contains(&candidate)) {
                candidate = bounds::next(net.broadcast())?;
                while used.next_if(|address| *address < candidate).is_some() {}
                while warm.next_if(|address| *address < candidate).is_some() {}
                continue;
            }
            if used.next_if_eq(&candidate).is_none() && warm.next_if_eq(&candidate).is_none() {
                return Some(candidate);
            }
            candidate = bounds::next(candidate)?;
        }
        None
    }

    /// Marks an address as in use, within the ranges or not. False if it was.
    pub fn take(&mut self, address: IpAddr) -> bool {
        if self.warm.remove(&address) {
            self.resting.retain(|(_, resting)| *resting != address);
        }
        self.used.insert(address)
    }

    /// Gives an address back, to rest. False if it was not in use.
    pub fn release(&mut self, address: IpAddr, now: Duration) -> bool {
        let was_used = self.used.remove(&address);
        if was_used && self.warm.insert(address) {
            self.resting.push_back((now, address));
        }
        was_used
    }

    /// Gives back an address that was never in use by a pod.
    pub fn take_back(&mut self, address: IpAddr) {
        self.used.remove(&address);
    }

    /// What a restart knows of the addresses that rest: `since` when. To be told in the order of time.
    pub fn rest(&mut self, address: IpAddr, since: Duration) {
        if !self.used.contains(&address) && self.warm.insert(address) {
            self.resting.push_back((since, address));
        }
    }

    /// The search goes on behind this address: what a restart knows of the order in which they were given.
    pub fn resume_after(&mut self, address: IpAddr) {
        for range in &mut self.ranges {
            if range.held.hosts.contains(address) {
                range.pass(address);
            }
        }
    }

    /// How much of every pool is in use, by family.
    pub fn usage(&self, now: Duration) -> Vec<Usage> {
        let mut all: Vec<Usage> = Vec::new();
        for Range { held, .. } in &self.ranges {
            let Bounds { first, last } = held.hosts;
            let of_range = all
                .iter_mut()
                .find(|usage| usage.pool == held.pool && usage.ipv4 == held.hosts.is_ipv4());
            let resting = self.resting.iter().filter(|(since, address)| {
                held.hosts.contains(*address) && now.saturating_sub(*since) < self.cool_down
            });
            let (size, leased, cooling) = (
                held.hosts.len_without(&self.reserved),
                self.used.range(first..=last).count(),
                resting.count(),
            );
            match of_range {
                Some(usage) => {
                    usage.size = usage.size.saturating_add(size);
                    usage.leased += leased;
                    usage.cooling += cooling;
                }
                None => all.push(Usage {
                    pool: held.pool.clone(),
                    ipv4: held.hosts.is_ipv4(),
                    size,
                    leased,
                    cooling,
                }),
            }
        }
        all
    }
}

impl Range {
    fn pass(&mut self, address: IpAddr) {
        self.cursor = match bounds::next(address) {
            Some(next) if next <= self.held.hosts.last => next,
            _ => self.held.hosts.first,
        };
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
