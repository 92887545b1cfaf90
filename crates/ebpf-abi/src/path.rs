//! Pod to pod past the host's stack.
//!
//! What a pod sends to another is handed from link to link, where no policy is about either and nobody has translated it.
//! All else takes the stack, which knows everything: other protocols, fragments, options, what is too large, what has come
//! too far, and whatever belongs to a flow that the node's table translated, because its answers have to come by there
//! again. Such flows are noted where their packets leave the stack for a pod, here or on another node. What has the same
//! ends as one of them takes the stack as well, which gives it another port: to its endpoint they would be one.
//!
//! Nothing is remembered of a packet that goes past the stack, but of a TCP connection: who began it, and that it was accepted.
//! When a policy begins to be about one of its ends, the stack has to know that.

use crate::Address;
use crate::packet::{Flags, Headers, Tuple};
use crate::tunnel::Tunnel;

/// The version of a map's layout: whoever changes one counts it up. An agent goes on with the maps that it finds of these,
/// and makes the others anew.
pub fn layout(map: &str) -> u32 {
    match map {
        "WAYS" => 2,
        _ => 1,
    }
}

/// Where in what is known of [`Paths::is_translated`] at once stands, not 0, that a flow was noted: without any none need be
/// looked up.
pub const ANY_NOTED: u32 = 0;
/// Where in it stands, not 0, that some flow could not be noted: then every one may be translated.
pub const ANY_MISSING: u32 = 1;

/// Of a connection that was asked for, and nobody has looked at yet.
pub const ASKED: u32 = 0;
/// Of one that was accepted.
pub const ACCEPTED: u32 = 1;
/// Of one that was asked for when the agent looked last.
pub const LONG_ASKED: u32 = 2;

/// The bit of a packet's mark by which the table says that it translated the flow, and that this is its first direction.
pub const TRANSLATED: u32 = 0x2000;

/// A pod of this node: 24 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Pod {
    /// The index of the node's end of its link.
    pub link: u32,
    /// The largest packet it takes, in bytes from the network header on.
    pub mtu: u32,
    /// The MAC address of its own end.
    pub mac: [u8; 6],
    /// The MAC address of the node's end.
    pub gateway: [u8; 6],
    zero: u32,
}

impl Pod {
    /// Behind a link.
    pub const fn new(link: u32, mtu: u32, mac: [u8; 6], gateway: [u8; 6]) -> Self {
        Pod {
            link,
            mtu,
            mac,
            gateway,
            zero: 0,
        }
    }
}

/// A range of pods' addresses, as a key of a trie: 20 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Range {
    /// Its length in bits, of the 128 that an address has.
    pub length: u32,
    /// Its first address.
    pub address: Address,
}

impl Range {
    /// The addresses that share `length` bits with one, counted as its own family does.
    pub fn new(address: Address, length: u8) -> Self {
        const MAPPED: u32 = 96;
        let above = if address.as_v4().is_some() { MAPPED } else { 0 };
        Range::around(address, above + u32::from(length))
    }

    /// The same by `length` bits of 128.
    pub fn around(address: Address, length: u32) -> Self {
        let Address(mut octets) = address;
        let mut left = length;
        for octet in &mut octets {
            let kept = left.min(8);
            *octet &= !(0xff_u32 >> kept) as u8;
            left -= kept;
        }
        Range {
            length,
            address: Address(octets),
        }
    }
}

/// Where packets for a range go, and where such from there come from: 36 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "bytes", derive(zerocopy::IntoBytes, zerocopy::FromBytes))]
pub struct Way {
    /// The index of the link to the node that has it, by which the stack sends and gets its packets: where there is a tunnel,
    /// the tunnel's device. 0 where it is this node's own.
    pub link: u32,
    /// The largest packet that goes there, in bytes from the network header on.
    pub mtu: u32,
    /// The next router; the other end of the tunnel where a program puts packets into it.
    pub router: Address,
    /// The index of the link to the tunnel's other end, where a program puts packets into it; else 0.
    pub underlay: u32,
    /// The MAC address of the tunnel's other end, where a program puts packets into it.
    pub mac: [u8; 6],
    zero: [u8; 2],
}

impl Way {
    /// To nowhere: a range of this node itself.
    pub const HERE: Way = Way::by(0, 0, Address([0; 16]));

    /// By a router on a link.
    pub const fn by(link: u32, mtu: u32, router: Address) -> Self {
        Way {
            link,
            mtu,
            router,
            underlay: 0,
            mac: [0; 6],
            zero: [0; 2],
        }
    }

    /// The same, put into the tunnel to its other end, `node`, by a program.
    pub const fn inside(self, underlay: u32, node: Address, mac: [u8; 6]) -> Self {
        Way {
            router: node,
            underlay,
            mac,
            ..self
        }
    }
}

/// What is asked of the maps.
pub trait Paths {
    /// The pod of this node that has an address, and that no policy is about.
    fn pod(&self, address: &Address) -> Option<Pod>;
    /// The range that an address of a pod is in.
    fn way(&self, address: &Address) -> Option<Way>;
    /// This node's end of the tunnel, where a program is at the underlay.
    fn tunnel(&self) -> Option<Tunnel>;
    /// Whether the table translated a flow between these ends, or may have; whichever end of [`Tuple::either`] began it.
    fn is_translated(&self, ends: &Tuple) -> bool;
    /// Remembers a connection that is asked for.
    fn begin(&self, connection: &Tuple);
    /// It was accepted, if somebody asked for it.
    fn accept(&self, connection: &Tuple);
    /// Forgets it.
    fn end(&self, connection: &Tuple);
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Into the stack.
    Stack,
    /// Into a pod of this node.
    Pod(Pod),
    /// To another node.
    Node(Way),
    /// To another node in the tunnel.
    Tunnel(Way),
}

/// For a packet that came from a pod by `link`. `largest` is what [`Headers::largest`] says of it.
#[inline(always)]
pub fn from_pod(paths: &impl Paths, link: u32, headers: &Headers, largest: u32) -> Next {
    let tuple = &headers.tuple;
    // Somebody else's address is the stack's to judge.
    if paths.pod(&tuple.source).is_none_or(|source| source.link != link) {
        return Next::Stack;
    }
    if let Some(pod) = paths.pod(&tuple.destination) {
        return forward(paths, headers, largest <= pod.mtu, Next::Pod(pod));
    }
    match paths.way(&tuple.destination) {
        Some(way) if way.underlay != 0 => forward(paths, headers, largest <= way.mtu, Next::Tunnel(way)),
        Some(way) if way.link != 0 => forward(paths, headers, largest <= way.mtu, Next::Node(way)),
        _ => Next::Stack,
    }
}

/// For a packet that came by a link to other nodes.
#[inline(always)]
pub fn from_node(paths: &impl Paths, link: u32, headers: &Headers, largest: u32) -> Next {
    let Some(pod) = paths.pod(&headers.tuple.destination) else {
        return Next::Stack;
    };
    // Whoever is no pod, or not there, is the stack's to judge.
    match paths.way(&headers.tuple.source) {
        Some(way) if way.link == link => forward(paths, headers, largest <= pod.mtu, Next::Pod(pod)),
        _ => Next::Stack,
    }
}

/// The pod for which another node, whose address is `node`, has put a packet into the tunnel that came by `link`; none where
/// the stack has to say.
#[inline(always)]
pub fn from_tunnel(
    paths: &impl Paths,
    link: u32,
    node: &Address,
    inner: &Headers,
    largest: u32,
) -> Option<Pod> {
    let pod = paths.pod(&inner.tuple.destination)?;
    let way = paths.way(&inner.tuple.source)?;
    if way.underlay != link || way.router != *node {
        return None;
    }
    match forward(paths, inner, largest <= pod.mtu, Next::Pod(pod)) {
        Next::Stack => None,
        _ => Some(pod),
    }
}

#[inline(always)]
fn forward(paths: &impl Paths, headers: &Headers, fits: bool, next: Next) -> Next {
    // A router answers for those that have come too far, or are too large.
    if headers.hops <= 1 || !fits {
        return Next::Stack;
    }
    if paths.is_translated(&headers.tuple) {
        return Next::Stack;
    }
    follow(paths, headers.flags, &headers.tuple);
    next
}

#[inline(always)]
fn follow(paths: &impl Paths, flags: Flags, tuple: &Tuple) {
    if flags.asks() {
        // By whom is as certain as the stack would have it: by its link.
        paths.begin(tuple);
    } else if flags.accepts() {
        paths.accept(&tuple.reversed());
    } else if flags.ends() {
        paths.end(tuple);
        paths.end(&tuple.reversed());
    }
}

/// Whether a flow that the table translated is to be noted: one whose answers could go past the stack.
#[inline(always)]
pub fn is_noteworthy(paths: &impl Paths, flow: &Tuple) -> bool {
    paths.way(&flow.source).is_some()
}
