//! Others' changes to what is ours, as the kernel announces them.

use std::io;

use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use podnet_linux::netfilter::wire::{self, Reader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::route::{ROUTE_PROTOCOL, SINK_LINK, TUNNEL_LINK};
use crate::services::Sentinel;

const NFNLGRP_NFTABLES: u32 = 7;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_ADDRESS: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_ADDRESS: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
/// NFT_MSG_NEWGEN of nftables' subsystem: a transaction is through.
const NEW_GENERATION: u16 = 10 << 8 | 15;
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const DELETE_ROUTE: u16 = 25;
const IFLA_IFNAME: u16 = 3;
/// Lengths of `struct ifinfomsg` and the place of the protocol in `struct rtmsg`.
const LINK_HEADER: usize = 16;
const ROUTE_PROTOCOL_AT: usize = 5;
/// The place of the link's index in both `struct ifinfomsg` and `struct ifaddrmsg`.
const INDEX_AT: std::ops::Range<usize> = 4..8;

/// So often a sentinel looks: others' changes are to be put back within a second.
const GLANCE: Duration = Duration::from_millis(500);

/// Waits for changes. It belongs to the network namespace of the thread that opened it.
pub struct Monitor {
    /// None where the kernel has no netfilter.
    nftables: Option<Ear>,
    routes: Socket,
    /// The netfilter socket whose changes are our own. A process ID would not do: the kernel announces the one of its
    /// first PID namespace, which we do not know inside another.
    own: Option<u32>,
    /// Index of the link between nodes; 0 while it is not known.
    underlay: Arc<AtomicU32>,
    /// For what nothing is announced of.
    sentinel: Option<Box<dyn Sentinel>>,
    /// When it looks next.
    glance: Instant,
    buffer: Vec<u8>,
}

/// What hears of nftables' changes.
struct Ear {
    socket: Arc<Mutex<Socket>>,
    /// The same socket, to wait at.
    fd: OwnedFd,
}

/// The ear of a [`Monitor`], for who makes large changes of our own.
///
/// As long as anybody in the namespace listens, the kernel makes a message of every element that changes
/// (nf_tables_setelem_notify), and of 70,000 of them that takes twice the time of the change itself; no listener's buffer
/// holds them, either.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listener(Weak<Mutex<Socket>>);

/// A listener that hears nothing. Who ends it looks whether others changed something meanwhile.
#[derive(Debug)]
pub(crate) struct Deaf(Option<Arc<Mutex<Socket>>>);

impl Listener {
    /// Hears nothing until that ends.
    pub(crate) fn deafen(&self) -> io::Result<Deaf> {
        let ear = self.0.upgrade();
        if let Some(ear) = &ear {
            lock(ear).drop_membership(NFNLGRP_NFTABLES)?;
        }
        Ok(Deaf(ear))
    }
}

impl Deaf {
    /// Hears again.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.hear()
    }

    fn hear(&mut self) -> io::Result<()> {
        match self.0.take() {
            Some(ear) => lock(&ear).add_membership(NFNLGRP_NFTABLES),
            None => Ok(()),
        }
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        if let Err(error) = self.hear() {
            tracing::error!("nobody hears any more of others' changes to nftables: {error}");
        }
    }
}

/// A socket is as good after a panic as before it.
fn lock(socket: &Mutex<Socket>) -> std::sync::MutexGuard<'_, Socket> {
    socket.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Hears what happens from now on; what the netfilter socket of port `own` changes is no disturbance.
    pub(crate) fn open(
        own: Option<u32>,
        underlay: Arc<AtomicU32>,
        sentinel: Option<Box<dyn Sentinel>>,
    ) -> io::Result<Self> {
        let open = |protocol, groups: &[u32]| {
            let mut socket = Socket::new(protocol)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            groups
                .iter()
                .try_for_each(|group| socket.add_membership(*group))?;
            socket.set_non_blocking(true)?;
            io::Result::Ok(socket)
        };
        let ear = || {
            let socket = open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?;
            let fd = socket.as_fd().try_clone_to_owned()?;
            let socket = Arc::new(Mutex::new(socket));
            io::Result::Ok(Ear { socket, fd })
        };
        Ok(Monitor {
            nftables: own.map(|_| ear()).transpose()?,
            routes: open(
                NETLINK_ROUTE,
                &[
                    RTNLGRP_LINK,
                    RTNLGRP_IPV4_ADDRESS,
                    RTNLGRP_IPV6_ADDRESS,
                    RTNLGRP_IPV4_ROUTE,
                    RTNLGRP_IPV6_ROUTE,
                ],
            )?,
            own,
            underlay,
            sentinel,
            glance: Instant::now() + GLANCE,
            buffer: vec![0; 64 << 10],
        })
    }

    /// For who makes large changes of our own.
    pub(crate) fn listener(&self) -> Listener {
        let ear = self.nftables.as_ref();
        Listener(ear.map(|ear| Arc::downgrade(&ear.socket)).unwrap_or_default())
    }

    /// Returns when something was changed that may be ours or concern it: somebody else changed nftables, a route with our
    /// protocol number went, the tunnel's link changed, the link between nodes or its addresses did (the kernel takes
    /// routes along with them and does not say so), or so much happened that some of it was lost.
    pub fn wait(&mut self) -> io::Result<()> {
        loop {
            let ears = self.nftables.iter().map(|ear| ear.fd.as_fd());
            let mut sockets: Vec<PollFd<'_>> = ears
                .chain([self.routes.as_fd()])
                .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
                .collect();
            let timeout = self.sentinel.as_ref().map(|_| until(self.glance));
            match poll(&mut sockets, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                other => _ = other?,
            }
            if self.glances() {
                return Ok(());
            }
            let own = self.own;
            let foreign =
                |message: &wire::Received<'_>| message.kind == NEW_GENERATION && Some(message.port) != own;
            let nftables = match &self.nftables {
                Some(ear) => drain(&lock(&ear.socket), &mut self.buffer, foreign)?,
                None => false,
            };
            let underlay = self.underlay.load(Ordering::Relaxed);
            let disturbed = |message: &wire::Received<'_>| routes_disturbed(message, underlay);
            let routes = drain(&self.routes, &mut self.buffer, disturbed)?;
            let nftables = match &mut self.sentinel {
                Some(sentinel) if nftables && sentinel.knows_nftables() => sentinel.is_disturbed(),
                _ => nftables,
            };
            if nftables || routes {
                return Ok(());
            }
        }
    }

    /// Whether it is time for the sentinel to look, and it sees something.
    fn glances(&mut self) -> bool {
        let Some(sentinel) = &mut self.sentinel else {
            return false;
        };
        if Instant::now() < self.glance {
            return false;
        }
        self.glance = Instant::now() + GLANCE;
        sentinel.is_disturbed()
    }
}

fn until(instant: Instant) -> Timespec {
    let left = instant.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    }
}

/// Reads all that is there; whether any of it is a disturbance.
fn drain(
    socket: &Socket,
    buffer: &mut [u8],
    disturbance: impl Fn(&wire::Received<'_>) -> bool,
) -> io::Result<bool> {
    let mut disturbed = false;
    loop {
        match socket.recv(&mut &mut buffer[..], 0) {
            Ok(length) => disturbed |= wire::messages(&buffer[..length]).any(|message| disturbance(&message)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(disturbed),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The buffer overflowed, and what was announced is not known.
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => disturbed = true,
            Err(error) => return Err(error),
        }
    }
}

const ENOBUFS: i32 = 105;

fn routes_disturbed(message: &wire::Received<'_>, underlay: u32) -> bool {
    let index = message
        .payload
        .get(INDEX_AT)
        .and_then(|bytes| bytes.try_into().ok());
    // A link that is not there yet may be any.
    let of_underlay = underlay == 0 || index.map(u32::from_ne_bytes) == Some(underlay);
    match message.kind {
        DELETE_ROUTE => message.payload.get(ROUTE_PROTOCOL_AT) == Some(&ROUTE_PROTOCOL),
        NEW_ADDRESS | DELETE_ADDRESS => of_underlay,
        NEW_LINK | DELETE_LINK => {
            let attributes = Reader::new(message.payload.get(LINK_HEADER..).unwrap_or_default());
            let name = attributes.text(IFLA_IFNAME);
            of_underlay || name.is_some_and(|name| [TUNNEL_LINK, SINK_LINK].contains(&name.as_str()))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::num::NonZeroU16;
    use std::process::Command;
    use std::sync::mpsc;
    use std::time::Duration;

    use podnet_core::cluster::{DataplaneName, NodeName, ObjectName, Protocol, Service, ServicePort};
    use podnet_core::{Cluster, ClusterConfig, NodeState, compute};
    use podnet_linux::ns::{Kind, Namespace};

    use crate::{Dataplane, Kernel};

    const MOMENT: Duration = Duration::from_millis(200);

    /// A node's state with so many services, each with one element.
    fn state(services: u32) -> NodeState {
        let mut cluster = Cluster::new(ClusterConfig {
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            ..ClusterConfig::default()
        });
        for index in 0..services {
            let name = ObjectName::new("default", format!("svc{index}"));
            let address = Ipv4Addr::from(0x0a60_0100 + index).into();
            let port = ServicePort::new("http", Protocol::Tcp, NonZeroU16::new(80).unwrap());
            let service = Service::new(vec![address], vec![port]).unwrap();
            cluster.services.insert(name, Ok(service));
        }
        compute(&cluster, &NodeName::new("node1").unwrap())
    }

    /// A kernel that has the state, and what is heard of others' changes to it.
    fn watched(state: &NodeState) -> (Kernel, mpsc::Receiver<()>) {
        let (tell, disturbed) = mpsc::channel();
        let mut kernel = Kernel::open(None, DataplaneName::Nftables).unwrap();
        // A new link of ours does disturb, once.
        kernel.apply(state).unwrap();
        let mut monitor = kernel.monitor().unwrap();
        std::thread::spawn(move || while monitor.wait().is_ok() && tell.send(()).is_ok() {});
        (kernel, disturbed)
    }

    #[test]
    fn own_changes_are_no_disturbance_however_large_and_others_are() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        let change = || {
            let (mut kernel, disturbed) = watched(&state(1));
            // The largest is more than a socket's buffer takes.
            for services in [2, 20_000, 1] {
                assert!(kernel.apply(&state(services)).unwrap().service_changes > 0);
                let told = disturbed.recv_timeout(MOMENT);
                assert!(told.is_err(), "{services}: that was our own change");
            }
            Kernel::open(None, DataplaneName::Nftables)
                .unwrap()
                .clean()
                .unwrap();
            disturbed.recv_timeout(10 * MOMENT).unwrap();
        };
        namespace.run(change).unwrap();
    }

    #[test]
    fn what_others_change_during_a_large_change_of_our_own_is_put_back() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        let (many, few) = (state(3000), state(1));
        let change = || {
            let (mut kernel, disturbed) = watched(&few);
            // At every moment of it.
            for (want, delay) in [&many, &few]
                .into_iter()
                .cycle()
                .zip((0..24).map(|step| 2 * step))
            {
                std::thread::scope(|scope| {
                    scope.spawn(move || {
                        std::thread::sleep(Duration::from_millis(delay));
                        let mut nft = Command::new("nft");
                        nft.args(["add", "rule", "inet", "podnet", "guard", "drop"]);
                        assert!(nft.status().unwrap().success());
                    });
                    kernel.apply(want).unwrap();
                });
                while disturbed.recv_timeout(MOMENT).is_ok() {
                    kernel.apply(want).unwrap();
                }
                let mut another = Kernel::open(None, DataplaneName::Nftables).unwrap();
                let rest = another.apply(want).unwrap();
                assert!(rest.is_nothing(), "nobody heard of it: {rest:?}");
            }
        };
        namespace.run(change).unwrap();
    }
}
