//! What is to be done to virtual services. Nothing that has a connection is removed: it gets no others, and goes when
//! the last one has ended.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use podnet_linux::ipvs::{Ipvs, IpvsError, Scheduling, Virtual};

use super::render::{VirtualService, is_of_datagrams, is_ours};
use crate::delta::Delta;

/// A virtual service as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Whether it chooses as it should.
    pub is_scheduled: bool,
    /// Destinations and their weights; those of weight 0 get no new connections.
    pub weights: BTreeMap<SocketAddr, u32>,
}

impl Held {
    /// Whether a destination of it waits for its connections to end.
    pub(super) fn is_waiting(&self) -> bool {
        self.weights.values().any(|weight| *weight == 0)
    }
}

/// All that the kernel has of ours.
pub type Holding = BTreeMap<Virtual, Held>;

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A new virtual service.
    Add(Virtual),
    /// It is to choose in another way.
    Reschedule(Virtual),
    /// A new destination.
    Join(Virtual, SocketAddr),
    /// New connections for a destination again.
    Resume(Virtual, SocketAddr),
    /// No new connections for a destination.
    Rest(Virtual, SocketAddr),
    /// A destination goes, with what leads to it.
    Leave(Virtual, SocketAddr),
    /// A virtual service goes.
    Delete(Virtual),
}

/// From what there is to what should be. It prints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// What comes before chains and sets change.
    pub grow: Vec<Step>,
    /// What comes after.
    pub shrink: Vec<Step>,
}

impl Change {
    /// What makes `want` of what is held under a key.
    pub fn add(&mut self, key: Virtual, want: Option<&VirtualService>, held: Option<&Held>) {
        let nothing = Held::default();
        match (want, held) {
            (None, None) => {}
            (None, Some(_)) if is_of_datagrams(key) => self.shrink.push(Step::Delete(key)),
            (None, Some(held)) => {
                for (socket, weight) in &held.weights {
                    self.rest(key, *socket, *weight);
                }
            }
            (Some(want), held) => {
                match held {
                    None => self.grow.push(Step::Add(key)),
                    Some(held) if !held.is_scheduled => self.grow.push(Step::Reschedule(key)),
                    Some(_) => {}
                }
                self.destinations(key, want, held.unwrap_or(&nothing));
            }
        }
    }

    fn destinations(&mut self, key: Virtual, want: &VirtualService, held: &Held) {
        for endpoint in &want.endpoints {
            match held.weights.get(endpoint) {
                None => self.grow.push(Step::Join(key, *endpoint)),
                Some(1) => {}
                Some(_) => self.grow.push(Step::Resume(key, *endpoint)),
            }
        }
        for (socket, weight) in &held.weights {
            if want.endpoints.contains(socket) {
                continue;
            }
            // What stands in connection tracking is forgotten at the same time, so that the next datagram chooses anew.
            if is_of_datagrams(key) && !want.draining.contains(socket) {
                self.shrink.push(Step::Leave(key, *socket));
            } else {
                self.rest(key, *socket, *weight);
            }
        }
    }

    fn rest(&mut self, key: Virtual, socket: SocketAddr, weight: u32) {
        if weight > 0 {
            self.shrink.push(Step::Rest(key, socket));
        }
    }

    /// How many things change.
    pub fn len(&self) -> usize {
        self.grow.len() + self.shrink.len()
    }

    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Step {
    /// Which virtual service it is about.
    pub fn key(&self) -> Virtual {
        match *self {
            Step::Add(key) | Step::Reschedule(key) | Step::Delete(key) => key,
            Step::Join(key, _) | Step::Resume(key, _) | Step::Rest(key, _) | Step::Leave(key, _) => key,
        }
    }

    /// Does it in the kernel, and notes that in `holding`. What is gone already is gone.
    pub(super) fn run(
        self,
        socket: &mut Ipvs,
        scheduling: &Scheduling,
        holding: &mut Holding,
    ) -> Result<(), IpvsError> {
        let gone = |done: Result<(), IpvsError>| match done {
            Err(error) if error.is_not_found() => Ok(()),
            done => done,
        };
        match self {
            Step::Add(key) => socket.add_service(key, scheduling)?,
            Step::Reschedule(key) => socket.change_service(key, scheduling)?,
            Step::Join(key, to) => socket.add_destination(key, to, 1)?,
            Step::Resume(key, to) => socket.change_destination(key, to, 1)?,
            Step::Rest(key, to) => socket.change_destination(key, to, 0)?,
            Step::Leave(key, to) => gone(socket.delete_destination(key, to))?,
            Step::Delete(key) => gone(socket.delete_service(key))?,
        }
        self.note(holding);
        Ok(())
    }

    /// What comes of it.
    pub(super) fn note(self, holding: &mut Holding) {
        let held = holding.entry(self.key()).or_default();
        match self {
            Step::Add(_) | Step::Reschedule(_) => held.is_scheduled = true,
            Step::Join(_, to) | Step::Resume(_, to) => _ = held.weights.insert(to, 1),
            Step::Rest(_, to) => _ = held.weights.insert(to, 0),
            Step::Leave(_, to) => _ = held.weights.remove(&to),
            Step::Delete(key) => _ = holding.remove(&key),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Add(key) => write!(f, "add {key}"),
            Step::Reschedule(key) => write!(f, "reschedule {key}"),
            Step::Join(key, to) => write!(f, "join {key} {to}"),
            Step::Resume(key, to) => write!(f, "resume {key} {to}"),
            Step::Rest(key, to) => write!(f, "rest {key} {to}"),
            Step::Leave(key, to) => write!(f, "leave {key} {to}"),
            Step::Delete(key) => write!(f, "delete {key}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps = self.grow.iter().chain(&self.shrink);
        steps.try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// How much of what was left the kernel has otherwise: virtual services and destinations count one by one.
pub(super) fn damage(left: &Holding, found: &Holding) -> usize {
    let delta = Delta::between(left, found);
    let one_sided = delta.add.iter().chain(&delta.remove);
    let one_sided = one_sided.map(|(_, held)| 1 + held.weights.len());
    let changed = delta.change.iter().map(|(_, left, found)| {
        let weights = Delta::between(&left.weights, &found.weights).len();
        weights + usize::from(left.is_scheduled != found.is_scheduled)
    });
    one_sided.chain(changed).sum()
}

/// All of ours that the kernel has.
pub(super) fn read(socket: &mut Ipvs, scheduling: &Scheduling) -> Result<Holding, IpvsError> {
    let mut holding = Holding::new();
    for (key, found) in socket.services()? {
        if !is_ours(&found) {
            continue;
        }
        let destinations = match socket.destinations(key) {
            // It went meanwhile.
            Err(error) if error.is_not_found() => continue,
            destinations => destinations?,
        };
        let weights = destinations.into_iter().map(|found| (found.socket, found.weight));
        let held = Held {
            is_scheduled: found == *scheduling,
            weights: weights.collect(),
        };
        holding.insert(key, held);
    }
    Ok(holding)
}

/// Removes what waited for its connections to end, where they have: destinations, and with the last of them the virtual
/// service if it is not wanted. Whether nothing waits there any more.
pub(super) fn reap(
    socket: &mut Ipvs,
    scheduling: &Scheduling,
    holding: &mut Holding,
    key: Virtual,
    is_wanted: bool,
) -> Result<bool, IpvsError> {
    let Some(held) = holding.get(&key) else {
        return Ok(true);
    };
    if held.is_waiting() {
        let found = match socket.destinations(key) {
            Err(error) if error.is_not_found() => Vec::new(),
            found => found?,
        };
        let idle = found
            .into_iter()
            .filter(|found| found.weight == 0 && found.active + found.inactive == 0);
        for found in idle {
            Step::Leave(key, found.socket).run(socket, scheduling, holding)?;
        }
    }
    let is_empty = holding.get(&key).is_none_or(|held| held.weights.is_empty());
    if is_empty && !is_wanted {
        Step::Delete(key).run(socket, scheduling, holding)?;
        return Ok(true);
    }
    Ok(is_wanted && holding.get(&key).is_none_or(|held| !held.is_waiting()))
}
