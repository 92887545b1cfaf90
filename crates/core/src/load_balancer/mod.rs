//! Which service of type LoadBalancer has which address. No clock, no history: what a service has stands in its status,
//! and it keeps that as long as it may.
//!
//! - [`Pools`]: which pools are in force, and for whom.
//! - [`assign`]: who is to have what, given who has what.
//!
//! An address is one service's, or that of several that agree to share it: they name the same key, their ports differ,
//! and none of them depends on which node a packet comes to unless all lead to the same pods.

mod assign;
mod book;
mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::cluster::{ExternalPolicy, Family, Labels, ObjectName, Protocol};
use crate::ipam::Standing;
use crate::service::Owner;
pub use assign::assign;
pub use pools::Pools;

/// The `spec.loadBalancerClass` that is ours; a service without one is ours, too, where there are pools.
pub const CLASS: &str = "podnet.io/load-balancer";

/// A service that is to have addresses from pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub service: ObjectName,
    /// When it was created, in seconds since 1970: of two that want the same, the older has it.
    pub created: i64,
    /// Its labels.
    pub labels: Labels,
    /// The families it is to have an address of (`spec.ipFamilies`).
    pub families: Vec<Family>,
    /// It needs all of them (`ipFamilyPolicy: RequireDualStack`, or there is one only).
    pub all_families: bool,
    /// Its ports.
    pub ports: BTreeSet<(Protocol, NonZeroU16)>,
    /// Which endpoints clients from outside get.
    pub policy: ExternalPolicy,
    /// Which pods it leads to; empty where others choose.
    pub selector: Labels,
    /// Whoever names the same key may have the same address.
    pub sharing_key: Option<String>,
    /// What it asks for by name, or why that cannot be read.
    pub wish: Result<Wish, String>,
    /// The addresses it has.
    pub held: Vec<IpAddr>,
}

/// What a service asks for by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wish {
    /// These addresses, one of a family at most.
    pub addresses: Vec<IpAddr>,
    /// Addresses of this pool.
    pub pool: Option<String>,
}

impl Wish {
    /// The address of a family that is asked for.
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        let mut addresses = self.addresses.iter().copied();
        addresses.find(|address| Family::of(*address) == family)
    }
}

/// Who is to have what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assignment {
    /// What every service that claims addresses gets.
    pub services: BTreeMap<ObjectName, Assigned>,
    /// How every pool stands.
    pub pools: BTreeMap<String, PoolUse>,
}

/// What one service gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assigned {
    /// Its addresses, in the order of its families.
    pub addresses: Vec<IpAddr>,
    /// What it lacks, and why.
    pub lacks: Vec<Lack>,
}

/// How a pool stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolUse {
    /// Whether it is in force.
    pub standing: Standing,
    /// Its IPv4 addresses.
    pub v4: Usage,
    /// Its IPv6 addresses.
    pub v6: Usage,
}

/// How many addresses a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// That services have.
    pub assigned: u128,
    /// That could be given still.
    pub available: u128,
}

/// Why a service lacks an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lack {
    /// Its wish cannot be read.
    Unreadable(String),
    /// It asks for an address of a family that it does not have.
    OtherFamily(IpAddr),
    /// It asks for an address that is in no pool in force.
    Unknown(IpAddr),
    /// It asks for a machine's own address: whose.
    Owned(IpAddr, Owner),
    /// It asks for an address of a pool that is not for it.
    NotForIt(IpAddr, String),
    /// It asks for an address of a pool out of which nothing is given any more.
    Closed(IpAddr, String),
    /// It asks for an address that another service has: which, and why they cannot share it.
    Taken(IpAddr, ObjectName, Apart),
    /// It asks for a pool that is not there or not in force.
    NoSuchPool(String),
    /// No pool in force is for it.
    NoPool,
    /// No pool for it has addresses of that family.
    NoFamily(Family),
    /// All addresses of that family are given, in these pools.
    Exhausted(Family, Vec<String>),
}

/// Why two services cannot have the same address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Apart {
    /// They do not name the same sharing key.
    Keys,
    /// Both have this port.
    Port(Protocol, NonZeroU16),
    /// One has `externalTrafficPolicy: Local`, and they do not lead to the same pods.
    Local,
}

impl Claim {
    /// Why it cannot have the same address as another one; nothing if it can.
    pub fn apart(&self, other: &Claim) -> Option<Apart> {
        if self.sharing_key.is_none() || self.sharing_key != other.sharing_key {
            return Some(Apart::Keys);
        }
        if let Some((protocol, port)) = self.ports.intersection(&other.ports).next() {
            return Some(Apart::Port(*protocol, *port));
        }
        let local = |claim: &Claim| claim.policy == ExternalPolicy::Local;
        let same_pods = !self.selector.is_empty()
            && self.selector == other.selector
            && self.service.namespace == other.service.namespace;
        // Under Local only some nodes may announce an address, and they must be the same for both.
        ((local(self) || local(other)) && !same_pods).then_some(Apart::Local)
    }
}

impl Lack {
    /// In one word, for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Lack::Unreadable(_) | Lack::OtherFamily(_) => "InvalidRequest",
            Lack::Unknown(_) | Lack::NotForIt(..) | Lack::Closed(..) => "AddressNotInPool",
            Lack::Taken(..) | Lack::Owned(..) => "AddressInUse",
            Lack::NoSuchPool(_) | Lack::NoPool | Lack::NoFamily(_) => "NoPool",
            Lack::Exhausted(..) => "PoolExhausted",
        }
    }
}

fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Apart::Keys => f.write_str("both need the same annotation podnet.io/sharing-key to share it"),
            Apart::Port(protocol, port) => write!(f, "both have {protocol} port {port}"),
            Apart::Local => f.write_str(
                "with externalTrafficPolicy Local they share it only if they select the same pods (spec.selector)",
            ),
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lack::Unreadable(why) => f.write_str(why),
            Lack::OtherFamily(address) => {
                write!(f, "{address} is of a family that the service does not have (spec.ipFamilies)")
            }
            Lack::Unknown(address) => write!(
                f,
                "{address} is in no LoadBalancerPool that is in force; add it to spec.ranges of one, or ask for another"
            ),
            Lack::Owned(address, owner) => {
                write!(f, "{address} is {owner}, which no service gets; ask for another")
            }
            Lack::NotForIt(address, pool) => write!(
                f,
                "{address} is of the LoadBalancerPool {pool}, whose selectors leave this service out"
            ),
            Lack::Closed(address, pool) => write!(
                f,
                "{address} is of the LoadBalancerPool {pool}, which is disabled"
            ),
            Lack::Taken(address, owner, apart) => {
                write!(f, "{address} is the address of service {owner}: {apart}")
            }
            Lack::NoSuchPool(pool) => {
                write!(f, "there is no LoadBalancerPool {pool} in force that is for this service")
            }
            Lack::NoPool => f.write_str(
                "no LoadBalancerPool in force is for this service: see serviceSelector, namespaceSelector and autoAssign",
            ),
            Lack::NoFamily(wanted) => write!(
                f,
                "no LoadBalancerPool for this service has {} addresses",
                family(*wanted)
            ),
            Lack::Exhausted(wanted, pools) => write!(
                f,
                "all {} addresses are given of LoadBalancerPool {}; add a range to spec.ranges",
                family(*wanted),
                pools.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests;
