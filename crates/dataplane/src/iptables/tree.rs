//! A tree over sorted numbers, such as addresses, whose every node becomes a chain. A packet goes down one path, so a
//! look-up costs the logarithm of the number of entries, and a change concerns the nodes above what changed.
//!
//! A node stands for all entries that begin with its prefix, which is the longest they have in common (in steps of four
//! bits). So which nodes there are, and what they lead to, depends on the entries alone, not on how they came there.

use std::collections::BTreeSet;

/// Bits that one level decides.
const STEP: u8 = 4;
/// Entries that are gone through one by one.
const LEAF: usize = 16;

type Sorted<'a, T> = Box<dyn Iterator<Item = (u128, T)> + 'a>;

/// Entries by number, and a way to those from a number on.
pub(super) struct Tree<'a, T> {
    bits: u8,
    from: Box<dyn Fn(u128) -> Sorted<'a, T> + 'a>,
}

/// The entries whose numbers begin with `length` bits of `prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Node {
    /// With zeros after the prefix.
    pub(super) prefix: u128,
    /// In bits.
    pub(super) length: u8,
}

impl<'a, T> Tree<'a, T> {
    /// Of numbers of so many bits; `from` gives the entries from a number on, in order.
    pub(super) fn new<I>(bits: u8, from: impl Fn(u128) -> I + 'a) -> Self
    where
        I: Iterator<Item = (u128, T)> + 'a,
    {
        Tree {
            bits,
            from: Box::new(move |number| Box::new(from(number))),
        }
    }

    /// How many numbers begin with `length` given bits, less one.
    fn span(&self, length: u8) -> u128 {
        match u32::from(self.bits.saturating_sub(length)) {
            128.. => u128::MAX,
            free => (1 << free) - 1,
        }
    }

    /// The last number of a node.
    pub(super) fn last(&self, node: &Node) -> u128 {
        node.prefix | self.span(node.length)
    }

    fn above(&self, number: u128, length: u8) -> Node {
        Node {
            prefix: number & !self.span(length),
            length,
        }
    }

    fn first_from(&self, number: u128) -> Option<u128> {
        // Beyond the last number there is nothing, whatever `from` makes of it.
        if number > self.last(&Node { prefix: 0, length: 0 }) {
            return None;
        }
        (self.from)(number).next().map(|(number, _)| number)
    }

    /// The node for all entries; none where there is none.
    pub(super) fn root(&self) -> Option<Node> {
        self.compressed(Node { prefix: 0, length: 0 })
    }

    /// The longest prefix that the entries below one have in common.
    fn compressed(&self, within: Node) -> Option<Node> {
        let end = self.last(&within);
        let first = self.first_from(within.prefix).filter(|first| *first <= end)?;
        let mut node = within;
        while node.length < self.bits {
            let child = self.above(first, node.length + STEP);
            let others = self.last(&child).checked_add(1);
            let other = others.and_then(|number| self.first_from(number));
            if other.is_some_and(|other| other <= end) {
                break;
            }
            node = child;
        }
        Some(node)
    }

    /// The entries of a node.
    pub(super) fn entries(&self, node: &Node) -> impl Iterator<Item = (u128, T)> {
        let last = self.last(node);
        (self.from)(node.prefix).take_while(move |(number, _)| *number <= last)
    }

    /// Whether a node's entries are gone through one by one.
    pub(super) fn is_leaf(&self, node: &Node) -> bool {
        node.length >= self.bits || self.entries(node).nth(LEAF).is_none()
    }

    /// The nodes below one.
    pub(super) fn children(&self, node: &Node) -> Vec<Node> {
        let mut children = Vec::new();
        let end = self.last(node);
        let mut next = self.first_from(node.prefix);
        while let Some(first) = next.filter(|first| *first <= end) {
            let slot = self.above(first, node.length + STEP);
            children.extend(self.compressed(slot));
            let rest = self.last(&slot).checked_add(1);
            next = rest.and_then(|number| self.first_from(number));
        }
        children
    }

    fn has(&self, node: &Node) -> bool {
        let mut at = self.root();
        while let Some(found) = at {
            if found == *node {
                return true;
            }
            let is_above =
                found.length < node.length && self.above(node.prefix, found.length).prefix == found.prefix;
            if !is_above || self.is_leaf(&found) {
                return false;
            }
            at = self.compressed(self.above(node.prefix, found.length + STEP));
        }
        false
    }

    /// Every node.
    pub(super) fn nodes(&self) -> Vec<Node> {
        self.visited(|_| true)
    }

    /// The nodes that are not alike in another tree, which differs from this one in what it has for the numbers in
    /// `changed` alone.
    pub(super) fn unlike<U>(&self, other: &Tree<'_, U>, changed: &BTreeSet<u128>) -> Vec<Node> {
        self.visited(|node| changed.range(node.prefix..=self.last(node)).next().is_some() || !other.has(node))
    }

    /// The nodes for which `wanted` holds, and does for all above.
    fn visited(&self, wanted: impl Fn(&Node) -> bool) -> Vec<Node> {
        let mut waiting: Vec<Node> = self.root().into_iter().collect();
        let mut visited = Vec::new();
        while let Some(node) = waiting.pop() {
            if !wanted(&node) {
                continue;
            }
            if !self.is_leaf(&node) {
                waiting.extend(self.children(&node));
            }
            visited.push(node);
        }
        visited
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    type Numbers = BTreeMap<(u128, u8), u8>;

    fn tree(numbers: &Numbers, bits: u8) -> Tree<'_, u8> {
        Tree::new(bits, |number| {
            numbers
                .range((number, 0)..)
                .map(|((number, _), value)| (*number, *value))
        })
    }

    /// What a node's chain would hold.
    #[derive(Debug, PartialEq, Eq)]
    enum Chain {
        Leaf(Vec<(u128, u8)>),
        Inner(Vec<Node>),
    }

    fn chains(tree: &Tree<'_, u8>, nodes: &[Node]) -> BTreeMap<Node, Chain> {
        let chain = |node: &Node| match tree.is_leaf(node) {
            true => Chain::Leaf(tree.entries(node).collect()),
            false => Chain::Inner(tree.children(node)),
        };
        nodes.iter().map(|node| (*node, chain(node))).collect()
    }

    fn any_numbers(bits: u8) -> impl Strategy<Value = Numbers> {
        // Near each other, and far.
        let number = prop_oneof![
            0..64_u128,
            any::<u128>().prop_map(move |number| number >> (128 - bits))
        ];
        prop::collection::btree_map((number, 0..3_u8), any::<u8>(), 0..80)
    }

    fn holds(before: &Numbers, after: &Numbers, bits: u8) -> Result<(), TestCaseError> {
        let (old, new) = (tree(before, bits), tree(after, bits));
        let all = chains(&new, &new.nodes());
        // From the root, every entry is found in one leaf.
        for ((number, turn), value) in after {
            let mut at = new.root().unwrap();
            while let Chain::Inner(children) = &all[&at] {
                prop_assert!(children.len() > 1);
                let mut fitting = children
                    .iter()
                    .filter(|child| child.prefix <= *number && *number <= new.last(child));
                at = *fitting.next().unwrap();
                prop_assert!(fitting.next().is_none());
            }
            let Chain::Leaf(entries) = &all[&at] else { panic!() };
            let same = after.iter().filter(|((found, _), _)| found == number).count();
            prop_assert!(entries.len() <= LEAF.max(same));
            prop_assert!(entries.contains(&(*number, *value)), "{number} {turn}");
        }
        // Only what is unlike differs, and it is all that does.
        let changed: BTreeSet<u128> = before
            .keys()
            .chain(after.keys())
            .filter(|key| before.get(key) != after.get(key))
            .map(|(number, _)| *number)
            .collect();
        let mut chains_of_old = chains(&old, &old.nodes());
        let gone = old.unlike(&new, &changed);
        gone.iter().for_each(|node| drop(chains_of_old.remove(node)));
        chains_of_old.extend(chains(&new, &new.unlike(&old, &changed)));
        prop_assert_eq!(chains_of_old, all);
        Ok(())
    }

    proptest! {
        #[test]
        fn every_number_is_found_and_a_change_concerns_what_changed(
            before in any_numbers(16),
            after in any_numbers(16),
        ) {
            holds(&before, &after, 16)?;
        }

        #[test]
        fn the_same_for_numbers_of_128_bits_of_which_few_change(
            before in any_numbers(128),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
            come in any_numbers(128),
        ) {
            let mut after = before.clone();
            for index in gone.iter().filter(|_| !before.is_empty()) {
                after.remove(before.keys().nth(index.index(before.len())).unwrap());
            }
            after.extend(come.into_iter().take(2));
            holds(&before, &after, 128)?;
        }
    }
}
