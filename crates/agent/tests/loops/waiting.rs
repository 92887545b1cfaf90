//! A loop that cannot decide anything yet says what it waits for.

use std::process::Command;

use podnet_agent::node::NodeLoop;
use podnet_agent::watch::{Change, Update};
use podnet_core::cluster::{
    ClusterConfig, DataplaneName, Existing, NetworkPolicy, ObjectName, ObjectRef, Selector,
};
use podnet_core::state::Problem;
use podnet_dataplane::Kernel;
use tokio::sync::mpsc;

use crate::agent::{ADDRESS, Agent, Files, machine, me, node, nothing_but_nodes};

/// A policy that lets nobody in.
fn policy() -> Update {
    let policy = NetworkPolicy {
        pods: Ok(Selector::everything()),
        types: None,
        ingress: None,
        egress: None,
        existing: Ok(Existing::Cut),
    };
    let name = ObjectName::new("shop", "deny");
    Update::NetworkPolicies(Change::Set(name, Box::new(Ok(policy))))
}

#[test]
fn what_the_api_server_has_not_listed_is_named_as_long_as_it_is_waited_for() {
    let machine = machine();
    let files = Files::new();
    let config = files.config(me(), ClusterConfig::default());
    let agent = Agent::start(&machine, files, |out| {
        let kernel = Kernel::open(None, DataplaneName::Nftables).unwrap();
        let (tell, disturbed) = mpsc::channel(1);
        let node = NodeLoop::new(config, kernel, Default::default(), out);
        (node, disturbed, tell)
    });
    let waits_for = |kinds: &str| {
        agent.until(kinds, |status| {
            let waiting = status.waiting.as_deref().unwrap_or_default();
            waiting.starts_with(&format!("for the API server to list {kinds};"))
        });
    };
    // Pods and namespaces are of no concern yet.
    let nodes = Update::Nodes(Change::All(vec![(me(), Ok(node(ADDRESS)))]));
    agent.tell([nodes]);
    waits_for("services, endpointslices, ippools, servicecidrs, networkpolicies, clusternetworkpolicies");
    assert_eq!(agent.status.borrow().generation, None);
    assert_eq!(agent.status.borrow().node, "node1");
    agent.tell(nothing_but_nodes());
    agent.until("in force", |status| {
        status.generation.is_some() && status.waiting.is_none()
    });
    // With a policy they are.
    agent.tell([policy()]);
    waits_for("pods, namespaces");
    agent.tell([Update::Namespaces(Change::All(Vec::new()))]);
    waits_for("pods");
    // What is in force stays so, whoever takes it away; and the node's owner hears of it all.
    let table = || {
        let list = || {
            Command::new("nft")
                .args(["list", "table", "inet", "podnet"])
                .output()
        };
        machine.run(list).unwrap().unwrap().status.success()
    };
    assert!(table());
    let delete = || {
        Command::new("nft")
            .args(["delete", "table", "inet", "podnet"])
            .status()
    };
    assert!(machine.run(delete).unwrap().unwrap().success());
    agent.seen.blocking_send(()).unwrap();
    agent.until("put back", |_| table());
    let why = format!(
        "the agent is waiting {}",
        agent.status.borrow().waiting.clone().unwrap()
    );
    let object = ObjectRef::node(me());
    assert!(agent.problems.borrow().contains(&Problem { object, why }));
    agent.tell([Update::Pods(Change::All(Vec::new()))]);
    agent.until("in force again", |status| status.waiting.is_none());
    agent.until("told no more", |_| agent.problems.borrow().is_empty());
    // What was known to be none may become unknown.
    agent.tell([Update::ClusterNetworkPolicies(Change::Unknown)]);
    waits_for("clusternetworkpolicies");
    agent.tell([Update::ClusterNetworkPolicies(Change::All(Vec::new()))]);
    agent.until("in force once more", |status| status.waiting.is_none());
}
