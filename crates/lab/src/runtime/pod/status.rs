//! The status of a pod as kubelet reports it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::net::IpAddr;

use super::conditions::conditions;
use super::decide::{Initialization, back_off_until, initialization, is_ending, should_restart};
use super::spec::{self, Member, RestartPolicy, Role};
use super::state::{PodState, Run};

/// The status to report now. `node` are the node's addresses.
pub fn pod_status(pod: &Pod, state: &PodState, node: &[IpAddr], now: Timestamp) -> PodStatus {
    let init: Vec<_> = spec::init_members(pod)
        .map(|member| container_status(pod, state, &member, now))
        .collect();
    let apps: Vec<_> = spec::app_members(pod)
        .map(|member| container_status(pod, state, &member, now))
        .collect();
    let phase = phase(pod, state, &init, &apps);
    let ips: Vec<IpAddr> = if spec::host_network(pod) && state.record.sandbox.is_some() {
        node.to_vec()
    } else {
        state.record.ips.clone()
    };
    let known = pod.status.as_ref();
    let failure = state.record.failed.as_ref();
    PodStatus {
        observed_generation: pod.metadata.generation,
        conditions: Some(conditions(pod, state, phase, &init, &apps, now)),
        reason: failure
            .map(|it| it.reason.clone())
            .or_else(|| known.and_then(|it| it.reason.clone())),
        message: failure
            .map(|it| it.message.clone())
            .or_else(|| known.and_then(|it| it.message.clone())),
        host_ip: node.first().map(ToString::to_string),
        host_ips: Some(node.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: ips.first().map(ToString::to_string),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        start_time: state.record.start_time.map(|at| Time(whole_seconds(at))),
        qos_class: known
            .and_then(|it| it.qos_class.clone())
            .or_else(|| Some(spec::qos_class(pod).to_owned())),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(apps),
        phase: Some(phase.to_owned()),
        ..PodStatus::default()
    }
}

/// Kubernetes' `Time` has whole seconds.
pub fn whole_seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn time(at: Timestamp) -> Option<Time> {
    Some(Time(whole_seconds(at)))
}

fn container_status(pod: &Pod, state: &PodState, member: &Member<'_>, now: Timestamp) -> ContainerStatus {
    let name = member.name();
    let record = state.record.containers.get(name);
    let current = record.and_then(|it| it.current.as_ref());
    let previous = record.and_then(|it| it.previous.as_ref());
    let running = current.filter(|run| run.finished.is_none());
    let waiting = waiting(pod, state, member, now);
    let terminated = |run: Option<&Run>| run.and_then(terminated_state);
    let (now_state, last_state) = match (waiting, current) {
        (Some(waiting), current) => (
            ContainerState {
                waiting: Some(waiting),
                ..ContainerState::default()
            },
            terminated(current),
        ),
        (None, Some(run)) => (run_state(run), terminated(previous)),
        (None, None) => (ContainerState::default(), None),
    };
    let started = running.is_some_and(|run| run.started);
    let ready = match (member.role, current) {
        (Role::Init, run) => run
            .and_then(|run| run.finished.as_ref())
            .is_some_and(|finished| finished.exit_code == 0),
        _ => started && state.live(name).is_some_and(|live| live.ready),
    };
    ContainerStatus {
        name: name.to_owned(),
        state: Some(now_state),
        last_state: Some(last_state.unwrap_or_default()),
        ready,
        started: Some(started),
        restart_count: current.map_or(0, |run| i32::try_from(run.attempt).unwrap_or(i32::MAX)),
        image: current
            .map(|run| run.image.clone())
            .or_else(|| member.container.image.clone())
            .unwrap_or_default(),
        image_id: current.map(|run| run.image_id.clone()).unwrap_or_default(),
        container_id: current.map(|run| format!("podnet://{}", run.id)),
        resources: member
            .container
            .resources
            .clone()
            .filter(|it| *it != Default::default()),
        volume_mounts: volume_mounts(member),
        ..ContainerStatus::default()
    }
}

fn volume_mounts(member: &Member<'_>) -> Option<Vec<VolumeMountStatus>> {
    let mounts = member
        .container
        .volume_mounts
        .as_ref()
        .filter(|it| !it.is_empty())?;
    let status = |mount: &k8s_openapi::api::core::v1::VolumeMount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only,
        recursive_read_only: mount.read_only.filter(|it| *it).map(|_| "Disabled".to_owned()),
        ..VolumeMountStatus::default()
    };
    Some(mounts.iter().map(status).collect())
}

fn run_state(run: &Run) -> ContainerState {
    terminated_state(run).unwrap_or_else(|| ContainerState {
        running: Some(ContainerStateRunning {
            started_at: time(run.started_at),
        }),
        ..ContainerState::default()
    })
}

fn terminated_state(run: &Run) -> Option<ContainerState> {
    let finished = run.finished.as_ref()?;
    let terminated = ContainerStateTerminated {
        exit_code: finished.exit_code,
        signal: finished.signal,
        reason: Some(finished.reason.clone()),
        message: (!finished.message.is_empty()).then(|| finished.message.clone()),
        started_at: time(run.started_at),
        finished_at: time(finished.at),
        container_id: Some(format!("podnet://{}", run.id)),
    };
    Some(ContainerState {
        terminated: Some(terminated),
        ..ContainerState::default()
    })
}

/// Why the container waits, if it does.
fn waiting(
    pod: &Pod,
    state: &PodState,
    member: &Member<'_>,
    now: Timestamp,
) -> Option<ContainerStateWaiting> {
    let name = member.name();
    if state.running(name).is_some() {
        return None;
    }
    let reason = |reason: &str, message: Option<String>| {
        Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        })
    };
    let ending = is_ending(pod, state);
    if state.run(name).is_some() && (ending || !should_restart(pod, state, member)) {
        return None;
    }
    if !ending && back_off_until(state, name, now).is_some() {
        let backoff = state.record.containers.get(name).and_then(|it| it.backoff)?;
        let message = format!(
            "back-off {} restarting failed container={name} pod={}_{}({})",
            backoff.text(),
            spec::name(pod),
            spec::namespace(pod),
            spec::uid(pod)
        );
        return reason("CrashLoopBackOff", Some(message));
    }
    if let Some(waiting) = state.live(name).and_then(|live| live.waiting.as_ref()) {
        return reason(&waiting.reason, Some(waiting.message.clone()));
    }
    if state.run(name).is_some() {
        return None;
    }
    let initializing =
        spec::init_members(pod).next().is_some() && initialization(pod, state) != Initialization::Done;
    reason(
        if initializing {
            "PodInitializing"
        } else {
            "ContainerCreating"
        },
        None,
    )
}

/// What the containers of one list are doing, counted.
#[derive(Default)]
struct Count {
    waiting: u32,
    running: u32,
    stopped: u32,
    succeeded: u32,
}

impl Count {
    fn add(&mut self, status: &ContainerStatus) {
        let Some(state) = &status.state else { return };
        let ended_before = status
            .last_state
            .as_ref()
            .is_some_and(|last| last.terminated.is_some());
        if state.running.is_some() {
            self.running += 1;
        } else if let Some(terminated) = &state.terminated {
            self.stopped += 1;
            self.succeeded += u32::from(terminated.exit_code == 0);
        } else if ended_before {
            self.stopped += 1;
        } else {
            self.waiting += 1;
        }
    }
}

fn phase(pod: &Pod, state: &PodState, init: &[ContainerStatus], apps: &[ContainerStatus]) -> &'static str {
    let known = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let nothing_runs = init
        .iter()
        .chain(apps)
        .all(|it| state.running(&it.name).is_none());
    if state.record.failed.is_some() || known == Some("Failed") {
        return "Failed";
    }
    if known == Some("Succeeded") {
        return "Succeeded";
    }
    let (pending_init, failed_init) = init_progress(pod, init);
    let policy = spec::restart_policy(pod);
    if failed_init && policy == RestartPolicy::Never && nothing_runs {
        return "Failed";
    }
    let mut count = Count::default();
    apps.iter().for_each(|status| count.add(status));
    if pending_init && !(is_ending(pod, state) && nothing_runs) {
        return "Pending";
    }
    // Sidecars that run keep the pod running; those that ended do not matter.
    let sidecars = spec::init_members(pod)
        .zip(init)
        .filter(|(member, _)| member.role == Role::Sidecar);
    let sidecar_runs = sidecars
        .filter(|(member, _)| state.running(member.name()).is_some())
        .count()
        > 0;
    let over = is_ending(pod, state) && nothing_runs;
    match () {
        () if over && count.stopped > 0 && count.stopped == count.succeeded && count.waiting == 0 => {
            "Succeeded"
        }
        () if over && count.stopped > 0 => "Failed",
        () if over && state.vanished | spec::deletion_requested(pod) => "Failed",
        () if count.waiting > 0 => "Pending",
        () if count.running > 0 || sidecar_runs => "Running",
        () if count.stopped == 0 => "Pending",
        () if policy == RestartPolicy::Always => "Running",
        () if count.stopped == count.succeeded => "Succeeded",
        () if policy == RestartPolicy::Never => "Failed",
        () => "Running",
    }
}

/// Whether an init container still has to run (or a sidecar to start), and whether one failed.
fn init_progress(pod: &Pod, init: &[ContainerStatus]) -> (bool, bool) {
    let (mut pending, mut failed) = (false, false);
    for (member, status) in spec::init_members(pod).zip(init) {
        let state = status.state.as_ref();
        let running = state.is_some_and(|it| it.running.is_some());
        let ended = state.and_then(|it| it.terminated.as_ref());
        let ended_before = status.last_state.as_ref().and_then(|it| it.terminated.as_ref());
        match member.role {
            Role::Sidecar => {
                pending |=
                    ended.is_none() && ended_before.is_none() && !(running && status.started == Some(true))
            }
            _ => {
                pending |= running || (ended.is_none() && ended_before.is_none());
                let code = ended.or(ended_before).map(|it| it.exit_code);
                failed |= !running && code.is_some_and(|code| code != 0);
                pending |= !running && code.is_some_and(|code| code != 0);
            }
        }
    }
    (pending, failed)
}

#[cfg(test)]
mod tests;
