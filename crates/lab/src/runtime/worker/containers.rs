//! A pod's containers: started, followed and stopped.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

use super::Worker;
use super::network::new_id;
use crate::image::{Image, ImageRef};
use crate::runtime::pod::backoff::Backoff;
use crate::runtime::pod::state::{Finished, Run, Stopping, Unhealthy, Waiting};
use crate::runtime::pod::{env, files, identity, service_env, spec};
use crate::sandbox::{ContainerSpec, ContainerState, SandboxError};

/// How long a container that could not be made waits for the next attempt, unless what it lacks comes before.
const RETRY: SignedDuration = SignedDuration::from_secs(10);
/// How many runs of a container keep their logs.
const LOGS_KEPT: u32 = 2;

/// Why a container could not be made: the waiting reason and message.
struct Refused {
    reason: &'static str,
    message: String,
}

impl Refused {
    fn config(message: impl Into<String>) -> Self {
        Refused {
            reason: "CreateContainerConfigError",
            message: message.into(),
        }
    }
}

impl Worker {
    pub(super) async fn start_container(&mut self, name: &str, attempt: u32) {
        let host = std::sync::Arc::clone(&self.host);
        let _slot = host.slots.acquire().await;
        let Some(container) = spec::member(&self.pod, name).map(|it| it.container.clone()) else {
            return;
        };
        let Some(sandbox) = self.sandbox.clone() else {
            return self.sandbox_lost();
        };
        let spec = match self.container_spec(&container, attempt).await {
            Ok(spec) => spec,
            Err(refused) => return self.container_refused(name, refused),
        };
        self.let_through(name);
        let events = &self.host.events;
        let image = container.image.as_deref().unwrap_or("host");
        let present = format!("Container image \"{image}\" already present on machine");
        events.normal(&self.pod, Some(name), "Pulled", present);
        let started = sandbox.start_container(&spec).await;
        let mut run = Run {
            id: spec.id.clone(),
            attempt,
            sandbox: self.state.record.sandbox.as_ref().map_or(0, |it| it.attempt),
            image: image.to_owned(),
            image_id: spec.image.id.clone(),
            started_at: Timestamp::now(),
            started: false,
            finished: None,
        };
        match started {
            Ok(state) => {
                events.normal(
                    &self.pod,
                    Some(name),
                    "Created",
                    format!("Created container: {name}"),
                );
                events.normal(
                    &self.pod,
                    Some(name),
                    "Started",
                    format!("Started container {name}"),
                );
                run.started_at = state.started_at;
                self.begin_run(name, run);
            }
            Err(SandboxError::Gone { .. }) => self.sandbox_lost(),
            Err(error) => self.start_failed(name, run, error.to_string()),
        }
        self.forget_old_logs(name, attempt);
    }

    /// The back-off moves on with every start after an end.
    fn let_through(&mut self, name: &str) {
        let ended = self.state.ended(name).map(|(_, finished)| finished.at);
        if let (Some(ended), Some(record)) = (ended, self.state.record.containers.get_mut(name)) {
            record.backoff = Some(Backoff::next(record.backoff, ended, Timestamp::now()));
        }
    }

    fn container_refused(&mut self, name: &str, refused: Refused) {
        let Refused { reason, message } = refused;
        let events = &self.host.events;
        match reason {
            "CreateContainerConfigError" => {
                events.warning(&self.pod, Some(name), "Failed", format!("Error: {message}"));
            }
            _ => {
                events.warning(&self.pod, Some(name), reason, message.clone());
                events.warning(&self.pod, Some(name), "Failed", format!("Error: {reason}"));
            }
        }
        self.wait_to_start(name, reason, message, RETRY);
    }

    fn wait_to_start(&mut self, name: &str, reason: &str, message: String, pause: SignedDuration) {
        let retry_at = Timestamp::now().checked_add(pause).unwrap_or(Timestamp::MAX);
        self.live(name).waiting = Some(Waiting {
            reason: reason.to_owned(),
            message,
            retry_at,
        });
    }

    /// A program that cannot be executed counts as a run that ended with 128, as with other runtimes.
    fn start_failed(&mut self, name: &str, mut run: Run, message: String) {
        self.host
            .events
            .warning(&self.pod, Some(name), "Failed", format!("Error: {message}"));
        run.started_at = Timestamp::UNIX_EPOCH;
        run.finished = Some(Finished {
            exit_code: 128,
            signal: None,
            at: Timestamp::now(),
            reason: "StartError".into(),
            message: message.clone(),
        });
        self.replace_run(name, run);
        self.wait_to_start(name, "RunContainerError", message, SignedDuration::ZERO);
    }

    fn replace_run(&mut self, name: &str, run: Run) {
        if let Some(gone) = self
            .state
            .record
            .containers
            .get(name)
            .and_then(|it| it.previous.as_ref())
        {
            self.told_back_off.remove(&gone.id);
            self.ends.remove(&gone.id);
        }
        let record = self.state.record.containers.entry(name.to_owned()).or_default();
        record.previous = record.current.take();
        record.current = Some(run);
    }

    fn begin_run(&mut self, name: &str, run: Run) {
        self.replace_run(name, run);
        *self.live(name) = Default::default();
        self.begin_hooks_and_probes(name);
    }

    /// All that the container is made from.
    async fn container_spec(&self, container: &Container, attempt: u32) -> Result<ContainerSpec, Refused> {
        let image = self
            .host
            .images
            .resolve(container.image.as_deref().unwrap_or_default())
            .map_err(|error| Refused {
                reason: error.reason(),
                message: error.to_string(),
            })?;
        let objects = self
            .host
            .objects
            .fetch(spec::namespace(&self.pod), env::references(container))
            .await;
        let services = self.host.objects.services();
        let services = service_env::service_environment(&self.pod, services.iter().map(AsRef::as_ref));
        let facts = self.host.facts(&self.state.record.ips);
        let environment =
            env::environment(&self.pod, container, &services, &objects, facts).map_err(Refused::config)?;
        let places = self.host.places(&self.state.record.uid);
        let mounts = places
            .mounts(&self.pod, container, &environment)
            .map_err(|error| {
                Refused::config(format!(
                    "failed to prepare volumes of container \"{}\": {error}",
                    container.name
                ))
            })?;
        let expand =
            |words: &Option<Vec<String>>| env::expand_all(words.as_deref().unwrap_or_default(), &environment);
        let user = self.user(container)?;
        let context = container.security_context.as_ref();
        Ok(ContainerSpec {
            id: new_id(),
            name: container.name.clone(),
            attempt,
            command: expand(&container.command),
            args: expand(&container.args),
            env: self.given_environment(&image, environment.clone())?,
            working_dir: container.working_dir.clone().filter(|it| !it.is_empty()),
            mounts,
            files: self.files(container)?,
            log_path: self.log_path(&container.name, attempt),
            tty: container.tty.unwrap_or(false),
            stdin: container.stdin.unwrap_or(false),
            run_as_user: user.0,
            run_as_group: user.1,
            read_only_root: context
                .and_then(|it| it.read_only_root_filesystem)
                .unwrap_or(false),
            privileged: context.and_then(|it| it.privileged).unwrap_or(false),
            termination_message_path: Some(
                container
                    .termination_message_path
                    .clone()
                    .unwrap_or_else(|| "/dev/termination-log".into()),
            ),
            image,
        })
    }

    /// The pod's own variables after those that the runtime gives, where the pod does not set them itself.
    fn given_environment(
        &self,
        image: &Image,
        own: Vec<(String, String)>,
    ) -> Result<Vec<(String, String)>, Refused> {
        let mut given = vec![("HOSTNAME", self.names()?.hostname)];
        if image.reference == ImageRef::Echo {
            // What the echo server tells of itself.
            given.push(("POD_NAME", spec::name(&self.pod).to_owned()));
            given.push(("POD_NAMESPACE", spec::namespace(&self.pod).to_owned()));
            given.push(("NODE_NAME", self.host.node.clone()));
        }
        given.retain(|(name, _)| own.iter().all(|(known, _)| known != name));
        let given = given.into_iter().map(|(name, value)| (name.to_owned(), value));
        Ok(given.chain(own).collect())
    }

    fn names(&self) -> Result<identity::Identity, Refused> {
        identity::identity(&self.pod, &self.host.node, &self.host.dns.domain).map_err(Refused::config)
    }

    fn files(&self, container: &Container) -> Result<Vec<(String, String)>, Refused> {
        let machine = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let names = self.names()?;
        let hosts = files::hosts(&self.pod, &names, &self.state.record.ips, &machine("/etc/hosts"));
        let resolver = files::resolver(
            &self.pod,
            &self.host.dns,
            &files::Resolver::parse(&machine("/etc/resolv.conf")),
        );
        let all = [
            ("/etc/hosts", hosts),
            ("/etc/resolv.conf", resolver.text()),
            ("/etc/hostname", format!("{}\n", names.hostname)),
        ];
        // What the pod mounts there itself is what it wants.
        let mounted = |path: &str| {
            container
                .volume_mounts
                .iter()
                .flatten()
                .any(|it| it.mount_path == path)
        };
        Ok(all
            .into_iter()
            .filter(|(path, _)| !mounted(path))
            .map(|(path, text)| (path.to_owned(), text))
            .collect())
    }

    fn user(&self, container: &Container) -> Result<(Option<u32>, Option<u32>), Refused> {
        let own = container.security_context.as_ref();
        let pods = spec::spec(&self.pod).security_context.as_ref();
        let user = own
            .and_then(|it| it.run_as_user)
            .or(pods.and_then(|it| it.run_as_user));
        let group = own
            .and_then(|it| it.run_as_group)
            .or(pods.and_then(|it| it.run_as_group));
        let not_root = own
            .and_then(|it| it.run_as_non_root)
            .or(pods.and_then(|it| it.run_as_non_root));
        if not_root == Some(true) && user.unwrap_or(0) == 0 {
            return Err(Refused::config(format!(
                "container has runAsNonRoot and image will run as root (pod: \"{}_{}({})\", container: {})",
                spec::name(&self.pod),
                spec::namespace(&self.pod),
                spec::uid(&self.pod),
                container.name
            )));
        }
        let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
        Ok((id(user), id(group)))
    }

    /// Where a run's output goes.
    pub(super) fn log_path(&self, container: &str, attempt: u32) -> PathBuf {
        self.dir
            .join("logs")
            .join(container)
            .join(format!("{attempt}.log"))
    }

    fn forget_old_logs(&self, container: &str, attempt: u32) {
        if let Some(old) = attempt.checked_sub(LOGS_KEPT) {
            // It may never have been written.
            let _ = std::fs::remove_file(self.log_path(container, old));
        }
    }

    /// Takes over what the sandbox says of its containers.
    pub(super) async fn sync_containers(&mut self) {
        let Some(sandbox) = self.sandbox.clone() else {
            return;
        };
        match sandbox.containers().await {
            Ok(states) => states.into_iter().for_each(|state| self.take_container(state)),
            Err(SandboxError::Gone { .. }) => self.sandbox_lost(),
            Err(error) => {
                tracing::warn!(%error, pod = spec::name(&self.pod), "asking the sandbox for its containers");
            }
        }
    }

    fn take_container(&mut self, seen: ContainerState) {
        let known = self.state.run(&seen.name);
        if known.is_none_or(|run| run.attempt < seen.attempt) {
            // Started by a runtime that ended before it could write it down.
            let image = spec::member(&self.pod, &seen.name)
                .and_then(|it| it.container.image.clone())
                .unwrap_or_default();
            let run = Run {
                id: seen.id.clone(),
                attempt: seen.attempt,
                sandbox: self.state.record.sandbox.as_ref().map_or(0, |it| it.attempt),
                image_id: image.clone(),
                image,
                started_at: seen.started_at,
                started: false,
                finished: None,
            };
            self.replace_run(&seen.name, run);
        }
        let current = self
            .state
            .running(&seen.name)
            .is_some_and(|run| run.id == seen.id);
        if let Some(end) = seen.finished.filter(|_| current) {
            let reason = if end.exit_code == 0 { "Completed" } else { "Error" };
            let finished = Finished {
                exit_code: end.exit_code,
                signal: None,
                at: end.at,
                reason: reason.into(),
                message: end.message,
            };
            self.run_ended(&seen.name, finished);
        }
    }

    /// A run is over.
    pub(super) fn run_ended(&mut self, name: &str, finished: Finished) {
        self.abort_tasks(name);
        *self.live(name) = Default::default();
        let run = self
            .state
            .record
            .containers
            .get_mut(name)
            .and_then(|it| it.current.as_mut());
        let Some(run) = run else { return };
        run.finished = Some(finished);
        if let Some(end) = self.ends.get(&run.id) {
            end.send_replace(true);
        }
    }

    pub(super) async fn stop_container(&mut self, name: &str, grace: i64, message: String) {
        self.host.events.normal(&self.pod, Some(name), "Killing", message);
        let deadline = Timestamp::now()
            .checked_add(SignedDuration::from_secs(grace))
            .unwrap_or(Timestamp::MAX);
        self.abort_tasks(name);
        if self.begin_pre_stop(name, grace) {
            self.live(name).stopping = Some(Stopping::Hook { deadline });
        } else {
            self.terminate(name, deadline).await;
        }
    }

    /// Sends the stop signal; SIGKILL follows at `deadline`.
    pub(super) async fn terminate(&mut self, name: &str, deadline: Timestamp) {
        self.abort_tasks(name);
        self.live(name).stopping = Some(Stopping::Asked { deadline });
        let lifecycle = spec::member(&self.pod, name).and_then(|it| it.container.lifecycle.as_ref());
        let signal = lifecycle
            .and_then(|it| it.stop_signal.as_deref())
            .and_then(signal_number)
            .unwrap_or(15);
        self.signal(name, signal).await;
    }

    pub(super) async fn signal(&mut self, name: &str, signal: i32) {
        let Some(id) = self.state.running(name).map(|run| run.id.clone()) else {
            return;
        };
        let Some(sandbox) = self.sandbox.clone() else {
            return self.sandbox_lost();
        };
        match sandbox.signal(&id, signal).await {
            Ok(()) | Err(SandboxError::NotRunning(_)) => {}
            Err(SandboxError::Gone { .. }) => self.sandbox_lost(),
            Err(error) => tracing::warn!(%error, container = name, signal, "sending a signal"),
        }
    }

    /// A container that failed its check ends, and starts again if its policy says so.
    pub(super) fn mark_unhealthy(&mut self, name: &str, message: String, grace: Option<i64>) {
        self.live(name).unhealthy = Some(Unhealthy { message, grace });
    }
}

/// The number of a signal by its name.
fn signal_number(name: &str) -> Option<i32> {
    use rustix::process::Signal;
    let signal = match name {
        "SIGHUP" => Signal::HUP,
        "SIGINT" => Signal::INT,
        "SIGQUIT" => Signal::QUIT,
        "SIGKILL" => Signal::KILL,
        "SIGUSR1" => Signal::USR1,
        "SIGUSR2" => Signal::USR2,
        "SIGTERM" => Signal::TERM,
        "SIGWINCH" => Signal::WINCH,
        _ => return None,
    };
    Some(signal.as_raw())
}
