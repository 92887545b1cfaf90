//! Whether packets get from this node's pods to those of other nodes: how long they take, how large they may be, and
//! whether their checksums survive.
//!
//! [`Prober`] decides what to send and what the answers mean. It has no socket and no clock: the caller sends what
//! [`Prober::poll`] returns, passes in what comes back, and says what time it is.
//!
//! A probe is sent from this node's address among its pods to the peer's, so that it goes the way pods' packets go,
//! encapsulated where they are. A path is asked in rounds:
//!
//! 1. a small probe, whose UDP checksum the kernel leaves to the device if that offers it, as it does with pods' packets;
//! 2. if it is lost, another without a checksum. When those pass and the others do not, checksums arrive wrong;
//! 3. a probe of the largest size that should pass, not to be fragmented. When those are lost and small ones pass, the
//!    largest that does is searched for.
//!
//! An answer that comes late counts as one: machines that have no time are not to be told from broken paths by a clock.

mod notice;
mod prober;
mod search;
mod watched;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::cluster::NodeName;
use crate::route::{Hop, RoutingState, Tunnel};
pub use notice::{Notice, notices};
pub use prober::{Prober, Settings, Transmit};

/// Time since a moment that the caller chose.
pub type Time = Duration;

/// A path: to a range of a peer. What its packets go through depends on the range's family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathKey {
    /// The other node.
    pub peer: NodeName,
    /// Its range.
    pub range: IpNet,
}

/// A path that is to be probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// This node's address among its pods.
    pub from: IpAddr,
    /// The peer's.
    pub to: IpAddr,
    /// The largest packet that this node's link takes, in bytes.
    pub link_mtu: u32,
    /// The largest that was known to pass, from a former life.
    pub known_mtu: Option<u32>,
    /// The path is through our tunnel.
    pub tunnel: bool,
}

/// The paths to the peers that a node has routes to, where a pod's packets may have `pod_mtu` bytes.
pub fn targets(routing: &RoutingState, pod_mtu: u32) -> BTreeMap<PathKey, Target> {
    let source = |range: &IpNet| {
        let mut own = routing.pod_ranges.iter();
        own.find(|own| own.addr().is_ipv4() == range.addr().is_ipv4())
            .map(IpNet::network)
    };
    let overhead = routing.tunnel.as_ref().map_or(0, Tunnel::overhead);
    let target = |(range, peer): (&IpNet, &NodeName)| {
        let (link_mtu, tunnel) = match routing.routes.get(range)? {
            Hop::Tunnel(_) => (pod_mtu, true),
            Hop::Via(_) => (pod_mtu + overhead, false),
            Hop::Unreachable | Hop::Sink => return None,
        };
        let key = PathKey {
            peer: peer.clone(),
            range: *range,
        };
        let target = Target {
            from: source(range)?,
            to: range.network(),
            link_mtu,
            known_mtu: routing.path_mtu.get(range).copied(),
            tunnel,
        };
        Some((key, target))
    };
    routing.owners.iter().filter_map(target).collect()
}

/// Whether packets arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Not known yet.
    Unknown,
    /// They do.
    Reachable,
    /// They do, but the peer's agent does not answer: it is not running, or too old.
    NoAgent,
    /// They do not.
    Unreachable,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reach::Unknown => "unknown",
            Reach::Reachable => "reachable",
            Reach::NoAgent => "no agent",
            Reach::Unreachable => "unreachable",
        })
    }
}

/// Whether checksums that are left to the device arrive right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checksums {
    /// Not known yet.
    Unknown,
    /// They do.
    Right,
    /// They do not: the peer drops such packets.
    Wrong,
}

impl fmt::Display for Checksums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Checksums::Unknown => "unknown",
            Checksums::Right => "right",
            Checksums::Wrong => "wrong",
        })
    }
}

/// What is known of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Which.
    pub key: PathKey,
    /// The peer's address that is probed.
    pub to: IpAddr,
    /// Whether packets arrive.
    pub reach: Reach,
    /// There and back, smoothed.
    pub latency: Option<Duration>,
    /// The largest packet that passes, in bytes, once that is known.
    pub mtu: Option<u32>,
    /// The largest that this node's link takes.
    pub link_mtu: u32,
    /// Whether checksums arrive right.
    pub checksums: Checksums,
    /// Bytes arrived changed although a checksum said they were right.
    pub corrupt: u64,
    /// The path is through our tunnel.
    pub tunnel: bool,
}

impl Report {
    /// Less passes than the link takes.
    pub fn is_narrow(&self) -> bool {
        self.mtu.is_some_and(|mtu| mtu < self.link_mtu)
    }

    /// What matters of it, without what changes from probe to probe.
    pub fn verdict(&self) -> (Reach, Option<u32>, Checksums) {
        (self.reach, self.mtu.filter(|_| self.is_narrow()), self.checksums)
    }
}

/// SplitMix64: well-spread numbers from a counter.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests;
