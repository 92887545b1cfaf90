//! Tables of iptables and sets of ipset, evaluated as iptables' manual describes them: mangle, nat and filter in turn; and
//! IPVS beside them, which takes what carries its mark.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use podnet_core::cluster::Family;
use podnet_linux::ipvs::Virtual;
use podnet_linux::netfilter::ipset::Element;

use super::{End, Judge, Node, Outcome, Packet};
use crate::iptables::{self, Asked, Clause, HASHES, Rule, Rules, TableName, Target};
use crate::ipvs::{self, VirtualServices};
use crate::services::OURS;
use crate::services::share::MARK;

/// A packet on its way.
#[derive(Debug, Clone, Copy)]
struct Moving {
    from: IpAddr,
    asked: SocketAddr,
    to: SocketAddr,
    protocol: u8,
    translated: bool,
    masqueraded: bool,
    mark: u32,
    /// The connection's.
    carried: bool,
}

/// All the ways that chance may send it.
type Ways = Vec<(End, Moving)>;

struct Evaluation<'a> {
    node: &'a Node<'a>,
    rules: Rules,
    virtual_services: VirtualServices,
}

pub(super) fn judge<'a>(node: &'a Node<'a>) -> Judge<'a> {
    with(node, iptables::render(node.state), VirtualServices::default())
}

pub(super) fn judge_beside_ipvs<'a>(node: &'a Node<'a>) -> Judge<'a> {
    let virtual_services = ipvs::render(&node.state.services);
    with(node, iptables::beside_ipvs(node.state), virtual_services)
}

fn with<'a>(node: &'a Node<'a>, rules: Rules, virtual_services: VirtualServices) -> Judge<'a> {
    let evaluation = Evaluation {
        node,
        rules,
        virtual_services,
    };
    Box::new(move |packet| evaluation.outcomes(packet))
}

impl Evaluation<'_> {
    fn outcomes(&self, packet: Packet) -> BTreeSet<Outcome> {
        let begin = Moving {
            from: packet.from,
            asked: packet.to,
            to: packet.to,
            protocol: packet.protocol.number(),
            translated: false,
            masqueraded: false,
            mark: 0,
            carried: false,
        };
        let is_own = self.node.is_own(packet.from);
        let first = if is_own { "OUTPUT" } else { "PREROUTING" };
        let mut ways = vec![(End::Accepted, begin)];
        for table in [TableName::Mangle, TableName::Nat] {
            ways = self.then(ways, table, first);
        }
        let ways = ways.into_iter().flat_map(|way| self.delivered(way, is_own));
        ways.map(|(end, moving)| self.outcome(end, moving)).collect()
    }

    /// To IPVS, or to filter.
    fn delivered(&self, (end, moving): (End, Moving), is_own: bool) -> Ways {
        if end != End::Accepted && end != End::Through {
            return vec![(end, moving)];
        }
        if moving.carried && !moving.translated {
            return self.scheduled(moving);
        }
        let hook = match (is_own, self.node.is_own(moving.to.ip())) {
            (true, _) => "OUTPUT",
            (false, true) => "INPUT",
            (false, false) => "FORWARD",
        };
        self.then(vec![(end, moving)], TableName::Filter, hook)
    }

    /// By the mark first, as IPVS itself: then by what was asked for.
    fn scheduled(&self, moving: Moving) -> Ways {
        let six = moving.to.is_ipv6();
        let by_mark = Virtual::Mark {
            six,
            mark: moving.mark,
        };
        let by_address = Virtual::Address {
            address: moving.to.ip(),
            protocol: moving.protocol,
            port: moving.to.port(),
        };
        let found = [by_mark, by_address].map(|key| self.virtual_services.0.get(&key));
        let found = found.into_iter().flatten().next();
        let found = found.unwrap_or_else(|| panic!("IPVS has nothing for {moving:?}"));
        assert!(!found.endpoints.is_empty(), "{moving:?} waits for ever");
        let to = |to: &SocketAddr| {
            let moving = Moving {
                to: *to,
                translated: true,
                ..moving
            };
            (End::Accepted, moving)
        };
        found.endpoints.iter().map(to).collect()
    }

    fn outcome(&self, end: End, moving: Moving) -> Outcome {
        match end {
            End::Refused => return Outcome::Refused,
            End::Dropped => return Outcome::Dropped,
            End::Through | End::Accepted if !moving.translated => return Outcome::Untouched,
            End::Through | End::Accepted => {}
        }
        let mut left = vec![(End::Accepted, moving)];
        for table in [TableName::Mangle, TableName::Nat] {
            left = self.then(left, table, "POSTROUTING");
        }
        let [(_, left)] = left[..] else {
            panic!("{left:?}: sources are not left to chance")
        };
        Outcome::To {
            endpoint: moving.to,
            keeps: !left.masqueraded,
        }
    }

    /// A table's hook for all that is still on its way.
    fn then(&self, ways: Ways, table: TableName, hook: &str) -> Ways {
        let goes_on = |(end, moving): (End, Moving)| {
            let at = (Family::of(moving.to.ip()), table);
            let rule = self.rules.tables.get(&at).and_then(|table| table.hooks.get(hook));
            match (end, rule) {
                (End::Through | End::Accepted, Some(rule)) => {
                    self.list(table, std::slice::from_ref(rule), moving)
                }
                way => vec![(way.0, moving)],
            }
        };
        ways.into_iter().flat_map(goes_on).collect()
    }

    fn list(&self, table: TableName, rules: &[Rule], mut moving: Moving) -> Ways {
        for (index, rule) in rules.iter().enumerate() {
            let rest = rules.get(index + 1..).unwrap_or_default();
            // By lot it may be this rule, or none.
            let lot = rule.clauses.iter().any(|clause| matches!(clause, Clause::Lot(_)));
            if !rule.clauses.iter().all(|clause| self.holds(clause, &moving)) {
                continue;
            }
            let mut ways = if lot {
                self.list(table, rest, moving)
            } else {
                Vec::new()
            };
            let back = |(end, moving)| match end {
                End::Through => self.list(table, rest, moving),
                end => vec![(end, moving)],
            };
            let ended = match &rule.target {
                Target::Jump(chain) => self
                    .chain(table, chain, moving)
                    .into_iter()
                    .flat_map(back)
                    .collect(),
                Target::Goto(chain) => self.chain(table, chain, moving),
                Target::Translate(to) => {
                    moving.to = *to;
                    moving.translated = true;
                    vec![(End::Accepted, moving)]
                }
                Target::Masquerade => {
                    moving.masqueraded = true;
                    vec![(End::Accepted, moving)]
                }
                Target::Reset | Target::PortUnreachable(_) => vec![(End::Refused, moving)],
                Target::Drop => vec![(End::Dropped, moving)],
                Target::Accept => vec![(End::Accepted, moving)],
                Target::Return => vec![(End::Through, moving)],
                Target::MarkHash(..) => {
                    let hashes = (0..HASHES).flat_map(|hash| {
                        let mark = OURS + hash;
                        self.list(table, rest, Moving { mark, ..moving })
                    });
                    // Most hashes lead to the same few places.
                    distinct(hashes.collect())
                }
                on => {
                    self.act(on, &mut moving);
                    if !lot {
                        continue;
                    }
                    self.list(table, rest, moving)
                }
            };
            ways.extend(ended);
            return ways;
        }
        vec![(End::Through, moving)]
    }

    /// What rules go on after.
    fn act(&self, target: &Target, moving: &mut Moving) {
        match target {
            Target::Mark => moving.mark |= OURS,
            Target::Unmark => moving.mark &= !OURS,
            Target::MarkAlone => moving.mark = OURS,
            Target::Carry => moving.carried = true,
            Target::Deliver => moving.mark |= MARK,
            Target::Release => moving.mark &= !0xffff_3010,
            Target::MarkBy(set) => {
                let found = self.elements(set).find(|element| {
                    element.net.contains(&moving.to.ip())
                        && element.port == Some((moving.protocol, moving.to.port()))
                });
                moving.mark = found.and_then(|element| element.mark).unwrap_or(moving.mark);
            }
            // Nobody asks twice.
            Target::Remember(..) => {}
            other => panic!("{other:?} is not of services"),
        }
    }

    fn chain(&self, table: TableName, name: &str, moving: Moving) -> Ways {
        let at = (Family::of(moving.to.ip()), table);
        let chain = self
            .rules
            .tables
            .get(&at)
            .and_then(|table| table.chains.get(name));
        let chain = chain.unwrap_or_else(|| panic!("there is no chain {name}"));
        self.list(table, chain, moving)
    }

    fn holds(&self, clause: &Clause, moving: &Moving) -> bool {
        let (from, to) = (moving.from, moving.to.ip());
        let within = |range: &IpNet, address: IpAddr| range.contains(&address);
        match clause {
            Clause::Source(range) => within(range, from),
            Clause::Destination(range) => within(range, to),
            Clause::NotDestination(range) => !within(range, to),
            Clause::Protocol(only) => only.number() == moving.protocol,
            Clause::Ports(only, first, last) => {
                only.number() == moving.protocol && (*first..=*last).contains(&moving.to.port())
            }
            // None of these is a ping, nor of a connection that there was before.
            Clause::EchoRequest(_) | Clause::Invalid => false,
            Clause::New | Clause::Forth => true,
            Clause::DestinationIsLocal => self.node.is_own(to),
            Clause::SourceIsForeign => !self.node.is_own(from),
            Clause::In(asked, set) => self.is_in(*asked, set, moving),
            Clause::NotIn(asked, set) => !self.is_in(*asked, set, moving),
            Clause::Translated => moving.to != moving.asked,
            Clause::Untranslated => moving.to == moving.asked,
            Clause::Carried => moving.carried,
            Clause::NotCarried => !moving.carried,
            Clause::Delivered => moving.mark & MARK != 0,
            Clause::Marked => moving.mark & OURS != 0,
            Clause::NotMarked => moving.mark & OURS == 0,
            Clause::MarkedAs(value, mask) => moving.mark & mask == *value,
            // See where it is asked for.
            Clause::Lot(_) => true,
        }
    }

    fn elements(&self, set: &str) -> impl Iterator<Item = &Element> {
        let found = self.rules.sets.get(set);
        found
            .unwrap_or_else(|| panic!("there is no set {set}"))
            .elements
            .iter()
    }

    fn is_in(&self, asked: Asked, set: &str, moving: &Moving) -> bool {
        let port = Some((moving.protocol, moving.to.port()));
        let (from, to) = (&moving.from, &moving.to.ip());
        self.elements(set).any(|element| match asked {
            Asked::Source => element.net.contains(from),
            Asked::Destination => element.net.contains(to),
            Asked::Frontend => element.net.contains(to) && element.port == port,
            Asked::FrontendAndSource => {
                let admits = element.second.is_some_and(|range| range.contains(from));
                element.net.contains(to) && element.port == port && admits
            }
        })
    }
}

fn distinct(mut ways: Ways) -> Ways {
    let mut seen = BTreeSet::new();
    ways.retain(|(end, moving)| seen.insert((*end as u8, moving.to, moving.mark & OURS)));
    ways
}
