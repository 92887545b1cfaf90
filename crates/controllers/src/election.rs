//! Leader election over a coordination.k8s.io Lease.
//!
//! The protocol is that of client-go's leaderelection: whoever's name is in the lease leads while it renews it. Other
//! candidates do not trust its clock: a lease is over when *they* have seen it unchanged for its whole duration.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use tokio::time::Instant;

/// How long a lease lasts without being renewed.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a leader tries to renew before it gives up; shorter than the lease, so that it stops before another
/// starts.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait between two tries.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// One candidate's part of the election. No sockets: leases go in, steps come out.
#[derive(Debug)]
pub struct Candidate {
    name: String,
    lease: String,
    namespace: String,
    /// The lease as last seen changed, and when that was on this machine's own clock.
    observed: Option<(LeaseSpec, Instant)>,
}

/// What a candidate does next.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Create this lease.
    Create(Lease),
    /// Replace the lease by this one, if it is still of the same version.
    Replace(Lease),
    /// Somebody else leads.
    Wait,
}

impl Candidate {
    /// A candidate of this name for the lease of that name.
    pub fn new(name: impl Into<String>, namespace: impl Into<String>, lease: impl Into<String>) -> Candidate {
        Candidate {
            name: name.into(),
            namespace: namespace.into(),
            lease: lease.into(),
            observed: None,
        }
    }

    /// What to do, the lease being as it is.
    pub fn step(&mut self, lease: Option<Lease>, now: Instant, wall: Timestamp) -> Step {
        let Some(mut lease) = lease else {
            let metadata = ObjectMeta {
                name: Some(self.lease.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            };
            return Step::Create(Lease {
                metadata,
                spec: Some(self.claim(&LeaseSpec::default(), wall)),
            });
        };
        let spec = lease.spec.take().unwrap_or_default();
        let seen = match &self.observed {
            Some((observed, seen)) if *observed == spec => *seen,
            _ => now,
        };
        self.observed = Some((spec.clone(), seen));
        let lasts = Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(0) as u64);
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder != self.name && !holder.is_empty() && now < seen + lasts {
            return Step::Wait;
        }
        lease.spec = Some(self.claim(&spec, wall));
        Step::Replace(lease)
    }

    /// The lease given back, for a leader that stops.
    pub fn release(&self, mut lease: Lease, wall: Timestamp) -> Option<Lease> {
        let spec = lease.spec.as_mut()?;
        if spec.holder_identity.as_deref() != Some(&self.name) {
            return None;
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(wall));
        Some(lease)
    }

    fn claim(&self, held: &LeaseSpec, wall: Timestamp) -> LeaseSpec {
        let renews = held.holder_identity.as_deref() == Some(&self.name);
        let transitions = held.lease_transitions.unwrap_or(0);
        let taken_over = held.holder_identity.is_some() && !renews;
        LeaseSpec {
            holder_identity: Some(self.name.clone()),
            lease_duration_seconds: Some(LEASE_DURATION.as_secs() as i32),
            acquire_time: held
                .acquire_time
                .clone()
                .filter(|_| renews)
                .or(Some(MicroTime(wall))),
            renew_time: Some(MicroTime(wall)),
            lease_transitions: Some(transitions + i32::from(taken_over)),
            ..LeaseSpec::default()
        }
    }
}

/// A candidate with a connection.
pub struct Election {
    candidate: Candidate,
    api: Api<Lease>,
}

impl Election {
    /// Takes part in the election by `lease` in `namespace` as `name`.
    pub fn new(client: Client, namespace: &str, lease: &str, name: &str) -> Election {
        Election {
            candidate: Candidate::new(name, namespace, lease),
            api: Api::namespaced(client, namespace),
        }
    }

    /// Resolves when this candidate leads.
    pub async fn won(&mut self) {
        while !self.round().await {
            tokio::time::sleep(RETRY_PERIOD).await;
        }
    }

    /// Renews; resolves when this candidate no longer leads, or may not.
    pub async fn lost(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RETRY_PERIOD).await;
            let left = (renewed + RENEW_DEADLINE).saturating_duration_since(Instant::now());
            // The lease lasts from before the request that renewed it, not from its answer.
            let asked = Instant::now();
            match tokio::time::timeout(left, self.round()).await {
                Ok(true) => renewed = asked,
                Ok(false) if asked < renewed + RENEW_DEADLINE => {}
                _ => return,
            }
        }
    }

    /// Lets another candidate lead without waiting for the lease to end.
    pub async fn release(&self) {
        let Ok(Some(lease)) = self.api.get_opt(&self.candidate.lease).await else {
            return;
        };
        if let Some(lease) = self.candidate.release(lease, Timestamp::now()) {
            let _ = self
                .api
                .replace(&self.candidate.lease, &PostParams::default(), &lease)
                .await;
        }
    }

    /// Tries once; whether this candidate leads.
    async fn round(&mut self) -> bool {
        let params = PostParams::default();
        let outcome = match self.api.get_opt(&self.candidate.lease).await {
            Err(error) => Err(error),
            Ok(lease) => match self.candidate.step(lease, Instant::now(), Timestamp::now()) {
                Step::Wait => return false,
                Step::Create(lease) => self.api.create(&params, &lease).await,
                Step::Replace(lease) => self.api.replace(&self.candidate.lease, &params, &lease).await,
            },
        };
        match outcome {
            Ok(_) => true,
            Err(Error::Api(status)) if status.code == 409 => false,
            Err(error) => {
                tracing::warn!(%error, lease = self.candidate.lease, "lease not reached; tries again");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds as i64).unwrap()
    }

    fn lease(step: Step) -> Lease {
        match step {
            Step::Create(lease) | Step::Replace(lease) => lease,
            Step::Wait => panic!("waits"),
        }
    }

    #[test]
    fn takes_over_only_what_stood_still_for_its_whole_duration() {
        let start = Instant::now();
        let mut a = Candidate::new("a", "kube-system", "l");
        let mut b = Candidate::new("b", "kube-system", "l");
        let held = lease(a.step(None, start, at(0)));
        let after = |s| start + Duration::from_secs(s);
        assert_eq!(b.step(Some(held.clone()), after(1), at(1)), Step::Wait);
        let held = lease(a.step(Some(held), after(2), at(2)));
        // b's clock says 2100; it only matters what b saw.
        assert_eq!(b.step(Some(held.clone()), after(14), at(99_999)), Step::Wait);
        assert_eq!(b.step(Some(held.clone()), after(28), at(99_999)), Step::Wait);
        let taken = lease(b.step(Some(held), after(29), at(29)));
        let spec = taken.spec.clone().unwrap();
        assert_eq!(
            (spec.holder_identity.as_deref(), spec.lease_transitions),
            (Some("b"), Some(1))
        );
        assert_eq!(a.step(Some(taken), after(30), at(30)), Step::Wait);
    }

    #[test]
    fn renewing_keeps_the_time_of_acquiring() {
        let start = Instant::now();
        let mut a = Candidate::new("a", "kube-system", "l");
        let first = lease(a.step(None, start, at(0)));
        let second = lease(a.step(Some(first), start, at(5))).spec.unwrap();
        assert_eq!(second.acquire_time, Some(MicroTime(at(0))));
        assert_eq!(second.renew_time, Some(MicroTime(at(5))));
        assert_eq!(second.lease_transitions, Some(0));
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let start = Instant::now();
        let mut a = Candidate::new("a", "kube-system", "l");
        let held = lease(a.step(None, start, at(0)));
        let free = a.release(held.clone(), at(1)).unwrap();
        let mut b = Candidate::new("b", "kube-system", "l");
        assert!(b.release(held, at(1)).is_none());
        assert_eq!(
            lease(b.step(Some(free), start, at(1)))
                .spec
                .unwrap()
                .holder_identity
                .as_deref(),
            Some("b")
        );
    }
}
