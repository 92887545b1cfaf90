//! Which node has an address: rendezvous hashing.
//!
//! Every node has a weight for every address, and of those that may have it the heaviest does. So whoever sees the same
//! nodes chooses the same one without asking; one that goes leaves only its own addresses to others, and one that comes
//! takes only what becomes its own.

use std::net::IpAddr;

use crate::cluster::NodeName;

/// How fit a node is that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It could not put the newest state into its kernel. It is chosen only where nobody could: the kernel goes on with the
    /// state before.
    Behind,
    /// Its kernel has what it should have.
    InForce,
}

/// Which of these nodes has the address.
pub fn speaker<'a>(
    address: IpAddr,
    nodes: impl IntoIterator<Item = (&'a NodeName, Standing)>,
) -> Option<&'a NodeName> {
    let of_address = mix(fold(&octets(address)));
    let nodes = nodes.into_iter();
    let heaviest = nodes.max_by_key(|(name, standing)| {
        let weight = mix(of_address ^ fold(name.as_str().as_bytes()));
        (*standing, weight, *name)
    });
    heaviest.map(|(name, _)| name)
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// FNV-1a, 64 bits. It has to be the same on all nodes, of whatever version: it is part of the protocol.
fn fold(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finalizer of SplitMix64: every bit of the input changes half of the output's.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
