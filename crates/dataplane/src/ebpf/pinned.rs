//! What is pinned on a node, for people: maps in the model's words.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use podnet_ebpf_abi::Endpoint;
use podnet_ebpf_abi::connect::{Answers, Peer};
use podnet_ebpf_abi::packet::Tuple;
use zerocopy::transmute;

use super::connect::rows::{self, Rows};
use super::connect::{Maps, pins};
use super::path;
use super::pins::{all, entries};
use super::site::PATH;
use super::{EbpfError, Site};

/// Everything that is pinned on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pinned {
    /// The hooks, by the directories in which builds have pinned them.
    pub hooks: BTreeMap<String, Vec<String>>,
    /// The cookies of the network namespaces whose sockets are led.
    pub clients: Vec<u64>,
    /// Where sockets are led, by what they ask for, such as `tcp 10.96.0.1:443`.
    pub services: BTreeMap<String, Endpoints>,
    /// Datagrams of sockets that are not connected.
    pub datagrams: Vec<Led>,
    /// Connections.
    pub connections: Vec<Led>,
    /// What goes past the stack; nothing where no programs are at links.
    pub path: Option<Past>,
}

/// What programs at links have in their maps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Past {
    /// Pods and ranges, in words.
    pub rows: Vec<String>,
    /// The ends of flows that the table translated, which take the stack.
    pub translated: Vec<[SocketAddr; 2]>,
    /// The connections of TCP, from whom to whom.
    pub connections: Vec<[SocketAddr; 2]>,
}

/// What a service leads to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Endpoints {
    /// Each of them as likely as the others; none for the moment in which their number changes.
    pub balanced: Vec<SocketAddr>,
    /// Those that datagrams may still go to and that get no new ones.
    pub draining: Vec<SocketAddr>,
}

/// A socket that was led. It may be gone by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Led {
    /// Its cookie.
    pub socket: u64,
    /// Whom it asked for.
    pub asked: SocketAddr,
    /// Whom it got.
    pub endpoint: SocketAddr,
}

/// Reads it; nothing, where nothing of ours is pinned.
pub fn pinned(site: &Site) -> Result<Option<Pinned>, EbpfError> {
    let directory = site.directory()?;
    if !directory.exists() {
        return Ok(None);
    }
    let rows = Maps::open(&directory)?.rows()?;
    Ok(Some(Pinned {
        hooks: hooks(&directory)?,
        clients: rows.clients.keys().copied().collect(),
        services: services(&rows),
        datagrams: datagrams(&directory)?,
        connections: connections(&directory)?,
        path: path::Maps::present(site)?.map(|maps| past(&maps)).transpose()?,
    }))
}

fn past(maps: &path::Maps) -> Result<Past, EbpfError> {
    let ends = |tuple: &Tuple| tuple.ends().map(SocketAddr::from);
    Ok(Past {
        rows: maps.rows()?.to_string().lines().map(str::to_owned).collect(),
        translated: maps.noted()?.keys().map(ends).collect(),
        connections: maps.begun()?.iter().map(ends).collect(),
    })
}

fn hooks(directory: &Path) -> Result<BTreeMap<String, Vec<String>>, EbpfError> {
    let builds = entries(directory)?
        .into_iter()
        .map(|name| (directory.join(&name), name));
    let builds = builds.filter(|(path, name)| path.is_dir() && name != PATH);
    builds
        .map(|(path, name)| Ok((name, entries(&path)?.into_iter().collect())))
        .collect()
}

fn services(rows: &Rows) -> BTreeMap<String, Endpoints> {
    let endpoints = rows.balances.keys().map(|frontend| {
        let own = rows.some(&BTreeSet::from([*frontend]));
        let balanced: Vec<SocketAddr> = own.slots.values().map(|endpoint| (*endpoint).into()).collect();
        let serving = own
            .serving
            .keys()
            .map(|serving| SocketAddr::from(serving.endpoint));
        let draining = serving.filter(|endpoint| !balanced.contains(endpoint)).collect();
        (rows::shown(frontend), Endpoints { balanced, draining })
    });
    endpoints.collect()
}

fn datagrams(directory: &Path) -> Result<Vec<Led>, EbpfError> {
    let map = pins(directory).hash::<[u8; 32], [u8; 20]>("ANSWERS")?;
    let led = all("ANSWERS", map.iter())?.into_iter().map(|(key, value)| {
        let (answers, asked): (Answers, Endpoint) = (transmute!(key), transmute!(value));
        Led {
            socket: answers.socket,
            asked: asked.into(),
            endpoint: answers.endpoint.into(),
        }
    });
    let mut led: Vec<Led> = led.collect();
    led.sort();
    Ok(led)
}

fn connections(directory: &Path) -> Result<Vec<Led>, EbpfError> {
    let map = pins(directory).hash::<u64, [u8; 40]>("PEERS")?;
    let led = all("PEERS", map.iter())?.into_iter().map(|(socket, value)| {
        let Peer { asked, endpoint } = transmute!(value);
        Led {
            socket,
            asked: asked.into(),
            endpoint: endpoint.into(),
        }
    });
    Ok(led.collect())
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (directory, hooks) in &self.hooks {
            writeln!(f, "{directory}: {}", hooks.join(" "))?;
        }
        for cookie in &self.clients {
            writeln!(f, "client in network namespace {cookie}")?;
        }
        for (service, Endpoints { balanced, draining }) in &self.services {
            write!(f, "service {service} to")?;
            balanced
                .iter()
                .try_for_each(|endpoint| write!(f, " {endpoint}"))?;
            draining
                .iter()
                .try_for_each(|endpoint| write!(f, " (draining {endpoint})"))?;
            writeln!(f)?;
        }
        for Led {
            socket,
            asked,
            endpoint,
        } in &self.datagrams
        {
            writeln!(f, "datagrams of socket {socket} to {asked} go to {endpoint}")?;
        }
        for Led {
            socket,
            asked,
            endpoint,
        } in &self.connections
        {
            writeln!(f, "connection of socket {socket} to {asked} went to {endpoint}")?;
        }
        let Some(past) = &self.path else { return Ok(()) };
        past.rows.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        for [one, other] in &past.translated {
            writeln!(f, "translated between {one} and {other}, by the stack")?;
        }
        for [from, to] in &past.connections {
            writeln!(f, "connection from {from} to {to} past the stack")?;
        }
        Ok(())
    }
}
