//! Who the other end may be, as sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use podnet_core::cluster::{Direction, Family, IpBlock};
use podnet_core::policy::{Peer, Peers};

use super::super::model::{MapsTo, Set, Value, digit};
use super::super::rule::{Clause, octets};
use super::ranges::merged;
use super::{FAMILIES, Render, address, digest, plain};

/// Whom some rules name together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Union<'a> {
    Anybody,
    OneOf(BTreeSet<&'a Peer>),
}

impl<'a> Union<'a> {
    pub(super) fn of(all: impl IntoIterator<Item = &'a Peers>) -> Self {
        let mut union = BTreeSet::new();
        for peers in all {
            match peers {
                Peers::Anybody => return Union::Anybody,
                // What a name stands for has to be learnt; until it is, it stands for nobody.
                Peers::OneOf(peers) => {
                    union.extend(peers.iter().filter(|peer| !matches!(peer, Peer::Domain(_))));
                }
            }
        }
        Union::OneOf(union)
    }

    pub(super) fn is_nobody(&self) -> bool {
        matches!(self, Union::OneOf(peers) if peers.is_empty())
    }

    /// What tells it from others.
    pub(super) fn text(&self) -> String {
        match self {
            Union::Anybody => "anybody".into(),
            Union::OneOf(peers) => text(peers.iter().copied()),
        }
    }
}

fn text<'a>(peers: impl Iterator<Item = &'a Peer>) -> String {
    peers.map(|peer| format!("{peer}\n")).collect()
}

impl<'a> Render<'a> {
    /// The ways in which the other end can be one of those. Pods and nodes are in a hash, which costs the same for any
    /// number and changes by single elements; blocks in a tree, which changes with policies only.
    pub(super) fn whom(&mut self, direction: Direction, union: &Union<'a>) -> Vec<Vec<Clause>> {
        let Union::OneOf(peers) = union else {
            return vec![Vec::new()];
        };
        let (mut blocks, mut others) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
        for peer in peers {
            match peer {
                Peer::Block(block) => blocks
                    .entry(Family::of(block.cidr().addr()))
                    .or_default()
                    .push(block),
                peer => others.push(*peer),
            }
        }
        let other_end = |family, set: String| match direction {
            Direction::Ingress => vec![Clause::SourceIn(family, set.into())],
            Direction::Egress => vec![Clause::DestinationIn(family, set.into())],
        };
        let mut ways = Vec::new();
        if !others.is_empty() {
            let digest = digest(&text(others.iter().copied()));
            let sets = FAMILIES.map(|family| format!("pods{}-{digest}", digit(family)));
            self.members(&sets, &others);
            let pairs = FAMILIES.into_iter().zip(sets);
            ways.extend(pairs.map(|(family, set)| other_end(family, set)));
        }
        for (family, blocks) in blocks {
            ways.push(other_end(family, self.blocks(family, &blocks)));
        }
        ways
    }

    /// Fills a set for each family.
    fn members(&mut self, sets: &[String; 2], peers: &[&'a Peer]) {
        let mut new = false;
        for (family, set) in FAMILIES.into_iter().zip(sets) {
            new |= self.set(set, plain(address(family), MapsTo::Nothing));
        }
        if !new {
            return;
        }
        let policy = self.policy;
        let ids: BTreeSet<_> = peers
            .iter()
            .filter_map(|peer| match peer {
                Peer::Pods(selection) => policy.selections.get(selection),
                _ => None,
            })
            .flatten()
            .collect();
        let label_sets = ids.into_iter().filter_map(|id| policy.label_sets.get(id));
        let pods = label_sets.flat_map(|set| &set.members);
        let nodes = peers.iter().filter_map(|peer| match peer {
            Peer::Nodes(selector) => policy.nodes.get(selector),
            _ => None,
        });
        let [v4, v6] = sets;
        for member in pods.chain(nodes.flatten()) {
            let set = if member.is_ipv4() { v4 } else { v6 };
            self.element(set, octets(*member), Value::None);
        }
    }

    fn blocks(&mut self, family: Family, blocks: &[&'a IpBlock]) -> String {
        let text: String = blocks
            .iter()
            .map(|block| format!("{}\n", Peer::Block((*block).clone())))
            .collect();
        let name = format!("blocks{}-{}", digit(family), digest(&text));
        let set = Set {
            interval: true,
            ..plain(address(family), MapsTo::Nothing)
        };
        if self.set(&name, set) {
            for (first, last) in merged(blocks.iter().flat_map(|block| without_holes(block)).collect()) {
                let key = [first, last].map(|end| bytes(family, end)).concat();
                self.element(&name, key, Value::None);
            }
        }
        name
    }

    /// Whether a rule's peers have a pod among them, by its label set and address.
    pub(super) fn is_among(
        &self,
        peers: &Peers,
        id: podnet_core::policy::LabelSetId,
        member: IpAddr,
    ) -> bool {
        let Peers::OneOf(peers) = peers else {
            return true;
        };
        peers.iter().any(|peer| match peer {
            Peer::Pods(selection) => self
                .policy
                .selections
                .get(selection)
                .is_some_and(|ids| ids.contains(&id)),
            Peer::Nodes(selector) => self
                .policy
                .nodes
                .get(selector)
                .is_some_and(|nodes| nodes.contains(&member)),
            Peer::Block(block) => {
                block.cidr().contains(&member) && !block.except().any(|hole| hole.contains(&member))
            }
            Peer::Domain(_) => false,
        })
    }
}

/// An address as a number: of either family, since no set mixes them.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn bytes(family: Family, number: u128) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    match family {
        Family::V4 => bytes[12..].to_vec(),
        Family::V6 => bytes.to_vec(),
    }
}

type Range = (u128, u128);

fn range(net: IpNet) -> Range {
    (number(net.network()), number(net.broadcast()))
}

/// What is left of a block, in order.
fn without_holes(block: &IpBlock) -> Vec<Range> {
    let (mut from, last) = range(block.cidr());
    let mut left = Vec::new();
    for (first, end) in merged(block.except().map(range).collect()) {
        if from < first {
            left.push((from, first - 1));
        }
        match end.checked_add(1) {
            Some(next) if next <= last => from = next,
            _ => return left,
        }
    }
    left.push((from, last));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(cidr: &str, except: &[&str]) -> Vec<String> {
        let except = except.iter().map(|text| text.parse().unwrap());
        let block = IpBlock::new(cidr.parse().unwrap(), except).unwrap();
        let family = Family::of(block.cidr().addr());
        let show = |end| {
            let bytes = bytes(family, end);
            match family {
                Family::V4 => IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()),
                Family::V6 => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
            }
        };
        let ranges = without_holes(&block).into_iter();
        ranges
            .map(|(first, last)| format!("{}-{}", show(first), show(last)))
            .collect()
    }

    #[test]
    fn holes_are_left_out_wherever_they_are() {
        assert_eq!(left("10.0.0.0/30", &[]), ["10.0.0.0-10.0.0.3"]);
        assert_eq!(left("10.0.0.0/30", &["10.0.0.0/32"]), ["10.0.0.1-10.0.0.3"]);
        assert_eq!(left("10.0.0.0/30", &["10.0.0.3/32"]), ["10.0.0.0-10.0.0.2"]);
        assert_eq!(left("10.0.0.0/30", &["10.0.0.0/31", "10.0.0.2/31"]), [""; 0]);
        assert_eq!(
            left(
                "0.0.0.0/0",
                &["255.255.255.255/32", "0.0.0.0/32", "1.0.0.0/8", "1.1.0.0/16"]
            ),
            ["0.0.0.1-0.255.255.255", "2.0.0.0-255.255.255.254"]
        );
        assert_eq!(
            left("::/0", &["8000::/1"]),
            ["::-7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        );
    }
}
