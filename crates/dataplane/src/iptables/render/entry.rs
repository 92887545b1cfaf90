//! What one entry of the services needs: its rules in the tree, its chain, its elements of sets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use podnet_core::cluster::{Affinity, Family, Protocol};
use podnet_core::service::{Backend, Entry, Frontend, NodePort};
use podnet_linux::netfilter::ipset::{Element, SetKind, SetSpec};

use super::super::model::{Rules, Set, TableName};
use super::super::rule::{Asked, Clause, Rule, Target};
use super::super::tree::Node;
use super::names::{self, Side, set};
use super::{Frontends, NodePorts, chains, of_addresses, of_ports};

/// Only what a set of clients is made with; every client is added with its own time.
const STAY_SECONDS: u32 = 10_800;

/// The chains of the tree of addresses.
pub(super) fn addresses(
    rules: &mut Rules,
    family: Family,
    tree: &Frontends<'_>,
    nodes: &[Node],
    knows_pods: bool,
) {
    let leaf = |(frontend, entry): (&Frontend, _)| {
        let own = [
            Clause::Destination(frontend.address.into()),
            ports_clause(frontend.protocol, frontend.port),
        ];
        lead(family, own.into(), entry, knows_pods, |side| {
            names::of_frontend(frontend, side)
        })
    };
    chains(
        rules,
        family,
        tree,
        nodes,
        |node| of_addresses(family, node),
        |(frontend, entry)| leaf((frontend, &**entry)),
    );
}

/// The chains of the tree of a protocol's node ports.
pub(super) fn ports(
    rules: &mut Rules,
    (family, protocol): (Family, Protocol),
    tree: &NodePorts<'_>,
    nodes: &[Node],
    knows_pods: bool,
) {
    chains(
        rules,
        family,
        tree,
        nodes,
        |node| of_ports(protocol, node),
        |(node_port, entry)| {
            let own = vec![ports_clause(protocol, node_port.port)];
            lead(family, own, entry, knows_pods, |side| {
                names::of_node_port(node_port, side)
            })
        },
    );
}

fn ports_clause(protocol: Protocol, port: NonZeroU16) -> Clause {
    Clause::Ports(protocol, port.get(), port.get())
}

/// A client outside: neither the node nor one of its pods.
pub(super) fn from_outside(family: Family) -> [Clause; 2] {
    [
        Clause::SourceIsForeign,
        Clause::NotIn(Asked::Source, set("PODS", family)),
    ]
}

/// The rules that lead what is for an entry to its chains. What is refused or dropped leaves nat untranslated.
fn lead(
    family: Family,
    own: Vec<Clause>,
    entry: &Entry,
    knows_pods: bool,
    chain: impl Fn(Side) -> String,
) -> Vec<Rule> {
    let target = |backend: &Backend, side| match backend {
        Backend::Balance { .. } => Target::Goto(chain(side)),
        Backend::Refuse | Backend::Drop => Target::Accept,
    };
    let mut admitted = own.clone();
    if entry.sources.is_some() {
        admitted.push(Clause::In(Asked::FrontendAndSource, set("ADMIT", family)));
    }
    let mut rules = Vec::new();
    if let Some(outside) = entry.outside.as_ref().filter(|_| knows_pods) {
        let clauses = admitted.iter().cloned().chain(from_outside(family));
        rules.push(Rule::new(clauses, target(outside, Side::Outside)));
    }
    rules.push(Rule::new(admitted, target(&entry.inside, Side::Inside)));
    if entry.sources.is_some() {
        rules.push(Rule::new(own, Target::Accept));
    }
    rules
}

/// Adds what a frontend needs besides its place in the tree.
pub(super) fn frontend(rules: &mut Rules, frontend: &Frontend, entry: &Entry) {
    let family = Family::of(frontend.address);
    let port = Some((frontend.protocol.number(), frontend.port.get()));
    let element = Element {
        port,
        ..Element::new(frontend.address)
    };
    fates(rules, family, "", &[element], entry);
    if let Some(sources) = &entry.sources {
        put(rules, &set("GUARD", family), element);
        let sources = sources.iter().filter(|range| Family::of(range.addr()) == family);
        for range in sources.flat_map(|range| halves(*range)) {
            let second = Some(range);
            put(rules, &set("ADMIT", family), Element { second, ..element });
        }
    }
    choices(rules, (family, frontend.protocol), entry, |side| {
        names::of_frontend(frontend, side)
    });
}

/// Adds what a node port needs besides its place in the tree.
pub(super) fn node_port(rules: &mut Rules, node_port: &NodePort, entry: &Entry) {
    let family = node_port.family;
    let port = Some((node_port.protocol.number(), node_port.port.get()));
    // Of every address: rules ask before whether it is the node's.
    let elements = halves(everywhere(family)).map(|net| Element {
        port,
        ..Element::new(net)
    });
    let elements: Vec<Element> = elements.collect();
    fates(rules, family, "PORT-", &elements, entry);
    choices(rules, (family, node_port.protocol), entry, |side| {
        names::of_node_port(node_port, side)
    });
}

pub(super) fn everywhere(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
        Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

/// A range as ipset takes it: all addresses of a family are two ranges.
pub(super) fn halves(range: IpNet) -> impl Iterator<Item = IpNet> {
    let parts = range.prefix_len().max(1);
    range.trunc().subnets(parts).into_iter().flatten()
}

fn put(rules: &mut Rules, name: &str, element: Element) {
    if let Some(set) = rules.sets.get_mut(name) {
        set.elements.insert(element);
    }
}

/// What is refused or dropped is known to the guard by sets.
fn fates(rules: &mut Rules, family: Family, what: &str, elements: &[Element], entry: &Entry) {
    let sides = [(Some(&entry.inside), ""), (entry.outside.as_ref(), "-OUT")];
    for (backend, side) in sides {
        let fate = match backend.map(|backend| &**backend) {
            Some(Backend::Refuse) => "REFUSE",
            Some(Backend::Drop) => "DROP",
            Some(Backend::Balance { .. }) | None => continue,
        };
        let name = set(&format!("{what}{fate}{side}"), family);
        elements.iter().for_each(|element| put(rules, &name, *element));
    }
}

/// The chains that choose among an entry's endpoints.
fn choices(
    rules: &mut Rules,
    (family, protocol): (Family, Protocol),
    entry: &Entry,
    chain: impl Fn(Side) -> String,
) {
    let sides = [
        (Some(&entry.inside), Side::Inside),
        (entry.outside.as_ref(), Side::Outside),
    ];
    for (backend, side) in sides {
        let endpoints = backend.map_or(&[][..], |backend| backend.endpoints());
        let list = match entry.affinity {
            Affinity::None => balanced(protocol, endpoints),
            Affinity::ClientIp { seconds } => {
                clients(rules, (family, protocol), entry, endpoints, seconds);
                sticky(entry, endpoints)
            }
        };
        rules.chain((family, TableName::Nat), chain(side), list);
    }
}

/// By lot: the first of n gets one of n, the next one of what is left.
fn by_lot<'a>(
    endpoints: &'a [SocketAddr],
    rule: impl Fn(SocketAddr, Option<Clause>) -> Rule + 'a,
) -> impl Iterator<Item = Rule> + 'a {
    let left = (1..=endpoints.len()).rev();
    left.zip(endpoints)
        .map(move |(left, endpoint)| rule(*endpoint, (left > 1).then(|| Clause::one_of(left))))
}

fn balanced(protocol: Protocol, endpoints: &[SocketAddr]) -> Vec<Rule> {
    let rules = by_lot(endpoints, |endpoint, lot| {
        let clauses = [Clause::Protocol(protocol)].into_iter().chain(lot);
        Rule::new(clauses, Target::Translate(endpoint))
    });
    rules.collect()
}

/// Whoever is in the set of an endpoint's clients goes there, all others by lot.
fn sticky(entry: &Entry, endpoints: &[SocketAddr]) -> Vec<Rule> {
    let goto = |endpoint| Target::Goto(names::of_endpoint(&entry.port, endpoint));
    let stays = endpoints.iter().map(|endpoint| {
        let set = names::of_clients(&entry.port, *endpoint);
        Rule::new([Clause::In(Asked::Source, set)], goto(*endpoint))
    });
    stays
        .chain(by_lot(endpoints, |endpoint, lot| Rule::new(lot, goto(endpoint))))
        .collect()
}

/// Every endpoint has a set of the clients that stay with it, which goes with the endpoint.
fn clients(
    rules: &mut Rules,
    (family, protocol): (Family, Protocol),
    entry: &Entry,
    endpoints: &[SocketAddr],
    seconds: u32,
) {
    for endpoint in endpoints {
        let set = names::of_clients(&entry.port, *endpoint);
        let there = vec![
            Rule::new([], Target::Remember(set.clone(), seconds)),
            Rule::new([Clause::Protocol(protocol)], Target::Translate(*endpoint)),
        ];
        let chain = names::of_endpoint(&entry.port, *endpoint);
        rules.chain((family, TableName::Nat), chain, there);
        let spec = SetSpec {
            kind: SetKind::Ip,
            six: family == Family::V6,
            timeout: Some(STAY_SECONDS),
        };
        let elements = BTreeSet::new();
        rules.sets.insert(set, Set { spec, elements });
    }
}
