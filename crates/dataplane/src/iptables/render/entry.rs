//! What one entry of the services needs: its rules in the tree, its chain, its elements of sets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use ipnet::IpNet;
use podnet_core::cluster::{Affinity, Algorithm, Family, Protocol};
use podnet_core::service::{Backend, Entry, Frontend, NodePort, maglev};
use podnet_linux::netfilter::ipset::{Element, SetKind, SetSpec};

use super::super::model::{Rules, Set, TableName};
use super::super::rule::{Asked, Clause, HASHES, Rule, Target};
use super::super::tree::Node;
use super::names::{self, Side, set};
use super::{Frontends, Given, NodePorts, chains, of_addresses, of_ports};
use crate::services::share::{self, Audience};

/// Only what a set of clients is made with; every client is added with its own time.
const STAY_SECONDS: u32 = 10_800;

/// The chains of the tree of addresses.
pub(super) fn addresses(
    rules: &mut Rules,
    given: &Given,
    family: Family,
    tree: &Frontends<'_>,
    nodes: &[Node],
) {
    let leaf = |(frontend, entry): (&Frontend, _)| {
        let own = [
            Clause::Destination(frontend.address.into()),
            ports_clause(frontend.protocol, frontend.port),
        ];
        let by_ipvs = given.of_ipvs(entry);
        lead(family, own.into(), (entry, by_ipvs), |side| {
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
    given: &Given,
    (family, protocol): (Family, Protocol),
    tree: &NodePorts<'_>,
    nodes: &[Node],
) {
    chains(
        rules,
        family,
        tree,
        nodes,
        |node| of_ports(protocol, node),
        |(node_port, entry)| {
            let own = vec![ports_clause(protocol, node_port.port)];
            let by_ipvs = given.port_of_ipvs(entry);
            lead(family, own, (entry, by_ipvs), |side| {
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

/// Whether nat chooses among an entry's endpoints for clients on that side, beside what IPVS has.
fn chooses(by_ipvs: Option<Audience>, side: Side) -> bool {
    match by_ipvs {
        None => true,
        Some(Audience::Everybody) => false,
        Some(Audience::Outside) => side == Side::Inside,
    }
}

/// The rules that lead what is for an entry to its chains. What is refused, dropped or IPVS' leaves nat untranslated.
fn lead(
    family: Family,
    own: Vec<Clause>,
    (entry, by_ipvs): (&Entry, Option<Audience>),
    chain: impl Fn(Side) -> String,
) -> Vec<Rule> {
    let target = |backend: &Backend, side| match backend {
        Backend::Balance { .. } if chooses(by_ipvs, side) => Target::Goto(chain(side)),
        Backend::Balance { .. } | Backend::Refuse | Backend::Drop => Target::Accept,
    };
    let mut admitted = own.clone();
    if entry.sources.is_some() {
        admitted.push(Clause::In(Asked::FrontendAndSource, set("ADMIT", family)));
    }
    let mut rules = Vec::new();
    if let Some(outside) = &entry.outside {
        let clauses = || admitted.iter().cloned().chain(from_outside(family));
        if by_ipvs.is_some() {
            // IPVS knows a mark as a whole.
            rules.push(Rule::new(clauses(), Target::Unmark));
        }
        rules.push(Rule::new(clauses(), target(outside, Side::Outside)));
    }
    rules.push(Rule::new(admitted, target(&entry.inside, Side::Inside)));
    if entry.sources.is_some() {
        rules.push(Rule::new(own, Target::Accept));
    }
    rules
}

/// Adds what a frontend needs besides its place in the tree.
pub(super) fn frontend(rules: &mut Rules, given: &Given, frontend: &Frontend, entry: &Entry) {
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
    let by_ipvs = given.of_ipvs(entry);
    if let Some(audience) = by_ipvs {
        put(rules, &set(names::of_audience("", audience), family), element);
    }
    choices(rules, (family, frontend.protocol), (entry, by_ipvs), |side| {
        names::of_frontend(frontend, side)
    });
}

/// Adds what a node port needs besides its place in the tree.
pub(super) fn node_port(rules: &mut Rules, given: &Given, node_port: &NodePort, entry: &Entry) {
    let family = node_port.family;
    let port = Some((node_port.protocol.number(), node_port.port.get()));
    // Of every address: rules ask before whether it is the node's.
    let elements = halves(everywhere(family)).map(|net| Element {
        port,
        ..Element::new(net)
    });
    let elements: Vec<Element> = elements.collect();
    fates(rules, family, "PORT-", &elements, entry);
    let by_ipvs = given.port_of_ipvs(entry);
    if let Some(audience) = by_ipvs {
        let name = set(names::of_audience("PORT", audience), family);
        let mark = Some(share::mark(node_port));
        elements
            .iter()
            .for_each(|element| put(rules, &name, Element { mark, ..*element }));
    }
    choices(rules, (family, node_port.protocol), (entry, by_ipvs), |side| {
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

/// IPVS' sets are there only beside IPVS.
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
    (entry, by_ipvs): (&Entry, Option<Audience>),
    chain: impl Fn(Side) -> String,
) {
    let sides = [
        (Some(&entry.inside), Side::Inside),
        (entry.outside.as_ref(), Side::Outside),
    ];
    for (backend, side) in sides {
        let backend = backend.filter(|_| chooses(by_ipvs, side));
        let endpoints = backend.map_or(&[][..], |backend| backend.endpoints());
        let chain = chain(side);
        let mut list = Vec::new();
        if let Affinity::ClientIp { seconds } = entry.affinity {
            clients(rules, (family, protocol), entry, endpoints, seconds);
            list.extend(staying(entry, endpoints));
        }
        match entry.algorithm {
            Algorithm::Maglev if (2..=MOST_HASHED).contains(&endpoints.len()) => {
                list.extend(by_client(rules, (family, protocol), entry, &chain, endpoints));
            }
            Algorithm::Maglev | Algorithm::Random => {
                list.extend(by_lot(endpoints, |endpoint| there(entry, protocol, endpoint)));
            }
        }
        rules.chain((family, TableName::Nat), chain, list);
    }
}

/// By lot: the first of n gets one of n, the next one of what is left.
fn by_lot<'a>(
    endpoints: &'a [SocketAddr],
    there: impl Fn(SocketAddr) -> (Option<Clause>, Target) + 'a,
) -> impl Iterator<Item = Rule> + 'a {
    let left = (1..=endpoints.len()).rev();
    left.zip(endpoints).map(move |(left, endpoint)| {
        let (clause, target) = there(*endpoint);
        let lot = (left > 1).then(|| Clause::one_of(left));
        Rule::new(clause.into_iter().chain(lot), target)
    })
}

/// So many slots lead to endpoints; the last few hashes share the first few slots.
const SLOTS: usize = 251;
/// Among more of them some would have no slot, or half of what others have.
const MOST_HASHED: usize = SLOTS / 2;

/// What an entry asks for that is not to be had.
pub(super) fn lack(entry: &Entry) -> Option<String> {
    let most = entry
        .inside
        .endpoints()
        .len()
        .max(entry.outside().endpoints().len());
    let is_lacking = entry.algorithm == Algorithm::Maglev && most > MOST_HASHED;
    is_lacking.then(|| {
        format!(
            "{}: with {most} endpoints they are chosen by lot and not by Maglev hashing, which iptables has for \
             {MOST_HASHED} at most; --dataplane nftables has it for any number",
            entry.port
        )
    })
}

/// So many hashes are told apart by one rule of the chain, and then by one of another.
const STEP: u32 = 16;

/// By a hash of the client, which iptables has no other place for than the packet's mark: what else it says is lost for
/// a connection's first packet. No rule has a table of all slots, so they are found in two steps.
fn by_client(
    rules: &mut Rules,
    (family, protocol): (Family, Protocol),
    entry: &Entry,
    chain: &str,
    endpoints: &[SocketAddr],
) -> Vec<Rule> {
    let at = (family, TableName::Nat);
    let sticky = entry.affinity != Affinity::None;
    let leaf = |endpoint: SocketAddr| names::of_slots(chain, &endpoint.to_string());
    for endpoint in endpoints {
        let (clause, target) = there(entry, protocol, *endpoint);
        let alone = Rule::new([], Target::MarkAlone);
        rules.chain(at, leaf(*endpoint), vec![alone, Rule::new(clause, target)]);
    }
    let slots = maglev::slots(endpoints, SLOTS).into_iter().cycle();
    let slots = slots
        .filter_map(|place| endpoints.get(place))
        .take(HASHES as usize);
    let slots: Vec<&SocketAddr> = slots.collect();
    // The port is not hashed where a client is to stay.
    let hash = Clause::Protocol(protocol);
    let mut list = vec![Rule::new([hash], Target::MarkHash(family, !sticky))];
    for (step, slots) in (0..).zip(slots.chunks(STEP as usize)) {
        let name = names::of_slots(chain, &format!("step {step}"));
        let step_of = |hash| Clause::MarkedAs(hash, STEP - 1);
        let of_step = (0..).zip(slots);
        let of_step =
            of_step.map(|(hash, endpoint)| Rule::new([step_of(hash)], Target::Goto(leaf(**endpoint))));
        rules.chain(at, name.clone(), of_step.collect());
        let steps = Clause::MarkedAs(step * STEP, HASHES - STEP);
        list.push(Rule::new([steps], Target::Goto(name)));
    }
    list
}

/// What leads to an endpoint, after the condition by which it is chosen.
fn there(entry: &Entry, protocol: Protocol, endpoint: SocketAddr) -> (Option<Clause>, Target) {
    match entry.affinity {
        Affinity::None => (Some(Clause::Protocol(protocol)), Target::Translate(endpoint)),
        Affinity::ClientIp { .. } => (None, Target::Goto(names::of_endpoint(&entry.port, endpoint))),
    }
}

/// Whoever is in the set of an endpoint's clients goes there.
fn staying(entry: &Entry, endpoints: &[SocketAddr]) -> impl Iterator<Item = Rule> {
    endpoints.iter().map(|endpoint| {
        let set = names::of_clients(&entry.port, *endpoint);
        let chain = names::of_endpoint(&entry.port, *endpoint);
        Rule::new([Clause::In(Asked::Source, set)], Target::Goto(chain))
    })
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
            marks: false,
        };
        let elements = BTreeSet::new();
        rules.sets.insert(set, Set { spec, elements });
    }
}
