//! `podnet lab list` and `podnet lab status`: what there is and how it is.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use miette::{IntoDiagnostic, miette};
use serde::Serialize;
use serde_json::Value;

use super::api::Api;
use super::layout::LabDir;
use super::plan::{LOOPBACK, LabName};
use super::record::{Lab, Record, read_json};
use super::service::ServiceState;

/// A line of `podnet lab list`.
#[derive(Debug, Serialize)]
pub struct Listed {
    /// The lab.
    pub name: LabName,
    /// `up` or `dead`.
    pub state: &'static str,
    /// How many nodes were asked for, if that is known.
    pub nodes: Option<u16>,
    /// Where it keeps its files.
    pub directory: String,
}

/// All labs of this user.
pub fn list() -> miette::Result<Vec<Listed>> {
    let mut labs = Vec::new();
    for (name, dir) in LabDir::all().into_diagnostic()? {
        let directory = dir.root().display().to_string();
        let (state, record) = match Lab::find(&dir).into_diagnostic()? {
            Lab::Alive(record) => ("up", Some(record)),
            Lab::Dead(record) => ("dead", record),
            Lab::None => continue,
        };
        labs.push(Listed {
            name,
            state,
            nodes: record.map(|record| record.request.nodes),
            directory,
        });
    }
    Ok(labs)
}

/// `podnet lab status`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The lab.
    pub name: LabName,
    /// For kubectl.
    pub kubeconfig: String,
    /// The addresses that stand for this machine's loopback inside the lab; none without an uplink.
    pub loopback: Vec<IpAddr>,
    /// Why the API server could not be asked, if it could not.
    pub api_error: Option<String>,
    /// One entry per node.
    pub nodes: Vec<NodeStatus>,
    /// One entry per process that init keeps running.
    pub services: BTreeMap<String, ServiceState>,
}

/// One node.
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// The Ready condition; none when the API does not say.
    pub ready: Option<bool>,
    /// Its addresses on the underlay.
    pub addresses: Vec<String>,
    /// Its pod ranges.
    pub pod_cidrs: Vec<String>,
    /// Running pods, and all pods bound to it.
    pub pods: (usize, usize),
}

/// Looks at a running lab. An API server that does not answer is part of the answer.
pub async fn status(dir: &LabDir, record: &Record) -> miette::Result<Status> {
    let services = read_json(&dir.services()).unwrap_or_default();
    let asked = tokio::time::timeout(Duration::from_secs(3), ask(dir)).await;
    let (api_nodes, pods, api_error) = match asked {
        Ok(Ok((nodes, pods))) => (nodes, pods, None),
        Ok(Err(error)) => (Vec::new(), Vec::new(), Some(error.to_string())),
        Err(_) => (
            Vec::new(),
            Vec::new(),
            Some("the API server does not answer".to_owned()),
        ),
    };
    let nodes = record
        .nodes
        .keys()
        .map(|name| node_status(name, &api_nodes, &pods))
        .collect();
    Ok(Status {
        name: record.request.name.clone(),
        kubeconfig: dir.kubeconfig().display().to_string(),
        loopback: if record.request.uplink {
            LOOPBACK.to_vec()
        } else {
            Vec::new()
        },
        api_error,
        nodes,
        services,
    })
}

async fn ask(dir: &LabDir) -> miette::Result<(Vec<Value>, Vec<Value>)> {
    let api = Api::connect(&dir.kubeconfig()).await?;
    let mut lists = Vec::new();
    for path in ["/api/v1/nodes", "/api/v1/pods"] {
        let answer = api.get(path).await?.map_err(|refused| miette!("{refused}"))?;
        lists.push(answer["items"].as_array().cloned().unwrap_or_default());
    }
    let pods = lists.pop().unwrap_or_default();
    Ok((lists.pop().unwrap_or_default(), pods))
}

fn node_status(name: &str, nodes: &[Value], pods: &[Value]) -> NodeStatus {
    let node = nodes.iter().find(|node| node["metadata"]["name"] == name);
    let strings = |list: Option<&Value>| -> Vec<String> {
        list.and_then(Value::as_array)
            .map(|items| {
                items
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect()
            })
            .unwrap_or_default()
    };
    let addresses = node
        .and_then(|node| node["status"]["addresses"].as_array())
        .map(|addresses| {
            let internal = addresses.iter().filter(|a| a["type"] == "InternalIP");
            internal
                .filter_map(|a| a["address"].as_str())
                .map(str::to_owned)
                .collect()
        });
    let ready = node.map(|node| {
        node["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    });
    let mine: Vec<&Value> = pods
        .iter()
        .filter(|pod| pod["spec"]["nodeName"] == name)
        .collect();
    let running = mine
        .iter()
        .filter(|pod| pod["status"]["phase"] == "Running")
        .count();
    NodeStatus {
        name: name.to_owned(),
        ready,
        addresses: addresses.unwrap_or_default(),
        pod_cidrs: strings(node.map(|node| &node["spec"]["podCIDRs"])),
        pods: (running, mine.len()),
    }
}
