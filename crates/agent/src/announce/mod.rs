//! Answers for load balancers' addresses on the local network, on the links that the pools name.
//!
//! A thread of its own: it has to say every tenth of a second that this node is there, whatever else the agent does. What is
//! said, and when, is [`podnet_core::announce`]'s. The addresses are on no link of this node; a packet that comes for one is
//! translated by the data plane before the node looks for where it is to go.

mod links;
mod port;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use podnet_core::NodeName;
use podnet_core::announce::{Announcements, Candidates, Standing};
use podnet_linux::probe;
use tokio::sync::watch;

use links::Links;
use port::Port;

/// So often it is looked whether links have come or gone.
const LOOK: Duration = Duration::from_secs(1);

/// The addresses that this node answers for, with the link of each.
pub type Spoken = BTreeMap<String, Vec<IpAddr>>;

/// What is to be announced.
#[derive(Debug, Clone)]
struct Order {
    announcements: Arc<Announcements>,
    standing: Standing,
}

/// The thread, from outside. It says goodbye and ends with this value.
#[derive(Debug)]
pub struct Announcing {
    orders: Option<mpsc::Sender<Order>>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
    /// What this node answers for.
    pub spoken: watch::Receiver<Spoken>,
}

struct Thread {
    me: NodeName,
    inbox: mpsc::Receiver<Order>,
    wake: UnixStream,
    begin: Instant,
    order: Order,
    links: Links,
    ports: BTreeMap<String, Port>,
    look_at: Duration,
    spoken: watch::Sender<Spoken>,
}

impl Announcing {
    /// Starts the thread, in the network namespace of the calling one. `underlay` names the link between nodes, where that
    /// is not the one with the node's address.
    pub fn start(me: NodeName, underlay: Option<String>) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let (spoken, heard) = watch::channel(Spoken::new());
        let mut thread = Thread {
            me,
            inbox,
            wake: woken,
            begin: Instant::now(),
            order: Order {
                announcements: Arc::default(),
                standing: Standing::Behind,
            },
            links: Links::open(underlay)?,
            ports: BTreeMap::new(),
            look_at: Duration::ZERO,
            spoken,
        };
        let thread = std::thread::Builder::new()
            .name("announce".into())
            .spawn(move || thread.run())?;
        Ok(Announcing {
            orders: Some(orders),
            wake,
            thread: Some(thread),
            spoken: heard,
        })
    }

    /// Announces these from now on. `in_force` says whether this node's kernel has the state they are of.
    pub fn set(&self, announcements: &Arc<Announcements>, in_force: bool) {
        let order = Order {
            announcements: Arc::clone(announcements),
            standing: if in_force {
                Standing::InForce
            } else {
                Standing::Behind
            },
        };
        // A thread that has ended has said why.
        if let Some(orders) = &self.orders
            && orders.send(order).is_ok()
        {
            let _ = (&self.wake).write(&[0]);
        }
    }
}

impl Drop for Announcing {
    fn drop(&mut self) {
        self.orders = None;
        // Unlike a byte, which may be read together with that of an order, this wakes for good.
        let _ = self.wake.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // If it panicked, the log has the cause.
            let _ = thread.join();
        }
    }
}

impl Thread {
    fn run(&mut self) {
        loop {
            match self.newest() {
                Err(mpsc::TryRecvError::Disconnected) => break,
                Err(mpsc::TryRecvError::Empty) => {}
                Ok(order) => self.follow(order),
            }
            if self.is_busy() && self.now() >= self.look_at {
                self.look();
            }
            if let Err(error) = self.wait() {
                tracing::error!(%error, "load balancers' addresses are no longer announced");
                break;
            }
            let now = self.now();
            self.ports.values_mut().for_each(|port| port.turn(now));
            self.publish();
        }
        self.ports.values_mut().for_each(Port::leave);
        self.ports.clear();
        self.publish();
    }

    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    fn is_busy(&self) -> bool {
        !self.order.announcements.addresses.is_empty()
    }

    fn newest(&mut self) -> Result<Order, mpsc::TryRecvError> {
        let mut newest = self.inbox.try_recv()?;
        while let Ok(newer) = self.inbox.try_recv() {
            newest = newer;
        }
        Ok(newest)
    }

    fn follow(&mut self, order: Order) {
        let same = Arc::ptr_eq(&self.order.announcements, &order.announcements)
            || self.order.announcements == order.announcements;
        let changed = !same || self.order.standing != order.standing;
        self.order = order;
        if changed {
            self.look();
        }
    }

    /// Opens and closes ports as links and pools have it, and tells each what is announced there.
    fn look(&mut self) {
        let now = self.now();
        self.look_at = now + LOOK;
        let Announcements { addresses, nodes } = &*self.order.announcements;
        let local = nodes.get(&self.me).copied();
        let links = match self.is_busy().then(|| self.links.usable(local)) {
            None => Vec::new(),
            Some(Ok(links)) => links,
            // Until then what is answered for goes on.
            Some(Err(error)) => return tracing::warn!(%error, "cannot look at the links, trying again"),
        };
        let mut ports = BTreeMap::new();
        for link in links {
            let here = addresses
                .iter()
                .filter(|(_, announced)| announced.is_on(&link.name, link.underlay));
            let here: Candidates = here
                .map(|(address, announced)| (*address, Arc::clone(&announced.nodes)))
                .collect();
            if here.is_empty() {
                continue;
            }
            let open = match self.ports.remove(&link.name) {
                // Another link of that name, or the same in another part: it begins anew, and others need not wait.
                Some(mut other) if !other.is_of(&link) => {
                    other.leave();
                    None
                }
                open => open,
            };
            let Some(mut port) = open.or_else(|| Port::open(now, self.me.clone(), &link)) else {
                continue;
            };
            port.want(now, here, nodes, self.order.standing);
            ports.insert(link.name, port);
        }
        // On the others nothing is announced any more.
        let mut others = std::mem::replace(&mut self.ports, ports);
        others.values_mut().for_each(Port::leave);
    }

    /// Until something comes or is due.
    fn wait(&mut self) -> io::Result<()> {
        let now = self.now();
        let look = self.is_busy().then_some(self.look_at);
        let due = self.ports.values().filter_map(Port::next).chain(look).min();
        let mut descriptors = vec![self.wake.as_fd()];
        descriptors.extend(self.ports.values().flat_map(Port::descriptors));
        probe::wait(&descriptors, due.map(|due| due.saturating_sub(now)))?;
        let mut bytes = [0; 64];
        while matches!((&self.wake).read(&mut bytes), Ok(1..)) {}
        Ok(())
    }

    /// Says what this node answers for, where that has changed.
    fn publish(&mut self) {
        let spoken = self
            .ports
            .iter()
            .map(|(link, port)| (link.clone(), port.speaks_for()));
        let spoken: Spoken = spoken.filter(|(_, addresses)| !addresses.is_empty()).collect();
        self.spoken.send_if_modified(|published| {
            let changed = *published != spoken;
            if changed {
                tell(published, &spoken);
                *published = spoken;
            }
            changed
        });
    }
}

/// What is among `now` and was not `before`.
pub fn taken(before: &Spoken, now: &Spoken) -> Vec<(String, IpAddr)> {
    let taken = now.iter().flat_map(|(link, addresses)| {
        let known = before.get(link);
        let new = addresses
            .iter()
            .filter(move |address| known.is_none_or(|known| !known.contains(address)));
        new.map(move |address| (link.clone(), *address))
    });
    taken.collect()
}

/// Logs what is new and what is over.
fn tell(before: &Spoken, now: &Spoken) {
    for (link, address) in taken(before, now) {
        tracing::info!(link, %address, "answers for a load balancer's address");
    }
    for (link, address) in taken(now, before) {
        tracing::info!(link, %address, "another node answers from now on, or none");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order and the end come with the same wakeup, or the end between the looks at either.
    #[test]
    fn it_ends_also_right_after_an_order() {
        for round in 0..500_u32 {
            let announcing = Announcing::start(NodeName::new("node1").unwrap(), None).unwrap();
            // It waits by then, for some of the rounds.
            std::thread::sleep(Duration::from_micros(u64::from(round % 10) * 20));
            announcing.set(&Arc::default(), round % 2 == 0);
            let (ended, end) = mpsc::channel();
            std::thread::spawn(move || {
                drop(announcing);
                ended.send(()).unwrap();
            });
            end.recv_timeout(Duration::from_secs(60))
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
    }
}
