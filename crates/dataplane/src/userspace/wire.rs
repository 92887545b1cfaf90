//! Tables as text: how the agent hands them to the proxy, and how the proxy shows what it has. A line is an edit:
//!
//! ```text
//! whole
//! ground PODS NODE NODE-PORTS-ON
//! address ADDRESS                 no-address ADDRESS
//! borrowed ADDRESS WHOSE          not-borrowed ADDRESS
//! port PLACE OF STAYS HOW FROM INSIDE OUTSIDE      no-port PLACE
//! ```
//!
//! `PLACE` is `tcp 10.96.0.1:80`, or `tcp node4:30080` for the node's own IPv4 addresses. `OF` is the service port,
//! `NAMESPACE/NAME/PROTOCOL/PORT`. `STAYS` is for how many seconds a client stays, 0 for not at all; `HOW` an endpoint is
//! chosen is `random` or `maglev`. Lists are joined by commas, and `-` is an empty one; `any` stands for no restriction. A backend is `refuse`, `drop`, or its endpoints and
//! after a `~` the draining ones; `OUTSIDE` may be `same`. `WHOSE` is words for people, to the end of the line.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use podnet_core::cluster::{Affinity, Algorithm, Family, ObjectName, Protocol};
use podnet_core::service::{Backend, Entry, Frontend, NodePort, PortName};

use super::table::{Edit, Ground, Place};

/// A line that is neither an edit nor a place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the line {line:?} is no part of a table: {what} is missing or wrong")]
pub struct WireError {
    line: String,
    what: &'static str,
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Service(frontend) => write!(f, "{frontend}"),
            Place::Node(NodePort {
                family,
                protocol,
                port,
            }) => {
                let digit = if *family == Family::V4 { 4 } else { 6 };
                write!(f, "{protocol} node{digit}:{port}")
            }
        }
    }
}

struct List<'a, I: ?Sized>(&'a I);

impl<'a, T: Display + 'a, I> Display for List<'a, I>
where
    &'a I: IntoIterator<Item = &'a T>,
    I: ?Sized,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut empty = true;
        for item in self.0 {
            f.write_str(if empty { "" } else { "," })?;
            write!(f, "{item}")?;
            empty = false;
        }
        f.write_str(if empty { "-" } else { "" })
    }
}

fn restriction<T: Display>(f: &mut fmt::Formatter<'_>, list: Option<&BTreeSet<T>>) -> fmt::Result {
    match list {
        None => f.write_str(" any"),
        Some(list) => write!(f, " {}", List(list)),
    }
}

fn write_backend(f: &mut fmt::Formatter<'_>, backend: &Backend) -> fmt::Result {
    match backend {
        Backend::Refuse => f.write_str(" refuse"),
        Backend::Drop => f.write_str(" drop"),
        Backend::Balance { endpoints, draining } => {
            write!(f, " {}~{}", List(&**endpoints), List(&**draining))
        }
    }
}

impl Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Edit::Whole => f.write_str("whole"),
            Edit::Ground(ground) => {
                write!(f, "ground {} {}", List(&ground.pods), List(&ground.node))?;
                restriction(f, ground.node_ports_on.as_ref())
            }
            Edit::Address(address) => write!(f, "address {address}"),
            Edit::NoAddress(address) => write!(f, "no-address {address}"),
            Edit::Borrowed(address, whose) => write!(f, "borrowed {address} {whose}"),
            Edit::NotBorrowed(address) => write!(f, "not-borrowed {address}"),
            Edit::NoPort(place) => write!(f, "no-port {place}"),
            Edit::Port(place, entry) => {
                let stays = match entry.affinity {
                    Affinity::None => 0,
                    Affinity::ClientIp { seconds } => seconds,
                };
                write!(f, "port {place} {} {stays} {}", entry.port, entry.algorithm)?;
                restriction(f, entry.sources.as_deref())?;
                write_backend(f, &entry.inside)?;
                match &entry.outside {
                    None => f.write_str(" same"),
                    Some(outside) => write_backend(f, outside),
                }
            }
        }
    }
}

impl FromStr for Edit {
    type Err = WireError;

    fn from_str(line: &str) -> Result<Self, WireError> {
        whole(line, Words::edit)
    }
}

impl FromStr for Place {
    type Err = WireError;

    fn from_str(line: &str) -> Result<Self, WireError> {
        whole(line, Words::place)
    }
}

/// What all of a line is.
fn whole<'a, T>(line: &'a str, read: impl FnOnce(&mut Words<'a>) -> Part<T>) -> Result<T, WireError> {
    let mut words = Words(line.split(' '));
    let read = read(&mut words).and_then(|read| words.0.next().is_none().then_some(read).ok_or("its end"));
    read.map_err(|what| WireError {
        line: line.chars().take(200).collect(),
        what,
    })
}

struct Words<'a>(std::str::Split<'a, char>);

type Part<T> = Result<T, &'static str>;

impl Words<'_> {
    fn edit(&mut self) -> Part<Edit> {
        Ok(match self.0.next() {
            Some("whole") => Edit::Whole,
            Some("ground") => Edit::Ground(Ground {
                pods: self.list("the pods' ranges")?,
                node: self.list("the node's addresses")?,
                node_ports_on: self.restriction("the addresses of node ports")?,
            }),
            Some("address") => Edit::Address(self.parsed("the address")?),
            Some("no-address") => Edit::NoAddress(self.parsed("the address")?),
            Some("borrowed") => Edit::Borrowed(self.parsed("the address")?, self.rest()),
            Some("not-borrowed") => Edit::NotBorrowed(self.parsed("the address")?),
            Some("port") => Edit::Port(self.place()?, Arc::new(self.entry()?)),
            Some("no-port") => Edit::NoPort(self.place()?),
            _ => return Err("its kind"),
        })
    }

    fn word(&mut self, what: &'static str) -> Part<&str> {
        self.0.next().ok_or(what)
    }

    fn rest(&mut self) -> String {
        let rest: Vec<&str> = self.0.by_ref().collect();
        rest.join(" ")
    }

    fn parsed<T: FromStr>(&mut self, what: &'static str) -> Part<T> {
        self.word(what)?.parse().map_err(|_| what)
    }

    fn list<T: FromStr, L: FromIterator<T>>(&mut self, what: &'static str) -> Part<L> {
        list(self.word(what)?).ok_or(what)
    }

    fn restriction<T: FromStr + Ord>(&mut self, what: &'static str) -> Part<Option<BTreeSet<T>>> {
        match self.word(what)? {
            "any" => Ok(None),
            text => list(text).map(Some).ok_or(what),
        }
    }

    fn place(&mut self) -> Part<Place> {
        let protocol = protocol(self.word("the protocol")?).ok_or("the protocol")?;
        let at = self.word("the place")?;
        let node_port = |family, port: &str| {
            let port = port.parse().map_err(|_| "the node port")?;
            Ok(Place::Node(NodePort {
                family,
                protocol,
                port,
            }))
        };
        if let Some(port) = at.strip_prefix("node4:") {
            return node_port(Family::V4, port);
        }
        if let Some(port) = at.strip_prefix("node6:") {
            return node_port(Family::V6, port);
        }
        let at: std::net::SocketAddr = at.parse().map_err(|_| "the place")?;
        Ok(Place::Service(Frontend {
            address: at.ip(),
            protocol,
            port: NonZeroU16::new(at.port()).ok_or("the port")?,
        }))
    }

    fn entry(&mut self) -> Part<Entry> {
        let port = Arc::new(port_name(self.word("the service port")?).ok_or("the service port")?);
        let affinity = match self.parsed("for how long clients stay")? {
            0 => Affinity::None,
            seconds => Affinity::ClientIp { seconds },
        };
        let algorithm = algorithm(self.word("how one is chosen")?).ok_or("how one is chosen")?;
        let sources = self.restriction("who may come")?.map(Arc::new);
        let inside = Arc::new(backend(self.word("what is behind it")?).ok_or("what is behind it")?);
        let outside = match self.word("what is behind it from outside")? {
            "same" => None,
            text => Some(Arc::new(backend(text).ok_or("what is behind it from outside")?)),
        };
        Ok(Entry {
            port,
            inside,
            outside,
            sources,
            affinity,
            algorithm,
        })
    }
}

fn list<T: FromStr, L: FromIterator<T>>(text: &str) -> Option<L> {
    let items = text.split(',').filter(|_| text != "-");
    items.map(|item| item.parse().ok()).collect()
}

fn protocol(text: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.to_string() == text)
}

fn algorithm(text: &str) -> Option<Algorithm> {
    [Algorithm::Random, Algorithm::Maglev]
        .into_iter()
        .find(|algorithm| algorithm.to_string() == text)
}

fn port_name(text: &str) -> Option<PortName> {
    let mut parts = text.split('/');
    let service = ObjectName::new(parts.next()?, parts.next()?);
    let (protocol, port) = (protocol(parts.next()?)?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(PortName {
        service,
        protocol,
        port,
    })
}

fn backend(text: &str) -> Option<Backend> {
    match text {
        "refuse" => return Some(Backend::Refuse),
        "drop" => return Some(Backend::Drop),
        _ => {}
    }
    let (endpoints, draining) = text.split_once('~')?;
    let sorted = |text| {
        let mut list: Vec<std::net::SocketAddr> = list(text)?;
        list.sort_unstable();
        list.dedup();
        Some(list.into_boxed_slice())
    };
    let endpoints: Box<[_]> = sorted(endpoints)?;
    // A table that comes from elsewhere must not make a balance of nobody.
    (!endpoints.is_empty()).then_some(Backend::Balance {
        endpoints,
        draining: sorted(draining)?,
    })
}
