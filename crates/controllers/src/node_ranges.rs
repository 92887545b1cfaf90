//! Node ranges: every node gets a range of its own from each of the cluster's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use miette::Diagnostic;

use crate::action::{Action, Note, Op, Part, Target};
use crate::control::{Context, Controller, Plan};
use crate::resource::Key;
use crate::world::{Change, Kind, World};

/// Most ranges of one pool; what is beyond is never given.
const MOST: u128 = 1 << 16;

/// How the names of the Leases begin that say which ranges a node has.
const RECORD_PREFIX: &str = "podnet-range-";
/// The ranges, with commas in between.
const RANGES_ANNOTATION: &str = "podnet.io/ranges";

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
///
/// Beside every node that has ranges it keeps a Lease that says which. When the node is deleted, the Lease keeps the
/// ranges for a grace period: the node's pods may still run and be spoken to, and a node of the same name gets the same
/// again. A Lease outlives this process; so a leader that takes over knows what rests.
#[derive(Debug)]
pub struct NodeRanges {
    pools: Vec<Pool>,
    namespace: String,
    grace: SignedDuration,
}

impl NodeRanges {
    /// Gives ranges from these pools; the first is the one that nodes are known by. Leases are in `namespace`; a deleted
    /// node's ranges rest for `grace` seconds.
    pub fn new(pools: Vec<Pool>, namespace: &str, grace: u32) -> NodeRanges {
        NodeRanges {
            pools,
            namespace: namespace.into(),
            grace: SignedDuration::from_secs(grace.into()),
        }
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
        &[Kind::Node, Kind::Lease]
    }

    /// A node that leaves may free the range that another waits for.
    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>) {
        let matters = match change {
            Change::Node(delta) => delta.new.as_ref().is_none_or(|node| {
                let ranges = ranges_of(node);
                ranges.is_empty()
                    || self
                        .record(world, node)
                        .is_none_or(|record| record.ranges != ranges)
            }),
            Change::Lease(delta) => delta
                .sides()
                .any(|lease| Record::read(lease, &self.namespace).is_some()),
            _ => false,
        };
        if matters {
            keys.insert(Key::all());
        }
    }

    /// All nodes are served together, so that no two get the same range.
    fn plan(&self, world: &World, _: &Key, context: &Context) -> Plan {
        let mut plan = Plan::default();
        let mut taken = Taken::default();
        for range in world.nodes.iter().flat_map(|node| ranges_of(node)) {
            taken.insert(range);
        }
        let mut resting = 0;
        for record in self.records(world) {
            let node = world.nodes.get(&Key::cluster(record.node.as_str()));
            match node {
                Some(_) => plan.actions.extend(record.of_present()),
                None => {
                    let (action, until) = record.of_absent(context.now, self.grace);
                    plan.actions.extend(action);
                    plan.look_again(until);
                    if until.is_none() {
                        continue;
                    }
                    resting += 1;
                }
            }
            // What a node without ranges had is kept for it.
            for range in &record.ranges {
                taken.insert(*range);
            }
        }
        for node in world.nodes.iter() {
            let ranges = ranges_of(node);
            match ranges.is_empty() {
                true => plan.actions.extend(self.give(world, node, &mut taken, resting)),
                false => plan.actions.extend(self.note(world, node, &ranges)),
            }
        }
        plan
    }
}

impl NodeRanges {
    fn records<'a>(&'a self, world: &'a World) -> impl Iterator<Item = Record<'a>> {
        let leases = world.leases.within(&self.namespace);
        leases.filter_map(|lease| Record::read(lease, &self.namespace))
    }

    fn record<'a>(&self, world: &'a World, node: &Node) -> Option<Record<'a>> {
        let key = Key::new(self.namespace.as_str(), record_name(node));
        Record::read(world.leases.get(&key)?, &self.namespace)
    }

    /// What the node had before, or else the lowest that is free.
    fn give(&self, world: &World, node: &Node, taken: &mut Taken, resting: usize) -> Option<Action> {
        let before = self.record(world, node).map(|record| record.ranges);
        let fits = |ranges: &Vec<IpNet>| {
            let fit = |(range, pool): (&IpNet, &Pool)| {
                pool.range.contains(range) && pool.length == range.prefix_len()
            };
            let held = world.nodes.iter().flat_map(|node| ranges_of(node));
            let free = held.into_iter().all(|held| {
                !ranges
                    .iter()
                    .any(|range| range.contains(&held) || held.contains(range))
            });
            free && ranges.len() == self.pools.len() && ranges.iter().zip(&self.pools).all(fit)
        };
        let mut given = before.filter(fits).unwrap_or_default();
        if given.is_empty() {
            for pool in &self.pools {
                let Some(range) = pool.free(taken) else {
                    return exhausted(node, pool, resting);
                };
                given.push(range);
            }
        }
        given.iter().for_each(|range| taken.insert(*range));
        let mut updated = node.clone();
        let spec = updated.spec.get_or_insert_default();
        spec.pod_cidr = given.first().map(IpNet::to_string);
        spec.pod_cidrs = Some(given.iter().map(IpNet::to_string).collect());
        // Once set they are for ever; somebody else may just have set them.
        Action::modify_exactly(Part::Main, node, &updated)
    }

    /// Writes down which ranges the node has.
    fn note(&self, world: &World, node: &Node, ranges: &[IpNet]) -> Option<Action> {
        let name = record_name(node);
        // A node's name may be as long as a Lease's; its ranges do without a rest.
        if name.len() > 253 {
            return None;
        }
        let texts: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
        let annotations = BTreeMap::from([(RANGES_ANNOTATION.to_owned(), texts.join(","))]);
        let key = Key::new(self.namespace.as_str(), name.as_str());
        match world.leases.get(&key) {
            None => {
                let mut lease = Lease::default();
                lease.metadata.name = Some(name);
                lease.metadata.namespace = Some(self.namespace.clone());
                lease.metadata.annotations = Some(annotations);
                lease.spec.get_or_insert_default().holder_identity = node.metadata.name.clone();
                Some(Action::create(&lease))
            }
            Some(lease) => {
                let mut updated = (**lease).clone();
                updated
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .extend(annotations);
                updated.spec.get_or_insert_default().holder_identity = node.metadata.name.clone();
                Action::modify_exactly(Part::Main, &**lease, &updated)
            }
        }
    }
}

fn record_name(node: &Node) -> String {
    format!(
        "{RECORD_PREFIX}{}",
        node.metadata.name.as_deref().unwrap_or_default()
    )
}

/// What is written down about a node.
struct Record<'a> {
    lease: &'a Lease,
    node: String,
    ranges: Vec<IpNet>,
}

impl<'a> Record<'a> {
    /// None for a Lease that is somebody else's.
    fn read(lease: &'a Lease, namespace: &str) -> Option<Self> {
        let metadata = &lease.metadata;
        let node = metadata.name.as_deref()?.strip_prefix(RECORD_PREFIX)?;
        if metadata.namespace.as_deref() != Some(namespace) {
            return None;
        }
        let ranges = metadata.annotations.as_ref()?.get(RANGES_ANNOTATION)?;
        Some(Record {
            lease,
            node: node.to_owned(),
            ranges: ranges.split(',').filter_map(|text| text.parse().ok()).collect(),
        })
    }

    fn gone_since(&self) -> Option<Timestamp> {
        Some(self.lease.spec.as_ref()?.renew_time.as_ref()?.0)
    }

    /// The node is there, perhaps again.
    fn of_present(&self) -> Option<Action> {
        self.gone_since()?;
        let mut updated = self.lease.clone();
        updated.spec.get_or_insert_default().renew_time = None;
        Action::modify_exactly(Part::Main, self.lease, &updated)
    }

    /// The node is gone: notes since when, and until when the ranges rest; none when that is over.
    fn of_absent(&self, now: Timestamp, grace: SignedDuration) -> (Option<Action>, Option<Timestamp>) {
        let Some(since) = self.gone_since() else {
            let mut updated = self.lease.clone();
            updated.spec.get_or_insert_default().renew_time = Some(MicroTime(now));
            return (
                Action::modify_exactly(Part::Main, self.lease, &updated),
                Some(now + grace),
            );
        };
        match since + grace {
            end if end <= now => (Some(Action::delete(self.lease)), None),
            end => (None, Some(end)),
        }
    }
}

/// Told once for every version of the node, not in a loop: the plan is made again only when nodes change.
fn exhausted(node: &Node, pool: &Pool, resting: usize) -> Option<Action> {
    let Pool { range, length } = pool;
    let resting = match resting {
        0 => String::new(),
        some => format!(" ({some} deleted nodes' ranges rest for a while)"),
    };
    let text = format!(
        "no range of /{length} is left in {range}, which has {}{resting}: the node gets no pods with addresses. Delete \
         nodes that are gone, or give the cluster a larger range or longer prefixes",
        pool.size()
    );
    let note = Note::warning(node, "CIDRNotAvailable", text);
    Some(Action::new(Target::of(node), Op::Tell).telling(note))
}

/// The ranges that a node has. What does not parse is nobody's range, but still keeps the node from getting one.
fn ranges_of(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.iter().flatten();
    let mut ranges: Vec<IpNet> = Vec::new();
    for text in listed.chain(&spec.pod_cidr) {
        // podCIDR is the first of podCIDRs, where both are set.
        if let Ok(range) = text.parse()
            && !ranges.contains(&range)
        {
            ranges.push(range);
        }
    }
    ranges
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
        given_beside(pools, nodes, &[])
    }

    /// With these Leases.
    fn given_beside(pools: &[Pool], nodes: Vec<Node>, leases: &[Lease]) -> Vec<(String, Vec<String>)> {
        let plan = plan(pools, nodes, leases);
        let patches = plan.actions.into_iter().filter_map(|action| match action.op {
            Op::Patch(_, patch) if action.target.resource.kind == "Node" => {
                let ranges = serde_json::from_value(patch["spec"]["podCIDRs"].clone()).unwrap();
                Some((action.target.key.name, ranges))
            }
            _ => None,
        });
        patches.collect()
    }

    fn plan(pools: &[Pool], nodes: Vec<Node>, leases: &[Lease]) -> Plan {
        let mut world = World::watching([Kind::Node, Kind::Lease]);
        for node in nodes {
            world.observe(Observation::Node(Event::Apply(node)));
        }
        for lease in leases {
            world.observe(Observation::Lease(Event::Apply(lease.clone())));
        }
        let now = "2026-01-01T00:10:00Z".parse().unwrap();
        NodeRanges::new(pools.to_vec(), "kube-system", 600).plan(&world, &Key::all(), &Context::at(now))
    }

    /// What is written down about a node that is gone since then.
    fn record(node: &str, ranges: &str, gone: Option<&str>) -> Lease {
        serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": format!("podnet-range-{node}"), "namespace": "kube-system", "resourceVersion": "1",
                "annotations": {"podnet.io/ranges": ranges},
            },
            "spec": {"holderIdentity": node, "renewTime": gone},
        }))
        .unwrap()
    }

    #[test]
    fn a_node_that_asks_twice_gets_the_same_range() {
        let pools = pools(&["10.0.0.0/16"], 24);
        for gone in [None, Some("2026-01-01T00:05:00.000000Z")] {
            let known = [record("b", "10.0.7.0/24", gone)];
            let both = given_beside(&pools, vec![node("a", &[]), node("b", &[])], &known);
            assert_eq!(both[1], ("b".to_owned(), vec!["10.0.7.0/24".to_owned()]));
        }
        let taken = given_beside(
            &pools,
            vec![node("a", &["10.0.7.0/24"]), node("b", &[])],
            &[record("b", "10.0.7.0/24", None)],
        );
        assert_eq!(taken[0].1, ["10.0.0.0/24"], "unless another has it");
        let other_size = given_beside(&pools, vec![node("b", &[])], &[record("b", "10.0.8.0/23", None)]);
        assert_eq!(other_size[0].1, ["10.0.0.0/24"], "or sizes have changed");
    }

    #[test]
    fn a_deleted_nodes_range_comes_back_after_a_grace_period() {
        let pools = pools(&["10.0.0.0/23"], 24);
        let nodes = || vec![node("b", &["10.0.1.0/24"]), node("c", &[])];
        let of_b = record("b", "10.0.1.0/24", None);
        for gone in [None, Some("2026-01-01T00:00:00.500000Z")] {
            let leases = [record("a", "10.0.0.0/24", gone), of_b.clone()];
            assert!(given_beside(&pools, nodes(), &leases).is_empty());
            let plan = plan(&pools, nodes(), &leases);
            let note = plan
                .actions
                .iter()
                .find_map(|action| action.note.as_ref())
                .unwrap();
            assert_eq!(
                note.message,
                "no range of /24 is left in 10.0.0.0/23, which has 2 (1 deleted nodes' ranges rest for a while): the \
                 node gets no pods with addresses. Delete nodes that are gone, or give the cluster a larger range or \
                 longer prefixes"
            );
            assert!(plan.again.is_some(), "and looks again");
        }
        let expired = [
            record("a", "10.0.0.0/24", Some("2026-01-01T00:00:00.000000Z")),
            of_b,
        ];
        assert_eq!(given_beside(&pools, nodes(), &expired)[0].1, ["10.0.0.0/24"]);
        let deletes = |action: &Action| matches!(action.op, Op::Delete { .. });
        assert!(plan(&pools, nodes(), &expired).actions.iter().any(deletes));
    }

    #[test]
    fn what_nodes_have_is_written_down_once() {
        let pools = pools(&["10.0.0.0/16"], 24);
        let has = || vec![node("a", &["10.0.0.0/24"])];
        let first = plan(&pools, has(), &[]);
        assert!(
            matches!(&first.actions[..], [Action { op: Op::Create(lease), .. }]
            if lease["metadata"]["annotations"]["podnet.io/ranges"] == "10.0.0.0/24")
        );
        assert!(
            plan(&pools, has(), &[record("a", "10.0.0.0/24", None)])
                .actions
                .is_empty()
        );
        let back = plan(
            &pools,
            has(),
            &[record("a", "10.0.0.0/24", Some("2026-01-01T00:09:00.000000Z"))],
        );
        assert_eq!(back.actions.len(), 1, "it is there again");
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
