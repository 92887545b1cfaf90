//! ipset: the kernel's sets of addresses and ports that iptables' rules look up. Attributes as in
//! include/uapi/linux/netfilter/ipset/ip_set.h.
//!
//! A set is named, and lives until nothing refers to it and it is destroyed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::wire::{Attributes, Reader};
use super::{Message, Netfilter, NetfilterError};

/// Sets.
pub const SUBSYSTEM_IPSET: u16 = 6;

const CREATE: u16 = 2;
const DESTROY: u16 = 3;
const LIST: u16 = 7;
const ADD: u16 = 9;
const DELETE: u16 = 10;

const PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const TYPE_NAME: u16 = 3;
const REVISION: u16 = 4;
const FAMILY: u16 = 5;
const FLAGS: u16 = 6;
const DATA: u16 = 7;
const ELEMENTS: u16 = 8;
const LINE: u16 = 9;

const IP: u16 = 1;
const CIDR: u16 = 3;
const PORT: u16 = 4;
const TIMEOUT: u16 = 6;
const L4_PROTOCOL: u16 = 7;
/// `IPSET_ATTR_CADT_FLAGS`
const CREATE_FLAGS: u16 = 8;
const MAX_ELEMENTS: u16 = 19;
const COUNT: u16 = 24;
const REFERENCES: u16 = 25;
const IP2: u16 = 20;
const CIDR2: u16 = 21;
const SKB_MARK: u16 = 27;

/// The protocol's version.
const VERSION: u8 = 6;
/// ipset insists on being told that numbers are big-endian (`NLA_F_NET_BYTEORDER`).
const BIG_ENDIAN: u16 = 0x4000;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// `IPSET_FLAG_LIST_HEADER`.
const HEADERS_ONLY: u32 = 4;
/// `IPSET_FLAG_WITH_SKBINFO`
const WITH_MARKS: u32 = 1 << 6;
/// Only a limit: the kernel takes memory as elements come.
const MOST_ELEMENTS: u32 = 1 << 24;
/// Of elements that go by themselves: packets make those, and whoever sends them chooses how many.
const MOST_PASSING_ELEMENTS: u32 = 1 << 16;
/// Elements of one message, whose attribute for them holds 64 KiB.
const BATCH: usize = 400;
/// `IPSET_ERR_BUSY`: something refers to the set.
const BUSY: i32 = 4100;
const EINVAL: i32 = 22;

/// What a set's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetKind {
    /// Addresses.
    Ip,
    /// Ranges.
    Net,
    /// An address, protocol and port.
    IpPort,
    /// A range, protocol and port.
    NetPort,
    /// An address, protocol and port, and a range.
    IpPortNet,
}

impl SetKind {
    const ALL: [SetKind; 5] = [
        SetKind::Ip,
        SetKind::Net,
        SetKind::IpPort,
        SetKind::NetPort,
        SetKind::IpPortNet,
    ];

    /// As ipset calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            SetKind::Ip => "hash:ip",
            SetKind::Net => "hash:net",
            SetKind::IpPort => "hash:ip,port",
            SetKind::NetPort => "hash:net,port",
            SetKind::IpPortNet => "hash:ip,port,net",
        }
    }

    fn read(text: &str) -> Option<Self> {
        SetKind::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What a set is, apart from its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetSpec {
    /// What its elements are.
    pub kind: SetKind,
    /// Whether its addresses are of IPv6.
    pub six: bool,
    /// After how many seconds an element goes unless it says otherwise; never, where there is none. A set with this holds
    /// 65,536 elements at most.
    pub timeout: Option<u32>,
    /// Whether its elements have marks, which a rule can give to packets.
    pub marks: bool,
}

/// A set as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetFound {
    /// What it is; `None` for a type that is not among [`SetKind`].
    pub spec: Option<SetSpec>,
    /// How many elements it has.
    pub count: u32,
    /// How many rules refer to it.
    pub references: u32,
}

/// A range is never all of its family: ipset has no such element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// An address or range.
    pub net: IpNet,
    /// IP protocol number and port.
    pub port: Option<(u8, u16)>,
    /// The range of [`SetKind::IpPortNet`].
    pub second: Option<IpNet>,
    /// The mark, in a set that has them; it takes the place of a packet's whole mark.
    pub mark: Option<u32>,
}

impl Element {
    /// A range, or an address as the range of itself.
    pub fn new(net: impl Into<IpNet>) -> Self {
        Element {
            net: net.into(),
            port: None,
            second: None,
            mark: None,
        }
    }

    fn write(&self) -> Attributes {
        let attributes = address(Attributes::new(), (IP, CIDR), self.net);
        let attributes = match self.port {
            Some((protocol, port)) => attributes
                .bytes(PORT | BIG_ENDIAN, &port.to_be_bytes())
                .bytes(L4_PROTOCOL, &[protocol]),
            None => attributes,
        };
        let attributes = match self.second {
            Some(net) => address(attributes, (IP2, CIDR2), net),
            None => attributes,
        };
        match self.mark {
            Some(mark) => {
                let mark_and_mask = u64::from(mark) << 32 | u64::from(u32::MAX);
                attributes.bytes(SKB_MARK | BIG_ENDIAN, &mark_and_mask.to_be_bytes())
            }
            None => attributes,
        }
    }

    fn read(attributes: Reader<'_>) -> Option<Self> {
        let net = |ip, cidr| {
            let address = read_address(attributes.nested(ip)?)?;
            let longest = IpNet::from(address).prefix_len();
            let length = attributes.get(cidr).and_then(|bytes| bytes.first().copied());
            IpNet::new(address, length.unwrap_or(longest)).ok()
        };
        let port = attributes.get(PORT).and_then(|bytes| {
            let protocol = *attributes.get(L4_PROTOCOL)?.first()?;
            Some((protocol, u16::from_be_bytes(bytes.try_into().ok()?)))
        });
        let mark = attributes.get(SKB_MARK).and_then(|bytes| {
            let mark_and_mask = u64::from_be_bytes(bytes.try_into().ok()?);
            u32::try_from(mark_and_mask >> 32).ok()
        });
        Some(Element {
            net: net(IP, CIDR)?,
            port,
            second: net(IP2, CIDR2),
            mark,
        })
    }
}

fn address(attributes: Attributes, (ip, cidr): (u16, u16), net: IpNet) -> Attributes {
    let address = match net.addr() {
        IpAddr::V4(v4) => Attributes::new().bytes(1 | BIG_ENDIAN, &v4.octets()),
        IpAddr::V6(v6) => Attributes::new().bytes(2 | BIG_ENDIAN, &v6.octets()),
    };
    let attributes = attributes.nest(ip, address);
    if net.prefix_len() == net.max_prefix_len() {
        return attributes;
    }
    attributes.bytes(cidr, &[net.prefix_len()])
}

fn read_address(attributes: Reader<'_>) -> Option<IpAddr> {
    let v4 = attributes
        .get(1)
        .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let v6 = attributes
        .get(2)
        .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let v4 = v4.map(|octets| Ipv4Addr::from(octets).into());
    v4.or_else(|| v6.map(|octets| Ipv6Addr::from(octets).into()))
}

impl NetfilterError {
    /// Something refers to a set that was to be destroyed.
    pub fn is_busy(&self) -> bool {
        matches!(self, NetfilterError::Refused { source, .. } if source.raw_os_error() == Some(BUSY))
    }
}

fn common(name: &str) -> Attributes {
    Attributes::new().bytes(PROTOCOL, &[VERSION]).text(SET_NAME, name)
}

impl Netfilter {
    /// All sets of the network namespace, without their elements. None where the kernel has no ipset.
    pub fn sets(&mut self) -> Result<BTreeMap<String, SetFound>, NetfilterError> {
        let mut sets = BTreeMap::new();
        let asked = Attributes::new()
            .bytes(PROTOCOL, &[VERSION])
            .u32(FLAGS | BIG_ENDIAN, HEADERS_ONLY);
        let listed = self.dump(SUBSYSTEM_IPSET, LIST, 0, &asked, "list ipset's sets", |message| {
            sets.extend(read_set(message.attributes()));
        });
        match listed {
            Err(NetfilterError::Refused { source, .. }) if source.raw_os_error() == Some(EINVAL) => {
                Ok(BTreeMap::new())
            }
            other => other.map(|()| sets),
        }
    }

    /// The elements of a set, in no order.
    pub fn set_elements(&mut self, name: &str) -> Result<Vec<Element>, NetfilterError> {
        let mut elements = Vec::new();
        let what = format!("list ipset's set {name}");
        self.dump(SUBSYSTEM_IPSET, LIST, 0, &common(name), &what, |message| {
            let listed = message.attributes().nested(ELEMENTS).into_iter().flatten();
            elements.extend(listed.filter_map(|(_, element)| Element::read(Reader::new(element))));
        })?;
        Ok(elements)
    }

    /// Makes a set. One that is there already and is the same is left as it is.
    pub fn create_set(&mut self, name: &str, spec: &SetSpec) -> Result<(), NetfilterError> {
        let most = match spec.timeout {
            Some(_) => MOST_PASSING_ELEMENTS,
            None => MOST_ELEMENTS,
        };
        let data = Attributes::new().u32(MAX_ELEMENTS | BIG_ENDIAN, most);
        let data = match spec.timeout {
            Some(seconds) => data.u32(TIMEOUT | BIG_ENDIAN, seconds),
            None => data,
        };
        let data = if spec.marks {
            data.u32(CREATE_FLAGS | BIG_ENDIAN, WITH_MARKS)
        } else {
            data
        };
        let family = if spec.six { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
        let attributes = common(name)
            .text(TYPE_NAME, spec.kind.as_str())
            .bytes(REVISION, &[0])
            .bytes(FAMILY, &[family])
            .nest(DATA, data);
        self.set_request(CREATE, attributes, format!("create ipset's set {name}"))
    }

    /// Destroys a set, if it is there; [`NetfilterError::is_busy`] while something refers to it.
    pub fn destroy_set(&mut self, name: &str) -> Result<(), NetfilterError> {
        match self.set_request(DESTROY, common(name), format!("destroy ipset's set {name}")) {
            // Older kernels mind.
            Err(error) if error.is_not_found() => Ok(()),
            other => other,
        }
    }

    /// Adds elements; those that are there already stay.
    pub fn add_to_set(&mut self, name: &str, elements: &[Element]) -> Result<(), NetfilterError> {
        self.change_set(ADD, name, elements, "add to")
    }

    /// Takes elements away, those that are there.
    pub fn remove_from_set(&mut self, name: &str, elements: &[Element]) -> Result<(), NetfilterError> {
        self.change_set(DELETE, name, elements, "remove from")
    }

    fn change_set(
        &mut self,
        kind: u16,
        name: &str,
        elements: &[Element],
        verb: &str,
    ) -> Result<(), NetfilterError> {
        for batch in elements.chunks(BATCH) {
            let list = batch.iter().fold(Attributes::new(), |list, element| {
                list.nest(DATA, element.write())
            });
            // With several elements the kernel wants to be told a line, for its errors.
            let attributes = common(name).nest(ELEMENTS, list).u32(LINE | BIG_ENDIAN, 0);
            self.set_request(kind, attributes, format!("{verb} ipset's set {name}"))?;
        }
        Ok(())
    }

    fn set_request(&mut self, kind: u16, attributes: Attributes, what: String) -> Result<(), NetfilterError> {
        let message = Message {
            kind,
            flags: 0,
            family: 0,
            attributes,
            what,
        };
        self.request(SUBSYSTEM_IPSET, &message)
    }
}

/// The kernel lists a large set in several messages, of which the first alone says what it is.
fn read_set(attributes: Reader<'_>) -> Option<(String, SetFound)> {
    let (name, kind) = (attributes.text(SET_NAME)?, attributes.text(TYPE_NAME)?);
    let data = attributes.nested(DATA)?;
    let spec = SetKind::read(&kind).map(|kind| SetSpec {
        kind,
        six: attributes.get(FAMILY) == Some(&[NFPROTO_IPV6]),
        timeout: data.u32(TIMEOUT),
        marks: data
            .u32(CREATE_FLAGS)
            .is_some_and(|flags| flags & WITH_MARKS != 0),
    });
    let found = SetFound {
        spec,
        count: data.u32(COUNT).unwrap_or_default(),
        references: data.u32(REFERENCES).unwrap_or_default(),
    };
    Some((name, found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ns::{Kind, Namespace};

    fn element(net: &str, port: Option<(u8, u16)>, second: Option<&str>) -> Element {
        Element {
            net: net.parse().unwrap(),
            port,
            second: second.map(|net| net.parse().unwrap()),
            mark: None,
        }
    }

    fn round_trip(spec: SetSpec, elements: &[Element]) {
        let mut socket = Netfilter::open().unwrap();
        socket.create_set("one", &spec).unwrap();
        socket.create_set("one", &spec).unwrap();
        socket.add_to_set("one", elements).unwrap();
        socket.add_to_set("one", &elements[..1]).unwrap();
        let found = &socket.sets().unwrap()["one"];
        assert_eq!(found.spec, Some(spec));
        assert_eq!((found.count as usize, found.references), (elements.len(), 0));
        let mut there = socket.set_elements("one").unwrap();
        there.sort();
        assert_eq!(there, elements);
        socket.remove_from_set("one", &elements[1..]).unwrap();
        socket.remove_from_set("one", &elements[1..]).unwrap();
        assert_eq!(socket.set_elements("one").unwrap(), elements[..1]);
        socket.destroy_set("one").unwrap();
        assert!(socket.sets().unwrap().is_empty());
        socket.destroy_set("one").unwrap();
    }

    #[test]
    fn what_a_set_is_given_is_read_back() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        let tcp = Some((6, 80));
        let udp = Some((17, 65_535));
        let spec = |kind, six| SetSpec {
            kind,
            six,
            timeout: None,
            marks: false,
        };
        let of = |kind, six, elements: &[Element]| {
            namespace.run(|| round_trip(spec(kind, six), elements)).unwrap();
        };
        let many: Vec<Element> = (0..1000_u32)
            .map(|number| Element::new(IpNet::from(IpAddr::V4(Ipv4Addr::from_bits(0x0a60_0000 + number)))))
            .collect();
        of(SetKind::Ip, false, &many);
        of(
            SetKind::Ip,
            true,
            &[
                element("fd00::1/128", None, None),
                element("fd00::2/128", None, None),
            ],
        );
        of(
            SetKind::Net,
            false,
            &[
                element("0.0.0.0/1", None, None),
                element("10.244.0.0/24", None, None),
            ],
        );
        of(
            SetKind::Net,
            true,
            &[element("::/1", None, None), element("8000::/1", None, None)],
        );
        of(
            SetKind::IpPort,
            false,
            &[
                element("10.96.0.1/32", tcp, None),
                element("10.96.0.1/32", udp, None),
            ],
        );
        of(
            SetKind::IpPort,
            true,
            &[
                element("fd00::1/128", tcp, None),
                element("fd00::1/128", udp, None),
            ],
        );
        of(
            SetKind::NetPort,
            false,
            &[element("0.0.0.0/1", tcp, None), element("128.0.0.0/1", tcp, None)],
        );
        of(
            SetKind::NetPort,
            true,
            &[element("::/1", tcp, None), element("8000::/1", udp, None)],
        );
        of(
            SetKind::IpPortNet,
            false,
            &[
                element("10.96.0.1/32", tcp, Some("192.0.2.0/24")),
                element("10.96.0.1/32", tcp, Some("192.0.2.7/32")),
            ],
        );
        of(
            SetKind::IpPortNet,
            true,
            &[
                element("fd00::1/128", tcp, Some("::/1")),
                element("fd00::1/128", tcp, Some("fd00::/8")),
            ],
        );
    }

    #[test]
    fn elements_have_marks_where_a_set_has_them() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        let marked = |net, port, mark| Element {
            mark: Some(mark),
            ..element(net, Some((6, port)), None)
        };
        for (six, halves) in [
            (false, ["0.0.0.0/1", "128.0.0.0/1"]),
            (true, ["::/1", "8000::/1"]),
        ] {
            let spec = SetSpec {
                kind: SetKind::NetPort,
                six,
                timeout: None,
                marks: true,
            };
            let elements = [
                marked(halves[0], 80, 0x0050_1010),
                marked(halves[1], 443, u32::MAX),
            ];
            namespace.run(|| round_trip(spec, &elements)).unwrap();
        }
    }

    #[test]
    fn a_set_whose_elements_go_by_themselves_says_after_how_long() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        let spec = SetSpec {
            kind: SetKind::Ip,
            six: false,
            timeout: Some(600),
            marks: false,
        };
        let found = namespace
            .run(|| {
                let mut socket = Netfilter::open().unwrap();
                socket.create_set("stay", &spec).unwrap();
                socket.sets().unwrap()
            })
            .unwrap();
        assert_eq!(found["stay"].spec, Some(spec));
    }
}
