//! Waiting until a lab is what was asked for, and saying what is not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use miette::miette;
use serde_json::Value;

use super::api::Api;

/// A thing that is not as it should be, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Such as `pod default/web`.
    pub what: String,
    /// What keeps it.
    pub why: String,
    /// Whether waiting cannot help.
    pub lasting: bool,
}

/// The pods that created objects stand for.
#[derive(Debug, Clone, Default)]
pub struct Workloads {
    /// UID of a pod or controller -> its name and the number of pods it should have.
    wanted: BTreeMap<String, (String, u64)>,
    namespaces: BTreeSet<String>,
}

impl Workloads {
    /// Notes an object as the API server returned it; those that bring no pods are ignored.
    pub fn add(&mut self, object: &Value) {
        let kind = object["kind"].as_str().unwrap_or_default();
        let count = match kind {
            "Pod" => 1,
            "Deployment" | "ReplicaSet" => object["spec"]["replicas"].as_u64().unwrap_or(1),
            _ => return,
        };
        let meta = &object["metadata"];
        let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
        let name = format!("{} {}/{}", kind.to_lowercase(), text("namespace"), text("name"));
        self.namespaces.insert(text("namespace"));
        self.wanted.insert(text("uid"), (name, count));
    }

    /// What is still missing among `pods` and `replica_sets`, as the API lists them.
    fn missing(&self, pods: &[Value], replica_sets: &[Value]) -> Vec<Trouble> {
        let owner_of: BTreeMap<&str, &str> = replica_sets
            .iter()
            .filter_map(|rs| Some((uid(rs)?, owner(rs)?)))
            .collect();
        let mut troubles = Vec::new();
        for (uid, (name, count)) in &self.wanted {
            let mine = pods.iter().filter(|pod| belongs(pod, uid, &owner_of));
            let (running, others): (Vec<_>, Vec<_>) = mine.partition(|pod| is_running(pod));
            troubles.extend(others.iter().map(|pod| trouble(pod)));
            let seen = (running.len() + others.len()) as u64;
            if seen < *count {
                troubles.push(Trouble {
                    what: name.clone(),
                    why: format!("has {seen} of {count} pods"),
                    lasting: false,
                });
            }
        }
        troubles
    }
}

fn uid(object: &Value) -> Option<&str> {
    object["metadata"]["uid"].as_str()
}

fn owner(object: &Value) -> Option<&str> {
    object["metadata"]["ownerReferences"]
        .as_array()?
        .iter()
        .find(|o| o["controller"] == true)?["uid"]
        .as_str()
}

fn belongs(pod: &Value, wanted: &str, owner_of: &BTreeMap<&str, &str>) -> bool {
    let controller = owner(pod);
    uid(pod) == Some(wanted)
        || controller == Some(wanted)
        || controller
            .and_then(|rs| owner_of.get(rs))
            .is_some_and(|deployment| *deployment == wanted)
}

/// Running, or ended well; and ready, unless a probe has yet to say so.
fn is_running(pod: &Value) -> bool {
    match pod["status"]["phase"].as_str() {
        Some("Succeeded") => true,
        Some("Running") => {
            let probed = pod["spec"]["containers"]
                .as_array()
                .is_some_and(|containers| containers.iter().any(|c| c["readinessProbe"].is_object()));
            probed || has_condition(pod, "Ready") || has_restarted(pod)
        }
        _ => false,
    }
}

fn has_restarted(pod: &Value) -> bool {
    pod["status"]["containerStatuses"]
        .as_array()
        .is_some_and(|statuses| {
            statuses
                .iter()
                .any(|status| status["restartCount"].as_u64() > Some(0))
        })
}

fn has_condition(object: &Value, kind: &str) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|conditions| {
            conditions
                .iter()
                .any(|c| c["type"] == kind && c["status"] == "True")
        })
}

/// Why a pod does not run, in the words of its status.
fn trouble(pod: &Value) -> Trouble {
    let name = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let what = format!("pod {}/{}", name("namespace"), name("name"));
    let statuses = ["initContainerStatuses", "containerStatuses"]
        .iter()
        .filter_map(|list| pod["status"][*list].as_array())
        .flatten();
    let mut waiting = statuses.filter_map(|status| {
        let state = &status["state"]["waiting"];
        let reason = state["reason"]
            .as_str()
            .filter(|r| *r != "ContainerCreating" && *r != "PodInitializing")?;
        let message = state["message"].as_str().unwrap_or_default();
        let container = status["name"].as_str().unwrap_or_default();
        Some((
            format!("container {container}: {reason}: {message}"),
            reason.to_owned(),
        ))
    });
    if let Some((why, reason)) = waiting.next() {
        return Trouble {
            what,
            why,
            lasting: matches!(reason.as_str(), "ErrImageNeverPull" | "InvalidImageName"),
        };
    }
    let unscheduled = pod["status"]["conditions"].as_array().and_then(|conditions| {
        conditions
            .iter()
            .find(|c| c["type"] == "PodScheduled" && c["status"] == "False")?["message"]
            .as_str()
    });
    let phase = pod["status"]["phase"].as_str().unwrap_or("Pending");
    let why = unscheduled.map_or_else(
        || format!("is {phase}"),
        |message| format!("is not scheduled: {message}"),
    );
    Trouble {
        what,
        why,
        lasting: phase == "Failed",
    }
}

/// Waits until `nodes` nodes are Ready and every pod of `workloads` runs, for at most `limit`.
pub async fn wait(api: &Api, nodes: usize, workloads: &Workloads, limit: Duration) -> miette::Result<()> {
    let end = Instant::now() + limit;
    loop {
        let asked = Instant::now();
        let troubles = look(api, nodes, workloads).await?;
        if troubles.is_empty() {
            return Ok(());
        }
        if Instant::now() >= end || troubles.iter().any(|trouble| trouble.lasting) {
            return Err(report(api, troubles, limit).await);
        }
        // Asking costs the API server work: spend at most a fifth of the time on it.
        tokio::time::sleep((asked.elapsed() * 4).clamp(Duration::from_millis(10), Duration::from_secs(1)))
            .await;
    }
}

async fn look(api: &Api, nodes: usize, workloads: &Workloads) -> miette::Result<Vec<Trouble>> {
    let listed = list(api, "/api/v1/nodes").await?;
    let mut troubles = troubles_of_nodes(&listed, nodes);
    if !troubles.is_empty() {
        return Ok(troubles);
    }
    let (mut pods, mut replica_sets) = (Vec::new(), Vec::new());
    for namespace in &workloads.namespaces {
        pods.extend(list(api, &format!("/api/v1/namespaces/{namespace}/pods")).await?);
        replica_sets.extend(list(api, &format!("/apis/apps/v1/namespaces/{namespace}/replicasets")).await?);
    }
    troubles.extend(workloads.missing(&pods, &replica_sets));
    Ok(troubles)
}

/// Which of the nodes are not Ready, and why, in the words of their status.
fn troubles_of_nodes(listed: &[Value], count: usize) -> Vec<Trouble> {
    let trouble = |what: String, why: String| Trouble {
        what,
        why,
        lasting: false,
    };
    let missing = count.saturating_sub(listed.len());
    let missing = (missing > 0).then(|| {
        let why = format!("{missing} of {count} are not there yet");
        trouble("nodes".into(), why)
    });
    let unready = listed.iter().filter(|node| !has_condition(node, "Ready"));
    let unready = unready.map(|node| {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        let message = { conditions }.find_map(|condition| {
            (condition["type"] == "Ready").then(|| condition["message"].as_str().unwrap_or_default())
        });
        let why = message.map_or("is not Ready yet".into(), |message| {
            format!("is not Ready: {message}")
        });
        trouble(format!("node {name}"), why)
    });
    missing.into_iter().chain(unready).collect()
}

async fn list(api: &Api, path: &str) -> miette::Result<Vec<Value>> {
    let mut answer = api
        .get(path)
        .await?
        .map_err(|refused| miette!("listing {path}: {refused}"))?;
    match answer["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Err(miette!("the list at {path} has no items")),
    }
}

async fn report(api: &Api, troubles: Vec<Trouble>, limit: Duration) -> miette::Report {
    let mut lines = Vec::new();
    for trouble in &troubles {
        let event = match trouble
            .what
            .strip_prefix("pod ")
            .and_then(|name| name.split_once('/'))
        {
            Some((namespace, name)) => last_warning(api, namespace, name).await,
            None => None,
        };
        let event = event.map(|event| format!(" ({event})")).unwrap_or_default();
        lines.push(format!("{} {}{event}", trouble.what, trouble.why));
    }
    let waited = if troubles.iter().any(|t| t.lasting) {
        String::new()
    } else {
        format!(" after {limit:?}")
    };
    miette!(
        help = "the lab stays up to look into: podnet lab logs, kubectl describe pod; podnet lab down removes it",
        "not everything runs{waited}:\n  {}",
        lines.join("\n  ")
    )
}

async fn last_warning(api: &Api, namespace: &str, pod: &str) -> Option<String> {
    let path =
        format!("/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name={pod},type=Warning");
    let events = list(api, &path).await.ok()?;
    let last = events.last()?;
    Some(format!(
        "{}: {}",
        last["reason"].as_str()?,
        last["message"].as_str()?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_that_is_not_ready_says_why() {
        let node = |name: &str, conditions: Value| json!({"metadata": {"name": name}, "status": {"conditions": conditions}});
        let listed = [
            node("node1", json!([{"type": "Ready", "status": "True"}])),
            node(
                "node2",
                json!([{"type": "Ready", "status": "False", "message": "no IPVS"}]),
            ),
            node("node3", json!([])),
        ];
        let told = |count| -> Vec<String> {
            let troubles = troubles_of_nodes(&listed, count);
            troubles
                .iter()
                .map(|trouble| format!("{} {}", trouble.what, trouble.why))
                .collect()
        };
        assert_eq!(
            told(3),
            ["node node2 is not Ready: no IPVS", "node node3 is not Ready yet"]
        );
        assert_eq!(told(5)[0], "nodes 2 of 5 are not there yet");
        assert!(troubles_of_nodes(&listed[..1], 1).is_empty());
    }

    fn pod(name: &str, owner: &str, phase: &str, ready: bool) -> Value {
        json!({"metadata": {"name": name, "namespace": "d", "uid": name,
                "ownerReferences": [{"uid": owner, "controller": true}]},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}})
    }

    fn deployment(replicas: u64) -> Workloads {
        let mut workloads = Workloads::default();
        workloads.add(
            &json!({"kind": "Deployment", "metadata": {"name": "w", "namespace": "d", "uid": "dep"},
            "spec": {"replicas": replicas}}),
        );
        workloads.add(&json!({"kind": "Service", "metadata": {"name": "w", "uid": "s"}}));
        workloads
    }

    fn replica_set() -> Value {
        json!({"metadata": {"uid": "rs", "ownerReferences": [{"uid": "dep", "controller": true}]}})
    }

    #[test]
    fn a_deployment_is_there_when_all_its_pods_run() {
        let workloads = deployment(2);
        let running = [pod("a", "rs", "Running", true), pod("b", "rs", "Running", true)];
        assert_eq!(workloads.missing(&running, &[replica_set()]), []);
        assert_eq!(
            workloads.missing(&running[..1], &[replica_set()])[0].why,
            "has 1 of 2 pods"
        );
        assert_eq!(
            workloads.missing(&running, &[]).len(),
            1,
            "pods of others do not count"
        );
    }

    #[test]
    fn a_missing_image_is_lasting_and_told() {
        let mut image = pod("a", "rs", "Pending", false);
        image["status"]["containerStatuses"] = json!([{"name": "c", "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "load it"}}}]);
        let troubles = deployment(1).missing(&[image], &[replica_set()]);
        assert!(troubles[0].lasting);
        assert_eq!(troubles[0].why, "container c: ErrImageNeverPull: load it");
    }
}
