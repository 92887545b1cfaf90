//! Services through nftables: one table, `inet podnet`, in which a service and an endpoint are elements.
//!
//! We speak netlink to the kernel ourselves ([`podnet_linux::netfilter`]); a change is one transaction against the generation
//! of the rule set that was read, so what others do at the same time neither gets lost nor mixed up with ours.

mod conntrack;
mod flows;
mod found;
mod model;
mod program;
mod render;
mod rule;
mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU16;

use podnet_core::NodeState;
use podnet_core::cluster::{Family, Protocol};
use podnet_core::service::{Frontend, HostAddress, HostPort};
use podnet_linux::netfilter::Netfilter;
pub use podnet_linux::netfilter::NetfilterError;

pub(crate) use conntrack::be_liberal;
pub use found::Found;
pub use model::{Base, Chain, Elements, Field, Hook, Key, MapsTo, Set, Table, Value, Verdict};
pub use render::render;
pub use rule::{Clause, Rule};
pub use transaction::{Operation, Transaction};

use flows::Touched;
use render::{names, split_address};

/// The name of our table, in the family inet.
pub const TABLE: &str = "podnet";
/// Others change nftables too; so often we begin again.
const ATTEMPTS: usize = 20;

/// The services of a node, kept in nftables.
#[derive(Debug)]
pub struct Nftables {
    socket: Netfilter,
    /// What the kernel has, as of a generation of its rule set.
    known: Option<(u32, Option<Found>)>,
    /// UDP frontends that changed, and whose stale flows have not been forgotten yet.
    touched: Touched,
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
        let table = render(state);
        for _ in 0..ATTEMPTS {
            match self.try_apply(&table) {
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

    fn try_apply(&mut self, table: &Table) -> Result<Transaction, NetfilterError> {
        let generation = self.refresh()?;
        let found = self.known.as_ref().and_then(|(_, found)| found.as_ref());
        let transaction = Transaction::between(table, found);
        if transaction.is_empty() {
            return Ok(transaction);
        }
        // Before the kernel has it: when its answer is lost, the next difference does not have them any more.
        self.touched.note(&transaction);
        self.socket.transaction(generation, &transaction.messages())?;
        // The kernel counts on by one and passes over zero.
        let next = generation.checked_add(1).unwrap_or(1);
        self.known = Some((next, Some(Found::of(table))));
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
                        self.known = Some((generation, found));
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
        let found = self.known.as_ref().and_then(|(_, found)| found.as_ref());
        Ok(found.map(Services::from_found).unwrap_or_default())
    }

    /// Whether our table is there.
    pub fn exists(&mut self) -> Result<bool, NetfilterError> {
        self.refresh()?;
        Ok(self.known.as_ref().is_some_and(|(_, found)| found.is_some()))
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

fn frontend_width(family: Family) -> usize {
    match family {
        Family::V4 => 4 + 8,
        Family::V6 => 16 + 8,
    }
}

/// What the kernel does with services' addresses, in the model's words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Services {
    /// Frontends and what new connections to them become.
    pub frontends: BTreeMap<Frontend, Target>,
    /// Addresses whose other ports are refused.
    pub cluster_ips: BTreeSet<std::net::IpAddr>,
    /// Host ports of all the node's addresses. One of a single address is a frontend.
    pub host_ports: BTreeMap<HostPort, SocketAddr>,
}

/// What becomes of a new connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// It goes to one of these.
    Balance(Vec<SocketAddr>),
    /// It is dropped.
    Drop,
}

impl Services {
    /// Whether new connections to a host port go to `target`.
    pub fn leads(&self, host_port: &HostPort, target: SocketAddr) -> bool {
        match host_port.address {
            HostAddress::Any(_) => self.host_ports.get(host_port) == Some(&target),
            HostAddress::One(address) => {
                let frontend = Frontend {
                    address,
                    protocol: host_port.protocol,
                    port: host_port.port,
                };
                self.frontends.get(&frontend) == Some(&Target::Balance(vec![target]))
            }
        }
    }

    fn from_found(found: &Found) -> Self {
        let mut services = Services::default();
        for family in [Family::V4, Family::V6] {
            services.read(family, found);
        }
        services
    }

    fn read(&mut self, family: Family, found: &Found) {
        let names = names(family);
        let elements = |set: &str| found.elements.get(set).into_iter().flatten();
        for (key, value) in elements(names.services) {
            let Some((frontend, _)) = read_frontend(family, key) else {
                continue;
            };
            let target = match value {
                Value::Verdict(Verdict::Goto(_)) => Target::Balance(Vec::new()),
                _ => Target::Drop,
            };
            self.frontends.insert(frontend, target);
        }
        for (key, value) in elements(names.endpoints) {
            let Some((frontend, _)) = read_frontend(family, key) else {
                continue;
            };
            if let (Value::Data(data), Some(Target::Balance(list))) =
                (value, self.frontends.get_mut(&frontend))
            {
                list.extend(read_socket(family, data));
            }
        }
        let addresses = elements(names.cluster_ips).filter_map(|(key, _)| split_address(family, key));
        self.cluster_ips.extend(addresses.map(|(address, _)| address));
        let host_ports = elements(names.host_ports).filter_map(|(key, value)| match value {
            Value::Data(data) => Some((read_host_port(family, key)?, read_socket(family, data)?)),
            _ => None,
        });
        self.host_ports.extend(host_ports);
    }
}

fn read_host_port(family: Family, key: &[u8]) -> Option<HostPort> {
    let (protocol, rest) = key.split_first_chunk::<4>()?;
    let (port, _) = rest.split_first_chunk::<4>()?;
    Some(HostPort {
        address: HostAddress::Any(family),
        protocol: Protocol::from_number(protocol[0])?,
        port: NonZeroU16::new(u16::from_be_bytes([port[0], port[1]]))?,
    })
}

fn read_frontend(family: Family, key: &[u8]) -> Option<(Frontend, &[u8])> {
    let (address, rest) = split_address(family, key)?;
    let (protocol, rest) = rest.split_first_chunk::<4>()?;
    let (port, rest) = rest.split_first_chunk::<4>()?;
    let port = NonZeroU16::new(u16::from_be_bytes([port[0], port[1]]))?;
    Some((
        Frontend {
            address,
            protocol: Protocol::from_number(protocol[0])?,
            port,
        },
        rest,
    ))
}

fn read_socket(family: Family, data: &[u8]) -> Option<SocketAddr> {
    let (address, port) = split_address(family, data)?;
    Some(SocketAddr::new(
        address,
        u16::from_be_bytes([*port.first()?, *port.get(1)?]),
    ))
}

#[cfg(test)]
mod tests;
