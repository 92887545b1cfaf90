//! What a controller is.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::action::Action;
use crate::resource::Key;
use crate::world::{Change, Kind, World};

/// What a plan may depend on besides the objects.
#[derive(Clone, Debug)]
pub struct Context {
    /// The time.
    pub now: Timestamp,
    /// How often in a row the plans for this key failed.
    pub failures: u32,
    /// Why the last one failed.
    pub error: Option<String>,
}

impl Context {
    /// At `now`, with nothing gone wrong.
    pub fn at(now: Timestamp) -> Context {
        Context {
            now,
            failures: 0,
            error: None,
        }
    }
}

/// What to do for one key.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Independent of each other: they are carried out at the same time.
    pub actions: Vec<Action>,
    /// When to look again even if nothing changes.
    pub again: Option<Timestamp>,
}

impl Plan {
    /// Nothing to do.
    pub fn nothing() -> Plan {
        Plan::default()
    }

    /// Looks again at `when`, or earlier if that was asked for before.
    pub fn look_again(&mut self, when: Option<Timestamp>) {
        self.again = [self.again, when].into_iter().flatten().min();
    }
}

impl From<Vec<Action>> for Plan {
    fn from(actions: Vec<Action>) -> Plan {
        Plan { actions, again: None }
    }
}

impl FromIterator<Action> for Plan {
    fn from_iter<I: IntoIterator<Item = Action>>(actions: I) -> Plan {
        actions.into_iter().collect::<Vec<_>>().into()
    }
}

/// A control loop without its loop: which objects to look at after a change, and what to do about them.
pub trait Controller: Send {
    /// Its name on the command line.
    fn name(&self) -> &'static str;

    /// The name under which it tells events.
    fn component(&self) -> &'static str {
        "podnet-controller"
    }

    /// What it reads. It is not asked before all of that is listed.
    fn reads(&self) -> &'static [Kind];

    /// The keys whose plan may differ after `change`; `world` is already as it is after it.
    fn affected(&self, world: &World, change: &Change, keys: &mut BTreeSet<Key>);

    /// What to do for `key`. It depends on the arguments alone.
    fn plan(&self, world: &World, key: &Key, context: &Context) -> Plan;
}
