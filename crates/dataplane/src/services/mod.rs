//! What carries services: the node's own table of nftables, or one of the back ends beside it.
//!
//! Whatever is not services stays in the table: host ports, masquerading, policy. A back end beside it renders a
//! state's services and nothing else, and gives the same answers to the same packets.

#[cfg(test)]
pub(crate) mod any;
mod dump;
mod flows;
pub(crate) mod share;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use podnet_core::NodeState;
use podnet_core::cluster::{DataplaneName, IpvsScheduler};
use podnet_core::ipam::Addressing;
use podnet_core::service::ServiceState;
use podnet_linux::ipvs::IpvsError;
use podnet_linux::netfilter::NetfilterError;
use podnet_linux::netlink::NetlinkError;

use crate::ebpf::{self, Ebpf, EbpfError};
use crate::iptables::{Iptables, Scope, TurnError, Turns};
use crate::ipvs::Ipvs;
use crate::settings::{SettingError, Settings};
use crate::userspace::{ProxyError, Site, Userspace};
pub use dump::{Fate, Services, Target};
pub use flows::Touched;

/// The bit of a packet's mark that says, from where destinations are translated to where sources are, that it was us who
/// translated it: connection tracking knows only that somebody did. It is kube-proxy's for the same.
pub(crate) const OURS: u32 = 0x4000;

/// Services by other means than the table. It keeps nothing that it could not read back, and belongs to the network
/// namespace of the thread that opened it.
pub trait ServiceBackend: fmt::Debug + Send {
    /// Has whatever is past the table's rules in `want` come back to them, before these rules are in force.
    fn make_way(&mut self, _want: &NodeState) -> Result<(), ServiceError> {
        Ok(())
    }
    /// Makes the kernel's state the one of `want`'s services, changing only what differs: what is added comes before
    /// what goes. Flows of UDP to what is gone are forgotten. Returns how many things changed.
    fn apply(&mut self, want: &NodeState) -> Result<usize, ServiceError>;
    /// Whether that left what takes long, and is carried in another way until it is there.
    fn has_rest(&self) -> bool {
        false
    }
    /// Does some of that, for the state that was applied last. Returns how many things changed.
    fn go_on(&mut self, _want: &NodeState) -> usize {
        0
    }
    /// Whether the table has all services as well, so that this only spares it what it can: what it leaves out, and what it
    /// cannot do at all, is carried all the same.
    fn is_in_front(&self) -> bool {
        false
    }
    /// What the kernel has of it, in the model's words.
    fn dump(&mut self) -> Result<Services, ServiceError>;
    /// What [`ServiceBackend::clean`] would remove. Nothing, and no error, where the kernel or the programs for it are
    /// missing: then it cannot have been there.
    fn present(&mut self) -> Result<Vec<String>, ServiceError>;
    /// Removes all of it, and says what that was.
    fn clean(&mut self) -> Result<Vec<String>, ServiceError>;
    /// Makes way for another back end, which is in force already: whoever is new goes there, and what is established here
    /// goes on until it ends.
    fn retire(&mut self) -> Result<Retired, ServiceError> {
        // Connection tracking knows where it leads.
        self.clean().map(|_| Retired::Gone)
    }
    /// What the last application left out, and why: nothing is wrong otherwise.
    fn left_out(&self) -> &[String] {
        &[]
    }
    /// How much of what it had put there others had changed, as the applications since this was asked last found it and
    /// put it back.
    fn take_put_back(&mut self) -> usize;
    /// How many entries a process was given since this was asked last, because the one that had them ended.
    fn take_proxied(&mut self) -> usize {
        0
    }
    /// What cannot be seen cheaply may have changed: the next application is to look.
    fn distrust(&mut self) {}
    /// Our own table changed, which took nftables from one generation of its rule set to another.
    fn table_changed(&mut self, _from: u32, _to: u32) {}
    /// Looks for others' changes; `None` where the kernel announces them in a way that [`crate::monitor`] hears.
    fn sentinel(&self) -> Option<Box<dyn Sentinel>> {
        None
    }
}

/// What is left of a back end that made way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retired {
    /// Nothing, or what ends by itself.
    Gone,
    /// What its connections need, so that it is to be asked again.
    Lingers,
}

/// What back ends are made with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setup {
    /// Where the proxy is, for the back end that has one.
    pub(crate) proxy: Option<Site>,
    /// Where programs are, for the back end that has them.
    pub(crate) ebpf: Option<ebpf::Site>,
    /// How IPVS chooses.
    pub(crate) scheduler: IpvsScheduler,
    /// The node's settings.
    pub(crate) settings: Settings,
    /// Where those that run iptables' programs wait for each other.
    pub(crate) turns: Turns,
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
    /// Programs in front of the table.
    #[error(transparent)]
    Ebpf(#[from] EbpfError),
    /// The proxy in user space.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// IPVS.
    #[error(transparent)]
    Ipvs(#[from] IpvsError),
    /// Routes to IPVS.
    #[error(transparent)]
    Routes(#[from] NetlinkError),
    /// The node's settings for a back end.
    #[error(transparent)]
    Settings(#[from] SettingError),
    /// Programs of iptables that somebody else's turn it is to run.
    #[error(transparent)]
    Turn(#[from] TurnError),
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
pub(crate) fn open(
    name: DataplaneName,
    setup: &Setup,
) -> Result<Option<Box<dyn ServiceBackend>>, ServiceError> {
    Ok(match name {
        DataplaneName::Nftables => None,
        DataplaneName::Ebpf => Some(Box::new(Ebpf::new(setup.ebpf.clone()))),
        DataplaneName::Ipvs => Some(Box::new(Ipvs::open(setup)?)),
        DataplaneName::Iptables => Some(Box::new(Iptables::open(Scope::Whole, setup.turns.clone())?)),
        DataplaneName::Userspace => Some(Box::new(Userspace::new(setup.proxy.clone()))),
    })
}

/// Every back end that is in the way of that one. IPVS, whose chains refer to those that are iptables' when that is
/// chosen, comes before it, and has them itself when it is chosen.
pub(crate) fn all_but(
    name: DataplaneName,
    setup: &Setup,
) -> Result<Vec<Box<dyn ServiceBackend>>, ServiceError> {
    let is_part = |other| (name, other) == (DataplaneName::Ipvs, DataplaneName::Iptables);
    let others = DataplaneName::ALL.into_iter();
    let others = others.filter(|other| *other != name && !is_part(*other));
    others
        .filter_map(|other| match open(other, setup) {
            // A kernel that lacks what a back end is made of has none of it.
            Err(ServiceError::Netfilter(error)) if error.is_unsupported() => None,
            opened => opened.transpose(),
        })
        .collect()
}

/// Every back end beside the table.
pub(crate) fn all(setup: &Setup) -> Result<Vec<Box<dyn ServiceBackend>>, ServiceError> {
    all_but(DataplaneName::Nftables, setup)
}

/// What is left of a state for the table where another back end carries services. No host port is a service's, too: a
/// state has only the one that it is.
pub(crate) fn without_services(state: &NodeState) -> NodeState {
    let services = &state.services;
    let targets: BTreeSet<_> = services.host_ports.values().map(|target| target.ip()).collect();
    NodeState {
        generation: state.generation,
        node: state.node.clone(),
        routing: state.routing.clone(),
        addressing: Addressing::default(),
        services: Arc::new(ServiceState {
            host_ports: services.host_ports.clone(),
            local_endpoints: targets,
            // Whose address a host port's pod sees.
            pods: services.pods.clone(),
            // Node ports on loopback addresses need the table's guard.
            node_port_addresses: services.node_port_addresses.clone(),
            ..ServiceState::default()
        }),
        wired: Default::default(),
        masquerade: state.masquerade.clone(),
        names: None,
        policy: Arc::clone(&state.policy),
        announcements: Default::default(),
        problems: Vec::new(),
    }
}
