//! Whether somebody else changed what is ours. Legacy iptables and ipset announce nothing, and nftables does not say what
//! was changed; so what is cheap to ask is remembered of the moment of our last change, and compared.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podnet_linux::netfilter::xtables::{TableSize, Xtables, tables};
use podnet_linux::netfilter::{Netfilter, NetfilterError};

use super::Scope;
use super::model::TableName;
use super::program::Variant;
use super::render::STAY;
use crate::services::{Sentinel, ServiceError};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    rules: RulesStamp,
    /// How many elements each of our sets has, but for those whose elements go by themselves.
    sets: BTreeMap<String, u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum RulesStamp {
    /// The generation of nftables' rule set.
    Generation(u32),
    /// The sizes of tables, by whether they are of IPv6, and name.
    Sizes(BTreeMap<(bool, TableName), TableSize>),
}

/// The stamp of our last change.
#[derive(Debug, Clone, Default)]
pub(super) struct LastStamp(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    last: Mutex<Option<Last>>,
    /// The variant is the one whose changes are nftables' changes.
    is_nft: AtomicBool,
}

#[derive(Debug, Clone)]
pub(super) struct Last {
    variant: Variant,
    stamp: Stamp,
}

impl LastStamp {
    /// Nobody is told of a disturbance while this is held.
    pub(super) fn hold(&self) -> MutexGuard<'_, Option<Last>> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on it is of that variant.
    pub(super) fn is_of(&self, variant: Variant) {
        self.0.is_nft.store(variant == Variant::Nft, Ordering::Relaxed);
    }
}

impl Last {
    pub(super) fn new(variant: Variant, stamp: Stamp) -> Self {
        Last { variant, stamp }
    }

    /// Whether nothing changed since.
    pub(super) fn is(&self, variant: Variant, stamp: &Stamp) -> bool {
        self.variant == variant && self.stamp == *stamp
    }

    /// Our own table of nftables changed.
    pub(super) fn step(&mut self, from: u32, to: u32) {
        if self.stamp.rules == RulesStamp::Generation(from) {
            self.stamp.rules = RulesStamp::Generation(to);
        }
    }
}

impl Stamp {
    /// Of now, in the network namespace of the calling thread.
    pub(super) fn take(
        scope: Scope,
        variant: Variant,
        socket: &mut Netfilter,
        xtables: &Xtables,
    ) -> Result<Self, ServiceError> {
        let rules = match variant {
            Variant::Nft => RulesStamp::Generation(socket.generation()?),
            Variant::Legacy => RulesStamp::Sizes(sizes(xtables, || our_tables(scope)).map_err(failed)?),
        };
        Ok(Stamp {
            rules,
            sets: counts(scope, socket)?,
        })
    }

    /// The same as was asked for this one, in the network namespace of the sockets.
    fn again(&self, scope: Scope, socket: &mut Netfilter, xtables: &Xtables) -> Result<Self, ServiceError> {
        let rules = match &self.rules {
            RulesStamp::Generation(_) => RulesStamp::Generation(socket.generation()?),
            RulesStamp::Sizes(known) => {
                let known = || Ok(known.keys().copied().collect());
                RulesStamp::Sizes(sizes(xtables, known).map_err(failed)?)
            }
        };
        Ok(Stamp {
            rules,
            sets: counts(scope, socket)?,
        })
    }

    /// Whether only so many transactions of nftables lie between this and another.
    pub(super) fn is_before(&self, after: &Stamp, transactions: usize) -> bool {
        match (&self.rules, &after.rules) {
            (RulesStamp::Generation(before), RulesStamp::Generation(after)) => {
                after.wrapping_sub(*before) as usize == transactions
            }
            _ => true,
        }
    }
}

fn failed(source: io::Error) -> ServiceError {
    ServiceError::Program {
        program: "the kernel's iptables".to_owned(),
        why: source.to_string(),
    }
}

fn counts(scope: Scope, socket: &mut Netfilter) -> Result<BTreeMap<String, u32>, NetfilterError> {
    let sets = socket.sets()?.into_iter();
    let sets = sets.filter(|(name, _)| scope.owns(name) && !name.starts_with(STAY));
    Ok(sets.map(|(name, set)| (name, set.count)).collect())
}

/// Those of the tables with something of ours that there are: asking for another makes it.
fn our_tables(scope: Scope) -> io::Result<Vec<(bool, TableName)>> {
    let mut ours = Vec::new();
    for six in [false, true] {
        let there = tables(six)?;
        let there = TableName::ALL
            .into_iter()
            .filter(|name| scope.is_in(*name) && there.iter().any(|there| there == name.as_str()));
        ours.extend(there.map(|name| (six, name)));
    }
    Ok(ours)
}

fn sizes(
    xtables: &Xtables,
    tables: impl FnOnce() -> io::Result<Vec<(bool, TableName)>>,
) -> io::Result<BTreeMap<(bool, TableName), TableSize>> {
    let sizes = tables()?
        .into_iter()
        .map(|(six, name)| Ok(((six, name), xtables.size(six, name.as_str())?)));
    sizes.collect()
}

/// Looks whether the last stamp still holds.
pub(super) struct Guard {
    pub(super) scope: Scope,
    pub(super) last: LastStamp,
    pub(super) socket: Netfilter,
    pub(super) xtables: Xtables,
}

impl Sentinel for Guard {
    fn is_disturbed(&mut self) -> bool {
        // While we change something ourselves there is nothing to compare with.
        let Ok(last) = self.last.0.last.try_lock() else {
            return false;
        };
        let Some(last) = &*last else {
            return false;
        };
        let now = last.stamp.again(self.scope, &mut self.socket, &self.xtables);
        now.is_ok_and(|now| now != last.stamp)
    }

    fn knows_nftables(&self) -> bool {
        self.last.0.is_nft.load(Ordering::Relaxed)
    }
}
