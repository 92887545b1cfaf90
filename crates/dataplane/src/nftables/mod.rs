//! Services and policies through nftables: one table, `inet podnet`, in which a service, an endpoint and a pod are
//! elements.
//!
//! We speak netlink to the kernel ourselves ([`podnet_linux::netfilter`]); a change is one transaction against the generation
//! of the rule set that was read, so what others do at the same time neither gets lost nor mixed up with ours.

mod dump;
mod flows;
mod found;
mod model;
mod policy;
mod program;
mod render;
mod rule;
mod transaction;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use podnet_core::NodeState;
use podnet_core::policy::PolicyState;
use podnet_core::service::ServiceState;
use podnet_linux::netfilter::Netfilter;
pub use podnet_linux::netfilter::NetfilterError;

pub use found::Found;
pub(crate) use model::digit;
pub use model::{Base, Chain, Elements, Field, Hook, Key, MapsTo, Set, SetName, Table, Value, Verdict};
pub use policy::Gap;
use render::Turn;
pub use render::render;
pub use rule::{Asked, Choice, Clause, Rule};
pub use transaction::{Operation, Transaction};

use crate::existing::Existing;
use crate::monitor::Listener;
use crate::services::{Services, Touched, without_services};

/// The name of our table, in the family inet.
pub const TABLE: &str = "podnet";
/// Others change nftables too; so often we begin again.
const ATTEMPTS: usize = 20;
/// So many changes at once are not announced to ourselves.
const LARGE: usize = 500;

/// The services of a node, kept in nftables.
#[derive(Debug)]
pub struct Nftables {
    socket: Netfilter,
    /// What the kernel has, as of a generation of its rule set.
    known: Option<(u32, Known)>,
    /// What we put there last, whatever others did to it since.
    put: Option<Put>,
    /// How much of that others had changed that is as it should be again, until somebody asks.
    put_back: usize,
    /// UDP frontends that changed, and whose stale flows have not been forgotten yet.
    touched: Touched,
    /// Connections that policies may have begun to deny.
    existing: Existing,
    /// What policies have in the table.
    policies: Option<Policies>,
    /// From which generation to which our last change took the rule set, until somebody asks.
    step: Option<(u32, u32)>,
    listener: Listener,
    /// Since our last change somebody else has changed something, and nobody heard of it.
    unheard: bool,
}

/// How we know what the kernel has.
#[derive(Debug)]
enum Known {
    /// It was read.
    Read(Option<Found>),
    /// It is what we put there.
    Put,
}

/// What we put there: the frame, what services have in it, and what policies have.
#[derive(Debug, Clone, PartialEq)]
struct Put(Table, Arc<ServiceState>, Arc<Table>);

/// What a state's policies have in the table.
type Policies = (Arc<PolicyState>, Arc<Table>);

impl Known {
    fn is_table(&self) -> bool {
        match self {
            Known::Read(found) => found.is_some(),
            Known::Put => true,
        }
    }
}

impl Put {
    fn table(&self) -> Table {
        let Put(frame, services, policies) = self;
        render::whole(frame.clone(), services, Table::clone(policies))
    }

    /// What makes this of another.
    fn after(&self, old: &Put) -> Transaction {
        let (Put(old_frame, old, old_policies), Put(frame, services, policies)) = (old, self);
        let old = (old_frame.clone(), &**old);
        let (mut old, mut new) = render::changed(old, (frame.clone(), services));
        if !Arc::ptr_eq(old_policies, policies) {
            let (before, after) = policy::difference(old_policies, policies);
            policy::add(&mut old, before);
            policy::add(&mut new, after);
        }
        Transaction::between(&new, Some(&Found::of(&old)))
    }
}

impl Nftables {
    /// For the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetfilterError> {
        Ok(Nftables {
            socket: Netfilter::open()?,
            known: None,
            put: None,
            put_back: 0,
            touched: Touched::default(),
            existing: Existing::default(),
            policies: None,
            step: None,
            listener: Listener::default(),
            unheard: false,
        })
    }

    /// Who is not to hear of our own large changes.
    pub(crate) fn hush(&mut self, listener: Listener) {
        self.listener = listener;
    }

    /// By this the kernel's announcements of our own changes are known.
    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Makes the kernel's table the one for `state`. Returns what was done, which is nothing when nothing differed.
    pub fn apply(&mut self, state: &NodeState) -> Result<Transaction, NetfilterError> {
        self.apply_part(render::frame(state, Turn::Usual), &state.services, state)
    }

    /// The same where another back end carries services: the table has none of them, and is asked after that one.
    pub fn apply_without_services(&mut self, state: &NodeState) -> Result<Transaction, NetfilterError> {
        let rest = without_services(state);
        self.apply_part(render::frame(&rest, Turn::Late), &rest.services, state)
    }

    fn apply_part(
        &mut self,
        frame: Table,
        services: &Arc<ServiceState>,
        state: &NodeState,
    ) -> Result<Transaction, NetfilterError> {
        let policies = self.render_policies(&state.policy);
        let want = Put(frame, Arc::clone(services), policies);
        let mut done = Transaction::default();
        for _ in 0..ATTEMPTS {
            match self.try_apply(&want) {
                Err(NetfilterError::Changed) => self.known = None,
                Err(error) => {
                    self.known = None;
                    if matches!(error, NetfilterError::Socket { .. }) {
                        // An answer that is lost is one that nobody knows.
                        self.put = None;
                    }
                    return Err(error);
                }
                Ok(transaction) => {
                    done.0.extend(transaction.0);
                    if std::mem::take(&mut self.unheard) {
                        self.known = None;
                        continue;
                    }
                    self.touched.forget(&mut self.socket, state)?;
                    // Not before the rules are in force: what comes then is judged by them.
                    self.existing.cut(&mut self.socket, &state.policy)?;
                    return Ok(done);
                }
            }
        }
        Err(NetfilterError::Changed)
    }

    fn render_policies(&mut self, policy: &Arc<PolicyState>) -> Arc<Table> {
        if let Some((known, table)) = &mut self.policies
            && known == policy
        {
            // Equal ones are the same the next time, which is seen at a glance.
            Arc::clone_from(known, policy);
            return Arc::clone(table);
        }
        let table = Arc::new(policy::render(policy));
        self.policies = Some((Arc::clone(policy), Arc::clone(&table)));
        table
    }

    fn try_apply(&mut self, want: &Put) -> Result<Transaction, NetfilterError> {
        let generation = self.refresh()?;
        let was_read = matches!(self.known, Some((_, Known::Read(_))));
        let (transaction, put_back) = match (self.known.take(), &self.put) {
            (Some((_, Known::Put)), Some(put)) => {
                // Not all of it shows in the table: an endpoint that terminates has no element, but flows.
                self.touched.note_change(&put.1, &want.1);
                (want.after(put), 0)
            }
            (Some((_, Known::Read(found))), put) => {
                if found.is_some() {
                    self.touched.note_all();
                }
                let transaction = Transaction::between(&want.table(), found.as_ref());
                let put_back = match put {
                    None => 0,
                    Some(put) if put == want => transaction.changes(),
                    Some(put) => Transaction::between(&put.table(), found.as_ref()).changes(),
                };
                (transaction, put_back)
            }
            _ => return Err(NetfilterError::Changed),
        };
        let mut known = generation;
        if !transaction.is_empty() {
            if was_read {
                // What connected while somebody else had changed the table was judged by nobody.
                self.existing = Existing::default();
            }
            // Before the kernel has it: when its answer is lost, the next difference does not have them any more.
            self.touched.note(&transaction);
            let is_large = transaction.changes() > LARGE;
            let deaf = is_large.then(|| self.listener.deafen()).transpose();
            let deaf = deaf.map_err(|source| membership("leave", source))?;
            self.socket.transaction(generation, &transaction.messages())?;
            // The kernel counts on by one and passes over zero.
            known = generation.checked_add(1).unwrap_or(1);
            self.step = Some((generation, known));
            if let Some(deaf) = deaf {
                deaf.end().map_err(|source| membership("join", source))?;
                self.unheard = self.socket.generation()? != known;
            }
        }
        self.known = Some((known, Known::Put));
        self.put = Some(want.clone());
        self.put_back += put_back;
        Ok(transaction)
    }

    /// Reads the kernel's table unless it is known already; returns the generation it is of.
    fn refresh(&mut self) -> Result<u32, NetfilterError> {
        for _ in 0..ATTEMPTS {
            let generation = self.socket.generation()?;
            if self.known.as_ref().is_some_and(|(known, _)| *known == generation) {
                return Ok(generation);
            }
            match found::read(&mut self.socket) {
                Ok(found) => {
                    // Read in several dumps: they are of one piece if nothing changed meanwhile.
                    if self.socket.generation()? == generation {
                        self.known = Some((generation, Known::Read(found)));
                        return Ok(generation);
                    }
                }
                Err(NetfilterError::Changed) => {}
                // A set that went between two dumps.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Err(NetfilterError::Changed)
    }

    /// From which generation of the rule set to which the last change took it; `None` when that was asked already.
    pub(crate) fn take_step(&mut self) -> Option<(u32, u32)> {
        self.step.take()
    }

    /// How much others had changed that the applications since this was asked last put back.
    pub(crate) fn take_put_back(&mut self) -> usize {
        std::mem::take(&mut self.put_back)
    }

    /// What the kernel's table does, in the model's words; nothing when there is no table.
    pub fn dump(&mut self) -> Result<Services, NetfilterError> {
        self.known = None;
        self.refresh()?;
        match &self.known {
            Some((_, Known::Read(Some(found)))) => Ok(Services::from_found(found)),
            _ => Ok(Services::default()),
        }
    }

    /// What of the policies about pods of these addresses is not in the kernel; `None` when nothing is missing.
    pub fn policy_gap(
        &mut self,
        want: &PolicyState,
        addresses: &[IpAddr],
    ) -> Result<Option<Gap>, NetfilterError> {
        self.known = None;
        self.refresh()?;
        let nothing = Found::default();
        let found = match &self.known {
            Some((_, Known::Read(Some(found)))) => found,
            _ => &nothing,
        };
        Ok(policy::gap(&policy::render(want), found, addresses))
    }

    /// Whether our table is there.
    pub fn exists(&mut self) -> Result<bool, NetfilterError> {
        match self.refresh() {
            // A kernel without nftables has no table.
            Err(error) if error.is_unsupported() => return Ok(false),
            other => _ = other?,
        }
        Ok(self.known.as_ref().is_some_and(|(_, known)| known.is_table()))
    }

    /// Removes our table. Returns whether there was one.
    pub fn clean(&mut self) -> Result<bool, NetfilterError> {
        (self.known, self.put) = (None, None);
        for _ in 0..ATTEMPTS {
            let generation = match self.socket.generation() {
                Err(error) if error.is_unsupported() => return Ok(false),
                other => other?,
            };
            match found::read(&mut self.socket) {
                Ok(None) => return Ok(false),
                Ok(Some(_)) => {}
                Err(error) if matches!(error, NetfilterError::Changed) || error.is_not_found() => continue,
                Err(error) => return Err(error),
            }
            let delete = Transaction(vec![Operation::DeleteTable]);
            match self.socket.transaction(generation, &delete.messages()) {
                Err(NetfilterError::Changed) => {}
                other => return other.map(|()| true),
            }
        }
        Err(NetfilterError::Changed)
    }
}

fn membership(deed: &str, source: io::Error) -> NetfilterError {
    NetfilterError::Socket {
        what: format!("{deed} nftables' multicast group"),
        source,
    }
}

#[cfg(test)]
mod tests;
