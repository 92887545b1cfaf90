//! A pod's link: a veth pair, one end in the pod, the other on the node.
//!
//! The pod's end has its addresses with all bits of prefix, so that nothing is on its link but a router with a
//! link-local address ([`GATEWAY_V4`], [`GATEWAY_V6`]), and both ends know each other's Ethernet address from
//! permanent neighbour entries: no ARP, no NDP, no bridge, no duplicate address detection. The node routes the
//! pod's addresses to its end.
//!
//! That is [`Mode::Routed`]. [`Mode::Bridged`] puts all pods on one bridge instead.
//!
//! Names and Ethernet addresses follow from the attachment, so that whoever knows it finds the link.

mod bridge;
mod shaping;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podnet_cni::{Attachment, Bandwidth, HOST_LINK_PREFIX};
use podnet_dataplane::{SettingError, Settings};
use podnet_linux::MacAddr;
use podnet_linux::netlink::{
    Address, AddressFlags, Link, LinkChange, LinkKind, Neighbour, Netlink, NetlinkError, NewLink,
    NewLinkKind, Request, Route, RouteFilter, TokenBucket, VethPeer,
};
use podnet_linux::ns::{Kind, Namespace};
use podnet_linux::sysctl::{self, SysctlError};

use crate::ipam::LinksInKernel;
pub use bridge::{BRIDGE, remove as remove_bridge};

/// The pods' router: an address that no other machine has, since every node's is this one.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The pods' IPv6 router.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The protocol number of the node's routes to its own pods; those to other nodes have the data plane's.
pub const POD_ROUTE_PROTOCOL: u8 = 113;
/// The group of links that are being deleted together ("podn").
const DOOMED: u32 = 0x706f_646e;
/// The protocol of the routes in the pod, `RTPROT_BOOT` as `ip route add` has it: they are the pod's own.
const BOOT_PROTOCOL: u8 = 3;
// The wiring and the data plane each remove routes of their own number that nobody wants.
const _: () = assert!(POD_ROUTE_PROTOCOL != podnet_dataplane::route::ROUTE_PROTOCOL);
const _: () =
    assert!(POD_ROUTE_PROTOCOL != BOOT_PROTOCOL && podnet_dataplane::route::ROUTE_PROTOCOL != BOOT_PROTOCOL);
const LOOPBACK: u32 = 1;

/// Why a pod could not be wired, or unwired.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// The pod has an interface of that name.
    #[error("the container's network namespace already has an interface called {0}")]
    InterfaceExists(String),
    /// The descriptor is no network namespace.
    #[error("CNI_NETNS is no network namespace: {0}")]
    NotANamespace(io::Error),
    /// The namespace is the node's.
    #[error("CNI_NETNS is the node's own network namespace; a pod on the host's network needs no CNI")]
    NodeNamespace,
    /// There is a bridge of that name that podnet did not make.
    #[error("there is a link {BRIDGE} which podnet did not make; remove it, or choose --wiring ptp")]
    ForeignBridge,
    /// Frames between ports of a bridge do not meet the firewall.
    #[error(
        "the kernel has no net.bridge settings, without which services fail between pods of one bridge; load the module br_netfilter"
    )]
    NoBridgeNetfilter,
    /// Links of a kind that the kernel does not have.
    #[error(
        "the kernel has no netkit links, which are of Linux 6.7 and CONFIG_NETKIT; choose the wiring ptp or auto"
    )]
    NoNetkit,
    /// A range of one or two addresses.
    #[error("the range {0} has no room for a bridge's gateway; choose --wiring ptp or a larger range")]
    NoRoomForGateway(IpNet),
    /// An address that is on no bridge.
    #[error(
        "the address {0} is in none of this node's ranges, and a bridge has no others; choose --wiring ptp"
    )]
    NotOnBridge(IpAddr),
    /// The kernel took all of it, but did not finish.
    #[error("the pod's link or its IPv6 address is not ready after {0:?}; the node is overloaded, try again")]
    NotReady(Duration),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A setting of the pod's, or of a link of ours, could not be made.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// A setting of the node could not be made.
    #[error(transparent)]
    NodeSetting(#[from] SettingError),
}

/// Why an ADD failed, and what it left.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct AttachError {
    /// The cause.
    pub cause: WiringError,
    /// The link, and with it the routes to the pod's addresses, may still be there: it could not be deleted.
    pub link_left: bool,
}

impl From<WiringError> for AttachError {
    fn from(cause: WiringError) -> Self {
        AttachError {
            cause,
            link_left: false,
        }
    }
}

/// How pods are wired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Each by a link of its own, to which the node routes.
    Routed(Pair),
    /// All on a bridge, with addresses from these ranges.
    Bridged(Vec<IpNet>),
}

/// The kind of a routed pod's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pair {
    /// A veth pair.
    Veth,
    /// A netkit pair (Linux 6.7).
    Netkit,
}

impl Pair {
    /// Netkit where this kernel has it: tried once, in a namespace that is gone at once.
    pub fn probe() -> Pair {
        static FOUND: OnceLock<Pair> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let tried = Namespace::create(Kind::Net).ok().and_then(|scratch| {
                let pair = NewLink::new("a", Pair::Netkit.kind("b", None, None));
                Netlink::open_in(&scratch).ok()?.request(pair.create()).ok()
            });
            if tried.is_some() { Pair::Netkit } else { Pair::Veth }
        })
    }

    fn kind<'fd>(
        self,
        name: &str,
        mac: Option<MacAddr>,
        namespace: Option<BorrowedFd<'fd>>,
    ) -> NewLinkKind<'fd> {
        let peer = VethPeer {
            name: name.into(),
            mac,
            namespace,
        };
        match self {
            Pair::Veth => NewLinkKind::Veth(peer),
            Pair::Netkit => NewLinkKind::Netkit(peer),
        }
    }
}

/// What is to be wired.
#[derive(Debug)]
pub struct PodLink<'a> {
    /// Which interface of which container.
    pub attachment: &'a Attachment,
    /// The pod's addresses.
    pub addresses: &'a [IpAddr],
    /// Largest packet in bytes.
    pub mtu: u32,
    /// The Ethernet address of the pod's end.
    pub mac: MacAddr,
    /// How.
    pub mode: &'a Mode,
    /// Limits on its traffic.
    pub bandwidth: Bandwidth,
    /// It has host ports that the node reaches on 127.0.0.1.
    pub on_loopback: bool,
    /// More destinations, each by a router of its own or by the pods' one.
    pub routes: &'a [(IpNet, Option<IpAddr>)],
    /// Settings of its network namespace, by their paths below /proc/sys.
    pub sysctls: &'a BTreeMap<String, String>,
    /// The node's settings.
    pub settings: &'a Settings,
}

impl PodLink<'_> {
    /// An address as its link has it.
    pub fn own(&self, address: IpAddr) -> Result<IpNet, WiringError> {
        let Mode::Bridged(ranges) = self.mode else {
            return Ok(address.into());
        };
        let range = bridge::range_of(ranges, address).ok_or(WiringError::NotOnBridge(address))?;
        Ok(IpNet::new(address, range.prefix_len()).unwrap_or(range))
    }

    /// The router of an address's family.
    pub fn gateway(&self, address: IpAddr) -> IpAddr {
        let on_bridge = match self.mode {
            Mode::Bridged(ranges) => bridge::range_of(ranges, address).and_then(bridge::gateway),
            Mode::Routed(_) => None,
        };
        match (on_bridge, address) {
            (Some(net), _) => net.addr(),
            (None, IpAddr::V4(_)) => GATEWAY_V4.into(),
            (None, IpAddr::V6(_)) => GATEWAY_V6.into(),
        }
    }

    /// The Ethernet address of its router.
    pub fn gateway_mac(&self) -> MacAddr {
        match self.mode {
            Mode::Routed(_) => self.attachment.host_mac(),
            Mode::Bridged(_) => bridge::MAC,
        }
    }
}

/// Wires a pod. When it fails, nothing is left of it, unless the error says so.
///
/// Works in the caller's network namespace, which must be the node's, and visits the pod's on a thread of its own.
pub fn attach(pod: &PodLink<'_>, namespace: &Namespace) -> Result<(), AttachError> {
    let node_inode = Namespace::current(Kind::Net)
        .and_then(|node| node.inode())
        .map_err(WiringError::NotANamespace)?;
    if namespace.inode().map_err(WiringError::NotANamespace)? == node_inode {
        return Err(WiringError::NodeNamespace.into());
    }
    let mut node = Netlink::open().map_err(WiringError::from)?;
    let wired = create(&mut node, pod, namespace).and_then(|ends| connect(&mut node, pod, namespace, &ends));
    wired.map_err(|cause| {
        // Then nothing was made.
        let untouched = matches!(cause, WiringError::InterfaceExists(_));
        let link_left = !untouched && !is_taken_back(pod);
        AttachError { cause, link_left }
    })
}

/// Takes away what a failed ADD made; false when that failed too.
fn is_taken_back(pod: &PodLink<'_>) -> bool {
    let link = pod.attachment.host_link();
    // On a socket of its own: the other one may be what failed.
    match remove(std::slice::from_ref(&link)) {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(%error, link, "a link of a failed ADD is left for now");
            false
        }
    }
}

fn create(node: &mut Netlink, pod: &PodLink<'_>, namespace: &Namespace) -> Result<Ends, WiringError> {
    let name = pod.attachment.host_link();
    let (kind, bridge) = match pod.mode {
        Mode::Routed(kind) => (*kind, None),
        Mode::Bridged(ranges) => (Pair::Veth, Some(bridge::ensure(node, ranges, pod)?)),
    };
    let kind = kind.kind(pod.attachment.ifname(), Some(pod.mac), Some(namespace.as_fd()));
    let pair = NewLink {
        mtu: Some(pod.mtu),
        mac: Some(pod.attachment.host_mac()),
        master: bridge.as_ref().map(|bridge| bridge.index),
        up: true,
        ..NewLink::new(&name, kind)
    };
    let bridge = bridge.map(|bridge| bridge.index);
    match node.apply_and_get([pair.create()], &name) {
        Ok(link) => Ok(Ends { link, bridge }),
        Err(error) if error.is_exists() => {
            let ifname = pod.attachment.ifname();
            if Netlink::open_in(namespace)?.link(ifname)?.is_some() {
                return Err(WiringError::InterfaceExists(ifname.into()));
            }
            // The name is this attachment's alone, and it had no lease: the link is what a crash left.
            node.request(LinkChange::named(&name).delete())?;
            let link = node.apply_and_get([pair.create()], &name)?;
            Ok(Ends { link, bridge })
        }
        Err(error) => {
            // The kernel's word for a descriptor of something else is only "invalid argument".
            namespace.run(|| ()).map_err(WiringError::NotANamespace)?;
            if *pod.mode == Mode::Routed(Pair::Netkit) && Pair::probe() == Pair::Veth {
                return Err(WiringError::NoNetkit);
            }
            Err(error.into())
        }
    }
}

/// The node's end of a pair, and the bridge that it is a port of.
struct Ends {
    link: Link,
    bridge: Option<u32>,
}

fn connect(
    node: &mut Netlink,
    pod: &PodLink<'_>,
    namespace: &Namespace,
    ends: &Ends,
) -> Result<(), WiringError> {
    let link = &ends.link;
    let mut requests = match ends.bridge {
        None => node_requests(pod, link.index),
        Some(bridge) => bridge::port(pod, link.index, bridge),
    };
    let limit = pod.bandwidth.ingress.as_ref();
    requests.extend(limit.map(|limit| shaping::bucket(link.index, limit).replace()));
    node.apply(requests)?;
    if ends.bridge.is_none() {
        // After the routes: see `bridge::ensure`.
        bridge::answer_for(node, pod.addresses)?;
    }
    if pod.on_loopback {
        let by = ends.bridge.map_or(link.name.as_str(), |_| BRIDGE);
        // Only answers come in by it: see the data plane's loopback-guard.
        sysctl::ensure(&format!("net/ipv4/conf/{by}/route_localnet"), "1")?;
    }
    let pod_index = link.lower.unwrap_or_default();
    namespace
        .run(|| configure_pod(pod, pod_index))
        .map_err(WiringError::NotANamespace)??;
    until_running(node, link.index)
}

/// The node's end: what is needed before the pod's end comes up, and with it the carrier.
fn node_requests(pod: &PodLink<'_>, index: u32) -> Vec<Request<'static>> {
    let mut requests = Vec::new();
    if pod.addresses.iter().any(IpAddr::is_ipv6) {
        requests.push(
            LinkChange::of(index, "the node's end")
                .without_link_local()
                .apply(),
        );
        let mut gateway = Address::new(index, Ipv6Net::new_assert(GATEWAY_V6, 64).into());
        gateway.flags = AddressFlags {
            nodad: true,
            noprefixroute: true,
        };
        requests.push(gateway.replace());
    }
    for address in pod.addresses {
        requests.push(Neighbour::permanent(index, *address, pod.mac).replace());
        requests.push(Route::on_link(IpNet::from(*address), index, POD_ROUTE_PROTOCOL).replace());
    }
    requests
}

/// The pod's end, from within the pod's namespace.
fn configure_pod(pod: &PodLink<'_>, index: u32) -> Result<(), WiringError> {
    let ifname = pod.attachment.ifname();
    quiet_ipv6(ifname, pod.addresses.iter().any(IpAddr::is_ipv6))?;
    let mut requests = vec![
        LinkChange::of(LOOPBACK, "lo").up(true).apply(),
        LinkChange::of(index, ifname).up(true).apply(),
    ];
    for address in pod.addresses {
        let mut own = Address::new(index, pod.own(*address)?);
        own.flags = AddressFlags {
            nodad: address.is_ipv6(),
            noprefixroute: matches!(pod.mode, Mode::Routed(_)),
        };
        requests.push(own.add());
    }
    for address in pod.addresses {
        let gateway = pod.gateway(*address);
        let all: IpNet = match address {
            IpAddr::V4(_) => Ipv4Net::default().into(),
            IpAddr::V6(_) => Ipv6Net::default().into(),
        };
        requests.push(Neighbour::permanent(index, gateway, pod.gateway_mac()).replace());
        requests.push(pod_route(all, gateway, index).add());
        let same_family = |(to, _): &&(IpNet, _)| to.addr().is_ipv4() == address.is_ipv4();
        let more = pod.routes.iter().filter(same_family);
        requests.extend(more.map(|(to, by)| pod_route(*to, by.unwrap_or(gateway), index).add()));
    }
    let limit = pod.bandwidth.egress.as_ref();
    requests.extend(limit.map(|limit| shaping::bucket(index, limit).replace()));
    let mut netlink = Netlink::open()?;
    netlink.apply(requests)?;
    for (key, value) in pod.sysctls {
        sysctl::set(key, value)?;
    }
    until_running(&mut netlink, index)?;
    match pod.addresses.iter().any(IpAddr::is_ipv6) {
        true => until_ready(|| Ok(!netlink.is_tentative(index)?)),
        false => Ok(()),
    }
}

/// A route in the pod. Its router is on the link, whatever the addresses say.
fn pod_route(to: IpNet, router: IpAddr, index: u32) -> Route {
    Route {
        onlink: to.addr().is_ipv4(),
        ..Route::via(to, router, Some(index), BOOT_PROTOCOL)
    }
}

/// Whether a pod's limits are in force as ADD put them there; says which one is not.
pub fn check_limits(
    attachment: &Attachment,
    limits: &Bandwidth,
    namespace: Option<&Namespace>,
) -> Result<Result<(), &'static str>, WiringError> {
    let holds = |netlink: &mut Netlink, name: &str, limit| -> Result<bool, NetlinkError> {
        let Some(link) = netlink.link(name)? else {
            return Ok(false);
        };
        let wanted = shaping::bucket(link.index, limit);
        let found = netlink.token_buckets()?;
        let agrees = |found: &TokenBucket| found.link == wanted.link && shaping::agrees(&wanted, found);
        Ok(found.iter().any(agrees))
    };
    if let Some(limit) = &limits.ingress
        && !holds(&mut Netlink::open()?, &attachment.host_link(), limit)?
    {
        return Ok(Err("ingress"));
    }
    if let (Some(limit), Some(namespace)) = (&limits.egress, namespace)
        && !holds(&mut Netlink::open_in(namespace)?, attachment.ifname(), limit)?
    {
        return Ok(Err("egress"));
    }
    Ok(Ok(()))
}

/// The pod listens to no router advertisements, and its addresses are nobody else's, so that there is no need to
/// look for duplicates. Without IPv6 on the pod, a kernel without IPv6 is fine.
fn quiet_ipv6(ifname: &str, wanted: bool) -> Result<(), SysctlError> {
    let mut settings = vec![("accept_ra", "0"), ("accept_dad", "0")];
    if wanted {
        // Some runtimes switch IPv6 off in the namespaces they make.
        settings.insert(0, ("disable_ipv6", "0"));
    }
    for (key, value) in settings {
        match sysctl::ensure(&format!("net/ipv6/conf/{ifname}/{key}"), value) {
            Err(error) if !wanted && error.is_not_found() => {}
            other => other?,
        }
    }
    Ok(())
}

/// The carrier is there when both ends are up, but the kernel notes it a moment later, of each end by itself, and drops what
/// is sent by that end until then. Since Linux 6.8 asking for the link settles it.
fn until_running(netlink: &mut Netlink, link: u32) -> Result<(), WiringError> {
    until_ready(|| Ok(netlink.link_by_index(link)?.is_none_or(|link| link.running)))
}

/// Waits for what the kernel finishes by itself a moment after it was asked, and without which the pod's first packets
/// would be lost. That moment is long only where very many links are made and taken away.
fn until_ready(mut is_ready: impl FnMut() -> Result<bool, NetlinkError>) -> Result<(), WiringError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const PAUSE: Duration = Duration::from_micros(500);
    let end = Instant::now() + PATIENCE;
    while !is_ready()? {
        if Instant::now() > end {
            return Err(WiringError::NotReady(PATIENCE));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Takes links away, all at once: the kernel takes 20 to 40 ms to let go of a link, or of many together.
///
/// Those that are not there are no error. Goes on after an error and reports the first.
pub fn remove(links: &[String]) -> Result<(), NetlinkError> {
    let mut node = Netlink::open()?;
    let strays = bridge::strays(&mut node, links)?;
    let doom = |name: &String| LinkChange::named(name).group(DOOMED).apply();
    let mut outcomes = match links {
        [only] => node.apply_each([LinkChange::named(only).delete()])?,
        _ => {
            let mut outcomes = node.apply_each(links.iter().map(doom))?;
            outcomes.extend(node.apply_each([LinkChange::group_members(DOOMED).delete()])?);
            outcomes
        }
    };
    outcomes.extend(node.apply_each(strays)?);
    outcomes.retain(|outcome| outcome.as_ref().is_err_and(|error| !error.is_not_found()));
    outcomes.into_iter().next().unwrap_or(Ok(()))
}

/// The node's ends of pods' links, and the addresses routed to them.
pub fn in_kernel() -> Result<LinksInKernel, NetlinkError> {
    let mut node = Netlink::open()?;
    let links: Vec<Link> = node.links()?.into_iter().filter(is_pod_link).collect();
    let mut found: LinksInKernel = links.iter().map(|link| (link.name.clone(), Vec::new())).collect();
    let filter = RouteFilter {
        protocol: Some(POD_ROUTE_PROTOCOL),
        ..RouteFilter::default()
    };
    for route in node.routes(filter)? {
        let link = links.iter().find(|link| Some(link.index) == route.link);
        if let Some(addresses) = link.and_then(|link| found.get_mut(&link.name))
            && route.destination.prefix_len() == route.destination.max_prefix_len()
        {
            addresses.push(route.destination.addr());
        }
    }
    bridge::addresses(&mut node, &links, &mut found)?;
    Ok(found)
}

fn is_pod_link(link: &Link) -> bool {
    let hash = link.name.strip_prefix(HOST_LINK_PREFIX);
    matches!(link.kind, LinkKind::Veth | LinkKind::Netkit)
        && hash.is_some_and(|hash| hash.len() == 15 - HOST_LINK_PREFIX.len())
}
