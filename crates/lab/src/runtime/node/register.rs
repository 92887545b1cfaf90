//! Registering the node and keeping its lease.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;

use super::object::{NodeFacts, labels, node_object, node_status};

/// The namespace of the leases.
const LEASES: &str = "kube-node-lease";
/// How often the lease is renewed.
const RENEW: Duration = Duration::from_secs(10);
/// How often the node looks whether its object is still there, as kubelet does with every status.
const LOOK: Duration = Duration::from_secs(10);
/// How long the lease holds.
const LEASE_SECONDS: i32 = 40;
/// How often the status is written although nothing in it changed.
const REPORT: Duration = Duration::from_secs(300);

/// The node's own objects in the API.
#[derive(Debug, Clone)]
pub struct NodeApi {
    facts: NodeFacts,
    nodes: Api<Node>,
    leases: Api<Lease>,
}

/// Whether the node's network is ready, and if not, why.
pub(super) type NetworkState = Result<(), String>;

impl NodeApi {
    /// The objects of the node that `facts` tells of.
    pub fn new(client: &kube::Client, facts: NodeFacts) -> NodeApi {
        NodeApi {
            facts,
            nodes: Api::all(client.clone()),
            leases: Api::namespaced(client.clone(), LEASES),
        }
    }

    /// Creates the Node, or brings the one that is there up to date; returns its UID.
    async fn register(&self, network: &NetworkState) -> kube::Result<Option<String>> {
        let node = node_object(&self.facts, network.clone(), Timestamp::now());
        match self.nodes.create(&PostParams::default(), &node).await {
            // An API server drops the status of what is created.
            Ok(created) => {
                self.write_status(created.status.as_ref(), network).await?;
                Ok(created.metadata.uid)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let patch = json!({"metadata": {"labels": labels(&self.facts)}});
                let node = self
                    .nodes
                    .patch(&self.facts.name, &PatchParams::default(), &Patch::Merge(patch))
                    .await?;
                self.write_status(node.status.as_ref(), network).await?;
                Ok(node.metadata.uid)
            }
            Err(error) => Err(error),
        }
    }

    async fn write_status(&self, known: Option<&NodeStatus>, network: &NetworkState) -> kube::Result<()> {
        let mut status = node_status(&self.facts, known, network.clone(), Timestamp::now());
        let (name, params) = (&self.facts.name, PatchParams::default());
        // Strategic merge has the addresses' type as their key, and a node has one InternalIP per family; so that
        // list is written as a whole, and only that: others write conditions beside these.
        let addresses = status.addresses.take();
        if known.and_then(|it| it.addresses.as_ref()) != addresses.as_ref() {
            let patch = Patch::Merge(json!({"status": {"addresses": addresses}}));
            self.nodes.patch_status(name, &params, &patch).await?;
        }
        let patch = Patch::Strategic(json!({"status": status}));
        self.nodes.patch_status(name, &params, &patch).await?;
        Ok(())
    }

    /// Writes the status with what the API has now as its base; registers again when the node is gone.
    async fn report(&self, network: &NetworkState) -> kube::Result<()> {
        match self.nodes.get_opt(&self.facts.name).await? {
            Some(node) => self.write_status(node.status.as_ref(), network).await,
            None => self.register(network).await.map(drop),
        }
    }

    /// Registers again when somebody has deleted the Node; then returns the new one's UID.
    async fn ensure(&self, network: &NetworkState) -> kube::Result<Option<String>> {
        match self.nodes.get_metadata_opt(&self.facts.name).await? {
            Some(_) => Ok(None),
            None => self.register(network).await,
        }
    }

    async fn renew(&self, owner: Option<&str>) -> kube::Result<()> {
        let now = MicroTime(Timestamp::now());
        let patch = Patch::Merge(json!({"spec": {"renewTime": now, "holderIdentity": self.facts.name}}));
        match self
            .leases
            .patch(&self.facts.name, &PatchParams::default(), &patch)
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let lease = self.lease(now, owner);
                self.leases.create(&PostParams::default(), &lease).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    fn lease(&self, now: MicroTime, owner: Option<&str>) -> Lease {
        let owner = owner.map(|uid| OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: self.facts.name.clone(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        });
        Lease {
            metadata: ObjectMeta {
                name: Some(self.facts.name.clone()),
                namespace: Some(LEASES.into()),
                owner_references: owner.map(|it| vec![it]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.facts.name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// Registers the node and keeps it: the lease every 10 s, the status at once when the network's state changes
/// and every 5 minutes. An API server that is away is tried again and again.
pub async fn heartbeat(node: NodeApi, mut network: watch::Receiver<NetworkState>) {
    let mut pause = Duration::from_millis(50);
    let mut owner = loop {
        let state = network.borrow_and_update().clone();
        match node.register(&state).await {
            Ok(uid) => break uid,
            Err(error) => tracing::warn!(%error, "registering the node; trying again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    };
    tracing::info!(node = node.facts.name, "registered");
    let mut renew = tokio::time::interval(RENEW);
    let mut look = tokio::time::interval(LOOK);
    let mut report = tokio::time::interval_at(tokio::time::Instant::now() + REPORT, REPORT);
    let mut unreported = false;
    loop {
        tokio::select! {
            _ = renew.tick() => {
                if let Err(error) = node.renew(owner.as_deref()).await {
                    tracing::warn!(%error, "renewing the node's lease");
                }
            }
            _ = look.tick() => {
                let state = network.borrow().clone();
                match node.ensure(&state).await {
                    Ok(Some(uid)) => {
                        tracing::info!(node = node.facts.name, "its Node was deleted; registered again");
                        owner = Some(uid);
                    }
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "looking at the node's object"),
                }
            }
            changed = network.changed() => {
                if changed.is_err() {
                    return;
                }
                unreported = true;
            }
            _ = report.tick() => unreported = true,
            () = tokio::time::sleep(Duration::from_secs(1)), if unreported => {}
        }
        if unreported {
            let state = network.borrow_and_update().clone();
            match node.report(&state).await {
                Ok(()) => unreported = false,
                Err(error) => tracing::warn!(%error, "reporting the node's status; trying again"),
            }
        }
    }
}
