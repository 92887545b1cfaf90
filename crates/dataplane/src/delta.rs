//! The difference between what a table of the kernel should hold and what it holds. Every table uses this one.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use podnet_core::shared_map::SharedMap;

/// What to do to a table, by key, in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta<'a, K, V, W = V> {
    /// Wanted and missing.
    pub add: Vec<(&'a K, &'a V)>,
    /// There with another value: key, wanted value, value there.
    pub change: Vec<(&'a K, &'a V, &'a W)>,
    /// There and not wanted.
    pub remove: Vec<(&'a K, &'a W)>,
}

impl<'a, K: Ord, V, W> Delta<'a, K, V, W> {
    /// The difference from `have` to `want`, values being alike when `same` says so.
    pub fn between_by(
        want: &'a BTreeMap<K, V>,
        have: &'a BTreeMap<K, W>,
        same: impl Fn(&V, &W) -> bool,
    ) -> Self {
        Delta::of_sorted(want.iter(), have.iter(), same)
    }

    /// The same for entries by key.
    fn of_sorted(
        want: impl Iterator<Item = (&'a K, &'a V)>,
        have: impl Iterator<Item = (&'a K, &'a W)>,
        same: impl Fn(&V, &W) -> bool,
    ) -> Self {
        let mut delta = Delta {
            add: Vec::new(),
            change: Vec::new(),
            remove: Vec::new(),
        };
        // Both are in order: one walk finds it all.
        let (mut want, mut have) = (want.peekable(), have.peekable());
        loop {
            let order = match (want.peek(), have.peek()) {
                (Some((wanted, _)), Some((there, _))) => wanted.cmp(there),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return delta,
            };
            let wanted = if order.is_le() { want.next() } else { None };
            let there = if order.is_ge() { have.next() } else { None };
            match (wanted, there) {
                (Some(wanted), None) => delta.add.push(wanted),
                (None, Some(there)) => delta.remove.push(there),
                (Some((key, wanted)), Some((_, there))) if !same(wanted, there) => {
                    delta.change.push((key, wanted, there));
                }
                _ => {}
            }
        }
    }

    /// The keys that differ.
    pub fn keys(&self) -> impl Iterator<Item = &'a K> {
        let add = self.add.iter().map(|(key, _)| *key);
        let change = self.change.iter().map(|(key, _, _)| *key);
        let remove = self.remove.iter().map(|(key, _)| *key);
        add.chain(change).chain(remove)
    }

    /// What is to be there that is not yet, or not so.
    pub fn set(&self) -> impl Iterator<Item = (&'a K, &'a V)> {
        let changed = self.change.iter().map(|(key, wanted, _)| (*key, *wanted));
        self.add.iter().copied().chain(changed)
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries differ.
    pub fn len(&self) -> usize {
        self.add.len() + self.change.len() + self.remove.len()
    }
}

impl<'a, K: Ord, V: PartialEq> Delta<'a, K, V> {
    /// The values that differ, those there and those wanted.
    pub fn values(&self) -> impl Iterator<Item = &'a V> {
        let add = self.add.iter().map(|(_, value)| *value);
        let change = self.change.iter().flat_map(|(_, new, old)| [*new, *old]);
        let remove = self.remove.iter().map(|(_, value)| *value);
        add.chain(change).chain(remove)
    }

    /// The difference from `have` to `want`.
    pub fn between(want: &'a BTreeMap<K, V>, have: &'a BTreeMap<K, V>) -> Self {
        Delta::between_by(want, have, PartialEq::eq)
    }

    /// The difference between maps of which one was copied from the other: it costs what was changed.
    pub fn between_shared(want: &'a SharedMap<K, V>, have: &'a SharedMap<K, V>) -> Self {
        let (want, have) = want.unshared(have);
        Delta::of_sorted(want.into_iter(), have.into_iter(), PartialEq::eq)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_table_becomes_any_other_and_needs_nothing_more(
            want in prop::collection::btree_map(0..20_u8, 0..3_u8, 0..20),
            have in prop::collection::btree_map(0..20_u8, 0..3_u8, 0..20),
        ) {
            let delta = Delta::between(&want, &have);
            let mut table = have.clone();
            for (key, _) in &delta.remove {
                prop_assert!(table.remove(key).is_some());
            }
            for (key, value) in &delta.add {
                prop_assert!(table.insert(**key, **value).is_none());
            }
            for (key, wanted, there) in &delta.change {
                prop_assert_eq!(table.insert(**key, **wanted), Some(**there));
                prop_assert_ne!(wanted, there);
            }
            prop_assert_eq!(&table, &want);
            prop_assert!(Delta::between(&want, &table).is_empty());
        }
    }
}
