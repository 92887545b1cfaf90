//! What of a connection rules look at beside its ends: protocol, port, and what the destination means by a name.

use std::collections::BTreeMap;

use podnet_core::cluster::{Direction, Family, Protocol};
use podnet_core::policy::{Peers, PortMatch, Ports, Rule as PolicyRule};

use super::super::model::{Field, MapsTo, Set, Value, Verdict, digit};
use super::super::render::rule;
use super::super::rule::{Clause, Rule, octets};
use super::peers::Union;
use super::ranges::merged;
use super::{FAMILIES, Render, digest, plain, verdict};

type Range = (u16, u16);
const EVERY: Range = (0, u16::MAX);

/// The ports of a protocol, cut where rules begin and end: who may connect to each piece. What is in no piece nobody
/// may connect to.
pub(super) type Classes<'a> = BTreeMap<Protocol, Vec<(Range, Union<'a>)>>;

/// So many peers of rules may stand in pieces for each rule on average; beyond that the pieces are too many.
const MOST_PER_RULE: usize = 16;
const MOST_AT_LEAST: usize = 4096;

/// Names are no part of it. `None` when there would be too many pieces.
pub(super) fn classes<'a>(rules: &[&'a PolicyRule]) -> Option<Classes<'a>> {
    let mut budget = MOST_AT_LEAST + MOST_PER_RULE * rules.len();
    let mut spans: BTreeMap<Protocol, Vec<(Range, &'a Peers)>> = BTreeMap::new();
    for one in rules {
        for (protocol, range) in numbers(one) {
            spans.entry(protocol).or_default().push((range, &one.peers));
        }
    }
    let cut = |(protocol, spans)| Some((protocol, pieces(spans, &mut budget)?));
    spans.into_iter().map(cut).collect()
}

/// What a rule says in numbers.
fn numbers(rule: &PolicyRule) -> impl Iterator<Item = (Protocol, Range)> {
    let ports = match &rule.ports {
        Ports::Any => None,
        Ports::OneOf(ports) => Some(ports),
    };
    ports.into_iter().flatten().filter_map(|port| match port {
        PortMatch::Every(protocol) => Some((*protocol, EVERY)),
        PortMatch::Numbers(protocol, range) => Some((*protocol, (range.first().get(), range.last().get()))),
        PortMatch::Named(..) => None,
    })
}

fn pieces<'a>(spans: Vec<(Range, &'a Peers)>, budget: &mut usize) -> Option<Vec<(Range, Union<'a>)>> {
    let mut begins: BTreeMap<u32, Vec<&'a Peers>> = BTreeMap::new();
    let mut ends: BTreeMap<u32, Vec<&'a Peers>> = BTreeMap::new();
    for ((first, last), peers) in spans {
        begins.entry(first.into()).or_default().push(peers);
        ends.entry(u32::from(last) + 1).or_default().push(peers);
    }
    let mut cuts: Vec<u32> = begins.keys().chain(ends.keys()).copied().collect();
    cuts.sort_unstable();
    cuts.dedup();
    // How many rules each of the peers' lists is in at the moment.
    let mut active: BTreeMap<&'a Peers, usize> = BTreeMap::new();
    let mut pieces: Vec<(Range, Union<'a>)> = Vec::new();
    for (index, cut) in cuts.iter().enumerate() {
        for peers in ends.get(cut).into_iter().flatten() {
            if let Some(count) = active.get_mut(peers) {
                *count -= 1;
            }
        }
        active.retain(|_, count| *count > 0);
        for peers in begins.get(cut).into_iter().flatten() {
            *active.entry(peers).or_default() += 1;
        }
        *budget = budget.checked_sub(active.len())?;
        let whom = Union::of(active.keys().copied());
        let next = cuts.get(index + 1);
        let range = next.and_then(|next| Some((u16::try_from(*cut).ok()?, u16::try_from(next - 1).ok()?)));
        let Some((first, last)) = range.filter(|_| !whom.is_nobody()) else {
            continue;
        };
        match pieces.last_mut() {
            Some(((_, end), before)) if u32::from(*end) + 1 == *cut && *before == whom => *end = last,
            _ => pieces.push(((first, last), whom)),
        }
    }
    Some(pieces)
}

fn key((first, last): Range) -> Vec<u8> {
    [first.to_be_bytes(), last.to_be_bytes()].concat()
}

const PORT: &[Field] = &[Field::Port];

impl<'a> Render<'a> {
    /// Rules that lead from protocol and port to the chain of those who may connect there, which ends in a verdict.
    pub(super) fn classes(&mut self, direction: Direction, classes: &Classes<'a>) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (protocol, pieces) in classes.iter().filter(|(_, pieces)| !pieces.is_empty()) {
            let mut elements = Vec::new();
            for (range, whom) in pieces {
                elements.push((*range, self.class(direction, whom)));
            }
            let text: String = elements
                .iter()
                .map(|((first, last), chain)| format!("{first}-{last} {chain}\n"))
                .collect();
            let name = format!("ports-{}", digest(&text));
            let map = Set {
                interval: true,
                ..plain(PORT, MapsTo::Verdicts)
            };
            if self.set(&name, map) {
                for (range, chain) in elements {
                    self.element(&name, key(range), Value::Verdict(Verdict::Goto(chain)));
                }
            }
            rules.push(rule([
                Clause::Protocol(protocol.number()),
                Clause::PortVerdict(name.into()),
            ]));
        }
        rules
    }

    /// The chain that admits those and nobody else.
    fn class(&mut self, direction: Direction, whom: &Union<'a>) -> String {
        let which = match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let name = format!("{which}-{}", digest(&whom.text()));
        if !self.table.chains.contains_key(&name) {
            let mut rules = self.each(direction, whom, &[], &Clause::Verdict(Verdict::Accept));
            if *whom != Union::Anybody {
                rules.push(verdict(Verdict::Drop));
            }
            self.chain(&name, None, rules);
        }
        name
    }

    /// The conditions under which protocol and port are one of a rule's, as far as it says them in numbers.
    pub(super) fn ports(&mut self, one: &PolicyRule) -> Vec<Vec<Clause>> {
        if one.ports == Ports::Any {
            return vec![Vec::new()];
        }
        let mut by_protocol: BTreeMap<Protocol, Vec<Range>> = BTreeMap::new();
        for (protocol, range) in numbers(one) {
            by_protocol.entry(protocol).or_default().push(range);
        }
        let mut conditions = Vec::new();
        for (protocol, ranges) in by_protocol {
            let mut condition = vec![Clause::Protocol(protocol.number())];
            let ranges = merged(ranges);
            if ranges != [EVERY] {
                condition.push(Clause::PortIn(self.port_set(&ranges).into()));
            }
            conditions.push(condition);
        }
        conditions
    }

    fn port_set(&mut self, ranges: &[Range]) -> String {
        let text: String = ranges
            .iter()
            .map(|(first, last)| format!("{first}-{last}\n"))
            .collect();
        let name = format!("ports-{}", digest(&text));
        let set = Set {
            interval: true,
            ..plain(PORT, MapsTo::Nothing)
        };
        if self.set(&name, set) {
            for range in ranges {
                self.element(&name, key(*range), Value::None);
            }
        }
        name
    }

    /// Rules for the ports that egress rules name: which numbers those are depends on the destination.
    pub(super) fn names(&mut self, rules: impl Iterator<Item = &'a PolicyRule>, then: &Clause) -> Vec<Rule> {
        let named: Vec<_> = rules.filter(|one| one.has_names()).collect();
        if named.is_empty() {
            return Vec::new();
        }
        let described = named.iter().flat_map(|one| {
            wanted(one).map(move |(protocol, name)| {
                let port = PortMatch::Named(protocol, name.to_owned());
                format!("{} {port}\n", one.peers)
            })
        });
        let digest = digest(&described.collect::<String>());
        let sets = FAMILIES.map(|family| format!("named{}-{digest}", digit(family)));
        let mut new = false;
        for (family, set) in FAMILIES.into_iter().zip(&sets) {
            new |= self.set(set, plain(socket(family), MapsTo::Nothing));
        }
        if new {
            self.sockets(&sets, &named);
        }
        let pairs = FAMILIES.into_iter().zip(sets);
        let each = pairs.map(|(family, set)| rule([Clause::SocketIn(family, set.into()), then.clone()]));
        each.collect()
    }

    fn sockets(&mut self, sets: &[String; 2], named: &[&'a PolicyRule]) {
        let policy = self.policy;
        for (id, set) in &policy.label_sets {
            for one in named {
                for (protocol, name) in wanted(one) {
                    let numbers: Vec<_> = set.named(protocol, name).collect();
                    if numbers.is_empty() {
                        continue;
                    }
                    for member in &set.members {
                        if !self.is_among(&one.peers, *id, *member) {
                            continue;
                        }
                        let of_family = &sets[usize::from(member.is_ipv6())];
                        for (protocol, port) in &numbers {
                            let [high, low] = port.get().to_be_bytes();
                            let mut key = octets(*member);
                            key.extend([protocol.number(), 0, 0, 0, high, low, 0, 0]);
                            self.element(of_family, key, Value::None);
                        }
                    }
                }
            }
        }
    }
}

fn socket(family: Family) -> &'static [Field] {
    match family {
        Family::V4 => &[Field::Ipv4, Field::Protocol, Field::Port],
        Family::V6 => &[Field::Ipv6, Field::Protocol, Field::Port],
    }
}

/// The names that a rule has among its ports.
fn wanted(rule: &PolicyRule) -> impl Iterator<Item = (Option<Protocol>, &str)> {
    let ports = match &rule.ports {
        Ports::Any => None,
        Ports::OneOf(ports) => Some(ports),
    };
    ports.into_iter().flatten().filter_map(|port| match port {
        PortMatch::Named(protocol, name) => Some((*protocol, name.as_str())),
        _ => None,
    })
}
