//! The elements, and where a service needs some the chains and sets, of one entry.
//!
//! The verdict of an entry's element leads to what its clients get, in this order: `sources` lets in whom its service
//! lets in, `sticky` sends a client where it was sent before, `balance` or `maglev` chooses. The first two are chains of one service
//! port; the last is shared by all that have as many endpoints.

use std::net::SocketAddr;

use podnet_core::cluster::{Affinity, Algorithm, Family};
use podnet_core::service::{Backend, Entry, Frontend, NodePort, maglev};

use super::super::model::{Chain, Field, Key, MapsTo, Set, Table, Value, Verdict, digit};
use super::super::rule::{Asked, Choice, Clause, Draw};
use super::key::{frontend_key, node_port_key, number_bytes, socket_bytes};
use super::{REFUSE, elements, fields, goto, names, rule};

/// Endpoints for clients outside are numbered from here, where they differ from those for clients inside.
pub(crate) const OUTSIDE: u32 = 1 << 16;

/// Which of a service port's groups of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// Behind the cluster IP.
    Internal,
    /// Behind all other addresses, for clients inside.
    External,
    /// The same for clients outside.
    Outside,
}

impl Group {
    fn suffix(self) -> &'static str {
        match self {
            Group::Internal => "",
            Group::External => "-external",
            Group::Outside => "-outside",
        }
    }

    fn first(self) -> u32 {
        if self == Group::Outside { OUTSIDE } else { 0 }
    }
}

/// Whether an entry needs chains and sets of its service port, which its other addresses share.
pub(super) fn has_names(entry: &Entry) -> bool {
    entry.affinity != Affinity::None || entry.sources.is_some()
}

/// One entry where it stands.
struct Place<'a> {
    family: Family,
    asked: Asked,
    key: Key,
    entry: &'a Entry,
}

/// Adds what a frontend needs. A cluster IP's other ports are refused by the guard, and so is a port without endpoints.
pub(super) fn frontend(table: &mut Table, frontend: &Frontend, entry: &Entry, is_cluster_ip: bool) {
    let family = Family::of(frontend.address);
    let place = Place {
        family,
        asked: Asked::Address,
        key: frontend_key(frontend),
        entry,
    };
    let names = names(family);
    let group = if is_cluster_ip {
        Group::Internal
    } else {
        Group::External
    };
    if !(is_cluster_ip && *entry.inside == Backend::Refuse && entry.sources.is_none()) {
        place.add(table, names.services, &entry.inside, group);
    }
    if let Some(outside) = &entry.outside {
        place.add(table, names.outside, outside, Group::Outside);
    }
}

/// Adds what a node port needs.
pub(super) fn node_port(table: &mut Table, node_port: &NodePort, entry: &Entry) {
    let place = Place {
        family: node_port.family,
        asked: Asked::Port,
        key: node_port_key(node_port),
        entry,
    };
    let names = names(node_port.family);
    place.add(table, names.node_ports, &entry.inside, Group::External);
    if let Some(outside) = &entry.outside {
        place.add(table, names.outside_ports, outside, Group::Outside);
    }
}

impl Place<'_> {
    fn add(&self, table: &mut Table, set: &str, backend: &Backend, group: Group) {
        let verdict = self.guarded(table, backend, group);
        elements(table, set).insert(self.key.clone(), Value::Verdict(verdict));
    }

    /// Lets in whom the service lets in.
    fn guarded(&self, table: &mut Table, backend: &Backend, group: Group) -> Verdict {
        let verdict = self.chosen(table, backend, group);
        let Some(sources) = self.entry.sources.as_ref().filter(|_| verdict != Verdict::Drop) else {
            return verdict;
        };
        let chain = self.name("sources", group);
        let admitted = sources.iter();
        let admitted =
            admitted.map(|range| rule([Clause::SourceWithin(*range), Clause::Verdict(verdict.clone())]));
        let rules = admitted.chain([rule([Clause::Verdict(Verdict::Drop)])]).collect();
        table.chains.insert(chain.clone(), Chain { base: None, rules });
        Verdict::Goto(chain)
    }

    fn chosen(&self, table: &mut Table, backend: &Backend, group: Group) -> Verdict {
        match (backend, self.entry.affinity) {
            (Backend::Drop, _) => Verdict::Drop,
            (Backend::Refuse, _) => Verdict::Goto(REFUSE.into()),
            (Backend::Balance { endpoints, .. }, Affinity::None) => self.balanced(table, endpoints, group),
            (Backend::Balance { endpoints, .. }, Affinity::ClientIp { seconds }) => {
                self.sticky(table, endpoints, group, seconds)
            }
        }
    }

    fn balanced(&self, table: &mut Table, endpoints: &[SocketAddr], group: Group) -> Verdict {
        let shape = Shape::of(
            self.family,
            self.asked,
            group.first(),
            (endpoints, self.entry.algorithm),
        );
        let map = shape.map();
        for (endpoint, number) in numbered(endpoints, self.entry.algorithm).zip(group.first()..) {
            let mut key = self.key.clone();
            key.extend_from_slice(&number_bytes(number));
            elements(table, map).insert(key, Value::Data(socket_bytes(endpoint)));
        }
        Verdict::Goto(shape.chain())
    }

    /// Every endpoint has a set of the clients that stay with it, which goes with the endpoint.
    fn sticky(&self, table: &mut Table, endpoints: &[SocketAddr], group: Group, seconds: u32) -> Verdict {
        let family = self.family;
        let clients = Set {
            key: fields(family).address,
            maps_to: MapsTo::Nothing,
            dynamic: true,
            interval: false,
        };
        let choices = self.name("choice", group);
        let by_lot = Set {
            key: &[Field::Number],
            maps_to: MapsTo::Verdicts,
            dynamic: false,
            interval: false,
        };
        table.sets.insert(choices.clone(), by_lot);
        let mut rules = Vec::new();
        for endpoint in endpoints {
            let stay = self.stay(*endpoint);
            table.sets.insert(stay.clone(), clients.clone());
            let there = vec![
                rule([Clause::KeepSource(family, stay.clone().into(), seconds)]),
                rule([Clause::TranslateToSocket(*endpoint)]),
            ];
            let there = Chain {
                base: None,
                rules: there,
            };
            table.chains.insert(stay.clone(), there);
            rules.push(rule([Clause::SourceIn(family, stay.clone().into()), goto(&stay)]));
        }
        let numbers = numbered(endpoints, self.entry.algorithm).zip(0..);
        let mut count = 0;
        for (endpoint, number) in numbers {
            let verdict = Value::Verdict(Verdict::Goto(self.stay(endpoint)));
            elements(table, &choices).insert(number_bytes(number).to_vec(), verdict);
            count = number + 1;
        }
        let draw = match drawn(endpoints, self.entry.algorithm) {
            Algorithm::Random => Draw::Lot,
            Algorithm::Maglev => Draw::Client(family),
        };
        rules.extend(draws(draw, count).map(|(draw, count)| {
            let choices = choices.clone().into();
            rule([Clause::VerdictByNumber(draw, count, choices)])
        }));
        let chain = self.name("sticky", group);
        table.chains.insert(chain.clone(), Chain { base: None, rules });
        Verdict::Goto(chain)
    }

    /// The set of the clients that stay with an endpoint, and the chain that leads there.
    fn stay(&self, endpoint: SocketAddr) -> String {
        self.port("stay") + "-" + &endpoint_name(endpoint)
    }

    /// The name of something that the port has once, such as `sticky4-default/web/tcp/80`.
    fn port(&self, what: &str) -> String {
        format!("{what}{}-{}", digit(self.family), self.entry.port)
    }

    /// The name of something that the port has once for each group.
    fn name(&self, what: &str, group: Group) -> String {
        self.port(what) + group.suffix()
    }
}

/// An endpoint in a name: nft takes no colons there.
fn endpoint_name(endpoint: SocketAddr) -> String {
    let address = endpoint.ip().to_string().replace(':', ".");
    format!("{address}/{}", endpoint.port())
}

/// The endpoint that a chain's name ends with.
pub(crate) fn read_endpoint(family: Family, chain: &str) -> Option<SocketAddr> {
    let (address, port) = chain.rsplit_once('-')?.1.rsplit_once('/')?;
    let address = match family {
        Family::V4 => address.parse().ok()?,
        Family::V6 => address.replace('.', ":").parse().ok()?,
    };
    Some(SocketAddr::new(address, port.parse().ok()?))
}

/// How a number is drawn, and among how many, and the same for who finds nothing by it: the kernel may have gone on to a
/// state with fewer endpoints since the packet was told how many there are (sets are not looked up in the generation in
/// which a packet began). The first one is there as long as there are any.
fn draws(draw: Draw, count: u32) -> impl Iterator<Item = (Draw, u32)> {
    let again = (count > 1).then_some((Draw::Lot, 1));
    [(draw, count)].into_iter().chain(again)
}

/// How endpoints are chosen among: where there is but one, nothing needs to be hashed.
fn drawn(endpoints: &[SocketAddr], algorithm: Algorithm) -> Algorithm {
    if endpoints.len() > 1 {
        algorithm
    } else {
        Algorithm::Random
    }
}

/// The endpoints by the numbers they are chosen by, from 0.
fn numbered(endpoints: &[SocketAddr], algorithm: Algorithm) -> impl Iterator<Item = SocketAddr> {
    let places = match drawn(endpoints, algorithm) {
        Algorithm::Random => (0..endpoints.len()).collect(),
        Algorithm::Maglev => maglev::slots(endpoints, maglev::size(endpoints.len())),
    };
    places
        .into_iter()
        .filter_map(|place| endpoints.get(place).copied())
}

fn count(endpoints: usize) -> u32 {
    u32::try_from(endpoints).unwrap_or(u32::MAX)
}

/// What a choice among endpoints depends on, so that many share one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    family: Family,
    asked: Asked,
    first: u32,
    count: u32,
    algorithm: Algorithm,
}

impl Shape {
    fn of(
        family: Family,
        asked: Asked,
        first: u32,
        (endpoints, algorithm): (&[SocketAddr], Algorithm),
    ) -> Self {
        let algorithm = drawn(endpoints, algorithm);
        Shape {
            family,
            asked,
            first,
            count: count(match algorithm {
                Algorithm::Random => endpoints.len(),
                Algorithm::Maglev => maglev::size(endpoints.len()),
            }),
            algorithm,
        }
    }

    /// The shapes that an entry needs.
    pub(super) fn of_entry(family: Family, asked: Asked, entry: &Entry) -> impl Iterator<Item = Shape> {
        let shape = move |backend: &Backend, first| match backend {
            Backend::Balance { endpoints, .. } => {
                Some(Shape::of(family, asked, first, (endpoints, entry.algorithm)))
            }
            Backend::Refuse | Backend::Drop => None,
        };
        let outside = entry.outside.as_ref().and_then(|outside| shape(outside, OUTSIDE));
        let both = [shape(&entry.inside, 0), outside];
        let sticky = entry.affinity != Affinity::None;
        both.into_iter().flatten().filter(move |_| !sticky)
    }

    fn map(&self) -> &'static str {
        let names = names(self.family);
        match self.asked {
            Asked::Address => names.endpoints,
            Asked::Port => names.port_endpoints,
        }
    }

    fn chain(&self) -> String {
        let port = if self.asked == Asked::Port { "-port" } else { "" };
        let outside = if self.first == OUTSIDE { "-outside" } else { "" };
        let what = match self.algorithm {
            Algorithm::Random => "balance",
            Algorithm::Maglev => "maglev",
        };
        format!("{what}{}{port}{outside}-{}", digit(self.family), self.count)
    }

    /// Its chain: a rule for each of its draws.
    pub(super) fn add(&self, table: &mut Table) {
        let draw = match self.algorithm {
            Algorithm::Random => Draw::Lot,
            Algorithm::Maglev => Draw::ClientAndPort(self.family),
        };
        let choice = |(draw, count)| Choice {
            asked: self.asked,
            draw,
            map: self.map().into(),
            count,
            first: self.first,
        };
        let rules = draws(draw, self.count).map(|draw| {
            let choice = choice(draw);
            rule([Clause::TranslateToOneOf(self.family, choice)])
        });
        let rules = rules.collect();
        table.chains.insert(self.chain(), Chain { base: None, rules });
    }
}

/// For a single socket behind an address, as host ports are: no service asks for it.
pub(super) fn single(table: &mut Table, frontend: &Frontend, target: SocketAddr) {
    let family = Family::of(frontend.address);
    let shape = Shape::of(family, Asked::Address, 0, (&[target], Algorithm::Random));
    let mut key = frontend_key(frontend);
    let verdict = Value::Verdict(Verdict::Goto(shape.chain()));
    elements(table, names(family).services).insert(key.clone(), verdict);
    key.extend_from_slice(&number_bytes(0));
    elements(table, shape.map()).insert(key, Value::Data(socket_bytes(target)));
    shape.add(table);
}
