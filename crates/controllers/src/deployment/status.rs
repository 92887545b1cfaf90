//! What a Deployment says of itself.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::fraction::fences;
use super::{View, available, wanted};
use crate::action::{Action, Part};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const FAILURE: &str = "ReplicaFailure";

/// The new status as an action, and when it will change by itself.
pub(super) fn report(view: &View<'_>, created: Option<&str>) -> (Option<Action>, Option<Timestamp>) {
    let (status, again) = status(view, created);
    let mut updated = view.deployment.clone();
    updated.status = Some(status);
    (Action::modify(Part::Status, view.deployment, &updated), again)
}

fn status(view: &View<'_>, created: Option<&str>) -> (DeploymentStatus, Option<Timestamp>) {
    let old = view.deployment.status.clone().unwrap_or_default();
    let mut new = counts(view, &old);
    let mut conditions = Conditions {
        list: old.conditions.clone().unwrap_or_default(),
        now: view.context.now,
    };
    conditions.set(AVAILABLE, availability(view, &new));
    let again = progress(view, &old, &new, &mut conditions, created);
    failures(view, &mut conditions);
    new.conditions = Some(conditions.list);
    (new, again)
}

fn counts(view: &View<'_>, old: &DeploymentStatus) -> DeploymentStatus {
    let some = |number: i32| Some(number).filter(|n| *n != 0);
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| view.sets.all().map(|set| of(set)).sum::<i32>();
    let replicas = |set: &ReplicaSet| set.status.as_ref().map_or(0, |s| s.replicas);
    let ready = |set: &ReplicaSet| set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
    let ending = |set: &ReplicaSet| {
        set.status
            .as_ref()
            .and_then(|s| s.terminating_replicas)
            .unwrap_or(0)
    };
    let available = sum(&available);
    DeploymentStatus {
        observed_generation: view.deployment.metadata.generation.or(old.observed_generation),
        replicas: some(sum(&replicas)),
        updated_replicas: some(view.sets.new.as_deref().map_or(0, replicas)),
        ready_replicas: some(sum(&ready)),
        available_replicas: some(available),
        unavailable_replicas: some((sum(&wanted) - available).max(0)),
        terminating_replicas: Some(sum(&ending)),
        collision_count: old.collision_count,
        conditions: None,
    }
}

type Statement = (&'static str, &'static str, String);

fn availability(view: &View<'_>, status: &DeploymentStatus) -> Statement {
    let least = view.replicas() - fences(view.spec).1;
    if status.available_replicas.unwrap_or(0) >= least {
        (
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.".into(),
        )
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.".into(),
        )
    }
}

/// Whether every pod is of the current template and available, and none is too many.
pub(super) fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let replicas = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let equal = |number: Option<i32>| number.unwrap_or(0) == replicas;
    equal(status.updated_replicas)
        && equal(status.replicas)
        && equal(status.available_replicas)
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether `new` is nearer to the end of the rollout than `old`.
fn nearer(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |number: Option<i32>| number.unwrap_or(0);
    let outdated = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || outdated(new) < outdated(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

/// The deadline; none if the Deployment has none. Kubernetes takes the largest number for none.
fn deadline(view: &View<'_>) -> Option<SignedDuration> {
    let seconds = view.spec.progress_deadline_seconds.filter(|s| *s != i32::MAX)?;
    Some(SignedDuration::from_secs(seconds.into()))
}

/// Sets the condition Progressing, and says when the deadline will be over.
fn progress(
    view: &View<'_>,
    old: &DeploymentStatus,
    new: &DeploymentStatus,
    conditions: &mut Conditions,
    created: Option<&str>,
) -> Option<Timestamp> {
    let Some(deadline) = deadline(view) else {
        conditions.list.retain(|c| c.type_ != PROGRESSING);
        return None;
    };
    let reason = conditions.reason(PROGRESSING);
    if rests(view, reason.as_deref(), conditions) {
        return None;
    }
    if let Some(name) = created {
        let text = format!("Created new replica set \"{name}\"");
        conditions.renew(PROGRESSING, ("True", "NewReplicaSetCreated", text));
        return view.context.now.checked_add(deadline).ok();
    }
    // A rollout that was over and is not disturbed stays over while pods come and go.
    let over = new.replicas == new.updated_replicas && reason.as_deref() == Some("NewReplicaSetAvailable");
    if over || advance(view, old, new, reason.is_none(), conditions) {
        return None;
    }
    let timed_out = reason.as_deref() == Some("ProgressDeadlineExceeded");
    expire(view, deadline, timed_out, conditions)
}

/// Whether the Deployment is paused, and so no deadline runs; notes that, and that it no longer is.
fn rests(view: &View<'_>, reason: Option<&str>, conditions: &mut Conditions) -> bool {
    let paused = view.spec.paused == Some(true);
    let noted = reason == Some("DeploymentPaused");
    let timed_out = reason == Some("ProgressDeadlineExceeded");
    if paused && !noted && !timed_out {
        let text = "Deployment is paused".into();
        conditions.set(PROGRESSING, ("Unknown", "DeploymentPaused", text));
    }
    if !paused && noted {
        let text = "Deployment is resumed".into();
        conditions.set(PROGRESSING, ("Unknown", "DeploymentResumed", text));
    }
    paused
}

/// The name of the new ReplicaSet.
fn new_set<'a>(view: &'a View<'_>) -> Option<&'a str> {
    view.sets.new.as_ref()?.metadata.name.as_deref()
}

/// What progresses, as messages name it.
fn subject(view: &View<'_>) -> String {
    match new_set(view) {
        Some(name) => format!("ReplicaSet \"{name}\""),
        None => {
            let name = view.deployment.metadata.name.as_deref().unwrap_or_default();
            format!("Deployment \"{name}\"")
        }
    }
}

/// Notes how far the rollout came; true when it is complete.
fn advance(
    view: &View<'_>,
    old: &DeploymentStatus,
    new: &DeploymentStatus,
    first: bool,
    conditions: &mut Conditions,
) -> bool {
    let subject = subject(view);
    if complete(view.deployment, new) {
        let text = format!("{subject} has successfully progressed.");
        conditions.renew(PROGRESSING, ("True", "NewReplicaSetAvailable", text));
        return true;
    }
    if nearer(old, new) {
        let text = format!("{subject} is progressing.");
        conditions.renew(PROGRESSING, ("True", "ReplicaSetUpdated", text));
    } else if first && let Some(name) = new_set(view) {
        let text = format!("Found new replica set \"{name}\"");
        conditions.set(PROGRESSING, ("True", "FoundNewReplicaSet", text));
    }
    false
}

/// Notes that the deadline is over; says when it will be.
fn expire(
    view: &View<'_>,
    deadline: SignedDuration,
    timed_out: bool,
    conditions: &mut Conditions,
) -> Option<Timestamp> {
    let until = conditions.updated(PROGRESSING)?.checked_add(deadline).ok()?;
    // The moment is rounded up to full seconds, as which times are kept.
    if view.context.now < until + SignedDuration::from_secs(1) {
        return (!timed_out).then(|| until + SignedDuration::from_secs(1));
    }
    if conditions.reason(PROGRESSING).as_deref() != Some("NewReplicaSetAvailable") {
        let text = format!("{} has timed out progressing.", subject(view));
        conditions.set(PROGRESSING, ("False", "ProgressDeadlineExceeded", text));
    }
    None
}

/// What the ReplicaSets say is wrong, the newest first.
fn failures(view: &View<'_>, conditions: &mut Conditions) {
    let sets = view.sets.new.iter().chain(&view.sets.old);
    let failure = sets
        .flat_map(|set| {
            set.status
                .as_ref()
                .and_then(|s| s.conditions.as_ref())
                .into_iter()
                .flatten()
        })
        .find(|c| c.type_ == FAILURE && c.status == "True");
    match failure {
        Some(failure) => {
            let text = failure.message.clone().unwrap_or_default();
            conditions.set(FAILURE, ("True", "FailedCreate", text));
        }
        None => conditions.list.retain(|c| c.type_ != FAILURE),
    }
}

struct Conditions {
    list: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Conditions {
    fn get(&self, type_: &str) -> Option<&DeploymentCondition> {
        self.list.iter().find(|c| c.type_ == type_)
    }

    fn reason(&self, type_: &str) -> Option<String> {
        self.get(type_)?.reason.clone()
    }

    fn updated(&self, type_: &str) -> Option<Timestamp> {
        Some(self.get(type_)?.last_update_time.as_ref()?.0)
    }

    /// Sets a condition unless its status and reason say the same already.
    fn set(&mut self, type_: &str, statement: Statement) {
        let same =
            |c: &DeploymentCondition| c.status == statement.0 && c.reason.as_deref() == Some(statement.1);
        if !self.get(type_).is_some_and(same) {
            self.renew(type_, statement);
        }
    }

    /// Sets a condition and its time of update; the time of transition only if the status is another.
    fn renew(&mut self, type_: &str, (status, reason, message): Statement) {
        let now = Some(Time(self.now));
        let since = self
            .get(type_)
            .filter(|c| c.status == status)
            .and_then(|c| c.last_transition_time.clone());
        let condition = DeploymentCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_update_time: now.clone(),
            last_transition_time: since.or(now),
        };
        match self.list.iter_mut().find(|c| c.type_ == type_) {
            Some(old) => *old = condition,
            None => self.list.push(condition),
        }
    }
}
