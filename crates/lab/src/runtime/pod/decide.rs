//! What is to be done about a pod now.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::backoff::Backoff;
use super::spec::{self, Member, RestartPolicy, Role};
use super::state::{Failure, PodState, Stopping};

/// One thing to do. The shell does them in order and asks again afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Put the volumes in place.
    PrepareVolumes,
    /// Make a sandbox and attach its network.
    CreateSandbox {
        /// Its number.
        attempt: u32,
    },
    /// Detach the network and end the sandbox.
    StopSandbox,
    /// Start a container.
    Start {
        /// Its name.
        container: String,
        /// The number of the run.
        attempt: u32,
    },
    /// Begin to end a container: preStop hook, then SIGTERM.
    Stop {
        /// Its name.
        container: String,
        /// Seconds until SIGKILL.
        grace: i64,
        /// The text of the event `Killing`.
        message: String,
    },
    /// Send SIGTERM although the preStop hook has not ended.
    Terminate {
        /// The container's name.
        container: String,
    },
    /// Send SIGKILL.
    Kill {
        /// The container's name.
        container: String,
    },
    /// Give the pod up.
    Fail(Failure),
    /// Everything is stopped: report for the last time and let the API object go.
    Finish,
}

/// What is to be done, and when to look again if nothing happens before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// In the order in which to do it.
    pub actions: Vec<Action>,
    /// The next moment at which the answer changes by itself.
    pub wake: Option<Timestamp>,
    /// The containers that wait for their back-off.
    pub backing_off: Vec<String>,
}

/// Decides what to do about `pod`.
pub fn decide(pod: &Pod, state: &PodState, now: Timestamp) -> Decision {
    let mut planner = Planner {
        pod,
        state,
        now,
        decision: Decision::default(),
    };
    if is_ending(pod, state) {
        planner.end();
    } else {
        planner.go_on();
    }
    planner.decision
}

/// Whether the pod is to be stopped: the API asked for it, or has no such pod any more, or it is over.
pub fn is_ending(pod: &Pod, state: &PodState) -> bool {
    state.vanished
        || spec::deletion_requested(pod)
        || state.record.failed.is_some()
        || matches!(
            pod.status.as_ref().and_then(|status| status.phase.as_deref()),
            Some("Succeeded" | "Failed")
        )
}

/// Whether a container that ended is to be started again while the pod goes on. One that never ran is.
pub fn should_restart(pod: &Pod, state: &PodState, member: &Member<'_>) -> bool {
    match (state.run(member.name()), member.restart_policy(pod)) {
        (None, _) => true,
        (Some(run), policy) => match (&run.finished, policy) {
            (None, _) | (_, RestartPolicy::Never) => false,
            (_, RestartPolicy::Always) => true,
            (Some(finished), RestartPolicy::OnFailure) => finished.exit_code != 0,
        },
    }
}

/// Until when a container that ended has to wait before it is started again.
pub fn back_off_until(state: &PodState, name: &str, now: Timestamp) -> Option<Timestamp> {
    let (_, finished) = state.ended(name)?;
    Backoff::until(state.record.containers.get(name)?.backoff, finished.at, now)
}

/// How far the init containers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialization {
    /// All ran to their end, or run and have started (sidecars).
    Done,
    /// One is still at it, or has to be started.
    Going,
    /// One failed and stays failed.
    Failed,
}

/// How far the init containers are in the sandbox that is ready now.
pub fn initialization(pod: &Pod, state: &PodState) -> Initialization {
    let Some(sandbox) = state.record.sandbox.as_ref().map(|it| it.attempt) else {
        return if spec::init_members(pod).next().is_none() {
            Initialization::Done
        } else {
            Initialization::Going
        };
    };
    // Once an app container was started in this sandbox, initialisation is over for good.
    if state.ran_in(sandbox, spec::app_members(pod).map(|member| member.name())) {
        return Initialization::Done;
    }
    for member in spec::init_members(pod) {
        let run = state.run(member.name()).filter(|run| run.sandbox == sandbox);
        let step = match (run, member.role) {
            (None, _) => Initialization::Going,
            (Some(run), Role::Sidecar) if run.finished.is_none() && run.started => Initialization::Done,
            (Some(_), Role::Sidecar) => Initialization::Going,
            (Some(run), _) => match &run.finished {
                Some(finished) if finished.exit_code == 0 => Initialization::Done,
                Some(_) if !should_restart(pod, state, &member) => Initialization::Failed,
                _ => Initialization::Going,
            },
        };
        if step != Initialization::Done {
            return step;
        }
    }
    Initialization::Done
}

struct Planner<'a> {
    pod: &'a Pod,
    state: &'a PodState,
    now: Timestamp,
    decision: Decision,
}

impl<'a> Planner<'a> {
    fn act(&mut self, action: Action) {
        self.decision.actions.push(action);
    }

    fn wake_at(&mut self, when: Timestamp) {
        self.decision.wake = Some(self.decision.wake.map_or(when, |known| known.min(when)));
    }

    fn go_on(&mut self) {
        if self.deadline_passed() {
            return self.act(Action::Fail(Failure {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
            }));
        }
        match &self.state.record.sandbox {
            Some(sandbox) if sandbox.ready => self.run_containers(sandbox.attempt),
            Some(_) => self.stop_sandbox(),
            None if self.wants_sandbox() => self.make_sandbox(),
            None => {}
        }
    }

    fn stop_sandbox(&mut self) {
        match self.state.retry_at.filter(|at| *at > self.now) {
            Some(retry_at) => self.wake_at(retry_at),
            None => self.act(Action::StopSandbox),
        }
    }

    fn deadline_passed(&mut self) -> bool {
        let Some(deadline) = spec::active_deadline(self.pod, self.state.record.start_time) else {
            return false;
        };
        if self.now < deadline {
            self.wake_at(deadline);
        }
        self.now >= deadline
    }

    /// A pod whose sandbox is gone gets another one if a container is still to run in it.
    fn wants_sandbox(&self) -> bool {
        let ran = spec::members(self.pod).any(|member| self.state.run(member.name()).is_some());
        let never = spec::restart_policy(self.pod) == RestartPolicy::Never;
        !(never && ran)
            && spec::app_members(self.pod).any(|member| should_restart(self.pod, self.state, &member))
    }

    fn make_sandbox(&mut self) {
        if let Some(retry_at) = self.state.retry_at.filter(|at| *at > self.now) {
            return self.wake_at(retry_at);
        }
        if !self.state.volumes_ready {
            return self.act(Action::PrepareVolumes);
        }
        if self.state.network_ready || spec::host_network(self.pod) {
            self.act(Action::CreateSandbox {
                attempt: self.state.record.next_sandbox,
            });
        }
    }

    fn run_containers(&mut self, sandbox: u32) {
        if !self.state.volumes_ready {
            // After a restart of the runtime: the files may have changed meanwhile.
            return match self.state.retry_at.filter(|at| *at > self.now) {
                Some(retry_at) => self.wake_at(retry_at),
                None => self.act(Action::PrepareVolumes),
            };
        }
        match initialization(self.pod, self.state) {
            Initialization::Failed => self.end(),
            Initialization::Going => self.run_init_containers(sandbox),
            Initialization::Done => self.run_apps(),
        }
    }

    fn run_init_containers(&mut self, sandbox: u32) {
        for member in spec::init_members(self.pod) {
            let run = self.state.run(member.name()).filter(|run| run.sandbox == sandbox);
            let finished = run.and_then(|run| run.finished.as_ref());
            let passed = match (run, finished, member.role) {
                (None, _, _) => {
                    self.start(&member);
                    false
                }
                (Some(run), None, role) => {
                    self.end_if_unhealthy(&member);
                    role == Role::Sidecar && run.started
                }
                (Some(_), Some(_), Role::Sidecar) => {
                    self.start(&member);
                    false
                }
                (Some(_), Some(finished), _) => {
                    if finished.exit_code != 0 {
                        self.start(&member);
                    }
                    finished.exit_code == 0
                }
            };
            // A sidecar that crashed again while a later init container runs does not stop that one, but the
            // next is not started before it is back.
            if !passed {
                return;
            }
        }
    }

    fn run_apps(&mut self) {
        let alive = spec::app_members(self.pod).any(|member| {
            self.state.running(member.name()).is_some() || should_restart(self.pod, self.state, &member)
        });
        if !alive {
            return self.end();
        }
        let sidecars = spec::init_members(self.pod).filter(|member| member.role == Role::Sidecar);
        for member in sidecars.chain(spec::app_members(self.pod)) {
            if self.state.running(member.name()).is_some() {
                self.end_if_unhealthy(&member);
            } else if should_restart(self.pod, self.state, &member) {
                self.start(&member);
            }
        }
    }

    fn start(&mut self, member: &Member<'_>) {
        let name = member.name();
        let retry_at = self
            .state
            .live(name)
            .and_then(|live| live.waiting.as_ref())
            .map(|it| it.retry_at);
        if let Some(retry_at) = retry_at.filter(|at| *at > self.now) {
            return self.wake_at(retry_at);
        }
        if let Some(until) = back_off_until(self.state, name, self.now) {
            self.decision.backing_off.push(name.to_owned());
            return self.wake_at(until);
        }
        let attempt = self.state.run(name).map_or(0, |run| run.attempt + 1);
        self.act(Action::Start {
            container: name.to_owned(),
            attempt,
        });
    }

    fn end_if_unhealthy(&mut self, member: &Member<'_>) {
        let Some(unhealthy) = self
            .state
            .live(member.name())
            .and_then(|live| live.unhealthy.as_ref())
        else {
            return;
        };
        let grace = unhealthy.grace.unwrap_or_else(|| spec::grace_seconds(self.pod));
        self.stop(member, grace, unhealthy.message.clone());
    }

    /// Ends the pod: first the init and app containers, all at once; then the sidecars, the last one first;
    /// then the sandbox; then the object.
    fn end(&mut self) {
        let running = |member: &Member<'_>| self.state.running(member.name()).is_some();
        let mut others = spec::members(self.pod)
            .filter(|it| it.role != Role::Sidecar && running(it))
            .peekable();
        if others.peek().is_some() {
            let others: Vec<_> = others.collect();
            return others.iter().for_each(|member| self.end_container(member));
        }
        let sidecar = spec::init_members(self.pod)
            .rev()
            .find(|member| member.role == Role::Sidecar && running(member));
        if let Some(sidecar) = sidecar {
            return self.end_container(&sidecar);
        }
        if self.state.record.sandbox.is_some() {
            return self.stop_sandbox();
        }
        if self.state.vanished || spec::deletion_requested(self.pod) {
            self.act(Action::Finish);
        }
    }

    fn end_container(&mut self, member: &Member<'_>) {
        let mut grace = spec::grace_seconds(self.pod);
        if let Some(deadline) = spec::deletion_deadline(self.pod) {
            // The grace period is one for the whole pod: sidecars get what the others left of it.
            grace = grace.min(deadline.duration_since(self.now).as_secs()).max(1);
        }
        self.stop(member, grace, format!("Stopping container {}", member.name()));
    }

    fn stop(&mut self, member: &Member<'_>, grace: i64, message: String) {
        let container = member.name().to_owned();
        match self.state.live(&container).and_then(|live| live.stopping) {
            None => self.act(Action::Stop {
                container,
                grace,
                message,
            }),
            Some(Stopping::Hook { deadline }) => {
                self.at_deadline(deadline, Action::Terminate { container });
            }
            Some(Stopping::Asked { deadline }) => self.at_deadline(deadline, Action::Kill { container }),
            Some(Stopping::Killed) => {}
        }
    }

    /// A second deletion may have shortened the grace period since the stop began.
    fn at_deadline(&mut self, deadline: Timestamp, action: Action) {
        let shortened = spec::deletion_deadline(self.pod)
            .and_then(|at| at.checked_add(SignedDuration::from_secs(2)).ok())
            .map_or(deadline, |at| at.min(deadline));
        if self.now >= shortened {
            self.act(action);
        } else {
            self.wake_at(shortened);
        }
    }
}

#[cfg(test)]
mod tests;
