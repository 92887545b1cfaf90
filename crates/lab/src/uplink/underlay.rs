//! What the uplink makes in the underlay: the gate, the routes to it, the listeners.
//!
//! The gate is a pair of links. One end, `uplink`, is where the underlay's default routes lead; the other is in a
//! namespace of its own that nothing keeps but the packet socket on it. So when the process ends, however it ends, both
//! ends go, and whoever sends outside is told at once that there is no way.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;

use ipnet::IpNet;
use podnet_linux::MacAddr;
use podnet_linux::netlink::{Link, MarkRule, Neighbour, Netlink, NetlinkError, NewLink, Route, RouteKind};
use podnet_linux::ns::{Kind, Namespace};
use podnet_linux::packet_socket::PacketSocket;
use podnet_linux::sysctl;
use socket2::{Domain, Protocol, Socket, Type};

use super::rules;

/// The underlay's end of the gate.
pub(super) const LINK: &str = "uplink";
/// Packets that are for a socket of ours have this mark.
pub(super) const MARK: u32 = 1;
/// The routing table by which marked packets are delivered here.
const LOCAL_TABLE: u32 = 100;
const RULE_PRIORITY: u32 = 100;
/// RTPROT_STATIC (include/uapi/linux/rtnetlink.h).
const STATIC: u8 = 4;
/// The router behind `uplink`, and its Ethernet address. Nobody has either.
const ROUTERS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 77, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];
pub(super) const ROUTER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
/// Connections that wait to be accepted. More would be answered with cookies, which the rules do not recognise.
const BACKLOG: i32 = 4096;

/// What stands when it is made.
#[derive(Debug)]
pub(super) struct Entrance {
    /// Where packets for the outside arrive.
    pub(super) gate: PacketSocket,
    /// The Ethernet address of `uplink`.
    pub(super) mac: MacAddr,
    /// Where connections that were let in are accepted, a listener per family.
    pub(super) listeners: [TcpListener; 2],
}

/// Makes all of it in the network namespace of the calling thread, in place of what a process before us left.
///
/// `outside` are the addresses within `inside` that lead outside all the same; the rest of `inside` is the lab's own
/// and does not get out.
pub(super) fn make(inside: &[IpNet], outside: &[IpAddr]) -> io::Result<Entrance> {
    // Packets come back in by another link than the one their senders are on.
    sysctl::ensure("net/ipv4/conf/all/rp_filter", "0").map_err(io::Error::other)?;
    let mut netlink = Netlink::open().map_err(io::Error::other)?;
    let (gate, link) = make_gate(&mut netlink)?;
    sysctl::ensure(&format!("net/ipv4/conf/{LINK}/rp_filter"), "0").map_err(io::Error::other)?;
    let listeners = listen()?;
    let port = listeners[0].local_addr()?.port();
    rules::install(port).map_err(io::Error::other)?;
    route(&mut netlink, &link, inside, outside).map_err(io::Error::other)?;
    let mac = link
        .mac
        .ok_or_else(|| io::Error::other("the link uplink has no address"))?;
    Ok(Entrance { gate, mac, listeners })
}

fn make_gate(netlink: &mut Netlink) -> io::Result<(PacketSocket, Link)> {
    let beyond = Namespace::create(Kind::Net)?;
    // A process that was killed takes its end along a moment later.
    if let Some(old) = netlink.link(LINK).map_err(io::Error::other)? {
        match netlink.request(old.delete()) {
            Err(error) if error.is_not_found() => {}
            other => other.map_err(io::Error::other)?,
        }
    }
    // Nobody is to speak there but us.
    beyond.run(
        || match sysctl::ensure("net/ipv6/conf/default/disable_ipv6", "1") {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map_err(io::Error::other),
        },
    )??;
    let pair = NewLink {
        up: true,
        ..NewLink::veth(LINK, "gate", Some(beyond.as_fd()))
    };
    let link = netlink
        .apply_and_get([pair.create()], LINK)
        .map_err(io::Error::other)?;
    let gate = beyond.run(|| -> io::Result<_> {
        let mut netlink = Netlink::open().map_err(io::Error::other)?;
        let gate = netlink
            .link("gate")
            .map_err(io::Error::other)?
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        netlink
            .request(gate.change().up(true).apply())
            .map_err(io::Error::other)?;
        PacketSocket::open(gate.index)
    })??;
    Ok((gate, link))
}

/// Listeners that take connections to any address, on one port.
fn listen() -> io::Result<[TcpListener; 2]> {
    let v4 = listener(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let port = v4.local_addr()?.port();
    let v6 = listener(SocketAddr::from((Ipv6Addr::LOCALHOST, port)))?;
    Ok([v4, v6])
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    transparent(&socket, address)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Lets a socket have an address that is not this machine's.
pub(super) fn transparent(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
    }
}

fn route(
    netlink: &mut Netlink,
    link: &Link,
    inside: &[IpNet],
    outside: &[IpAddr],
) -> Result<(), NetlinkError> {
    let rule = MarkRule {
        mark: MARK,
        mask: u32::MAX,
        table: LOCAL_TABLE,
        priority: RULE_PRIORITY,
    };
    for request in rule.add() {
        match netlink.request(request) {
            Err(error) if error.is_exists() => {}
            other => other?,
        }
    }
    let lo = netlink.link("lo")?.map_or(1, |lo| lo.index);
    let router_of = |address: IpAddr| ROUTERS[usize::from(address.is_ipv6())];
    let by_gate = |net: IpNet| {
        let mut route = Route::via(net, router_of(net.addr()), Some(link.index), STATIC);
        route.onlink = true;
        route
    };
    let mut routes = Vec::new();
    for router in ROUTERS {
        let everything = default_of(router);
        let mut local = Route::on_link(everything, lo, STATIC);
        local.kind = RouteKind::Local;
        local.scope = podnet_linux::netlink::Scope::Host;
        local.table = LOCAL_TABLE;
        routes.extend([local, by_gate(everything)]);
    }
    routes.extend(outside.iter().map(|address| by_gate((*address).into())));
    routes.extend(inside.iter().map(|range| {
        let mut route = Route::new(*range, STATIC);
        route.kind = RouteKind::Unreachable;
        route
    }));
    let neighbours = ROUTERS.map(|router| Neighbour::permanent(link.index, router, ROUTER_MAC).replace());
    netlink.apply(neighbours)?;
    netlink.apply(routes.iter().map(Route::replace))
}

fn default_of(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}
