//! The loop: what changed is taken in, the state computed, applied, and told.

mod telling;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use podnet_core::path::targets;
use podnet_core::route::is_whole;
use podnet_core::service::ServiceState;
use podnet_core::state::Problem;
use podnet_core::{Cluster, ClusterConfig, Incremental, NodeName, NodeState};
use podnet_dataplane::{Applied, Dataplane, Kernel, Look, Repair};
use tokio::sync::{mpsc, watch};

use crate::announce::{Announcing, Spoken};
use crate::busy_ports;
use crate::cni_server::{CniServerConfig, Readiness};
use crate::health_checks::Health;
use crate::host_ports::HostPorts;
use crate::metrics::{Metrics, Sync};
use crate::pace::{pause, told};
use crate::paths::{Findings, Paths};
use crate::pod_policies::PodPolicies;
use crate::settings;
use crate::status::NodeStatus;
use crate::watch::{Synced, Update};

/// So often the kernel is compared with what it should have, though nothing is known to have changed.
const RESYNC: Duration = Duration::from_secs(30);
/// After an application that failed; twice as long after each further one, up to [`RESYNC`].
const RETRY: Duration = Duration::from_secs(1);

/// What the loop needs to know from the start.
#[derive(Debug)]
pub struct NodeConfig {
    /// This node.
    pub name: NodeName,
    /// What is set for the cluster.
    pub cluster: ClusterConfig,
    /// DNS servers for pods.
    pub dns: Vec<IpAddr>,
    /// Where the runtime looks for plugins.
    pub cni_bin_dir: PathBuf,
    /// Where the runtime looks for its network's configuration.
    pub cni_conf_dir: PathBuf,
    /// What the plugin's files say.
    pub cni: CniServerConfig,
    /// The plugin's executable.
    pub plugin: PathBuf,
}

/// Where the loop says what has come of it.
#[derive(Debug)]
pub struct Outlets {
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Whether pods can be added.
    pub readiness: watch::Sender<Readiness>,
    /// What is wrong with objects, as far as this node is the one to tell their owners.
    pub problems: watch::Sender<BTreeSet<Problem>>,
    /// What load balancers are told.
    pub health: watch::Sender<Health>,
    /// The services in force.
    pub services: watch::Sender<Arc<ServiceState>>,
    /// What was put right last because others had changed it; nothing before the first time.
    pub repairs: watch::Sender<Option<Repair>>,
}

/// One node's network, kept as its cluster wants it.
pub struct NodeLoop {
    config: NodeConfig,
    kernel: Kernel,
    host_ports: Arc<HostPorts>,
    pod_policies: Arc<PodPolicies>,
    out: Outlets,
    /// The objects, and what they ask for.
    wanted: Incremental,
    synced: Synced,
    /// The kinds of objects that were waited for last.
    awaited: Vec<&'static str>,
    /// The state in force.
    applied: Option<NodeState>,
    told: BTreeSet<Problem>,
    refused: Vec<String>,
    /// What the data plane cannot do, as it was told last.
    left_out: Vec<String>,
    installed: bool,
    /// What probes the paths to other nodes.
    paths: Option<Paths>,
    /// What announces load balancers' addresses.
    announcing: Option<Announcing>,
    status: watch::Sender<NodeStatus>,
    /// Largest packet of a pod, as the last application found it.
    pod_mtu: Option<u32>,
    /// Settings of the machine that are known to be wrong.
    wrong_settings: Vec<settings::Wrong>,
    /// The last application failed, perhaps half-way: what is in force is neither `applied` nor what was to follow.
    failed: bool,
    begun: SystemTime,
    /// When that happened which is not in force yet.
    triggers: Vec<SystemTime>,
}

/// Of so many triggers the time is measured at once: while nothing can be applied they are not hoarded.
const TRIGGERS: usize = 1000;

/// Why the loop turns.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cause {
    Objects,
    Kernel,
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Turn {
    /// There was nothing to apply.
    Nothing,
    /// The state is in force.
    Done,
    /// Something is left to be tried again.
    Again,
}

impl NodeLoop {
    /// A loop that has seen nothing yet.
    pub fn new(
        config: NodeConfig,
        kernel: Kernel,
        (host_ports, pod_policies): (Arc<HostPorts>, Arc<PodPolicies>),
        out: Outlets,
    ) -> Self {
        let wanted = Incremental::new(Cluster::new(config.cluster.clone()), config.name.clone());
        NodeLoop {
            config,
            kernel,
            host_ports,
            pod_policies,
            out,
            wanted,
            synced: Synced::default(),
            awaited: Vec::new(),
            applied: None,
            told: BTreeSet::new(),
            refused: Vec::new(),
            left_out: Vec::new(),
            installed: false,
            paths: None,
            announcing: None,
            status: watch::channel(NodeStatus::default()).0,
            pod_mtu: None,
            wrong_settings: Vec::new(),
            failed: false,
            begun: SystemTime::now(),
            triggers: Vec::new(),
        }
    }

    /// Probes the paths to other nodes, and takes into account what is found. Goes on with what the last agent found.
    pub fn probing(mut self, paths: Paths) -> Self {
        match self.kernel.path_mtu() {
            Ok(known) => self.wanted.cluster.local.path_mtu = known,
            Err(error) => tracing::warn!("cannot read what is known of paths: {error}"),
        }
        match self.kernel.checksum_offload() {
            Ok(offload) => self.wanted.cluster.local.broken_checksums = offload == Some(false),
            Err(error) => tracing::warn!("cannot read what is known of checksums: {error}"),
        }
        self.paths = Some(paths);
        self
    }

    /// Announces load balancers' addresses.
    pub fn announcing(mut self, announcing: Announcing) -> Self {
        self.announcing = Some(announcing);
        self
    }

    /// What has come of it all, kept up to date.
    pub fn status(&self) -> watch::Receiver<NodeStatus> {
        self.status.subscribe()
    }

    /// Turns until `updates` ends. `disturbed` tells that somebody else changed the kernel's tables.
    pub async fn run(
        mut self,
        mut updates: mpsc::UnboundedReceiver<Update>,
        mut disturbed: mpsc::Receiver<()>,
    ) {
        let mut wait = RETRY;
        let mut due = tokio::time::Instant::now() + RESYNC;
        // Who changes nftables all the time does not keep the loop from objects.
        let mut calm = tokio::time::Instant::now();
        let mut spoken = self
            .announcing
            .as_ref()
            .map(|announcing| announcing.spoken.clone());
        let mut findings = self.paths.as_ref().map(|paths| paths.findings.clone());
        loop {
            let cause = tokio::select! {
                update = updates.recv() => {
                    let Some(update) = update else { return };
                    let alone = matches!(update, Update::Triggered(_));
                    self.learn(update);
                    if alone {
                        continue;
                    }
                    Cause::Objects
                }
                () = self.host_ports.changed() => Cause::Objects,
                () = self.pod_policies.changed() => Cause::Objects,
                () = told(&mut disturbed, calm) => Cause::Kernel,
                found = found(&mut findings) => {
                    self.take_in(found);
                    Cause::Objects
                }
                spoken = changed(&mut spoken) => {
                    self.status.send_modify(|status| status.announces = spoken);
                    continue;
                }
                () = tokio::time::sleep_until(due) => Cause::Kernel,
                // Not at once: whatever else is to be done comes first, and the agent's end is heard.
                () = tokio::task::yield_now(), if self.has_rest() => {
                    tokio::task::block_in_place(|| self.go_on());
                    continue;
                }
            };
            let begin = Instant::now();
            // What is queued already belongs to the same generation.
            while let Ok(update) = updates.try_recv() {
                self.learn(update);
            }
            if self.waits() {
                if cause == Cause::Kernel {
                    tokio::task::block_in_place(|| self.keep(begin));
                    calm = tokio::time::Instant::now() + pause(begin.elapsed());
                    due = tokio::time::Instant::now() + RESYNC;
                }
                continue;
            }
            let is_whole = cause == Cause::Kernel || self.failed;
            // Netlink is quick but blocks.
            let turn = tokio::task::block_in_place(|| self.turn(cause, begin));
            if cause == Cause::Kernel {
                calm = tokio::time::Instant::now() + pause(begin.elapsed());
            }
            match turn {
                Turn::Nothing => continue,
                Turn::Done => {
                    wait = RETRY;
                    // However often objects change: who follows them does not look at everything.
                    if is_whole {
                        due = tokio::time::Instant::now() + RESYNC;
                    }
                }
                Turn::Again => {
                    due = tokio::time::Instant::now() + wait;
                    wait = (wait * 2).min(RESYNC);
                }
            }
        }
    }

    /// Whether the kernel is still to be given what takes long. What failed is tried again as a whole.
    fn has_rest(&self) -> bool {
        self.applied.is_some() && !self.failed && self.kernel.has_rest()
    }

    /// Gives it some of that.
    fn go_on(&mut self) {
        let Some(state) = &self.applied else { return };
        let generation = state.generation;
        let left_out = self.kernel.go_on(state).left_out;
        if self.tell_left_out(generation, &left_out) {
            self.say();
        }
    }

    /// Whether there are objects that the API server has not listed and nothing can be decided without; says so.
    fn waits(&mut self) -> bool {
        let awaited = self.synced.missing(&self.wanted.cluster);
        if awaited != self.awaited {
            self.awaited = awaited;
            if self.applied.is_none()
                && let Some(what) = self.waiting()
            {
                let why = format!("the agent is waiting {what}");
                self.out.readiness.send_replace(Readiness::NotReady(why));
            }
            self.say();
        }
        !self.awaited.is_empty()
    }

    /// Has the kernel keep what is in force.
    fn keep(&mut self, begin: Instant) {
        let Some(state) = self.applied.clone() else { return };
        match self.kernel.begin(&state, Look::Everywhere) {
            Ok(applied) => {
                self.failed = false;
                self.log(&state, &applied, true, begin.elapsed());
            }
            Err(error) => {
                self.failed = true;
                self.fail(&state, &error);
            }
        }
        self.tell_health(&state);
        self.announce(&state);
        self.say();
    }

    /// What is waited for, and what to look into.
    fn waiting(&self) -> Option<String> {
        (!self.awaited.is_empty()).then(|| {
            format!(
                "for the API server to list {}; the agent's log says what is in the way",
                self.awaited.join(", ")
            )
        })
    }

    /// Takes in what changed.
    fn learn(&mut self, update: Update) {
        let services = &self.out.metrics.services;
        match &update {
            Update::Services(change) => services.services_changed(change.count()),
            Update::Slices(change) => services.endpoints_changed(change.count()),
            // What happened before says how long the node was without an agent.
            Update::Triggered(at) if *at > self.begun && self.triggers.len() < TRIGGERS => {
                self.triggers.push(*at);
            }
            _ => {}
        }
        let of_policies = matches!(
            update,
            Update::NetworkPolicies(_) | Update::ClusterNetworkPolicies(_)
        );
        update.apply(&mut self.wanted.cluster, &mut self.synced);
        if of_policies && has_policies(&self.wanted.cluster) {
            self.pod_policies.there_are_policies();
        }
    }

    /// Computes and applies.
    fn turn(&mut self, cause: Cause, begin: Instant) -> Turn {
        self.look_around();
        if cause == Cause::Kernel {
            self.look_for_free_ports();
        }
        let (version, host_ports) = self.host_ports.wanted();
        self.wanted.cluster.host_ports = host_ports;
        let any = has_policies(&self.wanted.cluster);
        let (pods_version, pods) = self.pod_policies.wanted(any);
        self.wanted.cluster.local.pods = pods;
        let state = self.compute();
        self.tell(&state.problems);
        let in_force = self.applied.as_ref().filter(|_| !self.failed);
        let same = in_force.is_some_and(|applied| applied.same_kernel_state(&state));
        if same && cause == Cause::Objects {
            self.host_ports.applied(version);
            self.pod_policies.applied(pods_version, &state.policy);
            self.in_force();
            let moved = |applied: &NodeState| applied.addressing != state.addressing;
            if self.applied.as_ref().is_some_and(moved) {
                self.publish(&state);
                let generation = self.applied.as_ref().map_or(0, |applied| applied.generation);
                self.applied = Some(state.clone().numbered(generation));
            }
            self.announce(&state);
            self.say();
            return Turn::Nothing;
        }
        let before = self.applied.as_ref().map_or(0, |applied| applied.generation);
        let state = state.numbered(if same { before } else { before + 1 });
        let (sync, outcome) = match cause {
            Cause::Objects if !self.failed => (Sync::Partial, self.kernel.begin(&state, Look::AtChanges)),
            _ => (Sync::Full, self.kernel.begin(&state, Look::Everywhere)),
        };
        let unfinished = match outcome {
            Ok(applied) => {
                self.failed = false;
                self.host_ports.applied(version);
                self.pod_policies.applied(pods_version, &state.policy);
                self.out.metrics.services.applied(sync, begin.elapsed());
                self.in_force();
                self.log(&state, &applied, same, begin.elapsed());
                self.pod_mtu = applied.pod_mtu;
                self.check_settings(&state);
                let installed = self.publish(&state);
                self.tell_health(&state);
                self.out.services.send_replace(Arc::clone(&state.services));
                self.probe(&state, &applied);
                self.announce(&state);
                self.applied = Some(state);
                !installed || !applied.refused.is_empty()
            }
            Err(error) => {
                self.failed = true;
                self.fail(&state, &error);
                self.tell_health(&state);
                self.announce(&state);
                true
            }
        };
        self.say();
        if unfinished { Turn::Again } else { Turn::Done }
    }

    /// What the node should have. A node port that a program has is left to it; one that services have already is not asked
    /// about again: who comes later does not get it.
    fn compute(&mut self) -> NodeState {
        let state = self.wanted.compute();
        let applied = self.applied.as_ref().map(|applied| &*applied.services);
        let new = state.services.new_node_ports(applied);
        if new.is_empty() {
            return state;
        }
        let mut busy = busy_ports::of(new, &state.services);
        if !busy.is_empty() && (self.applied.is_none() || self.failed) {
            // What the last agent left in force, or an application that failed later on.
            match self.kernel.node_ports() {
                Ok(in_force) => busy.retain(|port| !in_force.contains(port)),
                Err(error) => tracing::warn!("cannot see which node ports are in force: {error}"),
            }
        }
        if busy.is_empty() {
            return state;
        }
        self.wanted.cluster.local.busy_ports.extend(busy);
        self.wanted.compute()
    }

    fn look_for_free_ports(&mut self) {
        let busy = &mut self.wanted.cluster.local.busy_ports;
        if let (false, Some(applied)) = (busy.is_empty(), &self.applied) {
            *busy = busy_ports::of(std::mem::take(busy), &applied.services);
        }
    }

    fn take_in(&mut self, found: Findings) {
        let local = &mut self.wanted.cluster.local;
        local.path_mtu = found.narrow;
        if found.broken_checksums && !local.broken_checksums {
            // For good: what does not leave checksums to the device cannot tell whether it would get them right now.
            local.broken_checksums = true;
            tracing::warn!("checksums arrive wrong; checksum offload of the tunnel is switched off");
        }
    }

    /// Has the paths of this state probed, and says what is in force.
    fn probe(&self, state: &NodeState, applied: &Applied) {
        if let (Some(paths), Some(pod_mtu)) = (&self.paths, applied.pod_mtu) {
            paths.set(targets(&state.routing, pod_mtu));
        }
        self.status.send_modify(|status| {
            status.generation = Some(state.generation);
            status.pod_mtu = applied.pod_mtu;
            status.checksum_offload = state
                .routing
                .tunnel
                .as_ref()
                .is_none_or(|tunnel| tunnel.checksum_offload);
        });
    }

    /// Has load balancers' addresses announced. What failed on the way to a first state has nothing to announce.
    fn announce(&self, state: &NodeState) {
        if let Some(announcing) = &self.announcing
            && (self.applied.is_some() || !self.failed)
        {
            announcing.set(&state.announcements, !self.failed);
        }
    }

    /// Takes in what this node knows by itself.
    fn look_around(&mut self) {
        let me = &self.config.name;
        if let Some(node) = self.wanted.cluster.node(me).filter(|node| is_whole(node)) {
            self.wanted.cluster.local.node = Some(node.clone());
        }
        let own = self.wanted.cluster.local.node.as_ref();
        let local = own.and_then(|node| node.address(node.primary?));
        // Who goes without the tunnel is told by them; and what can be no peer's range, where no cluster's range tells.
        let ClusterConfig {
            cross_subnet,
            cluster_cidrs,
            ..
        } = &self.config.cluster;
        let all_families = cluster_cidrs.len() == 2;
        if local.is_none() || (all_families && !cross_subnet) {
            return;
        }
        match self.kernel.subnets(local) {
            Ok(subnets) => self.wanted.cluster.local.subnets = subnets,
            // Applying says why; until then the subnets are those of before.
            Err(error) => tracing::debug!(%error, "cannot see the node's subnets"),
        }
    }
}

/// Whether the cluster has policies, of whomever.
pub(crate) fn has_policies(cluster: &Cluster) -> bool {
    !cluster.network_policies.is_empty() || !cluster.cluster_network_policies.is_empty()
}

/// What this node answers for, when that changes; never, when nothing is announced.
async fn changed(spoken: &mut Option<watch::Receiver<Spoken>>) -> Spoken {
    loop {
        let Some(receiver) = spoken else {
            return std::future::pending().await;
        };
        if receiver.changed().await.is_ok() {
            return receiver.borrow_and_update().clone();
        }
        *spoken = None;
    }
}

/// The next findings; never, when nothing is probed.
async fn found(findings: &mut Option<watch::Receiver<Option<Findings>>>) -> Findings {
    loop {
        let Some(receiver) = findings else {
            return std::future::pending().await;
        };
        if receiver.changed().await.is_err() {
            *findings = None;
            continue;
        }
        if let Some(found) = receiver.borrow_and_update().clone() {
            return found;
        }
    }
}
