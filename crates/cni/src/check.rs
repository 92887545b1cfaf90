//! CHECK: is the pod still as ADD left it? Only the kernel is asked, so that it works without an agent.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::Path;

use podnet_linux::netlink::{Address, Link, Netlink, Route, RouteFilter};
use podnet_linux::ns::Namespace;
use podnet_linux::sysctl;

use crate::attachment::Attachment;
use crate::error::{CniError, Code};
use crate::pod_settings::PodSettings;
use crate::result::{AddResult, Interface, IpConfig, RouteConfig};

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
            routes: netlink.routes(RouteFilter::default())?,
        })
    }

    fn link(&self, wanted: &Interface, place: &str) -> Result<&Link, CniError> {
        let link = self
            .links
            .iter()
            .find(|link| link.name == wanted.name)
            .ok_or_else(|| differs(format!("interface {} is not {place}", wanted.name)))?;
        let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
        let other_mac = |expected: &&String| !mac.eq_ignore_ascii_case(expected);
        if let Some(expected) = wanted.mac.as_ref().filter(other_mac) {
            return Err(differs(format!(
                "interface {} {place} has the address {mac}, ADD gave it {expected}",
                wanted.name
            )));
        }
        if let Some(expected) = wanted.mtu.filter(|mtu| *mtu != link.mtu) {
            return Err(differs(format!(
                "interface {} {place} has the MTU {}, ADD gave it {expected}",
                wanted.name, link.mtu
            )));
        }
        if !link.up {
            return Err(differs(format!("interface {} {place} is down", wanted.name)));
        }
        Ok(link)
    }
}

fn differs(msg: String) -> CniError {
    CniError::new(Code::CheckFailed, msg)
        .with_details("the container's network was changed after ADD; delete the pod to have it wired anew")
}

fn unreadable(what: &str, error: impl Display) -> CniError {
    CniError::new(Code::Io, format!("cannot look into {what}")).with_details(error.to_string())
}

/// Compares the kernel with the result of the ADD: our links, their addresses, and the routes through our gateways; and
/// with what the network and the pod's annotation set beyond. What other plugins of a chain added to the result is theirs
/// to check.
pub fn check(
    netns: &Path,
    attachment: &Attachment,
    previous: &AddResult,
    settings: &PodSettings,
) -> Result<(), CniError> {
    let namespace = Namespace::open(netns).map_err(|error| {
        CniError::new(
            Code::UnknownContainer,
            format!("cannot open the network namespace {}", netns.display()),
        )
        .with_details(error.to_string())
    })?;
    let ours = Ours::find(attachment, previous)?;
    let node = Observed::read().map_err(|error| unreadable("the node's network", error))?;
    let inside = |error: &dyn Display| unreadable("the container's network namespace", error);
    let (pod, changed) = namespace
        .run(|| {
            let pod = Observed::read().map_err(|error| inside(&error))?;
            Ok::<_, CniError>((pod, changed_setting(settings, attachment)))
        })
        .map_err(|error| inside(&error))??;
    if let Some(host_end) = ours.host_end {
        node.link(host_end, "on the node")?;
    }
    let link = pod.link(ours.pod_end, "in the container")?;
    for ip in &ours.ips {
        let is_there = |address: &&Address| address.link == link.index && address.net == ip.address;
        if !pod.addresses.iter().any(|address| is_there(&address)) {
            return Err(differs(format!(
                "interface {} in the container has lost its address {}",
                link.name, ip.address
            )));
        }
    }
    let gateways: Vec<_> = ours.ips.iter().filter_map(|ip| ip.gateway).collect();
    let through_ours = |route: &&RouteConfig| route.gw.is_some_and(|gateway| gateways.contains(&gateway));
    for wanted in previous.routes.iter().filter(through_ours) {
        // In any table: a plugin behind us may have moved it (source-based routing does).
        let is_there = |route: &&Route| route.destination == wanted.dst && route.via == wanted.gw;
        if !pod.routes.iter().any(|route| is_there(&route)) {
            return Err(differs(format!("the container has no route to {}", wanted.dst)));
        }
    }
    for wanted in &settings.routes {
        let family = |ip: &IpAddr| ip.is_ipv4() == wanted.dst.addr().is_ipv4();
        let gateway = wanted.gw.or(gateways.iter().copied().find(family));
        let is_there = |route: &Route| route.destination == wanted.dst && route.via == gateway;
        // A pod without an address of the family has none of its routes.
        if gateways.iter().any(family) && !pod.routes.iter().any(is_there) {
            return Err(differs(format!("the container has no route to {}", wanted.dst)));
        }
    }
    match changed {
        None => Ok(()),
        Some(what) => Err(differs(what)),
    }
}

/// A setting of the container that is not as ADD made it, with what it is. To be called in its network namespace.
fn changed_setting(settings: &PodSettings, attachment: &Attachment) -> Option<String> {
    // The kernel writes lists of numbers with tabs.
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    settings
        .sysctls_of(attachment.ifname())
        .into_iter()
        .find_map(|(path, wanted)| match sysctl::get(&path) {
            Ok(found) if words(&found) == words(&wanted) => None,
            Ok(found) => Some(format!(
                "the container's {path} is {found:?}, ADD set it to {wanted:?}"
            )),
            Err(error) => Some(error.to_string()),
        })
}

/// What of a result is ours.
struct Ours<'a> {
    pod_end: &'a Interface,
    host_end: Option<&'a Interface>,
    ips: Vec<&'a IpConfig>,
}

impl<'a> Ours<'a> {
    fn find(attachment: &Attachment, previous: &'a AddResult) -> Result<Self, CniError> {
        let is_pod_end = |it: &Interface| it.sandbox.is_some() && it.name == attachment.ifname();
        let Some(at) = previous.interfaces.iter().position(is_pod_end) else {
            let msg = "the network configuration's \"prevResult\" is wrong";
            return Err(CniError::new(Code::InvalidConfig, msg).with_details(format!(
                "it has no interface {} in a container",
                attachment.ifname()
            )));
        };
        let name = attachment.host_link();
        let is_host_end = |it: &&Interface| it.sandbox.is_none() && it.name == name;
        Ok(Ours {
            pod_end: &previous.interfaces[at],
            host_end: previous.interfaces.iter().find(is_host_end),
            ips: previous
                .ips
                .iter()
                .filter(|ip| ip.interface == Some(at))
                .collect(),
        })
    }
}
