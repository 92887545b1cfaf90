//! The classic wiring: all pods of a node on one Ethernet bridge, which has the gateway's addresses. For those who
//! want pods to see each other's frames; the node's own stack takes no part between two of them but for its firewall.
//!
//! Each port has a forwarding entry, and the node knows each pod's Ethernet address as a neighbour on the bridge: the
//! two together say whose address is whose, as the routes do without a bridge.
//!
//! A network, or an agent that was told another way since, may have wired other pods of the node without the bridge. To
//! pods on the bridge their addresses look as if they were on it, too: there the node answers for them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podnet_dataplane::SettingError;
use podnet_linux::MacAddr;
use podnet_linux::netlink::{
    Address, AddressFlags, FdbEntry, Link, LinkChange, LinkKind, Neighbour, Netlink, NetlinkError, NewLink,
    NewLinkKind, Request, RouteFilter,
};
use podnet_linux::sysctl;

use super::{POD_ROUTE_PROTOCOL, PodLink, WiringError};
use crate::ipam::LinksInKernel;

/// The bridge's name, as Kubernetes' own had it.
pub const BRIDGE: &str = "cbr0";
/// Its Ethernet address. The network is the node's alone, so that all nodes can have the same.
pub(super) const MAC: MacAddr = MacAddr([0x02, 0x70, 0x6f, 0x64, 0x6e, 0x01]);

/// The gateway of a range: its first address, which no pod gets.
pub(super) fn gateway(range: IpNet) -> Option<IpNet> {
    if range.max_prefix_len() - range.prefix_len() < 2 {
        return None;
    }
    let first: IpAddr = match range.network() {
        IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits() + 1).into(),
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits() + 1).into(),
    };
    IpNet::new(first, range.prefix_len()).ok()
}

/// The bridge, made where it is missing.
pub(super) fn ensure(node: &mut Netlink, ranges: &[IpNet], pod: &PodLink<'_>) -> Result<Link, WiringError> {
    let link = match node.link(BRIDGE)? {
        Some(link) if is_ours(&link) => link,
        Some(_) => return Err(WiringError::ForeignBridge),
        None => {
            let bridge = create(node, pod)?;
            // Whoever is wired without it from now on sees the bridge.
            let routed: Vec<IpAddr> = routed(node, &[])?.into_iter().collect();
            node.apply(routed.iter().map(|address| proxy(&bridge, *address)))?;
            bridge
        }
    };
    let mut gateways = Vec::new();
    for range in ranges {
        let net = gateway(*range).ok_or(WiringError::NoRoomForGateway(*range))?;
        let mut address = Address::new(link.index, net);
        address.flags = AddressFlags {
            nodad: net.addr().is_ipv6(),
            noprefixroute: false,
        };
        gateways.push(address.replace());
    }
    node.apply(gateways)?;
    Ok(link)
}

/// Answers on the bridge for a pod that is not on it, if there is one.
pub(super) fn answer_for(node: &mut Netlink, addresses: &[IpAddr]) -> Result<(), NetlinkError> {
    let Some(bridge) = node.link(BRIDGE)?.filter(is_ours) else {
        return Ok(());
    };
    node.apply(addresses.iter().map(|address| proxy(&bridge, *address)))
}

fn proxy(bridge: &Link, address: IpAddr) -> Request<'static> {
    Neighbour::proxy(bridge.index, address).replace()
}

/// The addresses of pods that are wired without the bridge, less those whose links are going.
fn routed(node: &mut Netlink, going: &[u32]) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let filter = RouteFilter {
        protocol: Some(POD_ROUTE_PROTOCOL),
        ..RouteFilter::default()
    };
    let routes = node.routes(filter)?.into_iter();
    let staying = routes.filter(|route| route.link.is_some_and(|link| !going.contains(&link)));
    Ok(staying.map(|route| route.destination.addr()).collect())
}

fn is_ours(link: &Link) -> bool {
    link.kind == LinkKind::Bridge && link.mac == Some(MAC)
}

fn create(node: &mut Netlink, pod: &PodLink<'_>) -> Result<Link, WiringError> {
    // What goes from pod to pod has to meet the rules of services and policies, too: an answer that went by on the
    // bridge would come from an address that nobody asked.
    for key in [
        "net/bridge/bridge-nf-call-iptables",
        "net/bridge/bridge-nf-call-ip6tables",
    ] {
        pod.settings.ensure(key, "1").map_err(explained)?;
    }
    let bridge = NewLink {
        mac: Some(MAC),
        mtu: Some(pod.mtu),
        up: true,
        ..NewLink::new(BRIDGE, NewLinkKind::Bridge)
    };
    let link = match node.apply_and_get([bridge.create()], BRIDGE) {
        // Another ADD was quicker.
        Err(error) if error.is_exists() => node.apply_and_get([], BRIDGE)?,
        other => other?,
    };
    // At once, where the node answers for pods that are not on the bridge.
    sysctl::ensure(&format!("net/ipv4/neigh/{BRIDGE}/proxy_delay"), "0")?;
    for (key, value) in [("neigh/cbr0/proxy_delay", "0"), ("conf/cbr0/proxy_ndp", "1")] {
        match sysctl::ensure(&format!("net/ipv6/{key}"), value) {
            Err(error) if error.is_not_found() => {}
            other => other?,
        }
    }
    Ok(link)
}

fn explained(error: SettingError) -> WiringError {
    match error {
        SettingError::Kernel(error) if error.is_not_found() => WiringError::NoBridgeNetfilter,
        other => other.into(),
    }
}

/// The node's end of a pod's link, as a port of the bridge.
pub(super) fn port(pod: &PodLink<'_>, index: u32, bridge: u32) -> Vec<Request<'static>> {
    let port = LinkChange::of(index, "the node's end").without_link_local();
    let entry = FdbEntry {
        link: index,
        mac: pod.mac,
        destination: None,
        permanent: true,
        of_master: true,
    };
    let mut requests = vec![port.apply_with_hairpin(), entry.replace()];
    // After the forwarding entry: see `strays`.
    let known = pod.addresses.iter();
    requests.extend(known.map(|address| Neighbour::permanent(bridge, *address, pod.mac).replace()));
    requests
}

/// Adds the addresses of the bridge's ports.
pub(super) fn addresses(
    node: &mut Netlink,
    links: &[Link],
    found: &mut LinksInKernel,
) -> Result<(), NetlinkError> {
    let Some(bridge) = node.link(BRIDGE)?.filter(is_ours) else {
        return Ok(());
    };
    let neighbours = node.neighbours(Some(bridge.index))?;
    for entry in node.fdb(None)? {
        let port = links.iter().find(|link| link.index == entry.link);
        let Some(addresses) = port.and_then(|link| found.get_mut(&link.name)) else {
            continue;
        };
        let of_port = neighbours
            .iter()
            .filter(|known| known.permanent && known.mac == Some(entry.mac));
        addresses.extend(of_port.map(|known| known.address));
    }
    Ok(())
}

/// What the bridge knows of pods whose ports are gone, or are those of `going`.
pub(super) fn strays(node: &mut Netlink, going: &[String]) -> Result<Vec<Request<'static>>, NetlinkError> {
    let Some(bridge) = node.link(BRIDGE)?.filter(is_ours) else {
        return Ok(Vec::new());
    };
    // In this order: an ADD that is at work makes the forwarding entry first, and the route.
    let neighbours = node.neighbours(Some(bridge.index))?;
    let proxies = node.proxy_neighbours(Some(bridge.index))?;
    let mut going_ports = Vec::new();
    for name in going {
        going_ports.extend(node.link(name)?.map(|link| link.index));
    }
    let routed = routed(node, &going_ports)?;
    let staying = node
        .fdb(None)?
        .into_iter()
        .filter(|entry| entry.permanent && !going_ports.contains(&entry.link));
    let staying: Vec<MacAddr> = staying.map(|entry| entry.mac).collect();
    let is_stray =
        |known: &&Neighbour| known.permanent && known.mac.is_some_and(|mac| !staying.contains(&mac));
    let known = neighbours.iter().filter(is_stray);
    let answered = proxies.iter().filter(|proxy| !routed.contains(&proxy.address));
    Ok(known.chain(answered).map(Neighbour::delete).collect())
}

/// Takes the bridge away, with `really`; says whether there is one of ours.
pub fn remove(really: bool) -> Result<bool, NetlinkError> {
    let mut node = Netlink::open()?;
    let Some(bridge) = node.link(BRIDGE)?.filter(is_ours) else {
        return Ok(false);
    };
    if really {
        node.request(bridge.delete())?;
    }
    Ok(true)
}

/// The range that an address is from.
pub(super) fn range_of(ranges: &[IpNet], address: IpAddr) -> Option<IpNet> {
    ranges.iter().find(|range| range.contains(&address)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_the_first_address_where_there_is_room_for_one() {
        let of = |range: &str| gateway(range.parse().unwrap()).map(|net| net.to_string());
        assert_eq!(of("10.244.1.0/24").as_deref(), Some("10.244.1.1/24"));
        assert_eq!(of("fd00:1::/64").as_deref(), Some("fd00:1::1/64"));
        assert_eq!(of("10.244.1.4/31"), None);
        assert_eq!(of("10.244.1.4/32"), None);
    }
}
