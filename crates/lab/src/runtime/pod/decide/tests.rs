use super::*;
use crate::runtime::pod::state::{Unhealthy, Waiting};
use crate::runtime::pod::testing::{at, ends, pod, ready_state, runs, starts};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const ONE: &str = r#"{"containers":[{"name":"a"}]}"#;
const TWO_NEVER: &str = r#"{"restartPolicy":"Never","containers":[{"name":"a"},{"name":"b"}]}"#;
const INIT: &str = r#"{"initContainers":[{"name":"i1"},{"name":"i2"}],"containers":[{"name":"a"}]}"#;
const SIDECARS: &str = r#"{"restartPolicy":"Never","containers":[{"name":"a"}],"initContainers":[
    {"name":"s1","restartPolicy":"Always"},{"name":"i"},{"name":"s2","restartPolicy":"Always"}]}"#;

fn start(container: &str, attempt: u32) -> Action {
    Action::Start {
        container: container.into(),
        attempt,
    }
}

fn stop(container: &str, grace: i64) -> Action {
    Action::Stop {
        container: container.into(),
        grace,
        message: format!("Stopping container {container}"),
    }
}

fn actions(pod: &Pod, state: &PodState, second: i64) -> Vec<Action> {
    decide(pod, state, at(second)).actions
}

fn deleted(mut pod: Pod, second: i64, grace: i64) -> Pod {
    pod.metadata.deletion_timestamp = Some(Time(at(second + grace)));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod
}

#[test]
fn a_new_pod_gets_volumes_then_a_sandbox_then_its_containers() {
    let pod = pod(ONE);
    let mut state = PodState::default();
    assert_eq!(actions(&pod, &state, 0), [Action::PrepareVolumes]);
    state.volumes_ready = true;
    assert_eq!(actions(&pod, &state, 0), []);
    state.network_ready = true;
    assert_eq!(actions(&pod, &state, 0), [Action::CreateSandbox { attempt: 0 }]);
    assert_eq!(actions(&pod, &ready_state(), 0), [start("a", 0)]);
}

#[test]
fn a_host_network_pod_does_not_wait_for_the_network() {
    let pod = pod(r#"{"hostNetwork":true,"containers":[{"name":"a"}]}"#);
    let state = PodState {
        volumes_ready: true,
        ..PodState::default()
    };
    assert_eq!(actions(&pod, &state, 0), [Action::CreateSandbox { attempt: 0 }]);
}

#[test]
fn a_failed_sandbox_is_tried_again_at_its_time() {
    let state = PodState {
        volumes_ready: true,
        network_ready: true,
        retry_at: Some(at(5)),
        ..PodState::default()
    };
    let decision = decide(&pod(ONE), &state, at(3));
    assert_eq!((decision.actions, decision.wake), (vec![], Some(at(5))));
    assert_eq!(
        actions(&pod(ONE), &state, 5),
        [Action::CreateSandbox { attempt: 0 }]
    );
}

/// policy, exit code -> restarted?
#[test]
fn restart_policies_meet_exit_codes() {
    for (policy, exit_code, restarted) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("OnFailure", 137, true),
        ("Never", 0, false),
        ("Never", 1, false),
    ] {
        let pod = pod(&format!(
            r#"{{"restartPolicy":"{policy}","containers":[{{"name":"a"}}]}}"#
        ));
        let mut state = ready_state();
        ends(&mut state, "a", 0, exit_code, 10);
        let expected = if restarted {
            start("a", 1)
        } else {
            Action::StopSandbox
        };
        assert_eq!(actions(&pod, &state, 10), [expected], "{policy} {exit_code}");
    }
}

#[test]
fn a_crashing_container_waits_for_its_back_off() {
    let pod = pod(ONE);
    let mut state = ready_state();
    ends(&mut state, "a", 1, 1, 20);
    state.record.containers.get_mut("a").unwrap().backoff = Some(Backoff {
        seconds: 10,
        since: at(15),
    });
    let decision = decide(&pod, &state, at(25));
    assert_eq!(decision.actions, []);
    assert_eq!(decision.wake, Some(at(30)));
    assert_eq!(decision.backing_off, ["a"]);
    assert_eq!(actions(&pod, &state, 30), [start("a", 2)]);
}

#[test]
fn a_container_that_could_not_be_made_is_tried_again_at_its_time() {
    let pod = pod(ONE);
    let mut state = ready_state();
    state.live.entry("a".into()).or_default().waiting = Some(Waiting {
        reason: "ErrImageNeverPull".into(),
        message: String::new(),
        retry_at: at(10),
    });
    let decision = decide(&pod, &state, at(1));
    assert_eq!((decision.actions, decision.wake), (vec![], Some(at(10))));
    assert_eq!(actions(&pod, &state, 10), [start("a", 0)]);
}

#[test]
fn the_pod_is_over_when_all_its_containers_are() {
    let pod = pod(TWO_NEVER);
    let mut state = ready_state();
    ends(&mut state, "a", 0, 1, 10);
    runs(&mut state, "b", 0);
    assert_eq!(actions(&pod, &state, 10), []);
    ends(&mut state, "b", 0, 0, 11);
    assert_eq!(actions(&pod, &state, 11), [Action::StopSandbox]);
    state.record.sandbox = None;
    // The object stays until someone deletes it.
    assert_eq!(actions(&pod, &state, 12), []);
}

#[test]
fn init_containers_run_one_after_the_other() {
    let pod = pod(INIT);
    let mut state = ready_state();
    assert_eq!(actions(&pod, &state, 0), [start("i1", 0)]);
    runs(&mut state, "i1", 0);
    assert_eq!(actions(&pod, &state, 1), []);
    ends(&mut state, "i1", 0, 0, 2);
    assert_eq!(actions(&pod, &state, 2), [start("i2", 0)]);
    ends(&mut state, "i2", 0, 3, 3);
    assert_eq!(actions(&pod, &state, 3), [start("i2", 1)]);
    ends(&mut state, "i2", 1, 0, 4);
    assert_eq!(actions(&pod, &state, 4), [start("a", 0)]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_is_never_restarted() {
    let mut pod = pod(INIT);
    pod.spec.as_mut().unwrap().restart_policy = Some("Never".into());
    let mut state = ready_state();
    ends(&mut state, "i1", 0, 1, 2);
    assert_eq!(actions(&pod, &state, 2), [Action::StopSandbox]);
}

#[test]
fn sidecars_start_in_turn_and_hold_the_next_until_started() {
    let pod = pod(SIDECARS);
    let mut state = ready_state();
    assert_eq!(actions(&pod, &state, 0), [start("s1", 0)]);
    starts(&mut state, "s1");
    assert_eq!(actions(&pod, &state, 0), []);
    runs(&mut state, "s1", 0);
    assert_eq!(actions(&pod, &state, 0), [start("i", 0)]);
    ends(&mut state, "i", 0, 0, 1);
    assert_eq!(actions(&pod, &state, 1), [start("s2", 0)]);
    runs(&mut state, "s2", 0);
    assert_eq!(actions(&pod, &state, 1), [start("a", 0)]);
}

#[test]
fn a_sidecar_is_restarted_whatever_the_pod_says_and_ended_in_reverse_order() {
    let pod = pod(SIDECARS);
    let mut state = ready_state();
    runs(&mut state, "s1", 0);
    ends(&mut state, "i", 0, 0, 1);
    ends(&mut state, "s2", 0, 0, 2);
    runs(&mut state, "a", 0);
    assert_eq!(actions(&pod, &state, 2), [start("s2", 1)]);
    runs(&mut state, "s2", 1);
    ends(&mut state, "a", 0, 0, 3);
    assert_eq!(actions(&pod, &state, 3), [stop("s2", 30)]);
    ends(&mut state, "s2", 1, 143, 4);
    assert_eq!(actions(&pod, &state, 4), [stop("s1", 30)]);
    ends(&mut state, "s1", 0, 143, 5);
    assert_eq!(actions(&pod, &state, 5), [Action::StopSandbox]);
}

#[test]
fn a_deleted_pod_is_stopped_in_steps() {
    let pod = deleted(pod(TWO_NEVER), 100, 20);
    let mut state = ready_state();
    runs(&mut state, "a", 0);
    runs(&mut state, "b", 0);
    assert_eq!(actions(&pod, &state, 100), [stop("a", 20), stop("b", 20)]);
    state.live.get_mut("a").unwrap().stopping = Some(Stopping::Hook { deadline: at(120) });
    state.live.get_mut("b").unwrap().stopping = Some(Stopping::Asked { deadline: at(110) });
    let decision = decide(&pod, &state, at(105));
    assert_eq!((decision.actions, decision.wake), (vec![], Some(at(110))));
    assert_eq!(
        actions(&pod, &state, 110),
        [Action::Kill {
            container: "b".into()
        }]
    );
    state.live.get_mut("b").unwrap().stopping = Some(Stopping::Killed);
    assert_eq!(
        actions(&pod, &state, 120),
        [Action::Terminate {
            container: "a".into()
        }]
    );
    ends(&mut state, "a", 0, 143, 121);
    ends(&mut state, "b", 0, 137, 121);
    assert_eq!(actions(&pod, &state, 121), [Action::StopSandbox]);
    state.record.sandbox = None;
    assert_eq!(actions(&pod, &state, 121), [Action::Finish]);
}

#[test]
fn nothing_is_started_in_a_pod_that_is_deleted() {
    for policy in ["Always", "OnFailure", "Never"] {
        let pod = pod(&format!(
            r#"{{"restartPolicy":"{policy}","containers":[{{"name":"a"}}]}}"#
        ));
        let pod = deleted(pod, 0, 30);
        assert_eq!(actions(&pod, &PodState::default(), 0), [Action::Finish]);
        let mut state = ready_state();
        ends(&mut state, "a", 0, 1, 1);
        assert_eq!(actions(&pod, &state, 1), [Action::StopSandbox], "{policy}");
    }
}

#[test]
fn a_second_deletion_shortens_the_wait() {
    let mut state = ready_state();
    runs(&mut state, "a", 0);
    state.live.get_mut("a").unwrap().stopping = Some(Stopping::Asked { deadline: at(130) });
    let forced = deleted(pod(ONE), 101, 0);
    let decision = decide(&forced, &state, at(101));
    assert_eq!((decision.actions, decision.wake), (vec![], Some(at(103))));
    assert_eq!(
        actions(&forced, &state, 103),
        [Action::Kill {
            container: "a".into()
        }]
    );
}

#[test]
fn a_pod_that_the_api_no_longer_has_is_torn_down() {
    let pod = pod(ONE);
    let mut state = ready_state();
    runs(&mut state, "a", 0);
    state.vanished = true;
    assert_eq!(actions(&pod, &state, 5), [stop("a", 30)]);
    ends(&mut state, "a", 0, 143, 6);
    state.record.sandbox = None;
    assert_eq!(actions(&pod, &state, 6), [Action::Finish]);
}

#[test]
fn a_lost_sandbox_is_cleaned_up_and_made_again() {
    let pod = pod(INIT);
    let mut state = ready_state();
    ends(&mut state, "i1", 0, 0, 1);
    ends(&mut state, "i2", 0, 0, 1);
    ends(&mut state, "a", 0, 137, 9);
    state.record.sandbox.as_mut().unwrap().ready = false;
    assert_eq!(actions(&pod, &state, 9), [Action::StopSandbox]);
    state.record.sandbox = None;
    assert_eq!(actions(&pod, &state, 9), [Action::CreateSandbox { attempt: 1 }]);
    // The init containers run again in the new sandbox.
    state.record.sandbox = Some(crate::runtime::pod::state::Sandbox {
        attempt: 1,
        id: "b".into(),
        network: None,
        ready: true,
    });
    assert_eq!(actions(&pod, &state, 9), [start("i1", 1)]);
}

#[test]
fn a_lost_sandbox_of_a_pod_that_is_over_stays_lost() {
    for (policy, exit_code, again) in [
        ("Never", 137, false),
        ("OnFailure", 0, false),
        ("OnFailure", 137, true),
        ("Always", 0, true),
    ] {
        let pod = pod(&format!(
            r#"{{"restartPolicy":"{policy}","containers":[{{"name":"a"}}]}}"#
        ));
        let mut state = ready_state();
        ends(&mut state, "a", 0, exit_code, 9);
        state.record.sandbox = None;
        let made = actions(&pod, &state, 9) == [Action::CreateSandbox { attempt: 1 }];
        assert_eq!(made, again, "{policy} {exit_code}");
    }
}

#[test]
fn an_unhealthy_container_is_ended_and_then_restarted() {
    let pod = pod(ONE);
    let mut state = ready_state();
    runs(&mut state, "a", 0);
    state.live.get_mut("a").unwrap().unhealthy = Some(Unhealthy {
        message: "Container a failed liveness probe, will be restarted".into(),
        grace: Some(3),
    });
    assert_eq!(
        actions(&pod, &state, 5),
        [Action::Stop {
            container: "a".into(),
            grace: 3,
            message: "Container a failed liveness probe, will be restarted".into()
        }]
    );
    ends(&mut state, "a", 0, 143, 6);
    assert_eq!(actions(&pod, &state, 6), [start("a", 1)]);
}

#[test]
fn a_pod_over_its_deadline_fails() {
    let pod = pod(r#"{"activeDeadlineSeconds":60,"containers":[{"name":"a"}]}"#);
    let mut state = ready_state();
    runs(&mut state, "a", 0);
    assert_eq!(decide(&pod, &state, at(59)).wake, Some(at(60)));
    let decision = actions(&pod, &state, 60);
    let [Action::Fail(failure)] = decision.as_slice() else {
        panic!("{decision:?}")
    };
    state.record.failed = Some(failure.clone());
    assert_eq!(actions(&pod, &state, 60), [stop("a", 30)]);
}

proptest::proptest! {
    /// Whatever the state, a pod that is deleted only ever moves towards its end.
    #[test]
    fn a_deleted_pod_only_moves_towards_its_end(
        policy in proptest::sample::select(vec!["Always", "OnFailure", "Never"]),
        codes in proptest::collection::vec(proptest::option::of(0..3_i32), 4),
        sandbox in proptest::bool::ANY,
    ) {
        let spec = format!(
            r#"{{"restartPolicy":"{policy}","initContainers":[{{"name":"i"}},{{"name":"s","restartPolicy":"Always"}}],
                "containers":[{{"name":"a"}},{{"name":"b"}}]}}"#
        );
        let pod = deleted(pod(&spec), 10, 30);
        let mut state = ready_state();
        for (name, code) in ["i", "s", "a", "b"].iter().zip(&codes) {
            match code {
                None => runs(&mut state, name, 0),
                Some(code) => ends(&mut state, name, 0, *code, 5),
            }
        }
        if !sandbox && codes.iter().all(Option::is_some) {
            state.record.sandbox = None;
        }
        let decided = actions(&pod, &state, 10);
        proptest::prop_assert!(!decided.is_empty());
        for action in decided {
            proptest::prop_assert!(
                matches!(action, Action::Stop { .. } | Action::StopSandbox | Action::Finish),
                "{action:?}"
            );
        }
    }
}
