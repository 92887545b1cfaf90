//! [`NodeState`] into the kernel: render, diff, apply.
//!
//! [`route`] keeps links, routes and the tunnel; [`nftables`] keeps the node's table, and services unless another of
//! [`services`]' back ends does. [`Kernel`] applies one generation to all.
//! Everything lives in the network namespace of the thread that opened it.

mod conntrack;
pub mod delta;
pub mod ebpf;
mod existing;
pub mod iptables;
pub mod ipvs;
#[cfg(test)]
mod judge;
mod lock;
pub mod monitor;
pub mod nftables;
mod own;
mod repair;
pub mod route;
pub mod services;
mod settings;
pub mod userspace;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::{fmt, io};

use ipnet::IpNet;
use podnet_core::NodeState;
use podnet_core::cluster::{DataplaneName, IpvsScheduler};
use podnet_core::route::RoutingState;
use podnet_core::service::NodePort;
use podnet_linux::netfilter::NetfilterError;

use ebpf::Ebpf;
use iptables::Turns;
use monitor::Monitor;
use nftables::Nftables;
pub use repair::Repair;
use repair::Routed;
use route::{Installed, RouteError, Routes, RoutesApplied};
use services::{Retired, ServiceBackend, ServiceError, Services, Setup};
pub use settings::{SettingError, Settings};
use userspace::{Site, Userspace};

/// What turns states into a kernel's tables. It keeps nothing that it could not read back: a new one goes on where
/// another ended.
pub trait Dataplane {
    /// Makes the kernel's state the one of `want`, changing only what differs, but for what takes long and is carried in
    /// another way until it is there: that is left to [`Dataplane::go_on`].
    fn begin(&mut self, want: &NodeState, look: Look) -> Result<Applied, ApplyError>;
    /// Whether anything is left so.
    fn has_rest(&self) -> bool;
    /// Does some of what is left for the state that was begun last.
    fn go_on(&mut self, want: &NodeState) -> Step;
    /// All of it at once.
    fn apply(&mut self, want: &NodeState) -> Result<Applied, ApplyError> {
        let begun = self.begin(want, Look::Everywhere)?;
        Ok(self.finish(want, begun))
    }
    /// The same for a state that follows the one applied last.
    fn follow(&mut self, want: &NodeState) -> Result<Applied, ApplyError> {
        let begun = self.begin(want, Look::AtChanges)?;
        Ok(self.finish(want, begun))
    }
    /// Does all that is left.
    fn finish(&mut self, want: &NodeState, begun: Applied) -> Applied {
        let mut applied = begun;
        while self.has_rest() {
            let step = self.go_on(want);
            applied.service_changes += step.changes;
            applied.left_out = step.left_out;
        }
        applied
    }
    /// What the kernel has of ours, in the model's words.
    fn dump(&mut self) -> Result<Dump, ApplyError>;
    /// Leaves nothing of ours behind; says what it removed.
    fn clean(&mut self) -> Result<Vec<String>, ApplyError>;
}

/// What is compared with the state that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// What the kernel has.
    Everywhere,
    /// The state that was applied last, while somebody listens to others' changes: what these could have changed unseen is
    /// not looked for, so it costs what differs between the two states.
    AtChanges,
}

/// What going on did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// How much changed.
    pub changes: usize,
    /// As [`Applied::left_out`].
    pub left_out: Vec<String>,
}

/// Why a state is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Links, routes or tunnel.
    #[error("cannot set up routes: {0}")]
    Routes(#[from] RouteError),
    /// Services.
    #[error("cannot set up services: {0}")]
    Services(#[from] ServiceError),
    /// The table that host ports and masquerading are in, and services unless they are elsewhere.
    #[error("cannot set up nftables' table inet podnet: {0}")]
    Table(#[from] NetfilterError),
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
    /// What others had changed of what was in force, and is as it was wanted again. What failed before is in it, too.
    pub put_back: Repair,
    /// Largest packet a pod may send, in bytes; `None` while the node has no address.
    pub pod_mtu: Option<u32>,
    /// What the kernel refused, each hurting itself only.
    pub refused: Vec<String>,
    /// What this data plane cannot do, or what is somebody else's; nothing is wrong otherwise.
    pub left_out: Vec<String>,
}

impl Applied {
    /// Nothing had to be done.
    pub fn is_nothing(&self) -> bool {
        self.route_changes == 0 && self.service_changes == 0
    }
}

/// The kernel's own forwarding, our table of nftables, and a back end for services where these are not in the table, or
/// where something stands in front of it.
#[derive(Debug)]
pub struct Kernel {
    routes: Routes,
    /// None where the kernel has no netfilter.
    table: Option<Nftables>,
    name: DataplaneName,
    services: Option<Box<dyn ServiceBackend>>,
    /// Whoever opens a back end opens it with this.
    setup: Setup,
    /// The back end has had services once, so that the table has none: policies need not wait when it fails.
    is_carried: bool,
    /// What other back ends left has been looked for.
    is_alone: bool,
    /// Those that made way and still have connections.
    lingering: Vec<Box<dyn ServiceBackend>>,
    /// The routing that is in force unless others changed it, and what came of its application.
    routed: Option<Routed>,
    /// Connection tracking was set by us.
    tracked: bool,
    /// What was put back since it was told last: what fails afterwards keeps it from being told only for so long.
    put_back: Repair,
}

impl Kernel {
    /// For the network namespace of the calling thread. `underlay` names the link between nodes where it is not the one
    /// that has the node's address; `name` says what carries services.
    pub fn open(underlay: Option<String>, name: DataplaneName) -> Result<Self, ApplyError> {
        Ok(Kernel {
            routes: Routes::open(underlay)?,
            table: Nftables::open().ok(),
            name,
            services: services::open(name, &Setup::default())?,
            setup: Setup::default(),
            is_carried: false,
            is_alone: false,
            lingering: Vec::new(),
            routed: None,
            tracked: false,
            put_back: Repair::default(),
        })
    }

    /// The same, with a proxy at `site` where services are in user space, and for one there to be removed where they are
    /// not any more.
    pub fn with_proxy(mut self, site: Site) -> Result<Self, ApplyError> {
        self.setup.proxy = Some(site);
        self.open_again()?;
        Ok(self)
    }

    /// The same, with programs of eBPF at `site`, and for some there to be removed where they are not chosen any more.
    pub fn with_programs(mut self, site: ebpf::Site) -> Result<Self, ApplyError> {
        self.setup.ebpf = Some(site);
        self.open_again()?;
        Ok(self)
    }

    /// The same with another scheduler where IPVS carries services.
    pub fn with_scheduler(mut self, scheduler: IpvsScheduler) -> Result<Self, ApplyError> {
        self.setup.scheduler = scheduler;
        self.open_again()?;
        Ok(self)
    }

    fn open_again(&mut self) -> Result<(), ApplyError> {
        self.services = services::open(self.name, &self.setup)?;
        Ok(())
    }

    /// Writes down in `file` what settings of the node were before they are changed, so that cleaning can put them back.
    pub fn keep_settings_in(&mut self, file: &Path) -> Result<(), ApplyError> {
        self.setup.settings = Settings::kept_in(file).map_err(ApplyError::Settings)?;
        self.open_again()
    }

    /// Waits, before it has iptables' programs change anything, for those that agents before it have started and that
    /// outlived them. All agents of a node name the same directory.
    pub fn take_turns_in(&mut self, directory: &Path) -> Result<(), ApplyError> {
        self.setup.turns = Turns::within(directory);
        self.open_again()
    }

    /// What carries services.
    pub fn name(&self) -> DataplaneName {
        self.name
    }

    /// The node's settings, for others that have to change some of them.
    pub fn settings(&self) -> Settings {
        self.setup.settings.clone()
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

    /// The node ports in force, by whatever carries services or has carried them: a proxy's sockets are not somebody
    /// else's.
    pub fn node_ports(&mut self) -> Result<BTreeSet<NodePort>, ApplyError> {
        let mut node_ports = Userspace::new(self.setup.proxy.clone()).node_ports();
        // A proxy that carries services has been asked.
        if self.name != DataplaneName::Userspace {
            node_ports.extend(self.dump()?.services.node_ports.into_keys());
        }
        Ok(node_ports)
    }

    /// Hears of others' changes from now on, in the network namespace of the calling thread, which must be the one this
    /// was opened in.
    pub fn monitor(&mut self) -> io::Result<Monitor> {
        let sentinel = self.services.as_ref().and_then(|services| services.sentinel());
        let own = self.table.as_ref().map(Nftables::port);
        let monitor = Monitor::open(own, self.routes.underlay_index(), sentinel)?;
        if let Some(table) = &mut self.table {
            table.hush(monitor.listener());
        }
        Ok(monitor)
    }

    fn route(&mut self, want: &RoutingState) -> Result<RoutesApplied, RouteError> {
        if let Some(routed) = &self.routed
            && routed.is_sure
            && routed.want == *want
        {
            return Ok(routed.again());
        }
        // After a failure half-way nobody knows what is ours.
        let mut before = self.routed.take();
        let mut repaired = 0;
        if let Some(routed) = before.take_if(|routed| routed.want != *want)
            && let Ok(applied) = self.routes.apply(&routed.want, &self.setup.settings)
        {
            // Back to what was in force, so that the rest is a change of our own.
            repaired = routed.repaired(&applied);
        }
        let mut applied = self.routes.apply(want, &self.setup.settings)?;
        if let Some(routed) = before {
            repaired = routed.repaired(&applied);
        } else {
            applied.changes += repaired;
        }
        self.put_back.routes += repaired;
        self.routed = Some(Routed::new(want, &applied));
        Ok(applied)
    }

    /// Has segments judged by the sockets they are for; says whether they were not. After the table, which loads
    /// connection tracking where it is a module.
    fn track(&mut self) -> Result<bool, ApplyError> {
        if self.name == DataplaneName::Userspace && !conntrack::is_there() {
            return Ok(false);
        }
        let changed = conntrack::be_liberal(&self.setup.settings).map_err(ApplyError::Tracking)?;
        self.put_back.services += usize::from(changed && self.tracked);
        self.tracked = true;
        Ok(changed)
    }

    /// What the back ends found changed by others.
    fn take_put_back(&mut self) -> Repair {
        let of_table = self.table.as_mut().map_or(0, Nftables::take_put_back);
        let of_services = self
            .services
            .as_mut()
            .map_or(0, |services| services.take_put_back());
        self.put_back.services += of_table + of_services;
        self.put_back.proxied += self
            .services
            .as_mut()
            .map_or(0, |services| services.take_proxied());
        std::mem::take(&mut self.put_back)
    }

    /// What [`Dataplane::clean`] would remove.
    pub fn present(&mut self) -> Result<Vec<String>, ApplyError> {
        let mut present = self.routes.clean(false)?;
        for mut backend in services::all(&self.setup)? {
            present.extend(backend.present()?);
        }
        if let Some(table) = &mut self.table
            && table.exists()?
        {
            present.push(self::table());
        }
        present.extend(self.setup.settings.restore(false).map_err(ApplyError::Settings)?);
        Ok(present)
    }

    /// Services are in force throughout: another back end has them before the table lets them go, and the other way round.
    /// Returns how many things changed, and what was left out.
    fn apply_services(&mut self, want: &NodeState) -> Result<(usize, Vec<String>), ApplyError> {
        if self.name != DataplaneName::Ebpf && !self.is_alone {
            // What programs of another data plane lead past the table comes back to it first.
            let mut before = Ebpf::new(self.setup.ebpf.clone());
            before.make_way(want)?;
        }
        let Some(services) = &mut self.services else {
            return Ok((table_of(&mut self.table)?.apply(want)?.changes(), Vec::new()));
        };
        if services.is_in_front() {
            services.make_way(want)?;
            // The table first: it carries what the other leaves to it.
            let of_table = table_of(&mut self.table)?.apply(want)?.changes();
            let in_front = services.apply(want)?;
            return Ok((of_table + in_front, services.left_out().to_vec()));
        }
        let applied = match services.apply(want) {
            Err(error) if !self.is_carried => return Err(error.into()),
            applied => applied,
        };
        let of_table = table_of(&mut self.table).and_then(|table| {
            let transaction = table.apply_without_services(want);
            if let Some((from, to)) = table.take_step() {
                services.table_changed(from, to);
            }
            transaction
        });
        let changed = applied?;
        self.is_carried = true;
        let mut left_out = services.left_out().to_vec();
        let of_table = match of_table {
            Ok(transaction) => transaction.changes(),
            // The proxy is for kernels without nftables, too. But policies are in force there or nowhere.
            Err(error) if self.name == DataplaneName::Userspace && want.policy.is_open() => {
                left_out.push(format!("host ports and masquerading are not in force: {error}"));
                0
            }
            Err(error) => return Err(error.into()),
        };
        Ok((changed + of_table, left_out))
    }

    /// Has the next application look for what others may have changed.
    fn distrust(&mut self) {
        if let Some(routed) = &mut self.routed {
            routed.is_sure = false;
        }
        if let Some(services) = &mut self.services {
            services.distrust();
        }
        if self.is_alone {
            // What fails is tried again the next time.
            self.retire_lingering();
        }
    }

    /// Has other back ends make way, once services are in force by the one that is chosen. Established connections go on.
    /// Returns what could not be removed.
    fn remove_others(&mut self) -> Vec<String> {
        if self.is_alone {
            return Vec::new();
        }
        let failed = |error: ServiceError| format!("what another data plane left stays: {error}");
        match services::all_but(self.name, &self.setup) {
            Ok(others) => self.lingering = others,
            Err(error) => return vec![failed(error)],
        }
        let failures: Vec<String> = self.retire_lingering().into_iter().map(failed).collect();
        self.is_alone = failures.is_empty();
        failures
    }

    /// Those whose last connection has ended are gone then.
    fn retire_lingering(&mut self) -> Vec<ServiceError> {
        let mut failures = Vec::new();
        self.lingering.retain_mut(|other| match other.retire() {
            Ok(retired) => retired == Retired::Lingers,
            Err(error) => {
                failures.push(error);
                true
            }
        });
        failures
    }
}

/// The table, which there may be by now: netfilter is often a module.
fn table_of(table: &mut Option<Nftables>) -> Result<&mut Nftables, NetfilterError> {
    match table {
        Some(table) => Ok(table),
        None => Ok(table.insert(Nftables::open()?)),
    }
}

/// Whether packets from and to 127.0.0.0/8 may take any link.
const ROUTE_LOOPBACK: &str = "net/ipv4/conf/all/route_localnet";

fn table() -> String {
    format!("nftables table inet {}", nftables::TABLE)
}

impl Dataplane for Kernel {
    fn begin(&mut self, want: &NodeState, look: Look) -> Result<Applied, ApplyError> {
        if look == Look::Everywhere {
            self.distrust();
        }
        // Routes first: a service must not lead where there is no way yet. But a failure of theirs keeps services from
        // nothing.
        let routes = self.route(&want.routing);
        // A proxy is on the loopback address itself, and there may be no guard beside it.
        let on_loopback = self.name != DataplaneName::Userspace && want.services.has_node_ports_on_loopback();
        if !on_loopback {
            self.setup
                .settings
                .put_back(ROUTE_LOOPBACK)
                .map_err(ApplyError::Settings)?;
        }
        let (services, left_out) = self.apply_services(want)?;
        // Behind the table's guard, never without it.
        if on_loopback {
            self.setup
                .settings
                .ensure(ROUTE_LOOPBACK, "1")
                .map_err(ApplyError::Settings)?;
        }
        let left = self.remove_others();
        let tracking = self.track();
        let mut routes = routes?;
        routes.refused.extend(left);
        Ok(Applied {
            route_changes: routes.changes,
            service_changes: services + usize::from(tracking?),
            put_back: self.take_put_back(),
            pod_mtu: routes.pod_mtu,
            refused: routes.refused,
            left_out,
        })
    }

    fn has_rest(&self) -> bool {
        self.services.as_ref().is_some_and(|services| services.has_rest())
    }

    fn go_on(&mut self, want: &NodeState) -> Step {
        let Some(services) = &mut self.services else {
            return Step::default();
        };
        Step {
            changes: services.go_on(want),
            left_out: services.left_out().to_vec(),
        }
    }

    fn dump(&mut self) -> Result<Dump, ApplyError> {
        let mut services = match &mut self.table {
            Some(table) => table.dump()?,
            None => Services::default(),
        };
        if let Some(backend) = &mut self.services {
            services.add(backend.dump()?);
        }
        Ok(Dump {
            routing: self.routes.dump()?,
            services,
        })
    }

    fn clean(&mut self) -> Result<Vec<String>, ApplyError> {
        self.routed = None;
        self.tracked = false;
        // What is removed here is not missed later on.
        self.open_again()?;
        // All are tried; the first failure is told.
        let services: Vec<_> = services::all(&self.setup)?
            .into_iter()
            .map(|mut backend| backend.clean())
            .collect();
        let table = self.table.as_mut().map_or(Ok(false), Nftables::clean);
        let routes = self.routes.clean(true);
        let settings = self.setup.settings.restore(true).map_err(ApplyError::Settings);
        let mut removed = routes?;
        for of_backend in services {
            removed.extend(of_backend?);
        }
        if table? {
            removed.push(self::table());
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
