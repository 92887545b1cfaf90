//! Ranges that do not overlap, with the question whether another one does.

use std::collections::BTreeMap;

use ipnet::IpNet;

/// Ranges none of which overlaps another, each with what it is.
#[derive(Debug, Clone)]
pub struct NetSet<T>(BTreeMap<IpNet, T>);

impl<T> Default for NetSet<T> {
    fn default() -> Self {
        NetSet(BTreeMap::new())
    }
}

impl<T> NetSet<T> {
    /// A range of the set that shares an address with `range`.
    pub fn overlapping(&self, range: IpNet) -> Option<(IpNet, &T)> {
        // Nets sort by address, then length, so what contains `range` is itself or the last one before it: anything in
        // between would lie within that one.
        let before = self.0.range(..=range).next_back();
        let after = self.0.range(range..).next();
        let hit = |(net, _): &(&IpNet, &T)| net.contains(&range.network()) || range.contains(&net.network());
        let found = before.filter(hit).or_else(|| after.filter(hit));
        found.map(|(net, what)| (*net, what))
    }

    /// Adds a range, unless it overlaps.
    pub fn insert(&mut self, range: IpNet, what: T) -> bool {
        let free = self.overlapping(range.trunc()).is_none();
        if free {
            self.0.insert(range.trunc(), what);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn overlaps_as_a_look_at_every_range_says(
            nets in proptest::collection::vec((any::<u8>(), 24u8..=32), 1..20), probe in (any::<u8>(), 22u8..=32),
        ) {
            let net = |(host, length): (u8, u8)| IpNet::new([10, 0, 0, host].into(), length).unwrap().trunc();
            let mut set = NetSet::default();
            let mut naive: Vec<IpNet> = Vec::new();
            let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
            for one in nets.into_iter().map(net) {
                let free = !naive.iter().any(|other| overlap(other, &one));
                prop_assert_eq!(set.insert(one, ()), free);
                if free { naive.push(one) }
            }
            let probe = net(probe);
            prop_assert_eq!(set.overlapping(probe).is_some(), naive.iter().any(|other| overlap(other, &probe)));
        }
    }
}
