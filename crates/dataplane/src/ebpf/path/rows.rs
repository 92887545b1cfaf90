//! What is in the maps: who is on the path, rendered from a state and from where its things are in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::ops::Bound;

use ipnet::IpNet;
use podnet_core::NodeState;
use podnet_core::route::Hop;
use podnet_ebpf_abi::Address;
use podnet_ebpf_abi::packet::Tuple;
use podnet_ebpf_abi::path::{Pod, Range, Way};
use podnet_ebpf_abi::tunnel::{OVERHEAD, Tunnel};
use podnet_linux::MacAddr;
use podnet_linux::netlink::{
    Link, LinkKind, MAIN_TABLE, Neighbour, Netlink, NetlinkError, RouteFilter, RouteKind,
};

use crate::delta::Delta;
use crate::ebpf::EbpfError;
use crate::route::ROUTE_PROTOCOL;

/// The rows of all maps that are filled from outside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::ebpf) struct Rows {
    /// The pods that are on the path.
    pub(in crate::ebpf) pods: BTreeMap<Address, Pod>,
    /// All pods' ranges.
    pub(in crate::ebpf) ways: BTreeMap<Range, Way>,
    /// This node's end of the tunnel that programs put packets into.
    pub(in crate::ebpf) tunnel: Option<Tunnel>,
}

/// A row of one of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    Pod(Address, Pod),
    Way(Range, Way),
    Tunnel(Tunnel),
}

/// A change of one row, which is one call of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Put(Row),
    Remove(Row),
}

/// Where a state's things are in the kernel, as far as packets that go past the stack must know.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    pub(super) links: Vec<Link>,
    pub(super) neighbours: Vec<Neighbour>,
    /// By destination and next router.
    pub(super) routes: BTreeMap<(IpNet, IpAddr), u32>,
    pub(super) underlay: Underlay,
    pub(super) qdiscs: Qdiscs,
}

/// What the kernel has at links that programs which hand packets on would pass by. Nobody announces it to us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Qdiscs {
    /// Links with a queue that may hold packets back: a limit of ours, the reference plugin's, or somebody's who knows why.
    pub(super) queued: BTreeSet<u32>,
    /// Links where others may have filters.
    pub(super) filtered: BTreeSet<u32>,
}

impl Qdiscs {
    /// Of these links.
    pub(super) fn look(netlink: &mut Netlink, links: &BTreeSet<u32>) -> Result<Self, NetlinkError> {
        let mut qdiscs = netlink.qdiscs()?;
        qdiscs.retain(|qdisc| links.contains(&qdisc.link));
        let with = |is: &dyn Fn(&str) -> bool| -> BTreeSet<u32> {
            let such = qdiscs.iter().filter(|qdisc| is(&qdisc.kind));
            such.map(|qdisc| qdisc.link).collect()
        };
        Ok(Qdiscs {
            queued: with(&|kind| kind != "noqueue"),
            filtered: with(&|kind| ["ingress", "clsact"].contains(&kind)),
        })
    }
}

/// How the tunnel's other ends are reached: those to which one route leads, and it by one link. What it takes more to choose,
/// or to send, is for the kernel, packet by packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Underlay {
    /// This end.
    pub(super) tunnel: Option<Tunnel>,
    /// By their addresses.
    pub(super) ways: BTreeMap<IpAddr, Underway>,
}

/// The link by which one is reached, and the largest packet on the route where that says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Underway {
    pub(super) link: u32,
    pub(super) mtu: Option<u32>,
}

impl Underlay {
    /// To these nodes.
    pub(super) fn look(
        netlink: &mut Netlink,
        tunnel: Tunnel,
        nodes: &[IpAddr],
    ) -> Result<Self, NetlinkError> {
        let (source, port) = (tunnel.local.into(), u16::from_be_bytes(tunnel.port));
        let routes = netlink.routes_to(nodes, source, port)?;
        let ways = nodes.iter().zip(routes).filter_map(|(node, routes)| {
            let [route] = routes.as_slice() else { return None };
            let is_simple = route.kind == RouteKind::Unicast && !route.encapsulates;
            let link = route.link.filter(|_| is_simple)?;
            let mtu = route.mtu;
            Some((*node, Underway { link, mtu }))
        });
        Ok(Underlay {
            tunnel: Some(tunnel),
            ways: ways.collect(),
        })
    }

    /// So many of them, from the one after `last` on; from the first on where there is none any more.
    pub(super) fn some_after(&self, last: Option<IpAddr>, some: usize) -> Vec<(IpAddr, Underway)> {
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.ways.range((after, Bound::Unbounded)).take(some);
        let rest: Vec<_> = rest.map(|(node, way)| (*node, *way)).collect();
        match (rest.is_empty(), last) {
            (true, Some(_)) => self.some_after(None, some),
            _ => rest,
        }
    }
}

/// The programs that a link is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    /// Other nodes' tunnels are behind it.
    Underlay,
    /// Other nodes are behind it.
    Nodes,
    /// A pod is.
    Pod,
}

/// This node's end of the tunnel, where programs can do what its device does: see [`podnet_ebpf_abi::tunnel`]. What a node's
/// hardware sums up wrongly inside the tunnel, the device sums up itself.
fn tunnel(state: &NodeState) -> Option<Tunnel> {
    let tunnel = state.routing.tunnel.as_ref()?;
    let is_for_programs = tunnel.local.is_ipv4() && tunnel.checksum_offload;
    let (vxlan, local) = (tunnel.vxlan, tunnel.local.into());
    is_for_programs.then(|| Tunnel::new(local, vxlan.vni, vxlan.port, tunnel.mac.0))
}

impl Places {
    /// As the kernel has them in the network namespace of the calling thread.
    pub(super) fn look(state: &NodeState) -> Result<Self, EbpfError> {
        let mut netlink = Netlink::open()?;
        let filter = RouteFilter {
            protocol: Some(ROUTE_PROTOCOL),
            table: Some(MAIN_TABLE),
            ..RouteFilter::default()
        };
        let mut links = netlink.links()?;
        let routes = netlink.routes(filter)?.into_iter();
        let routes = routes.filter_map(|route| Some(((route.destination, route.via?), route.link?)));
        let routes: BTreeMap<_, _> = routes.collect();
        let underlay = match tunnel(state) {
            Some(tunnel) => {
                let ends: Vec<IpAddr> = state.routing.forwarding.values().copied().collect();
                Underlay::look(&mut netlink, tunnel, &ends)?
            }
            None => Underlay::default(),
        };
        let mut wanted: BTreeSet<u32> = routes.values().copied().collect();
        wanted.extend(underlay.ways.values().map(|way| way.link));
        let names: BTreeSet<&str> = state.links().map(|(name, _)| name).collect();
        let of_pods = links.iter().filter(|link| names.contains(link.name.as_str()));
        wanted.extend(of_pods.map(|link| link.index));
        links.retain(|link| wanted.contains(&link.index));
        let qdiscs = Qdiscs::look(&mut netlink, &wanted)?;
        Ok(Places {
            links,
            neighbours: netlink.neighbours(None)?,
            routes,
            underlay,
            qdiscs,
        })
    }

    /// Has nobody go by links that have no programs yet.
    pub(super) fn leave_out(&mut self, links: &BTreeSet<u32>) {
        self.links.retain(|link| !links.contains(&link.index));
    }

    /// The links that it is about.
    pub(super) fn indices(&self) -> BTreeSet<u32> {
        self.links.iter().map(|link| link.index).collect()
    }

    /// The links that programs are at, by their indices.
    pub(super) fn attachments(&self, state: &NodeState) -> BTreeMap<u32, Side> {
        let pods = state.links().filter_map(|(name, _)| self.pair(name));
        let nodes = state
            .routing
            .routes
            .iter()
            .filter_map(|(net, hop)| self.way(state, *net, *hop));
        let nodes = nodes.flat_map(|way| [(way.underlay, Side::Underlay), (way.link, Side::Nodes)]);
        let pods = pods.map(|link| (link.index, Side::Pod));
        let mut attachments = BTreeMap::new();
        for (link, side) in nodes.filter(|(link, _)| *link != 0).chain(pods) {
            let have = attachments.entry(link).or_insert(side);
            *have = side.max(*have);
        }
        attachments
    }

    /// The node's end of a pod's link.
    fn pair(&self, name: &str) -> Option<&Link> {
        let is_pair = |link: &&Link| matches!(link.kind, LinkKind::Veth | LinkKind::Netkit);
        self.links.iter().filter(is_pair).find(|link| link.name == name)
    }

    fn pod(&self, link: &Link, address: IpAddr) -> Option<Pod> {
        if self.qdiscs.queued.contains(&link.index) || link.master.is_some() {
            return None;
        }
        let known = |of: &&Neighbour| of.permanent && of.link == link.index && of.address == address;
        let MacAddr(mac) = self.neighbours.iter().find(known)?.mac?;
        let MacAddr(gateway) = link.mac?;
        Some(Pod::new(link.index, link.mtu, mac, gateway))
    }

    /// None for what is no pods' range.
    fn way(&self, state: &NodeState, net: IpNet, hop: Hop) -> Option<Way> {
        let router = match hop {
            Hop::Sink => return None,
            Hop::Unreachable => return Some(Way::HERE),
            Hop::Tunnel(router) | Hop::Via(router) => router,
        };
        // What the kernel has otherwise, or not yet, is the stack's.
        let link = self.link(self.routes.get(&(net, router)));
        let mtu = |link: &Link| {
            state
                .routing
                .path_mtu
                .get(&net)
                .map_or(link.mtu, |mtu| link.mtu.min(*mtu))
        };
        let Some(link) = link else {
            return Some(Way::HERE);
        };
        let way = Way::by(link.index, mtu(link), router.into());
        Some(match hop {
            Hop::Tunnel(_) => self.inside(state, way, router).unwrap_or(way),
            _ => way,
        })
    }

    /// A way that programs put packets into the tunnel for.
    fn inside(&self, state: &NodeState, way: Way, router: IpAddr) -> Option<Way> {
        tunnel(state)?;
        let mac = state.routing.neighbours.get(&router)?;
        let node = state.routing.forwarding.get(mac)?;
        let under = self.underlay.ways.get(node)?;
        let link = self.link(Some(&under.link))?;
        let least = under.mtu.map_or(link.mtu, |mtu| link.mtu.min(mtu));
        let mtu = way.mtu.min(least.saturating_sub(OVERHEAD as u32));
        let way = Way::by(way.link, mtu, way.router);
        Some(way.inside(link.index, (*node).into(), mac.0))
    }

    /// One to other nodes that programs can be at: with Ethernet headers, and without others' filters.
    fn link(&self, index: Option<&u32>) -> Option<&Link> {
        let is_open = |link: &&Link| link.mac.is_some() && !self.qdiscs.filtered.contains(&link.index);
        let link = self.links.iter().find(|link| Some(&link.index) == index);
        link.filter(is_open)
    }
}

/// A service's address, which the table knows something else of than a pod's.
fn sunk(state: &NodeState) -> impl Iterator<Item = &IpNet> {
    let routes = state.routing.routes.iter();
    routes.filter(|(_, hop)| **hop == Hop::Sink).map(|(net, _)| net)
}

fn range(net: &IpNet) -> Range {
    Range::new(net.network().into(), net.prefix_len())
}

impl Rows {
    /// Of a state.
    pub(super) fn of(state: &NodeState, places: &Places) -> Self {
        let routes = state.routing.routes.iter();
        let ways = routes.filter_map(|(net, hop)| Some((range(net), places.way(state, *net, *hop)?)));
        let mut rows = Rows {
            ways: ways.collect(),
            ..Rows::default()
        };
        // One in a pods' range leads nobody to that pod, or past this node's table.
        let lengths = rows.lengths();
        let borrowed = sunk(state).filter(|net| rows.is_within(&lengths, &net.addr().into()));
        let borrowed: Vec<Range> = borrowed.map(range).collect();
        let is_borrowed = |address: &IpAddr| borrowed.contains(&range(&IpNet::from(*address)));
        let policed = state.policy.addresses();
        let is_open = |address: &&IpAddr| {
            let is_in_range = rows.is_within(&lengths, &Address::from(**address));
            is_in_range && !policed.contains(*address) && !is_borrowed(address)
        };
        let links = state
            .links()
            .filter_map(|(name, addresses)| Some((places.pair(name)?, addresses)));
        let pods = links.flat_map(|(link, addresses)| {
            let open = addresses.iter().filter(is_open);
            open.filter_map(|address| Some((Address::from(*address), places.pod(link, *address)?)))
        });
        rows.pods = pods.collect();
        rows.tunnel = tunnel(state).filter(|_| rows.ways.values().any(|way| way.underlay != 0));
        rows.ways
            .extend(borrowed.into_iter().map(|range| (range, Way::HERE)));
        rows
    }

    /// How long ranges are, in bits.
    pub(super) fn lengths(&self) -> BTreeSet<u32> {
        self.ways.keys().map(|range| range.length).collect()
    }

    pub(super) fn is_within(&self, lengths: &BTreeSet<u32>, address: &Address) -> bool {
        let mut ranges = lengths.iter().map(|length| Range::around(*address, *length));
        ranges.any(|range| self.ways.contains_key(&range))
    }

    /// Whether both ends of a flow are in pods' ranges.
    pub(super) fn are_pods(&self, lengths: &BTreeSet<u32>, flow: &Tuple) -> bool {
        self.is_within(lengths, &flow.source) && self.is_within(lengths, &flow.destination)
    }

    /// Whether a flow between these ends goes past the stack.
    pub(super) fn leads(&self, lengths: &BTreeSet<u32>, flow: &Tuple) -> bool {
        let is_on = |address| self.pods.contains_key(address);
        let way = |address: &Address| {
            let mut ranges = lengths
                .iter()
                .rev()
                .map(|length| Range::around(*address, *length));
            ranges.find_map(|range| self.ways.get(&range))
        };
        let is_there = |address| way(address).is_some_and(|way| way.link != 0);
        match (is_on(&flow.source), is_on(&flow.destination)) {
            (true, true) => true,
            (true, false) => is_there(&flow.destination),
            (false, true) => is_there(&flow.source),
            (false, false) => false,
        }
    }

    /// Whether a row is among them.
    pub(super) fn has(&self, row: &Row) -> bool {
        match row {
            Row::Pod(address, pod) => self.pods.get(address) == Some(pod),
            Row::Way(range, way) => self.ways.get(range) == Some(way),
            Row::Tunnel(tunnel) => self.tunnel == Some(*tunnel),
        }
    }

    /// Without some pods.
    pub(super) fn without(&self, addresses: &BTreeSet<Address>) -> Self {
        let mut rest = self.clone();
        rest.pods.retain(|address, _| !addresses.contains(address));
        rest
    }

    /// How `have` becomes `self`: whoever goes is off the path first, ranges are known before anybody is on it, and the tunnel
    /// is there as long as anybody leads into it.
    pub(super) fn steps_from(&self, have: &Rows) -> Vec<Step> {
        let pods = Delta::between(&self.pods, &have.pods);
        let ways = Delta::between(&self.ways, &have.ways);
        let gone = pods
            .remove
            .iter()
            .map(|(address, pod)| Step::Remove(Row::Pod(**address, **pod)));
        let left = ways
            .remove
            .iter()
            .map(|(range, way)| Step::Remove(Row::Way(**range, **way)));
        let put_way = |(range, way): (&Range, &Way)| Step::Put(Row::Way(*range, *way));
        let here = ways.set().filter(|(_, way)| way.link == 0).map(put_way);
        let there = ways.set().filter(|(_, way)| way.link != 0).map(put_way);
        let come = pods
            .set()
            .map(|(address, pod)| Step::Put(Row::Pod(*address, *pod)));
        let is_other = self.tunnel != have.tunnel;
        let begun = self
            .tunnel
            .filter(|_| is_other)
            .map(|tunnel| Step::Put(Row::Tunnel(tunnel)));
        let ended = have.tunnel.filter(|_| self.tunnel.is_none());
        let ended = ended.map(|tunnel| Step::Remove(Row::Tunnel(tunnel)));
        let ranges = here.chain(begun).chain(there).chain(left).chain(ended);
        gone.chain(ranges).chain(come).collect()
    }

    /// The rows after a step.
    pub(super) fn take(&mut self, step: &Step) {
        match *step {
            Step::Put(Row::Pod(address, pod)) => drop(self.pods.insert(address, pod)),
            Step::Put(Row::Way(range, way)) => drop(self.ways.insert(range, way)),
            Step::Remove(Row::Pod(address, _)) => drop(self.pods.remove(&address)),
            Step::Remove(Row::Way(range, _)) => drop(self.ways.remove(&range)),
            Step::Put(Row::Tunnel(tunnel)) => self.tunnel = Some(tunnel),
            Step::Remove(Row::Tunnel(_)) => self.tunnel = None,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Row::Pod(address, pod) => {
                let (address, mac) = (IpAddr::from(*address), MacAddr(pod.mac));
                write!(
                    f,
                    "pod {address} at {mac} behind link {} mtu {}",
                    pod.link, pod.mtu
                )
            }
            Row::Way(range, way) => {
                let address = IpAddr::from(range.address);
                let above = if address.is_ipv4() { 96 } else { 0 };
                write!(f, "range {address}/{}", range.length.saturating_sub(above))?;
                let router = IpAddr::from(way.router);
                match (way.link, way.underlay) {
                    (0, _) => write!(f, " here"),
                    (link, 0) => write!(f, " via {router} by link {link} mtu {}", way.mtu),
                    (device, link) => {
                        let mac = MacAddr(way.mac);
                        write!(
                            f,
                            " in the tunnel to {router} by link {link}, or {device}, at {mac} mtu {}",
                            way.mtu
                        )
                    }
                }
            }
            Row::Tunnel(tunnel) => {
                let (local, mac) = (IpAddr::from(tunnel.local), MacAddr(tunnel.mac));
                let (vni, port) = (
                    u32::from_be_bytes(tunnel.vni) >> 8,
                    u16::from_be_bytes(tunnel.port),
                );
                write!(f, "tunnel vni {vni} port {port} from {local} at {mac}")
            }
        }
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pods = self.pods.iter().map(|(address, pod)| Row::Pod(*address, *pod));
        let ways = self.ways.iter().map(|(range, way)| Row::Way(*range, *way));
        let tunnel = self.tunnel.map(Row::Tunnel);
        pods.chain(ways)
            .chain(tunnel)
            .try_for_each(|row| writeln!(f, "{row}"))
    }
}
