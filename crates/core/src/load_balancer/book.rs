//! Who has which address, while it is being decided.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Apart, Claim, PoolUse, Pools, Usage};
use crate::cluster::{Cluster, Family, LoadBalancerPoolSpec, ObjectName};
use crate::ipam::{Bounds, next};
use crate::service::{Owner, of_machines};

/// Who has which address.
pub(super) struct Book<'a> {
    pub(super) pools: Pools<'a>,
    holders: BTreeMap<IpAddr, Vec<&'a Claim>>,
    had: BTreeMap<&'a ObjectName, Vec<IpAddr>>,
    /// The addresses of services that would share them, by their key.
    shared: BTreeMap<&'a str, BTreeSet<IpAddr>>,
    /// Addresses of nodes and of the API server, which no service gets.
    machines: BTreeMap<IpAddr, Owner>,
    /// Where to look on for a free address: below, there is none.
    cursors: BTreeMap<Bounds, IpAddr>,
}

impl<'a> Book<'a> {
    pub(super) fn open(cluster: &'a Cluster) -> Self {
        let pools = Pools::judge(cluster);
        let machines = of_machines(cluster, |address| pools.of(address).is_some());
        Book {
            pools,
            holders: BTreeMap::new(),
            had: BTreeMap::new(),
            shared: BTreeMap::new(),
            machines,
            cursors: BTreeMap::new(),
        }
    }

    /// Which machine has the address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Owner> {
        self.machines.get(&address)
    }

    /// Who keeps a service from an address, and why.
    pub(super) fn against(&self, claim: &Claim, address: IpAddr) -> Option<(&'a ObjectName, Apart)> {
        let holders = self.holders.get(&address).into_iter().flatten();
        let apart =
            holders.filter_map(|holder| Some((holder.created, &holder.service, claim.apart(holder)?)));
        // The oldest, in whichever order they came by it.
        apart.min().map(|(_, service, apart)| (service, apart))
    }

    /// What a service has.
    pub(super) fn has(&self, claim: &Claim) -> &[IpAddr] {
        self.had.get(&claim.service).map_or(&[], Vec::as_slice)
    }

    /// What a service has in one family.
    pub(super) fn has_of(&self, claim: &Claim, family: Family) -> Option<IpAddr> {
        let mut has = self.has(claim).iter().copied();
        has.find(|address| Family::of(*address) == family)
    }

    pub(super) fn give(&mut self, claim: &'a Claim, address: IpAddr) {
        self.holders.entry(address).or_default().push(claim);
        self.had.entry(&claim.service).or_default().push(address);
        if let Some(key) = &claim.sharing_key {
            self.shared.entry(key).or_default().insert(address);
        }
    }

    /// The lowest address of a pool that others have who share it with this service.
    pub(super) fn to_share(
        &self,
        claim: &Claim,
        family: Family,
        spec: &LoadBalancerPoolSpec,
    ) -> Option<IpAddr> {
        let addresses = self.shared.get(claim.sharing_key.as_deref()?)?.iter().copied();
        let mut fitting =
            addresses.filter(|address| Family::of(*address) == family && spec.contains(*address));
        fitting.find(|address| self.against(claim, *address).is_none())
    }

    /// The lowest address of a pool that nobody has. To be asked when nothing is taken away from anybody any more.
    pub(super) fn free(&mut self, family: Family, spec: &LoadBalancerPoolSpec) -> Option<IpAddr> {
        spec.of_family(family).find_map(|range| {
            let mut address = self.cursors.get(range).copied().or(Some(range.first));
            while let Some(candidate) = address.filter(|candidate| range.contains(*candidate)) {
                self.cursors.insert(*range, candidate);
                let taken = self.holders.contains_key(&candidate);
                if !taken && !spec.avoids(candidate) && !self.machines.contains_key(&candidate) {
                    return Some(candidate);
                }
                address = next(candidate);
            }
            None
        })
    }

    /// How the pools are used.
    pub(super) fn uses(&self) -> BTreeMap<String, PoolUse> {
        let used = self.pools.iter().map(|(pool, standing)| {
            let usage = |family| {
                let spec = pool.spec.as_ref().ok();
                spec.map_or(Usage::default(), |spec| self.usage(family, spec))
            };
            let used = PoolUse {
                standing: standing.clone(),
                v4: usage(Family::V4),
                v6: usage(Family::V6),
            };
            (pool.name.clone(), used)
        });
        used.collect()
    }

    fn usage(&self, family: Family, spec: &LoadBalancerPoolSpec) -> Usage {
        let (mut assigned, mut size) = (0, 0);
        for range in spec.of_family(family) {
            let within = self.holders.range(range.first..=range.last);
            assigned += within.filter(|(address, _)| spec.contains(**address)).count() as u128;
            let machines = self.machines.range(range.first..=range.last);
            let machines = machines.filter(|(address, _)| spec.contains(**address)).count() as u128;
            size += (range.len() - avoided(spec, range)).saturating_sub(machines);
        }
        Usage {
            assigned,
            available: size.saturating_sub(assigned),
        }
    }
}

/// How many addresses of a range end in .0 or .255 and are left out for it.
fn avoided(spec: &LoadBalancerPoolSpec, range: &Bounds) -> u128 {
    let (IpAddr::V4(first), IpAddr::V4(last)) = (range.first, range.last) else {
        return 0;
    };
    if !spec.avoid_first_and_last {
        return 0;
    }
    let (first, last) = (u64::from(first.to_bits()), u64::from(last.to_bits()));
    // How many numbers below `end` leave this rest when divided by 256.
    let below = |end: u64, rest: u64| (end + 255 - rest) / 256;
    let within = |rest| u128::from(below(last + 1, rest) - below(first, rest));
    within(0) + within(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_avoided_are_counted() {
        for (first, last) in [
            ([10, 0, 0, 0], [10, 0, 3, 255]),
            ([10, 0, 0, 1], [10, 0, 0, 254]),
            ([10, 0, 0, 255], [10, 0, 1, 0]),
            ([10, 0, 0, 7], [10, 0, 0, 7]),
            ([255, 255, 255, 0], [255, 255, 255, 255]),
        ] {
            let range = Bounds {
                first: first.into(),
                last: last.into(),
            };
            let spec = LoadBalancerPoolSpec {
                ranges: vec![range],
                avoid_first_and_last: true,
                ..Default::default()
            };
            let each = std::iter::successors(Some(range.first), |address| next(*address));
            let counted = each
                .take_while(|address| range.contains(*address))
                .filter(|address| spec.avoids(*address))
                .count();
            assert_eq!(avoided(&spec, &range), counted as u128, "{first:?} {last:?}");
        }
    }
}
