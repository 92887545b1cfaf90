//! What chains and sets are called. iptables takes names of 28 characters, ipset of 31.

use std::net::SocketAddr;

use podnet_core::cluster::Family;
use podnet_core::service::{Frontend, NodePort, PortName};
use sha2::{Digest, Sha256};

use crate::nftables::digit;
use crate::services::share::Audience;

/// The longest name of a chain.
const LONGEST: usize = 28;

/// Which clients a chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// This node and its pods, and others where they get the same.
    Inside,
    /// All others.
    Outside,
}

/// 80 bits of a digest: whoever names services must not find a name that leads to the same chain as another's.
fn digest(text: &str) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(text);
    let number = digest
        .iter()
        .take(10)
        .fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
    let letter = |place: u32| char::from(LETTERS[(number >> (5 * place) & 31) as usize]);
    (0..16).map(letter).collect()
}

/// `PODNET-WHAT-KEY`, with a digest for a key that does not fit.
pub(super) fn chain(what: &str, key: &str) -> String {
    let name = format!("PODNET-{what}-{key}");
    if name.len() <= LONGEST {
        return name;
    }
    format!("PODNET-{what}-{}", digest(key))
}

fn suffix(side: Side) -> &'static str {
    match side {
        Side::Inside => "",
        Side::Outside => " from outside",
    }
}

/// The chain that chooses an endpoint for an address.
pub(super) fn of_frontend(frontend: &Frontend, side: Side) -> String {
    format!("{CHOICE}{}", digest(&format!("{frontend}{}", suffix(side))))
}

/// The chain that chooses an endpoint for a node port.
pub(super) fn of_node_port(node_port: &NodePort, side: Side) -> String {
    let key = format!("node port {node_port}{}", suffix(side));
    format!("{CHOICE}{}", digest(&key))
}

/// A chain of those by which another chain chooses.
pub(super) fn of_slots(chain: &str, what: &str) -> String {
    format!("PODNET-M-{}", digest(&format!("{chain} {what}")))
}

/// The chain that leads clients who stay to their endpoint.
pub(super) fn of_endpoint(port: &PortName, endpoint: SocketAddr) -> String {
    format!("PODNET-EP-{}", digest(&format!("{port} {endpoint}")))
}

/// The set of the clients that stay with an endpoint.
pub(super) fn of_clients(port: &PortName, endpoint: SocketAddr) -> String {
    format!("{STAY}{}", digest(&format!("{port} {endpoint}")))
}

/// How names of chains that choose an endpoint begin.
pub(in super::super) const CHOICE: &str = "PODNET-SVC-";

/// How names of sets of clients begin.
pub(in super::super) const STAY: &str = "PODNET-STAY-";

/// What the sets of what IPVS carries are called: addresses with their ports, or with `PORT` the node's own ports.
pub(in super::super) fn of_audience(what: &str, audience: Audience) -> &'static str {
    match (what, audience) {
        ("", Audience::Everybody) => "IPVS",
        ("", Audience::Outside) => "IPVS-OUT",
        (_, Audience::Everybody) => "IPVS-PORT",
        (_, Audience::Outside) => "IPVS-PORT-OUT",
    }
}

/// A set that each family has one of.
pub(in super::super) fn set(what: &str, family: Family) -> String {
    format!("PODNET-{what}{}", digit(family))
}
