//! EndpointSlices.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use super::names::is_label;
use super::node::{Family, is_unroutable};
use super::{NodeName, Protocol};

/// An EndpointSlice (discovery.k8s.io/v1) of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The service it belongs to, by name in the slice's namespace; `None` when it carries no such label.
    pub service: Option<super::ObjectName>,
    /// What its endpoints' addresses are.
    family: AddressFamily,
    /// Its ports.
    pub ports: Vec<EndpointPort>,
    /// Its endpoints.
    endpoints: Vec<Endpoint>,
}

/// `addressType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressFamily {
    /// IPv4 or IPv6 addresses.
    Ip(Family),
    /// Domain names: nothing a packet can be sent to, so such a slice has no endpoints here.
    Fqdn,
}

impl AddressFamily {
    /// By what the API calls it.
    pub fn named(text: &str) -> Option<Self> {
        match text {
            "IPv4" => Some(AddressFamily::Ip(Family::V4)),
            "IPv6" => Some(AddressFamily::Ip(Family::V6)),
            "FQDN" => Some(AddressFamily::Fqdn),
            _ => None,
        }
    }
}

/// A port of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// Its name, which is the service port's.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number; `None` means all ports, which no service port can be sent to.
    pub port: Option<NonZeroU16>,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address: the first of the object's; the API says that consumers use this one.
    pub address: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Serves, whether or not it is terminating.
    pub serving: bool,
    /// Is on its way out.
    pub terminating: bool,
    /// The node it is on.
    pub node: Option<NodeName>,
    /// Its name below the service's: a DNS label.
    pub hostname: Option<Arc<str>>,
    /// Who it is meant for.
    pub hints: Hints,
}

/// Whose clients an endpoint is meant for (`hints`): its service prefers short ways.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints {
    /// Those in these zones (`forZones`); empty says nothing.
    pub zones: Box<[Arc<str>]>,
    /// Those on these nodes (`forNodes`); empty says nothing.
    pub nodes: Box<[NodeName]>,
}

impl Endpoint {
    /// One that takes new connections.
    pub fn ready(address: IpAddr, node: Option<NodeName>) -> Self {
        Endpoint {
            address,
            ready: true,
            serving: true,
            terminating: false,
            node,
            hostname: None,
            hints: Hints::default(),
        }
    }
}

/// Why a slice's object cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SliceError {
    /// An address of another family than the slice's.
    #[error("endpoints: {0} is not of the slice's addressType")]
    Family(IpAddr),
    /// An address that no endpoint can have.
    #[error("endpoints: {0} is no address for an endpoint")]
    Address(IpAddr),
    /// More endpoints than the API allows: hardly an accident, and more than a node should have to take in.
    #[error("endpoints: there are {0}, and {MOST_ENDPOINTS} are allowed; use more slices")]
    TooMany(usize),
    /// A name that DNS cannot say.
    #[error("endpoints: hostname {0:?} is no DNS label")]
    Hostname(Arc<str>),
}

/// What Kubernetes allows.
const MOST_ENDPOINTS: usize = 1000;

impl EndpointSlice {
    /// A slice from its parts.
    pub fn new(
        service: Option<super::ObjectName>,
        family: AddressFamily,
        ports: Vec<EndpointPort>,
        endpoints: Vec<Endpoint>,
    ) -> Result<Self, SliceError> {
        if endpoints.len() > MOST_ENDPOINTS {
            return Err(SliceError::TooMany(endpoints.len()));
        }
        for endpoint in &endpoints {
            if family != AddressFamily::Ip(Family::of(endpoint.address)) {
                return Err(SliceError::Family(endpoint.address));
            }
            if is_unroutable(endpoint.address) {
                return Err(SliceError::Address(endpoint.address));
            }
            if let Some(hostname) = &endpoint.hostname
                && !is_label(hostname)
            {
                return Err(SliceError::Hostname(hostname.clone()));
            }
        }
        Ok(EndpointSlice {
            service,
            family,
            ports,
            endpoints,
        })
    }

    /// What its endpoints' addresses are.
    pub fn family(&self) -> AddressFamily {
        self.family
    }

    /// Its endpoints.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}
