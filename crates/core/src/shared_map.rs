//! An ordered map that is cheap to copy, and cheap to compare with what it was copied from.
//!
//! A state of ten thousand services differs from the one before it in one entry; whoever keeps both must neither copy
//! nor walk the other 9,999. So the entries stand in sorted chunks that copies share: a change copies one chunk, and a
//! comparison passes over those that are shared.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Entries of a chunk, at most. A change costs a copy of one chunk and of the list of chunks.
const MOST: usize = 64;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// Entries of a map, by key.
pub type Entries<'a, K, V> = Vec<(&'a K, &'a V)>;

/// See the module.
pub struct SharedMap<K, V> {
    /// Sorted, none empty, each with smaller keys than the next.
    chunks: Vec<Chunk<K, V>>,
    len: usize,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        SharedMap {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        SharedMap {
            chunks: self.chunks.clone(),
            len: self.len,
        }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.chunks.iter().flat_map(|chunk| chunk.iter());
        f.debug_map()
            .entries(entries.map(|(key, value)| (key, value)))
            .finish()
    }
}

impl<K, V> SharedMap<K, V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entries, by key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter {
            rest: self.chunks.iter(),
            chunk: [].iter(),
        }
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// The values, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// The chunk that has a key or would take it.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        let before = |chunk: &Chunk<K, V>| chunk.last().is_some_and(|(last, _)| last.borrow() < key);
        self.chunks.partition_point(before)
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.get_key_value(key).map(|(_, value)| value)
    }

    /// The entry of a key.
    pub fn get_key_value<Q: Ord + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        let (key, value) = self
            .range(key)
            .next()
            .filter(|(found, _)| (*found).borrow() == key)?;
        Some((key, value))
    }

    /// Whether a key has a value.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// The entries from a key on.
    pub fn range<Q: Ord + ?Sized>(&self, from: &Q) -> Iter<'_, K, V>
    where
        K: Borrow<Q>,
    {
        let mut rest = self.chunks[self.chunk_of(from)..].iter();
        let chunk = rest.next().map_or(&[][..], |chunk| {
            &chunk[chunk.partition_point(|(key, _)| key.borrow() < from)..]
        });
        Iter {
            rest,
            chunk: chunk.iter(),
        }
    }

    /// The entries of two maps that are not in chunks both share: all in which they differ, and little else.
    pub fn unshared<'a>(&'a self, other: &'a Self) -> (Entries<'a, K, V>, Entries<'a, K, V>) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let (mut left, mut right) = (self.chunks.as_slice(), other.chunks.as_slice());
        // A chunk that both have begins with the same key in both, so it is never passed on one side alone.
        while let ([a, left_rest @ ..], [b, right_rest @ ..]) = (left, right) {
            let order = if Arc::ptr_eq(a, b) {
                (left, right) = (left_rest, right_rest);
                continue;
            } else {
                first(a).cmp(&first(b))
            };
            if order != Ordering::Greater {
                ours.extend(entries(a));
                left = left_rest;
            }
            if order != Ordering::Less {
                theirs.extend(entries(b));
                right = right_rest;
            }
        }
        ours.extend(left.iter().flat_map(entries));
        theirs.extend(right.iter().flat_map(entries));
        (ours, theirs)
    }
}

fn first<K, V>(chunk: &Chunk<K, V>) -> Option<&K> {
    chunk.first().map(|(key, _)| key)
}

fn entries<K, V>(chunk: &Chunk<K, V>) -> impl Iterator<Item = (&K, &V)> {
    chunk.iter().map(|(key, value)| (key, value))
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Gives a key a value; returns the one it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        // What is greater than all goes to the last chunk.
        let at = self.chunk_of(&key).min(self.chunks.len().saturating_sub(1));
        let Some(chunk) = self.chunks.get_mut(at) else {
            self.chunks.push(Arc::new(vec![(key, value)]));
            self.len = 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|(found, _)| found.cmp(&key)) {
            Ok(place) => Some(std::mem::replace(&mut chunk[place].1, value)),
            Err(place) => {
                chunk.insert(place, (key, value));
                self.len += 1;
                if chunk.len() > MOST {
                    let rest = chunk.split_off(MOST / 2);
                    self.chunks.insert(at + 1, Arc::new(rest));
                }
                None
            }
        }
    }

    /// Takes a key and its value away; returns the value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.chunk_of(key);
        let chunk = self.chunks.get_mut(at)?;
        let place = chunk
            .binary_search_by(|(found, _)| found.borrow().cmp(key))
            .ok()?;
        let chunk = Arc::make_mut(chunk);
        let (_, value) = chunk.remove(place);
        self.len -= 1;
        if chunk.is_empty() {
            self.chunks.remove(at);
        } else if let Some(next) = self.chunks.get(at + 1)
            && self.chunks[at].len() + next.len() <= MOST / 2
        {
            // Else a map that shrinks would keep a chunk for every few entries.
            let next = self.chunks.remove(at + 1);
            Arc::make_mut(&mut self.chunks[at]).extend(next.iter().cloned());
        }
        Some(value)
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let (ours, theirs) = self.unshared(other);
        self.len == other.len && ours == theirs
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = SharedMap::default();
        map.extend(entries);
        map
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The entries of a [`SharedMap`], by key.
#[derive(Debug)]
pub struct Iter<'a, K, V> {
    rest: std::slice::Iter<'a, Chunk<K, V>>,
    chunk: std::slice::Iter<'a, (K, V)>,
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Iter {
            rest: self.rest.clone(),
            chunk: self.chunk.clone(),
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.chunk.next() {
                return Some((key, value));
            }
            self.chunk = self.rest.next()?.iter();
        }
    }
}

/// A [`SharedMap`] of keys alone.
#[derive(Debug)]
pub struct SharedSet<K>(SharedMap<K, ()>);

impl<K> Default for SharedSet<K> {
    fn default() -> Self {
        SharedSet(SharedMap::default())
    }
}

impl<K> Clone for SharedSet<K> {
    fn clone(&self) -> Self {
        SharedSet(self.0.clone())
    }
}

impl<K: Ord> PartialEq for SharedSet<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<K: Ord> Eq for SharedSet<K> {}

impl<K> SharedSet<K> {
    /// The keys, in order.
    pub fn iter(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
}

impl<K: Ord> SharedSet<K> {
    /// Whether a key is there.
    pub fn contains(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    /// The keys that are not in `other`.
    pub fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a K> {
        let (ours, _) = self.0.unshared(&other.0);
        let ours = ours.into_iter().map(|(key, ())| key);
        ours.filter(|key| !other.contains(key))
    }
}

impl<K: Ord + Clone> SharedSet<K> {
    /// Adds a key; says whether it is new.
    pub fn insert(&mut self, key: K) -> bool {
        // Without a change no chunk is copied.
        !self.contains(&key) && self.0.insert(key, ()).is_none()
    }

    /// Takes a key away; says whether it was there.
    pub fn remove(&mut self, key: &K) -> bool {
        self.0.remove(key).is_some()
    }
}

impl<K: Ord + Clone> FromIterator<K> for SharedSet<K> {
    fn from_iter<I: IntoIterator<Item = K>>(keys: I) -> Self {
        SharedSet(keys.into_iter().map(|key| (key, ())).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Keys to give a value or to take away.
    fn edits() -> impl Strategy<Value = Vec<(u16, Option<u8>)>> {
        prop::collection::vec((0..400_u16, prop::option::weighted(0.7, 0..3_u8)), 0..600)
    }

    fn edit(map: &mut SharedMap<u16, u8>, model: &mut BTreeMap<u16, u8>, edits: &[(u16, Option<u8>)]) {
        for (key, value) in edits {
            match value {
                Some(value) => assert_eq!(map.insert(*key, *value), model.insert(*key, *value)),
                None => assert_eq!(map.remove(key), model.remove(key)),
            }
        }
    }

    fn check(map: &SharedMap<u16, u8>, model: &BTreeMap<u16, u8>) {
        assert!(map.iter().eq(model));
        assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
        for chunk in &map.chunks {
            assert!((1..=MOST).contains(&chunk.len()));
        }
        for key in (0..400).step_by(7) {
            assert_eq!(map.get(&key), model.get(&key));
            assert!(map.range(&key).eq(model.range(key..)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_is_a_map_and_its_copies_stay_what_they_were(first in edits(), second in edits()) {
            let (mut map, mut model) = Default::default();
            edit(&mut map, &mut model, &first);
            check(&map, &model);
            let (copy, copied) = (map.clone(), model.clone());
            edit(&mut map, &mut model, &second);
            check(&map, &model);
            check(&copy, &copied);
            prop_assert_eq!(map == copy, model == copied);
            prop_assert_eq!(&map, &model.into_iter().collect());
        }

        #[test]
        fn two_maps_without_what_they_share_differ_as_they_do(first in edits(), second in edits()) {
            let (mut old, mut model) = Default::default();
            edit(&mut old, &mut model, &first);
            let mut new = old.clone();
            edit(&mut new, &mut model, &second);
            let (ours, theirs) = new.unshared(&old);
            let all = |map: &SharedMap<u16, u8>| map.iter().map(|(key, value)| (*key, *value)).collect();
            let only = |map: &SharedMap<u16, u8>, other: &SharedMap<u16, u8>| -> BTreeMap<u16, u8> {
                let entries: BTreeMap<u16, u8> = all(map);
                entries.into_iter().filter(|(key, value)| other.get(key) != Some(value)).collect()
            };
            let left = |entries: Vec<(&u16, &u8)>, other: &SharedMap<u16, u8>| -> BTreeMap<u16, u8> {
                let entries = entries.into_iter().map(|(key, value)| (*key, *value));
                entries.filter(|(key, value)| other.get(key) != Some(value)).collect()
            };
            prop_assert_eq!(left(ours, &old), only(&new, &old));
            prop_assert_eq!(left(theirs, &new), only(&old, &new));
        }
    }

    #[test]
    fn a_change_leaves_all_other_chunks_shared() {
        let old: SharedMap<u32, u32> = (0..10_000).map(|key| (key, key)).collect();
        let mut new = old.clone();
        new.insert(5_000, 0);
        let (ours, theirs) = new.unshared(&old);
        assert!(
            ours.len() <= MOST && theirs.len() <= MOST,
            "{} {}",
            ours.len(),
            theirs.len()
        );
    }
}
