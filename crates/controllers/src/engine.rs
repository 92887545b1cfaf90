//! Which controller looks at which key, and when. No sockets, no clock: news and time are passed in, jobs come out.
//!
//! - A key is planned again when something it depends on changed, when its plan asked for it, or when it failed.
//! - A key whose actions are under way is not planned before all of them have landed and their answers are in the
//!   world. So a plan never repeats what the one before it did.
//! - A key that fails waits, twice as long every time; news do not shorten that.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::action::{Action, Op, Target};
use crate::control::{Context, Controller};
use crate::resource::Key;
use crate::world::{Change, Observation, World};

/// What the server answered.
#[derive(Debug)]
pub enum Answer {
    /// The object as it is now.
    Object(Value),
    /// The object is gone.
    Gone,
    /// Done, without an object.
    Done,
}

/// Why an action was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Whether the view was behind: look again soon. Otherwise something is wrong: look again later.
    pub stale: bool,
    /// The server's words.
    pub message: String,
}

/// An action to carry out; its outcome goes to [`Engine::finished`].
#[derive(Debug)]
pub struct Job {
    /// Names the job in [`Engine::finished`].
    pub ticket: u64,
    /// The component in whose name events are told.
    pub component: &'static str,
    /// What to do.
    pub action: Action,
}

struct Flight {
    left: usize,
    refused: Option<Refusal>,
}

#[derive(Clone)]
struct Failure {
    count: u32,
    message: String,
    not_before: Timestamp,
}

struct Desk {
    controller: Box<dyn Controller>,
    dirty: BTreeSet<Key>,
    flying: HashMap<Key, Flight>,
    failed: HashMap<Key, Failure>,
    alarms: HashMap<Key, Timestamp>,
}

struct Ticket {
    desk: usize,
    key: Key,
    target: Target,
    op: Op,
}

/// The controllers and the world they look at.
pub struct Engine {
    world: World,
    desks: Vec<Desk>,
    tickets: BTreeMap<u64, Ticket>,
    last_ticket: u64,
}

impl Engine {
    /// An engine for these controllers, with an empty world.
    pub fn new(controllers: Vec<Box<dyn Controller>>) -> Engine {
        let world = World::watching(controllers.iter().flat_map(|c| c.reads().iter().copied()));
        let desk = |controller| Desk {
            controller,
            dirty: BTreeSet::new(),
            flying: HashMap::new(),
            failed: HashMap::new(),
            alarms: HashMap::new(),
        };
        Engine {
            world,
            desks: controllers.into_iter().map(desk).collect(),
            tickets: BTreeMap::new(),
            last_ticket: 0,
        }
    }

    /// The objects as the controllers see them.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Takes in news from a watch.
    pub fn observe(&mut self, news: Observation) {
        let changes = self.world.observe(news);
        self.spread(&changes);
    }

    /// Takes in the outcome of a job.
    pub fn finished(&mut self, ticket: u64, outcome: Result<Answer, Refusal>, now: Timestamp) {
        let Some(ticket) = self.tickets.remove(&ticket) else {
            return;
        };
        let refused = match outcome {
            Ok(answer) => {
                let changes = self.take_in(&ticket, answer);
                self.spread(&changes);
                None
            }
            Err(refusal) => Some(refusal),
        };
        self.desks[ticket.desk].land(ticket.key, refused, now);
    }

    /// What is to be done now.
    pub fn work(&mut self, now: Timestamp) -> Vec<Job> {
        let mut jobs = Vec::new();
        for index in 0..self.desks.len() {
            for (key, actions) in self.desks[index].plan(&self.world, now) {
                let component = self.desks[index].controller.component();
                for action in actions {
                    self.last_ticket += 1;
                    let (target, op) = (action.target.clone(), action.op.clone());
                    self.tickets.insert(
                        self.last_ticket,
                        Ticket {
                            desk: index,
                            key: key.clone(),
                            target,
                            op,
                        },
                    );
                    jobs.push(Job {
                        ticket: self.last_ticket,
                        component,
                        action,
                    });
                }
            }
        }
        jobs
    }

    /// When [`Engine::work`] will have something to do even if nothing happens before.
    pub fn next_alarm(&self) -> Option<Timestamp> {
        self.desks.iter().flat_map(|d| d.alarms.values()).min().copied()
    }

    /// Whether no job is out and no key waits to be planned.
    pub fn idle(&self) -> bool {
        self.tickets.is_empty() && self.desks.iter().all(|d| d.dirty.is_empty())
    }

    fn take_in(&mut self, ticket: &Ticket, answer: Answer) -> Vec<Change> {
        match (answer, &ticket.op) {
            (Answer::Object(object), _) => self.world.record(&ticket.target.resource, &object),
            (Answer::Gone, _) => {
                let uid = ticket.target.uid.as_deref().unwrap_or_default();
                self.world
                    .forget(&ticket.target.resource, &ticket.target.key, uid)
            }
            (Answer::Done, Op::Bind(node)) => self.world.bound(&ticket.target.key, node),
            (Answer::Done, _) => Vec::new(),
        }
    }

    fn spread(&mut self, changes: &[Change]) {
        for desk in &mut self.desks {
            for change in changes {
                desk.controller.affected(&self.world, change, &mut desk.dirty);
            }
        }
    }
}

impl Desk {
    /// Plans every key that is due.
    fn plan(&mut self, world: &World, now: Timestamp) -> Vec<(Key, Vec<Action>)> {
        if !self.controller.reads().iter().all(|kind| world.synced(*kind)) {
            return Vec::new();
        }
        let due = self.alarms.extract_if(|_, when| *when <= now).map(|(key, _)| key);
        self.dirty.extend(due);
        let mut planned = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            if self.flying.contains_key(&key) {
                self.dirty_later(key);
                continue;
            }
            if let Some(failure) = self.failed.get(&key).filter(|f| f.not_before > now) {
                self.alarms.insert(key, failure.not_before);
                continue;
            }
            if let Some(actions) = self.plan_one(world, &key, now) {
                planned.push((key, actions));
            }
        }
        planned
    }

    fn plan_one(&mut self, world: &World, key: &Key, now: Timestamp) -> Option<Vec<Action>> {
        let failure = self.failed.get(key);
        let context = Context {
            now,
            failures: failure.map_or(0, |f| f.count),
            error: failure.map(|f| f.message.clone()).filter(|m| !m.is_empty()),
        };
        let plan = self.controller.plan(world, key, &context);
        match plan.again {
            Some(when) => self.alarms.insert(key.clone(), when),
            None => self.alarms.remove(key),
        };
        if plan.actions.is_empty() {
            self.failed.remove(key);
            return None;
        }
        self.flying.insert(
            key.clone(),
            Flight {
                left: plan.actions.len(),
                refused: None,
            },
        );
        Some(plan.actions)
    }

    /// Keys that cannot be planned yet stay dirty; landing makes them due.
    fn dirty_later(&mut self, key: Key) {
        self.dirty.insert(key);
    }

    fn land(&mut self, key: Key, refused: Option<Refusal>, now: Timestamp) {
        let Some(flight) = self.flying.get_mut(&key) else {
            return;
        };
        flight.left -= 1;
        // What is wrong says more than what is stale.
        if refused.as_ref().is_some_and(|r| !r.stale) || flight.refused.is_none() {
            flight.refused = refused.or(flight.refused.take());
        }
        if flight.left > 0 {
            return;
        }
        match self.flying.remove(&key).and_then(|f| f.refused) {
            None => drop(self.failed.remove(&key)),
            Some(refusal) => {
                let count = self.failed.get(&key).map_or(0, |f| f.count) + 1;
                let not_before = now + backoff(refusal.stale, count);
                let message = if refusal.stale {
                    String::new()
                } else {
                    refusal.message
                };
                self.failed.insert(
                    key.clone(),
                    Failure {
                        count,
                        message,
                        not_before,
                    },
                );
                self.alarms.insert(key, not_before);
            }
        }
    }
}

/// How long to wait after the `count`th failure in a row.
fn backoff(stale: bool, count: u32) -> SignedDuration {
    let (first, most) = if stale { (5, 5_000) } else { (100, 30_000) };
    let millis = (first as i64).saturating_mul(1 << count.saturating_sub(1).min(20));
    SignedDuration::from_millis(millis.min(most))
}
