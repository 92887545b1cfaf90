//! The conditions of a pod, as kubelet words them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::{Initialization, initialization};
use super::spec::{self, Role};
use super::state::PodState;

/// A condition's answer: is it so, and if not, why.
struct Answer {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Answer {
    fn yes() -> Self {
        Answer {
            holds: true,
            reason: None,
            message: None,
        }
    }

    fn yes_because(reason: &'static str) -> Self {
        Answer {
            holds: true,
            reason: Some(reason),
            message: None,
        }
    }

    fn no(reason: &'static str) -> Self {
        Answer {
            holds: false,
            reason: Some(reason),
            message: None,
        }
    }

    fn no_with(reason: &'static str, message: String) -> Self {
        Answer {
            holds: false,
            reason: Some(reason),
            message: Some(message),
        }
    }
}

/// The conditions that the runtime answers for, in kubelet's order, followed by those of others that the
/// object has.
pub fn conditions(
    pod: &Pod,
    state: &PodState,
    phase: &str,
    init: &[ContainerStatus],
    apps: &[ContainerStatus],
    now: Timestamp,
) -> Vec<PodCondition> {
    let ready = containers_ready(pod, phase, init, apps);
    let gates = readiness_gates(pod, ready.holds);
    let ready_too = gates.unwrap_or(Answer {
        message: ready.message.clone(),
        ..ready
    });
    let answers = [
        ("PodReadyToStartContainers", has_network(pod, state)),
        ("Initialized", initialized(pod, state, phase, init)),
        ("Ready", ready_too),
        ("ContainersReady", containers_ready(pod, phase, init, apps)),
        ("PodScheduled", Answer::yes()),
    ];
    let known = pod
        .status
        .as_ref()
        .and_then(|it| it.conditions.as_deref())
        .unwrap_or_default();
    let mut conditions: Vec<_> = answers
        .into_iter()
        .map(|(type_, answer)| condition(pod, known, type_, answer, now))
        .collect();
    let others = known
        .iter()
        .filter(|it| conditions.iter().all(|ours| ours.type_ != it.type_))
        .cloned();
    let others: Vec<_> = others.collect();
    conditions.extend(others);
    conditions
}

fn condition(pod: &Pod, known: &[PodCondition], type_: &str, answer: Answer, now: Timestamp) -> PodCondition {
    let status = if answer.holds { "True" } else { "False" };
    let before = known.iter().find(|it| it.type_ == type_ && it.status == status);
    PodCondition {
        type_: type_.into(),
        status: status.into(),
        reason: answer.reason.map(Into::into),
        message: answer.message,
        last_probe_time: None,
        last_transition_time: before
            .and_then(|it| it.last_transition_time.clone())
            .or_else(|| Some(Time(super::status::whole_seconds(now)))),
        observed_generation: pod.metadata.generation,
    }
}

fn has_network(pod: &Pod, state: &PodState) -> Answer {
    let attached =
        state.ready_sandbox().is_some() && (spec::host_network(pod) || !state.record.ips.is_empty());
    Answer {
        holds: attached,
        reason: None,
        message: None,
    }
}

fn initialized(pod: &Pod, state: &PodState, phase: &str, init: &[ContainerStatus]) -> Answer {
    if phase == "Succeeded" {
        return Answer::yes_because("PodCompleted");
    }
    if initialization(pod, state) == Initialization::Done {
        return Answer::yes();
    }
    let pending = spec::init_members(pod)
        .zip(init)
        .filter(|(member, status)| match member.role {
            Role::Sidecar => status.started != Some(true),
            _ => !status.ready,
        });
    let names: Vec<_> = pending.map(|(member, _)| member.name()).collect();
    if names.is_empty() {
        return Answer::yes();
    }
    Answer::no_with(
        "ContainersNotInitialized",
        format!("containers with incomplete status: [{}]", names.join(" ")),
    )
}

fn containers_ready(pod: &Pod, phase: &str, init: &[ContainerStatus], apps: &[ContainerStatus]) -> Answer {
    match phase {
        "Succeeded" => return Answer::no("PodCompleted"),
        "Failed" => return Answer::no("PodFailed"),
        _ => {}
    }
    let sidecars = spec::init_members(pod)
        .zip(init)
        .filter(|(member, _)| member.role == Role::Sidecar)
        .map(|(_, status)| status);
    let unready: Vec<_> = sidecars
        .chain(apps)
        .filter(|it| !it.ready)
        .map(|it| it.name.as_str())
        .collect();
    if unready.is_empty() {
        return Answer::yes();
    }
    Answer::no_with(
        "ContainersNotReady",
        format!("containers with unready status: [{}]", unready.join(" ")),
    )
}

/// `Some` when the containers are ready and the pod's readiness gates are not.
fn readiness_gates(pod: &Pod, containers_ready: bool) -> Option<Answer> {
    if !containers_ready {
        return None;
    }
    let known = pod
        .status
        .as_ref()
        .and_then(|it| it.conditions.as_deref())
        .unwrap_or_default();
    let closed: Vec<_> = spec::spec(pod)
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match known.iter().find(|it| it.type_ == *name) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{name}\" does not exist."
                )),
                Some(it) if it.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{name}\" is not \"True\", but {}",
                    it.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    (!closed.is_empty()).then(|| Answer::no_with("ReadinessGatesNotReady", closed.join(", ")))
}
