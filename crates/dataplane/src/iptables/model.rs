//! What is in iptables' tables and in ipset's sets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use podnet_core::cluster::Family;
use podnet_linux::netfilter::ipset::{Element, SetSpec};

use super::rule::Rule;

/// A table of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableName {
    /// Marks packets.
    Mangle,
    /// Lets packets pass, or not.
    Filter,
    /// Translates the addresses of connections.
    Nat,
}

impl TableName {
    /// Those there is something of ours in, in the order in which they change.
    pub const ALL: [TableName; 3] = [TableName::Mangle, TableName::Filter, TableName::Nat];

    /// As iptables calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            TableName::Mangle => "mangle",
            TableName::Filter => "filter",
            TableName::Nat => "nat",
        }
    }
}

/// What is ours in a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Our chains, and their rules.
    pub chains: BTreeMap<String, Vec<Rule>>,
    /// The rule by which one of iptables' own chains leads to ours.
    pub hooks: BTreeMap<&'static str, Rule>,
}

/// A set of ipset's. What is in one whose elements go by themselves is the kernel's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// What it is.
    pub spec: SetSpec,
    /// What is in it.
    pub elements: BTreeSet<Element>,
}

/// All of ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// By family and table.
    pub tables: BTreeMap<(Family, TableName), Table>,
    /// By name.
    pub sets: BTreeMap<String, Set>,
}

impl Rules {
    pub(super) fn table(&mut self, family: Family, name: TableName) -> &mut Table {
        self.tables.entry((family, name)).or_default()
    }

    /// Adds a chain, unless there is nothing to do in it; whether it did.
    pub(super) fn chain(
        &mut self,
        (family, table): (Family, TableName),
        name: impl Into<String>,
        rules: Vec<Rule>,
    ) -> bool {
        let is_any = !rules.is_empty();
        if is_any {
            self.table(family, table).chains.insert(name.into(), rules);
        }
        is_any
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, set) in &self.sets {
            let six = if set.spec.six { "inet6" } else { "inet" };
            writeln!(f, "create {name} {} family {six}", set.spec.kind.as_str())?;
            let mut elements = set.elements.iter();
            elements.try_for_each(|element| writeln!(f, "add {name} {}", Shown(element)))?;
        }
        for ((family, name), table) in &self.tables {
            writeln!(f, "{}*{}", program(*family), name.as_str())?;
            for (hook, rule) in &table.hooks {
                writeln!(f, "-A {hook} {rule}")?;
            }
            for (chain, rules) in &table.chains {
                rules
                    .iter()
                    .try_for_each(|rule| writeln!(f, "-A {chain} {rule}"))?;
            }
        }
        Ok(())
    }
}

/// `iptables` or `ip6tables`.
pub(super) fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// An element as the program `ipset` writes it.
pub(super) struct Shown<'a>(pub(super) &'a Element);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Element {
            net,
            port,
            second,
            mark,
        } = self.0;
        let is_address = net.prefix_len() == net.max_prefix_len();
        match is_address {
            true => write!(f, "{}", net.addr())?,
            false => write!(f, "{net}")?,
        }
        if let Some((protocol, port)) = port {
            write!(f, ",{protocol}:{port}")?;
        }
        if let Some(second) = second {
            write!(f, ",{second}")?;
        }
        match mark {
            Some(mark) => write!(f, " skbmark {mark:#x}"),
            None => Ok(()),
        }
    }
}
