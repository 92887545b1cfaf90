use super::*;
use crate::runtime::pod::backoff::Backoff;
use crate::runtime::pod::state::{Failure, Waiting};
use crate::runtime::pod::testing::{at, ends, pod, ready_state, runs, starts};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

fn node() -> Vec<IpAddr> {
    vec!["172.30.0.10".parse().unwrap(), "fd30::10".parse().unwrap()]
}

fn status(pod: &Pod, state: &PodState) -> PodStatus {
    pod_status(pod, state, &node(), at(100))
}

fn summary(pod: &Pod, state: &PodState) -> String {
    let status = status(pod, state);
    let mut lines = vec![format!("phase {}", status.phase.as_deref().unwrap())];
    for it in status.conditions.iter().flatten() {
        lines.push(format!(
            "{} {} {} {}",
            it.type_,
            it.status,
            it.reason.as_deref().unwrap_or("-"),
            it.message.as_deref().unwrap_or("-")
        ));
    }
    let all = status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten());
    for it in all {
        let state = it.state.as_ref().unwrap();
        let text = match (&state.running, &state.terminated, &state.waiting) {
            (Some(_), ..) => "running".to_owned(),
            (_, Some(ended), _) => format!("{} {}", ended.reason.as_deref().unwrap(), ended.exit_code),
            (.., Some(waiting)) => format!(
                "{}: {}",
                waiting.reason.as_deref().unwrap(),
                waiting.message.as_deref().unwrap_or("-")
            ),
            _ => "nothing".to_owned(),
        };
        lines.push(format!(
            "{} ready={} started={:?} restarts={} {text}",
            it.name, it.ready, it.started, it.restart_count
        ));
    }
    lines.join("\n")
}

fn deleted(mut pod: Pod) -> Pod {
    pod.metadata.deletion_timestamp = Some(Time(at(100)));
    pod
}

const ONE: &str = r#"{"containers":[{"name":"a","image":"podnet/echo"}]}"#;
const INIT: &str = r#"{"initContainers":[{"name":"i"},{"name":"s","restartPolicy":"Always"}],
    "containers":[{"name":"a"}]}"#;

#[test]
fn a_running_pod_in_full() {
    let pod = pod(ONE);
    let mut state = ready_state();
    ends(&mut state, "a", 0, 1, 10);
    runs(&mut state, "a", 1);
    insta::assert_json_snapshot!(status(&pod, &state));
}

#[test]
fn a_pod_that_is_being_made() {
    let state = PodState {
        record: crate::runtime::pod::state::Record::default(),
        ..PodState::default()
    };
    insta::assert_snapshot!(summary(&pod(ONE), &state), @r"
    phase Pending
    PodReadyToStartContainers False - -
    Initialized True - -
    Ready False ContainersNotReady containers with unready status: [a]
    ContainersReady False ContainersNotReady containers with unready status: [a]
    PodScheduled True - -
    a ready=false started=Some(false) restarts=0 ContainerCreating: -
    ");
}

#[test]
fn init_containers_hold_the_pod_pending() {
    let pod = pod(INIT);
    let mut state = ready_state();
    runs(&mut state, "i", 0);
    insta::assert_snapshot!(summary(&pod, &state), @r"
    phase Pending
    PodReadyToStartContainers True - -
    Initialized False ContainersNotInitialized containers with incomplete status: [i s]
    Ready False ContainersNotReady containers with unready status: [s a]
    ContainersReady False ContainersNotReady containers with unready status: [s a]
    PodScheduled True - -
    i ready=false started=Some(true) restarts=0 running
    s ready=false started=Some(false) restarts=0 PodInitializing: -
    a ready=false started=Some(false) restarts=0 PodInitializing: -
    ");
    ends(&mut state, "i", 0, 0, 2);
    starts(&mut state, "s");
    assert!(summary(&pod, &state).starts_with("phase Pending"));
    runs(&mut state, "s", 0);
    runs(&mut state, "a", 0);
    insta::assert_snapshot!(summary(&pod, &state), @r"
    phase Running
    PodReadyToStartContainers True - -
    Initialized True - -
    Ready True - -
    ContainersReady True - -
    PodScheduled True - -
    i ready=true started=Some(false) restarts=0 Completed 0
    s ready=true started=Some(true) restarts=0 running
    a ready=true started=Some(true) restarts=0 running
    ");
}

#[test]
fn a_crash_loop_shows_the_wait_and_the_last_end() {
    let pod = pod(ONE);
    let mut state = ready_state();
    ends(&mut state, "a", 3, 1, 95);
    state.record.containers.get_mut("a").unwrap().backoff = Some(Backoff {
        seconds: 40,
        since: at(90),
    });
    insta::assert_snapshot!(summary(&pod, &state), @r"
    phase Running
    PodReadyToStartContainers True - -
    Initialized True - -
    Ready False ContainersNotReady containers with unready status: [a]
    ContainersReady False ContainersNotReady containers with unready status: [a]
    PodScheduled True - -
    a ready=false started=Some(false) restarts=3 CrashLoopBackOff: back-off 40s restarting failed container=a pod=web_default(u-1)
    ");
    let last = status(&pod, &state).container_statuses.unwrap()[0]
        .last_state
        .clone()
        .unwrap();
    assert_eq!(last.terminated.unwrap().exit_code, 1);
}

#[test]
fn an_image_that_is_missing_is_told() {
    let mut state = ready_state();
    state.live.entry("a".into()).or_default().waiting = Some(Waiting {
        reason: "ErrImageNeverPull".into(),
        message: "load it".into(),
        retry_at: at(200),
    });
    let summary = summary(&pod(ONE), &state);
    assert!(summary.starts_with("phase Pending"), "{summary}");
    assert!(summary.ends_with("ErrImageNeverPull: load it"), "{summary}");
}

/// policy, exit codes of two containers (None: runs) -> phase
#[test]
fn phases_follow_policies_and_exit_codes() {
    let table = [
        ("Always", Some(0), Some(0), "Running"),
        ("Always", Some(1), None, "Running"),
        ("OnFailure", Some(0), Some(0), "Succeeded"),
        ("OnFailure", Some(0), Some(1), "Running"),
        ("OnFailure", Some(0), None, "Running"),
        ("Never", Some(0), Some(0), "Succeeded"),
        ("Never", Some(0), Some(1), "Failed"),
        ("Never", Some(1), None, "Running"),
    ];
    for (policy, a, b, expected) in table {
        let pod = pod(&format!(
            r#"{{"restartPolicy":"{policy}","containers":[{{"name":"a"}},{{"name":"b"}}]}}"#
        ));
        let mut state = ready_state();
        for (name, code) in [("a", a), ("b", b)] {
            match code {
                Some(code) => ends(&mut state, name, 0, code, 5),
                None => runs(&mut state, name, 0),
            }
        }
        assert_eq!(
            status(&pod, &state).phase.as_deref(),
            Some(expected),
            "{policy} {a:?} {b:?}"
        );
    }
}

#[test]
fn a_completed_pod_says_so() {
    let pod = pod(r#"{"restartPolicy":"Never","containers":[{"name":"a"}]}"#);
    let mut state = ready_state();
    ends(&mut state, "a", 0, 0, 5);
    state.record.sandbox = None;
    insta::assert_snapshot!(summary(&pod, &state), @r"
    phase Succeeded
    PodReadyToStartContainers False - -
    Initialized True PodCompleted -
    Ready False PodCompleted -
    ContainersReady False PodCompleted -
    PodScheduled True - -
    a ready=false started=Some(false) restarts=0 Completed 0
    ");
    assert_eq!(status(&pod, &state).pod_ip.as_deref(), Some("10.244.1.5"));
}

#[test]
fn a_deleted_pod_ends_in_a_final_phase() {
    for (code, phase) in [(0, "Succeeded"), (143, "Failed")] {
        let mut state = ready_state();
        runs(&mut state, "a", 0);
        assert_eq!(
            status(&deleted(pod(ONE)), &state).phase.as_deref(),
            Some("Running")
        );
        ends(&mut state, "a", 0, code, 90);
        assert_eq!(status(&deleted(pod(ONE)), &state).phase.as_deref(), Some(phase));
    }
    assert_eq!(
        status(&deleted(pod(ONE)), &PodState::default()).phase.as_deref(),
        Some("Failed")
    );
}

#[test]
fn a_failed_init_container_fails_a_pod_that_is_never_restarted() {
    let mut failing = pod(INIT);
    failing.spec.as_mut().unwrap().restart_policy = Some("Never".into());
    let mut state = ready_state();
    ends(&mut state, "i", 0, 7, 5);
    assert_eq!(status(&failing, &state).phase.as_deref(), Some("Failed"));
    assert_eq!(status(&pod(INIT), &state).phase.as_deref(), Some("Pending"));
}

#[test]
fn the_deadline_is_the_pods_reason() {
    let mut state = ready_state();
    runs(&mut state, "a", 0);
    state.record.failed = Some(Failure {
        reason: "DeadlineExceeded".into(),
        message: "too long".into(),
    });
    let status = status(&pod(ONE), &state);
    assert_eq!(
        (
            status.phase.as_deref(),
            status.reason.as_deref(),
            status.message.as_deref()
        ),
        (Some("Failed"), Some("DeadlineExceeded"), Some("too long"))
    );
}

#[test]
fn readiness_gates_hold_ready_back() {
    let mut pod = pod(r#"{"readinessGates":[{"conditionType":"x/open"}],"containers":[{"name":"a"}]}"#);
    let mut state = ready_state();
    runs(&mut state, "a", 0);
    let ready = |pod: &Pod| {
        let conditions = status(pod, &state).conditions.unwrap();
        conditions.into_iter().find(|it| it.type_ == "Ready").unwrap()
    };
    let closed = ready(&pod);
    assert_eq!(
        (closed.status.as_str(), closed.reason.as_deref()),
        ("False", Some("ReadinessGatesNotReady"))
    );
    pod.status = serde_json::from_str(r#"{"conditions":[{"type":"x/open","status":"True"}]}"#).unwrap();
    assert_eq!(ready(&pod).status, "True");
    // Conditions of others are kept.
    assert!(
        status(&pod, &state)
            .conditions
            .unwrap()
            .iter()
            .any(|it| it.type_ == "x/open")
    );
}

#[test]
fn transition_times_change_only_with_the_status() {
    let mut pod = pod(ONE);
    let mut state = ready_state();
    runs(&mut state, "a", 0);
    pod.status = Some(pod_status(&pod, &state, &node(), at(50)));
    let again = status(&pod, &state);
    assert_eq!(pod.status.as_ref().unwrap(), &again);
    state.live.get_mut("a").unwrap().ready = false;
    let changed = status(&pod, &state).conditions.unwrap();
    let times: Vec<_> = changed
        .iter()
        .map(|it| it.last_transition_time.clone().unwrap().0)
        .collect();
    assert_eq!(times, [at(50), at(50), at(100), at(100), at(50)]);
}
