//! What is to be done: sets grow, then rules change, then sets shrink.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use podnet_core::cluster::Family;
use podnet_linux::netfilter::ipset::{Element, SetSpec};

use super::found::{Found, FoundTable};
use super::model::{Rules, Shown, Table, TableName, program};
use super::rule::Rule;
use crate::delta::Delta;

/// From what there is to what should be. It prints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// Sets to make.
    pub create: BTreeMap<String, SetSpec>,
    /// What to add to sets.
    pub add: BTreeMap<String, Vec<Element>>,
    /// What to do to tables.
    pub tables: BTreeMap<(Family, TableName), TableChange>,
    /// What to take from sets.
    pub remove: BTreeMap<String, Vec<Element>>,
    /// Sets to destroy.
    pub destroy: BTreeSet<String>,
}

/// The same for one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableChange {
    /// Chains to write, whether they are there or not.
    pub write: BTreeMap<String, Vec<Rule>>,
    /// Rules that lead from iptables' own chains to ours and should not, as they stand there.
    pub unhook: Vec<(String, String)>,
    /// Rules to put first in iptables' own chains.
    pub hook: BTreeMap<&'static str, Rule>,
    /// Chains to delete.
    pub delete: BTreeSet<String>,
}

impl Change {
    /// What makes `want` of what was found.
    pub fn between(want: &Rules, have: &Found) -> Self {
        let mut change = Change::default();
        let (no_table, none) = (Table::default(), FoundTable::default());
        let keys: BTreeSet<_> = want.tables.keys().chain(have.tables.keys()).collect();
        for key in keys {
            let want = want.tables.get(key).unwrap_or(&no_table);
            let of_table = TableChange::between(want, have.tables.get(key).unwrap_or(&none));
            if !of_table.is_empty() {
                change.tables.insert(*key, of_table);
            }
        }
        let delta = Delta::between_by(&want.sets, &have.sets, |_, _| false);
        for (name, set) in delta.add {
            change.create.insert(name.clone(), set.spec);
            change.add(name, set.elements.iter().copied().collect());
        }
        for (name, want, have) in delta.change {
            // Which clients stay is the kernel's own.
            if want.spec.timeout.is_some() {
                continue;
            }
            change.add(name, want.elements.difference(&have.elements).copied().collect());
            let remove: Vec<Element> = have.elements.difference(&want.elements).copied().collect();
            if !remove.is_empty() {
                change.remove.insert(name.clone(), remove);
            }
        }
        change
            .destroy
            .extend(delta.remove.iter().map(|(name, _)| (*name).clone()));
        change
    }

    fn add(&mut self, name: &str, elements: Vec<Element>) {
        if !elements.is_empty() {
            self.add.insert(name.to_owned(), elements);
        }
    }

    /// The same without the tables of other families than these.
    pub fn only(mut self, families: &[Family]) -> Self {
        self.tables.retain(|(family, _), _| families.contains(family));
        self
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Change::default()
    }

    /// How many chains, hooks, sets and elements change.
    pub fn len(&self) -> usize {
        let tables = self.tables.values();
        let tables = tables
            .map(|table| table.write.len() + table.unhook.len() + table.hook.len() + table.delete.len());
        let elements = self.add.values().chain(self.remove.values()).map(Vec::len);
        tables.chain(elements).sum::<usize>() + self.create.len() + self.destroy.len()
    }

    /// What `iptables-restore --noflush` or its sibling for IPv6 is to do; nothing where there is nothing to do.
    pub fn script(&self, family: Family) -> String {
        let mut text = String::new();
        for name in TableName::ALL {
            if let Some(table) = self.tables.get(&(family, name)) {
                // Writing to a string does not fail.
                let _ = writeln!(text, "*{}\n{table}COMMIT", name.as_str());
            }
        }
        text
    }

    /// How many tables of a family change.
    pub(super) fn tables_of(&self, family: Family) -> usize {
        self.tables.keys().filter(|(of, _)| *of == family).count()
    }
}

impl TableChange {
    fn between(want: &Table, have: &FoundTable) -> Self {
        let chains = Delta::between_by(&want.chains, &have.chains, |want, have| {
            have.as_ref() == Some(want)
        });
        let mut change = TableChange {
            write: chains
                .set()
                .map(|(name, rules)| (name.clone(), rules.clone()))
                .collect(),
            delete: chains.remove.iter().map(|(name, _)| (*name).clone()).collect(),
            ..TableChange::default()
        };
        for (chain, rules) in &have.hooks {
            let wanted = want.hooks.get(chain.as_str()).map(ToString::to_string);
            let mut extra: Vec<&String> = rules
                .iter()
                .filter(|rule| Some(*rule) != wanted.as_ref())
                .collect();
            // One that is there twice is taken away once each.
            extra.extend(rules.iter().filter(|rule| Some(*rule) == wanted.as_ref()).skip(1));
            change
                .unhook
                .extend(extra.into_iter().map(|rule| (chain.clone(), rule.clone())));
        }
        for (chain, rule) in &want.hooks {
            let text = rule.to_string();
            let is_there = have.hooks.get(*chain).is_some_and(|rules| rules.contains(&text));
            if !is_there {
                change.hook.insert(chain, rule.clone());
            }
        }
        change
    }

    fn is_empty(&self) -> bool {
        *self == TableChange::default()
    }
}

impl fmt::Display for TableChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // This makes a chain, and empties one that is there.
        for chain in self.write.keys().chain(&self.delete) {
            writeln!(f, ":{chain} - [0:0]")?;
        }
        for (chain, rule) in &self.unhook {
            writeln!(f, "-D {chain} {rule}")?;
        }
        for (chain, rules) in &self.write {
            rules
                .iter()
                .try_for_each(|rule| writeln!(f, "-A {chain} {rule}"))?;
        }
        for (chain, rule) in &self.hook {
            writeln!(f, "-I {chain} 1 {rule}")?;
        }
        self.delete.iter().try_for_each(|chain| writeln!(f, "-X {chain}"))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, spec) in &self.create {
            let family = if spec.six { "inet6" } else { "inet" };
            writeln!(f, "create {name} {} family {family}", spec.kind.as_str())?;
        }
        for (name, elements) in &self.add {
            let mut elements = elements.iter();
            elements.try_for_each(|element| writeln!(f, "add {name} {}", Shown(element)))?;
        }
        for family in [Family::V4, Family::V6] {
            let script = self.script(family);
            if !script.is_empty() {
                write!(f, "{}-restore:\n{script}", program(family))?;
            }
        }
        for (name, elements) in &self.remove {
            let mut elements = elements.iter();
            elements.try_for_each(|element| writeln!(f, "del {name} {}", Shown(element)))?;
        }
        self.destroy
            .iter()
            .try_for_each(|name| writeln!(f, "destroy {name}"))
    }
}
