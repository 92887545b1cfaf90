//! Links: interfaces, and how to make, change and remove them.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoNetkit,
    InfoPortData, InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    NetkitMode,
};

use super::{MacAddr, Netlink, NetlinkError, Request, malformed, wire};

/// An interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number, unique within the network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one.
    pub mac: Option<MacAddr>,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Set up by an administrator (`IFF_UP`).
    pub up: bool,
    /// Able to carry packets (`IFF_RUNNING`).
    pub running: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// Index of the bridge or VRF it is a port of.
    pub master: Option<u32>,
    /// Index of the link below it, or of a veth's peer; in namespace `link_namespace` if that is given.
    pub lower: Option<u32>,
    /// This namespace's number for the namespace that `lower` is in.
    pub link_namespace: Option<i32>,
    /// The group it is in; 0 unless somebody chose another.
    pub group: u32,
    /// What kind of interface it is.
    pub kind: LinkKind,
}

/// What kind of interface a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A device of the machine, or the loopback: the kernel names no kind.
    Device,
    /// One end of a pair.
    Veth,
    /// One end of a pair that costs less than a veth (Linux 6.7).
    Netkit,
    /// A bridge.
    Bridge,
    /// A VXLAN tunnel.
    Vxlan(Vxlan),
    /// Another kind, by the kernel's name for it.
    Other(String),
}

/// The settings of a VXLAN tunnel (RFC 7348).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Source address of the outer packets.
    pub local: Option<IpAddr>,
    /// Index of the link that the outer packets leave by.
    pub device: Option<u32>,
    /// Learns where addresses are from the packets that arrive.
    pub learning: bool,
    /// Computes the outer UDP checksum (IPv4; over IPv6 it is always there).
    pub udp_checksum: bool,
}

impl Vxlan {
    /// A tunnel that learns nothing: all its entries are written by its owner.
    pub fn new(vni: u32, port: u16, local: IpAddr) -> Self {
        Vxlan {
            vni,
            port,
            local: Some(local),
            device: None,
            learning: false,
            udp_checksum: false,
        }
    }

    fn info(&self) -> Vec<InfoVxlan> {
        let mut info = vec![
            InfoVxlan::Id(self.vni),
            InfoVxlan::Port(self.port),
            InfoVxlan::Learning(self.learning),
        ];
        match self.local {
            Some(IpAddr::V4(local)) => {
                info.extend([InfoVxlan::Local(local), InfoVxlan::UDPCsum(self.udp_checksum)]);
            }
            Some(IpAddr::V6(local)) => info.push(InfoVxlan::Local6(local)),
            None => {}
        }
        info.extend(self.device.map(InfoVxlan::Link));
        info
    }

    fn read(data: &[u8]) -> Self {
        let mut vxlan = Vxlan {
            vni: 0,
            port: 0,
            local: None,
            device: None,
            learning: false,
            udp_checksum: false,
        };
        for (kind, value) in wire::attributes(data, 0) {
            match kind {
                IFLA_VXLAN_ID => vxlan.vni = wire::word(value).unwrap_or(0),
                IFLA_VXLAN_LINK => vxlan.device = wire::word(value).filter(|index| *index != 0),
                IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => {
                    vxlan.local = wire::ip(value).filter(|address| !address.is_unspecified());
                }
                IFLA_VXLAN_LEARNING => vxlan.learning = wire::byte(value) == Some(1),
                IFLA_VXLAN_PORT => vxlan.port = wire::half_be(value).unwrap_or(0),
                IFLA_VXLAN_UDP_CSUM => vxlan.udp_checksum = wire::byte(value) == Some(1),
                _ => {}
            }
        }
        vxlan
    }
}

// Attribute numbers of include/uapi/linux/if_link.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_CSUM: u16 = 18;

/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;

impl Link {
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        let flags = wire::word(payload.get(8..12)?)?;
        let mut link = Link {
            index: wire::word(payload.get(4..8)?)?,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: flags & libc::IFF_UP as u32 != 0,
            running: flags & libc::IFF_RUNNING as u32 != 0,
            loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
            master: None,
            lower: None,
            link_namespace: None,
            group: 0,
            kind: LinkKind::Device,
        };
        for (kind, value) in wire::attributes(payload, HEADER) {
            match kind {
                IFLA_ADDRESS => link.mac = MacAddr::from_slice(value).filter(|_| !link.loopback),
                IFLA_IFNAME => link.name = wire::text(value)?,
                IFLA_MTU => link.mtu = wire::word(value)?,
                IFLA_LINK => link.lower = wire::word(value).filter(|index| *index != 0),
                IFLA_MASTER => link.master = wire::word(value),
                IFLA_LINKINFO => link.kind = LinkKind::read(value),
                IFLA_GROUP => link.group = wire::word(value)?,
                IFLA_LINK_NETNSID => link.link_namespace = wire::word(value).map(|id| id as i32),
                _ => {}
            }
        }
        Some(link)
    }

    /// Takes the link away. A veth's peer goes with it.
    pub fn delete(&self) -> Request<'static> {
        LinkChange::of(self.index, &self.name).delete()
    }

    /// Begins a change to this link.
    pub fn change(&self) -> LinkChange<'static> {
        LinkChange::of(self.index, &self.name)
    }
}

impl LinkKind {
    fn read(info: &[u8]) -> Self {
        let mut name = None;
        let mut data: &[u8] = &[];
        for (kind, value) in wire::attributes(info, 0) {
            match kind {
                IFLA_INFO_KIND => name = wire::text(value),
                IFLA_INFO_DATA => data = value,
                _ => {}
            }
        }
        match name.as_deref() {
            None => LinkKind::Device,
            Some("veth") => LinkKind::Veth,
            Some("netkit") => LinkKind::Netkit,
            Some("bridge") => LinkKind::Bridge,
            Some("vxlan") => LinkKind::Vxlan(Vxlan::read(data)),
            Some(other) => LinkKind::Other(other.into()),
        }
    }
}

/// The other end of a pair that is to be made.
#[derive(Debug, Clone)]
pub struct VethPeer<'fd> {
    /// Its name.
    pub name: String,
    /// Its Ethernet address; the kernel chooses one if none is given.
    pub mac: Option<MacAddr>,
    /// The network namespace it is made in; that of the socket if none is given.
    pub namespace: Option<BorrowedFd<'fd>>,
}

/// What kind of link is to be made.
#[derive(Debug, Clone)]
pub enum NewLinkKind<'fd> {
    /// A pair of links; what one sends, the other receives.
    Veth(VethPeer<'fd>),
    /// A pair without queues, which passes packets on without the detour by the softirq's backlog (Linux 6.7). Both
    /// ends carry Ethernet frames, as a veth's do.
    Netkit(VethPeer<'fd>),
    /// A bridge that forwards from the start and asks nobody (no spanning tree, no multicast snooping).
    Bridge,
    /// A VXLAN tunnel.
    Vxlan(Vxlan),
}

/// A link that is to be made.
#[derive(Debug, Clone)]
pub struct NewLink<'fd> {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its kind.
    pub kind: NewLinkKind<'fd>,
    /// Largest packet in bytes (of both ends, for a pair); the kernel's default if none is given.
    pub mtu: Option<u32>,
    /// Its Ethernet address; the kernel chooses one if none is given.
    pub mac: Option<MacAddr>,
    /// The bridge it becomes a port of, by index.
    pub master: Option<u32>,
    /// Set up at once.
    pub up: bool,
}

impl<'fd> NewLink<'fd> {
    /// A link of that name and kind, everything else left to the kernel.
    pub fn new(name: impl Into<String>, kind: NewLinkKind<'fd>) -> Self {
        NewLink {
            name: name.into(),
            kind,
            mtu: None,
            mac: None,
            master: None,
            up: false,
        }
    }

    /// A veth pair whose second end, `peer`, is made in `namespace`.
    pub fn veth(
        name: impl Into<String>,
        peer: impl Into<String>,
        namespace: Option<BorrowedFd<'fd>>,
    ) -> Self {
        Self::new(
            name,
            NewLinkKind::Veth(VethPeer {
                name: peer.into(),
                mac: None,
                namespace,
            }),
        )
    }

    /// Makes it. An error if the name is taken, in either namespace.
    pub fn create(&self) -> Request<'fd> {
        let mut message = LinkMessage::default();
        if self.up {
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
        }
        message.attributes = self.attributes(&self.name, self.mac);
        message
            .attributes
            .extend(self.master.map(LinkAttribute::Controller));
        let info = match &self.kind {
            NewLinkKind::Veth(peer) => vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(self.peer(peer)))),
            ],
            NewLinkKind::Netkit(peer) => vec![
                LinkInfo::Kind(InfoKind::Netkit),
                LinkInfo::Data(InfoData::Netkit(vec![
                    InfoNetkit::Peer(self.peer(peer)),
                    InfoNetkit::Mode(NetkitMode::L2),
                ])),
            ],
            NewLinkKind::Bridge => vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![
                    InfoBridge::ForwardDelay(0),
                    InfoBridge::MulticastSnooping(false),
                ])),
            ],
            NewLinkKind::Vxlan(vxlan) => {
                vec![
                    LinkInfo::Kind(InfoKind::Vxlan),
                    LinkInfo::Data(InfoData::Vxlan(vxlan.info())),
                ]
            }
        };
        message.attributes.push(LinkAttribute::LinkInfo(info));
        Request::new(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
            format!("create link {}", self.name),
        )
    }

    fn attributes(&self, name: &str, mac: Option<MacAddr>) -> Vec<LinkAttribute> {
        let mut attributes = vec![LinkAttribute::IfName(name.into())];
        attributes.extend(self.mtu.map(LinkAttribute::Mtu));
        attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        attributes
    }

    fn peer(&self, peer: &VethPeer<'_>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.attributes = self.attributes(&peer.name, peer.mac);
        message
            .attributes
            .extend(peer.namespace.map(|fd| LinkAttribute::NetNsFd(fd.as_raw_fd())));
        message
    }
}

/// A change to a link that exists. Without a call to one of its methods it changes nothing.
#[derive(Debug, Clone)]
pub struct LinkChange<'fd> {
    message: LinkMessage,
    what: String,
    descriptor: std::marker::PhantomData<&'fd ()>,
}

impl<'fd> LinkChange<'fd> {
    /// A change to the link with this index; `name` is for messages only.
    pub fn of(index: u32, name: &str) -> Self {
        let mut message = LinkMessage::default();
        message.header.index = index;
        LinkChange {
            message,
            what: format!("link {name} (index {index})"),
            descriptor: std::marker::PhantomData,
        }
    }

    /// A change to the link of this name. The kernel looks it up when the request reaches it, so that a batch
    /// can change a link which it makes itself.
    pub fn named(name: &str) -> Self {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        LinkChange {
            message,
            what: format!("link {name}"),
            descriptor: std::marker::PhantomData,
        }
    }

    /// All links of a group, for [`LinkChange::delete`]: they go together, in about the time of one.
    pub fn group_members(group: u32) -> Self {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        LinkChange {
            message,
            what: format!("the links of group {group}"),
            descriptor: std::marker::PhantomData,
        }
    }

    fn with(mut self, attribute: LinkAttribute) -> Self {
        self.message.attributes.push(attribute);
        self
    }

    /// Sets it up or down.
    pub fn up(mut self, up: bool) -> Self {
        self.message.header.change_mask |= LinkFlags::Up;
        self.message.header.flags.set(LinkFlags::Up, up);
        self
    }

    /// Sets the largest packet, in bytes.
    pub fn mtu(self, mtu: u32) -> Self {
        self.with(LinkAttribute::Mtu(mtu))
    }

    /// Sets the Ethernet address.
    pub fn mac(self, mac: MacAddr) -> Self {
        self.with(LinkAttribute::Address(mac.0.to_vec()))
    }

    /// Gives it another name. Only for a change begun with [`LinkChange::of`].
    pub fn name(self, name: &str) -> Self {
        self.with(LinkAttribute::IfName(name.into()))
    }

    /// Makes it a port of the bridge with this index, or of none.
    pub fn master(self, master: Option<u32>) -> Self {
        self.with(LinkAttribute::Controller(master.unwrap_or(0)))
    }

    /// The change as a request that also lets the bridge, which the link is a port of, send a frame back by it: for a
    /// pod that its own service sends to itself.
    pub fn apply_with_hairpin(self) -> Request<'fd> {
        let change = self.with(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]));
        // RTM_SETLINK passes over what is a port's.
        Request::new(
            RouteNetlinkMessage::NewLink(change.message),
            0,
            format!("change {} and its port", change.what),
        )
    }

    /// Puts it into a group of links.
    pub fn group(self, group: u32) -> Self {
        self.with(LinkAttribute::Group(group))
    }

    /// Moves it to another network namespace.
    pub fn namespace<'other>(self, namespace: BorrowedFd<'other>) -> LinkChange<'other>
    where
        'fd: 'other,
    {
        self.with(LinkAttribute::NetNsFd(namespace.as_raw_fd()))
    }

    /// Gives it no IPv6 link-local address of its own making. To be set before the link comes up.
    pub fn without_link_local(self) -> Self {
        self.with(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]))
    }

    /// Sets the source address of a VXLAN tunnel's outer packets. Only to one of the same family, and only for a change
    /// begun with [`LinkChange::of`].
    pub fn vxlan_local(self, local: IpAddr) -> Self {
        let local = match local {
            IpAddr::V4(local) => InfoVxlan::Local(local),
            IpAddr::V6(local) => InfoVxlan::Local6(local),
        };
        self.with(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![local])),
        ]))
    }

    /// The change as a request.
    pub fn apply(self) -> Request<'fd> {
        Request::new(
            RouteNetlinkMessage::SetLink(self.message),
            0,
            format!("change {}", self.what),
        )
    }

    /// The removal of the link as a request. For a change that was only begun.
    pub fn delete(self) -> Request<'fd> {
        Request::new(
            RouteNetlinkMessage::DelLink(self.message),
            0,
            format!("delete {}", self.what),
        )
    }
}

impl Netlink {
    /// All links of the namespace.
    pub fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let request = Request::new(
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            0,
            "list the links".into(),
        );
        self.dump(&request, Link::read)
    }

    /// The link of that name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        match self.apply_and_get([], name) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link with that index.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.get([], message, format!("look up the link with index {index}")) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends the requests and, behind them in the same system call, asks for the link called `name`: the way to
    /// make a link and learn its index.
    pub fn apply_and_get<'fd>(
        &mut self,
        requests: impl IntoIterator<Item = Request<'fd>>,
        name: &str,
    ) -> Result<Link, NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.into()));
        self.get(requests, message, format!("look up link {name}"))
    }

    fn get<'fd>(
        &mut self,
        requests: impl IntoIterator<Item = Request<'fd>>,
        message: LinkMessage,
        what: String,
    ) -> Result<Link, NetlinkError> {
        let question = Request::new(RouteNetlinkMessage::GetLink(message), 0, what.clone());
        let mut answers = Vec::new();
        for outcome in self.exchange(requests.into_iter().chain([question]))? {
            outcome.result?;
            answers = outcome.answers;
        }
        answers
            .first()
            .and_then(|answer| Link::read(&answer.payload))
            .ok_or_else(|| malformed(&what, "no link in the answer"))
    }
}
