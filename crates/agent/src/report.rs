//! What is wrong with an object is told to its owner: as an Event on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use podnet_core::cluster::{ObjectName, ObjectRef};
use podnet_core::service::ServiceState;
use podnet_core::state::Problem;
use podnet_core::{Cluster, NodeName};
use podnet_dataplane::Repair;
use tokio::sync::watch;

use crate::announce::Spoken;
use crate::metrics::Metrics;

/// A problem must last so long: what is still on its way (a new node's range, say) is not worth an Event.
const LASTING: Duration = Duration::from_secs(10);

/// Whether this node's agent is the one that reports a problem: every agent sees most problems, and one Event suffices.
/// A node speaks for itself; for all else the first Ready node by name does.
pub fn is_ours(problem: &Problem, cluster: &Cluster, me: &NodeName) -> bool {
    if problem.object.kind == "Node" && problem.object.name == me.as_str() {
        return true;
    }
    cluster
        .valid_nodes()
        .find(|node| node.ready)
        .is_some_and(|first| first.name == *me)
}

/// Publishes an Event for each problem that lasts, once, until the sender goes.
pub async fn publish(client: kube::Client, me: NodeName, mut problems: watch::Receiver<BTreeSet<Problem>>) {
    let mut since: BTreeMap<Problem, (Instant, bool)> = BTreeMap::new();
    loop {
        let now = problems.borrow_and_update().clone();
        since.retain(|problem, _| now.contains(problem));
        for problem in now {
            since.entry(problem).or_insert((Instant::now(), false));
        }
        let lasting = since
            .iter_mut()
            .filter(|(_, (first, told))| !told && first.elapsed() >= LASTING);
        for (problem, (_, told)) in lasting {
            // A recorder takes Events of one reason for one Event: every problem of an object has its own here.
            let recorder = recorder(&client, &me);
            match event(&client, &recorder, &problem.object, not_applied(problem)).await {
                Ok(()) => *told = true,
                // An Event is a courtesy: the log has said it, and the next round tries again.
                Err(error) => tracing::debug!(object = %problem.object, %error, "no Event"),
            }
        }
        let idle = since.values().all(|(_, told)| *told);
        tokio::select! {
            changed = problems.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LASTING / 5), if !idle => {}
        }
    }
}

/// Publishes an Event on the Node when something was put right that others had changed, until the sender goes. Who goes on
/// changing it makes an Event now and then.
pub async fn repairs(client: kube::Client, me: NodeName, mut repairs: watch::Receiver<Option<Repair>>) {
    let node = ObjectRef::node(&me);
    while repairs.changed().await.is_ok() {
        let Some(repair) = *repairs.borrow_and_update() else {
            continue;
        };
        // Each has its own, as every problem has: how much was put back is another number every time.
        let recorder = recorder(&client, &me);
        // The API server may be just what cannot be reached.
        while let Err(error) = event(&client, &recorder, &node, put_back(repair)).await {
            tracing::debug!(%error, "no Event");
            tokio::time::sleep(LASTING / 5).await;
        }
        tokio::time::sleep(LASTING).await;
    }
}

/// Publishes an Event on a service when this node begins to answer for an address of its, and counts such beginnings, until
/// the sender goes.
pub async fn announced(
    client: kube::Client,
    me: NodeName,
    mut spoken: watch::Receiver<Spoken>,
    services: watch::Receiver<Arc<ServiceState>>,
    metrics: Arc<Metrics>,
) {
    let mut before = Spoken::new();
    while spoken.changed().await.is_ok() {
        let now = spoken.borrow_and_update().clone();
        let taken = crate::announce::taken(&before, &now);
        metrics.announces(&now, taken.len());
        for (link, address) in taken {
            // By their addresses: which of them came first does not matter to whoever looks for one.
            let of_address = services_at(&services.borrow(), address);
            for service in of_address {
                let note = format!("node {me} answers for {address} on {link}");
                let begins = normal("AddressAnnounced", "Announce", note);
                let object = ObjectRef::service(&service);
                // Every address and every time has an Event of its own, as every problem has.
                let recorder = recorder(&client, &me);
                if let Err(error) = event(&client, &recorder, &object, begins).await {
                    tracing::debug!(%object, %error, "no Event");
                }
            }
        }
        before = now;
    }
    // Who announced has said why it ended; the rest of the agent goes on.
    std::future::pending().await
}

/// The services that an address is of.
fn services_at(state: &ServiceState, address: IpAddr) -> BTreeSet<ObjectName> {
    let of_address = state.at(address);
    of_address.map(|(_, entry)| entry.port.service.clone()).collect()
}

fn recorder(client: &kube::Client, me: &NodeName) -> Recorder {
    let reporter = Reporter {
        controller: "podnet-agent".into(),
        instance: Some(me.to_string()),
    };
    Recorder::new(client.clone(), reporter)
}

fn put_back(repair: Repair) -> Event {
    warning("NetworkPutBack", "Repair", repair.to_string())
}

fn not_applied(problem: &Problem) -> Event {
    warning("NetworkNotApplied", "Compute", problem.why.clone())
}

fn warning(reason: &str, action: &str, note: String) -> Event {
    Event {
        type_: EventType::Warning,
        ..normal(reason, action, note)
    }
}

fn normal(reason: &str, action: &str, note: String) -> Event {
    Event {
        type_: EventType::Normal,
        reason: reason.into(),
        note: Some(shortened(note)),
        action: action.into(),
        secondary: None,
    }
}

/// The API takes no longer note (NoteLengthLimit of events.k8s.io/v1).
const LONGEST_NOTE: usize = 1024;

fn shortened(mut note: String) -> String {
    let more = "...";
    if note.len() > LONGEST_NOTE {
        note.truncate(note.floor_char_boundary(LONGEST_NOTE - more.len()));
        note.push_str(more);
    }
    note
}

async fn event(
    client: &kube::Client,
    recorder: &Recorder,
    object: &ObjectRef,
    event: Event,
) -> Result<(), kube::Error> {
    let (group, version) = match object.kind {
        "EndpointSlice" => ("discovery.k8s.io", "v1"),
        "NetworkPolicy" | "ServiceCIDR" => ("networking.k8s.io", "v1"),
        "ClusterNetworkPolicy" => ("policy.networking.k8s.io", "v1alpha2"),
        "IPPool" | "LoadBalancerPool" => ("podnet.io", "v1alpha1"),
        _ => ("", "v1"),
    };
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, object.kind));
    let api: Api<DynamicObject> = match &object.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    // `kubectl describe` finds an object's Events by its UID.
    let uid = api.get_metadata(&object.name).await?.metadata.uid;
    let reference = ObjectReference {
        api_version: Some(kind.api_version),
        kind: Some(object.kind.into()),
        namespace: object.namespace.clone(),
        name: Some(object.name.clone()),
        uid,
        ..ObjectReference::default()
    };
    recorder.publish(&event, &reference).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_no_longer_than_the_api_takes() {
        let whole = "x".repeat(LONGEST_NOTE);
        assert_eq!(shortened(whole.clone()), whole);
        // A character of two bytes in the way.
        for long in ["x".repeat(1020) + "äöüäöü", "x".repeat(1025)] {
            let short = shortened(long.clone());
            assert!((LONGEST_NOTE - 4..=LONGEST_NOTE).contains(&short.len()) && short.ends_with("..."));
            assert!(long.starts_with(short.trim_end_matches('.')));
        }
    }
}
