//! A pod's sandbox and its network: made, found again, lost and taken down.

use std::net::IpAddr;

use jiff::Timestamp;

use super::{Message, Worker};
use crate::runtime::cni::{CniError, Request};
use crate::runtime::pod::identity::identity;
use crate::runtime::pod::spec;
use crate::runtime::pod::state::{Finished, Sandbox as SandboxRecord};
use crate::sandbox::{Sandbox, SandboxSpec};

impl Worker {
    pub(super) async fn create_sandbox(&mut self, attempt: u32) {
        let host = std::sync::Arc::clone(&self.host);
        let _slot = host.slots.acquire().await;
        if attempt > 0 && self.failures == 0 {
            let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
            self.host
                .events
                .normal(&self.pod, None, "SandboxChanged", message);
        }
        let id = new_id();
        let record = SandboxRecord {
            attempt,
            id: id.clone(),
            network: None,
            ready: false,
        };
        self.state.record.next_sandbox = attempt + 1;
        self.state.record.sandbox = Some(record);
        self.save();
        if let Err(problem) = self.make_sandbox(&id).await {
            let message = format!("Failed to create pod sandbox: {problem}");
            self.host
                .events
                .warning(&self.pod, None, "FailedCreatePodSandBox", message);
            let failures = self.failures;
            self.stop_sandbox().await;
            // A clean end of what failed is no success.
            self.failures = failures;
            self.retry_later();
            return;
        }
        if let Some(record) = &mut self.state.record.sandbox {
            record.ready = true;
        }
        self.retry_no_more();
        self.follow_sandbox(attempt);
    }

    /// Everything up to the point at which containers can be started. What fails leaves a sandbox that is not
    /// ready in the record, with what is needed to take it down.
    async fn make_sandbox(&mut self, id: &str) -> Result<(), String> {
        let spec = self.sandbox_spec()?;
        let sandbox = Sandbox::create(&spec).await.map_err(|error| error.to_string())?;
        self.sandbox = Some(sandbox.clone());
        if spec.host_network {
            self.state.record.ips = self.host.ips.clone();
            return Ok(());
        }
        let request = Request::new(&self.pod, id, &sandbox.netns_path());
        let told = |error: CniError| format!("failed to setup network for sandbox \"{id}\": {error}");
        let mut attachment = self.host.network.plan(request).map_err(told)?;
        self.set_attachment(Some(attachment.clone()));
        self.save();
        self.host.network.attach(&mut attachment).await.map_err(told)?;
        let ips: Vec<IpAddr> = attachment.ips(self.host.ips.first().copied());
        self.set_attachment(Some(attachment));
        if ips.is_empty() {
            return Err(format!("the network gave sandbox \"{id}\" no address"));
        }
        self.state.record.ips = ips;
        Ok(())
    }

    fn set_attachment(&mut self, attachment: Option<crate::runtime::cni::Attachment>) {
        if let Some(record) = &mut self.state.record.sandbox {
            record.network = attachment;
        }
    }

    fn sandbox_dir(&self, attempt: u32) -> std::path::PathBuf {
        self.dir.join("sandbox").join(attempt.to_string())
    }

    fn sandbox_spec(&self) -> Result<SandboxSpec, String> {
        let attempt = self.state.record.sandbox.as_ref().map_or(0, |it| it.attempt);
        let names = identity(&self.pod, &self.host.node, &self.host.dns.domain)?;
        let pod = spec::spec(&self.pod);
        let sysctls = pod.security_context.as_ref().and_then(|it| it.sysctls.as_ref());
        Ok(SandboxSpec {
            dir: self.sandbox_dir(attempt),
            hostname: names.hostname,
            host_network: spec::host_network(&self.pod),
            share_process_namespace: pod.share_process_namespace.unwrap_or(false),
            sysctls: sysctls
                .into_iter()
                .flatten()
                .map(|it| (it.name.clone(), it.value.clone()))
                .collect(),
        })
    }

    /// Detaches the network, ends the sandbox, and forgets both. A network that does not let go is tried again
    /// later.
    pub(super) async fn stop_sandbox(&mut self) {
        let Some(record) = self.state.record.sandbox.clone() else {
            return;
        };
        if let Some(attachment) = &record.network {
            match self.host.network.detach(attachment).await {
                Ok(()) => {}
                // The plugin was taken off the node: the namespace, and the links in it, go below.
                Err(CniError::Spawn { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    tracing::warn!(
                        pod = spec::name(&self.pod),
                        "the network plugin is gone; not detached"
                    );
                }
                Err(error) => {
                    let message = format!("error killing pod: failed to detach its network: {error}");
                    self.host
                        .events
                        .warning(&self.pod, None, "FailedKillPod", message);
                    return self.retry_later();
                }
            }
            self.set_attachment(None);
            self.save();
        }
        let dir = self.sandbox_dir(record.attempt);
        let sandbox = match self.sandbox.take() {
            Some(sandbox) => Some(sandbox),
            None => Sandbox::attach(&dir).await.ok(),
        };
        if let Some(sandbox) = sandbox
            && let Err(error) = sandbox.stop().await
        {
            let message = format!("error killing pod: {error}");
            self.host
                .events
                .warning(&self.pod, None, "FailedKillPod", message);
            self.sandbox = Some(sandbox);
            return self.retry_later();
        }
        self.end_all_runs();
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
        if let Ok(Err(error)) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, pod = spec::name(&self.pod), "removing a sandbox's directory");
        }
        self.state.record.sandbox = None;
        self.retry_no_more();
    }

    /// After a restart of the runtime: finds the sandbox and its containers again.
    pub(super) async fn adopt(&mut self) {
        let Some(record) = self.state.record.sandbox.clone() else {
            return;
        };
        if !record.ready {
            return;
        }
        match Sandbox::attach(&self.sandbox_dir(record.attempt)).await {
            Ok(sandbox) => {
                self.sandbox = Some(sandbox);
                self.sync_containers().await;
                self.resume_runs();
                self.follow_sandbox(record.attempt);
            }
            Err(error) => {
                tracing::info!(pod = spec::name(&self.pod), %error, "the sandbox is gone");
                self.sandbox_lost();
            }
        }
    }

    /// Tells this task of every change in the sandbox.
    fn follow_sandbox(&mut self, attempt: u32) {
        let Some(sandbox) = self.sandbox.clone() else {
            return;
        };
        let sender = self.sender.clone();
        let task = tokio::spawn(async move {
            while sandbox.changed().await.is_ok() {
                if sender.send(Message::Sandbox(attempt, true)).is_err() {
                    return;
                }
            }
            // The receiver is gone only when the pod is.
            let _ = sender.send(Message::Sandbox(attempt, false));
        });
        if let Some(before) = self.follower.replace(task.abort_handle()) {
            before.abort();
        }
    }

    pub(super) async fn sandbox_changed(&mut self, attempt: u32, alive: bool) {
        let current = self.state.record.sandbox.as_ref().map(|it| it.attempt);
        if current != Some(attempt) {
            return;
        }
        if alive {
            self.sync_containers().await;
        } else {
            self.sandbox_lost();
        }
    }

    /// The pause process is gone, and with it all processes of the pod.
    pub(super) fn sandbox_lost(&mut self) {
        if let Some(record) = &mut self.state.record.sandbox {
            record.ready = false;
        }
        self.end_all_runs();
    }

    fn end_all_runs(&mut self) {
        let now = Timestamp::now();
        let names: Vec<String> = self.state.record.containers.keys().cloned().collect();
        for name in names {
            if self.state.running(&name).is_some() {
                let finished = Finished {
                    exit_code: 137,
                    signal: None,
                    at: now,
                    reason: "Error".into(),
                    message: String::new(),
                };
                self.run_ended(&name, finished);
            }
        }
    }
}

/// 64 hexadecimal digits, as container IDs are elsewhere.
pub(super) fn new_id() -> String {
    let mut id = String::with_capacity(64);
    for _ in 0..2 {
        id.push_str(&uuid::Uuid::new_v4().simple().to_string());
    }
    id
}
