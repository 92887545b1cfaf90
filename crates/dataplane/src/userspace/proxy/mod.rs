//! The process that carries connections itself: `podnet proxy`.
//!
//! It has a table and serves it, whether or not an agent is there. Sockets towards clients are behind the [`gate`], but for
//! those on the node's own addresses; sockets towards endpoints are the node's.

mod control;
mod gate;
mod listeners;
mod relay;
mod server;
mod succession;
mod tcp;
mod udp;
mod uses;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use podnet_linux::netlink::Netlink;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Notify;

use super::choice::{Caller, Choice, Chooser};
use super::sessions::{Flow, Sessions};
use super::table::{Place, Table};
pub use gate::GATE_LINK;
pub(super) use gate::left;
use udp::Carrier;
use uses::Uses;

/// How often what is idle is looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Most UDP sessions, however many descriptors there may be.
const MOST_SESSIONS: usize = 16 << 10;

/// How much there may be of it.
#[derive(Debug, Clone, Copy)]
struct Limits {
    connections: usize,
    sessions: usize,
}

impl Limits {
    /// As many as this process may have descriptors for: six a connection at worst, one a session, and half of all for
    /// what listens.
    fn of_this_process() -> Self {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // A wish: without it there are fewer.
        let all = Rlimit {
            current: maximum,
            maximum,
        };
        let _ = setrlimit(Resource::Nofile, all);
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        Limits {
            connections: (descriptors / 3 / 6).max(1),
            sessions: (descriptors / 8).clamp(1, MOST_SESSIONS),
        }
    }
}

/// What the tasks share.
struct Proxy {
    limits: Limits,
    table: RwLock<Table>,
    /// All addresses of the node.
    node: RwLock<BTreeSet<IpAddr>>,
    chooser: Mutex<Chooser>,
    sessions: Mutex<Sessions<Carrier>>,
    connections: AtomicUsize,
    uses: Mutex<Uses>,
    /// Addresses may go whose last connection has ended.
    released: Notify,
    pipes: relay::Pipes,
    buffers: udp::Buffers,
}

impl Proxy {
    fn new() -> io::Result<Self> {
        let limits = Limits::of_this_process();
        Ok(Proxy {
            limits,
            table: RwLock::default(),
            node: RwLock::new(node_addresses()?),
            chooser: Mutex::default(),
            sessions: Mutex::new(Sessions::new(limits.sessions)),
            connections: AtomicUsize::new(0),
            uses: Mutex::default(),
            released: Notify::new(),
            pipes: relay::Pipes::default(),
            buffers: udp::Buffers::default(),
        })
    }

    fn choose(
        &self,
        place: Place,
        client: SocketAddr,
        server: IpAddr,
        not: &[SocketAddr],
        now: Instant,
    ) -> Choice {
        let table = self.table.read();
        let Some(entry) = table.get(place) else {
            return Choice::Refuse;
        };
        let from = client.ip();
        let inside = table.ground.is_pod(from) || from == server || self.node.read().contains(&from);
        let caller = Caller { client, inside };
        self.chooser.lock().choose(entry, caller, not, now, random())
    }

    /// Begins a session, unless its endpoint has gone since it was chosen. Whoever changes the table ends what it no
    /// longer keeps afterwards, so nothing comes between.
    fn begin_session(&self, flow: Flow, endpoint: SocketAddr, carrier: Carrier, now: Instant) -> bool {
        let table = self.table.read();
        if !table.keeps(carrier.place, endpoint) {
            return false;
        }
        let gone = self.sessions.lock().begin(flow, endpoint, carrier, now);
        drop(table);
        drop(gone);
        true
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // It never fails once the machine has started; a constant still reaches an endpoint.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

/// The node's addresses that are reachable from elsewhere than their own link.
fn node_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let failed = |error| io::Error::other(format!("cannot read the node's addresses: {error}"));
    let mut netlink = Netlink::open().map_err(failed)?;
    let addresses = netlink.addresses(None).map_err(failed)?;
    let addresses = addresses.into_iter().map(|address| address.net.addr());
    let is_link_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    Ok(addresses.filter(|address| !is_link_local(address)).collect())
}

/// Serves what agents hand over by the unix socket at `path`, in the network namespace of the calling thread, until it is
/// told to end. `identity` is a word that says which build this is: one of another makes way.
pub fn run(path: &Path, identity: &str) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).max(2))
        .enable_all()
        .build()?;
    let ended = runtime.block_on(control::serve(path, identity));
    // Connections that are open when it is told to end at once end with it.
    runtime.shutdown_background();
    ended
}
