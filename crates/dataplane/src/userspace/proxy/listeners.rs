//! The sockets that clients reach: made and closed as the table changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use podnet_core::cluster::{Family, Protocol};
use podnet_core::service::{Backend, Entry};
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use super::super::filter::{Instruction, filter};
use super::super::table::{Ground, Place};
use super::gate::Gate;
use super::{Proxy, tcp, udp};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// Where one socket is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bind {
    place: Place,
    address: IpAddr,
    /// In the node's own namespace, since the address is the node's own; not behind the gate.
    is_nodes: bool,
}

impl Bind {
    fn socket_address(self) -> SocketAddr {
        let port = match self.place {
            Place::Service(frontend) => frontend.port,
            Place::Node(node_port) => node_port.port,
        };
        SocketAddr::new(self.address, port.get())
    }

    fn refusal(self, error: &io::Error) -> String {
        let (place, address) = (self.place, self.socket_address());
        if error.kind() == io::ErrorKind::AddrInUse {
            format!("{place}: {address} is used by another program of this node; it is not served there")
        } else {
            format!("{place}: {address} cannot be served: {error}")
        }
    }
}

/// An open socket, and who serves it.
#[derive(Debug)]
struct Listener {
    socket: Held,
    filter: Option<Vec<Instruction>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Held {
    Tcp(Arc<TcpListener>),
    Udp,
}

/// What could not be served, and why.
type Refusals = Vec<(Place, String)>;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Listeners(BTreeMap<Bind, Listener>);

/// What sockets there should be.
pub(super) struct Wanted<'a> {
    pub(super) ground: &'a Ground,
    /// All addresses of the node.
    pub(super) node: &'a BTreeSet<IpAddr>,
    /// See [`super::super::table::Table`].
    pub(super) borrowed: &'a BTreeMap<IpAddr, String>,
}

impl Wanted<'_> {
    /// Why a place is not to be served.
    fn refusal(&self, place: Place, entry: &Entry) -> Option<String> {
        if place.protocol() == Protocol::Sctp {
            return Some(format!("{place}: the userspace proxy carries TCP and UDP only"));
        }
        let Place::Service(frontend) = place else {
            return None;
        };
        let address = frontend.address;
        let whose = self
            .borrowed
            .get(&address)
            .filter(|_| !self.node.contains(&address))?;
        let service = &entry.port.service;
        Some(format!(
            "{place}: {address} of service {service} is {whose}; the userspace proxy does not take it from there"
        ))
    }

    /// Where a place is bound: nowhere when nobody serves it, which the kernel then says itself.
    fn binds(&self, place: Place, entry: &Entry) -> Vec<Bind> {
        let refused = |backend: &Backend| *backend == Backend::Refuse;
        if refused(&entry.inside) && refused(entry.outside()) {
            return Vec::new();
        }
        match place {
            Place::Service(frontend) => vec![Bind {
                place,
                address: frontend.address,
                is_nodes: self.node.contains(&frontend.address),
            }],
            Place::Node(node_port) => {
                let node = self.node.iter().copied();
                let chosen = node.filter(|address| {
                    Family::of(*address) == node_port.family && self.ground.has_node_ports_on(*address)
                });
                let bind = |address| Bind {
                    place,
                    address,
                    is_nodes: true,
                };
                chosen.map(bind).collect()
            }
        }
    }
}

impl Listeners {
    /// Makes the sockets of those places what they should be. Returns what could not be, and why.
    pub(super) fn update(
        &mut self,
        proxy: &Arc<Proxy>,
        gate: &Gate,
        wanted: &Wanted<'_>,
        places: &[(Place, Option<Arc<Entry>>)],
    ) -> io::Result<Refusals> {
        let mut refused = Vec::new();
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for (place, entry) in places {
            let refusal = entry.as_ref().and_then(|entry| wanted.refusal(*place, entry));
            let entry = entry.as_ref().filter(|_| refusal.is_none());
            refused.extend(refusal.map(|why| (*place, why)));
            let binds = entry.map(|entry| wanted.binds(*place, entry));
            let binds: BTreeSet<Bind> = binds.into_iter().flatten().collect();
            gone.extend(self.of(*place).filter(|bind| !binds.contains(bind)));
            for bind in binds {
                let filter = entry.and_then(|entry| filter(entry, wanted.ground, Family::of(bind.address)));
                match self.0.get_mut(&bind) {
                    Some(listener) => {
                        if let Err(error) = listener.set_filter(filter) {
                            refused.push((*place, format!("{place}: cannot guard its socket: {error}")));
                        }
                    }
                    None => new.push((bind, filter)),
                }
            }
        }
        self.close(&gone);
        refused.extend(self.open(proxy, gate, new)?);
        Ok(refused)
    }

    fn of(&self, place: Place) -> impl Iterator<Item = Bind> {
        let any = |address, is_nodes| Bind {
            place,
            address,
            is_nodes,
        };
        let least = any(IpAddr::from([0; 4]), false);
        let most = any(IpAddr::from([0xff; 16]), true);
        self.0.range(least..=most).map(|(bind, _)| *bind)
    }

    /// Closes all sockets.
    pub(super) fn close_all(&mut self) {
        let all: Vec<Bind> = self.0.keys().copied().collect();
        self.close(&all);
    }

    /// Closes sockets, and returns when they are closed: from then on the kernel refuses.
    fn close(&mut self, binds: &[Bind]) {
        let listeners: Vec<Listener> = binds.iter().filter_map(|bind| self.0.remove(bind)).collect();
        let tasks = listeners.into_iter().map(|listener| {
            listener.task.abort();
            listener.task
        });
        let tasks: Vec<JoinHandle<()>> = tasks.collect();
        tokio::runtime::Handle::current().block_on(async {
            for task in tasks {
                // It was aborted: that is its only end.
                let _ = task.await;
            }
        });
    }

    fn open(
        &mut self,
        proxy: &Arc<Proxy>,
        gate: &Gate,
        new: Vec<(Bind, Option<Vec<Instruction>>)>,
    ) -> io::Result<Refusals> {
        let (node, service): (Vec<_>, Vec<_>) = new.into_iter().partition(|(bind, _)| bind.is_nodes);
        let all = |binds: Vec<(Bind, Option<Vec<Instruction>>)>| -> Vec<_> {
            let open = |(bind, filter): (Bind, Option<Vec<Instruction>>)| {
                let socket = socket(bind, filter.as_deref());
                (bind, filter, socket)
            };
            binds.into_iter().map(open).collect()
        };
        let mut opened = all(node);
        opened.extend(gate.inside(|| all(service))?);
        let mut refused = Vec::new();
        for (bind, filter, socket) in opened {
            let served = socket.and_then(|socket| Listener::new(proxy, bind, filter, socket));
            match served {
                Ok(listener) => _ = self.0.insert(bind, listener),
                Err(error) => refused.push((bind.place, bind.refusal(&error))),
            }
        }
        Ok(refused)
    }
}

impl Listener {
    fn new(
        proxy: &Arc<Proxy>,
        bind: Bind,
        filter: Option<Vec<Instruction>>,
        socket: Socket,
    ) -> io::Result<Self> {
        let (place, proxy) = (bind.place, Arc::clone(proxy));
        let (socket, task) = if place.protocol() == Protocol::Tcp {
            let listener = Arc::new(TcpListener::from_std(socket.into())?);
            let task = tokio::spawn(tcp::accept(proxy, Arc::clone(&listener), place));
            (Held::Tcp(listener), task)
        } else {
            let socket = Arc::new(UdpSocket::from_std(socket.into())?);
            let server = bind.socket_address();
            let task = tokio::spawn(udp::receive(proxy, socket, server, place));
            (Held::Udp, task)
        };
        Ok(Listener { socket, filter, task })
    }

    fn set_filter(&mut self, filter: Option<Vec<Instruction>>) -> io::Result<()> {
        if self.filter == filter {
            return Ok(());
        }
        // Who may send datagrams is looked at when they come.
        if let Held::Tcp(listener) = &self.socket {
            let socket = SockRef::from(&**listener);
            match &filter {
                Some(program) => attach(&socket, program)?,
                None => socket.detach_filter()?,
            }
        }
        self.filter = filter;
        Ok(())
    }
}

fn attach(socket: &SockRef<'_>, program: &[Instruction]) -> io::Result<()> {
    let program: Vec<SockFilter> = program
        .iter()
        .map(|instruction| SockFilter::new(instruction.code, instruction.jt, instruction.jf, instruction.k))
        .collect();
    socket.attach_filter(&program)
}

fn socket(bind: Bind, filter: Option<&[Instruction]>) -> io::Result<Socket> {
    let address = bind.socket_address();
    let domain = Domain::for_address(address);
    let is_tcp = bind.place.protocol() == Protocol::Tcp;
    let kind = if is_tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if is_tcp {
        // Past connections do not keep a listener away; listeners of others do.
        socket.set_reuse_address(true)?;
        if let Some(program) = filter {
            attach(&SockRef::from(&socket), program)?;
        }
    } else {
        udp::may_be_cut(&socket, address)?;
    }
    socket.bind(&address.into())?;
    if is_tcp {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}
