//! What the kubelet API sees of a pod.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use tokio::sync::watch;

use super::Worker;
use crate::runtime::containers::{ContainerView, PodView, RunView};
use crate::runtime::pod::spec;
use crate::runtime::pod::state::Run;

impl Worker {
    /// Shows the pod as it is now.
    pub(super) fn publish(&mut self, status: &PodStatus) {
        let statuses: Vec<&ContainerStatus> = status
            .init_container_statuses
            .iter()
            .chain(&status.container_statuses)
            .flatten()
            .collect();
        let mut containers = HashMap::new();
        let specs: Vec<_> = spec::members(&self.pod)
            .map(|it| (it.name().to_owned(), it.container.stdin_once.unwrap_or(false)))
            .collect();
        for (name, stdin_once) in specs {
            let record = self
                .state
                .record
                .containers
                .get(&name)
                .cloned()
                .unwrap_or_default();
            let waiting = statuses
                .iter()
                .find(|it| it.name == name)
                .and_then(|it| it.state.as_ref()?.waiting.as_ref()?.reason.clone())
                .unwrap_or_default();
            let view = ContainerView {
                current: record.current.map(|run| self.run_view(&name, &run)),
                previous: record.previous.map(|run| self.run_view(&name, &run)),
                waiting,
                stdin_once,
            };
            containers.insert(name, view);
        }
        let view = PodView {
            uid: self.state.record.uid.clone(),
            sandbox: self.sandbox.clone(),
            default_container: spec::default_container(&self.pod).to_owned(),
            containers,
        };
        self.host
            .registry
            .put(spec::namespace(&self.pod), spec::name(&self.pod), view);
    }

    fn run_view(&mut self, container: &str, run: &Run) -> RunView {
        let ended = run.finished.is_some();
        let log = self.log_path(container, run.attempt);
        let end = self
            .ends
            .entry(run.id.clone())
            .or_insert_with(|| watch::channel(ended).0);
        RunView {
            id: run.id.clone(),
            log,
            finished: end.subscribe(),
        }
    }
}
