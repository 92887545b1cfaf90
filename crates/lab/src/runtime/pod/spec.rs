//! Reading a pod's specification: the defaults that Kubernetes documents, in one place.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What happens to a container that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// It is started again.
    Always,
    /// It is started again unless it ended with 0.
    OnFailure,
    /// It stays as it is.
    Never,
}

/// Which list of the specification a container stands in, and how it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: it is started in its turn and runs beside the others.
    Sidecar,
    /// One of `spec.containers`.
    App,
}

/// A container of a pod with its role.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// The container as specified.
    pub container: &'a Container,
    /// Its role.
    pub role: Role,
}

impl<'a> Member<'a> {
    /// The container's name.
    pub fn name(&self) -> &'a str {
        &self.container.name
    }

    /// What happens when it ends: a sidecar is always restarted, an init container is retried unless the pod
    /// says `Never`.
    pub fn restart_policy(&self, pod: &Pod) -> RestartPolicy {
        match (self.role, restart_policy(pod)) {
            (Role::Sidecar, _) => RestartPolicy::Always,
            (Role::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
            (_, policy) => policy,
        }
    }
}

/// The pod's specification; a pod without one has an empty one.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// The pod's restart policy.
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    match spec(pod).restart_policy.as_deref() {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// The init containers and sidecars, in order.
pub fn init_members(pod: &Pod) -> impl DoubleEndedIterator<Item = Member<'_>> {
    spec(pod)
        .init_containers
        .iter()
        .flatten()
        .map(|container| Member {
            container,
            role: if container.restart_policy.as_deref() == Some("Always") {
                Role::Sidecar
            } else {
                Role::Init
            },
        })
}

/// The app containers, in order.
pub fn app_members(pod: &Pod) -> impl DoubleEndedIterator<Item = Member<'_>> {
    spec(pod).containers.iter().map(|container| Member {
        container,
        role: Role::App,
    })
}

/// All containers, init containers first.
pub fn members(pod: &Pod) -> impl DoubleEndedIterator<Item = Member<'_>> {
    init_members(pod).chain(app_members(pod))
}

/// The container called `name`.
pub fn member<'a>(pod: &'a Pod, name: &str) -> Option<Member<'a>> {
    members(pod).find(|member| member.name() == name)
}

/// The pod's volumes.
pub fn volumes(pod: &Pod) -> &[Volume] {
    spec(pod).volumes.as_deref().unwrap_or_default()
}

/// Whether the pod uses its node's network.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// The pod's namespace.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// The pod's name.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// The container meant when none is named: the annotated one, else the first.
pub fn default_container(pod: &Pod) -> &str {
    let annotations = pod.metadata.annotations.as_ref();
    let annotated = annotations.and_then(|all| all.get("kubectl.kubernetes.io/default-container"));
    let first = || {
        pod.spec
            .as_ref()?
            .containers
            .first()
            .map(|container| &container.name)
    };
    annotated.or_else(first).map(String::as_str).unwrap_or_default()
}

/// The pod's UID.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Whether the API asked for the pod's end.
pub fn deletion_requested(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// When the API wants the pod gone.
pub fn deletion_deadline(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.deletion_timestamp.as_ref().map(|time| time.0)
}

/// Seconds between the request to end and the kill. At least 1, as kubelet has it, so that a forced deletion
/// still delivers SIGTERM.
pub fn grace_seconds(pod: &Pod) -> i64 {
    let asked = if deletion_requested(pod) {
        pod.metadata.deletion_grace_period_seconds
    } else {
        None
    };
    asked
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(30)
        .max(1)
}

/// When an active pod has to end because of `activeDeadlineSeconds`.
pub fn active_deadline(pod: &Pod, started: Option<Timestamp>) -> Option<Timestamp> {
    let seconds = spec(pod).active_deadline_seconds?;
    started?
        .checked_add(jiff::SignedDuration::from_secs(seconds))
        .ok()
}

/// The number behind a port given by number or by the name of one of the container's ports.
pub fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => container
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_deref() == Some(name))
                .map(|port| i64::from(port.container_port))
                .ok_or_else(|| format!("couldn't find port: {name} in container {}", container.name))?,
        },
    };
    u16::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

/// The pod's quality of service class, from its containers' requests and limits of CPU and memory.
pub fn qos_class(pod: &Pod) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for member in members(pod) {
        let resources = member.container.resources.as_ref();
        let requests = resources.and_then(|it| it.requests.as_ref());
        let limits = resources.and_then(|it| it.limits.as_ref());
        for name in ["cpu", "memory"] {
            let limit = amount(limits, name);
            let request = amount(requests, name).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn amount(
    list: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
    name: &str,
) -> Option<i128> {
    let amount: podnet_core::quantity::Quantity = list?.get(name)?.0.parse().ok()?;
    (amount.nanos() != 0).then_some(amount.nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::pod::testing::pod;

    #[test]
    fn ports_are_found_by_number_and_by_name() {
        let pod = pod(r#"{"containers":[{"name":"a","ports":[{"name":"http","containerPort":8080}]}]}"#);
        let container = &spec(&pod).containers[0];
        assert_eq!(port(container, &IntOrString::Int(80)), Ok(80));
        assert_eq!(port(container, &IntOrString::String("http".into())), Ok(8080));
        assert_eq!(port(container, &IntOrString::String("81".into())), Ok(81));
        assert!(port(container, &IntOrString::String("https".into())).is_err());
        assert!(port(container, &IntOrString::Int(70000)).is_err());
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let class = |resources: &str| {
            qos_class(&pod(&format!(
                r#"{{"containers":[{{"name":"a","resources":{resources}}}]}}"#
            )))
        };
        assert_eq!(class("{}"), "BestEffort");
        assert_eq!(class(r#"{"requests":{"cpu":"100m"}}"#), "Burstable");
        assert_eq!(class(r#"{"limits":{"cpu":"1","memory":"1Gi"}}"#), "Guaranteed");
        assert_eq!(
            class(r#"{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1000m","memory":"1024Mi"}}"#),
            "Guaranteed"
        );
        assert_eq!(
            class(r#"{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"10m"}}"#),
            "Burstable"
        );
    }

    #[test]
    fn a_forced_deletion_still_leaves_a_second() {
        let mut pod = pod(r#"{"containers":[],"terminationGracePeriodSeconds":7}"#);
        assert_eq!(grace_seconds(&pod), 7);
        pod.metadata.deletion_grace_period_seconds = Some(0);
        pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            Timestamp::UNIX_EPOCH,
        ));
        assert_eq!(grace_seconds(&pod), 1);
    }
}
