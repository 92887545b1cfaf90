//! Routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
    RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError, Request, wire};

/// The table of ordinary routes.
pub const MAIN_TABLE: u32 = libc::RT_TABLE_MAIN as u32;

/// How far a destination is (`ip route` calls it scope).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scope {
    /// Anywhere.
    #[default]
    Universe,
    /// On a link of this machine.
    Link,
    /// This machine.
    Host,
    /// Another one, by the kernel's number.
    Other(u8),
}

impl From<u8> for Scope {
    fn from(number: u8) -> Self {
        match number {
            libc::RT_SCOPE_UNIVERSE => Scope::Universe,
            libc::RT_SCOPE_LINK => Scope::Link,
            libc::RT_SCOPE_HOST => Scope::Host,
            other => Scope::Other(other),
        }
    }
}

impl From<Scope> for u8 {
    fn from(scope: Scope) -> u8 {
        match scope {
            Scope::Universe => libc::RT_SCOPE_UNIVERSE,
            Scope::Link => libc::RT_SCOPE_LINK,
            Scope::Host => libc::RT_SCOPE_HOST,
            Scope::Other(other) => other,
        }
    }
}

/// What happens to the packets of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RouteKind {
    /// They are sent on.
    #[default]
    Unicast,
    /// They are for this machine.
    Local,
    /// They are dropped in silence.
    Blackhole,
    /// They are dropped, and the sender is told that the host is unreachable.
    Unreachable,
    /// They are dropped, and the sender is told that it is forbidden.
    Prohibit,
    /// Something else, by the kernel's number.
    Other(u8),
}

impl From<u8> for RouteKind {
    fn from(number: u8) -> Self {
        match number {
            libc::RTN_UNICAST => RouteKind::Unicast,
            libc::RTN_LOCAL => RouteKind::Local,
            libc::RTN_BLACKHOLE => RouteKind::Blackhole,
            libc::RTN_UNREACHABLE => RouteKind::Unreachable,
            libc::RTN_PROHIBIT => RouteKind::Prohibit,
            other => RouteKind::Other(other),
        }
    }
}

impl From<RouteKind> for u8 {
    fn from(kind: RouteKind) -> u8 {
        match kind {
            RouteKind::Unicast => libc::RTN_UNICAST,
            RouteKind::Local => libc::RTN_LOCAL,
            RouteKind::Blackhole => libc::RTN_BLACKHOLE,
            RouteKind::Unreachable => libc::RTN_UNREACHABLE,
            RouteKind::Prohibit => libc::RTN_PROHIBIT,
            RouteKind::Other(other) => other,
        }
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// What happens to the packets.
    pub kind: RouteKind,
    /// The next router. Of the other family only as IPv6 router of an IPv4 route.
    pub via: Option<IpAddr>,
    /// Index of the link the packets leave by.
    pub link: Option<u32>,
    /// The next router is on the link, whatever the addresses say.
    pub onlink: bool,
    /// How far the destination is (IPv4 only).
    pub scope: Scope,
    /// Who made the route (`RTPROT_*`).
    pub protocol: u8,
    /// The table it is in.
    pub table: u32,
    /// Among routes to one destination the lowest wins. The kernel gives IPv6 routes 1024 if none is chosen.
    pub metric: Option<u32>,
    /// Source address of packets that this machine sends.
    pub source: Option<IpAddr>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// The size holds for forwarded IPv6 packets too, and for IPv4 it forbids path MTU discovery.
    pub mtu_lock: bool,
    /// It puts something around packets (`ip route ... encap`); this is read, and never written.
    pub encapsulates: bool,
}

// Attribute numbers of include/uapi/linux/rtnetlink.h.
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const RTA_IP_PROTO: u16 = 27;
const RTA_DPORT: u16 = 29;
const RTAX_LOCK: u16 = 1;
const RTAX_MTU: u16 = 2;
const RTM_F_CLONED: u32 = 0x200;
/// Length of `struct rtmsg`.
const HEADER: usize = 12;
/// Length of `struct rtnexthop`.
const NEXT_HOP: usize = 8;

/// Which routes to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteFilter {
    /// In this table only; in all tables if none is given.
    pub table: Option<u32>,
    /// Made by this protocol only.
    pub protocol: Option<u8>,
    /// Leaving by this link only.
    pub link: Option<u32>,
}

impl Route {
    /// A route in the main table, everything else left to the caller and the kernel.
    pub fn new(destination: IpNet, protocol: u8) -> Self {
        Route {
            destination: destination.trunc(),
            kind: RouteKind::Unicast,
            via: None,
            link: None,
            onlink: false,
            scope: Scope::Universe,
            protocol,
            table: MAIN_TABLE,
            metric: None,
            source: None,
            mtu: None,
            mtu_lock: false,
            encapsulates: false,
        }
    }

    /// A route to what is on a link itself.
    pub fn on_link(destination: IpNet, link: u32, protocol: u8) -> Self {
        let scope = if destination.addr().is_ipv4() {
            Scope::Link
        } else {
            Scope::Universe
        };
        Route {
            link: Some(link),
            scope,
            ..Self::new(destination, protocol)
        }
    }

    /// A route by way of a router.
    pub fn via(destination: IpNet, router: IpAddr, link: Option<u32>, protocol: u8) -> Self {
        Route {
            via: Some(router),
            link,
            ..Self::new(destination, protocol)
        }
    }

    /// Adds it. An error if there is one to the destination with the same metric.
    pub fn add(&self) -> Request<'static> {
        let message = RouteNetlinkMessage::NewRoute(self.message());
        Request::new(message, NLM_F_CREATE | NLM_F_EXCL, format!("add {}", self.name()))
    }

    /// Adds it in place of one to the destination with the same metric, if there is one.
    pub fn replace(&self) -> Request<'static> {
        let message = RouteNetlinkMessage::NewRoute(self.message());
        Request::new(
            message,
            NLM_F_CREATE | NLM_F_REPLACE,
            format!("set {}", self.name()),
        )
    }

    /// Removes it. What is given must match, what is none matches all.
    pub fn delete(&self) -> Request<'static> {
        let mut message = self.message();
        if message.header.scope == RouteScope::Universe {
            // In a removal "nowhere" stands for any scope.
            message.header.scope = RouteScope::NoWhere;
        }
        Request::new(
            RouteNetlinkMessage::DelRoute(message),
            0,
            format!("remove {}", self.name()),
        )
    }

    fn name(&self) -> String {
        let mut name = format!("route {}", self.destination);
        if let Some(via) = self.via {
            name.push_str(&format!(" via {via}"));
        }
        if let Some(link) = self.link {
            name.push_str(&format!(" by the link with index {link}"));
        }
        name
    }

    fn message(&self) -> RouteMessage {
        let destination = self.destination.addr();
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = family(destination);
        header.destination_prefix_length = self.destination.prefix_len();
        header.protocol = RouteProtocol::from(self.protocol);
        header.scope = RouteScope::from(u8::from(self.scope));
        header.kind = RouteType::from(u8::from(self.kind));
        header.table = u8::try_from(self.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        header.flags.set(RouteFlags::Onlink, self.onlink);
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Table(self.table));
        if self.destination.prefix_len() > 0 {
            attributes.push(RouteAttribute::Destination(destination.into()));
        }
        attributes.extend(self.via.map(|via| match (destination, via) {
            (IpAddr::V4(_), IpAddr::V6(router)) => RouteAttribute::Via(RouteVia::Inet6(router)),
            _ => RouteAttribute::Gateway(via.into()),
        }));
        attributes.extend(self.link.map(RouteAttribute::Oif));
        attributes.extend(self.metric.map(RouteAttribute::Priority));
        attributes.extend(
            self.source
                .map(|source| RouteAttribute::PrefSource(source.into())),
        );
        let lock = self.mtu_lock.then_some(RouteMetric::Lock(1 << RTAX_MTU));
        attributes.extend(
            self.mtu.map(|mtu| {
                RouteAttribute::Metrics([RouteMetric::Mtu(mtu)].into_iter().chain(lock).collect())
            }),
        );
        message
    }

    /// A route with several next hops is read as one route for each.
    fn read(payload: &[u8]) -> Option<Vec<Self>> {
        let header = payload.get(..HEADER)?;
        let flags = wire::word(&header[8..])?;
        let unspecified: IpAddr = match i32::from(header[0]) {
            libc::AF_INET => std::net::Ipv4Addr::UNSPECIFIED.into(),
            libc::AF_INET6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        if flags & RTM_F_CLONED != 0 {
            // An entry of the IPv6 route cache, not a route.
            return None;
        }
        let mut route = Route {
            destination: IpNet::new(unspecified, header[1]).ok()?,
            kind: RouteKind::from(header[7]),
            onlink: flags & RouteFlags::Onlink.bits() != 0,
            scope: Scope::from(header[6]),
            protocol: header[5],
            table: u32::from(header[4]),
            ..Route::new(IpNet::new(unspecified, 0).ok()?, 0)
        };
        let mut next_hops: &[u8] = &[];
        for (kind, value) in wire::attributes(payload, HEADER) {
            match kind {
                RTA_DST => route.destination = IpNet::new(wire::ip(value)?, header[1]).ok()?,
                RTA_PRIORITY => route.metric = wire::word(value),
                RTA_PREFSRC => route.source = wire::ip(value),
                RTA_TABLE => route.table = wire::word(value)?,
                RTA_MULTIPATH => next_hops = value,
                RTA_METRICS => {
                    let metric = |wanted: u16| {
                        wire::attributes(value, 0)
                            .find(|(kind, _)| *kind == wanted)
                            .and_then(|(_, metric)| wire::word(metric))
                    };
                    route.mtu = metric(RTAX_MTU);
                    route.mtu_lock = metric(RTAX_LOCK).is_some_and(|locked| locked & 1 << RTAX_MTU != 0);
                }
                _ => route.read_next_hop(kind, value),
            }
        }
        if next_hops.is_empty() {
            Some(vec![route])
        } else {
            Some(route.with_next_hops(next_hops))
        }
    }

    fn read_next_hop(&mut self, kind: u16, value: &[u8]) {
        match kind {
            RTA_OIF => self.link = wire::word(value),
            RTA_GATEWAY => self.via = wire::ip(value),
            RTA_VIA => self.via = value.get(2..).and_then(wire::ip),
            RTA_ENCAP => self.encapsulates = true,
            _ => {}
        }
    }

    fn with_next_hops(&self, mut next_hops: &[u8]) -> Vec<Self> {
        let mut routes = Vec::new();
        while let Some(length) = wire::half(next_hops).map(usize::from) {
            let Some(next_hop) = next_hops.get(..length).filter(|hop| hop.len() >= NEXT_HOP) else {
                break;
            };
            let mut route = self.clone();
            route.link = wire::word(&next_hop[4..]);
            route.onlink = u32::from(next_hop[2]) & RouteFlags::Onlink.bits() != 0;
            for (kind, value) in wire::attributes(next_hop, NEXT_HOP) {
                route.read_next_hop(kind, value);
            }
            routes.push(route);
            next_hops = next_hops.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        routes
    }
}

impl Netlink {
    /// The routes of both families that pass the filter.
    pub fn routes(&mut self, filter: RouteFilter) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            routes.extend(self.routes_of(family, filter)?);
        }
        // The kernel's own filter is coarser: one next hop that passes brings the whole route.
        routes.retain(|route| {
            filter.table.is_none_or(|table| route.table == table)
                && filter.protocol.is_none_or(|protocol| route.protocol == protocol)
                && filter.link.is_none_or(|link| route.link == Some(link))
        });
        Ok(routes)
    }

    /// The routes that datagrams of UDP from `source` to a port of these addresses take, in their order: several where there
    /// are several next hops, and none where there is no route.
    pub fn routes_to(
        &mut self,
        addresses: &[IpAddr],
        source: IpAddr,
        port: u16,
    ) -> Result<Vec<Vec<Route>>, NetlinkError> {
        let request = |address: &IpAddr| {
            let mut message = RouteMessage::default();
            message.header.address_family = family(*address);
            message.header.destination_prefix_length = IpNet::from(*address).prefix_len();
            message.header.flags = RouteFlags::FibMatch;
            message.header.source_prefix_length = IpNet::from(source).prefix_len();
            message.attributes = vec![
                RouteAttribute::Destination((*address).into()),
                RouteAttribute::Source(source.into()),
                RouteAttribute::Other(DefaultNla::new(RTA_IP_PROTO, vec![libc::IPPROTO_UDP as u8])),
                RouteAttribute::Other(DefaultNla::new(RTA_DPORT, port.to_be_bytes().to_vec())),
            ];
            Request::new(
                RouteNetlinkMessage::GetRoute(message),
                0,
                format!("look up the route to {address}"),
            )
        };
        let outcomes = self.exchange(addresses.iter().map(request))?;
        let found = outcomes.into_iter().map(|outcome| match outcome.result {
            // Nowhere, or told not to go there.
            Err(NetlinkError::Refused { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
            Ok(()) => {
                let answers = outcome.answers.iter();
                Ok(answers
                    .filter_map(|answer| Route::read(&answer.payload))
                    .flatten()
                    .collect())
            }
        });
        found.collect()
    }

    fn routes_of(&mut self, family: AddressFamily, filter: RouteFilter) -> Result<Vec<Route>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
        message.attributes.extend(filter.table.map(RouteAttribute::Table));
        message.attributes.extend(filter.link.map(RouteAttribute::Oif));
        let request = Request::new(
            RouteNetlinkMessage::GetRoute(message),
            0,
            "list the routes".into(),
        );
        match self.dump(&request, Route::read) {
            Ok(routes) => Ok(routes.into_iter().flatten().collect()),
            // The table asked for has never had a route.
            Err(error) if filter.table.is_some() && error.is_not_found() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
