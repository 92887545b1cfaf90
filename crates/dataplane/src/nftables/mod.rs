//! Services through nftables: one table, `inet podnet`, in which a service and an endpoint are elements.
//!
//! We speak netlink to the kernel ourselves ([`podnet_linux::netfilter`]); a change is one transaction against the generation
//! of the rule set that was read, so what others do at the same time neither gets lost nor mixed up with ours.

mod conntrack;
mod dump;
mod flows;
mod found;
mod model;
mod program;
mod render;
mod rule;
mod transaction;

use std::sync::Arc;

use podnet_core::NodeState;
use podnet_core::service::ServiceState;
use podnet_linux::netfilter::Netfilter;
pub use podnet_linux::netfilter::NetfilterError;

pub(crate) use conntrack::be_liberal;
pub use dump::{Services, Target};
pub use found::Found;
pub use model::{Base, Chain, Elements, Field, Hook, Key, MapsTo, Set, SetName, Table, Value, Verdict};
pub use render::render;
pub use rule::{Asked, Choice, Clause, Rule};
pub use transaction::{Operation, Transaction};

use flows::Touched;

/// The name of our table, in the family inet.
pub const TABLE: &str = "podnet";
/// Others change nftables too; so often we begin again.
const ATTEMPTS: usize = 20;

/// The services of a node, kept in nftables.
#[derive(Debug)]
pub struct Nftables {
    socket: Netfilter,
    /// What the kernel has, as of a generation of its rule set.
    known: Option<(u32, Known)>,
    /// UDP frontends that changed, and whose stale flows have not been forgotten yet.
    touched: Touched,
}

/// How we know what the kernel has.
#[derive(Debug)]
enum Known {
    /// It was read.
    Read(Option<Found>),
    /// We put it there: the frame, and what services have in it.
    Put(Table, Arc<ServiceState>),
}

impl Known {
    fn is_table(&self) -> bool {
        match self {
            Known::Read(found) => found.is_some(),
            Known::Put(..) => true,
        }
    }
}

impl Nftables {
    /// For the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetfilterError> {
        Ok(Nftables {
            socket: Netfilter::open()?,
            known: None,
            touched: Touched::default(),
        })
    }

    /// By this the kernel's announcements of our own changes are known.
    pub(crate) fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Makes the kernel's table the one for `state`. Returns what was done, which is nothing when nothing differed.
    pub fn apply(&mut self, state: &NodeState) -> Result<Transaction, NetfilterError> {
        let frame = render::frame(state);
        for _ in 0..ATTEMPTS {
            match self.try_apply(&frame, &state.services) {
                Err(NetfilterError::Changed) => self.known = None,
                Err(error) => {
                    self.known = None;
                    return Err(error);
                }
                Ok(transaction) => {
                    self.forget_flows(state)?;
                    return Ok(transaction);
                }
            }
        }
        Err(NetfilterError::Changed)
    }

    fn try_apply(
        &mut self,
        frame: &Table,
        services: &Arc<ServiceState>,
    ) -> Result<Transaction, NetfilterError> {
        let generation = self.refresh()?;
        let transaction = match self.known.take() {
            Some((_, Known::Put(old_frame, old))) => {
                let (old, new) = render::changed((old_frame, &old), (frame.clone(), services));
                Transaction::between(&new, Some(&Found::of(&old)))
            }
            Some((_, Known::Read(found))) => {
                if found.is_some() {
                    self.touched.note_all();
                }
                Transaction::between(&render::whole(frame.clone(), services), found.as_ref())
            }
            None => return Err(NetfilterError::Changed),
        };
        let mut known = generation;
        if !transaction.is_empty() {
            // Before the kernel has it: when its answer is lost, the next difference does not have them any more.
            self.touched.note(&transaction);
            self.socket.transaction(generation, &transaction.messages())?;
            // The kernel counts on by one and passes over zero.
            known = generation.checked_add(1).unwrap_or(1);
        }
        self.known = Some((known, Known::Put(frame.clone(), Arc::clone(services))));
        Ok(transaction)
    }

    /// Reads the kernel's table unless it is known already; returns the generation it is of.
    fn refresh(&mut self) -> Result<u32, NetfilterError> {
        for _ in 0..ATTEMPTS {
            let generation = found::generation(&mut self.socket)?;
            if self.known.as_ref().is_some_and(|(known, _)| *known == generation) {
                return Ok(generation);
            }
            match found::read(&mut self.socket) {
                Ok(found) => {
                    // Read in several dumps: they are of one piece if nothing changed meanwhile.
                    if found::generation(&mut self.socket)? == generation {
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

    /// What the kernel's table does, in the model's words; nothing when there is no table.
    pub fn dump(&mut self) -> Result<Services, NetfilterError> {
        self.known = None;
        self.refresh()?;
        match &self.known {
            Some((_, Known::Read(Some(found)))) => Ok(Services::from_found(found)),
            _ => Ok(Services::default()),
        }
    }

    /// Whether our table is there.
    pub fn exists(&mut self) -> Result<bool, NetfilterError> {
        self.refresh()?;
        Ok(self.known.as_ref().is_some_and(|(_, known)| known.is_table()))
    }

    /// Removes our table. Returns whether there was one.
    pub fn clean(&mut self) -> Result<bool, NetfilterError> {
        for _ in 0..ATTEMPTS {
            let generation = found::generation(&mut self.socket)?;
            let Some(_) = found::read(&mut self.socket)? else {
                return Ok(false);
            };
            self.known = None;
            let delete = Transaction(vec![Operation::DeleteTable]);
            match self.socket.transaction(generation, &delete.messages()) {
                Err(NetfilterError::Changed) => {}
                other => return other.map(|()| true),
            }
        }
        Err(NetfilterError::Changed)
    }

    /// After a failure they are tried again with the next application.
    fn forget_flows(&mut self, state: &NodeState) -> Result<(), NetfilterError> {
        if self.touched.is_empty() {
            return Ok(());
        }
        let touched = &self.touched;
        conntrack::forget(&mut self.socket, |sent_to, answered_from| {
            touched.is_stale(state, sent_to, answered_from)
        })?;
        self.touched = Touched::default();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
