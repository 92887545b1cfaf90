//! Node ranges: every node gets a range of its own from each of the cluster's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::api::core::v1::Node;
use miette::Diagnostic;

use crate::action::{Action, Note, Op, Part, Target};
use crate::control::{Context, Controller, Plan};
use crate::resource::Key;
use crate::world::{Change, Kind, World};

/// Most ranges of one pool; what is beyond is never given.
const MOST: u128 = 1 << 16;

/// A range of the cluster, cut into ranges of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    range: IpNet,
    length: u8,
}

/// Why the cluster's ranges cannot be used.
#[derive(Debug, thiserror::Error, Diagnostic, PartialEq)]
pub enum PoolError {
    /// No range, too many, or two of one family.
    #[error("{0} cluster ranges were given")]
    #[diagnostic(help("give --cluster-cidr one range, or one IPv4 and one IPv6 range"))]
    Count(usize),
    /// Nodes' ranges would be larger than the cluster's, or longer than an address.
    #[error("ranges of /{length} cannot be cut from {range}")]
    #[diagnostic(help(
        "choose a length between that of the range and that of an address with \
                       --node-cidr-mask-size or --node-cidr-mask-size-ipv6"
    ))]
    Length {
        /// The cluster's range.
        range: IpNet,
        /// The prefix length for nodes.
        length: u8,
    },
}

impl Pool {
    /// The pools of the cluster's ranges: one, or one of each family.
    pub fn parse(ranges: &[IpNet], length: u8, length6: u8) -> Result<Vec<Pool>, PoolError> {
        let families: BTreeSet<bool> = ranges.iter().map(|r| r.addr().is_ipv4()).collect();
        if ranges.is_empty() || families.len() != ranges.len() {
            return Err(PoolError::Count(ranges.len()));
        }
        ranges
            .iter()
            .map(|range| Pool::new(*range, if range.addr().is_ipv4() { length } else { length6 }))
            .collect()
    }

    /// The pool that cuts `range` into ranges of prefix length `length`.
    pub fn new(range: IpNet, length: u8) -> Result<Pool, PoolError> {
        if length < range.prefix_len() || length > range.max_prefix_len() {
            return Err(PoolError::Length { range, length });
        }
        Ok(Pool {
            range: range.trunc(),
            length,
        })
    }

    /// How many ranges there are.
    fn size(&self) -> u128 {
        1u128
            .checked_shl(u32::from(self.length - self.range.prefix_len()))
            .unwrap_or(MOST)
            .min(MOST)
    }

    /// The range of that number.
    fn range(&self, number: u128) -> Option<IpNet> {
        let offset = number.checked_shl(u32::from(self.range.max_prefix_len() - self.length))?;
        let net = match self.range.network() {
            IpAddr::V4(base) => {
                let base = u32::from(base).checked_add(u32::try_from(offset).ok()?)?;
                IpNet::V4(Ipv4Net::new(base.into(), self.length).ok()?)
            }
            IpAddr::V6(base) => {
                IpNet::V6(Ipv6Net::new(u128::from(base).checked_add(offset)?.into(), self.length).ok()?)
            }
        };
        Some(net)
    }

    /// The lowest range that overlaps none of `taken`.
    fn free(&self, taken: &Taken) -> Option<IpNet> {
        (0..self.size())
            .filter_map(|number| self.range(number))
            .find(|range| !taken.overlaps(range))
    }
}

/// Ranges that are given, those of the usual shape findable at once.
#[derive(Default)]
struct Taken {
    exact: BTreeSet<IpNet>,
}

impl Taken {
    fn insert(&mut self, range: IpNet) {
        self.exact.insert(range.trunc());
    }

    /// Two ranges overlap when one contains the other, so one of `range`'s supernets or subnets is taken.
    fn overlaps(&self, range: &IpNet) -> bool {
        let mut wider = Some(*range);
        while let Some(net) = wider {
            if self.exact.contains(&net) {
                return true;
            }
            wider = net.supernet();
        }
        let subnets = self
            .exact
            .range(*range..)
            .take_while(|net| range.contains(&net.network()));
        subnets.into_iter().any(|net| range.contains(net))
    }
}

/// The controller of node ranges.
#[derive(Debug)]
pub struct NodeRanges {
    pools: Vec<Pool>,
}

impl NodeRanges {
    /// Gives ranges from these pools; the first is the one that nodes are known by.
    pub fn new(pools: Vec<Pool>) -> NodeRanges {
        NodeRanges { pools }
    }
}

impl Controller for NodeRanges {
    fn name(&self) -> &'static str {
        "node-ranges"
    }

    fn component(&self) -> &'static str {
        "cidrAllocator"
    }

    fn reads(&self) -> &'static [Kind] {
        &[Kind::Node]
    }

    /// A node that leaves may free the range that another waits for.
    fn affected(&self, _: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        if let Change::Node(delta) = change {
            let wants = delta.new.as_ref().is_none_or(|node| ranges_of(node).is_empty());
            if wants {
                keys.insert(Key::all());
            }
        }
    }

    /// All nodes are served together, so that no two get the same range.
    fn plan(&self, world: &World, _: &Key, _: &Context) -> Plan {
        let mut taken = Taken::default();
        world
            .nodes
            .iter()
            .flat_map(|node| ranges_of(node))
            .for_each(|range| taken.insert(range));
        let without = world.nodes.iter().filter(|node| ranges_of(node).is_empty());
        without.filter_map(|node| self.give(node, &mut taken)).collect()
    }
}

impl NodeRanges {
    fn give(&self, node: &Node, taken: &mut Taken) -> Option<Action> {
        let mut given = Vec::new();
        for pool in &self.pools {
            let Some(range) = pool.free(taken) else {
                return exhausted(node);
            };
            given.push(range);
        }
        given.iter().for_each(|range| taken.insert(*range));
        let mut updated = node.clone();
        let spec = updated.spec.get_or_insert_default();
        spec.pod_cidr = given.first().map(IpNet::to_string);
        spec.pod_cidrs = Some(given.iter().map(IpNet::to_string).collect());
        // Once set they are for ever; somebody else may just have set them.
        Action::modify_exactly(Part::Main, node, &updated)
    }
}

/// Told once for every version of the node, not in a loop: the plan is made again only when nodes change.
fn exhausted(node: &Node) -> Option<Action> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let text = format!("Node {name} status is now: CIDRNotAvailable");
    let note = Note::normal(node, "CIDRNotAvailable", text);
    Some(Action::new(Target::of(node), Op::Tell).telling(note))
}

/// The ranges that a node has. What does not parse is nobody's range, but still keeps the node from getting one.
fn ranges_of(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.iter().flatten();
    let all = listed.chain(&spec.pod_cidr).filter(|text| !text.is_empty());
    all.filter_map(|text| text.parse::<IpNet>().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use kube::runtime::watcher::Event;
    use proptest::prelude::*;

    use super::*;
    use crate::world::Observation;

    fn node(name: &str, ranges: &[&str]) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.metadata.resource_version = Some("1".into());
        if !ranges.is_empty() {
            let spec = node.spec.get_or_insert_default();
            spec.pod_cidrs = Some(ranges.iter().map(|r| (*r).to_owned()).collect());
        }
        node
    }

    fn given(pools: &[Pool], nodes: Vec<Node>) -> Vec<(String, Vec<String>)> {
        let mut world = World::watching([Kind::Node]);
        nodes
            .into_iter()
            .for_each(|node| drop(world.observe(Observation::Node(Event::Apply(node)))));
        let plan =
            NodeRanges::new(pools.to_vec()).plan(&world, &Key::all(), &Context::at(jiff::Timestamp::now()));
        let patches = plan.actions.into_iter().filter_map(|action| match action.op {
            Op::Patch(_, patch) => {
                let ranges = serde_json::from_value(patch["spec"]["podCIDRs"].clone()).unwrap();
                Some((action.target.key.name, ranges))
            }
            _ => None,
        });
        patches.collect()
    }

    fn pools(ranges: &[&str], length: u8) -> Vec<Pool> {
        let ranges: Vec<IpNet> = ranges.iter().map(|r| r.parse().unwrap()).collect();
        Pool::parse(&ranges, length, 64).unwrap()
    }

    #[test]
    fn gives_the_lowest_that_is_free_in_both_families() {
        let pools = pools(&["10.244.0.0/16", "fd00:10:244::/56"], 24);
        let nodes = vec![
            node("a", &[]),
            node("b", &["10.244.0.0/24", "fd00:10:244:1::/64"]),
            node("c", &[]),
        ];
        let expected = [
            (
                "a".to_owned(),
                vec!["10.244.1.0/24".to_owned(), "fd00:10:244::/64".to_owned()],
            ),
            (
                "c".to_owned(),
                vec!["10.244.2.0/24".to_owned(), "fd00:10:244:2::/64".to_owned()],
            ),
        ];
        assert_eq!(given(&pools, nodes), expected);
    }

    #[test]
    fn avoids_ranges_of_other_lengths() {
        let pools = pools(&["10.0.0.0/22"], 24);
        let nodes = vec![
            node("a", &["10.0.0.0/23"]),
            node("b", &["10.0.2.128/25"]),
            node("c", &[]),
        ];
        assert_eq!(
            given(&pools, nodes),
            [("c".to_owned(), vec!["10.0.3.0/24".to_owned()])]
        );
    }

    #[test]
    fn tells_when_there_is_none_left() {
        let pools = pools(&["10.0.0.0/24"], 24);
        assert!(given(&pools, vec![node("a", &["10.0.0.0/24"]), node("b", &[])]).is_empty());
    }

    #[test]
    fn refuses_what_cannot_be_cut() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(matches!(
            Pool::new(net("10.0.0.0/24"), 16),
            Err(PoolError::Length { .. })
        ));
        assert!(matches!(
            Pool::new(net("10.0.0.0/24"), 33),
            Err(PoolError::Length { .. })
        ));
        assert_eq!(
            Pool::parse(&[net("10.0.0.0/8"), net("11.0.0.0/8")], 24, 64),
            Err(PoolError::Count(2))
        );
    }

    proptest! {
        #[test]
        fn never_gives_a_range_twice(
            had in proptest::collection::vec(proptest::option::of((0u8..8, 22u8..28)), 1..12),
        ) {
            let nodes: Vec<Node> = had.iter().enumerate().map(|(i, had)| match had {
                Some((third, length)) => {
                    let net: IpNet = format!("10.0.{third}.0/{length}").parse().unwrap();
                    node(&format!("n{i}"), &[&net.trunc().to_string()])
                }
                None => node(&format!("n{i}"), &[]),
            }).collect();
            let old: Vec<IpNet> = nodes.iter().flat_map(ranges_of).collect();
            let new: Vec<IpNet> = given(&pools(&["10.0.0.0/20"], 24), nodes)
                .into_iter().flat_map(|(_, ranges)| ranges).map(|r| r.parse().unwrap()).collect();
            prop_assert_eq!(new.iter().collect::<HashSet<_>>().len(), new.len());
            for range in &new {
                let overlaps = |other: &IpNet| range.contains(other) || other.contains(range);
                prop_assert!(!old.iter().any(overlaps), "{range} overlaps {old:?}");
            }
        }
    }
}
