//! NetworkPolicies (networking.k8s.io/v1) and ClusterNetworkPolicies (policy.networking.k8s.io/v1alpha2).
//!
//! They keep the API's shape: what is missing, what is empty, what was written. A part that could not be read stays as
//! [`Unread`] with the reason, because a policy must fail closed in that part and nowhere else.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use ipnet::IpNet;

use super::{Protocol, Selector};

/// A part of a policy, or why it cannot be read: in words for its owner, beginning with the field.
pub type Part<T> = Result<T, Unread>;

/// Why a part of a policy cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unread(pub String);

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which way a connection goes, seen from the pod a policy selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        })
    }
}

/// What becomes of connections that exist when a policy begins to deny them (`podnet.io/existing-connections`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// They are cut.
    #[default]
    Cut,
    /// They may go on.
    Keep,
}

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// `spec.podSelector`.
    pub pods: Part<Selector>,
    /// `spec.policyTypes`, if given.
    pub types: Option<Part<BTreeSet<Direction>>>,
    /// `spec.ingress`, if given.
    pub ingress: Option<Vec<NetworkPolicyRule>>,
    /// `spec.egress`, if given.
    pub egress: Option<Vec<NetworkPolicyRule>>,
    /// What its annotation says of connections that exist already.
    pub existing: Part<Existing>,
}

/// A rule of a NetworkPolicy: it accepts what it matches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkPolicyRule {
    /// `from` or `to`: one of them; when there is none, everybody.
    pub peers: Vec<Part<NetworkPolicyPeer>>,
    /// `ports`: one of them; when there is none, every port and whatever has no ports.
    pub ports: Vec<Part<NetworkPolicyPort>>,
}

/// A peer of a NetworkPolicy's rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkPolicyPeer {
    /// Pods by their labels and their namespace's.
    Pods {
        /// Of these namespaces; of the policy's own when it is missing.
        namespaces: Option<Selector>,
        /// All of them when it is missing.
        pods: Option<Selector>,
    },
    /// Addresses.
    Block(IpBlock),
}

/// A port of a NetworkPolicy's rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicyPort {
    /// The protocol; TCP when it is missing.
    pub protocol: Option<Protocol>,
    /// Which of its ports; all of them when it is missing.
    pub port: Option<PolicyPort>,
}

/// Ports of one protocol.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyPort {
    /// The numbers of a range.
    Numbers(PortRange),
    /// Whatever number the destination pod gives this name.
    Named(String),
}

/// Port numbers from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

impl PortRange {
    /// From `first` to `last`, both included; `None` when it would be empty.
    pub fn new(first: NonZeroU16, last: NonZeroU16) -> Option<Self> {
        (first <= last).then_some(PortRange { first, last })
    }

    /// One port.
    pub fn one(port: NonZeroU16) -> Self {
        PortRange {
            first: port,
            last: port,
        }
    }

    /// The first one.
    pub fn first(self) -> NonZeroU16 {
        self.first
    }

    /// The last one.
    pub fn last(self) -> NonZeroU16 {
        self.last
    }

    /// Whether a port is among them.
    pub fn contains(self, port: NonZeroU16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// A range of addresses with holes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    cidr: IpNet,
    except: BTreeSet<IpNet>,
}

/// Why a block of addresses is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// A range that is written as an address within it.
    #[error("{0} has bits set beyond its prefix; write {net}", net = .0.trunc())]
    HostBits(IpNet),
    /// A hole that is no part of the range.
    #[error("except {except} is no part of {cidr}")]
    Outside {
        /// The range.
        cidr: IpNet,
        /// The hole.
        except: IpNet,
    },
}

impl IpBlock {
    /// A range, and what is left out of it.
    pub fn new(cidr: IpNet, except: impl IntoIterator<Item = IpNet>) -> Result<Self, BlockError> {
        let except: BTreeSet<IpNet> = except.into_iter().collect();
        for range in except.iter().chain([&cidr]) {
            if range.addr() != range.network() {
                return Err(BlockError::HostBits(*range));
            }
        }
        match except.iter().find(|hole| !cidr.contains(*hole) || **hole == cidr) {
            Some(&except) => Err(BlockError::Outside { cidr, except }),
            None => Ok(IpBlock { cidr, except }),
        }
    }

    /// The range.
    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// Its holes.
    pub fn except(&self) -> impl Iterator<Item = IpNet> {
        self.except.iter().copied()
    }
}

/// A ClusterNetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNetworkPolicy {
    /// `spec.tier`.
    pub tier: Part<Tier>,
    /// `spec.priority`: 0 to 1000, lower first.
    pub priority: Part<u16>,
    /// `spec.subject`: the pods it applies to.
    pub subject: Part<PodSelection>,
    /// `spec.ingress`, in order.
    pub ingress: Vec<ClusterRule>,
    /// `spec.egress`, in order.
    pub egress: Vec<ClusterRule>,
    /// Fields of the spec that nobody here knows.
    pub unknown: Vec<Unread>,
    /// What its annotation says of connections that exist already.
    pub existing: Part<Existing>,
}

/// The tier of a ClusterNetworkPolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Before all NetworkPolicies.
    Admin,
    /// After them, for what they leave open.
    Baseline,
}

/// Pods by their labels and their namespace's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PodSelection {
    /// Of these namespaces.
    pub namespaces: Selector,
    /// These pods.
    pub pods: Selector,
}

/// A rule of a ClusterNetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRule {
    /// Its name, empty when it has none.
    pub name: String,
    /// What becomes of what it matches.
    pub action: Part<Action>,
    /// What it matches.
    pub matches: Part<ClusterMatch>,
}

/// What a rule of a ClusterNetworkPolicy matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterMatch {
    /// `from` or `to`: one of them; at least one is there.
    pub peers: Vec<ClusterPeer>,
    /// `protocols`: one of them; everything when it is missing.
    pub protocols: Option<Vec<ClusterPort>>,
}

/// What becomes of a connection that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// It is allowed.
    Accept,
    /// It is not.
    Deny,
    /// The next tier decides.
    Pass,
}

/// A peer of a ClusterNetworkPolicy's rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterPeer {
    /// `namespaces`: every pod of them.
    Namespaces(Selector),
    /// `pods`.
    Pods(PodSelection),
    /// `nodes`: the nodes' own addresses (egress only).
    Nodes(Selector),
    /// `networks` (egress only).
    Networks(Vec<IpNet>),
    /// `domainNames` (egress, and Accept only).
    DomainNames(Vec<DomainPattern>),
}

/// An element of `protocols`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterPort {
    /// `tcp`, `udp` or `sctp` with its `destinationPort`.
    Numbers(Protocol, PortRange),
    /// `destinationNamedPort`: of whatever protocol.
    Named(String),
}

/// A domain name, or all names below one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainPattern {
    /// `*.` stood before the name: one or more labels must.
    below: bool,
    /// Lower-case, without the root's dot.
    name: String,
}

/// A domain name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no domain name such as www.example.com or *.example.com")]
pub struct DomainError(String);

impl DomainPattern {
    /// Whether it stands for a name. Names are the same in whatever case (RFC 4343).
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        if !self.below {
            return name == self.name;
        }
        name.strip_suffix(&self.name)
            .and_then(|front| front.strip_suffix('.'))
            .is_some_and(|front| !front.is_empty())
    }

    /// Whether it stands for everything that `other` stands for.
    pub fn covers(&self, other: &DomainPattern) -> bool {
        self == other || self.below && (self.matches(&other.name) || other.below && self.name == other.name)
    }
}

impl FromStr for DomainPattern {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Self, DomainError> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let label = |label: &str| {
            label.chars().all(inner) && ends(label.chars().next()) && ends(label.chars().last())
        };
        if name.contains('.') && name.len() <= 253 && name.split('.').all(label) {
            Ok(DomainPattern {
                below,
                name: name.to_ascii_lowercase(),
            })
        } else {
            Err(DomainError(text.into()))
        }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_or_more_whole_labels() {
        let of = |text: &str| text.parse::<DomainPattern>().unwrap();
        let below = of("*.Kubernetes.io.");
        for (name, yes) in [
            ("www.kubernetes.io", true),
            ("latest.blog.KUBERNETES.io.", true),
            ("kubernetes.io", false),
            ("my-kubernetes.io", false),
            (".kubernetes.io", false),
        ] {
            assert_eq!(below.matches(name), yes, "{name}");
        }
        assert!(of("kubernetes.io").matches("kubernetes.io"));
        assert!(!of("kubernetes.io").matches("www.kubernetes.io"));
        assert!(below.covers(&of("www.kubernetes.io")) && below.covers(&of("*.blog.kubernetes.io")));
        assert!(below.covers(&below) && !below.covers(&of("kubernetes.io")));
        for bad in ["io", "*", "*.io", "a.*.io", "w*.example.com", "a..b", "-a.io", ""] {
            assert!(bad.parse::<DomainPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_block_has_no_host_bits_and_its_holes_within() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(IpBlock::new(net("10.0.0.0/8"), [net("10.1.0.0/16")]).is_ok());
        for (cidr, except, why) in [
            (
                "10.0.0.1/8",
                None,
                "10.0.0.1/8 has bits set beyond its prefix; write 10.0.0.0/8",
            ),
            (
                "10.0.0.0/8",
                Some("11.0.0.0/16"),
                "except 11.0.0.0/16 is no part of 10.0.0.0/8",
            ),
            (
                "10.0.0.0/8",
                Some("10.0.0.0/8"),
                "except 10.0.0.0/8 is no part of 10.0.0.0/8",
            ),
            (
                "10.0.0.0/8",
                Some("fd00::/64"),
                "except fd00::/64 is no part of 10.0.0.0/8",
            ),
        ] {
            let error = IpBlock::new(net(cidr), except.map(net)).unwrap_err();
            assert_eq!(error.to_string(), why);
        }
    }
}
