//! All but what grows with the number of services.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podnet_core::NodeState;
use podnet_core::cluster::Family;
use podnet_core::service::ServiceState;
use podnet_linux::netfilter::ipset::{Element, SetKind, SetSpec};

use super::super::model::{Rules, Set, TableName};
use super::super::rule::{Asked, Clause, Rule, Target};
use super::entry::{from_outside, halves};
use super::{
    FAMILIES, PROTOCOLS, Place, frontends, local_endpoints, node_ports, of_addresses, of_loops, of_ports, set,
};

const SERVICES: &str = "PODNET-SERVICES";
const PORTS: &str = "PODNET-PORTS";
const POSTROUTING: &str = "PODNET-POSTROUTING";
const GUARD: &str = "PODNET-GUARD";
const PORT_GUARD: &str = "PODNET-PORT-GUARD";
const REFUSE: &str = "PODNET-REFUSE";

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

/// What does not grow with the number of services.
pub(in super::super) fn frame(state: &NodeState) -> Rules {
    let mut rules = Rules::default();
    for family in FAMILIES {
        declare(&mut rules, family, &state.services);
        nat(&mut rules, state, family);
        filter(&mut rules, &state.services, family);
    }
    rules
}

fn declare(rules: &mut Rules, family: Family, services: &ServiceState) {
    for (what, kind) in SETS {
        let spec = SetSpec {
            kind,
            six: family == Family::V6,
            timeout: None,
        };
        let elements = if what == "PODS" {
            let pods = services.pods.iter();
            let pods = pods.filter(|range| Family::of(range.addr()) == family);
            pods.flat_map(|range| halves(*range)).map(Element::new).collect()
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

fn nat(rules: &mut Rules, state: &NodeState, family: Family) {
    let at = (family, TableName::Nat);
    let services = &state.services;
    let ports = PROTOCOLS.into_iter().filter_map(|protocol| {
        let root = node_ports(services, family, protocol).root()?;
        Some(to(of_ports(protocol, &root)))
    });
    let has_ports = rules.chain(at, PORTS, ports.collect());
    let by_address = frontends(services, family).root();
    let by_address = by_address.map(|root| to(of_addresses(family, &root)));
    let by_port = own_addresses(services, family).map(|clauses| jump(clauses, PORTS));
    let by_port = by_port.filter(|_| has_ports);
    let all = by_address.into_iter().chain(by_port).chain(ping(state, family));
    let has_services = rules.chain(at, SERVICES, all.collect());
    let has_sources = rules.chain(at, POSTROUTING, sources(state, family));
    let hooks = &mut rules.table(family, TableName::Nat).hooks;
    if has_services {
        hooks.insert("PREROUTING", jump([], SERVICES));
        hooks.insert("OUTPUT", jump([], SERVICES));
    }
    if has_sources {
        hooks.insert("POSTROUTING", jump([Clause::Translated], POSTROUTING));
    }
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
    let pods = services.pods.iter();
    let mut pods = pods.filter(|range| Family::of(range.addr()) == family).peekable();
    let knows_pods = pods.peek().is_some();
    let stays = |clause| Rule::new([clause], Target::Return);
    let pods = pods.flat_map(|range| halves(*range));
    let pods = pods.flat_map(|range| [Clause::Source(range), Clause::Destination(range)].map(stays));
    let node = state.routing.node_addresses.iter();
    let node = node.filter(|address| Family::of(**address) == family);
    let node = node.map(|address| stays(Clause::Source(IpNet::from(*address))));
    let passing = pods.chain(node).chain([Rule::new([], Target::Masquerade)]);
    let passing = passing.filter(|_| knows_pods);
    hairpins.into_iter().chain(passing).collect()
}

/// For what still has a service's address: no endpoint, or no such port, or no such service.
fn filter(rules: &mut Rules, services: &ServiceState, family: Family) {
    let at = (family, TableName::Filter);
    let refuse = vec![
        Rule::new(
            [Clause::Protocol(podnet_core::cluster::Protocol::Tcp)],
            Target::Reset,
        ),
        Rule::new([], Target::PortUnreachable(family)),
    ];
    rules.chain(at, REFUSE, refuse);
    rules.chain(at, PORT_GUARD, fates(services, family, "PORT-"));
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
        .chain(fates(services, family, ""))
        .chain(ports)
        .chain([Rule::new([used], Target::Goto(REFUSE.to_owned()))])
        .chain(unused);
    rules.chain(at, GUARD, guard.collect());
    let hooks = &mut rules.table(family, TableName::Filter).hooks;
    for hook in ["FORWARD", "INPUT", "OUTPUT"] {
        hooks.insert(hook, jump([Clause::New, Clause::Untranslated], GUARD));
    }
}

/// Those outside first, where they get something else.
fn fates(services: &ServiceState, family: Family, what: &str) -> Vec<Rule> {
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
    // A node that does not know who its pods are takes everybody for one.
    let outside = Some(both("-OUT")).filter(|_| !services.pods.is_empty());
    outside.into_iter().flatten().chain(both("")).collect()
}
