//! The parts of the proxy that only one at a time may change: its table, and what there is because of it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use podnet_core::cluster::Protocol;
use podnet_core::service::Entry;
use tokio::sync::Notify;

use super::super::table::{Edit, Ground, Place};
use super::gate::Gate;
use super::listeners::{Listeners, Wanted};
use super::succession::{Inheritance, Predecessor};
use super::udp::Carrier;
use super::{Proxy, node_addresses};

/// What is not in force yet. It outlives a failure, to be tried again.
#[derive(Debug, Default)]
struct Todo {
    /// Places that may be served otherwise now.
    places: BTreeSet<Place>,
    /// Addresses that may lead here now, or not any more.
    addresses: BTreeSet<IpAddr>,
}

/// See the module.
pub(super) struct Server {
    pub(super) proxy: Arc<Proxy>,
    gate: Gate,
    listeners: Listeners,
    todo: Todo,
    /// What could not be served.
    refused: Vec<(Place, String)>,
    /// No agent wants it any more: it ends with its last connection.
    draining: bool,
    /// Another proxy has the gate.
    succeeded: bool,
    /// The one whose gate this is.
    predecessor: Option<Predecessor>,
    /// That one has ended.
    pub(super) bereaved: Arc<Notify>,
}

impl Server {
    /// With what another proxy handed over, where there was one.
    pub(super) fn open(inheritance: Option<Inheritance>) -> io::Result<Self> {
        let (gate, predecessor) = match inheritance {
            None => (Gate::open()?, None),
            Some(Inheritance {
                namespace,
                predecessor,
            }) => (Gate::take_over(namespace)?, Some(predecessor)),
        };
        Ok(Server {
            proxy: Arc::new(Proxy::new()?),
            gate,
            listeners: Listeners::default(),
            todo: Todo::default(),
            refused: Vec::new(),
            draining: false,
            succeeded: false,
            predecessor,
            bereaved: Arc::default(),
        })
    }

    /// The node's end of the gate.
    pub(super) fn link(&self) -> u32 {
        self.gate.link()
    }

    /// Takes edits over. Blocks; not for a task of the runtime as such.
    pub(super) fn apply(&mut self, edits: Vec<Edit>) -> io::Result<Vec<String>> {
        self.must_be_in_charge()?;
        self.draining = false;
        self.take(edits);
        // What another program had may be free by now.
        let refused = self.refused.iter().map(|(place, _)| *place);
        self.todo.places.extend(refused);
        self.serve()?;
        Ok(self.refused.iter().map(|(_, why)| why.clone()).collect())
    }

    fn must_be_in_charge(&self) -> io::Result<()> {
        match self.succeeded {
            true => Err(io::Error::other("another proxy has taken its place")),
            false => Ok(()),
        }
    }

    /// Changes the table, and notes what is to be done for it.
    fn take(&mut self, edits: Vec<Edit>) {
        let mut table = self.proxy.table.write();
        let before = table.clone();
        edits.into_iter().for_each(|edit| table.edit(edit));
        // Not the edits themselves: the whole of a table may change little of it.
        for edit in table.edits_from(&before) {
            self.todo.places.extend(edit.place());
            self.todo.addresses.extend(edit.address());
            match edit {
                Edit::Ground(_) => self.todo.places.extend(table.places()),
                Edit::Borrowed(address, _) | Edit::NotBorrowed(address) => {
                    self.todo.places.extend(table.places_of(address));
                }
                _ => {}
            }
        }
    }

    /// Something happened to the node's links, addresses or routes.
    pub(super) fn look_around(&mut self) -> io::Result<()> {
        self.gate.restore()?;
        self.readdress()
    }

    /// The node's addresses may be others: so are its node ports.
    pub(super) fn readdress(&mut self) -> io::Result<()> {
        if self.succeeded {
            return Ok(());
        }
        let now = node_addresses()?;
        let before = std::mem::replace(&mut *self.proxy.node.write(), now.clone());
        if before == now {
            // An address can be there a moment before sockets can have it.
            self.todo
                .places
                .extend(self.refused.iter().map(|(place, _)| *place));
        } else {
            self.todo.places.extend(self.proxy.table.read().places());
            self.todo.addresses.extend(before.symmetric_difference(&now));
        }
        let is_nothing = self.todo.places.is_empty() && self.todo.addresses.is_empty();
        // Until there is a table the one before this one serves.
        if is_nothing || self.predecessor.as_ref().is_some_and(Predecessor::serves) {
            return Ok(());
        }
        self.serve()?;
        self.refused.iter().for_each(|(_, why)| tracing::warn!("{why}"));
        Ok(())
    }

    /// Does what is to be done.
    fn serve(&mut self) -> io::Result<()> {
        let proxy = Arc::clone(&self.proxy);
        let node = proxy.node.read().clone();
        let (ground, borrowed, addresses, places) = {
            let table = proxy.table.read();
            let addresses = self.todo.addresses.iter().copied();
            let asked = addresses.filter(|address| table.leads(*address) && !node.contains(address));
            let places = self.todo.places.iter();
            let places = places.map(|place| (*place, table.get(*place).cloned()));
            (
                table.ground.clone(),
                table.borrowed.clone(),
                asked.collect::<Vec<IpAddr>>(),
                places.collect::<Vec<_>>(),
            )
        };
        self.gate.know(&addresses)?;
        if let Some(predecessor) = &mut self.predecessor {
            // Where it listens nobody else can.
            predecessor.close(&self.bereaved);
        }
        let guarded = Ground {
            node: node.clone(),
            ..ground.clone()
        };
        let wanted = Wanted {
            ground: &guarded,
            node: &node,
            borrowed: &borrowed,
        };
        let refused = self.listeners.update(&proxy, &self.gate, &wanted, &places)?;
        self.end_sessions(&places);
        self.refused
            .retain(|(place, _)| !self.todo.places.contains(place));
        self.refused.extend(refused);
        self.gate.set_sources(&ground.node)?;
        self.settle()?;
        self.todo.places.clear();
        Ok(())
    }

    /// Addresses that are asked lead here, and others no longer than until the last connection to them ends; those that
    /// are somebody else's not even that long.
    fn settle(&mut self) -> io::Result<()> {
        let (mut asked, mut gone) = (Vec::new(), Vec::new());
        {
            let (table, node) = (self.proxy.table.read(), self.proxy.node.read());
            let mut uses = self.proxy.uses.lock();
            for address in &self.todo.addresses {
                if table.leads(*address) && !node.contains(address) {
                    asked.push(*address);
                } else if self.gate.addresses().contains(address)
                    && (table.borrowed.contains_key(address)
                        || (self.predecessor.is_none() && uses.may_go(*address)))
                {
                    gone.push(*address);
                }
            }
        }
        self.gate.lead(&asked)?;
        self.gate.forget(&gone)?;
        self.todo.addresses.clear();
        Ok(())
    }

    /// The last connections to some addresses have ended.
    pub(super) fn release(&mut self) -> io::Result<()> {
        self.todo.addresses.extend(self.proxy.uses.lock().released());
        match self.succeeded {
            true => Ok(()),
            false => self.settle(),
        }
    }

    fn end_sessions(&self, places: &[(Place, Option<Arc<Entry>>)]) {
        let places = places
            .iter()
            .filter(|(place, _)| place.protocol() == Protocol::Udp);
        let places: HashMap<Place, &Option<Arc<Entry>>> =
            places.map(|(place, entry)| (*place, entry)).collect();
        if places.is_empty() {
            return;
        }
        let keeps = |carrier: &Carrier, endpoint| match places.get(&carrier.place) {
            Some(entry) => entry.as_ref().is_some_and(|entry| entry.keeps(endpoint)),
            None => true,
        };
        let gone = self
            .proxy
            .sessions
            .lock()
            .retain(|_, endpoint, carrier| keeps(carrier, endpoint));
        drop(gone);
    }

    /// Serves nobody new, and ends with the last connection.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        self.must_be_in_charge()?;
        self.take(vec![Edit::Whole]);
        self.serve()?;
        self.draining = true;
        Ok(())
    }

    /// Another proxy takes over the gate, and serves as soon as it can.
    pub(super) fn hand_over(
        &mut self,
        give: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.must_be_in_charge()?;
        self.gate.hand_over(give)?;
        self.succeeded = true;
        Ok(())
    }

    /// The other one can: this one keeps its connections, and ends with the last of them.
    pub(super) fn make_way(&mut self) {
        self.listeners.close_all();
        drop(self.proxy.sessions.lock().retain(|_, _, _| false));
        self.draining = true;
    }

    /// The one whose gate this is has ended, and with it the last of its connections.
    pub(super) fn come_of_age(&mut self) -> io::Result<()> {
        self.predecessor = None;
        self.todo.addresses.extend(self.gate.addresses());
        self.release()
    }

    pub(super) fn is_done(&self) -> bool {
        let connections = self.proxy.connections.load(Ordering::Relaxed);
        self.draining && connections == 0 && self.predecessor.is_none()
    }

    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.proxy.chooser.lock().expire(now);
        let gone = self.proxy.sessions.lock().expire(now);
        drop(gone);
    }

    /// Ends at once.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.listeners.close_all();
        self.gate.close()
    }
}
