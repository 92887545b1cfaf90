//! Which address a pod gets: pools over the node's ranges, and nothing else. No clock, no disk.
//!
//! Addresses are handed out next-fit: the search goes on where the last one ended, so that an address which
//! was given back rests for as long as the range allows. Beyond that it rests for a cool-down, since clients of
//! the pod that had it may still send to it; only when nothing else is left is the address taken that has
//! rested longest.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;

/// No address is left in a pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no address is left in the pool {pool}: all {size} are in use")]
pub struct Exhausted {
    /// The pool's range.
    pub pool: IpNet,
    /// How many addresses the pool has for pods.
    pub size: u128,
}

/// An address cannot be marked as in use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the address {0} is in use already")]
pub struct Taken(pub IpAddr);

/// The addresses of one range.
#[derive(Debug, Clone)]
pub struct Pool {
    range: IpNet,
    first: u128,
    last: u128,
    /// Where the next search begins.
    cursor: u128,
    used: BTreeSet<u128>,
    /// Given back and still warm; the longest rested first. `warm` holds the same addresses.
    resting: VecDeque<(Duration, u128)>,
    warm: BTreeSet<u128>,
}

impl Pool {
    /// All addresses of a range that a pod may have.
    ///
    /// Left out are the network address, the gateway (the first host address, which bridges and other tools
    /// expect to be the node's) and, in IPv4, the broadcast address. In a range of one or two addresses every
    /// address is a host's (RFC 3021, RFC 6164).
    pub fn new(range: IpNet) -> Self {
        let range = range.trunc();
        let (network, end) = (number(range.network()), number(range.broadcast()));
        let (first, last) = match range {
            _ if end - network < 2 => (network, end),
            IpNet::V4(_) => (network + 2, end - 1),
            IpNet::V6(_) => (network + 2, end),
        };
        Pool {
            range,
            first,
            last,
            cursor: first,
            used: BTreeSet::new(),
            resting: VecDeque::new(),
            warm: BTreeSet::new(),
        }
    }

    /// The range.
    pub fn range(&self) -> IpNet {
        self.range
    }

    /// How many addresses it has for pods.
    pub fn size(&self) -> u128 {
        self.last - self.first + 1
    }

    /// How many of them are in use.
    pub fn in_use(&self) -> usize {
        self.used.len()
    }

    fn is_exhausted(&self) -> bool {
        self.used.len() as u128 == self.size()
    }

    /// The number of an address that this pool could hand out.
    fn holds(&self, address: IpAddr) -> Option<u128> {
        let same_family = address.is_ipv4() == self.range.addr().is_ipv4();
        let number = number(address);
        (same_family && (self.first..=self.last).contains(&number)).then_some(number)
    }

    fn allocate(&mut self, now: Duration, cool_down: Duration) -> Option<IpAddr> {
        while let Some((since, rested)) = self.resting.front().copied()
            && now.saturating_sub(since) >= cool_down
        {
            self.resting.pop_front();
            self.warm.remove(&rested);
        }
        let found = self
            .free_in(self.cursor, self.last)
            .or_else(|| self.free_in(self.first, self.cursor.saturating_sub(1)))
            .or_else(|| self.resting.pop_front().map(|(_, rested)| rested))?;
        self.warm.remove(&found);
        self.used.insert(found);
        self.pass(found);
        Some(address(self.range, found))
    }

    fn pass(&mut self, number: u128) {
        self.cursor = if number == self.last {
            self.first
        } else {
            number + 1
        };
    }

    /// The lowest address in from..=to that is neither in use nor warm.
    fn free_in(&self, from: u128, to: u128) -> Option<u128> {
        let mut used = self.used.range(from..).copied().peekable();
        let mut warm = self.warm.range(from..).copied().peekable();
        let mut candidate = from;
        while candidate <= to {
            if used.next_if_eq(&candidate).is_none() && warm.next_if_eq(&candidate).is_none() {
                return Some(candidate);
            }
            candidate = candidate.checked_add(1)?;
        }
        None
    }

    fn take(&mut self, number: u128) -> bool {
        if self.warm.remove(&number) {
            self.resting.retain(|(_, resting)| *resting != number);
        }
        self.used.insert(number)
    }

    fn release(&mut self, number: u128, now: Duration) -> bool {
        let was_used = self.used.remove(&number);
        if was_used {
            self.warm.insert(number);
            self.resting.push_back((now, number));
        }
        was_used
    }
}

/// Hands out a node's addresses: for every pod one of each family that the node has a range for.
#[derive(Debug, Clone)]
pub struct Allocator {
    cool_down: Duration,
    pools: Vec<Pool>,
    /// In use, but of no pool: the node's ranges have changed since.
    strangers: BTreeSet<IpAddr>,
}

impl Allocator {
    /// An allocator without ranges.
    pub fn new(cool_down: Duration) -> Self {
        Allocator {
            cool_down,
            pools: Vec::new(),
            strangers: BTreeSet::new(),
        }
    }

    /// The node has these ranges from now on. What is in use stays in use, within the ranges or not.
    pub fn set_ranges(&mut self, ranges: &[IpNet]) {
        let mut wanted: Vec<IpNet> = Vec::new();
        for range in ranges.iter().map(IpNet::trunc) {
            // Of overlapping ranges the first counts: an address must be of one pool only.
            if !wanted
                .iter()
                .any(|other| other.contains(&range) || range.contains(other))
            {
                wanted.push(range);
            }
        }
        let (kept, dropped): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pools)
            .into_iter()
            .partition(|pool| wanted.contains(&pool.range));
        for pool in dropped {
            self.strangers
                .extend(pool.used.iter().map(|number| address(pool.range, *number)));
        }
        let mut kept: Vec<Option<Pool>> = kept.into_iter().map(Some).collect();
        self.pools = wanted
            .into_iter()
            .map(|range| {
                kept.iter_mut()
                    .find(|pool| pool.as_ref().is_some_and(|pool| pool.range == range))
                    .and_then(Option::take)
                    .unwrap_or_else(|| Pool::new(range))
            })
            .collect();
        let strangers = std::mem::take(&mut self.strangers);
        for address in strangers {
            // Every one of them was in use once, so none is taken in a pool.
            self.mark(address);
        }
    }

    /// The pools, in the order of the ranges.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// Every address in use.
    pub fn in_use(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let of_pools = self
            .pools
            .iter()
            .flat_map(|pool| pool.used.iter().map(|number| address(pool.range, *number)));
        of_pools.chain(self.strangers.iter().copied())
    }

    /// Addresses for one pod, one of each family, IPv4 or IPv6 first as the ranges are. All or none.
    ///
    /// `now` is the time since any fixed moment.
    pub fn allocate(&mut self, now: Duration) -> Result<Vec<IpAddr>, Exhausted> {
        self.check()?;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for pool in &mut self.pools {
            let family_served = addresses.iter().any(|address| address.is_ipv4() == is_ipv4(pool));
            if !family_served {
                addresses.extend(pool.allocate(now, self.cool_down));
            }
        }
        Ok(addresses)
    }

    /// Whether a pod could be served.
    pub fn check(&self) -> Result<(), Exhausted> {
        for ipv4 in [true, false] {
            let mut of_family = self.pools.iter().filter(|pool| is_ipv4(pool) == ipv4).peekable();
            let Some(first) = of_family.peek().copied() else {
                continue;
            };
            if of_family.all(Pool::is_exhausted) {
                return Err(Exhausted {
                    pool: first.range,
                    size: first.size(),
                });
            }
        }
        Ok(())
    }

    /// Marks an address as in use, within the ranges or not.
    pub fn take(&mut self, address: IpAddr) -> Result<(), Taken> {
        if self.mark(address) {
            Ok(())
        } else {
            Err(Taken(address))
        }
    }

    fn mark(&mut self, address: IpAddr) -> bool {
        for pool in &mut self.pools {
            if let Some(number) = pool.holds(address) {
                return pool.take(number);
            }
        }
        self.strangers.insert(address)
    }

    /// Gives an address back. False if it was not in use.
    pub fn release(&mut self, address: IpAddr, now: Duration) -> bool {
        for pool in &mut self.pools {
            if let Some(number) = pool.holds(address) {
                return pool.release(number, now);
            }
        }
        self.strangers.remove(&address)
    }

    /// The search goes on behind this address: what a restart knows of the order in which they were given.
    pub fn resume_after(&mut self, address: IpAddr) {
        for pool in &mut self.pools {
            if let Some(number) = pool.holds(address) {
                pool.pass(number);
            }
        }
    }
}

fn is_ipv4(pool: &Pool) -> bool {
    pool.range.addr().is_ipv4()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(range: IpNet, number: u128) -> IpAddr {
    match range {
        // A number of an IPv4 pool has 32 bits.
        IpNet::V4(_) => Ipv4Addr::from_bits(number as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from_bits(number).into(),
    }
}

#[cfg(test)]
mod tests;
