//! Where the proxy has services' addresses: a network namespace of its own, joined to the node's by a pair of links.
//!
//! In the node's own namespace they could not be: a program of the node that listens on a port of every address would have
//! taken that port of every service, and would answer at services' addresses for ports that these do not have; and the
//! node would tell its neighbours, by ARP, that external addresses are its own. In here nothing else listens, so that the
//! kernel itself refuses what no service has, and answers echo requests. The namespace is held by the proxy alone: when
//! that dies, links and routes go with it. A proxy that another one takes the place of hands it over, so that its
//! connections find their way for as long as they last.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use podnet_core::cluster::Family;
use podnet_linux::netlink::{
    Address, AddressFlags, Link, LinkChange, MacAddr, Neighbour, Netlink, NetlinkError, NewLink, NewLinkKind,
    Request, Route, RouteFilter, RouteKind, Scope, VethPeer,
};
use podnet_linux::ns::{Kind, Namespace};

/// The node's end.
pub const GATE_LINK: &str = "podnet.proxy";
const INNER_LINK: &str = "eth0";
/// Whose routes these are.
pub(super) const PROTOCOL: u8 = 115;
/// Before any other: main has routes for all services' addresses that nobody has taken.
const LOCAL_TABLE: u32 = 255;

/// One end of the pair: what is routed to it is sent here.
struct End {
    mac: MacAddr,
    routers: [IpAddr; 2],
}

const OUTER: End = End {
    mac: MacAddr([2, 0, 0, 0, 2, 1]),
    routers: [
        IpAddr::V4(Ipv4Addr::new(169, 254, 2, 1)),
        IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 2, 1)),
    ],
};
const INNER: End = End {
    mac: MacAddr([2, 0, 0, 0, 2, 2]),
    routers: [
        IpAddr::V4(Ipv4Addr::new(169, 254, 2, 2)),
        IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 2, 2)),
    ],
};

/// The namespace, and the addresses that lead to it.
#[derive(Debug)]
pub(super) struct Gate {
    namespace: Namespace,
    outer: Netlink,
    inner: Netlink,
    link: Link,
    loopback: u32,
    /// Those that are one's own behind the gate.
    known: BTreeSet<IpAddr>,
    /// Those of them that the node leads here.
    led: BTreeSet<IpAddr>,
    /// The source of what the node itself sends.
    sources: BTreeSet<IpAddr>,
    /// Another proxy has it now: nothing is done to it any more.
    is_handed_over: bool,
}

fn failed(error: NetlinkError) -> io::Error {
    io::Error::other(format!("cannot lead services' addresses to the proxy: {error}"))
}

impl Gate {
    /// For the node whose network namespace the calling thread is in. No address leads to it yet.
    pub(super) fn open() -> io::Result<Self> {
        let namespace = Namespace::create(Kind::Net)?;
        let mut outer = Netlink::open().map_err(failed)?;
        let mut inner = Netlink::open_in(&namespace).map_err(failed)?;
        let (link, loopback) = join(&mut outer, &mut inner, &namespace).map_err(failed)?;
        Gate::at(namespace, [outer, inner], link, loopback).map_err(failed)
    }

    /// The one that another proxy had, with the addresses that lead to it.
    pub(super) fn take_over(namespace: Namespace) -> io::Result<Self> {
        let mut outer = Netlink::open().map_err(failed)?;
        let mut inner = Netlink::open_in(&namespace).map_err(failed)?;
        let link = outer.link(GATE_LINK).map_err(failed)?;
        let link = link.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "its link is gone"))?;
        let loopback = inner.link("lo").map_err(failed)?.map_or(0, |link| link.index);
        Gate::at(namespace, [outer, inner], link, loopback).map_err(failed)
    }

    /// With the addresses that are there.
    fn at(
        namespace: Namespace,
        [mut outer, mut inner]: [Netlink; 2],
        link: Link,
        loopback: u32,
    ) -> Result<Self, NetlinkError> {
        let known = known(&mut inner, loopback)?;
        let led = led(&mut outer, link.index)?;
        Ok(Gate {
            namespace,
            outer,
            inner,
            link,
            loopback,
            known,
            led,
            sources: BTreeSet::new(),
            is_handed_over: false,
        })
    }

    /// For another proxy, which has it once `give` has gone well.
    pub(super) fn hand_over(
        &mut self,
        give: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        give(self.namespace.as_fd())?;
        self.is_handed_over = true;
        Ok(())
    }

    /// Runs `work` behind the gate: sockets it opens can have services' addresses.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.namespace.run(work)
    }

    /// The addresses that lead here, or are about to.
    pub(super) fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.known
    }

    /// Behind the gate addresses are known first, so that sockets can have them.
    pub(super) fn know(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        let new = addresses.iter().filter(|address| !self.known.contains(address));
        let new: Vec<IpAddr> = new.copied().collect();
        let requests: Vec<_> = new.iter().map(|address| self.own(*address)).collect();
        self.inner.apply(requests).map_err(failed)?;
        self.known.extend(new);
        Ok(())
    }

    /// Leads addresses here that are known.
    pub(super) fn lead(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        let new = addresses.iter().filter(|address| !self.led.contains(address));
        let new: Vec<IpAddr> = new.copied().collect();
        let requests: Vec<_> = new.iter().map(|address| self.route(*address).replace()).collect();
        self.outer.apply(requests).map_err(failed)?;
        self.led.extend(new);
        Ok(())
    }

    /// What the node itself sends has its address among those.
    pub(super) fn set_sources(&mut self, sources: &BTreeSet<IpAddr>) -> io::Result<()> {
        if self.sources == *sources {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.sources, sources.clone());
        // All of them anew, by replacement.
        let led = std::mem::take(&mut self.led);
        let all: Vec<IpAddr> = led.iter().copied().collect();
        self.lead(&all)
            .inspect_err(|_| (self.sources, self.led) = (before, led))
    }

    /// Addresses lead here no longer.
    pub(super) fn forget(&mut self, gone: &[IpAddr]) -> io::Result<()> {
        let gone: Vec<IpAddr> = gone
            .iter()
            .filter(|address| self.known.contains(address))
            .copied()
            .collect();
        let outer: Vec<_> = gone.iter().map(|address| self.route(*address).delete()).collect();
        let inner: Vec<_> = gone.iter().map(|address| self.disown(*address)).collect();
        for outcome in [self.outer.apply_each(outer), self.inner.apply_each(inner)] {
            for result in outcome.map_err(failed)? {
                match result {
                    Err(error) if !error.is_not_found() => return Err(failed(error)),
                    _ => {}
                }
            }
        }
        for address in gone {
            self.known.remove(&address);
            self.led.remove(&address);
        }
        Ok(())
    }

    /// The node's way to the proxy.
    fn route(&self, address: IpAddr) -> Route {
        let family = Family::of(address);
        let sources = self.sources.iter();
        let mut sources = sources.filter(|source| Family::of(**source) == family);
        Route {
            onlink: true,
            table: LOCAL_TABLE,
            source: sources.next().copied(),
            ..Route::via(
                IpNet::from(address),
                router(&INNER, family),
                Some(self.link.index),
                PROTOCOL,
            )
        }
    }

    /// Behind the gate the address is one's own.
    fn own(&self, address: IpAddr) -> Request<'static> {
        match address {
            IpAddr::V4(_) => self.local(address).replace(),
            IpAddr::V6(_) => self.assigned(address).replace(),
        }
    }

    fn disown(&self, address: IpAddr) -> Request<'static> {
        match address {
            IpAddr::V4(_) => self.local(address).delete(),
            IpAddr::V6(_) => self.assigned(address).delete(),
        }
    }

    /// In IPv4 a route is enough; addresses of a link are a list that the kernel walks.
    fn local(&self, address: IpAddr) -> Route {
        Route {
            kind: RouteKind::Local,
            scope: Scope::Host,
            table: LOCAL_TABLE,
            link: Some(self.loopback),
            ..Route::new(IpNet::from(address), PROTOCOL)
        }
    }

    /// In IPv6 only an address of a link is one that errors are sent from.
    fn assigned(&self, address: IpAddr) -> Address {
        let flags = AddressFlags {
            nodad: true,
            ..AddressFlags::default()
        };
        Address {
            flags,
            ..Address::new(self.loopback, IpNet::from(address))
        }
    }

    /// The node's end.
    pub(super) fn link(&self) -> u32 {
        self.link.index
    }

    /// Puts back what somebody took. A gate whose link is gone cannot be mended.
    pub(super) fn restore(&mut self) -> io::Result<()> {
        let (index, node) = (self.link.index, &mut self.outer);
        if node.link_by_index(index).map_err(failed)?.is_none() {
            let why = format!("somebody removed the link {GATE_LINK}");
            return Err(io::Error::new(io::ErrorKind::NotConnected, why));
        }
        if self.is_handed_over {
            return Ok(());
        }
        let there = led(node, index).map_err(failed)?;
        let missing = self.led.difference(&there);
        let requests: Vec<_> = missing.map(|address| self.route(*address).replace()).collect();
        self.outer.apply(requests).map_err(failed)
    }

    /// Takes the links away, and with them all routes. Not so when another proxy has it.
    pub(super) fn close(&mut self) -> io::Result<()> {
        if self.is_handed_over {
            return Ok(());
        }
        match self.outer.request(self.link.delete()) {
            Err(error) if !error.is_not_found() => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // However the proxy ends; who wanted to know whether it went has closed it before.
        let _ = self.close();
    }
}

/// The addresses that lead to a gate.
fn led(node: &mut Netlink, link: u32) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let ours = RouteFilter {
        table: Some(LOCAL_TABLE),
        protocol: Some(PROTOCOL),
        link: Some(link),
    };
    let there = node.routes(ours)?;
    Ok(there.iter().map(|route| route.destination.addr()).collect())
}

/// The addresses that are one's own behind a gate; see [`Gate::own`].
fn known(inner: &mut Netlink, loopback: u32) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let four = led(inner, loopback)?;
    let six = inner.addresses(Some(loopback))?.into_iter();
    let six = six
        .map(|address| address.net.addr())
        .filter(|address| !address.is_loopback());
    Ok(four.into_iter().chain(six).collect())
}

/// The link of a proxy that is dead, before the kernel has taken it away: says so, and may remove it.
pub(in super::super) fn left(remove: bool) -> Result<Option<String>, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(GATE_LINK)? else {
        return Ok(None);
    };
    if remove {
        match netlink.request(link.delete()) {
            // It went by itself.
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        }
    }
    Ok(Some(format!("link {GATE_LINK}")))
}

fn router(end: &End, family: Family) -> IpAddr {
    end.routers[usize::from(family == Family::V6)]
}

/// Joins the namespaces. Returns the node's end, and the index of the other's loopback.
fn join(
    outer: &mut Netlink,
    inner: &mut Netlink,
    namespace: &Namespace,
) -> Result<(Link, u32), NetlinkError> {
    if let Some(left) = outer.link(GATE_LINK)? {
        // Of a proxy that is dead; it would go by itself a little later.
        outer.request(left.delete())?;
    }
    let pair = NewLink {
        mac: Some(OUTER.mac),
        ..NewLink::new(
            GATE_LINK,
            NewLinkKind::Veth(VethPeer {
                name: INNER_LINK.into(),
                mac: Some(INNER.mac),
                namespace: Some(namespace.as_fd()),
            }),
        )
    };
    let link = outer.apply_and_get([pair.create()], GATE_LINK)?;
    outer.request(link.change().without_link_local().up(true).apply())?;
    for router in INNER.routers {
        outer.request(Neighbour::permanent(link.index, router, INNER.mac).replace())?;
    }
    inner.request(LinkChange::named("lo").up(true).apply())?;
    inner.request(
        LinkChange::named(INNER_LINK)
            .without_link_local()
            .up(true)
            .apply(),
    )?;
    let mut index = |name| {
        let link = inner.link(name)?;
        Ok::<u32, NetlinkError>(link.map_or(0, |link| link.index))
    };
    let (loopback, end) = (index("lo")?, index(INNER_LINK)?);
    for (router, all) in OUTER.routers.into_iter().zip([
        IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
    ]) {
        inner.request(Neighbour::permanent(end, router, OUTER.mac).replace())?;
        let route = Route {
            onlink: true,
            ..Route::via(all, router, Some(end), PROTOCOL)
        };
        inner.request(route.add())?;
    }
    Ok((link, loopback))
}
