//! From a node's services to the chains and sets they ask for. Pure.
//!
//! nat translates: a tree of chains over addresses ([`super::tree`]) leads to a service port's chain, which draws an
//! endpoint. nat can neither refuse nor drop, so what it leaves untranslated meets a guard in filter, which costs a few
//! look-ups in sets whatever the number of services. No set says where a packet goes, so that sets and rules, which the
//! kernel does not take together, never contradict each other in a way that matters: sets grow before rules change, and
//! shrink after.

mod entry;
mod frame;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;
use podnet_core::cluster::{Affinity, Family, Protocol};
use podnet_core::service::{Entry, Frontend, NodePort, PortName, ServiceState};
use podnet_linux::netfilter::ipset::Element;

use super::Scope;
use super::model::{Rules, TableName};
use super::rule::{Clause, Rule, Target};
use super::tree::{Node, Tree};
use crate::delta::Delta;
use crate::services::share::{Audience, is_of_nat, of_ipvs, of_ipvs_port};
pub(super) use frame::{frame, lingering};
pub(super) use names::{CHOICE, STAY, of_audience, set};
use podnet_core::shared_map::SharedMap;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The number an address is.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(number as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

fn bits(family: Family) -> u8 {
    match family {
        Family::V4 => 32,
        Family::V6 => 128,
    }
}

/// The services of a state, and which of them nat leads somewhere: all, or what IPVS beside it leaves.
#[derive(Debug, Clone)]
pub(super) struct Given {
    scope: Scope,
    pub(super) services: Arc<ServiceState>,
    frontends: SharedMap<Frontend, Arc<Entry>>,
    node_ports: SharedMap<NodePort, Arc<Entry>>,
}

impl Given {
    pub(super) fn new(scope: Scope, services: &Arc<ServiceState>) -> Self {
        if scope == Scope::Whole {
            return Given {
                scope,
                services: Arc::clone(services),
                frontends: services.frontends.clone(),
                node_ports: services.node_ports.clone(),
            };
        }
        Given {
            scope,
            services: Arc::default(),
            frontends: SharedMap::default(),
            node_ports: SharedMap::default(),
        }
        .then(services)
    }

    /// For a state that follows this one's: it costs what differs between the two.
    pub(super) fn then(&self, services: &Arc<ServiceState>) -> Self {
        if self.scope == Scope::Whole {
            return Given::new(self.scope, services);
        }
        let mut next = self.clone();
        next.services = Arc::clone(services);
        let of_addresses = Delta::between_shared(&services.frontends, &self.services.frontends);
        for frontend in of_addresses.keys() {
            let entry = services.frontends.get(frontend);
            let entry = entry.filter(|entry| is_of_nat(entry, next.of_ipvs(entry)));
            follow(&mut next.frontends, frontend, entry);
        }
        let nothing = ServiceState::default();
        let had = if self.is_alike(services) {
            &*self.services
        } else {
            next.node_ports = SharedMap::default();
            &nothing
        };
        let of_ports = Delta::between_shared(&services.node_ports, &had.node_ports);
        for node_port in of_ports.keys() {
            let entry = services.node_ports.get(node_port);
            let entry = entry.filter(|entry| is_of_nat(entry, next.port_of_ipvs(entry)));
            follow(&mut next.node_ports, node_port, entry);
        }
        next
    }

    /// Whose connections to an address with that entry IPVS has.
    fn of_ipvs(&self, entry: &Entry) -> Option<Audience> {
        let (audience, _) = of_ipvs(entry).filter(|_| self.scope == Scope::Beside)?;
        Some(audience)
    }

    /// The same for a node port.
    fn port_of_ipvs(&self, entry: &Entry) -> Option<Audience> {
        let by_ipvs = of_ipvs_port(&self.services, entry);
        let (audience, _) = by_ipvs.filter(|_| self.scope == Scope::Beside)?;
        Some(audience)
    }

    /// Whether what is said of one entry alone is the same for another state: who has node ports.
    fn is_alike(&self, services: &ServiceState) -> bool {
        self.services.has_node_ports_on_loopback() == services.has_node_ports_on_loopback()
    }
}

/// What services ask for that is not to be had here, by whichever of their addresses. It follows states at the cost of
/// what differs.
#[derive(Debug, Default)]
pub(super) struct Lacks {
    of: Arc<ServiceState>,
    by_address: BTreeMap<Frontend, String>,
    by_port: BTreeMap<NodePort, String>,
}

impl Lacks {
    pub(super) fn follow(&mut self, services: &Arc<ServiceState>) {
        note(&mut self.by_address, &self.of.frontends, &services.frontends);
        note(&mut self.by_port, &self.of.node_ports, &services.node_ports);
        self.of = Arc::clone(services);
    }

    /// Each once.
    pub(super) fn all(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self.by_address.values().chain(self.by_port.values()).collect();
        all.into_iter().cloned().collect()
    }
}

fn note<K: Ord + Clone>(
    lacks: &mut BTreeMap<K, String>,
    old: &SharedMap<K, Arc<Entry>>,
    new: &SharedMap<K, Arc<Entry>>,
) {
    for key in Delta::between_shared(new, old).keys() {
        match new.get(key).and_then(|entry| entry::lack(entry)) {
            Some(lack) => _ = lacks.insert(key.clone(), lack),
            None => _ = lacks.remove(key),
        }
    }
}

fn follow<K: Ord + Clone>(map: &mut SharedMap<K, Arc<Entry>>, key: &K, entry: Option<&Arc<Entry>>) {
    match entry {
        Some(entry) => _ = map.insert(key.clone(), Arc::clone(entry)),
        None => _ = map.remove(key),
    }
}

type Frontends<'a> = Tree<'a, (&'a Frontend, &'a Arc<Entry>)>;
type NodePorts<'a> = Tree<'a, (&'a NodePort, &'a Arc<Entry>)>;

fn frontends(services: &Given, family: Family) -> Frontends<'_> {
    Tree::new(bits(family), move |first| {
        let least = Frontend {
            address: address(family, first),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
        };
        let found = services.frontends.range(&least);
        let found = found.take_while(move |(frontend, _)| Family::of(frontend.address) == family);
        found.map(|(frontend, entry)| (number(frontend.address), (frontend, entry)))
    })
}

fn node_ports(services: &Given, family: Family, protocol: Protocol) -> NodePorts<'_> {
    Tree::new(16, move |first| {
        let port = u16::try_from(first).ok().and_then(NonZeroU16::new);
        let least = NodePort {
            family,
            protocol,
            port: port.unwrap_or(NonZeroU16::MIN),
        };
        let found = services.node_ports.range(&least);
        let found = found.take_while(move |(found, _)| found.family == family && found.protocol == protocol);
        found.map(|(found, entry)| (found.port.get().into(), (found, entry)))
    })
}

fn local_endpoints(services: &ServiceState, family: Family) -> Tree<'_, IpAddr> {
    Tree::new(bits(family), move |first| {
        let found = services.local_endpoints.range(address(family, first)..);
        let found = found.take_while(move |address| Family::of(**address) == family);
        found.map(|address| (number(*address), *address))
    })
}

/// The range of addresses that a node of a tree stands for.
fn net(family: Family, node: &Node) -> Option<IpNet> {
    IpNet::new(address(family, node.prefix), node.length).ok()
}

fn within(net: Option<IpNet>, clause: fn(IpNet) -> Clause) -> Option<Clause> {
    // iptables does not print what holds for every packet.
    net.filter(|net| net.prefix_len() > 0).map(clause)
}

fn named(what: &str, net: Option<IpNet>) -> String {
    names::chain(what, &net.map(|net| net.to_string()).unwrap_or_default())
}

/// The chain of a node, and the condition for going there.
struct Place {
    chain: String,
    clauses: Vec<Clause>,
}

fn of_addresses(family: Family, node: &Node) -> Place {
    let net = net(family, node);
    Place {
        chain: named("A", net),
        clauses: within(net, Clause::Destination).into_iter().collect(),
    }
}

fn of_loops(family: Family, node: &Node) -> Place {
    let net = net(family, node);
    let both = [within(net, Clause::Source), within(net, Clause::Destination)];
    Place {
        chain: named("L", net),
        clauses: both.into_iter().flatten().collect(),
    }
}

fn of_ports(protocol: Protocol, node: &Node) -> Place {
    let first = node.prefix as u16;
    let last = first | u16::MAX.checked_shr(node.length.into()).unwrap_or_default();
    let clause = match node.length {
        0 => Clause::Protocol(protocol),
        _ => Clause::Ports(protocol, first, last),
    };
    Place {
        chain: names::chain("P", &format!("{protocol}-{first}/{}", node.length)),
        clauses: vec![clause],
    }
}

/// The chains of a tree's nodes.
fn chains<T>(
    rules: &mut Rules,
    family: Family,
    tree: &Tree<'_, T>,
    nodes: &[Node],
    place: impl Fn(&Node) -> Place,
    leaf: impl Fn(T) -> Vec<Rule>,
) {
    for node in nodes {
        let list: Vec<Rule> = if tree.is_leaf(node) {
            tree.entries(node).flat_map(|(_, entry)| leaf(entry)).collect()
        } else {
            let children = tree.children(node).into_iter().map(|child| place(&child));
            children
                .map(|child| Rule::new(child.clauses, Target::Goto(child.chain)))
                .collect()
        };
        rules.chain((family, TableName::Nat), place(node).chain, list);
    }
}

fn hairpin(address: IpAddr) -> Vec<Rule> {
    let net = IpNet::from(address);
    vec![Rule::new(
        [Clause::Source(net), Clause::Destination(net)],
        Target::Masquerade,
    )]
}

fn cluster_ips<'a>(rules: &mut Rules, addresses: impl Iterator<Item = &'a IpAddr>) {
    for address in addresses {
        let name = set("CLUSTER", Family::of(*address));
        if let Some(set) = rules.sets.get_mut(&name) {
            set.elements.insert(Element::new(*address));
        }
    }
}

/// A frame, and all that services have in it.
pub(super) fn whole(frame: Rules, given: &Given) -> Rules {
    let mut rules = frame;
    let services = &*given.services;
    cluster_ips(&mut rules, services.cluster_ips.iter());
    for (frontend, entry) in &services.frontends {
        entry::frontend(&mut rules, given, frontend, entry);
    }
    for (node_port, entry) in &services.node_ports {
        entry::node_port(&mut rules, given, node_port, entry);
    }
    for family in FAMILIES {
        let tree = frontends(given, family);
        entry::addresses(&mut rules, given, family, &tree, &tree.nodes());
        let tree = local_endpoints(services, family);
        chains(
            &mut rules,
            family,
            &tree,
            &tree.nodes(),
            |node| of_loops(family, node),
            hairpin,
        );
        for protocol in PROTOCOLS {
            let tree = node_ports(given, family, protocol);
            entry::ports(&mut rules, given, (family, protocol), &tree, &tree.nodes());
        }
    }
    rules
}

/// What services have in the tables of two states, added to the frames of these: all in which they differ, and of what
/// they have in common little. So the difference of the results is that of the whole tables, and costs what the change
/// costs.
pub(super) fn changed(old: (Rules, &Given), new: (Rules, &Given)) -> (Rules, Rules) {
    let ((mut old_rules, old_given), (mut new_rules, new_given)) = (old, new);
    let (old, new) = (&*old_given.services, &*new_given.services);
    // Every rule of a service with another answer for those outside is another one, or every rule of a node port.
    if !old_given.is_alike(new) {
        return (whole(old_rules, old_given), whole(new_rules, new_given));
    }
    cluster_ips(&mut old_rules, old.cluster_ips.difference(&new.cluster_ips));
    cluster_ips(&mut new_rules, new.cluster_ips.difference(&old.cluster_ips));
    let of_addresses = Delta::between_shared(&new.frontends, &old.frontends);
    let of_ports = Delta::between_shared(&new.node_ports, &old.node_ports);
    // What clients that stay need is of a service port, not of one of its addresses, and stands as long as one of these.
    let sticky = of_addresses.values().chain(of_ports.values());
    let sticky = sticky.filter(|entry| entry.affinity != Affinity::None);
    let sticky: BTreeSet<&PortName> = sticky.map(|entry| entry.port.as_ref()).collect();
    for (rules, given) in [(&mut old_rules, old_given), (&mut new_rules, new_given)] {
        let services = &*given.services;
        let shares = |entry: &Entry| !sticky.is_empty() && sticky.contains(entry.port.as_ref());
        let others = services.frontends.iter().filter(|_| !sticky.is_empty());
        let others = others.filter(|(_, entry)| shares(entry));
        let own = of_addresses
            .keys()
            .filter_map(|key| services.frontends.get_key_value(key));
        own.chain(others)
            .for_each(|(frontend, entry)| entry::frontend(rules, given, frontend, entry));
        let others = services.node_ports.iter().filter(|_| !sticky.is_empty());
        let others = others.filter(|(_, entry)| shares(entry));
        let own = of_ports
            .keys()
            .filter_map(|key| services.node_ports.get_key_value(key));
        own.chain(others)
            .for_each(|(node_port, entry)| entry::node_port(rules, given, node_port, entry));
    }
    let of_addresses = Delta::between_shared(&new_given.frontends, &old_given.frontends);
    let of_ports = Delta::between_shared(&new_given.node_ports, &old_given.node_ports);
    let delta = Changed {
        addresses: of_addresses.keys().map(|frontend| frontend.address).collect(),
        ports: of_ports.keys().copied().collect(),
        endpoints: old
            .local_endpoints
            .symmetric_difference(&new.local_endpoints)
            .copied()
            .collect(),
    };
    delta.add_trees(&mut old_rules, old_given, new_given);
    delta.add_trees(&mut new_rules, new_given, old_given);
    (old_rules, new_rules)
}

/// In what two states differ.
struct Changed {
    addresses: BTreeSet<IpAddr>,
    ports: BTreeSet<NodePort>,
    endpoints: BTreeSet<IpAddr>,
}

impl Changed {
    /// The chains of trees that are not alike in another state.
    fn add_trees(&self, rules: &mut Rules, given: &Given, other: &Given) {
        for family in FAMILIES {
            let of_family = |addresses: &BTreeSet<IpAddr>| -> BTreeSet<u128> {
                let addresses = addresses.iter();
                let addresses = addresses.filter(|address| Family::of(**address) == family);
                addresses.map(|address| number(*address)).collect()
            };
            let tree = frontends(given, family);
            let unlike = tree.unlike(&frontends(other, family), &of_family(&self.addresses));
            entry::addresses(rules, given, family, &tree, &unlike);
            let tree = local_endpoints(&given.services, family);
            let others = local_endpoints(&other.services, family);
            let unlike = tree.unlike(&others, &of_family(&self.endpoints));
            chains(
                rules,
                family,
                &tree,
                &unlike,
                |node| of_loops(family, node),
                hairpin,
            );
            for protocol in PROTOCOLS {
                let ports = self.ports.iter();
                let ports = ports.filter(|port| port.family == family && port.protocol == protocol);
                let ports = ports.map(|port| port.port.get().into()).collect();
                let tree = node_ports(given, family, protocol);
                let unlike = tree.unlike(&node_ports(other, family, protocol), &ports);
                entry::ports(rules, given, (family, protocol), &tree, &unlike);
            }
        }
    }
}
