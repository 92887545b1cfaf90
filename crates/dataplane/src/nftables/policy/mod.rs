//! Policies in the node's table: which connections of the node's pods are allowed.
//!
//! A connection is judged by its first packet, in NAT chains, which see no other: where its destination is chosen and
//! its source still its own. So one that is established pays nothing. Each direction has a base chain of its own, in which
//! `accept` ends that direction's judgement and no other's. A pod's address leads to the chain of its label set; who the
//! other end may be is in sets. So a pod that comes or goes is elements, never a rule.
//!
//! Of a NetworkPolicy's rules none takes precedence. They are not gone through: the port leads to a chain, and this
//! looks the other end up among all that any rule admits to that port. Rules of ClusterNetworkPolicies stand in their order.

mod check;
mod peers;
mod ports;
mod ranges;

use podnet_core::cluster::{Action, Direction, Family};
use podnet_core::policy::{Isolation, PolicyState, Ports, Rule as PolicyRule, Tiers};
use sha2::{Digest, Sha256};

use super::model::{Base, Chain, Field, Hook, MapsTo, Set, Table, Value, Verdict};
use super::render::{FAMILIES, SRCNAT, goto, jump, leave, rule};
use super::rule::{Clause, Rule, octets};
pub use check::Gap;
pub(crate) use check::gap;
use peers::Union;

/// The sets of one family.
struct Names {
    /// To the chain for connections from a pod.
    egress: &'static str,
    /// To the chain for connections to a pod.
    ingress: &'static str,
    /// The pods that a policy is about.
    policed: &'static str,
    /// The same, each twice: who calls itself.
    themselves: &'static str,
}

fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            egress: "egress4",
            ingress: "ingress4",
            policed: "policed4",
            themselves: "self4",
        },
        Family::V6 => Names {
            egress: "egress6",
            ingress: "ingress6",
            policed: "policed6",
            themselves: "self6",
        },
    }
}

const CLOSED: &str = "closed";
const OPEN: &str = "open";
const UNPLACED: &str = "unplaced";
const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// What policies have in the table; nothing where they are about no pod of the node.
pub(crate) fn render(policy: &PolicyState) -> Table {
    let mut render = Render {
        policy,
        table: Table::default(),
    };
    if !policy.is_open() {
        render.frame();
        render.pods();
    }
    render.table
}

/// A table in the making.
struct Render<'a> {
    policy: &'a PolicyState,
    table: Table,
}

fn verdict(verdict: Verdict) -> Rule {
    rule([Clause::Verdict(verdict)])
}

/// A name for what is described: the same for the same, on every node and at any time. Users choose what is in it, so
/// it must not be possible to find two of one name.
fn digest(text: &str) -> String {
    let hash = Sha256::digest(text);
    hash[..12].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn plain(key: &'static [Field], maps_to: MapsTo) -> Set {
    Set {
        key,
        maps_to,
        dynamic: false,
        interval: false,
    }
}

fn address(family: Family) -> &'static [Field] {
    match family {
        Family::V4 => &[Field::Ipv4],
        Family::V6 => &[Field::Ipv6],
    }
}

impl<'a> Render<'a> {
    /// Makes a set; false if it was made already.
    fn set(&mut self, name: &str, set: Set) -> bool {
        let new = self.table.sets.insert(name.to_owned(), set).is_none();
        self.table.elements.entry(name.to_owned()).or_default();
        new
    }

    fn element(&mut self, set: &str, key: Vec<u8>, value: Value) {
        let elements = self.table.elements.entry(set.to_owned()).or_default();
        elements.insert(key, value);
    }

    fn chain(&mut self, name: &str, base: Option<Base>, rules: Vec<Rule>) {
        self.table.chains.insert(name.to_owned(), Chain { base, rules });
    }

    /// All but what grows with the number of pods and rules.
    fn frame(&mut self) {
        for family in FAMILIES {
            let names = names(family);
            let pair = match family {
                Family::V4 => &[Field::Ipv4, Field::Ipv4],
                Family::V6 => &[Field::Ipv6, Field::Ipv6],
            };
            self.set(names.egress, plain(address(family), MapsTo::Verdicts));
            self.set(names.ingress, plain(address(family), MapsTo::Verdicts));
            self.set(names.policed, plain(address(family), MapsTo::Nothing));
            self.set(names.themselves, plain(pair, MapsTo::Nothing));
        }
        let nat = |hook, before| {
            Some(Base {
                kind: "nat",
                hook,
                priority: SRCNAT - before,
            })
        };
        let from = || {
            let by_source = |family| rule([Clause::SourceVerdict(family, names(family).egress.into())]);
            FAMILIES.map(by_source).to_vec()
        };
        let by_destination =
            |family| rule([Clause::DestinationVerdict(family, names(family).ingress.into())]);
        self.chain("policy-egress", nat(Hook::Postrouting, 2), from());
        self.chain(
            "policy-ingress",
            nat(Hook::Postrouting, 1),
            FAMILIES.map(by_destination).to_vec(),
        );
        // What is for the node itself is not routed on.
        self.chain("policy-node", nat(Hook::Input, 2), from());
        let filter = Base {
            kind: "filter",
            hook: Hook::Forward,
            priority: 0,
        };
        self.chain(
            "policy-unplaced",
            Some(filter),
            vec![rule([Clause::Unplaced, jump(UNPLACED)])],
        );
        self.chain(UNPLACED, None, unplaced());
        for direction in DIRECTIONS {
            let end = [verdict(Verdict::Drop)];
            let closed = own_node(direction).into_iter().chain(end).collect();
            self.chain(&format!("{direction}-{CLOSED}"), None, closed);
            self.chain(&format!("{direction}-{OPEN}"), None, beginnings(direction));
        }
    }

    fn pods(&mut self) {
        let policy = self.policy;
        for (id, rules) in &policy.rules {
            for direction in DIRECTIONS {
                let tiers = rules.of(direction);
                if !tiers.is_open() {
                    self.tiers(&format!("{direction}-{id}"), direction, tiers);
                }
            }
        }
        for pod in policy.pods.values() {
            let chains = DIRECTIONS.map(|direction| {
                let open = policy
                    .rules
                    .get(&pod.label_set)
                    .is_none_or(|rules| rules.of(direction).is_open());
                match open {
                    true => format!("{direction}-{OPEN}"),
                    false => format!("{direction}-{}", pod.label_set),
                }
            });
            for address in &pod.addresses {
                self.pod(*address, &chains);
            }
        }
        let closed = DIRECTIONS.map(|direction| format!("{direction}-{CLOSED}"));
        for address in &policy.strangers {
            self.pod(*address, &closed);
        }
    }

    fn pod(&mut self, address: std::net::IpAddr, [ingress, egress]: &[String; 2]) {
        let names = names(Family::of(address));
        let to = |chain: &String| Value::Verdict(Verdict::Goto(chain.clone()));
        self.element(names.ingress, octets(address), to(ingress));
        self.element(names.egress, octets(address), to(egress));
        self.element(names.policed, octets(address), Value::None);
        self.element(names.themselves, octets(address).repeat(2), Value::None);
    }

    /// The chain of a label set in one direction.
    fn tiers(&mut self, name: &str, direction: Direction, tiers: &'a Tiers) {
        let rest = match &tiers.network {
            Some(isolation) => self.isolation(direction, isolation),
            // There is no tier behind this one.
            None => self.ordered(direction, &tiers.baseline, &Clause::Verdict(Verdict::Accept)),
        };
        let mut rules = beginnings(direction);
        if tiers.admin.iter().any(|rule| rule.action == Action::Pass) {
            let behind = format!("{name}-rest");
            rules.extend(self.ordered(direction, &tiers.admin, &goto(&behind)));
            rules.push(rule([goto(&behind)]));
            self.chain(&behind, None, rest);
        } else {
            rules.extend(self.ordered(direction, &tiers.admin, &Clause::Verdict(Verdict::Accept)));
            rules.extend(rest);
        }
        self.chain(name, None, rules);
    }

    /// What NetworkPolicies say: a connection that none of their rules accepts is dropped.
    fn isolation(&mut self, direction: Direction, isolation: &'a Isolation) -> Vec<Rule> {
        let mut rules: Vec<Rule> = FAMILIES
            .map(|family| {
                let itself = Clause::PairIn(family, names(family).themselves.into());
                rule([itself, Clause::Verdict(Verdict::Accept)])
            })
            .to_vec();
        if direction == Direction::Egress {
            rules.extend(own_node(direction));
        }
        let (any, some): (Vec<_>, Vec<_>) = isolation.rules.iter().partition(|rule| rule.ports == Ports::Any);
        let whom = Union::of(any.iter().map(|rule| &rule.peers));
        rules.extend(self.each(direction, &whom, &[], &Clause::Verdict(Verdict::Accept)));
        match ports::classes(&some) {
            Some(classes) => {
                rules.extend(self.names(some.iter().copied(), &Clause::Verdict(Verdict::Accept)));
                rules.extend(self.classes(direction, &classes));
            }
            // Rules whose ranges overlap so much that all combinations would be too many are gone through after all.
            None => {
                for one in some {
                    rules.extend(self.one(direction, one, &Clause::Verdict(Verdict::Accept)));
                }
            }
        }
        rules.push(verdict(Verdict::Drop));
        rules
    }

    /// Rules of which the first that matches decides.
    fn ordered(&mut self, direction: Direction, rules: &'a [PolicyRule], pass: &Clause) -> Vec<Rule> {
        let mut all = Vec::new();
        for one in rules {
            let then = match one.action {
                Action::Accept => &Clause::Verdict(Verdict::Accept),
                Action::Deny => &Clause::Verdict(Verdict::Drop),
                Action::Pass => pass,
            };
            all.extend(self.one(direction, one, then));
        }
        all
    }

    /// One rule: it takes several of nftables', a packet matches one of them at most.
    fn one(&mut self, direction: Direction, one: &'a PolicyRule, then: &Clause) -> Vec<Rule> {
        let whom = Union::of([&one.peers]);
        let mut rules = Vec::new();
        for condition in self.ports(one) {
            rules.extend(self.each(direction, &whom, &condition, then));
        }
        rules.extend(self.names([one].into_iter(), then));
        rules
    }

    /// A rule for each way in which the other end can be one of those.
    fn each(
        &mut self,
        direction: Direction,
        whom: &Union<'a>,
        before: &[Clause],
        then: &Clause,
    ) -> Vec<Rule> {
        let conditions = self.whom(direction, whom).into_iter();
        let whole = conditions.map(|condition| {
            let clauses = before.iter().cloned().chain(condition);
            rule(clauses.chain([then.clone()]))
        });
        whole.collect()
    }
}

/// Between a pod and its own node everything is allowed. What a node sends has one of its own addresses and came by no
/// link; frames between ports of a bridge seem to have come by none, too, but have a pod's address.
fn own_node(direction: Direction) -> Vec<Rule> {
    let accept = Clause::Verdict(Verdict::Accept);
    vec![match direction {
        Direction::Ingress => rule([Clause::CameByNone, Clause::SourceIsLocal, accept]),
        Direction::Egress => rule([Clause::LeavesByNone, accept]),
    }]
}

/// A connection begins with its beginning. Connection tracking also takes up one that it sees in the middle, and then
/// whoever happens to send first counts as its client: one that was cut would come back with its ends exchanged, and with
/// it what its server may not receive.
fn beginnings(direction: Direction) -> Vec<Rule> {
    let drop = || Clause::Verdict(Verdict::Drop);
    match direction {
        Direction::Ingress => own_node(direction)
            .into_iter()
            .chain([rule([Clause::NotASyn, drop()]), rule([Clause::NotAnInit, drop()])])
            .collect(),
        Direction::Egress => [Clause::NotASyn, Clause::NotAnInit]
            .map(|what| rule([Clause::LeavesBySome, what, drop()]))
            .to_vec(),
    }
}

/// Packets of no connection pass no NAT chain, so they would pass unjudged. IPv6's neighbour discovery is never tracked;
/// between ports of a bridge it is forwarded.
fn unplaced() -> Vec<Rule> {
    let discovery = [(130, 132), (133, 136), (143, 143)];
    let mut rules: Vec<Rule> = discovery
        .map(|(first, last)| rule([Clause::Icmpv6(first, last), leave()]))
        .to_vec();
    for family in FAMILIES {
        let policed = || names(family).policed.into();
        for end in [
            Clause::SourceIn(family, policed()),
            Clause::DestinationIn(family, policed()),
        ] {
            rules.push(rule([end, Clause::Verdict(Verdict::Drop)]));
        }
    }
    rules
}

/// What two states' policies have in the table, as far as it differs.
pub(crate) fn difference(old: &Table, new: &Table) -> (Table, Table) {
    let (mut before, mut after) = (Table::default(), Table::default());
    let names = old.sets.keys().chain(new.sets.keys());
    for name in names {
        let parts = |table: &Table| (table.sets.get(name).cloned(), table.elements.get(name).cloned());
        if after.sets.contains_key(name)
            || old.sets.get(name) == new.sets.get(name) && old.elements.get(name) == new.elements.get(name)
        {
            continue;
        }
        for (whole, part) in [(old, &mut before), (new, &mut after)] {
            let (set, elements) = parts(whole);
            part.sets.extend(set.map(|set| (name.clone(), set)));
            part.elements
                .extend(elements.map(|elements| (name.clone(), elements)));
        }
    }
    for (whole, other, part) in [(old, new, &mut before), (new, old, &mut after)] {
        let changed = whole
            .chains
            .iter()
            .filter(|(name, chain)| other.chains.get(*name) != Some(chain));
        part.chains
            .extend(changed.map(|(name, chain)| (name.clone(), chain.clone())));
    }
    (before, after)
}

/// Adds what policies have to the rest of a table.
pub(crate) fn add(table: &mut Table, policy: Table) {
    table.sets.extend(policy.sets);
    table.elements.extend(policy.elements);
    table.chains.extend(policy.chains);
}

#[cfg(test)]
mod tests;
