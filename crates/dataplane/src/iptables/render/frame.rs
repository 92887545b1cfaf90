//! All but what grows with the number of services.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podnet_core::NodeState;
use podnet_core::cluster::Family;
use podnet_core::service::ServiceState;
use podnet_linux::netfilter::ipset::{Element, SetKind, SetSpec};

use super::super::Scope;
use super::super::model::{Rules, Set, TableName};
use super::super::rule::{Asked, Clause, Rule, Target};
use super::entry::{from_outside, halves};
use super::{
    FAMILIES, Given, PROTOCOLS, Place, frontends, local_endpoints, node_ports, of_addresses, of_loops,
    of_ports, set,
};

const SERVICES: &str = "PODNET-SERVICES";
const PORTS: &str = "PODNET-PORTS";
const POSTROUTING: &str = "PODNET-POSTROUTING";
const GUARD: &str = "PODNET-GUARD";
const PORT_GUARD: &str = "PODNET-PORT-GUARD";
const REFUSE: &str = "PODNET-REFUSE";
// Chains beside IPVS.
const IPVS: &str = "PODNET-IPVS";
const IPVS_NEW: &str = "PODNET-IPVS-NEW";
const IPVS_PORTS: &str = "PODNET-IPVS-PORTS";
const IPVS_CARRY: &str = "PODNET-IPVS-CARRY";
const IPVS_LEAVE: &str = "PODNET-IPVS-LEAVE";
const IPVS_OWN: &str = "PODNET-IPVS-OWN";

/// The sets that each family has one of.
const SETS: [(&str, SetKind); 12] = [
    ("CLUSTER", SetKind::Ip),
    ("PODS", SetKind::Net),
    ("GUARD", SetKind::IpPort),
    ("ADMIT", SetKind::IpPortNet),
    ("DROP", SetKind::IpPort),
    ("REFUSE", SetKind::IpPort),
    ("DROP-OUT", SetKind::IpPort),
    ("REFUSE-OUT", SetKind::IpPort),
    ("PORT-DROP", SetKind::NetPort),
    ("PORT-REFUSE", SetKind::NetPort),
    ("PORT-DROP-OUT", SetKind::NetPort),
    ("PORT-REFUSE-OUT", SetKind::NetPort),
];

/// The same beside IPVS: what it carries.
const IPVS_SETS: [(&str, SetKind); 4] = [
    ("IPVS", SetKind::IpPort),
    ("IPVS-OUT", SetKind::IpPort),
    ("IPVS-PORT", SetKind::NetPort),
    ("IPVS-PORT-OUT", SetKind::NetPort),
];

/// What does not grow with the number of services.
pub(in super::super) fn frame(state: &NodeState, given: &Given) -> Rules {
    let mut rules = Rules::default();
    for family in FAMILIES {
        declare(&mut rules, given.scope, family, &state.services);
        nat(&mut rules, state, given, family);
        filter(&mut rules, given, family);
        if given.scope == Scope::Beside {
            mangle(&mut rules, &given.services, family);
        }
    }
    rules
}

/// What connections that IPVS has go on with when it gets no more of them.
pub(in super::super) fn lingering() -> Rules {
    let mut rules = Rules::default();
    for family in FAMILIES {
        carried(&mut rules, family, None);
    }
    rules
}

/// What IPVS has is marked: by that alone it is routed here, where IPVS waits for it, and not to whoever has the address.
fn carried(rules: &mut Rules, family: Family, first: Option<Rule>) {
    let at = (family, TableName::Mangle);
    let again = Rule::new([Clause::Carried, Clause::Forth], Target::Deliver);
    rules.chain(at, IPVS, first.into_iter().chain([again]).collect());
    rules.chain(
        at,
        IPVS_LEAVE,
        vec![Rule::new([Clause::Delivered], Target::Release)],
    );
    let hooks = &mut rules.table(family, TableName::Mangle).hooks;
    hooks.insert("PREROUTING", jump([], IPVS));
    hooks.insert("OUTPUT", jump([], IPVS));
    hooks.insert("POSTROUTING", jump([], IPVS_LEAVE));
}

/// First packets of what IPVS carries become its own. Those that may not come must not get to it: for what the node sends
/// IPVS comes before filter.
fn mangle(rules: &mut Rules, services: &ServiceState, family: Family) {
    let at = (family, TableName::Mangle);
    carried(rules, family, Some(jump([Clause::New], IPVS_NEW)));
    let forbidden = Rule::new(
        [
            Clause::In(Asked::Frontend, set("GUARD", family)),
            Clause::NotIn(Asked::FrontendAndSource, set("ADMIT", family)),
        ],
        Target::Drop,
    );
    let carried = |clauses: Vec<Clause>, what: &str| {
        let given = Clause::In(Asked::Frontend, set(what, family));
        Rule::new(
            clauses.into_iter().chain([given]),
            Target::Goto(IPVS_CARRY.to_owned()),
        )
    };
    let marked = |clauses: Vec<Clause>, what: &str| Rule::new(clauses, Target::MarkBy(set(what, family)));
    let outside = || from_outside(family).to_vec();
    let by_port = own_addresses(services, family).map(|clauses| jump(clauses, IPVS_PORTS));
    let by_address = [carried(Vec::new(), "IPVS"), carried(outside(), "IPVS-OUT")];
    let list = [forbidden].into_iter().chain(by_address).chain(by_port);
    rules.chain(at, IPVS_NEW, list.collect());
    let list = vec![
        marked(Vec::new(), "IPVS-PORT"),
        marked(outside(), "IPVS-PORT-OUT"),
        Rule::new([Clause::Delivered], Target::Carry),
    ];
    rules.chain(at, IPVS_PORTS, list);
    rules.chain(at, IPVS_CARRY, vec![Rule::new([], Target::Carry)]);
    rules.chain(at, IPVS_OWN, own(services, family));
    let hooks = &mut rules.table(family, TableName::Mangle).hooks;
    hooks.insert("OUTPUT", jump([], IPVS_OWN));
}

/// IPVS looks at all that the node itself sends, marked or not. It would take what belongs to no connection, and refuse
/// for a virtual service that waits for the end of its last connection, where nobody is to answer.
fn own(services: &ServiceState, family: Family) -> Vec<Rule> {
    let given = |what: &str| Clause::In(Asked::Frontend, set(what, family));
    let ranges = services
        .ranges
        .iter()
        .filter(|range| Family::of(range.addr()) == family);
    let unused = ranges.map(|range| {
        let used = set("CLUSTER", family);
        vec![
            Clause::Destination(*range),
            Clause::NotIn(Asked::Destination, used),
        ]
    });
    let nobodys: Vec<Vec<Clause>> = unused.chain([vec![given("DROP")]]).collect();
    let carried = ["IPVS", "IPVS-OUT"].map(|what| vec![given(what)]);
    let drop = |state: &[Clause], to: &[Clause]| Rule::new([to, state].concat(), Target::Drop);
    let first = nobodys
        .iter()
        .map(|to| drop(&[Clause::New, Clause::NotCarried], to));
    let stray = nobodys.iter().chain(&carried);
    let stray = stray.map(|to| drop(&[Clause::Invalid], to));
    [jump([], IPVS)].into_iter().chain(first).chain(stray).collect()
}

fn declare(rules: &mut Rules, scope: Scope, family: Family, services: &ServiceState) {
    let beside = IPVS_SETS.into_iter().filter(|_| scope == Scope::Beside);
    for (what, kind) in SETS.into_iter().chain(beside) {
        let spec = SetSpec {
            kind,
            six: family == Family::V6,
            timeout: None,
            marks: what.starts_with("IPVS-PORT"),
        };
        let elements = if what == "PODS" {
            let pods = services.inside().into_iter();
            let pods = pods.filter(|range| Family::of(range.addr()) == family);
            pods.flat_map(halves).map(Element::new).collect()
        } else {
            BTreeSet::new()
        };
        rules.sets.insert(set(what, family), Set { spec, elements });
    }
}

fn jump(clauses: impl IntoIterator<Item = Clause>, chain: &str) -> Rule {
    Rule::new(clauses, Target::Jump(chain.to_owned()))
}

fn to(place: Place) -> Rule {
    Rule::new(place.clauses, Target::Jump(place.chain))
}

fn nat(rules: &mut Rules, state: &NodeState, given: &Given, family: Family) {
    let at = (family, TableName::Nat);
    let services = &state.services;
    let ports = PROTOCOLS.into_iter().filter_map(|protocol| {
        let root = node_ports(given, family, protocol).root()?;
        Some(to(of_ports(protocol, &root)))
    });
    let has_ports = rules.chain(at, PORTS, ports.collect());
    let by_address = frontends(given, family).root();
    let by_address = by_address.map(|root| to(of_addresses(family, &root)));
    let by_port = own_addresses(services, family).map(|clauses| jump(clauses, PORTS));
    let by_port = by_port.filter(|_| has_ports);
    let all = by_address.into_iter().chain(by_port).chain(ping(state, family));
    let beside = given.scope == Scope::Beside;
    let mut all: Vec<Rule> = all.collect();
    if !all.is_empty() {
        // What is translated goes no further than there.
        all.insert(0, Rule::new([], Target::Mark));
        all.push(Rule::new([], Target::Unmark));
    }
    let has_services = rules.chain(at, SERVICES, all);
    let mut sources = sources(state, family);
    if beside {
        // What IPVS translated is not known as that to nat, but by the connection's mark.
        let others = [Clause::NotMarked, Clause::NotCarried];
        sources.insert(0, Rule::new(others, Target::Return));
    }
    rules.chain(at, POSTROUTING, sources);
    let hooks = &mut rules.table(family, TableName::Nat).hooks;
    if has_services {
        hooks.insert("PREROUTING", jump([], SERVICES));
        hooks.insert("OUTPUT", jump([], SERVICES));
    }
    let ours = (!beside).then_some(Clause::Marked);
    hooks.insert("POSTROUTING", jump(ours, POSTROUTING));
}

/// The node's addresses that have node ports, as the conditions of a rule each.
fn own_addresses(services: &ServiceState, family: Family) -> impl Iterator<Item = [Clause; 2]> {
    let own = |clause| [clause, Clause::DestinationIsLocal];
    let loopback = match family {
        Family::V4 => Ipv4Net::new(Ipv4Addr::new(127, 0, 0, 0), 8).map(IpNet::V4),
        Family::V6 => Ipv6Net::new(Ipv6Addr::LOCALHOST, 128).map(IpNet::V6),
    };
    let all = loopback.ok().filter(|_| services.node_port_addresses.is_none());
    let chosen = services.node_port_addresses.iter().flatten();
    let chosen = chosen.filter(move |range| Family::of(range.addr()) == family);
    let chosen = chosen.flat_map(|range| halves(*range));
    let all = all.map(move |loopback| own(Clause::NotDestination(loopback)));
    all.into_iter()
        .chain(chosen.map(move |range| own(Clause::Destination(range))))
}

/// A cluster IP has no host of its own to answer a ping; this node does it.
fn ping(state: &NodeState, family: Family) -> Option<Rule> {
    let mut own = state.routing.node_addresses.iter();
    let own = own.find(|address| Family::of(**address) == family)?;
    Some(Rule::new(
        [
            Clause::EchoRequest(family),
            Clause::In(Asked::Destination, set("CLUSTER", family)),
        ],
        Target::TranslateAddress(*own),
    ))
}

/// Whose address a translated connection has: a pod that its service sends back to itself would answer itself directly;
/// a client outside, whose endpoint is on another node, would be answered past this one, untranslated.
fn sources(state: &NodeState, family: Family) -> Vec<Rule> {
    let services = &state.services;
    let hairpins = local_endpoints(services, family).root();
    let hairpins = hairpins.map(|root| to(of_loops(family, &root)));
    let pods = services.inside().into_iter();
    let pods = pods.filter(|range| Family::of(range.addr()) == family);
    let stays = |clause| Rule::new([clause], Target::Return);
    let pods = pods.flat_map(halves);
    let pods = pods.flat_map(|range| [Clause::Source(range), Clause::Destination(range)].map(stays));
    let node = state.routing.node_addresses.iter();
    let node = node.filter(|address| Family::of(**address) == family);
    let node = node.map(|address| stays(Clause::Source(IpNet::from(*address))));
    let passing = pods.chain(node).chain([Rule::new([], Target::Masquerade)]);
    // What encloses the packet in a tunnel would carry the mark on.
    let unmark = [Rule::new([], Target::Unmark)];
    unmark.into_iter().chain(hairpins).chain(passing).collect()
}

/// For what still has a service's address: no endpoint, or no such port, or no such service.
fn filter(rules: &mut Rules, given: &Given, family: Family) {
    let at = (family, TableName::Filter);
    let services = &*given.services;
    let refuse = vec![
        Rule::new(
            [Clause::Protocol(podnet_core::cluster::Protocol::Tcp)],
            Target::Reset,
        ),
        Rule::new([], Target::PortUnreachable(family)),
    ];
    rules.chain(at, REFUSE, refuse);
    rules.chain(at, PORT_GUARD, fates(family, "PORT-"));
    let forbidden = [
        Clause::In(Asked::Frontend, set("GUARD", family)),
        Clause::NotIn(Asked::FrontendAndSource, set("ADMIT", family)),
    ];
    let ports = own_addresses(services, family).map(|clauses| jump(clauses, PORT_GUARD));
    let used = Clause::In(Asked::Destination, set("CLUSTER", family));
    let unused = services.ranges.iter();
    let unused = unused.filter(|range| Family::of(range.addr()) == family);
    let unused = unused.map(|range| Rule::new([Clause::Destination(*range)], Target::Drop));
    let guard = [Rule::new(forbidden, Target::Drop)]
        .into_iter()
        .chain(fates(family, ""))
        .chain(ports)
        .chain([Rule::new([used], Target::Goto(REFUSE.to_owned()))])
        .chain(unused);
    rules.chain(at, GUARD, guard.collect());
    let hooks = &mut rules.table(family, TableName::Filter).hooks;
    for hook in ["FORWARD", "INPUT", "OUTPUT"] {
        let left = [Clause::New, Clause::Untranslated].into_iter();
        // IPVS takes its packets on their way in, and sends them as the node's own. One that is forwarded missed it.
        let goes_on = given.scope == Scope::Beside && hook != "FORWARD";
        hooks.insert(
            hook,
            jump(left.chain(goes_on.then_some(Clause::NotCarried)), GUARD),
        );
    }
}

/// Those outside first, where they get something else.
fn fates(family: Family, what: &str) -> Vec<Rule> {
    let rule = |side: &str, fate: &str, target| {
        let outside = from_outside(family).into_iter().filter(|_| !side.is_empty());
        let name = set(&format!("{what}{fate}{side}"), family);
        Rule::new(outside.chain([Clause::In(Asked::Frontend, name)]), target)
    };
    let both = |side| {
        [
            rule(side, "DROP", Target::Drop),
            rule(side, "REFUSE", Target::Goto(REFUSE.to_owned())),
        ]
    };
    both("-OUT").into_iter().chain(both("")).collect()
}
