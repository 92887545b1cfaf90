//! A run's hooks and probes.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};

use super::{Message, Worker, mailbox};
use crate::runtime::events::Events;
use crate::runtime::pod::spec::{self, Role};
use crate::runtime::probe::verdict::early_attempts;
use crate::runtime::probe::{Check, Kind, Settings, Target, Verdict};

/// A postStart hook has no limit of its own; this one keeps a container from hanging for ever.
const POST_START_LIMIT: Duration = Duration::from_secs(600);

/// A probe of one run, to be spawned.
struct Prober {
    container: String,
    run: String,
    kind: Kind,
    settings: Settings,
    check: Check,
    target: Target,
    /// From now to the first attempt.
    delay: Duration,
    sender: mailbox::Sender,
    events: Events,
    pod: k8s_openapi::api::core::v1::Pod,
}

impl Worker {
    /// What happens when a run begins: the postStart hook, then the startup probe, then the others.
    pub(super) fn begin_hooks_and_probes(&mut self, name: &str) {
        let Some(container) = self.container(name) else {
            return;
        };
        let hook = container.lifecycle.as_ref().and_then(|it| it.post_start.as_ref());
        match hook {
            Some(hook) => self.spawn_hook(name, Check::of_hook(hook, &container), POST_START_LIMIT, false),
            None => self.begin_startup(name, &container),
        }
    }

    /// After a restart of the runtime: probes go on; hooks are not run twice.
    pub(super) fn resume_runs(&mut self) {
        let known: Vec<_> = self
            .pod
            .status
            .iter()
            .flat_map(|it| it.container_statuses.clone().unwrap_or_default())
            .collect();
        let names: Vec<String> = spec::members(&self.pod).map(|it| it.name().to_owned()).collect();
        for name in names
            .iter()
            .filter(|name| self.state.running(name).is_some())
            .cloned()
            .collect::<Vec<_>>()
        {
            let Some(container) = self.container(&name) else {
                continue;
            };
            let was_ready = known.iter().any(|it| it.name == name && it.ready);
            if self.state.running(&name).is_some_and(|run| run.started) {
                self.live(&name).ready = was_ready;
                self.begin_steady(&name, &container);
            } else {
                self.begin_startup(&name, &container);
            }
        }
    }

    fn container(&self, name: &str) -> Option<Container> {
        Some(spec::member(&self.pod, name)?.container.clone())
    }

    fn begin_startup(&mut self, name: &str, container: &Container) {
        match &container.startup_probe {
            Some(probe) => self.spawn_probe(name, container, Kind::Startup, probe),
            None => self.started(name, container),
        }
    }

    /// The run counts as started: it is ready now, or when its readiness probe says so.
    fn started(&mut self, name: &str, container: &Container) {
        let record = self.state.record.containers.get_mut(name);
        if let Some(run) = record.and_then(|it| it.current.as_mut()) {
            run.started = true;
        }
        self.begin_steady(name, container);
    }

    fn begin_steady(&mut self, name: &str, container: &Container) {
        match &container.readiness_probe {
            Some(probe) => self.spawn_probe(name, container, Kind::Readiness, probe),
            None => self.live(name).ready = true,
        }
        if let Some(probe) = &container.liveness_probe {
            self.spawn_probe(name, container, Kind::Liveness, probe);
        }
    }

    fn target(&self, name: &str) -> Option<Target> {
        let run = self.state.running(name)?;
        let ip = self.state.record.ips.first().copied();
        Some(Target {
            sandbox: self.sandbox.clone()?,
            container: run.id.clone(),
            ip,
        })
    }

    fn spawn_probe(&mut self, name: &str, container: &Container, kind: Kind, probe: &Probe) {
        // An init container runs to its end; probes are for what stays.
        if spec::member(&self.pod, name).is_none_or(|it| it.role == Role::Init) {
            self.live(name).ready = false;
            return;
        }
        let (Some(target), Some(run)) = (self.target(name), self.state.running(name)) else {
            return;
        };
        let check = match Check::of_probe(probe, container) {
            Ok(check) => check,
            Err(problem) => {
                let message = format!("{} probe failed: {problem}", kind.title());
                return self
                    .host
                    .events
                    .warning(&self.pod, Some(name), "Unhealthy", message);
            }
        };
        let settings = Settings::of(probe);
        let age = Timestamp::now().duration_since(run.started_at);
        let age = Duration::try_from(age).unwrap_or_default();
        let prober = Prober {
            container: name.to_owned(),
            run: run.id.clone(),
            kind,
            settings,
            check,
            target,
            delay: settings.initial_delay.saturating_sub(age),
            sender: self.sender.clone(),
            events: self.host.events.clone(),
            pod: self.pod.clone(),
        };
        let task = tokio::spawn(prober.run());
        self.tasks
            .entry(name.to_owned())
            .or_default()
            .push(task.abort_handle());
    }

    fn spawn_hook(&mut self, name: &str, check: Result<Check, String>, limit: Duration, stopping: bool) {
        let (Some(target), Some(run)) = (self.target(name), self.state.running(name)) else {
            return;
        };
        let (container, run, sender) = (name.to_owned(), run.id.clone(), self.sender.clone());
        let task = tokio::spawn(async move {
            let outcome = match check {
                Ok(check) => check.attempt(&target, limit).await,
                Err(problem) => Err(problem),
            };
            // The receiver is gone only when the pod is.
            let _ = sender.send(Message::Hook {
                container,
                run,
                stopping,
                outcome,
            });
        });
        self.tasks
            .entry(name.to_owned())
            .or_default()
            .push(task.abort_handle());
    }

    /// Starts the preStop hook; `false` when there is none.
    pub(super) fn begin_pre_stop(&mut self, name: &str, grace: i64) -> bool {
        let Some(container) = self.container(name) else {
            return false;
        };
        let Some(hook) = container.lifecycle.as_ref().and_then(|it| it.pre_stop.as_ref()) else {
            return false;
        };
        if self.target(name).is_none() {
            return false;
        }
        let limit = Duration::from_secs(u64::try_from(grace).unwrap_or(1));
        self.spawn_hook(name, Check::of_hook(hook, &container), limit, true);
        true
    }

    pub(super) async fn hook_ended(
        &mut self,
        name: &str,
        run: &str,
        stopping: bool,
        outcome: Result<(), String>,
    ) {
        if self.state.running(name).is_none_or(|it| it.id != run) {
            return;
        }
        if let Err(problem) = &outcome {
            let reason = if stopping {
                "FailedPreStopHook"
            } else {
                "FailedPostStartHook"
            };
            let hook = if stopping { "PreStopHook" } else { "PostStartHook" };
            self.host
                .events
                .warning(&self.pod, Some(name), reason, format!("{hook} failed: {problem}"));
        }
        match (stopping, outcome) {
            (true, _) => {
                let Some(crate::runtime::pod::state::Stopping::Hook { deadline }) =
                    self.state.live(name).and_then(|live| live.stopping)
                else {
                    return;
                };
                // Kubelet's shortest time between SIGTERM and SIGKILL after a hook.
                let shortest = Timestamp::now().checked_add(jiff::SignedDuration::from_secs(2));
                self.terminate(name, deadline.max(shortest.unwrap_or(deadline)))
                    .await;
            }
            (false, Ok(())) => {
                if let Some(container) = self.container(name) {
                    self.begin_startup(name, &container);
                }
            }
            (false, Err(_)) => self.mark_unhealthy(name, "FailedPostStartHook".into(), None),
        }
    }

    pub(super) fn probed(&mut self, name: &str, run: &str, kind: Kind, passes: bool) {
        if self.state.running(name).is_none_or(|it| it.id != run) {
            return;
        }
        let Some(container) = self.container(name) else {
            return;
        };
        match (kind, passes) {
            (Kind::Readiness, ready) => self.live(name).ready = ready,
            (Kind::Startup, true) => self.started(name, &container),
            (Kind::Liveness, true) => {}
            (Kind::Startup, false) | (Kind::Liveness, false) => {
                let probe = if kind == Kind::Startup {
                    &container.startup_probe
                } else {
                    &container.liveness_probe
                };
                let grace = probe.as_ref().and_then(|it| it.termination_grace_period_seconds);
                let kind = kind.title().to_lowercase();
                let message = format!("Container {name} failed {kind} probe, will be restarted");
                self.mark_unhealthy(name, message, grace);
            }
        }
    }
}

impl Prober {
    async fn run(self) {
        tokio::time::sleep(self.delay).await;
        let mut verdict = Verdict::new(self.kind);
        if self.kind != Kind::Liveness && self.check.is_over_network() {
            for pause in early_attempts(self.settings.period) {
                let attempt = self.check.attempt(&self.target, self.settings.timeout).await;
                if attempt.is_ok() {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
        }
        let mut ticks = tokio::time::interval(self.settings.period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let attempt = self.check.attempt(&self.target, self.settings.timeout).await;
            if let Err(problem) = &attempt {
                let message = format!("{} probe failed: {problem}", self.kind.title());
                self.events
                    .warning(&self.pod, Some(&self.container), "Unhealthy", message);
            }
            let Some(passes) = verdict.attempt(attempt.is_ok(), &self.settings) else {
                continue;
            };
            let message = Message::Probed {
                container: self.container.clone(),
                run: self.run.clone(),
                kind: self.kind,
                passes,
            };
            let over = match self.kind {
                Kind::Startup => true,
                Kind::Liveness => !passes,
                Kind::Readiness => false,
            };
            if self.sender.send(message).is_err() || over {
                return;
            }
        }
    }
}
