//! First and last addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The addresses from `first` to `last`, both of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bounds {
    /// The lowest.
    pub first: IpAddr,
    /// The highest.
    pub last: IpAddr,
}

/// The addresses of a range that a pod may have.
///
/// Left out are the network address, the gateway (the first host address, which bridges and other tools expect to be
/// the node's) and, in IPv4, the broadcast address. In a range of one or two addresses every address is a host's
/// (RFC 3021, RFC 6164).
pub fn hosts(range: IpNet) -> Bounds {
    let (network, end) = (number(range.network()), number(range.broadcast()));
    let (first, last) = match range {
        _ if end - network < 2 => (network, end),
        IpNet::V4(_) => (network + 2, end - 1),
        IpNet::V6(_) => (network + 2, end),
    };
    let ipv4 = range.addr().is_ipv4();
    Bounds {
        first: address(ipv4, first),
        last: address(ipv4, last),
    }
}

impl Bounds {
    /// All addresses of a range, those included that no pod may have.
    pub fn of(range: IpNet) -> Self {
        Bounds {
            first: range.network(),
            last: range.broadcast(),
        }
    }

    /// One address.
    pub fn only(address: IpAddr) -> Self {
        Bounds {
            first: address,
            last: address,
        }
    }

    /// Whether they are IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether an address is among them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    /// What both have.
    pub fn intersect(&self, other: &Bounds) -> Option<Bounds> {
        let both = Bounds {
            first: self.first.max(other.first),
            last: self.last.min(other.last),
        };
        (self.is_ipv4() == other.is_ipv4() && both.first <= both.last).then_some(both)
    }

    /// How many they are; 2^128 counts as one less.
    pub fn len(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    /// Never: there is a first.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// How many of them are in none of these ranges, which do not overlap.
    pub fn len_without(&self, out: &[IpNet]) -> u128 {
        let cut = out.iter().filter_map(|net| self.intersect(&Bounds::of(*net)));
        self.len().saturating_sub(cut.map(|cut| cut.len()).sum())
    }
}

pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

pub(super) fn address(ipv4: bool, number: u128) -> IpAddr {
    if ipv4 {
        // A number of an IPv4 address has 32 bits.
        Ipv4Addr::from_bits(number as u32).into()
    } else {
        Ipv6Addr::from_bits(number).into()
    }
}

/// The address after this one, in its family.
pub(crate) fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => address
            .to_bits()
            .checked_add(1)
            .map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(address) => address
            .to_bits()
            .checked_add(1)
            .map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}
