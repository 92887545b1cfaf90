//! Services through iptables and ipset.
//!
//! Rules go in by `iptables-restore --noflush`, which both of iptables' variants have; only chains that changed are
//! written, and none but ours. Sets are spoken to by netlink. See [`render`] for what there is.

mod change;
pub(crate) mod dump;
mod found;
mod model;
mod program;
mod render;
mod rule;
mod tree;
mod turn;
mod watch;

use std::thread;
use std::time::Duration;

use podnet_core::NodeState;
use podnet_core::cluster::Family;
use podnet_core::service::ServiceState;
use podnet_linux::netfilter::ipset::Element;
use podnet_linux::netfilter::xtables::Xtables;
use podnet_linux::netfilter::{Netfilter, NetfilterError};

pub use change::{Change, TableChange};
pub use found::{Found, FoundTable};
pub use model::{Rules, Set, Table, TableName};
pub use program::Variant;
pub use rule::{Asked, Clause, ForeignRule, Rule, Target};
pub use turn::TurnError;
pub(crate) use turn::Turns;

use crate::services::share::Audience;
use crate::services::{Sentinel, ServiceBackend, ServiceError, Services, Touched};
use render::{Given, Lacks};
#[cfg(test)]
pub(crate) use rule::HASHES;
use turn::Turn;
use watch::{Guard, Last, LastStamp, Stamp};

/// How the names of all our chains and sets begin.
pub(crate) const PREFIX: &str = "PODNET-";
/// How those begin that are there for IPVS alone.
const IPVS_PREFIX: &str = "PODNET-IPVS";
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// nftables lets go of a deleted rule's sets a little later.
const BUSY_ATTEMPTS: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// What iptables does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// It carries services by itself.
    Whole,
    /// It is beside IPVS: leads packets there, guards services' addresses, and carries what IPVS cannot.
    Beside,
    /// What is left of that where IPVS makes way for another back end, whose chains and sets these are not.
    Lingering,
}

impl Scope {
    /// Whether a chain or set is one of its own, by its name.
    fn owns(self, name: &str) -> bool {
        match self {
            Scope::Whole => name.starts_with(PREFIX) && !name.starts_with(IPVS_PREFIX),
            Scope::Beside => name.starts_with(PREFIX),
            Scope::Lingering => name.starts_with(IPVS_PREFIX),
        }
    }

    /// Whether there is something of it in a table.
    fn is_in(self, table: TableName) -> bool {
        match self {
            Scope::Whole => table != TableName::Mangle,
            Scope::Beside => true,
            Scope::Lingering => table == TableName::Mangle,
        }
    }
}

/// The chains and sets for a state.
pub fn render(state: &NodeState) -> Rules {
    rendered(Scope::Whole, state)
}

fn rendered(scope: Scope, state: &NodeState) -> Rules {
    let given = Given::new(scope, &state.services);
    render::whole(render::frame(state, &given), &given)
}

/// The same beside IPVS.
#[cfg(test)]
pub(crate) fn beside_ipvs(state: &NodeState) -> Rules {
    rendered(Scope::Beside, state)
}

/// What we put there: the frame, and what services have in it.
#[derive(Debug)]
struct Put(Rules, Given);

impl Put {
    fn new(want: &NodeState, given: Given) -> Self {
        Put(render::frame(want, &given), given)
    }

    fn rules(&self) -> Rules {
        render::whole(self.0.clone(), &self.1)
    }
}

/// What is to be done.
struct Task {
    change: Change,
    /// What is there when it is done.
    put: Put,
    /// How much of what was there before others had changed.
    put_back: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Iptables {
    scope: Scope,
    turns: Turns,
    socket: Netfilter,
    /// The variant, once it was needed.
    variant: Option<Variant>,
    xtables: Option<Xtables>,
    /// What we put there, whatever others did to it since.
    put: Option<Put>,
    /// That is what there is, as of the last stamp.
    is_known: bool,
    /// How much of what we put there others had changed that is as it should be again, until somebody asks.
    put_back: usize,
    last: LastStamp,
    /// What the other variant had of ours has been looked for and removed.
    is_alone: bool,
    /// UDP frontends that changed, and whose stale flows have not been forgotten yet.
    touched: Touched,
    lacks: Lacks,
    /// What of the last state cannot be had here.
    left_out: Vec<String>,
}

impl Iptables {
    /// For the network namespace of the calling thread.
    pub(crate) fn open(scope: Scope, turns: Turns) -> Result<Self, ServiceError> {
        Ok(Iptables {
            scope,
            turns,
            socket: Netfilter::open()?,
            variant: None,
            xtables: None,
            put: None,
            is_known: false,
            put_back: 0,
            last: LastStamp::default(),
            is_alone: false,
            touched: Touched::default(),
            lacks: Lacks::default(),
            left_out: Vec::new(),
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
        let stamp = Stamp::take(self.scope, variant, &mut self.socket, &xtables);
        self.xtables = Some(xtables);
        stamp
    }

    fn read_rules(&self, variant: Variant) -> Result<Found, ServiceError> {
        let mut found = Found::default();
        for family in families() {
            found.read_save(self.scope, *family, &variant.save(*family)?);
        }
        Ok(found)
    }

    fn read(&mut self, variant: Variant) -> Result<Found, ServiceError> {
        let mut found = self.read_rules(variant)?;
        found.read_sets(self.scope, &mut self.socket)?;
        Ok(found)
    }

    /// What makes `want` of what there is. Until that is through nobody knows what there is.
    fn difference(&mut self, variant: Variant, want: &NodeState, turn: &Turn) -> Result<Task, ServiceError> {
        let before = self.put.take();
        if let Some(Put(old_frame, old)) = before.as_ref().filter(|_| self.is_known) {
            self.touched.note_change(&old.services, &want.services);
            let put = Put::new(want, old.then(&want.services));
            let (old, new) = render::changed((old_frame.clone(), old), (put.0.clone(), &put.1));
            return Ok(Task {
                change: Change::between(&new, &Found::of(&old)).only(families()),
                put,
                put_back: 0,
            });
        }
        let put = Put::new(want, Given::new(self.scope, &want.services));
        let rules = put.rules();
        let mut found = self.read(variant)?;
        let put_back = before.map_or(0, |before| found.damage(&before.rules(), families()));
        if !found.is_empty() {
            self.touched.note_all();
        } else {
            self.touched.note_change(&ServiceState::default(), &want.services);
        }
        if found.has_other_sets(&rules) {
            self.remove(turn)?;
            found = Found::default();
        }
        Ok(Task {
            change: Change::between(&rules, &found).only(families()),
            put,
            put_back,
        })
    }

    /// Every moment in between is safe: nothing leads to a set that is not there, and what a set refuses or drops was not
    /// translated.
    fn run(&mut self, variant: Variant, change: &Change, turn: &Turn) -> Result<(), ServiceError> {
        for (name, spec) in &change.create {
            self.socket.create_set(name, spec)?;
        }
        for (name, elements) in &change.add {
            self.socket.add_to_set(name, elements)?;
        }
        for family in FAMILIES {
            variant.restore(family, &change.script(family), turn)?;
        }
        // What IPVS gets by one set is guarded by others, whose names come before: GUARD and ADMIT.
        for (name, elements) in change.remove.iter().rev() {
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
    fn leave_other(&mut self, variant: Variant, turn: &Turn) -> Result<(), ServiceError> {
        if self.is_alone {
            return Ok(());
        }
        for other in Variant::ALL.into_iter().filter(|other| *other != variant) {
            self.remove_rules(other, turn)?;
        }
        self.is_alone = true;
        Ok(())
    }

    /// Removes all of it from both variants; says what that was.
    fn remove(&mut self, turn: &Turn) -> Result<Vec<String>, ServiceError> {
        let mut removed = Vec::new();
        for variant in Variant::ALL {
            removed.extend(self.remove_rules(variant, turn)?);
        }
        let sets = self.sets()?;
        sets.iter().try_for_each(|name| self.destroy(name))?;
        removed.extend(shown(&sets));
        Ok(removed)
    }

    fn remove_rules(&self, variant: Variant, turn: &Turn) -> Result<Option<String>, ServiceError> {
        let found = self.read_rules(variant)?;
        let change = Change::between(&Rules::default(), &found);
        for family in FAMILIES {
            variant.restore(family, &change.script(family), turn)?;
        }
        Ok(chains(variant, &found))
    }

    /// The names of our sets.
    fn sets(&mut self) -> Result<Vec<String>, NetfilterError> {
        let sets = self.socket.sets()?.into_keys();
        Ok(sets.filter(|name| self.scope.owns(name)).collect())
    }

    /// Has the kernel carry `want` out. Flows of UDP stay until [`Iptables::forget_flows`].
    pub(crate) fn put(&mut self, want: &NodeState) -> Result<usize, ServiceError> {
        let turn = self.turns.take()?;
        let shared = self.last.clone();
        let mut last = shared.hold();
        let variant = self.variant()?;
        let before = self.stamp(variant)?;
        if !last.as_ref().is_some_and(|last| last.is(variant, &before)) {
            self.is_known = false;
        }
        *last = None;
        let Task {
            change,
            put,
            put_back,
        } = self.difference(variant, want, &turn)?;
        self.run(variant, &change, &turn)?;
        self.leave_other(variant, &turn)?;
        let after = self.stamp(variant)?;
        let transactions = FAMILIES.iter().map(|family| change.tables_of(*family)).sum();
        let is_undisturbed = before.is_before(&after, transactions);
        self.put = Some(put);
        self.put_back += put_back;
        self.lacks.follow(&want.services);
        self.left_out = self.lacks.all();
        self.is_known = is_undisturbed;
        // The one from before is one that the sentinel does not find again.
        *last = Some(Last::new(variant, if is_undisturbed { after } else { before }));
        Ok(change.len())
    }

    /// Takes the flows of UDP out of connection tracking that have no endpoint any more.
    pub(crate) fn forget_flows(&mut self, want: &NodeState) -> Result<(), ServiceError> {
        Ok(self.touched.forget(&mut self.socket, want)?)
    }

    /// All of its own that is there.
    pub(crate) fn found(&mut self) -> Result<Found, ServiceError> {
        let variant = self.variant()?;
        self.read(variant)
    }

    /// Does something within another scope, and knows nothing afterwards.
    pub(crate) fn within<T>(&mut self, scope: Scope, work: impl FnOnce(&mut Self) -> T) -> T {
        self.put = None;
        let own = std::mem::replace(&mut self.scope, scope);
        let done = work(self);
        self.scope = own;
        done
    }

    /// Leaves only what connections that IPVS has go on with. Nothing, where there are no programs: then there are no
    /// such connections.
    pub(crate) fn linger(&mut self) -> Result<(), ServiceError> {
        let variant = match self.variant() {
            Err(ServiceError::NoProgram) => return Ok(()),
            variant => variant?,
        };
        let turn = self.turns.take()?;
        let found = self.read(variant)?;
        let change = Change::between(&render::lingering(), &found).only(families());
        self.run(variant, &change, &turn)
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

/// What is led to IPVS: addresses with their ports, or with `PORT` the node's own ports.
pub(crate) fn carried<'a>(
    found: &'a Found,
    what: &str,
    audience: Audience,
    family: Family,
) -> impl Iterator<Item = &'a Element> + use<'a> {
    let set = found
        .sets
        .get(&render::set(render::of_audience(what, audience), family));
    set.into_iter().flat_map(|set| &set.elements)
}

/// Whether only some may come to an address and port.
pub(crate) fn is_guarded(found: &Found, element: &Element) -> bool {
    let set = found
        .sets
        .get(&render::set("GUARD", Family::of(element.net.addr())));
    set.is_some_and(|set| set.elements.contains(element))
}

impl ServiceBackend for Iptables {
    fn apply(&mut self, want: &NodeState) -> Result<usize, ServiceError> {
        let changes = self.put(want)?;
        self.forget_flows(want)?;
        Ok(changes)
    }

    fn left_out(&self) -> &[String] {
        &self.left_out
    }

    fn take_put_back(&mut self) -> usize {
        std::mem::take(&mut self.put_back)
    }

    fn distrust(&mut self) {
        // Legacy tables of the same size may hold other rules, and sets of the same size other elements.
        self.is_known = false;
    }

    fn dump(&mut self) -> Result<Services, ServiceError> {
        Ok(dump::services(&self.found()?))
    }

    fn present(&mut self) -> Result<Vec<String>, ServiceError> {
        let mut present = Vec::new();
        for variant in Variant::ALL {
            present.extend(chains(variant, &self.read_rules(variant)?));
        }
        present.extend(shown(&self.sets()?));
        Ok(present)
    }

    fn clean(&mut self) -> Result<Vec<String>, ServiceError> {
        let turn = self.turns.take()?;
        let shared = self.last.clone();
        let mut last = shared.hold();
        *last = None;
        self.put = None;
        self.remove(&turn)
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
            scope: self.scope,
            last: self.last.clone(),
            socket,
            xtables,
        }))
    }
}

#[cfg(test)]
mod tests;
