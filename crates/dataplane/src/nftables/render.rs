//! From a node's state to the table it asks for. Pure.
//!
//! A service is an element of `service4`/`service6` that leads to the chain for its number of endpoints; an endpoint is
//! an element of `endpoint4`/`endpoint6`, numbered from 0 within its service port. So a change costs elements, and the
//! rules stay as they are, but for one chain for each number of endpoints that some service has.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use podnet_core::NodeState;
use podnet_core::cluster::Family;
use podnet_core::masquerade::Masquerade;
use podnet_core::service::{Backend, Frontend, HostAddress, HostPort, ServiceState};

use super::model::{Base, Chain, Elements, Field, Hook, Key, MapsTo, Set, Table, Value, Verdict, digit};
use super::rule::{Clause, Rule, octets};
use crate::route::TUNNEL_LINK;

/// The names of the sets of one family.
pub(crate) struct Names {
    pub(crate) services: &'static str,
    pub(crate) endpoints: &'static str,
    pub(crate) cluster_ips: &'static str,
    pub(crate) hairpins: &'static str,
    pub(crate) host_ports: &'static str,
    pub(crate) nodes: &'static str,
}

pub(crate) fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            services: "service4",
            endpoints: "endpoint4",
            cluster_ips: "cluster4",
            hairpins: "hairpin4",
            host_ports: "hostport4",
            nodes: "node4",
        },
        Family::V6 => Names {
            services: "service6",
            endpoints: "endpoint6",
            cluster_ips: "cluster6",
            hairpins: "hairpin6",
            host_ports: "hostport6",
            nodes: "node6",
        },
    }
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// NF_IP_PRI_NAT_DST: where destinations are translated.
const DSTNAT: i32 = -100;
/// NF_IP_PRI_NAT_SRC: where sources are translated.
const SRCNAT: i32 = 100;
const FILTER: i32 = 0;

/// The table for a state.
pub fn render(state: &NodeState) -> Table {
    let mut table = Table::default();
    for family in FAMILIES {
        declare(&mut table, family);
    }
    chains(&mut table, state);
    elements(&mut table, &state.services);
    host_ports(&mut table, &state.services);
    if let Some(masquerade) = &state.masquerade {
        masquerades(&mut table, masquerade);
    }
    table
}

fn declare(table: &mut Table, family: Family) {
    type Shape = &'static [Field];
    let (address, pair, frontend, numbered, socket): (Shape, Shape, Shape, Shape, Shape) = match family {
        Family::V4 => (
            &[Field::Ipv4],
            &[Field::Ipv4, Field::Ipv4],
            &[Field::Ipv4, Field::Protocol, Field::Port],
            &[Field::Ipv4, Field::Protocol, Field::Port, Field::Number],
            &[Field::Ipv4, Field::Port],
        ),
        Family::V6 => (
            &[Field::Ipv6],
            &[Field::Ipv6, Field::Ipv6],
            &[Field::Ipv6, Field::Protocol, Field::Port],
            &[Field::Ipv6, Field::Protocol, Field::Port, Field::Number],
            &[Field::Ipv6, Field::Port],
        ),
    };
    let names = names(family);
    let mut set = |name: &str, key, maps_to| table.sets.insert(name.to_owned(), Set { key, maps_to });
    set(names.services, frontend, MapsTo::Verdicts);
    set(names.endpoints, numbered, MapsTo::Fields(socket));
    set(names.cluster_ips, address, MapsTo::Nothing);
    set(names.hairpins, pair, MapsTo::Nothing);
    set(
        names.host_ports,
        &[Field::Protocol, Field::Port],
        MapsTo::Fields(socket),
    );
    set(names.nodes, address, MapsTo::Nothing);
    for set in table.sets.keys() {
        table.elements.entry(set.clone()).or_default();
    }
}

fn rule(clauses: impl IntoIterator<Item = Clause>) -> Rule {
    Rule(clauses.into_iter().collect())
}

fn jump(chain: &str) -> Clause {
    Clause::Verdict(Verdict::Jump(chain.into()))
}

fn goto(chain: &str) -> Clause {
    Clause::Verdict(Verdict::Goto(chain.into()))
}

fn chains(table: &mut Table, state: &NodeState) {
    let mut base = |name: &str, kind, hook, priority, rules| {
        let base = Some(Base { kind, hook, priority });
        table.chains.insert(name.into(), Chain { base, rules });
    };
    // Only a connection's first packet comes by here; all others pass no rule of ours. What conntrack cannot place does
    // not come by either: the sink route is for that.
    let judge = || vec![rule([jump("services")]), rule([jump("guard")])];
    base("prerouting", "nat", Hook::Prerouting, DSTNAT, judge());
    base("output", "nat", Hook::Output, DSTNAT, judge());
    base("postrouting", "nat", Hook::Postrouting, SRCNAT, sources(state));
    let mut plain = |name: &str, rules| table.chains.insert(name.into(), Chain { base: None, rules });
    plain("services", translations(state));
    plain("guard", guard(&state.services));
    plain(
        "refuse",
        vec![
            rule([Clause::Protocol(6), Clause::Reset]),
            rule([Clause::PortUnreachable]),
        ],
    );
}

fn translations(state: &NodeState) -> Vec<Rule> {
    let by_service = FAMILIES.map(|family| rule([Clause::ServiceVerdict(family, names(family).services)]));
    // A cluster IP has no host of its own to answer a ping; this node does it.
    let pings = FAMILIES.into_iter().filter_map(|family| {
        let own = state
            .routing
            .node_addresses
            .iter()
            .find(|address| Family::of(**address) == family)?;
        let to_service = Clause::DestinationIn(family, names(family).cluster_ips);
        Some(rule([
            to_service,
            Clause::EchoRequest(family),
            Clause::TranslateTo(*own),
        ]))
    });
    let services = &state.services;
    let by_host_port = FAMILIES
        .into_iter()
        .filter(|family| has_host_ports(services, *family));
    let by_host_port = by_host_port.map(|family| {
        let translate = Clause::TranslateByPort(family, names(family).host_ports);
        rule([Clause::Family(family), Clause::DestinationIsLocal, translate])
    });
    by_service.into_iter().chain(by_host_port).chain(pings).collect()
}

/// Whether some host port is bound to every address of a family.
fn has_host_ports(services: &ServiceState, family: Family) -> bool {
    let any = HostAddress::Any(family);
    services
        .host_ports
        .keys()
        .any(|host_port| host_port.address == any)
}

/// For what still has a service's address and was not translated: no endpoint, or no such port, or no such service.
fn guard(services: &ServiceState) -> Vec<Rule> {
    let used = FAMILIES.map(|family| {
        rule([
            Clause::DestinationIn(family, names(family).cluster_ips),
            goto("refuse"),
        ])
    });
    let unused = services.ranges.iter();
    let unused =
        unused.map(|range| rule([Clause::DestinationWithin(*range), Clause::Verdict(Verdict::Drop)]));
    used.into_iter().chain(unused).collect()
}

/// Sources stay as they are, but for two cases in which the answer would not find its way back.
fn sources(state: &NodeState) -> Vec<Rule> {
    // A pod that its service sends back to itself would answer itself directly.
    let hairpins =
        FAMILIES.map(|family| rule([Clause::PairIn(family, names(family).hairpins), Clause::Masquerade]));
    // The node itself chose its source when the destination was still a service's. In the tunnel it must be the tunnel's
    // own, or the answer would come back outside it, with a pod's address on the underlay.
    let tunnel = state
        .routing
        .tunnel
        .iter()
        .flat_map(|tunnel| &tunnel.addresses)
        .map(|own| {
            let foreign = Clause::SourceIsNot(own.addr());
            rule([
                Clause::Leaves(TUNNEL_LINK),
                foreign,
                Clause::SourceIsLocal,
                Clause::Masquerade,
            ])
        });
    let loopback = has_loopback_ports(&state.services).then(|| {
        // A pod could not answer a node that calls it from 127.0.0.1.
        rule([
            Clause::SourceWithin(loopback()),
            Clause::Translated,
            Clause::Masquerade,
        ])
    });
    let outside = state.masquerade.iter().flat_map(|masquerade| &masquerade.pods);
    let outside = outside.map(|range| {
        rule([
            Clause::SourceWithin(*range),
            goto(leaving(Family::of(range.addr()))),
        ])
    });
    let within = hairpins.into_iter().chain(tunnel).chain(loopback);
    within.chain(outside).collect()
}

fn loopback() -> IpNet {
    IpNet::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0).into(), 8)
}

fn has_loopback_ports(services: &ServiceState) -> bool {
    let mut host_ports = services.host_ports.keys();
    host_ports.any(|host_port| host_port.address.is_on_loopback())
}

/// The chain that decides whether a pod's packet gets the node's address.
fn leaving(family: Family) -> &'static str {
    match family {
        Family::V4 => "leaving4",
        Family::V6 => "leaving6",
    }
}

/// Where pods' packets go that may be for the outside.
fn masquerades(table: &mut Table, masquerade: &Masquerade) {
    for family in FAMILIES {
        let stays = |clause| rule([clause, Clause::Verdict(Verdict::Accept)]);
        let except = masquerade
            .except
            .iter()
            .filter(|range| Family::of(range.addr()) == family);
        let except = except.map(|range| stays(Clause::DestinationWithin(*range)));
        let to_node = stays(Clause::DestinationIn(family, names(family).nodes));
        let rules = except.chain([to_node, rule([Clause::Masquerade])]).collect();
        table
            .chains
            .insert(leaving(family).into(), Chain { base: None, rules });
    }
    for address in &masquerade.nodes {
        set(table, names(Family::of(*address)).nodes).insert(octets(*address), Value::None);
    }
}

/// A host port of one address is like a service with one endpoint; one of all addresses is looked up by port alone,
/// once the kernel has said that the address is the node's.
fn host_ports(table: &mut Table, services: &ServiceState) {
    for (host_port, target) in &services.host_ports {
        let family = host_port.address.family();
        let names = names(family);
        match host_port.address {
            HostAddress::Any(_) => {
                let value = Value::Data(socket_bytes(*target));
                set(table, names.host_ports).insert(host_port_key(host_port), value);
            }
            HostAddress::One(address) => {
                let frontend = Frontend {
                    address,
                    protocol: host_port.protocol,
                    port: host_port.port,
                };
                if services.frontends.contains_key(&frontend) {
                    continue;
                }
                let chain = balancer(table, family, 1);
                let value = Value::Data(socket_bytes(*target));
                set(table, names.endpoints).insert(numbered_key(&frontend, 0), value);
                set(table, names.services)
                    .insert(frontend_key(&frontend), Value::Verdict(Verdict::Goto(chain)));
            }
        }
    }
    if has_loopback_ports(services) {
        table.chains.insert("loopback-guard".into(), loopback_guard());
    }
}

/// The pods' links accept 127.0.0.0/8 where host ports are to work on it (`route_localnet`), which must not let pods
/// reach what listens there: only answers may come in.
fn loopback_guard() -> Chain {
    let foreign = || Clause::CameNotBy("lo");
    let verdict = Clause::Verdict;
    Chain {
        base: Some(Base {
            kind: "filter",
            hook: Hook::Input,
            priority: FILTER,
        }),
        rules: vec![
            rule([
                foreign(),
                Clause::DestinationWithin(loopback()),
                Clause::Answers,
                verdict(Verdict::Accept),
            ]),
            rule([
                foreign(),
                Clause::DestinationWithin(loopback()),
                verdict(Verdict::Drop),
            ]),
            rule([
                foreign(),
                Clause::SourceWithin(loopback()),
                verdict(Verdict::Drop),
            ]),
        ],
    }
}

fn elements(table: &mut Table, services: &ServiceState) {
    for (frontend, backend) in &services.frontends {
        let family = Family::of(frontend.address);
        let names = names(family);
        let verdict = match backend {
            Backend::Balance { endpoints, .. } => {
                let chain = balancer(table, family, endpoints.len());
                let numbered = set(table, names.endpoints);
                for (index, endpoint) in endpoints.iter().enumerate() {
                    numbered.insert(
                        numbered_key(frontend, index),
                        Value::Data(socket_bytes(*endpoint)),
                    );
                }
                Verdict::Goto(chain)
            }
            Backend::Drop => Verdict::Drop,
            // Not translated, so the guard refuses it.
            Backend::Refuse => continue,
        };
        set(table, names.services).insert(frontend_key(frontend), Value::Verdict(verdict));
    }
    for address in &services.cluster_ips {
        set(table, names(Family::of(*address)).cluster_ips).insert(octets(*address), Value::None);
    }
    for address in &services.local_endpoints {
        set(table, names(Family::of(*address)).hairpins).insert(octets(*address).repeat(2), Value::None);
    }
}

fn set<'a>(table: &'a mut Table, name: &str) -> &'a mut Elements {
    table.elements.entry(name.to_owned()).or_default()
}

/// The chain that chooses one of `count` endpoints, added where it is missing.
fn balancer(table: &mut Table, family: Family, count: usize) -> String {
    let chain = format!("balance{}-{count}", digit(family));
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let choose = || rule([Clause::TranslateToOneOf(family, names(family).endpoints, count)]);
    table.chains.entry(chain.clone()).or_insert_with(|| Chain {
        base: None,
        rules: vec![choose()],
    });
    chain
}

/// Protocol and port, as `hostport4` and `hostport6` have them.
pub(crate) fn host_port_key(host_port: &HostPort) -> Key {
    let mut key = vec![host_port.protocol.number(), 0, 0, 0];
    key.extend_from_slice(&port_bytes(host_port.port.get()));
    key
}

pub(crate) fn frontend_key(frontend: &Frontend) -> Key {
    let mut key = octets(frontend.address);
    key.extend_from_slice(&[frontend.protocol.number(), 0, 0, 0]);
    key.extend_from_slice(&port_bytes(frontend.port.get()));
    key
}

fn numbered_key(frontend: &Frontend, index: usize) -> Key {
    let mut key = frontend_key(frontend);
    key.extend_from_slice(&u32::try_from(index).unwrap_or(u32::MAX).to_ne_bytes());
    key
}

fn socket_bytes(socket: SocketAddr) -> Vec<u8> {
    let mut bytes = octets(socket.ip());
    bytes.extend_from_slice(&port_bytes(socket.port()));
    bytes
}

fn port_bytes(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The address, and what follows it, of a key that begins with one.
pub(crate) fn split_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => {
            let (address, rest) = bytes.split_first_chunk::<4>()?;
            Some((IpAddr::from(*address), rest))
        }
        Family::V6 => {
            let (address, rest) = bytes.split_first_chunk::<16>()?;
            Some((IpAddr::from(*address), rest))
        }
    }
}
