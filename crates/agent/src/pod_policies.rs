//! Policies of pods that are being added, between those who add them and the loop that changes the kernel's tables.
//!
//! The API learns a pod's addresses only after its containers run. A pod's policies are to be in force before that, so the
//! loop is told the addresses by whoever gives them. That follows from the leases, so that it survives a restart with them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use podnet_cni::Attachment;
use podnet_core::cluster::{NetnsCookie, ObjectName, Wired};
use podnet_core::policy::PolicyState;
use tokio::sync::Notify;

use crate::ipam::Lease;

/// The networks of the node's pods, and the policies that are in force.
#[derive(Debug)]
pub struct PodPolicies {
    inner: Mutex<Inner>,
    in_force: Condvar,
    changed: Notify,
    /// The kernel is told which network namespaces and links pods have, whether there are policies or not.
    tells_namespaces: bool,
}

#[derive(Debug)]
struct Inner {
    pods: BTreeMap<Attachment, (ObjectName, Wired)>,
    /// Counts the changes of them.
    version: Version,
    /// The version that the kernel has.
    applied: Version,
    /// Whether the cluster has any policy, as the loop last saw it.
    any: bool,
    policy: Arc<PolicyState>,
}

/// Which of a sequence of changes.
pub type Version = u64;

/// Why a pod cannot begin yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotInForce {
    /// The loop has not come to it, or the kernel refuses.
    #[error("its policies are not in the kernel yet")]
    NotApplied,
    /// There are policies, and which of them are about the pod cannot be told.
    #[error("the pod's object has not been seen yet")]
    UnknownPod,
}

impl Default for PodPolicies {
    fn default() -> Self {
        PodPolicies::new(false)
    }
}

impl PodPolicies {
    /// Of a node that has no pods yet; `tells_namespaces` where the data plane is to know the pods' network namespaces
    /// and links.
    pub fn new(tells_namespaces: bool) -> Self {
        PodPolicies {
            tells_namespaces,
            inner: Mutex::new(Inner {
                pods: BTreeMap::new(),
                version: 0,
                applied: 0,
                // Until it has been seen that there is none.
                any: true,
                policy: Arc::default(),
            }),
            in_force: Condvar::new(),
            changed: Notify::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change is made whole before anything that can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the addresses of a lease. The answer is for [`PodPolicies::wait`]; none if there is nothing to wait for,
    /// since the cluster has no policies, or the container is no pod of Kubernetes.
    pub fn claim(&self, lease: &Lease) -> Option<Version> {
        let pod = &lease.pod;
        if pod.name.is_empty() || pod.namespace.is_empty() {
            return None;
        }
        let wired = Wired {
            uid: pod.uid.clone(),
            addresses: lease.addresses.iter().copied().collect(),
            namespace: NonZeroU64::new(lease.netns_cookie)
                .filter(|_| self.tells_namespaces)
                .map(NetnsCookie),
            link: None,
        };
        let name = ObjectName::new(&*pod.namespace, &*pod.name);
        let mut inner = self.inner();
        inner.pods.insert(lease.attachment.clone(), (name, wired));
        let version = (inner.any || self.tells_namespaces).then(|| self.change(&mut inner));
        // Until a pod's sockets are led, packets are translated: nobody need wait for that.
        version.filter(|_| inner.any)
    }

    /// The link of an attachment is there.
    pub fn wired(&self, attachment: &Attachment) {
        if !self.tells_namespaces {
            return;
        }
        let mut inner = self.inner();
        if let Some((_, wired)) = inner.pods.get_mut(attachment) {
            wired.link = Some(attachment.host_link());
            self.change(&mut inner);
        }
    }

    /// The addresses of an attachment are no pod's any more.
    pub fn release(&self, attachment: &Attachment) {
        let mut inner = self.inner();
        if inner.pods.remove(attachment).is_some() && (inner.any || self.tells_namespaces) {
            self.change(&mut inner);
        }
    }

    fn change(&self, inner: &mut Inner) -> Version {
        inner.version += 1;
        self.changed.notify_one();
        inner.version
    }

    /// The cluster has policies: who is added from now on waits for them, also while the loop waits for what they are
    /// about.
    pub fn there_are_policies(&self) {
        self.inner().any = true;
    }

    /// The networks of the node's pods as they are now; `any` says whether the cluster has policies.
    pub fn wanted(&self, any: bool) -> (Version, BTreeMap<ObjectName, Vec<Wired>>) {
        let mut inner = self.inner();
        inner.any = any;
        let mut pods: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (name, wired) in inner.pods.values() {
            pods.entry(name.clone()).or_default().push(wired.clone());
        }
        (inner.version, pods)
    }

    /// Returns when they have changed since the last time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The kernel has these policies, in which the pods are as of `version`.
    pub fn applied(&self, version: Version, policy: &Arc<PolicyState>) {
        let mut inner = self.inner();
        inner.applied = inner.applied.max(version);
        inner.policy = Arc::clone(policy);
        self.in_force.notify_all();
    }

    /// The policies that are in force.
    pub fn policy(&self) -> Arc<PolicyState> {
        Arc::clone(&self.inner().policy)
    }

    /// Waits until the policies of the pod with these addresses are in force.
    pub fn wait(&self, version: Version, addresses: &[IpAddr], patience: Duration) -> Result<(), NotInForce> {
        let end = Instant::now() + patience;
        let mut inner = self.inner();
        loop {
            let missing = if inner.applied < version {
                NotInForce::NotApplied
            } else if addresses
                .iter()
                .any(|address| inner.policy.strangers.contains(address))
            {
                NotInForce::UnknownPod
            } else {
                return Ok(());
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(missing);
            }
            let waited = self.in_force.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: &str, name: &str) -> Lease {
        serde_json::from_value(serde_json::json!({
            "attachment": { "containerId": id, "ifname": "eth0" },
            "addresses": ["10.244.0.2"],
            "pod": { "namespace": "shop", "name": name, "uid": "1" },
        }))
        .unwrap()
    }

    fn closed() -> Arc<PolicyState> {
        let strangers = ["10.244.0.2".parse().unwrap()].into();
        Arc::new(PolicyState {
            strangers,
            ..PolicyState::default()
        })
    }

    #[test]
    fn nobody_waits_where_there_are_no_policies_and_no_pods() {
        let policies = PodPolicies::default();
        assert_eq!(policies.claim(&lease("container", "")), None);
        assert_eq!(
            policies.claim(&lease("early", "web")),
            Some(1),
            "nothing has been seen yet"
        );
        assert_eq!(policies.wanted(false).0, 1);
        assert_eq!(policies.claim(&lease("web", "web")), None);
        policies.there_are_policies();
        assert!(policies.claim(&lease("web", "web")).is_some());
        assert_eq!(policies.wanted(false).1.values().map(Vec::len).sum::<usize>(), 2);
    }

    #[test]
    fn network_namespaces_are_told_at_once_where_the_data_plane_leads_sockets_and_nobody_waits_for_that() {
        let with_cookie = |id: &str| Lease {
            netns_cookie: 7,
            ..lease(id, "web")
        };
        let told = |policies: &PodPolicies| -> Vec<_> {
            let pods = policies.wanted(false).1.into_values().flatten();
            pods.map(|wired| wired.namespace.map(|NetnsCookie(cookie)| cookie.get()))
                .collect()
        };
        let leads = PodPolicies::new(true);
        leads.wanted(false);
        assert_eq!(leads.claim(&with_cookie("web")), None);
        assert_eq!(leads.claim(&lease("older", "web")), None);
        assert_eq!(told(&leads), [None, Some(7)]);
        let before = leads.wanted(false).0;
        leads.release(&with_cookie("web").attachment);
        assert_ne!(leads.wanted(false).0, before);
        let other = PodPolicies::new(false);
        other.wanted(false);
        let before = other.wanted(false).0;
        other.claim(&with_cookie("web"));
        assert_eq!((told(&other), other.wanted(false).0), (vec![None], before));
    }

    #[test]
    fn a_pod_waits_until_its_own_policies_are_in_force() {
        let policies = PodPolicies::default();
        let lease = lease("web", "web");
        let version = policies.claim(&lease).unwrap();
        let wait = |patience| policies.wait(version, &lease.addresses, patience);
        assert_eq!(wait(Duration::ZERO), Err(NotInForce::NotApplied));
        policies.applied(version, &closed());
        assert_eq!(wait(Duration::ZERO), Err(NotInForce::UnknownPod));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(Duration::from_secs(20)));
            policies.applied(version, &Arc::default());
            assert_eq!(waiting.join().unwrap(), Ok(()));
        });
    }
}
