//! What is in the maps: rendered from a state, compared, changed row by row.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use podnet_core::NodeState;
use podnet_core::cluster::{Affinity, Algorithm, NetnsCookie, Protocol};
use podnet_core::service::{self, Backend, Entry, NodePort};
use podnet_ebpf_abi::connect::{Balance, Serving, Slot};
use podnet_ebpf_abi::{self as abi, Endpoint, Frontend};

use crate::delta::Delta;

/// The rows of all maps that are filled from outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::ebpf) struct Rows {
    /// Whose sockets are led.
    pub(in crate::ebpf) clients: BTreeMap<u64, ()>,
    /// The services they are led to.
    pub(in crate::ebpf) balances: BTreeMap<Frontend, Balance>,
    /// Where these lead.
    pub(in crate::ebpf) slots: BTreeMap<Slot, Endpoint>,
    /// Where datagrams that were led before may still go.
    pub(in crate::ebpf) serving: BTreeMap<Serving, ()>,
}

/// A row of one of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ebpf) enum Row {
    Client(u64),
    Balance(Frontend, Balance),
    Slot(Slot, Endpoint),
    Serving(Serving),
}

/// A change of one row, which is one call of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ebpf) enum Step {
    Put(Row),
    Remove(Row),
}

impl Row {
    /// The service it is of.
    pub(in crate::ebpf) fn frontend(&self) -> Option<Frontend> {
        match self {
            Row::Client(_) => None,
            Row::Balance(frontend, _) => Some(*frontend),
            Row::Slot(slot, _) => Some(slot.frontend),
            Row::Serving(serving) => Some(serving.frontend),
        }
    }
}

impl Step {
    /// The row that changes.
    pub(in crate::ebpf) fn row(&self) -> &Row {
        match self {
            Step::Put(row) | Step::Remove(row) => row,
        }
    }
}

impl Rows {
    /// Of a state, for the node with that cookie.
    pub(in crate::ebpf) fn of(state: &NodeState, node: NetnsCookie) -> Self {
        let mut rows = Rows::default();
        rows.let_in(state, node);
        let services = &state.services;
        for (frontend, entry) in services.frontends.iter() {
            rows.lead(&self::frontend(frontend), entry);
        }
        for (node_port, entry) in services.node_ports.iter() {
            rows.lead_port(state, node_port, entry);
        }
        rows
    }

    /// Those whose services differ between two states, of either.
    pub(in crate::ebpf) fn changed(old: &NodeState, new: &NodeState) -> BTreeSet<Frontend> {
        let frontends = Delta::between_shared(&new.services.frontends, &old.services.frontends);
        let mut changed: BTreeSet<_> = frontends.keys().map(frontend).collect();
        let ports = |state: &NodeState, node_port: &NodePort| -> Vec<Frontend> {
            addresses(state, node_port)
                .map(|address| port_of(address, node_port))
                .collect()
        };
        if addresses_of(old) == addresses_of(new) {
            let delta = Delta::between_shared(&new.services.node_ports, &old.services.node_ports);
            changed.extend(delta.keys().flat_map(|node_port| ports(new, node_port)));
        } else {
            for state in [old, new] {
                let all = state.services.node_ports.keys();
                changed.extend(all.flat_map(|node_port| ports(state, node_port)));
            }
        }
        changed
    }

    /// Those of some services only, and of all clients.
    pub(in crate::ebpf) fn of_some(
        state: &NodeState,
        node: NetnsCookie,
        frontends: &BTreeSet<Frontend>,
    ) -> Self {
        let mut rows = Rows::default();
        rows.let_in(state, node);
        for frontend in frontends {
            let Some(asked) = model(frontend) else { continue };
            if let Some(entry) = state.services.frontends.get(&asked) {
                rows.lead(frontend, entry);
                continue;
            }
            let node_port = NodePort {
                family: podnet_core::cluster::Family::of(asked.address),
                protocol: asked.protocol,
                port: asked.port,
            };
            let is_here = addresses(state, &node_port).any(|address| address == asked.address);
            if let Some(entry) = state.services.node_ports.get(&node_port).filter(|_| is_here) {
                rows.lead(frontend, entry);
            }
        }
        rows
    }

    /// Of these rows those of some services, and all clients.
    pub(in crate::ebpf) fn some(&self, frontends: &BTreeSet<Frontend>) -> Self {
        let mut some = Rows {
            clients: self.clients.clone(),
            ..Rows::default()
        };
        for frontend in frontends {
            if let Some(balance) = self.balances.get(frontend) {
                some.balances.insert(*frontend, *balance);
            }
            let first = Slot {
                frontend: *frontend,
                number: 0,
            };
            let slots = self.slots.range(first..);
            let slots = slots.take_while(|(slot, _)| slot.frontend == *frontend);
            some.slots
                .extend(slots.map(|(slot, endpoint)| (*slot, *endpoint)));
            let least = Endpoint::new(abi::Address([0; 16]), [0; 2]);
            let first = Serving {
                frontend: *frontend,
                endpoint: least,
            };
            let serving = self.serving.range(first..);
            let serving = serving.take_while(|(serving, ())| serving.frontend == *frontend);
            some.serving.extend(serving.map(|(serving, ())| (*serving, ())));
        }
        some
    }

    fn let_in(&mut self, state: &NodeState, NetnsCookie(node): NetnsCookie) {
        // What they say to themselves through a service is judged, and what they say to their own address is not.
        let judged = state.policy.clusterwide();
        let pods = state
            .wired
            .iter()
            .filter(|wired| wired.addresses.is_disjoint(&judged));
        let pods = pods.filter_map(|wired| wired.namespace);
        let pods = pods.map(|NetnsCookie(pod)| pod.get());
        self.clients = pods.chain([node.get()]).map(|cookie| (cookie, ())).collect();
    }

    fn lead_port(&mut self, state: &NodeState, node_port: &NodePort, entry: &Entry) {
        for address in addresses(state, node_port) {
            let port = port_of(address, node_port);
            // A service that has the node's address and that port comes first, whatever is made of it.
            if !model(&port).is_some_and(|asked| state.services.frontends.contains_key(&asked)) {
                self.lead(&port, entry);
            }
        }
    }

    /// What is left out here is left to the table: whoever has the memory, the list or the hash that it takes, and whoever
    /// can refuse. The table has everything anyway.
    fn lead(&mut self, frontend: &Frontend, entry: &Entry) {
        let is_carried = [abi::Protocol::TCP, abi::Protocol::UDP].contains(&frontend.protocol);
        let is_plain = entry.affinity == Affinity::None
            && entry.algorithm == Algorithm::Random
            && entry.sources.is_none();
        let Backend::Balance { endpoints, .. } = entry.inside.as_ref() else {
            return;
        };
        if !is_carried || !is_plain {
            return;
        }
        let frontend = *frontend;
        let count = endpoints.len() as u32;
        self.balances.insert(frontend, Balance { endpoints: count });
        let numbered = (0..count).zip(endpoints.iter());
        let slots = numbered.map(|(number, endpoint)| (Slot { frontend, number }, Endpoint::from(*endpoint)));
        self.slots.extend(slots);
        if frontend.protocol == abi::Protocol::UDP {
            let serving = entry.inside.serving().map(|socket| Serving {
                frontend,
                endpoint: socket.into(),
            });
            self.serving.extend(serving.map(|serving| (serving, ())));
        }
    }

    /// How `have` becomes `self`: what a service leads to is there before the service says so, and goes after it.
    ///
    /// So at every moment a service that both have leads to endpoints of either, and a service that one of them has to its
    /// endpoints there or to none. And where datagrams are led they may go on to.
    pub(in crate::ebpf) fn steps_from(&self, have: &Rows) -> Vec<Step> {
        let clients = Delta::between(&self.clients, &have.clients);
        let balances = Delta::between(&self.balances, &have.balances);
        let slots = Delta::between(&self.slots, &have.slots);
        let serving = Delta::between(&self.serving, &have.serving);
        let mut steps = Vec::new();
        let put = |steps: &mut Vec<Step>, row| steps.push(Step::Put(row));
        // Whoever goes is gone first: nobody is led who is no client any more.
        steps.extend(
            clients
                .remove
                .iter()
                .map(|(cookie, ())| Step::Remove(Row::Client(**cookie))),
        );
        steps.extend(
            balances
                .remove
                .iter()
                .map(|(frontend, balance)| Step::Remove(Row::Balance(**frontend, **balance))),
        );
        serving
            .set()
            .for_each(|(serving, ())| put(&mut steps, Row::Serving(*serving)));
        slots
            .set()
            .for_each(|(slot, endpoint)| put(&mut steps, Row::Slot(*slot, *endpoint)));
        balances
            .set()
            .for_each(|(frontend, balance)| put(&mut steps, Row::Balance(*frontend, *balance)));
        clients
            .set()
            .for_each(|(cookie, ())| put(&mut steps, Row::Client(*cookie)));
        steps.extend(
            slots
                .remove
                .iter()
                .map(|(slot, endpoint)| Step::Remove(Row::Slot(**slot, **endpoint))),
        );
        steps.extend(
            serving
                .remove
                .iter()
                .map(|(serving, ())| Step::Remove(Row::Serving(**serving))),
        );
        steps
    }

    /// The rows after a step.
    pub(in crate::ebpf) fn take(&mut self, step: &Step) {
        match *step {
            Step::Put(Row::Client(cookie)) => drop(self.clients.insert(cookie, ())),
            Step::Put(Row::Balance(frontend, balance)) => drop(self.balances.insert(frontend, balance)),
            Step::Put(Row::Slot(slot, endpoint)) => drop(self.slots.insert(slot, endpoint)),
            Step::Put(Row::Serving(serving)) => drop(self.serving.insert(serving, ())),
            Step::Remove(Row::Client(cookie)) => drop(self.clients.remove(&cookie)),
            Step::Remove(Row::Balance(frontend, _)) => drop(self.balances.remove(&frontend)),
            Step::Remove(Row::Slot(slot, _)) => drop(self.slots.remove(&slot)),
            Step::Remove(Row::Serving(serving)) => drop(self.serving.remove(&serving)),
        }
    }

    /// Without some services.
    pub(in crate::ebpf) fn forget(&mut self, frontends: &BTreeSet<Frontend>) {
        self.balances.retain(|frontend, _| !frontends.contains(frontend));
        self.slots.retain(|slot, _| !frontends.contains(&slot.frontend));
        self.serving
            .retain(|serving, ()| !frontends.contains(&serving.frontend));
    }
}

/// What a node's own addresses depend on.
fn addresses_of(state: &NodeState) -> impl PartialEq + '_ {
    (&state.routing.node_addresses, &state.services.node_port_addresses)
}

/// The node's addresses that have a node port, without loopback.
fn addresses<'a>(state: &'a NodeState, node_port: &NodePort) -> impl Iterator<Item = IpAddr> + use<'a> {
    let family = node_port.family;
    let all = state.routing.node_addresses.iter().copied();
    let of_family = all.filter(move |address| podnet_core::cluster::Family::of(*address) == family);
    of_family.filter(|address| state.services.has_node_ports_on(*address))
}

fn port_of(address: IpAddr, node_port: &NodePort) -> Frontend {
    Frontend::new(
        address.into(),
        node_port.port.get().to_be_bytes(),
        protocol(node_port.protocol),
    )
}

fn frontend(frontend: &service::Frontend) -> Frontend {
    let port = frontend.port.get().to_be_bytes();
    Frontend::new(frontend.address.into(), port, protocol(frontend.protocol))
}

fn model(frontend: &Frontend) -> Option<service::Frontend> {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    Some(service::Frontend {
        address: frontend.address.into(),
        protocol: protocols
            .into_iter()
            .find(|of| protocol(*of) == frontend.protocol)?,
        port: u16::from_be_bytes(frontend.port).try_into().ok()?,
    })
}

pub(in crate::ebpf) fn protocol(protocol: Protocol) -> abi::Protocol {
    match protocol {
        Protocol::Tcp => abi::Protocol::TCP,
        Protocol::Udp => abi::Protocol::UDP,
        Protocol::Sctp => abi::Protocol::SCTP,
    }
}

/// A service as the model writes it.
pub(in crate::ebpf) fn shown(frontend: &Frontend) -> String {
    match model(frontend) {
        Some(frontend) => frontend.to_string(),
        None => format!(
            "protocol {} {}",
            frontend.protocol.0,
            SocketAddr::from(frontend.socket())
        ),
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Row::Client(cookie) => write!(f, "client in network namespace {cookie}"),
            Row::Balance(frontend, balance) => {
                write!(f, "service {} one of {}", shown(frontend), balance.endpoints)
            }
            Row::Slot(slot, endpoint) => {
                let endpoint = SocketAddr::from(*endpoint);
                write!(
                    f,
                    "service {} number {} is {endpoint}",
                    shown(&slot.frontend),
                    slot.number
                )
            }
            Row::Serving(serving) => {
                let endpoint = SocketAddr::from(serving.endpoint);
                write!(f, "service {} may go on to {endpoint}", shown(&serving.frontend))
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Put(row) => write!(f, "+ {row}"),
            Step::Remove(row) => write!(f, "- {row}"),
        }
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clients = self.clients.keys().map(|cookie| Row::Client(*cookie));
        let balances = self
            .balances
            .iter()
            .map(|(frontend, balance)| Row::Balance(*frontend, *balance));
        let slots = self
            .slots
            .iter()
            .map(|(slot, endpoint)| Row::Slot(*slot, *endpoint));
        let serving = self.serving.keys().map(|serving| Row::Serving(*serving));
        let mut rows = clients.chain(balances).chain(slots).chain(serving);
        rows.try_for_each(|row| writeln!(f, "{row}"))
    }
}
