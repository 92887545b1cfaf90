//! [`NodeState`] into the kernel: render, diff, apply.
//!
//! [`route`] keeps links, routes and the tunnel; [`nftables`] keeps services. [`Kernel`] applies one generation to both.
//! Everything lives in the network namespace of the thread that opened it.

pub mod delta;
pub mod monitor;
pub mod nftables;
pub mod route;
mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::{fmt, io};

use ipnet::IpNet;
use podnet_core::NodeState;
use podnet_core::route::RoutingState;

use monitor::Monitor;
use nftables::{NetfilterError, Nftables, Services};
use route::{Installed, RouteError, Routes, RoutesApplied};
pub use settings::{SettingError, Settings};

/// What turns states into a kernel's tables. It keeps nothing that it could not read back: a new one goes on where
/// another ended.
pub trait Dataplane {
    /// Makes the kernel's state the one of `want`, changing only what differs.
    fn apply(&mut self, want: &NodeState) -> Result<Applied, ApplyError>;
    /// The same for a state that follows the one applied last, while somebody listens to others' changes: what these
    /// could have changed unseen is not looked for, so it costs what differs between the two states.
    fn follow(&mut self, want: &NodeState) -> Result<Applied, ApplyError> {
        self.apply(want)
    }
    /// What the kernel has of ours, in the model's words.
    fn dump(&mut self) -> Result<Dump, ApplyError>;
    /// Leaves nothing of ours behind; says what it removed.
    fn clean(&mut self) -> Result<Vec<String>, ApplyError>;
}

/// Why a state is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Links, routes or tunnel.
    #[error("cannot set up routes: {0}")]
    Routes(#[from] RouteError),
    /// Services.
    #[error("cannot set up services: {0}")]
    Services(#[from] NetfilterError),
    /// How strict connection tracking is.
    #[error("{0}; without it a segment that comes late can end a connection to a service")]
    Tracking(SettingError),
    /// What settings of the node were before.
    #[error("cannot put the node's settings back: {0}")]
    Settings(SettingError),
}

/// What an application did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// How many entries of links, routes and the tunnel changed.
    pub route_changes: usize,
    /// How many elements, rules and chains changed.
    pub service_changes: usize,
    /// Largest packet a pod may send, in bytes; `None` while the node has no address.
    pub pod_mtu: Option<u32>,
    /// What the kernel refused, each hurting itself only.
    pub refused: Vec<String>,
}

impl Applied {
    /// Nothing had to be done.
    pub fn is_nothing(&self) -> bool {
        self.route_changes == 0 && self.service_changes == 0
    }
}

/// The kernel's own forwarding, and nftables for services.
#[derive(Debug)]
pub struct Kernel {
    routes: Routes,
    services: Nftables,
    settings: Settings,
    /// The routing that is in force unless others changed it, and what came of its application.
    routed: Option<(RoutingState, RoutesApplied)>,
}

impl Kernel {
    /// For the network namespace of the calling thread. `underlay` names the link between nodes where it is not the one
    /// that has the node's address.
    pub fn open(underlay: Option<String>) -> Result<Self, ApplyError> {
        Ok(Kernel {
            routes: Routes::open(underlay)?,
            services: Nftables::open()?,
            settings: Settings::default(),
            routed: None,
        })
    }

    /// Writes down in `file` what settings of the node were before they are changed, so that cleaning can put them back.
    pub fn keep_settings_in(&mut self, file: &Path) -> Result<(), ApplyError> {
        self.settings = Settings::kept_in(file).map_err(ApplyError::Settings)?;
        Ok(())
    }

    /// The node's settings, for others that have to change some of them.
    pub fn settings(&self) -> Settings {
        self.settings.clone()
    }

    /// The subnets that the link between nodes is on, where `local` is the node's address.
    pub fn subnets(&mut self, local: Option<IpAddr>) -> Result<BTreeSet<IpNet>, ApplyError> {
        Ok(self.routes.subnets(local)?)
    }

    /// Whether the tunnel's device leaves checksums to the hardware; none while there is no such device.
    pub fn checksum_offload(&mut self) -> Result<Option<bool>, ApplyError> {
        Ok(self.routes.checksum_offload()?)
    }

    /// The largest packets on routes of ours, in bytes, where that is less than their links take.
    pub fn path_mtu(&mut self) -> Result<BTreeMap<IpNet, u32>, ApplyError> {
        Ok(self.routes.dump()?.path_mtu)
    }

    /// Hears of others' changes from now on, in the network namespace of the calling thread, which must be the one this
    /// was opened in.
    pub fn monitor(&self) -> io::Result<Monitor> {
        Monitor::open(self.services.port(), self.routes.underlay_index())
    }

    fn route(&mut self, want: &RoutingState) -> Result<RoutesApplied, RouteError> {
        if let Some((routing, applied)) = &self.routed
            && routing == want
        {
            return Ok(applied.clone());
        }
        self.routed = None;
        let applied = self.routes.apply(want, &self.settings)?;
        // What was refused is tried again.
        if applied.refused.is_empty() {
            let again = RoutesApplied {
                changes: 0,
                ..applied.clone()
            };
            self.routed = Some((want.clone(), again));
        }
        Ok(applied)
    }

    /// What [`Dataplane::clean`] would remove.
    pub fn present(&mut self) -> Result<Vec<String>, ApplyError> {
        let mut present = self.routes.clean(false)?;
        if self.services.exists()? {
            present.push(table());
        }
        present.extend(self.settings.restore(false).map_err(ApplyError::Settings)?);
        Ok(present)
    }
}

fn table() -> String {
    format!("nftables table inet {}", nftables::TABLE)
}

impl Dataplane for Kernel {
    fn apply(&mut self, want: &NodeState) -> Result<Applied, ApplyError> {
        self.routed = None;
        self.follow(want)
    }

    fn follow(&mut self, want: &NodeState) -> Result<Applied, ApplyError> {
        // Routes first: a service must not lead where there is no way yet. But a failure of theirs keeps services from
        // nothing.
        let routes = self.route(&want.routing);
        let services = self.services.apply(want)?;
        // After the table, which loads connection tracking where it is a module.
        let tracking = nftables::be_liberal(&self.settings);
        let routes = routes?;
        Ok(Applied {
            route_changes: routes.changes,
            service_changes: services.changes() + usize::from(tracking.map_err(ApplyError::Tracking)?),
            pod_mtu: routes.pod_mtu,
            refused: routes.refused,
        })
    }

    fn dump(&mut self) -> Result<Dump, ApplyError> {
        Ok(Dump {
            routing: self.routes.dump()?,
            services: self.services.dump()?,
        })
    }

    fn clean(&mut self) -> Result<Vec<String>, ApplyError> {
        self.routed = None;
        // All are tried; the first failure is told.
        let services = self.services.clean();
        let routes = self.routes.clean(true);
        let settings = self.settings.restore(true).map_err(ApplyError::Settings);
        let mut removed = routes?;
        if services? {
            removed.push(table());
        }
        removed.extend(settings?);
        Ok(removed)
    }
}

/// What the kernel has of ours, in the model's words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dump {
    /// Tunnel and routes.
    pub routing: Installed,
    /// Services.
    pub services: Services,
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routing = &self.routing;
        if let Some(tunnel) = &routing.tunnel {
            writeln!(f, "tunnel {tunnel}")?;
        }
        routing
            .host_addresses
            .iter()
            .try_for_each(|address| writeln!(f, "address {address}"))?;
        for (destination, hop) in &routing.routes {
            write!(f, "route {destination} {hop}")?;
            if let Some(mtu) = routing.path_mtu.get(destination) {
                write!(f, " mtu {mtu}")?;
            }
            writeln!(f)?;
        }
        routing
            .neighbours
            .iter()
            .try_for_each(|(address, mac)| writeln!(f, "neighbour {address} {mac}"))?;
        routing
            .forwarding
            .iter()
            .try_for_each(|(mac, remote)| writeln!(f, "forwarding {mac} to {remote}"))?;
        write!(f, "{}", self.services)
    }
}
