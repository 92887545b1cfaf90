//! The network between the nodes: one namespace with a bridge per subnet, which also routes between subnets.

use std::fs;
use std::io;
use std::os::fd::AsFd;

use ipnet::IpNet;
use podnet_linux::netlink::{Address, Link, Netlink, NewLink, NewLinkKind, Route};
use podnet_linux::ns::{Kind, Namespace, on_own_thread};
use podnet_linux::sysctl;

use super::plan::{NodePlan, Plan, Subnet};

/// Routes that a node's administrator would have set (include/uapi/linux/rtnetlink.h, RTPROT_STATIC).
const STATIC: u8 = 4;

/// Makes the namespace with the bridges and their gateway addresses.
pub fn create(plan: &Plan) -> io::Result<Namespace> {
    on_own_thread(|| {
        podnet_linux::ns::unshare(Kind::Net.flag())?;
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{setting}"), "1")?;
        }
        let mut netlink = Netlink::open().map_err(io::Error::other)?;
        loopback(&mut netlink)?;
        for subnet in &plan.subnets {
            let bridge = NewLink::new(&subnet.bridge, NewLinkKind::Bridge);
            let link = make(&mut netlink, &bridge)?;
            raise(&mut netlink, &link)?;
            address(&mut netlink, &link, &subnet.gateways)?;
        }
        Namespace::current(Kind::Net)
    })?
}

/// Plugs a node into its subnet: `eth0` in the node, a port named like the node on the bridge.
pub fn connect(underlay: &Namespace, subnet: &Subnet, node: &NodePlan, net: &Namespace) -> io::Result<()> {
    let mut outside = Netlink::open_in(underlay).map_err(io::Error::other)?;
    let bridge = find(&mut outside, &subnet.bridge)?;
    let port = NewLink {
        master: Some(bridge.index),
        up: true,
        ..NewLink::veth(&node.name, "eth0", Some(net.as_fd()))
    };
    outside.request(port.create()).map_err(io::Error::other)?;

    let mut inside = Netlink::open_in(net).map_err(io::Error::other)?;
    loopback(&mut inside)?;
    let eth0 = find(&mut inside, "eth0")?;
    net.run(|| raise(&mut inside, &eth0))??;
    address(&mut inside, &eth0, &node.addresses)?;
    let routes = subnet.gateways.iter().map(|gateway| {
        let everything = IpNet::new_assert(unspecified(gateway), 0);
        Route::via(everything, gateway.addr(), Some(eth0.index), STATIC).add()
    });
    inside.apply(routes).map_err(io::Error::other)
}

fn unspecified(net: &IpNet) -> std::net::IpAddr {
    match net {
        IpNet::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpNet::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn loopback(netlink: &mut Netlink) -> io::Result<()> {
    let lo = find(netlink, "lo")?;
    netlink
        .request(lo.change().up(true).apply())
        .map_err(io::Error::other)
}

fn make(netlink: &mut Netlink, link: &NewLink<'_>) -> io::Result<Link> {
    netlink
        .apply_and_get([link.create()], &link.name)
        .map_err(io::Error::other)
}

fn find(netlink: &mut Netlink, name: &str) -> io::Result<Link> {
    netlink
        .link(name)
        .map_err(io::Error::other)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no link {name}")))
}

/// Switches a link on, in the network namespace of the calling thread. Its own link-local address, too, is in use at
/// once: while the kernel still looks for duplicates of it (a second or two), a router has no address to ask for
/// neighbours from, and the first IPv6 packets between the nodes would be lost.
fn raise(netlink: &mut Netlink, link: &Link) -> io::Result<()> {
    match sysctl::ensure(&format!("net/ipv6/conf/{}/accept_dad", link.name), "0") {
        // A kernel without IPv6.
        Err(error) if error.is_not_found() => {}
        other => other.map_err(io::Error::other)?,
    }
    netlink
        .request(link.change().up(true).apply())
        .map_err(io::Error::other)
}

/// Sets addresses that are in use at once: nobody else is on this network to own them.
fn address(netlink: &mut Netlink, link: &Link, nets: &[IpNet]) -> io::Result<()> {
    let requests = nets.iter().map(|net| {
        let mut address = Address::new(link.index, *net);
        address.flags.nodad = true;
        address.add()
    });
    netlink.apply(requests).map_err(io::Error::other)
}
