//! Services through iptables and ipset.
//!
//! Rules go in by `iptables-restore --noflush`, which both of iptables' variants have; only chains that changed are
//! written, and none but ours. Sets are spoken to by netlink. See [`render`] for what there is.

mod change;
mod dump;
mod found;
mod model;
mod program;
mod render;
mod rule;
mod tree;
mod watch;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use podnet_core::NodeState;
use podnet_core::cluster::Family;
use podnet_core::service::ServiceState;
use podnet_linux::netfilter::xtables::Xtables;
use podnet_linux::netfilter::{Netfilter, NetfilterError};

pub use change::{Change, TableChange};
pub use found::{Found, FoundTable};
pub use model::{Rules, Set, Table, TableName};
pub use program::Variant;
pub use rule::{Asked, Clause, ForeignRule, Rule, Target};

use crate::services::{Sentinel, ServiceBackend, ServiceError, Services, Touched};
use watch::{Guard, Last, LastStamp, Stamp};

/// How the names of all our chains and sets begin.
pub(crate) const PREFIX: &str = "PODNET-";
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// nftables lets go of a deleted rule's sets a little later.
const BUSY_ATTEMPTS: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The chains and sets for a state.
pub fn render(state: &NodeState) -> Rules {
    render::whole(render::frame(state), &state.services)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Iptables {
    socket: Netfilter,
    /// The variant, once it was needed.
    variant: Option<Variant>,
    xtables: Option<Xtables>,
    /// What we put there, as of the last stamp: the frame, and what services have in it.
    known: Option<(Rules, Arc<ServiceState>)>,
    last: LastStamp,
    /// What the other variant had of ours has been looked for and removed.
    is_alone: bool,
    /// UDP frontends that changed, and whose stale flows have not been forgotten yet.
    touched: Touched,
}

impl Iptables {
    /// For the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self, ServiceError> {
        Ok(Iptables {
            socket: Netfilter::open()?,
            variant: None,
            xtables: None,
            known: None,
            last: LastStamp::default(),
            is_alone: false,
            touched: Touched::default(),
        })
    }

    fn variant(&mut self) -> Result<Variant, ServiceError> {
        if let Some(variant) = self.variant {
            return Ok(variant);
        }
        let variant = Variant::detect()?;
        self.last.is_of(variant);
        Ok(*self.variant.insert(variant))
    }

    fn stamp(&mut self, variant: Variant) -> Result<Stamp, ServiceError> {
        let xtables = match self.xtables.take() {
            Some(xtables) => xtables,
            None => open_xtables()?,
        };
        let stamp = Stamp::take(variant, &mut self.socket, &xtables);
        self.xtables = Some(xtables);
        stamp
    }

    fn read_rules(variant: Variant) -> Result<Found, ServiceError> {
        let mut found = Found::default();
        for family in families() {
            found.read_save(*family, &variant.save(*family)?);
        }
        Ok(found)
    }

    fn read(&mut self, variant: Variant) -> Result<Found, ServiceError> {
        let mut found = Iptables::read_rules(variant)?;
        found.read_sets(&mut self.socket)?;
        Ok(found)
    }

    /// What makes `want` of what there is.
    fn difference(
        &mut self,
        variant: Variant,
        frame: &Rules,
        want: &NodeState,
    ) -> Result<Change, ServiceError> {
        if let Some((old_frame, old)) = self.known.take() {
            self.touched.note_change(&old, &want.services);
            let (old, new) = render::changed((old_frame, &old), (frame.clone(), &want.services));
            return Ok(Change::between(&new, &Found::of(&old)));
        }
        let rules = render::whole(frame.clone(), &want.services);
        let mut found = self.read(variant)?;
        if !found.is_empty() {
            self.touched.note_all();
        } else {
            self.touched.note_change(&ServiceState::default(), &want.services);
        }
        if found.has_other_sets(&rules) {
            self.remove()?;
            found = Found::default();
        }
        Ok(Change::between(&rules, &found))
    }

    /// Every moment in between is safe: nothing leads to a set that is not there, and what a set refuses or drops was not
    /// translated.
    fn run(&mut self, variant: Variant, change: &Change) -> Result<(), ServiceError> {
        for (name, spec) in &change.create {
            self.socket.create_set(name, spec)?;
        }
        for (name, elements) in &change.add {
            self.socket.add_to_set(name, elements)?;
        }
        for family in FAMILIES {
            variant.restore(family, &change.script(family))?;
        }
        for (name, elements) in &change.remove {
            self.socket.remove_from_set(name, elements)?;
        }
        change.destroy.iter().try_for_each(|name| self.destroy(name))
    }

    fn destroy(&mut self, name: &str) -> Result<(), ServiceError> {
        for _ in 0..BUSY_ATTEMPTS {
            match self.socket.destroy_set(name) {
                Err(error) if error.is_busy() => thread::sleep(BUSY_PAUSE),
                other => return Ok(other?),
            }
        }
        Ok(self.socket.destroy_set(name)?)
    }

    /// Removes what is in the variant that this machine does not use (any more).
    fn leave_other(&mut self, variant: Variant) -> Result<(), ServiceError> {
        if self.is_alone {
            return Ok(());
        }
        for other in Variant::ALL.into_iter().filter(|other| *other != variant) {
            Iptables::remove_rules(other)?;
        }
        self.is_alone = true;
        Ok(())
    }

    /// Removes all of it from both variants; says what that was.
    fn remove(&mut self) -> Result<Vec<String>, ServiceError> {
        let mut removed = Vec::new();
        for variant in Variant::ALL {
            removed.extend(Iptables::remove_rules(variant)?);
        }
        let sets = self.sets()?;
        sets.iter().try_for_each(|name| self.destroy(name))?;
        removed.extend(shown(&sets));
        Ok(removed)
    }

    fn remove_rules(variant: Variant) -> Result<Option<String>, ServiceError> {
        let found = Iptables::read_rules(variant)?;
        let change = Change::between(&Rules::default(), &found);
        for family in FAMILIES {
            variant.restore(family, &change.script(family))?;
        }
        Ok(chains(variant, &found))
    }

    /// The names of our sets.
    fn sets(&mut self) -> Result<Vec<String>, NetfilterError> {
        let sets = self.socket.sets()?.into_keys();
        Ok(sets.filter(|name| name.starts_with(PREFIX)).collect())
    }
}

/// Those the kernel has: iptables' programs for IPv6 fail where it was started without.
fn families() -> &'static [Family] {
    let has_six = std::path::Path::new("/proc/sys/net/ipv6").exists();
    if has_six { &FAMILIES } else { &FAMILIES[..1] }
}

fn open_xtables() -> Result<Xtables, ServiceError> {
    Xtables::open().map_err(|source| ServiceError::Program {
        program: "a raw socket".to_owned(),
        why: source.to_string(),
    })
}

fn chains(variant: Variant, found: &Found) -> Option<String> {
    let count: usize = found.tables.values().map(|table| table.chains.len()).sum();
    let hooks: usize = found.tables.values().map(|table| table.hooks.len()).sum();
    (count + hooks > 0).then(|| format!("{count} chains of iptables-{}", variant.as_str()))
}

fn shown(sets: &[String]) -> Option<String> {
    (!sets.is_empty()).then(|| format!("{} sets of ipset", sets.len()))
}

impl ServiceBackend for Iptables {
    fn apply(&mut self, want: &NodeState) -> Result<usize, ServiceError> {
        let shared = self.last.clone();
        let mut last = shared.hold();
        let variant = self.variant()?;
        let before = self.stamp(variant)?;
        if !last.as_ref().is_some_and(|last| last.is(variant, &before)) {
            self.known = None;
        }
        // Until it is through nobody knows what there is.
        *last = None;
        let frame = render::frame(want);
        let change = self.difference(variant, &frame, want)?.only(families());
        self.run(variant, &change)?;
        self.leave_other(variant)?;
        let after = self.stamp(variant)?;
        let transactions = FAMILIES.iter().map(|family| change.tables_of(*family)).sum();
        let is_undisturbed = before.is_before(&after, transactions);
        if is_undisturbed {
            self.known = Some((frame, Arc::clone(&want.services)));
        }
        // The one from before is one that the sentinel does not find again.
        *last = Some(Last::new(variant, if is_undisturbed { after } else { before }));
        self.touched.forget(&mut self.socket, want)?;
        Ok(change.len())
    }

    fn distrust(&mut self) {
        // Legacy tables of the same size may hold other rules, and sets of the same size other elements.
        self.known = None;
    }

    fn dump(&mut self) -> Result<Services, ServiceError> {
        let variant = self.variant()?;
        Ok(dump::services(&self.read(variant)?))
    }

    fn present(&mut self) -> Result<Vec<String>, ServiceError> {
        let mut present = Vec::new();
        for variant in Variant::ALL {
            present.extend(chains(variant, &Iptables::read_rules(variant)?));
        }
        present.extend(shown(&self.sets()?));
        Ok(present)
    }

    fn clean(&mut self) -> Result<Vec<String>, ServiceError> {
        let shared = self.last.clone();
        let mut last = shared.hold();
        *last = None;
        self.known = None;
        self.remove()
    }

    fn table_changed(&mut self, from: u32, to: u32) {
        if let Some(last) = &mut *self.last.hold() {
            last.step(from, to);
        }
    }

    fn sentinel(&self) -> Option<Box<dyn Sentinel>> {
        let socket = Netfilter::open().ok()?;
        let xtables = Xtables::open().ok()?;
        Some(Box::new(Guard {
            last: self.last.clone(),
            socket,
            xtables,
        }))
    }
}

#[cfg(test)]
mod tests;
