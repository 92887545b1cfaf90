//! From a node's services to the virtual services they ask for. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use podnet_core::cluster::{Family, IpvsScheduler, Protocol};
use podnet_core::service::{Backend, Entry, Frontend, NodePort, ServiceState};
use podnet_linux::ipvs::{Scheduling, Virtual};

use crate::services::share;

/// Bits of a virtual service's flags that mean nothing to the kernel: by them ours are known, which have no name.
const OURS: u32 = 0x504e_0000;
const OURS_MASK: u32 = 0xffff_0000;
/// `IP_VS_SVC_F_SCHED1` and `2`. For sh and mh: a client whose destination takes no more gets another; ports count, too.
const FALLBACK_AND_PORT: u32 = 0x18;

/// A virtual service as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VirtualService {
    /// Who gets new connections.
    pub endpoints: BTreeSet<SocketAddr>,
    /// Who keeps those there are, and gets no others.
    pub draining: BTreeSet<SocketAddr>,
}

/// All that there should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VirtualServices(pub BTreeMap<Virtual, VirtualService>);

/// The virtual services for a state.
pub fn render(services: &ServiceState) -> VirtualServices {
    let by_address = services.frontends.iter();
    let by_address =
        by_address.filter_map(|(frontend, entry)| Some((of_frontend(frontend), of_address(entry)?)));
    let by_mark = services.node_ports.iter();
    let by_mark =
        by_mark.filter_map(|(node_port, entry)| Some((of_node_port(node_port), of_port(services, entry)?)));
    VirtualServices(by_address.chain(by_mark).collect())
}

/// The one for what is known under a key, if any.
pub(super) fn wanted(services: &ServiceState, key: Virtual) -> Option<VirtualService> {
    match key {
        Virtual::Address { .. } => of_address(services.frontends.get(&frontend(key)?)?),
        Virtual::Mark { six, mark } => {
            let family = if six { Family::V6 } else { Family::V4 };
            let entry = services.node_ports.get(&share::node_port(family, mark)?);
            of_port(services, entry?)
        }
    }
}

fn of_address(entry: &Entry) -> Option<VirtualService> {
    share::of_ipvs(entry).map(|(_, backend)| carried(backend))
}

fn of_port(services: &ServiceState, entry: &Entry) -> Option<VirtualService> {
    share::of_ipvs_port(services, entry).map(|(_, backend)| carried(backend))
}

fn carried(backend: &Backend) -> VirtualService {
    let draining = match backend {
        Backend::Balance { draining, .. } => draining.iter().copied().collect(),
        Backend::Refuse | Backend::Drop => BTreeSet::new(),
    };
    VirtualService {
        endpoints: backend.endpoints().iter().copied().collect(),
        draining,
    }
}

/// What an address, protocol and port are to IPVS.
pub(super) fn of_frontend(frontend: &Frontend) -> Virtual {
    Virtual::Address {
        address: frontend.address,
        protocol: frontend.protocol.number(),
        port: frontend.port.get(),
    }
}

/// What a node port is to IPVS: the mark that its packets get.
pub(super) fn of_node_port(node_port: &NodePort) -> Virtual {
    Virtual::Mark {
        six: node_port.family == Family::V6,
        mark: share::mark(node_port),
    }
}

/// The other way round.
pub(super) fn frontend(key: Virtual) -> Option<Frontend> {
    let Virtual::Address {
        address,
        protocol,
        port,
    } = key
    else {
        return None;
    };
    Some(Frontend {
        address,
        protocol: Protocol::from_number(protocol)?,
        port: port.try_into().ok()?,
    })
}

/// Whether datagrams come to it, which have no connections that could end.
pub(super) fn is_of_datagrams(key: Virtual) -> bool {
    let protocol = match key {
        Virtual::Address { protocol, .. } => Protocol::from_number(protocol),
        Virtual::Mark { mark, .. } => share::node_port(Family::V4, mark).map(|port| port.protocol),
    };
    protocol == Some(Protocol::Udp)
}

/// How all of ours choose.
pub(super) fn scheduling(scheduler: IpvsScheduler) -> Scheduling {
    let flags = match scheduler {
        IpvsScheduler::SourceHashing | IpvsScheduler::MaglevHashing => FALLBACK_AND_PORT,
        _ => 0,
    };
    Scheduling {
        scheduler: scheduler.to_string(),
        flags: OURS | flags,
        stays: None,
    }
}

/// Whether a virtual service is one of ours.
pub(super) fn is_ours(found: &Scheduling) -> bool {
    found.flags & OURS_MASK == OURS
}

impl fmt::Display for VirtualServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, service) in &self.0 {
            writeln!(f, "{key}")?;
            let mut endpoints = service.endpoints.iter();
            endpoints.try_for_each(|endpoint| writeln!(f, "  {endpoint}"))?;
            let mut draining = service.draining.iter();
            draining.try_for_each(|endpoint| writeln!(f, "  {endpoint} draining"))?;
        }
        Ok(())
    }
}
