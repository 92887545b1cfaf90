//! Services through IPVS and ipset.
//!
//! Virtual services and their destinations are spoken to by netlink ([`render`], [`change`]). What leads packets there,
//! guards services' addresses and carries what IPVS cannot is [`crate::iptables`] beside it; [`way`] has marked packets
//! delivered to this machine. All of them may change at different moments: a virtual service is there before anything leads
//! to it, and goes after nothing does; nat goes before IPVS, so that a connection that another back end translates passes
//! by, whatever its mark.

mod change;
mod dump;
mod render;
mod watch;
mod way;

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use podnet_core::NodeState;
use podnet_core::service::ServiceState;
use podnet_linux::ipvs::{Ipvs as Socket, IpvsError, Scheduling, Virtual};
use podnet_linux::netlink::Netlink;
use podnet_linux::sysctl;

pub use change::{Change, Held, Holding, Step};
pub use render::{VirtualService, VirtualServices, render};

use crate::delta::Delta;
use crate::iptables::{Iptables, Scope};
use crate::services::{Retired, Sentinel, ServiceBackend, ServiceError, Services, Setup};
use crate::settings::Settings;
use watch::{Guard, Known, Shared};

/// The kernel's settings for IPVS are below this.
const SETTINGS: &str = "net/ipv4/vs/";
/// Connections are tracked, so that they can get another source; and a destination that goes takes along what leads to
/// it, so that the next datagram chooses anew.
const NEEDED: [&str; 2] = ["conntrack", "expire_nodest_conn"];
/// After how many seconds of idleness IPVS forgets an established connection if nobody says otherwise.
const USUAL_TIMEOUT: u32 = 900;
/// As connection tracking does.
const TIMEOUT: u32 = 432_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Ipvs {
    scheduling: Scheduling,
    settings: Settings,
    rules: Iptables,
    socket: Option<Socket>,
    netlink: Netlink,
    shared: Shared,
    /// The routes that are there.
    routes: BTreeSet<IpNet>,
    /// What we left there, where that has to be looked at again.
    left: Option<(Holding, BTreeSet<IpNet>)>,
    /// How much of what we left others had changed that is as it should be again, until somebody asks.
    put_back: usize,
    left_out: Vec<String>,
}

/// What happened on the way from one state to another.
enum Outcome {
    Done(usize),
    /// The kernel has something else than was known.
    Mistaken,
}

impl Ipvs {
    /// For the network namespace of the calling thread.
    pub(crate) fn open(setup: &Setup) -> Result<Self, ServiceError> {
        Ok(Ipvs {
            scheduling: render::scheduling(setup.scheduler),
            settings: setup.settings.clone(),
            rules: Iptables::open(Scope::Beside, setup.turns.clone())?,
            socket: None,
            netlink: Netlink::open()?,
            shared: Shared::default(),
            routes: BTreeSet::new(),
            left: None,
            put_back: 0,
            left_out: Vec::new(),
        })
    }

    fn socket(&mut self) -> Result<&mut Socket, IpvsError> {
        match &mut self.socket {
            Some(socket) => Ok(socket),
            empty => Ok(empty.insert(Socket::open()?)),
        }
    }

    /// The kernel's settings, the rule of the way, and all that the kernel has of ours. Says how much was not so.
    fn begin(&mut self) -> Result<(usize, Known), ServiceError> {
        let scheduling = self.scheduling.clone();
        let socket = self.socket()?;
        let mut changes = 0;
        if socket.tcp_timeout()? == USUAL_TIMEOUT {
            socket.set_tcp_timeout(TIMEOUT)?;
            changes += 1;
        }
        let holding = change::read(socket, &scheduling)?;
        for setting in NEEDED {
            changes += usize::from(self.settings.ensure(&format!("{SETTINGS}{setting}"), "1")?);
        }
        let (of_way, routes) = way::begin(&mut self.netlink)?;
        self.routes = routes;
        let waiting = holding.iter().filter(|(_, held)| held.is_waiting());
        let known = Known {
            services: Arc::default(),
            waiting: waiting.map(|(key, _)| *key).collect(),
            foreign: BTreeSet::new(),
            refused: BTreeSet::new(),
            holding,
        };
        Ok((changes + of_way, known))
    }

    /// From what is known to `want`. `is_sure` when it was read just now.
    fn go(&mut self, known: &mut Known, want: &NodeState, is_sure: bool) -> Result<Outcome, ServiceError> {
        let services = &want.services;
        // Then who has node ports is another matter.
        let on_loopback = |services: &ServiceState| services.has_node_ports_on_loopback();
        let is_other = on_loopback(&known.services) != on_loopback(services);
        let change = if is_sure || is_other {
            between_all(services, &known.holding)
        } else {
            between(&known.services, services, &known.holding)
        };
        let mut changes = match self.run(&change.grow, known, is_sure)? {
            Outcome::Mistaken => return Ok(Outcome::Mistaken),
            Outcome::Done(changes) => changes,
        };
        let same_ranges = known.services.ranges == services.ranges;
        known.services = Arc::clone(services);
        let is_all = is_sure || !same_ranges;
        changes += self.lead(known, &change, is_all)?;
        changes += self.rules.put(want)?;
        changes += match self.run(&change.shrink, known, is_sure)? {
            Outcome::Mistaken => return Ok(Outcome::Mistaken),
            Outcome::Done(changes) => changes,
        };
        let mut looked_at: BTreeSet<Virtual> = change.shrink.iter().map(Step::key).collect();
        if is_sure {
            looked_at.extend(known.waiting.iter().copied());
            looked_at.extend(unwanted(services, known));
        }
        self.reap(known, looked_at)?;
        self.stop_leading(known, &change, is_all)?;
        Ok(Outcome::Done(changes))
    }

    fn run(&mut self, steps: &[Step], known: &mut Known, is_sure: bool) -> Result<Outcome, ServiceError> {
        let scheduling = self.scheduling.clone();
        let mut changes = 0;
        for step in steps {
            if known.foreign.contains(&step.key()) {
                continue;
            }
            match step.run(self.socket()?, &scheduling, &mut known.holding) {
                Ok(()) => changes += 1,
                Err(error) if !is_sure && (error.is_there() || error.is_not_found()) => {
                    return Ok(Outcome::Mistaken);
                }
                Err(error) if error.is_there() && matches!(step, Step::Add(_)) => {
                    // One of ours that was not among those listed: whoever tries again reads all of them anew.
                    if self
                        .socket()?
                        .service(step.key())?
                        .is_some_and(|found| render::is_ours(&found))
                    {
                        return Err(error.into());
                    }
                    known.foreign.insert(step.key());
                }
                Err(error)
                    if error.is_invalid()
                        && let Step::Join(key, endpoint) = *step =>
                {
                    known.refused.insert((key, endpoint));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Outcome::Done(changes))
    }

    /// Removes what waits for nothing.
    fn reap(
        &mut self,
        known: &mut Known,
        keys: impl IntoIterator<Item = Virtual>,
    ) -> Result<(), ServiceError> {
        let scheduling = self.scheduling.clone();
        for key in keys {
            let is_wanted = render::wanted(&known.services, key).is_some();
            let done = change::reap(self.socket()?, &scheduling, &mut known.holding, key, is_wanted)?;
            match done {
                true => known.waiting.remove(&key),
                false => known.waiting.insert(key),
            };
        }
        Ok(())
    }

    /// Has addresses be this machine's that are not yet.
    fn lead(&mut self, known: &Known, change: &Change, is_all: bool) -> Result<usize, ServiceError> {
        let wanted = if is_all {
            way::wanted(&known.services, &known.holding)
        } else {
            let keys = change.grow.iter().map(Step::key);
            let addresses = keys.filter_map(|key| way::of_key(&known.services, key));
            addresses
                .filter(|address| way::is_used(&known.holding, *address))
                .map(IpNet::from)
                .collect()
        };
        let missing: Vec<IpNet> = wanted.difference(&self.routes).copied().collect();
        way::add(&mut self.netlink, missing.iter().copied())?;
        self.routes.extend(&missing);
        Ok(missing.len())
    }

    /// Has those be so no more that nothing is at.
    fn stop_leading(&mut self, known: &Known, change: &Change, is_all: bool) -> Result<(), ServiceError> {
        let stale: Vec<IpNet> = if is_all {
            let wanted = way::wanted(&known.services, &known.holding);
            self.routes.difference(&wanted).copied().collect()
        } else {
            let keys = change.shrink.iter().map(Step::key);
            let addresses = keys.filter_map(|key| way::of_key(&known.services, key));
            let unused = addresses.filter(|address| !way::is_used(&known.holding, *address));
            let unused: BTreeSet<IpNet> = unused.map(IpNet::from).collect();
            unused.intersection(&self.routes).copied().collect()
        };
        way::remove(&mut self.netlink, stale.iter().copied())?;
        self.routes.retain(|net| !stale.contains(net));
        Ok(())
    }

    /// Ours, by a kernel that has any.
    fn holding(&mut self) -> Result<Holding, ServiceError> {
        if !is_loaded() {
            return Ok(Holding::new());
        }
        let scheduling = self.scheduling.clone();
        Ok(change::read(self.socket()?, &scheduling)?)
    }

    fn names(&mut self) -> Result<Vec<String>, ServiceError> {
        let mut names = Vec::new();
        let count = self.holding()?.len();
        if count > 0 {
            names.push(format!("{count} virtual services of IPVS"));
        }
        if way::is_there(&mut self.netlink)? {
            names.push(format!("routing table {} and the rule for it", way::TABLE));
        }
        Ok(names)
    }

    fn forget(&mut self) {
        *self.shared.hold() = None;
        self.routes.clear();
        self.left = None;
    }

    /// How much of what we left there others changed, where `begun` settings and rules were not as they should be.
    fn damage(&mut self, begun: usize, known: &Known) -> usize {
        let Some((holding, routes)) = self.left.take() else {
            return 0;
        };
        let of_routes = routes.symmetric_difference(&self.routes).count();
        begun + of_routes + change::damage(&holding, &known.holding)
    }

    /// Virtual services, routes and the rule, which is the last.
    fn remove(&mut self) -> Result<(), ServiceError> {
        let scheduling = self.scheduling.clone();
        let mut holding = self.holding()?;
        // Another's timeout may be the same as ours.
        let is_ours = !holding.is_empty() || way::is_there(&mut self.netlink)?;
        for key in holding.keys().copied().collect::<Vec<_>>() {
            Step::Delete(key).run(self.socket()?, &scheduling, &mut holding)?;
        }
        way::clean(&mut self.netlink)?;
        if is_ours && is_loaded() && self.socket()?.tcp_timeout()? == TIMEOUT {
            self.socket()?.set_tcp_timeout(USUAL_TIMEOUT)?;
        }
        Ok(())
    }
}

/// The kernel has IPVS, and nothing has to be loaded to see what is in it.
fn is_loaded() -> bool {
    sysctl::get(&format!("{SETTINGS}{}", NEEDED[0])).is_ok()
}

/// What makes a state of all that is held.
fn between_all(services: &ServiceState, holding: &Holding) -> Change {
    let mut change = Change::default();
    let wanted = render(services).0;
    let delta = Delta::between_by(&wanted, holding, |_, _| false);
    for key in delta.keys() {
        change.add(*key, wanted.get(key), holding.get(key));
    }
    change
}

/// What makes one state of another: it costs what differs between the two.
fn between(old: &ServiceState, new: &ServiceState, holding: &Holding) -> Change {
    let mut change = Change::default();
    let of_addresses = Delta::between_shared(&new.frontends, &old.frontends);
    let of_ports = Delta::between_shared(&new.node_ports, &old.node_ports);
    let by_address = of_addresses.keys().map(render::of_frontend);
    for key in by_address.chain(of_ports.keys().map(render::of_node_port)) {
        change.add(key, render::wanted(new, key).as_ref(), holding.get(&key));
    }
    change
}

fn unwanted(services: &ServiceState, known: &Known) -> Vec<Virtual> {
    let keys = known.holding.keys().copied();
    keys.filter(|key| render::wanted(services, *key).is_none())
        .collect()
}

impl ServiceBackend for Ipvs {
    fn apply(&mut self, want: &NodeState) -> Result<usize, ServiceError> {
        let shared = self.shared.clone();
        let mut there = shared.hold();
        let mut done = None;
        // Until it is through nobody knows what there is.
        if let Some(mut known) = there.take() {
            match self.go(&mut known, want, false)? {
                Outcome::Done(changes) => done = Some((changes, known)),
                Outcome::Mistaken => self.left = Some((known.holding, self.routes.clone())),
            }
        }
        let mut put_back = 0;
        if done.is_none() {
            let (begun, mut known) = self.begin()?;
            put_back = self.damage(begun, &known);
            if let Outcome::Done(changes) = self.go(&mut known, want, true)? {
                done = Some((begun + changes, known));
            }
        }
        self.put_back += put_back;
        let (changes, mut known) = done.unwrap_or_default();
        let foreign = known.foreign.iter();
        let left_out = foreign.map(|key| {
            format!("IPVS' virtual service {key} is somebody else's: remove it (`kube-proxy --cleanup` removes kube-proxy's)")
        });
        known.refused.retain(|(key, endpoint)| {
            let wanted = render::wanted(&known.services, *key);
            wanted.is_some_and(|wanted| wanted.endpoints.contains(endpoint))
        });
        let refused = known.refused.iter();
        let refused = refused.map(|(key, endpoint)| {
            format!(
                "the endpoint {endpoint} of IPVS' virtual service {key} is left out: the kernel takes no connections to \
                 such an address; correct the EndpointSlice that has it"
            )
        });
        let lacks = self.rules.left_out().iter().cloned();
        self.left_out = left_out.chain(refused).chain(lacks).collect();
        self.rules.forget_flows(want)?;
        *there = Some(known);
        Ok(changes)
    }

    fn dump(&mut self) -> Result<Services, ServiceError> {
        let found = self.rules.found()?;
        Ok(dump::services(&found, &self.holding()?))
    }

    fn present(&mut self) -> Result<Vec<String>, ServiceError> {
        let mut present = self.rules.within(Scope::Lingering, ServiceBackend::present)?;
        present.extend(self.names()?);
        Ok(present)
    }

    fn clean(&mut self) -> Result<Vec<String>, ServiceError> {
        self.forget();
        // What fails keeps nothing else from being removed.
        let rules = self.rules.within(Scope::Lingering, ServiceBackend::clean);
        let names = self.names();
        self.remove()?;
        Ok([rules?, names?].concat())
    }

    fn retire(&mut self) -> Result<Retired, ServiceError> {
        // Somebody else may have taken the rule away.
        if !way::is_there(&mut self.netlink)? && self.holding()?.is_empty() {
            return Ok(Retired::Gone);
        }
        self.forget();
        self.rules.within(Scope::Lingering, Iptables::linger)?;
        let nothing = ServiceState::default();
        let mut known = Known {
            holding: self.holding()?,
            ..Known::default()
        };
        let change = between_all(&nothing, &known.holding);
        self.run(&change.shrink, &mut known, true)?;
        let all: Vec<Virtual> = known.holding.keys().copied().collect();
        self.reap(&mut known, all)?;
        if !known.holding.is_empty() {
            return Ok(Retired::Lingers);
        }
        self.clean()?;
        self.settings.restore_below(SETTINGS)?;
        Ok(Retired::Gone)
    }

    fn left_out(&self) -> &[String] {
        &self.left_out
    }

    fn take_put_back(&mut self) -> usize {
        std::mem::take(&mut self.put_back) + self.rules.take_put_back()
    }

    fn distrust(&mut self) {
        let known = self.shared.hold().take();
        let routes = std::mem::take(&mut self.routes);
        // What was left before that is left still, if nothing was done since.
        if let Some(known) = known {
            self.left = Some((known.holding, routes));
        }
        self.rules.distrust();
    }

    fn table_changed(&mut self, from: u32, to: u32) {
        self.rules.table_changed(from, to);
    }

    fn sentinel(&self) -> Option<Box<dyn Sentinel>> {
        Some(Box::new(Guard {
            shared: self.shared.clone(),
            rules: self.rules.sentinel(),
            socket: Socket::open().ok()?,
            netlink: Netlink::open().ok()?,
            scheduling: self.scheduling.clone(),
            next: None,
        }))
    }
}

#[cfg(test)]
mod tests;
