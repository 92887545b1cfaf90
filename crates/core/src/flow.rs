//! A new connection, as policy sees it: after the destination was chosen, before any source translation.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::cluster::Protocol;

/// A new connection, or a packet that belongs to none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// Who sends: the pod's own address.
    pub from: IpAddr,
    /// Who receives: the chosen endpoint's address where the client asked for a service.
    pub to: IpAddr,
    /// Names that the sender has resolved into `to`.
    pub names: BTreeSet<String>,
    /// What is sent.
    pub traffic: Traffic,
    /// The client asked for a service's address. It matters to a pod that is sent back to itself: such a packet leaves
    /// the pod, one to its own address does not.
    pub through_service: bool,
}

impl Flow {
    /// A connection between two addresses.
    pub fn new(from: IpAddr, to: IpAddr, traffic: Traffic) -> Self {
        Flow {
            from,
            to,
            names: BTreeSet::new(),
            traffic,
            through_service: false,
        }
    }
}

/// What a packet carries, as far as policies tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// A protocol with ports, and the destination's port.
    Port(Protocol, NonZeroU16),
    /// ICMP that belongs to no connection, such as an echo request; and whatever else has no ports.
    Icmp,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Traffic::Port(protocol, port) => write!(f, "{protocol} {port}"),
            Traffic::Icmp => f.write_str("icmp"),
        }
    }
}
