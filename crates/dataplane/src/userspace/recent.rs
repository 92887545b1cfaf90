//! A bounded memory that lets go of what was not used for longest.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Values by key, in the order of their last use.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    most: usize,
    values: HashMap<K, (V, u64, Instant)>,
    /// Keys by the number of their last use.
    order: BTreeMap<u64, K>,
    uses: u64,
}

impl<K: Hash + Eq + Clone, V> Recent<K, V> {
    /// Nothing yet, and never more than `most`.
    pub(super) fn new(most: usize) -> Self {
        Recent {
            most,
            values: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// A value, and when it was last used; this is no use of it.
    pub(super) fn peek(&self, key: &K) -> Option<(&V, Instant)> {
        self.values.get(key).map(|(value, _, used)| (value, *used))
    }

    /// A value, used now.
    pub(super) fn touch(&mut self, key: &K, now: Instant) -> Option<&mut V> {
        let (value, number, used) = self.values.get_mut(key)?;
        self.uses += 1;
        if let Some(key) = self.order.remove(number) {
            self.order.insert(self.uses, key);
        }
        (*number, *used) = (self.uses, now);
        Some(value)
    }

    /// Keeps a value, used now, in place of one that has the key; returns what had to go for it.
    pub(super) fn insert(&mut self, key: K, value: V, now: Instant) -> Option<V> {
        let mut gone = self.remove(&key);
        if self.values.len() >= self.most {
            let oldest = self.order.first_key_value().map(|(_, key)| key.clone());
            gone = oldest.and_then(|oldest| self.remove(&oldest));
        }
        self.uses += 1;
        self.order.insert(self.uses, key.clone());
        self.values.insert(key, (value, self.uses, now));
        gone
    }

    /// Lets go of one.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (value, number, _) = self.values.remove(key)?;
        self.order.remove(&number);
        Some(value)
    }

    /// Lets go of those that `keep` does not want, and returns them.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) -> Vec<V> {
        let values = self.values.iter();
        let go: Vec<K> = values
            .filter(|(key, (value, ..))| !keep(key, value))
            .map(|(key, _)| key.clone())
            .collect();
        go.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Lets go of those that have been idle for as long as `patience` says, and returns them.
    pub(super) fn expire(&mut self, now: Instant, patience: impl Fn(&V) -> Duration) -> Vec<V> {
        let values = self.values.iter();
        let idle = |value: &V, used: Instant| now.saturating_duration_since(used) >= patience(value);
        let go: Vec<K> = values
            .filter(|(_, (value, _, used))| idle(value, *used))
            .map(|(key, _)| key.clone())
            .collect();
        go.iter().filter_map(|key| self.remove(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let now = Instant::now();
        let mut recent = Recent::new(2);
        assert_eq!(recent.insert('a', 1, now), None);
        assert_eq!(recent.insert('b', 2, now), None);
        assert_eq!(recent.touch(&'a', now), Some(&mut 1));
        assert_eq!(recent.insert('c', 3, now), Some(2));
        assert_eq!(recent.insert('a', 4, now), Some(1), "in its own place");
        assert_eq!(recent.len(), 2);
    }

    #[test]
    fn what_is_idle_goes_and_what_is_used_stays() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut recent = Recent::new(9);
        recent.insert('a', 10, start);
        recent.insert('b', 10, start);
        recent.touch(&'a', after(5));
        let patience = |seconds: &u64| Duration::from_secs(*seconds);
        assert_eq!(recent.expire(after(9), patience), Vec::<u64>::new());
        assert_eq!(recent.expire(after(10), patience), [10]);
        assert_eq!(recent.peek(&'a'), Some((&10, after(5))));
        assert_eq!(recent.retain(|key, _| *key != 'a'), [10]);
        assert_eq!(recent.len(), 0);
    }

    proptest! {
        #[test]
        fn it_is_never_larger_than_it_may_be_and_its_two_halves_agree(
            steps in proptest::collection::vec((0..4u8, 0..8u8), 0..100)
        ) {
            let now = Instant::now();
            let mut recent = Recent::new(4);
            for (step, key) in steps {
                match step {
                    0 => _ = recent.remove(&key),
                    1 => _ = recent.touch(&key, now).is_some(),
                    _ => _ = recent.insert(key, key, now),
                }
                prop_assert!(recent.len() <= 4);
                prop_assert_eq!(recent.order.len(), recent.len());
                prop_assert!(recent.order.values().all(|key| recent.values.contains_key(key)));
            }
        }
    }
}
