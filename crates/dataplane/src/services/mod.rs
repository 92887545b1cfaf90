//! What carries services: the node's own table of nftables, or one of the back ends beside it.
//!
//! Whatever is not services stays in the table: host ports, masquerading, later policy. A back end beside it renders a
//! state's services and nothing else, and gives the same answers to the same packets.

#[cfg(test)]
pub(crate) mod any;
mod dump;
mod flows;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use podnet_core::NodeState;
use podnet_core::cluster::DataplaneName;
use podnet_core::ipam::Addressing;
use podnet_core::policy::PolicyState;
use podnet_core::service::{Frontend, HostAddress, HostPort, NodePort, ServiceState};
use podnet_linux::netfilter::NetfilterError;

pub use dump::{Fate, Services, Target};
pub use flows::Touched;

use crate::iptables::Iptables;

/// Services by other means than the table. It keeps nothing that it could not read back, and belongs to the network
/// namespace of the thread that opened it.
pub trait ServiceBackend: fmt::Debug + Send {
    /// Makes the kernel's state the one of `want`'s services, changing only what differs: what is added comes before
    /// what goes. Flows of UDP to what is gone are forgotten. Returns how many things changed.
    fn apply(&mut self, want: &NodeState) -> Result<usize, ServiceError>;
    /// What the kernel has of it, in the model's words.
    fn dump(&mut self) -> Result<Services, ServiceError>;
    /// What [`ServiceBackend::clean`] would remove. Nothing, and no error, where the kernel or the programs for it are
    /// missing: then it cannot have been there.
    fn present(&mut self) -> Result<Vec<String>, ServiceError>;
    /// Removes all of it, and says what that was.
    fn clean(&mut self) -> Result<Vec<String>, ServiceError>;
    /// What cannot be seen cheaply may have changed: the next application is to look.
    fn distrust(&mut self) {}
    /// Our own table changed, which took nftables from one generation of its rule set to another.
    fn table_changed(&mut self, _from: u32, _to: u32) {}
    /// Looks for others' changes; `None` where the kernel announces them in a way that [`crate::monitor`] hears.
    fn sentinel(&self) -> Option<Box<dyn Sentinel>> {
        None
    }
}

/// Looks now and then whether somebody else changed what is a back end's, where nothing announces it.
pub trait Sentinel: Send {
    /// Whether somebody did since this or [`ServiceBackend::apply`] last looked. It is asked twice a second and should
    /// cost next to nothing.
    fn is_disturbed(&mut self) -> bool;
    /// Whether the back end itself changes nftables through sockets that are not ours, so that such a change is a
    /// disturbance only if the sentinel says so.
    fn knows_nftables(&self) -> bool {
        false
    }
}

/// Why services are not in force.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// nftables, or connection tracking.
    #[error(transparent)]
    Netfilter(#[from] NetfilterError),
    /// A program that is needed.
    #[error("{program}: {why}")]
    Program {
        /// Its name.
        program: String,
        /// What it said.
        why: String,
    },
    /// No variant of iptables.
    #[error(
        "neither iptables-nft-restore nor iptables-legacy-restore is there: install iptables, or choose another --dataplane"
    )]
    NoProgram,
}

/// The back end of that name beside the table; `None` for the table itself. Nothing is asked of the kernel that it may
/// not have: that is for [`ServiceBackend::apply`] to tell.
pub(crate) fn open(name: DataplaneName) -> Result<Option<Box<dyn ServiceBackend>>, ServiceError> {
    match name {
        DataplaneName::Nftables => Ok(None),
        DataplaneName::Iptables => Ok(Some(Box::new(Iptables::open()?))),
    }
}

/// Every back end but that one.
pub(crate) fn all_but(name: DataplaneName) -> Result<Vec<Box<dyn ServiceBackend>>, ServiceError> {
    let others = DataplaneName::ALL.into_iter().filter(|other| *other != name);
    others.filter_map(|other| open(other).transpose()).collect()
}

/// Every back end beside the table.
pub(crate) fn all() -> Result<Vec<Box<dyn ServiceBackend>>, ServiceError> {
    all_but(DataplaneName::Nftables)
}

/// What is left of a state for the table where another back end carries services. A service takes its address and port
/// from a host port, as it does where both are in the table.
pub(crate) fn without_services(state: &NodeState) -> NodeState {
    let services = &state.services;
    let everywhere = services.node_port_addresses.is_none();
    let taken = |host_port: &HostPort| {
        let HostPort {
            address,
            protocol,
            port,
        } = *host_port;
        match address {
            HostAddress::One(address) => services.frontends.contains_key(&Frontend {
                address,
                protocol,
                port,
            }),
            HostAddress::Any(family) => {
                everywhere
                    && services.node_ports.contains_key(&NodePort {
                        family,
                        protocol,
                        port,
                    })
            }
        }
    };
    let host_ports = services
        .host_ports
        .iter()
        .filter(|(host_port, _)| !taken(host_port));
    let host_ports = host_ports
        .map(|(host_port, target)| (*host_port, *target))
        .collect();
    let targets: BTreeSet<_> = services.host_ports.values().map(|target| target.ip()).collect();
    NodeState {
        generation: state.generation,
        node: state.node.clone(),
        routing: state.routing.clone(),
        addressing: Addressing::default(),
        services: Arc::new(ServiceState {
            host_ports,
            local_endpoints: targets,
            ..ServiceState::default()
        }),
        masquerade: state.masquerade.clone(),
        names: None,
        policy: PolicyState::default(),
        announcements: Default::default(),
        problems: Vec::new(),
    }
}
