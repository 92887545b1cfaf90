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

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnet::IpNet;
use podnet_core::cluster::{Affinity, Family, Protocol};
use podnet_core::service::{Entry, Frontend, NodePort, PortName, ServiceState};
use podnet_linux::netfilter::ipset::Element;

use super::model::{Rules, TableName};
use super::rule::{Clause, Rule, Target};
use super::tree::{Node, Tree};
use crate::delta::Delta;
pub(super) use frame::frame;
pub(super) use names::{STAY, set};

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

type Frontends<'a> = Tree<'a, (&'a Frontend, &'a Arc<Entry>)>;
type NodePorts<'a> = Tree<'a, (&'a NodePort, &'a Arc<Entry>)>;

fn frontends(services: &ServiceState, family: Family) -> Frontends<'_> {
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

fn node_ports(services: &ServiceState, family: Family, protocol: Protocol) -> NodePorts<'_> {
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
pub(super) fn whole(frame: Rules, services: &ServiceState) -> Rules {
    let mut rules = frame;
    cluster_ips(&mut rules, services.cluster_ips.iter());
    for (frontend, entry) in &services.frontends {
        entry::frontend(&mut rules, frontend, entry);
    }
    for (node_port, entry) in &services.node_ports {
        entry::node_port(&mut rules, node_port, entry);
    }
    let knows_pods = !services.pods.is_empty();
    for family in FAMILIES {
        let tree = frontends(services, family);
        entry::addresses(&mut rules, family, &tree, &tree.nodes(), knows_pods);
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
            let tree = node_ports(services, family, protocol);
            entry::ports(&mut rules, (family, protocol), &tree, &tree.nodes(), knows_pods);
        }
    }
    rules
}

/// What services have in the tables of two states, added to the frames of these: all in which they differ, and of what
/// they have in common little. So the difference of the results is that of the whole tables, and costs what the change
/// costs.
pub(super) fn changed(old: (Rules, &ServiceState), new: (Rules, &ServiceState)) -> (Rules, Rules) {
    let ((mut old_rules, old), (mut new_rules, new)) = (old, new);
    // Every rule of a service with another answer for those outside is another one.
    if old.pods.is_empty() != new.pods.is_empty() {
        return (whole(old_rules, old), whole(new_rules, new));
    }
    cluster_ips(&mut old_rules, old.cluster_ips.difference(&new.cluster_ips));
    cluster_ips(&mut new_rules, new.cluster_ips.difference(&old.cluster_ips));
    let of_addresses = Delta::between_shared(&new.frontends, &old.frontends);
    let of_ports = Delta::between_shared(&new.node_ports, &old.node_ports);
    // What clients that stay need is of a service port, not of one of its addresses, and stands as long as one of these.
    let sticky = of_addresses.values().chain(of_ports.values());
    let sticky = sticky.filter(|entry| entry.affinity != Affinity::None);
    let sticky: BTreeSet<&PortName> = sticky.map(|entry| entry.port.as_ref()).collect();
    for (rules, services) in [(&mut old_rules, old), (&mut new_rules, new)] {
        let shares = |entry: &Entry| !sticky.is_empty() && sticky.contains(entry.port.as_ref());
        let others = services.frontends.iter().filter(|_| !sticky.is_empty());
        let others = others.filter(|(_, entry)| shares(entry));
        let own = of_addresses
            .keys()
            .filter_map(|key| services.frontends.get_key_value(key));
        own.chain(others)
            .for_each(|(frontend, entry)| entry::frontend(rules, frontend, entry));
        let others = services.node_ports.iter().filter(|_| !sticky.is_empty());
        let others = others.filter(|(_, entry)| shares(entry));
        let own = of_ports
            .keys()
            .filter_map(|key| services.node_ports.get_key_value(key));
        own.chain(others)
            .for_each(|(node_port, entry)| entry::node_port(rules, node_port, entry));
    }
    let delta = Changed {
        addresses: of_addresses.keys().map(|frontend| frontend.address).collect(),
        ports: of_ports.keys().copied().collect(),
        endpoints: old
            .local_endpoints
            .symmetric_difference(&new.local_endpoints)
            .copied()
            .collect(),
    };
    delta.add_trees(&mut old_rules, old, new);
    delta.add_trees(&mut new_rules, new, old);
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
    fn add_trees(&self, rules: &mut Rules, services: &ServiceState, other: &ServiceState) {
        let knows_pods = !services.pods.is_empty();
        for family in FAMILIES {
            let of_family = |addresses: &BTreeSet<IpAddr>| -> BTreeSet<u128> {
                let addresses = addresses.iter();
                let addresses = addresses.filter(|address| Family::of(**address) == family);
                addresses.map(|address| number(*address)).collect()
            };
            let tree = frontends(services, family);
            let unlike = tree.unlike(&frontends(other, family), &of_family(&self.addresses));
            entry::addresses(rules, family, &tree, &unlike, knows_pods);
            let tree = local_endpoints(services, family);
            let unlike = tree.unlike(&local_endpoints(other, family), &of_family(&self.endpoints));
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
                let tree = node_ports(services, family, protocol);
                let unlike = tree.unlike(&node_ports(other, family, protocol), &ports);
                entry::ports(rules, (family, protocol), &tree, &unlike, knows_pods);
            }
        }
    }
}
