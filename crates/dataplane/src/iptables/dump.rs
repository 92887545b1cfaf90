//! Our chains and sets, in the model's words.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use podnet_core::cluster::{Family, Protocol};
use podnet_core::service::{Frontend, NodePort};
use podnet_linux::netfilter::ipset::Element;

use super::found::{Found, FoundTable};
use super::model::TableName;
use super::render::{CHOICE, set};
use super::rule::{Asked, Clause, Rule, Target as Verdict};
use crate::services::{Fate, Services, Target};

/// What the tables of both families do.
pub(crate) fn services(found: &Found) -> Services {
    let mut services = Services::default();
    for family in [Family::V4, Family::V6] {
        let reader = Reader { found, family };
        let elements = reader.set("CLUSTER");
        services
            .cluster_ips
            .extend(elements.map(|element| element.net.addr()));
        reader.fates(&mut services);
        if let Some(table) = found.tables.get(&(family, TableName::Nat)) {
            reader.tree(table, &mut services);
        }
    }
    services
}

struct Reader<'a> {
    found: &'a Found,
    family: Family,
}

impl<'a> Reader<'a> {
    fn set(&self, what: &str) -> impl Iterator<Item = &'a Element> + use<'a> {
        let set = self.found.sets.get(&set(what, self.family));
        set.into_iter().flat_map(|set| &set.elements)
    }

    /// What is refused and dropped.
    fn fates(&self, services: &mut Services) {
        let guarded: BTreeSet<&Element> = self.set("GUARD").collect();
        for (side, fate) in [
            ("", Fate::Refuse),
            ("", Fate::Drop),
            ("-OUT", Fate::Refuse),
            ("-OUT", Fate::Drop),
        ] {
            let name = match fate {
                Fate::Drop => "DROP",
                _ => "REFUSE",
            };
            for element in self.set(&format!("{name}{side}")) {
                let Some((protocol, port)) = read_port(element) else {
                    continue;
                };
                let frontend = Frontend {
                    address: element.net.addr(),
                    protocol,
                    port,
                };
                let target = Target {
                    guarded: fate == Fate::Refuse && guarded.contains(element),
                    sticky: false,
                    fate: fate.clone(),
                };
                // As every other port of a cluster IP.
                let anyway = fate == Fate::Refuse && services.cluster_ips.contains(&frontend.address);
                match side {
                    "" if anyway && !target.guarded => {}
                    "" => _ = services.frontends.insert(frontend, target),
                    _ => _ = services.outside.insert(frontend, target),
                }
            }
            for element in self.set(&format!("PORT-{name}{side}")) {
                let Some((protocol, port)) = read_port(element) else {
                    continue;
                };
                let node_port = NodePort {
                    family: self.family,
                    protocol,
                    port,
                };
                let target = Target {
                    guarded: false,
                    sticky: false,
                    fate: fate.clone(),
                };
                match side {
                    "" => _ = services.node_ports.insert(node_port, target),
                    _ => _ = services.outside_ports.insert(node_port, target),
                }
            }
        }
    }

    /// What is translated: what a packet can come to from iptables' own chains.
    fn tree(&self, table: &FoundTable, services: &mut Services) {
        let hooks = table.hooks.get("PREROUTING").into_iter().flatten();
        let hooks = hooks.filter_map(|rule| rule.parse::<Rule>().ok());
        let mut waiting: Vec<String> = hooks
            .filter_map(|rule| leads_to(&rule).map(str::to_owned))
            .collect();
        let mut seen = BTreeSet::new();
        while let Some(chain) = waiting.pop() {
            if !seen.insert(chain.clone()) {
                continue;
            }
            for rule in table.chains.get(&chain).into_iter().flatten().flatten() {
                let Some(next) = leads_to(rule) else { continue };
                match endpoints(table, next) {
                    Some(target) => self.leaf(rule, target, services),
                    None => waiting.push(next.to_owned()),
                }
            }
        }
    }

    fn leaf(&self, rule: &Rule, target: Target, services: &mut Services) {
        let admit = set("ADMIT", self.family);
        let guarded = rule
            .clauses
            .contains(&Clause::In(Asked::FrontendAndSource, admit));
        let target = Target { guarded, ..target };
        let outside = rule.clauses.contains(&Clause::SourceIsForeign);
        let port = |port: &u16| NonZeroU16::new(*port);
        match &rule.clauses[..] {
            [Clause::Destination(net), Clause::Ports(protocol, first, last), ..] if first == last => {
                let Some(port) = port(first) else { return };
                let frontend = Frontend {
                    address: net.addr(),
                    protocol: *protocol,
                    port,
                };
                let of_side = if outside {
                    &mut services.outside
                } else {
                    &mut services.frontends
                };
                of_side.insert(frontend, target);
            }
            [Clause::Ports(protocol, first, last), ..] if first == last => {
                let Some(port) = port(first) else { return };
                let node_port = NodePort {
                    family: self.family,
                    protocol: *protocol,
                    port,
                };
                let of_side = if outside {
                    &mut services.outside_ports
                } else {
                    &mut services.node_ports
                };
                of_side.insert(node_port, target);
            }
            _ => {}
        }
    }
}

fn leads_to(rule: &Rule) -> Option<&str> {
    match &rule.target {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        _ => None,
    }
}

/// Among what a chain chooses; `None` for one that chooses nothing.
fn endpoints(table: &FoundTable, chain: &str) -> Option<Target> {
    if !chain.starts_with(CHOICE) {
        return None;
    }
    let rules = table.chains.get(chain)?.as_ref()?;
    let mut sticky = false;
    let mut chosen = Vec::new();
    for rule in rules {
        let stays = rule
            .clauses
            .iter()
            .any(|clause| matches!(clause, Clause::In(Asked::Source, _)));
        sticky |= stays;
        match &rule.target {
            _ if stays => {}
            Verdict::Translate(to) => chosen.push(*to),
            Verdict::Goto(next) => chosen.extend(translations(table, next, DEEPEST)),
            _ => {}
        }
    }
    // Where the client's hash chooses, every endpoint has many slots.
    chosen.sort_unstable();
    chosen.dedup();
    (!chosen.is_empty()).then_some(Target {
        guarded: false,
        sticky,
        fate: Fate::Balance(chosen),
    })
}

/// So many chains are between the one that chooses and the one that translates, at most: two steps of a hash, the
/// endpoint, and what remembers the client.
const DEEPEST: usize = 3;

/// Where the chains lead that a choice comes by: every one goes on or translates, and none chooses for an address of its
/// own.
fn translations(table: &FoundTable, chain: &str, deep: usize) -> Vec<SocketAddr> {
    let rules = table.chains.get(chain).into_iter().flatten().flatten();
    let targets = rules.flat_map(|rule| match &rule.target {
        Verdict::Translate(to) => vec![*to],
        Verdict::Goto(next) if deep > 0 => translations(table, next, deep - 1),
        _ => Vec::new(),
    });
    targets.collect()
}

fn read_port(element: &Element) -> Option<(Protocol, NonZeroU16)> {
    let (protocol, port) = element.port?;
    Some((Protocol::from_number(protocol)?, NonZeroU16::new(port)?))
}
