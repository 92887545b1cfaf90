//! What the loop says: to the node's owners by log, Events, status and figures, to load balancers, and to the plugin, which
//! it puts in place once it can be served.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use podnet_cni::WiringName;
use podnet_core::NodeState;
use podnet_core::cluster::ObjectRef;
use podnet_core::state::Problem;
use podnet_dataplane::{Applied, ApplyError};
use podnet_linux::sysctl;

use super::{NodeConfig, NodeLoop};
use crate::cni_server::{self, PodNetwork, Readiness};
use crate::health_checks::Health;
use crate::report;
use crate::settings;

/// Of a node's own failures so many are Events: a data plane that lacks something may lack it for every service.
const MOST_EVENTS: usize = 10;

impl NodeLoop {
    /// Says once what is wrong with an object, and once when it is right again.
    pub(super) fn tell(&mut self, problems: &[Problem]) {
        let now: BTreeSet<Problem> = problems.iter().cloned().collect();
        for problem in now.difference(&self.told) {
            tracing::warn!(object = %problem.object, "{}", problem.why);
        }
        for problem in self.told.difference(&now) {
            tracing::info!(object = %problem.object, "no longer: {}", problem.why);
        }
        self.told = now;
    }

    /// What is to be told as Events: of objects that are wrong, and of this node what its kernel refuses and its data
    /// plane cannot do.
    fn reported(&self) -> BTreeSet<Problem> {
        let me = &self.config.name;
        let objects = self.told.iter();
        let objects = objects.filter(|problem| report::is_ours(problem, &self.wanted.cluster, me));
        let waiting = self.waiting().map(|what| format!("the agent is waiting {what}"));
        let of_node = self.refused.iter().chain(&self.left_out).cloned();
        let of_node = waiting.into_iter().chain(of_node).take(MOST_EVENTS);
        let of_node = of_node.map(|why| Problem {
            object: ObjectRef::node(me),
            why,
        });
        objects.cloned().chain(of_node).collect()
    }

    /// Says what is left out and what failed.
    pub(super) fn say(&self) {
        let reported = self.reported();
        self.out.problems.send_if_modified(|published| {
            let changed = *published != reported;
            *published = reported;
            changed
        });
        let NodeConfig { name, cluster, .. } = &self.config;
        self.status.send_modify(|status| {
            status.node = name.to_string();
            status.version = env!("CARGO_PKG_VERSION").into();
            status.routing = cluster.routing.to_string();
            if cluster.cross_subnet {
                status.routing.push_str(" between subnets");
            }
            status.dataplane = self.kernel.name().to_string();
            status.waiting = self.waiting();
            status.failures.clone_from(&self.refused);
            let told = self.told.iter().map(Problem::to_string);
            status.problems = told.chain(self.left_out.iter().cloned()).collect();
        });
    }

    pub(super) fn log(&mut self, state: &NodeState, applied: &Applied, same: bool, took: Duration) {
        let generation = state.generation;
        let milliseconds = took.as_secs_f64() * 1000.0;
        let (routes, services) = (applied.route_changes, applied.service_changes);
        if !same {
            self.out.metrics.applied(generation, took);
        }
        if !same || !applied.is_nothing() {
            tracing::info!(generation, routes, services, milliseconds, "applied");
        }
        let repair = applied.put_back;
        if !repair.is_nothing() {
            self.out.metrics.put_back(repair.count());
            self.out.repairs.send_replace(Some(repair));
            tracing::warn!(generation, "{repair}");
        }
        self.tell_left_out(generation, &applied.left_out);
        if applied.refused != self.refused {
            for refusal in &applied.refused {
                self.out.metrics.failed();
                tracing::warn!(generation, "the kernel refused: {refusal}");
            }
            self.refused.clone_from(&applied.refused);
        }
    }

    /// Says whether it is something else than before.
    pub(super) fn tell_left_out(&mut self, generation: u64, left_out: &[String]) -> bool {
        if left_out == self.left_out {
            return false;
        }
        for what in left_out {
            tracing::warn!(generation, "left out: {what}");
        }
        self.left_out = left_out.to_vec();
        true
    }

    pub(super) fn fail(&mut self, state: &NodeState, error: &ApplyError) {
        self.out.metrics.failed();
        let text = error.to_string();
        if self.refused != [text.clone()] {
            tracing::error!(generation = state.generation, "not applied, trying again: {text}");
        }
        self.refused = vec![text.clone()];
        // What was ready goes on: what the kernel has is the last generation.
        self.out.readiness.send_modify(|readiness| {
            *readiness = match readiness.network() {
                Some(network) if self.applied.is_some() => Readiness::Limited(network.clone(), text),
                _ => Readiness::NotReady(text),
            };
        });
    }

    /// Says which of the settings that are the administrator's to make keep packets from getting through.
    pub(super) fn check_settings(&mut self, state: &NodeState) {
        let bridged = self.config.cni.wiring == WiringName::Bridge;
        let links = settings::underlay(state);
        let wrong = settings::wrong(state, &links, bridged, |key| sysctl::get(key).ok());
        if wrong == self.wrong_settings {
            return;
        }
        wrong.iter().for_each(|wrong| tracing::warn!("{wrong}"));
        if wrong.is_empty() {
            tracing::info!("the kernel's settings are right again");
        }
        self.wrong_settings = wrong;
    }

    /// Tells the plugin's server what pods get, and puts the plugin in place once it can be served. False when that
    /// should be tried again.
    pub(super) fn publish(&mut self, state: &NodeState) -> bool {
        let readiness = match self.pod_mtu {
            _ if self.wanted.cluster.node(&state.node).is_none() && !state.routing.known => {
                Readiness::NotReady(format!(
                    "there is no usable Node object called {}: is that this node's name (--node)?",
                    state.node
                ))
            }
            _ if self.wanted.cluster.node(&state.node).is_none() => Readiness::NotReady(format!(
                "the Node object called {} is gone: its pods go on, new ones wait until it is registered again",
                state.node
            )),
            _ if state.routing.pod_ranges.is_empty() => Readiness::NotReady(format!(
                "node {} has no spec.podCIDRs yet: the cluster's controller manager must give it a range",
                state.node
            )),
            None => Readiness::NotReady(format!("node {} has no InternalIP in its status yet", state.node)),
            Some(mtu) => {
                let network = PodNetwork {
                    addressing: Arc::new(state.addressing.clone()),
                    mtu,
                    dns: self.config.dns.clone(),
                };
                if self.refused.is_empty() {
                    Readiness::Ready(network)
                } else {
                    Readiness::Limited(
                        network,
                        format!("the kernel refused: {}", self.refused.join("; ")),
                    )
                }
            }
        };
        let ready = readiness.network().is_some();
        self.out.readiness.send_if_modified(|published| {
            let changed = *published != readiness;
            if changed {
                *published = readiness;
            }
            changed
        });
        !ready || self.install()
    }

    /// Puts the plugin in place, once; false when that should be tried again.
    fn install(&mut self) -> bool {
        if self.installed {
            return true;
        }
        let NodeConfig {
            cni_bin_dir,
            cni_conf_dir,
            cni,
            plugin,
            ..
        } = &self.config;
        match cni_server::install_from(plugin, cni_bin_dir, cni_conf_dir, cni) {
            Ok(()) => {
                self.installed = true;
                tracing::info!(conf_dir = %cni_conf_dir.display(), "the CNI plugin is in place");
            }
            Err(error) => tracing::error!("cannot put the CNI plugin in place, trying again: {error}"),
        }
        self.installed
    }

    /// Tells load balancers what this node serves.
    pub(super) fn tell_health(&mut self, state: &NodeState) {
        let health = Health {
            checks: state.services.health_checks.clone(),
            healthy: !self.failed,
            addresses: state.services.node_port_addresses.clone(),
        };
        self.out.health.send_if_modified(|told| {
            let changed = *told != health;
            *told = health;
            changed
        });
    }

    /// All that was learnt is in force.
    pub(super) fn in_force(&mut self) {
        let services = &self.out.metrics.services;
        services.in_force_now();
        for trigger in self.triggers.drain(..) {
            services.programmed(trigger);
        }
    }
}
