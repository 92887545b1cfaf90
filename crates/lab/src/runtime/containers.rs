//! What the kubelet API sees of the node's pods.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use super::streaming::{Container, Containers, InSandbox, LogSource, Refusal};
use crate::sandbox::Sandbox;

/// The pods of the node by namespace and name.
#[derive(Debug, Default)]
pub struct Registry {
    pods: RwLock<HashMap<(String, String), PodView>>,
}

/// One pod.
#[derive(Debug, Clone)]
pub struct PodView {
    /// Its UID: a pod that ends late must not take its successor out of the registry.
    pub uid: String,
    /// The pod's sandbox while it is there.
    pub sandbox: Option<Sandbox>,
    /// The container meant when none is named.
    pub default_container: String,
    /// Its containers, those too that never ran.
    pub containers: HashMap<String, ContainerView>,
}

/// One container of a pod.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// The newest run.
    pub current: Option<RunView>,
    /// The run before it.
    pub previous: Option<RunView>,
    /// Its waiting reason, or nothing.
    pub waiting: String,
    /// `stdinOnce`.
    pub stdin_once: bool,
}

/// One run of a container.
#[derive(Debug, Clone)]
pub struct RunView {
    /// The run's ID.
    pub id: String,
    /// Its log.
    pub log: PathBuf,
    /// Becomes true with its end.
    pub finished: watch::Receiver<bool>,
}

impl RunView {
    fn log_source(&self) -> LogSource {
        LogSource {
            path: self.log.clone(),
            finished: self.finished.clone(),
        }
    }
}

impl Registry {
    /// A pod is like this now.
    pub fn put(&self, namespace: &str, name: &str, view: PodView) {
        self.pods
            .write()
            .insert((namespace.to_owned(), name.to_owned()), view);
    }

    /// A pod is gone.
    pub fn remove(&self, namespace: &str, name: &str, uid: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut pods = self.pods.write();
        if pods.get(&key).is_some_and(|view| view.uid == uid) {
            pods.remove(&key);
        }
    }

    fn find(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<(Option<Sandbox>, ContainerView), Refusal> {
        let pods = self.pods.read();
        let view = pods
            .get(&(namespace.to_owned(), pod.to_owned()))
            .ok_or_else(|| Refusal::no_pod(pod))?;
        let container = if container.is_empty() {
            &view.default_container
        } else {
            container
        };
        let found = view
            .containers
            .get(container)
            .ok_or_else(|| Refusal::no_container(container, pod))?;
        Ok((view.sandbox.clone(), found.clone()))
    }
}

impl Containers for Registry {
    fn log(&self, namespace: &str, pod: &str, container: &str, previous: bool) -> Result<LogSource, Refusal> {
        let (_, view) = self.find(namespace, pod, container)?;
        match (previous, view.current, view.previous) {
            (false, Some(run), _) | (true, _, Some(run)) => Ok(run.log_source()),
            // A container that waits for its next start: its last run is the one before.
            (true, Some(run), None) if !view.waiting.is_empty() && *run.finished.borrow() => {
                Ok(run.log_source())
            }
            (true, ..) => Err(Refusal::no_previous(container, pod)),
            (false, None, _) => Err(Refusal::waiting(container, pod, &view.waiting)),
        }
    }

    fn container(&self, namespace: &str, pod: &str, container: &str) -> Result<Container, Refusal> {
        let (sandbox, view) = self.find(namespace, pod, container)?;
        let run = view.current.filter(|run| !*run.finished.borrow());
        let (Some(sandbox), Some(run)) = (sandbox, run) else {
            return Err(Refusal::not_running(container));
        };
        let exec = Arc::new(InSandbox {
            sandbox,
            container: run.id.clone(),
        });
        Ok(Container {
            exec,
            finished: run.finished,
            stdin_once: view.stdin_once,
        })
    }
}
