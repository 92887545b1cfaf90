//! What the proxy serves: the part of a node's services that it needs, and how one such table becomes another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use podnet_core::NodeState;
use podnet_core::cluster::Protocol;
use podnet_core::service::{Entry, Frontend, NodePort, ServiceState};
use podnet_core::shared_map::{SharedMap, SharedSet};

use crate::delta::Delta;
use crate::services::Services;

/// Where clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// An address of a service.
    Service(Frontend),
    /// A port of the node's own addresses.
    Node(NodePort),
}

impl Place {
    /// Its protocol.
    pub fn protocol(self) -> Protocol {
        match self {
            Place::Service(frontend) => frontend.protocol,
            Place::Node(node_port) => node_port.protocol,
        }
    }
}

/// What a proxy serves. Copies share what has not changed since: a table is compared with the one before it at the cost
/// of what changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// The node it is on.
    pub ground: Ground,
    /// The cluster IPs in use, with ports or without.
    pub addresses: SharedSet<IpAddr>,
    /// Services' addresses that are somebody else's, too, and whose, in words. They do not lead to the proxy: with them
    /// would go all that is not the services'.
    pub borrowed: BTreeMap<IpAddr, String>,
    /// What is behind services' addresses.
    pub frontends: SharedMap<Frontend, Arc<Entry>>,
    /// What is behind ports of the node's own addresses.
    pub node_ports: SharedMap<NodePort, Arc<Entry>>,
}

/// What a proxy knows of its node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ground {
    /// Where its pods have their addresses from.
    pub pods: BTreeSet<IpNet>,
    /// Its addresses among nodes: the node asks services from the first of a family.
    pub node: BTreeSet<IpAddr>,
    /// Which of its addresses have node ports: those in these ranges; all but loopback addresses when `None`.
    pub node_ports_on: Option<BTreeSet<IpNet>>,
}

/// One step from a table to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// All that is not said hereafter is to go.
    Whole,
    /// The node is so.
    Ground(Ground),
    /// A cluster IP is in use.
    Address(IpAddr),
    /// It is no longer.
    NoAddress(IpAddr),
    /// A service's address is somebody else's, too.
    Borrowed(IpAddr, String),
    /// It is no longer.
    NotBorrowed(IpAddr),
    /// What is behind a place.
    Port(Place, Arc<Entry>),
    /// Nothing is.
    NoPort(Place),
}

impl Table {
    /// The table for a node.
    pub fn of(state: &NodeState) -> Self {
        let services = &state.services;
        Table {
            ground: Ground {
                pods: services.inside(),
                node: state.routing.node_addresses.iter().copied().collect(),
                node_ports_on: services.node_port_addresses.clone(),
            },
            addresses: services.cluster_ips.clone(),
            borrowed: { services.borrowed.iter() }
                .map(|(address, owner)| (*address, owner.to_string()))
                .collect(),
            frontends: services.frontends.clone(),
            node_ports: services.node_ports.clone(),
        }
    }

    /// What leads from `have` to this.
    pub fn edits_from(&self, have: &Table) -> Vec<Edit> {
        let mut edits = Vec::new();
        if self.ground != have.ground {
            edits.push(Edit::Ground(self.ground.clone()));
        }
        let gone = have.addresses.difference(&self.addresses);
        edits.extend(gone.map(|address| Edit::NoAddress(*address)));
        let new = self.addresses.difference(&have.addresses);
        edits.extend(new.map(|address| Edit::Address(*address)));
        let gone = have.borrowed.keys();
        let gone = gone.filter(|address| !self.borrowed.contains_key(address));
        edits.extend(gone.map(|address| Edit::NotBorrowed(*address)));
        let new = self.borrowed.iter();
        let new = new.filter(|(address, whose)| have.borrowed.get(address) != Some(whose));
        edits.extend(new.map(|(address, whose)| Edit::Borrowed(*address, whose.clone())));
        let frontends = Delta::between_shared(&self.frontends, &have.frontends);
        edits.extend(port_edits(&frontends, Place::Service));
        let node_ports = Delta::between_shared(&self.node_ports, &have.node_ports);
        edits.extend(port_edits(&node_ports, Place::Node));
        edits
    }

    /// All of it, whatever there was.
    pub fn whole(&self) -> Vec<Edit> {
        let mut edits = vec![Edit::Whole];
        edits.extend(self.edits_from(&Table::default()));
        edits
    }

    /// Takes one step.
    pub fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::Whole => *self = Table::default(),
            Edit::Ground(ground) => self.ground = ground,
            Edit::Address(address) => _ = self.addresses.insert(address),
            Edit::NoAddress(address) => _ = self.addresses.remove(&address),
            Edit::Borrowed(address, whose) => _ = self.borrowed.insert(address, whose),
            Edit::NotBorrowed(address) => _ = self.borrowed.remove(&address),
            Edit::Port(Place::Service(frontend), entry) => _ = self.frontends.insert(frontend, entry),
            Edit::Port(Place::Node(node_port), entry) => _ = self.node_ports.insert(node_port, entry),
            Edit::NoPort(Place::Service(frontend)) => _ = self.frontends.remove(&frontend),
            Edit::NoPort(Place::Node(node_port)) => _ = self.node_ports.remove(&node_port),
        }
    }

    /// What is behind a place.
    pub fn get(&self, place: Place) -> Option<&Arc<Entry>> {
        match place {
            Place::Service(frontend) => self.frontends.get(&frontend),
            Place::Node(node_port) => self.node_ports.get(&node_port),
        }
    }

    /// All places.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let frontends = self.frontends.keys().copied().map(Place::Service);
        frontends.chain(self.node_ports.keys().copied().map(Place::Node))
    }

    /// The places that an address has.
    pub fn places_of(&self, address: IpAddr) -> impl Iterator<Item = Place> {
        let from_there = self.frontends.range(&Frontend::first_of(address));
        let its = from_there.take_while(move |(frontend, _)| frontend.address == address);
        its.map(|(frontend, _)| Place::Service(*frontend))
    }

    /// Whether what was sent to an endpoint from there may go on.
    pub fn keeps(&self, place: Place, endpoint: SocketAddr) -> bool {
        self.get(place).is_some_and(|entry| entry.keeps(endpoint))
    }

    /// Whether an address is to lead to the proxy, unless it is the node's own.
    pub fn leads(&self, address: IpAddr) -> bool {
        let is_in_use = self.addresses.contains(&address) || self.places_of(address).next().is_some();
        is_in_use && !self.borrowed.contains_key(&address)
    }

    /// What it does, in the words that all back ends share.
    pub fn to_services(&self) -> Services {
        Services::of(&ServiceState {
            cluster_ips: self.addresses.clone(),
            frontends: self.frontends.clone(),
            node_ports: self.node_ports.clone(),
            ..ServiceState::default()
        })
    }
}

fn port_edits<K: Copy + Ord>(
    delta: &Delta<'_, K, Arc<Entry>>,
    place: impl Fn(K) -> Place + Copy,
) -> impl Iterator<Item = Edit> {
    let gone = delta
        .remove
        .iter()
        .map(move |(key, _)| Edit::NoPort(place(**key)));
    let set = delta
        .set()
        .map(move |(key, entry)| Edit::Port(place(*key), entry.clone()));
    gone.chain(set)
}

impl Edit {
    /// The place it is about.
    pub fn place(&self) -> Option<Place> {
        match self {
            Edit::Port(place, _) | Edit::NoPort(place) => Some(*place),
            _ => None,
        }
    }

    /// The address it is about.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Edit::Address(address)
            | Edit::NoAddress(address)
            | Edit::Borrowed(address, _)
            | Edit::NotBorrowed(address) => Some(*address),
            Edit::Port(Place::Service(frontend), _) | Edit::NoPort(Place::Service(frontend)) => {
                Some(frontend.address)
            }
            _ => None,
        }
    }
}

impl Ground {
    /// Whether node ports are on that address of the node.
    pub fn has_node_ports_on(&self, address: IpAddr) -> bool {
        match &self.node_ports_on {
            None => !address.is_loopback(),
            Some(ranges) => ranges.iter().any(|range| range.contains(&address)),
        }
    }

    /// Whether that is one of the node's pods.
    pub fn is_pod(&self, address: IpAddr) -> bool {
        self.pods.iter().any(|range| range.contains(&address))
    }
}
