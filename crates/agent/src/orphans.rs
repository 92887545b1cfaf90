//! Finds pods' networks that nobody will give back: the pod is gone, its runtime has forgotten it, but something keeps its
//! network namespace, and with that the link (the bind mount that a runtime left when it crashed).
//!
//! An address is taken from nobody who may still be alive. So two witnesses have to agree: the API server, that there is
//! no such pod, which a node that is cut off may not have heard; and this machine, that no process is in the namespace,
//! twice in a row. Namespaces of containers that are no pods are their owners' business.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;
use kube::core::Status;

use crate::cni_server::Reclaimer;
use crate::ipam::Lease;

/// How often to look.
const ROUND: Duration = Duration::from_secs(60);
/// Where kubelet writes of a pod that it has from a file which pod that is: the API server knows it by another UID.
const FILE_POD: &str = "kubernetes.io/config.hash";
/// The number of the PID namespace that all others are below (`PROC_PID_INIT_INO`).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What the rounds so far have shown.
#[derive(Debug, Default)]
pub struct Orphans {
    /// The leases whose namespaces were empty at the last look, by their numbers.
    empty: BTreeSet<u64>,
}

/// Looks for ever.
pub async fn run(client: kube::Client, reclaimer: Reclaimer) {
    let mut orphans = Orphans::default();
    loop {
        tokio::time::sleep(ROUND).await;
        orphans.round(&client, &reclaimer).await;
    }
}

impl Orphans {
    /// Looks once, and frees what was empty the last time, too, and has no pod.
    pub async fn round(&mut self, client: &kube::Client, reclaimer: &Reclaimer) {
        let leases = reclaimer.leases();
        let looked = tokio::task::spawn_blocking(move || empty(leases)).await;
        let Some(empty) = looked.ok().flatten() else {
            self.empty.clear();
            return;
        };
        let numbers = empty.keys().copied().collect();
        let before = std::mem::replace(&mut self.empty, numbers);
        for lease in empty
            .into_values()
            .filter(|lease| before.contains(&lease.sequence))
        {
            match is_gone(client, &lease).await {
                Ok(false) => {}
                Ok(true) => free(reclaimer, lease).await,
                Err(error) => tracing::debug!(%error, attachment = %lease.attachment, "cannot ask for a pod"),
            }
        }
    }
}

async fn free(reclaimer: &Reclaimer, lease: Lease) {
    tracing::info!(
        attachment = %lease.attachment, pod = lease.pod.name, namespace = lease.pod.namespace,
        "freed: the pod is gone, and no process is in its network namespace"
    );
    let reclaimer = reclaimer.clone();
    let freed = tokio::task::spawn_blocking(move || reclaimer.free(&lease)).await;
    if let Ok(Err(error)) = freed {
        tracing::warn!(%error, "cannot free what a pod has left; trying again in {} s", ROUND.as_secs());
    }
}

/// Whether the API server knows no such pod.
async fn is_gone(client: &kube::Client, lease: &Lease) -> kube::Result<bool> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &lease.pod.namespace);
    match api.get_metadata(&lease.pod.name).await {
        Ok(found) => Ok(is_another(&found.metadata, &lease.pod.uid)),
        Err(kube::Error::Api(status)) if says_no_pod(&status, &lease.pod.name) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether a pod of the same name took its place.
fn is_another(found: &ObjectMeta, uid: &str) -> bool {
    let of_file = found.annotations.as_ref().and_then(|all| all.get(FILE_POD));
    let known = found.uid.iter().chain(of_file);
    found.uid.is_some() && known.into_iter().all(|known| known != uid)
}

/// Whether it is the pod that was not found: a server that does not know the whole path, since the URL is not the API's,
/// answers with 404 too.
fn says_no_pod(status: &Status, name: &str) -> bool {
    let details = status.details.as_ref();
    status.is_not_found() && details.is_some_and(|about| about.kind == "pods" && about.name == name)
}

/// The leases of pods whose network namespace has no process in it, by number; none if that cannot be told.
fn empty(leases: Vec<Lease>) -> Option<BTreeMap<u64, Lease>> {
    let of_pods = |lease: &Lease| lease.netns != 0 && !lease.pod.uid.is_empty() && !lease.pod.name.is_empty();
    let leases: Vec<Lease> = leases.into_iter().filter(of_pods).collect();
    if leases.is_empty() {
        return Some(BTreeMap::new());
    }
    let occupied = namespaces_of_processes(Path::new("/proc")).ok()?;
    let (alive, empty): (Vec<_>, Vec<_>) = leases
        .into_iter()
        .partition(|lease| occupied.contains(&lease.netns));
    // In a PID namespace of its own the agent sees no pod's processes, and would take every pod for an empty one.
    let sees_pods = !alive.is_empty()
        || namespace(Path::new("/proc/self/ns/pid")).is_ok_and(|number| number == FIRST_PID_NAMESPACE);
    sees_pods.then(|| empty.into_iter().map(|lease| (lease.sequence, lease)).collect())
}

/// The network namespaces that some thread is in. An error if one of them cannot be told.
fn namespaces_of_processes(proc: &Path) -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    let mut processes = numbered(proc)?;
    // The first one is in no pod, and may be mightier than the agent, which then may not look at it.
    processes.retain(|process| !process.ends_with("1"));
    for process in processes {
        let threads = match numbered(&process.join("task")) {
            Err(error) if has_ended(&error) => continue,
            other => other?,
        };
        for thread in threads {
            match namespace(&thread.join("ns/net")) {
                Ok(number) => _ = found.insert(number),
                Err(error) if has_ended(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

fn has_ended(error: &io::Error) -> bool {
    const ESRCH: i32 = 3;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH)
}

fn numbered(directory: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_digit())
        {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The number in a link such as `net:[4026531840]`.
fn namespace(link: &Path) -> io::Result<u64> {
    let target = std::fs::read_link(link)?;
    let text = target.to_string_lossy();
    let number = text
        .split_once('[')
        .and_then(|(_, rest)| rest.strip_suffix(']')?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("{} is {text}", link.display())))
}
