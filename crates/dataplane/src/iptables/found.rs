//! What iptables and ipset have of ours.

use std::collections::{BTreeMap, BTreeSet};

use podnet_core::cluster::Family;
use podnet_linux::netfilter::{Netfilter, NetfilterError};

use super::change::Change;
use super::model::{Rules, Set, TableName};
use super::render::STAY;
use super::rule::Rule;
use super::{PREFIX, Scope};

/// All of ours that is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// By family and table.
    pub tables: BTreeMap<(Family, TableName), FoundTable>,
    /// By name. Of those whose elements go by themselves it is not known what is in them.
    pub sets: BTreeMap<String, Set>,
    /// Sets with names of ours that are none that we would make.
    pub foreign: BTreeSet<String>,
}

/// What is ours in a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundTable {
    /// Our chains; `None` where one has a rule that is not ours.
    pub chains: BTreeMap<String, Option<Vec<Rule>>>,
    /// The rules of iptables' own chains that lead to ours.
    pub hooks: BTreeMap<String, Vec<String>>,
}

impl FoundTable {
    fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.hooks.is_empty()
    }
}

impl Found {
    /// What would be found where that was put.
    pub(crate) fn of(rules: &Rules) -> Self {
        let tables = rules.tables.iter().map(|(key, table)| {
            let chains = table.chains.iter();
            let chains = chains.map(|(name, rules)| (name.clone(), Some(rules.clone())));
            let hooks = table.hooks.iter();
            let hooks = hooks.map(|(chain, rule)| ((*chain).to_owned(), vec![rule.to_string()]));
            let found = FoundTable {
                chains: chains.collect(),
                hooks: hooks.collect(),
            };
            (*key, found)
        });
        Found {
            tables: tables.collect(),
            sets: rules.sets.clone(),
            foreign: BTreeSet::new(),
        }
    }

    /// Nothing of ours is there.
    pub(super) fn is_empty(&self) -> bool {
        self.tables.values().all(FoundTable::is_empty) && self.sets.is_empty() && self.foreign.is_empty()
    }

    /// Adds what `iptables-save` prints for a family.
    pub(super) fn read_save(&mut self, scope: Scope, family: Family, text: &str) {
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = TableName::ALL.into_iter().find(|table| table.as_str() == name);
            }
            let Some(name) = table else { continue };
            let found = self.tables.entry((family, name)).or_default();
            if let Some(declared) = line.strip_prefix(':') {
                let chain = declared.split(' ').next().unwrap_or_default();
                if scope.owns(chain) {
                    found.chains.insert(chain.to_owned(), Some(Vec::new()));
                }
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' '))
            {
                found.read_rule(scope, chain, rule);
            }
        }
        self.tables.retain(|_, table| !table.is_empty());
    }

    /// Adds what ipset has.
    pub(super) fn read_sets(&mut self, scope: Scope, socket: &mut Netfilter) -> Result<(), NetfilterError> {
        for (name, found) in socket.sets()? {
            if !scope.owns(&name) {
                continue;
            }
            let Some(spec) = found.spec else {
                self.foreign.insert(name);
                continue;
            };
            let elements = if spec.timeout.is_some() {
                BTreeSet::new()
            } else {
                socket.set_elements(&name)?.into_iter().collect()
            };
            self.sets.insert(name, Set { spec, elements });
        }
        Ok(())
    }

    /// How much of `put`, which is what was there, is not so any more.
    pub(crate) fn damage(&self, put: &Rules, families: &[Family]) -> usize {
        Change::between(put, self).only(families).len() + self.other_sets(put)
    }

    /// Sets that stand in the way of those in `want`.
    pub(super) fn has_other_sets(&self, want: &Rules) -> bool {
        self.other_sets(want) > 0
    }

    fn other_sets(&self, want: &Rules) -> usize {
        // How long clients stay unless they say so is nothing that matters.
        let other = |(name, set): &(&String, &Set)| {
            let wanted = want.sets.get(*name).filter(|_| !name.starts_with(STAY));
            wanted.is_some_and(|wanted| wanted.spec != set.spec)
        };
        self.sets.iter().filter(other).count() + self.foreign.len()
    }
}

impl FoundTable {
    fn read_rule(&mut self, scope: Scope, chain: &str, rule: &str) {
        if scope.owns(chain) {
            let rules = self
                .chains
                .entry(chain.to_owned())
                .or_insert_with(|| Some(Vec::new()));
            match (rule.parse(), rules.as_mut()) {
                (Ok(rule), Some(rules)) => rules.push(rule),
                _ => *rules = None,
            }
            return;
        }
        let mut words = rule.rsplit(' ');
        let target = words.next().unwrap_or_default();
        // Between our own chains there are no hooks.
        if scope.owns(target) && !chain.starts_with(PREFIX) {
            self.hooks
                .entry(chain.to_owned())
                .or_default()
                .push(rule.to_owned());
        }
    }
}
