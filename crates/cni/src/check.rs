//! CHECK: is the pod still as ADD left it? Only the kernel is asked, so that it works without an agent.

use std::fmt::Display;
use std::path::Path;

use ipnet::IpNet;
use podnet_linux::netlink::{Address, Link, MAIN_TABLE, Netlink, Route, RouteFilter};
use podnet_linux::ns::Namespace;

use crate::error::{CniError, Code};
use crate::result::{AddResult, Interface};

/// The links, addresses and routes of one namespace.
struct Observed {
    links: Vec<Link>,
    addresses: Vec<Address>,
    routes: Vec<Route>,
}

impl Observed {
    fn read() -> Result<Self, podnet_linux::netlink::NetlinkError> {
        let mut netlink = Netlink::open()?;
        Ok(Observed {
            links: netlink.links()?,
            addresses: netlink.addresses(None)?,
            routes: netlink.routes(RouteFilter {
                table: Some(MAIN_TABLE),
                ..RouteFilter::default()
            })?,
        })
    }

    fn link(&self, wanted: &Interface, place: &str) -> Result<&Link, CniError> {
        let link = self
            .links
            .iter()
            .find(|link| link.name == wanted.name)
            .ok_or_else(|| differs(format!("interface {} is not {place}", wanted.name)))?;
        let mac = link.mac.map(|mac| mac.to_string());
        match &wanted.mac {
            Some(expected)
                if mac
                    .as_ref()
                    .is_some_and(|mac| !mac.eq_ignore_ascii_case(expected)) =>
            {
                Err(differs(format!(
                    "interface {} {place} has the address {}, ADD gave it {expected}",
                    wanted.name,
                    mac.unwrap_or_default()
                )))
            }
            _ => Ok(link),
        }
    }
}

fn differs(msg: String) -> CniError {
    CniError::new(Code::CheckFailed, msg)
        .with_details("the container's network was changed after ADD; delete the pod to have it wired anew")
}

fn unreadable(what: &str, error: impl Display) -> CniError {
    CniError::new(Code::Io, format!("cannot look into {what}")).with_details(error.to_string())
}

/// Compares the kernel with the result of the ADD.
pub fn check(netns: &Path, ifname: &str, previous: &AddResult) -> Result<(), CniError> {
    let namespace = Namespace::open(netns).map_err(|error| {
        CniError::new(
            Code::UnknownContainer,
            format!("cannot open the network namespace {}", netns.display()),
        )
        .with_details(error.to_string())
    })?;
    let node = Observed::read().map_err(|error| unreadable("the node's network", error))?;
    let pod = namespace
        .run(Observed::read)
        .map_err(|error| unreadable("the container's network namespace", error))?
        .map_err(|error| unreadable("the container's network namespace", error))?;
    for interface in &previous.interfaces {
        match interface.sandbox {
            None => node.link(interface, "on the node")?,
            Some(_) => pod.link(interface, "in the container")?,
        };
    }
    let ours = |name: &str| {
        previous
            .interfaces
            .iter()
            .any(|i| i.sandbox.is_some() && i.name == name)
    };
    if !ours(ifname) {
        return Err(CniError::new(
            Code::InvalidConfig,
            format!("prevResult has no interface {ifname}"),
        ));
    }
    check_addresses(&pod, previous)?;
    previous.routes.iter().try_for_each(|wanted| {
        let there = pod
            .routes
            .iter()
            .any(|route| route.destination == wanted.dst && (wanted.gw.is_none() || route.via == wanted.gw));
        if there {
            Ok(())
        } else {
            Err(differs(format!("the container has no route to {}", wanted.dst)))
        }
    })
}

fn check_addresses(pod: &Observed, previous: &AddResult) -> Result<(), CniError> {
    for ip in &previous.ips {
        let Some(interface) = ip.interface.and_then(|index| previous.interfaces.get(index)) else {
            continue;
        };
        if interface.sandbox.is_none() {
            continue;
        }
        let link = pod.link(interface, "in the container")?;
        let is_there = |net: &IpNet| net.addr() == ip.address.addr();
        if !pod
            .addresses
            .iter()
            .any(|address| address.link == link.index && is_there(&address.net))
        {
            return Err(differs(format!(
                "interface {} in the container has lost its address {}",
                interface.name,
                ip.address.addr()
            )));
        }
    }
    Ok(())
}
