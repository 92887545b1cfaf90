//! Pods.

use jiff::Timestamp;
use serde_json::Value;

use super::{AGE, Column, NAME, age, column, name, or_none, since, wide};
use crate::kinds::value::{list, text};

/// Columns of pods.
pub(in crate::kinds) const POD: &[Column] = &[
    NAME,
    column(
        "Ready",
        "string",
        "The aggregate readiness state of this pod for accepting traffic.",
    ),
    column(
        "Status",
        "string",
        "The aggregate status of the containers in this pod.",
    ),
    column(
        "Restarts",
        "string",
        "The number of times the containers in this pod have been restarted and when the last container in this pod \
         has restarted.",
    ),
    AGE,
    wide("IP", "string", "The first of podIPs."),
    wide("Node", "string", "The node on which this pod runs or shall run."),
    wide(
        "Nominated Node",
        "string",
        "The node on which this pod shall run once others made way for it.",
    ),
    wide(
        "Readiness Gates",
        "string",
        "Conditions that must be true for the pod to be ready.",
    ),
];

/// What a pod's statuses add up to.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

/// A pod's row.
pub(in crate::kinds) fn pod(object: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarise(object);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts != 0 => {
            format!(
                "{} ({} ago)",
                summary.restarts,
                since(&last.to_string().into(), now)
            )
        }
        _ => summary.restarts.to_string(),
    };
    let status = &object["status"];
    let ip = match list(&status["podIPs"]).first() {
        Some(first) => text(&first["ip"]),
        None => text(&status["podIP"]),
    };
    vec![
        name(object),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        age(object, now),
        or_none(ip),
        or_none(text(&object["spec"]["nodeName"])),
        or_none(text(&status["nominatedNodeName"])),
        or_none(&readiness_gates(object)),
    ]
}

fn readiness_gates(object: &Value) -> String {
    let gates = list(&object["spec"]["readinessGates"]);
    if gates.is_empty() {
        return String::new();
    }
    let met = gates
        .iter()
        .filter(|gate| condition(object, text(&gate["conditionType"])))
        .count();
    format!("{met}/{}", gates.len())
}

/// Whether a condition is True.
fn condition(object: &Value, kind: &str) -> bool {
    list(&object["status"]["conditions"])
        .iter()
        .any(|c| c["type"] == kind && c["status"] == "True")
}

fn is_sidecar(object: &Value, name: &Value) -> bool {
    list(&object["spec"]["initContainers"])
        .iter()
        .any(|c| c["name"] == *name && c["restartPolicy"] == "Always")
}

fn summarise(object: &Value) -> Summary {
    let (spec, status) = (&object["spec"], &object["status"]);
    let sidecars = list(&spec["initContainers"])
        .iter()
        .filter(|c| c["restartPolicy"] == "Always")
        .count();
    let mut summary = Summary {
        ready: 0,
        total: list(&spec["containers"]).len() + sidecars,
        reason: text(&status["phase"]).to_owned(),
        restarts: 0,
        last_restart: None,
    };
    if !text(&status["reason"]).is_empty() {
        summary.reason = text(&status["reason"]).to_owned();
    }
    let gated = |c: &&Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
    if list(&status["conditions"]).iter().any(|c| gated(&c)) {
        summary.reason = "SchedulingGated".to_owned();
    }
    let (initializing, sidecars) = init_containers(object, &mut summary);
    if !initializing || condition(object, "Initialized") {
        (summary.restarts, summary.last_restart) = sidecars;
        containers(object, &mut summary);
    }
    if !object["metadata"]["deletionTimestamp"].is_null() {
        if status["reason"] == "NodeLost" {
            summary.reason = "Unknown".to_owned();
        } else if !matches!(text(&status["phase"]), "Succeeded" | "Failed") {
            summary.reason = "Terminating".to_owned();
        }
    }
    summary
}

type Restarts = (i64, Option<Timestamp>);

fn count_restarts(container: &Value, (count, last): &mut Restarts) {
    *count += container["restartCount"].as_i64().unwrap_or(0);
    let finished = text(&container["lastState"]["terminated"]["finishedAt"])
        .parse::<Timestamp>()
        .ok();
    *last = (*last).max(finished);
}

/// Judges the init containers: whether one of them still stands before the others, and the sidecars' restarts.
fn init_containers(object: &Value, summary: &mut Summary) -> (bool, Restarts) {
    let mut all: Restarts = (0, None);
    let mut sidecars: Restarts = (0, None);
    let mut initializing = false;
    for (i, container) in list(&object["status"]["initContainerStatuses"])
        .iter()
        .enumerate()
    {
        count_restarts(container, &mut all);
        let sidecar = is_sidecar(object, &container["name"]);
        if sidecar {
            count_restarts(container, &mut sidecars);
        }
        let state = &container["state"];
        let terminated = &state["terminated"];
        if terminated.is_object() && terminated["exitCode"].as_i64().unwrap_or(0) == 0 {
            continue;
        }
        if sidecar && container["started"] == true {
            summary.ready += usize::from(container["ready"] == true);
            continue;
        }
        let waiting = text(&state["waiting"]["reason"]);
        summary.reason = if terminated.is_object() {
            format!("Init:{}", ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{}", list(&object["spec"]["initContainers"]).len())
        };
        initializing = true;
        break;
    }
    (summary.restarts, summary.last_restart) = all;
    (initializing, sidecars)
}

/// Why a container ended, in a word.
fn ended(terminated: &Value) -> String {
    match (
        text(&terminated["reason"]),
        terminated["signal"].as_i64().unwrap_or(0),
    ) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn containers(object: &Value, summary: &mut Summary) {
    let mut restarts: Restarts = (summary.restarts, summary.last_restart);
    let mut running = false;
    // From the last to the first: the first one's reason is what is shown.
    for container in list(&object["status"]["containerStatuses"]).iter().rev() {
        count_restarts(container, &mut restarts);
        let state = &container["state"];
        let waiting = text(&state["waiting"]["reason"]);
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if state["terminated"].is_object() {
            summary.reason = ended(&state["terminated"]);
        } else if container["ready"] == true && state["running"].is_object() {
            running = true;
            summary.ready += 1;
        }
    }
    (summary.restarts, summary.last_restart) = restarts;
    if summary.reason == "Completed" && running {
        summary.reason = if condition(object, "Ready") {
            "Running"
        } else {
            "NotReady"
        }
        .to_owned();
    }
}
