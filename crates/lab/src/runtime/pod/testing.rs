//! Pods and states for tests, in few words.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::state::{Finished, PodState, Run, Sandbox};

/// A point in time, in seconds from the tests' zero.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// A pod called default/web with the specification given as JSON.
pub(crate) fn pod(spec: &str) -> Pod {
    let mut pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u-1", "generation": 1,
            "labels": {"app": "web", "tier": "a\"b"}, "annotations": {"note": "two\nlines"}},
    }))
    .unwrap();
    pod.spec = Some(serde_json::from_str(spec).unwrap());
    pod
}

/// A state with volumes, network and a ready sandbox.
pub(crate) fn ready_state() -> PodState {
    let mut state = PodState {
        volumes_ready: true,
        network_ready: true,
        ..PodState::default()
    };
    state.record.uid = "u-1".into();
    state.record.start_time = Some(at(0));
    state.record.next_sandbox = 1;
    state.record.sandbox = Some(Sandbox {
        attempt: 0,
        id: "5a".into(),
        network: None,
        ready: true,
    });
    state.record.ips = vec!["10.244.1.5".parse().unwrap(), "fd00:10:244:1::5".parse().unwrap()];
    state
}

fn put(state: &mut PodState, name: &str, attempt: u32, started: bool, finished: Option<Finished>) {
    let sandbox = state.record.sandbox.as_ref().map_or(0, |it| it.attempt);
    let container = state.record.containers.entry(name.into()).or_default();
    container.previous = container.current.take();
    container.current = Some(Run {
        id: format!("{name}{attempt}"),
        attempt,
        sandbox,
        image: "podnet/echo".into(),
        image_id: "podnet/echo".into(),
        started_at: at(1),
        started,
        finished,
    });
    state.live.entry(name.into()).or_default().ready = started;
}

/// `name` runs, for the `attempt`th time.
pub(crate) fn runs(state: &mut PodState, name: &str, attempt: u32) {
    put(state, name, attempt, true, None);
}

/// `name` runs, but its startup probe has not passed.
pub(crate) fn starts(state: &mut PodState, name: &str) {
    put(state, name, 0, false, None);
}

/// `name` ended with `exit_code` at second `when`.
pub(crate) fn ends(state: &mut PodState, name: &str, attempt: u32, exit_code: i32, when: i64) {
    let reason = if exit_code == 0 { "Completed" } else { "Error" };
    let finished = Finished {
        exit_code,
        signal: None,
        at: at(when),
        reason: reason.into(),
        message: String::new(),
    };
    put(state, name, attempt, true, Some(finished));
}
