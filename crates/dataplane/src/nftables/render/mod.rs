//! From a node's state to the table it asks for. Pure.
//!
//! A service is an element of `service4`/`service6` that leads to the chain for its number of endpoints; an endpoint is
//! an element of `endpoint4`/`endpoint6`, numbered from 0 within its service port. So a change costs elements, and the
//! rules stay as they are, but for one chain for each number of endpoints that some service has. Node ports are the same
//! without an address (`nodeport4`, `portendpoint4`). What clients outside get, where that differs, stands in `outside4`
//! and `outsideport4`, which come first for them.

mod entry;
mod host_ports;
mod key;
mod leaving;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use podnet_core::NodeState;
use podnet_core::cluster::Family;
use podnet_core::service::{Entry, Frontend, PortName, ServiceState};

use super::model::{Base, Chain, Elements, Field, Hook, MapsTo, Set, Table, Value, Verdict};
use super::policy;
use super::rule::{Asked, Clause, Rule, octets};
use crate::delta::Delta;
use entry::Shape;
pub(crate) use entry::{OUTSIDE, read_endpoint};
pub(crate) use key::{
    read_frontend, read_host_port, read_node_port, read_number, read_socket, split_address,
};

/// The names of the sets of one family.
pub(crate) struct Names {
    pub(crate) services: &'static str,
    pub(crate) outside: &'static str,
    pub(crate) endpoints: &'static str,
    pub(crate) node_ports: &'static str,
    pub(crate) outside_ports: &'static str,
    pub(crate) port_endpoints: &'static str,
    pub(crate) cluster_ips: &'static str,
    pub(crate) hairpins: &'static str,
    pub(crate) host_ports: &'static str,
    pub(crate) nodes: &'static str,
}

pub(crate) fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            services: "service4",
            outside: "outside4",
            endpoints: "endpoint4",
            node_ports: "nodeport4",
            outside_ports: "outsideport4",
            port_endpoints: "portendpoint4",
            cluster_ips: "cluster4",
            hairpins: "hairpin4",
            host_ports: "hostport4",
            nodes: "node4",
        },
        Family::V6 => Names {
            services: "service6",
            outside: "outside6",
            endpoints: "endpoint6",
            node_ports: "nodeport6",
            outside_ports: "outsideport6",
            port_endpoints: "portendpoint6",
            cluster_ips: "cluster6",
            hairpins: "hairpin6",
            host_ports: "hostport6",
            nodes: "node6",
        },
    }
}

pub(super) const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// NF_IP_PRI_NAT_DST: where destinations are translated.
const DSTNAT: i32 = -100;
/// When all have had their turn that translate destinations at the usual priority, or close to it.
const AFTER_DSTNAT: i32 = DSTNAT + 10;
/// NF_IP_PRI_NAT_SRC: where sources are translated.
pub(super) const SRCNAT: i32 = 100;
/// When all have had their turn that translate sources at the usual priority, or close to it.
const AFTER_SRCNAT: i32 = SRCNAT + 10;
/// When our table translates, among all that translate at the same hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// At the usual priorities.
    Usual,
    /// After those that have them, as another back end for services does.
    Late,
}

impl Turn {
    fn after(self, priority: i32) -> i32 {
        priority + i32::from(self == Turn::Late)
    }
}

/// The chain that refuses.
const REFUSE: &str = "refuse";

/// The table for a state.
pub fn render(state: &NodeState) -> Table {
    let policy = policy::render(&state.policy);
    whole(frame(state, Turn::Usual), &state.services, policy)
}

/// A frame, and all that services and policies have in it.
pub(crate) fn whole(frame: Table, services: &ServiceState, policy: Table) -> Table {
    let mut table = frame;
    policy::add(&mut table, policy);
    addresses(
        &mut table,
        services.cluster_ips.iter(),
        services.local_endpoints.iter(),
    );
    for (frontend, entry) in &services.frontends {
        entry::frontend(&mut table, frontend, entry, is_cluster_ip(services, frontend));
    }
    for (node_port, entry) in &services.node_ports {
        entry::node_port(&mut table, node_port, entry);
    }
    table
}

fn is_cluster_ip(services: &ServiceState, frontend: &Frontend) -> bool {
    services.cluster_ips.contains(&frontend.address)
}

/// All but what grows with the number of services.
pub(crate) fn frame(state: &NodeState, turn: Turn) -> Table {
    let mut table = Table::default();
    for family in FAMILIES {
        declare(&mut table, family);
    }
    chains(&mut table, state, turn);
    let services = &state.services;
    shapes_of(services).iter().for_each(|shape| shape.add(&mut table));
    host_ports::add(&mut table, services);
    if let Some(masquerade) = &state.masquerade {
        leaving::add(&mut table, masquerade);
    }
    table
}

fn addresses<'a>(
    table: &mut Table,
    cluster_ips: impl Iterator<Item = &'a IpAddr>,
    local_endpoints: impl Iterator<Item = &'a IpAddr>,
) {
    for address in cluster_ips {
        elements(table, names(Family::of(*address)).cluster_ips).insert(octets(*address), Value::None);
    }
    for address in local_endpoints {
        let pair = octets(*address).repeat(2);
        elements(table, names(Family::of(*address)).hairpins).insert(pair, Value::None);
    }
}

/// What services have in the tables of two states, added to the frames of these: all in which they differ, and of what
/// they have in common next to nothing. So the difference of the results is that of the whole tables, and costs what the
/// change costs.
pub(crate) fn changed(old: (Table, &ServiceState), new: (Table, &ServiceState)) -> (Table, Table) {
    let ((mut old_table, old), (mut new_table, new)) = (old, new);
    let gone: Vec<&IpAddr> = old.cluster_ips.difference(&new.cluster_ips).collect();
    addresses(
        &mut old_table,
        gone.iter().copied(),
        old.local_endpoints.difference(&new.local_endpoints),
    );
    let come: Vec<&IpAddr> = new.cluster_ips.difference(&old.cluster_ips).collect();
    addresses(
        &mut new_table,
        come.iter().copied(),
        new.local_endpoints.difference(&old.local_endpoints),
    );

    let frontends = Delta::between_shared(&new.frontends, &old.frontends);
    let node_ports = Delta::between_shared(&new.node_ports, &old.node_ports);
    // An external address that becomes a cluster IP, or was one, has the same entry and other elements.
    let turned: Vec<IpAddr> = gone.into_iter().chain(come).copied().collect();
    let entries = frontends.values().chain(node_ports.values());
    let turned_entries = [old, new].map(|services| frontends_at(services, &turned));
    let turned_entries = turned_entries.into_iter().flatten().map(|(_, entry)| entry);
    let named = entries
        .chain(turned_entries)
        .filter(|entry| entry::has_names(entry));
    // Chains and sets that are of a service port, not of one of its addresses, stand as long as one of these is there.
    let named: BTreeSet<&PortName> = named.map(|entry| entry.port.as_ref()).collect();
    let touched = |entry: &Entry| named.contains(entry.port.as_ref());
    for (table, services) in [(&mut old_table, old), (&mut new_table, new)] {
        let all = services
            .frontends
            .iter()
            .filter(|(_, entry)| !named.is_empty() && touched(entry));
        let alone = frontends
            .keys()
            .filter_map(|key| services.frontends.get_key_value(key));
        for (frontend, entry) in alone.chain(frontends_at(services, &turned)).chain(all) {
            entry::frontend(table, frontend, entry, is_cluster_ip(services, frontend));
        }
        let all = services
            .node_ports
            .iter()
            .filter(|(_, entry)| !named.is_empty() && touched(entry));
        let alone = node_ports
            .keys()
            .filter_map(|key| services.node_ports.get_key_value(key));
        for (node_port, entry) in alone.chain(all) {
            entry::node_port(table, node_port, entry);
        }
    }
    (old_table, new_table)
}

/// The entries at some addresses.
fn frontends_at<'a>(
    services: &'a ServiceState,
    addresses: &'a [IpAddr],
) -> impl Iterator<Item = (&'a Frontend, &'a Arc<Entry>)> {
    addresses.iter().flat_map(|address| services.at(*address))
}

/// What the choices among endpoints depend on: few, whatever the number of services.
fn shapes_of(services: &ServiceState) -> BTreeSet<Shape> {
    let frontends = services.frontends.iter();
    let frontends = frontends
        .flat_map(|(frontend, entry)| Shape::of_entry(Family::of(frontend.address), Asked::Address, entry));
    let node_ports = services.node_ports.iter();
    let node_ports =
        node_ports.flat_map(|(node_port, entry)| Shape::of_entry(node_port.family, Asked::Port, entry));
    frontends.chain(node_ports).collect()
}

type FieldList = &'static [Field];

/// The fields of keys and values of one family.
struct Fields {
    address: FieldList,
    pair: FieldList,
    frontend: FieldList,
    numbered_frontend: FieldList,
    socket: FieldList,
}

const PORT: FieldList = &[Field::Protocol, Field::Port];
const NUMBERED_PORT: FieldList = &[Field::Protocol, Field::Port, Field::Number];

fn fields(family: Family) -> Fields {
    match family {
        Family::V4 => Fields {
            address: &[Field::Ipv4],
            pair: &[Field::Ipv4, Field::Ipv4],
            frontend: &[Field::Ipv4, Field::Protocol, Field::Port],
            numbered_frontend: &[Field::Ipv4, Field::Protocol, Field::Port, Field::Number],
            socket: &[Field::Ipv4, Field::Port],
        },
        Family::V6 => Fields {
            address: &[Field::Ipv6],
            pair: &[Field::Ipv6, Field::Ipv6],
            frontend: &[Field::Ipv6, Field::Protocol, Field::Port],
            numbered_frontend: &[Field::Ipv6, Field::Protocol, Field::Port, Field::Number],
            socket: &[Field::Ipv6, Field::Port],
        },
    }
}

fn declare(table: &mut Table, family: Family) {
    let (names, fields) = (names(family), fields(family));
    let mut set = |name: &str, key, maps_to| {
        let set = Set {
            key,
            maps_to,
            dynamic: false,
            interval: false,
        };
        table.sets.insert(name.to_owned(), set);
    };
    let sockets = MapsTo::Fields(fields.socket);
    set(names.services, fields.frontend, MapsTo::Verdicts);
    set(names.outside, fields.frontend, MapsTo::Verdicts);
    set(names.endpoints, fields.numbered_frontend, sockets);
    set(names.node_ports, PORT, MapsTo::Verdicts);
    set(names.outside_ports, PORT, MapsTo::Verdicts);
    set(names.port_endpoints, NUMBERED_PORT, sockets);
    set(names.cluster_ips, fields.address, MapsTo::Nothing);
    set(names.hairpins, fields.pair, MapsTo::Nothing);
    set(names.host_ports, PORT, sockets);
    set(names.nodes, fields.address, MapsTo::Nothing);
    for set in table.sets.keys() {
        table.elements.entry(set.clone()).or_default();
    }
}

fn elements<'a>(table: &'a mut Table, set: &str) -> &'a mut Elements {
    table.elements.entry(set.to_owned()).or_default()
}

pub(super) fn rule(clauses: impl IntoIterator<Item = Clause>) -> Rule {
    Rule(clauses.into_iter().collect())
}

pub(super) fn jump(chain: &str) -> Clause {
    Clause::Verdict(Verdict::Jump(chain.into()))
}

pub(super) fn goto(chain: &str) -> Clause {
    Clause::Verdict(Verdict::Goto(chain.into()))
}

pub(super) fn leave() -> Clause {
    Clause::Verdict(Verdict::Return)
}

fn chains(table: &mut Table, state: &NodeState, turn: Turn) {
    let services = &state.services;
    let mut base = |name: &str, kind, hook, priority, rules| {
        let base = Some(Base { kind, hook, priority });
        table.chains.insert(name.into(), Chain { base, rules });
    };
    // Only a connection's first packet comes by here; all others pass no rule of ours. What conntrack cannot place does
    // not come by either: the sink route is for that.
    let outside = outside(services);
    let from_outside = || (!outside.is_empty()).then(|| rule([jump("outside")]));
    // Whose source is to change is known where it changes; that it was us who translated, only here.
    let judge = |outside: Option<Rule>| {
        let begin = [rule([Clause::Mark])].into_iter().chain(outside);
        let end = [rule([jump("services")]), rule([Clause::Unmark])];
        begin.chain(end).collect::<Vec<_>>()
    };
    base(
        "prerouting",
        "nat",
        Hook::Prerouting,
        turn.after(DSTNAT),
        judge(from_outside()),
    );
    base("output", "nat", Hook::Output, turn.after(DSTNAT), judge(None));
    // What others translate, such as another proxy's services, does not come by here any more.
    for (name, hook) in [
        ("prerouting-guard", Hook::Prerouting),
        ("output-guard", Hook::Output),
    ] {
        base(name, "nat", hook, AFTER_DSTNAT, vec![rule([jump("guard")])]);
    }
    base(
        "postrouting",
        "nat",
        Hook::Postrouting,
        turn.after(SRCNAT),
        leaving::sources(state, turn),
    );
    if state.links().next().is_some() {
        // Every packet of such a flow, not its first alone: see `ebpf::path`.
        let noted = [
            rule([Clause::Answers, leave()]),
            rule([Clause::TranslatedAtAll, Clause::Note]),
        ];
        base("noting", "filter", Hook::Postrouting, AFTER_SRCNAT, noted.into());
    }
    let mut plain = |name: &str, rules: Vec<Rule>| {
        if !rules.is_empty() {
            table.chains.insert(name.into(), Chain { base: None, rules });
        }
    };
    plain("outside", outside);
    plain("services", translations(state));
    plain("guard", guard(services));
    for family in FAMILIES {
        plain(leaving::passing_chain(family), leaving::pass(state, family));
    }
    plain(
        REFUSE,
        vec![
            rule([Clause::Protocol(6), Clause::Reset]),
            rule([Clause::PortUnreachable]),
        ],
    );
}

/// For clients outside, where they get something else; nothing where that is nowhere so.
fn outside(services: &ServiceState) -> Vec<Rule> {
    let has = |family| {
        let frontends = services.frontends.iter();
        let mut frontends = frontends.filter(|(_, entry)| entry.outside.is_some());
        frontends.any(|(frontend, _)| Family::of(frontend.address) == family)
    };
    let has_port = |family| {
        let node_ports = services.node_ports.iter();
        let mut node_ports = node_ports.filter(|(_, entry)| entry.outside.is_some());
        node_ports.any(|(node_port, _)| node_port.family == family)
    };
    let lookups = FAMILIES.into_iter().flat_map(|family| {
        let by_address = Clause::ServiceVerdict(family, Asked::Address, names(family).outside.into());
        let by_address = has(family).then(|| rule([by_address]));
        let by_port = has_port(family).then(|| by_port(services, family, names(family).outside_ports));
        by_address.into_iter().chain(by_port.into_iter().flatten())
    });
    let lookups: Vec<Rule> = lookups.collect();
    if lookups.is_empty() {
        return Vec::new();
    }
    let inside = services.inside().into_iter();
    let inside = inside.map(|range| rule([Clause::SourceWithin(range), leave()]));
    inside.chain(lookups).collect()
}

/// The rules that look node ports up in a map, for those of the node's addresses which have them.
fn by_port(services: &ServiceState, family: Family, map: &'static str) -> Vec<Rule> {
    let look_up = |clause| {
        let verdict = Clause::ServiceVerdict(family, Asked::Port, map.into());
        rule([clause, Clause::DestinationIsLocal, verdict])
    };
    match &services.node_port_addresses {
        None => vec![look_up(Clause::DestinationNotWithin(host_ports::loopback(
            family,
        )))],
        Some(ranges) => {
            let ranges = ranges.iter();
            let ranges = ranges.filter(|range| Family::of(range.addr()) == family);
            ranges
                .map(|range| look_up(Clause::DestinationWithin(*range)))
                .collect()
        }
    }
}

fn translations(state: &NodeState) -> Vec<Rule> {
    let services = &state.services;
    let by_service = FAMILIES.map(|family| {
        let map = names(family).services.into();
        rule([Clause::ServiceVerdict(family, Asked::Address, map)])
    });
    let has_node_ports = |family: &Family| {
        services
            .node_ports
            .keys()
            .any(|node_port| node_port.family == *family)
    };
    let by_node_port = FAMILIES.into_iter().filter(has_node_ports);
    let by_node_port = by_node_port.flat_map(|family| by_port(services, family, names(family).node_ports));
    // A cluster IP has no host of its own to answer a ping; this node does it.
    let pings = FAMILIES.into_iter().filter_map(|family| {
        let own = state
            .routing
            .node_addresses
            .iter()
            .find(|address| Family::of(**address) == family)?;
        let to_service = Clause::DestinationIn(family, names(family).cluster_ips.into());
        Some(rule([
            to_service,
            Clause::EchoRequest(family),
            Clause::TranslateTo(*own),
        ]))
    });
    by_service
        .into_iter()
        .chain(by_node_port)
        .chain(host_ports::translations(services))
        .chain(pings)
        .collect()
}

/// For what still has a service's address and was not translated: no endpoint, or no such port, or no such service.
fn guard(services: &ServiceState) -> Vec<Rule> {
    let used = FAMILIES.map(|family| {
        let cluster_ips = names(family).cluster_ips.into();
        rule([Clause::DestinationIn(family, cluster_ips), goto(REFUSE)])
    });
    let unused = services.ranges.iter();
    let unused =
        unused.map(|range| rule([Clause::DestinationWithin(*range), Clause::Verdict(Verdict::Drop)]));
    used.into_iter().chain(unused).collect()
}
