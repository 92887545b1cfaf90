//! Running one plugin once.

use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use podnet_linux::ns::Namespace;
use serde_json::{Map, Value};

use super::CniError;

/// How long a plugin may take.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Say whether it is as ADD left it.
    Check,
    /// Say whether an ADD would succeed now.
    Status,
}

impl Verb {
    /// The value of `CNI_COMMAND`.
    pub fn command(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Status => "STATUS",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Verb::Add => "add",
            Verb::Del => "delete",
            Verb::Check => "check",
            Verb::Status => "status",
        }
    }
}

/// Where a node's plugins are and run.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// The directory with the executables, as the node sees it.
    pub dir: PathBuf,
    /// The node's mount namespace; without one they run where the runtime does.
    pub mounts: Option<Arc<Namespace>>,
}

impl Plugins {
    /// Runs the plugin that `conf` names with `env` (without `CNI_COMMAND` and `CNI_PATH`) and returns what it
    /// printed.
    pub async fn run(
        &self,
        verb: Verb,
        conf: &Map<String, Value>,
        env: &[(&str, String)],
    ) -> Result<Option<Value>, CniError> {
        let plugin = conf
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        // A type is a file name in the plugin directory and nothing more.
        if plugin.is_empty() || plugin.contains('/') || plugin == ".." {
            return Err(CniError::Config {
                file: plugin,
                problem: "the type is not a file name".into(),
            });
        }
        let mut command = Command::new(self.dir.join(&plugin));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .env("CNI_COMMAND", verb.command())
            .env("CNI_PATH", &self.dir);
        command.envs(env.iter().map(|(key, value)| (*key, value)));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = self
            .output(verb, &plugin, command, Value::Object(conf.clone()).to_string())
            .await?;
        answer(verb, plugin, &output)
    }

    async fn output(
        &self,
        verb: Verb,
        plugin: &str,
        mut command: Command,
        stdin: String,
    ) -> Result<Output, CniError> {
        let spawn_error = |source| CniError::Spawn {
            plugin: plugin.to_owned(),
            path: self.dir.display().to_string(),
            source,
        };
        let mounts = self.mounts.clone();
        let (kill, killer) = tokio::sync::oneshot::channel();
        let work = tokio::task::spawn_blocking(move || {
            let namespaces: Vec<&Namespace> = mounts.as_deref().into_iter().collect();
            let mut child = podnet_linux::enter::spawn(&namespaces, &mut command)?;
            if let Some(pid) = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)) {
                // The receiver is gone only when the caller stopped waiting.
                let _ = kill.send(rustix::process::pidfd_open(
                    pid,
                    rustix::process::PidfdFlags::empty(),
                )?);
            }
            if let Some(mut input) = child.stdin.take() {
                // A plugin that ends without reading says why on stdout.
                let _ = input.write_all(stdin.as_bytes());
            }
            child.wait_with_output()
        });
        match tokio::time::timeout(TIMEOUT, work).await {
            Ok(Ok(output)) => output.map_err(spawn_error),
            Ok(Err(panic)) => Err(spawn_error(std::io::Error::other(panic))),
            Err(_) => {
                if let Ok(pidfd) = killer.await {
                    let _ = rustix::process::pidfd_send_signal(pidfd.as_fd(), rustix::process::Signal::KILL);
                }
                Err(CniError::Timeout {
                    plugin: plugin.to_owned(),
                    verb: verb.name(),
                    seconds: TIMEOUT.as_secs(),
                })
            }
        }
    }
}

fn answer(verb: Verb, plugin: String, output: &Output) -> Result<Option<Value>, CniError> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let printed = stdout.trim();
    if output.status.success() {
        if printed.is_empty() {
            return Ok(None);
        }
        return serde_json::from_str(printed)
            .map(Some)
            .map_err(|error| CniError::Answer {
                plugin,
                verb: verb.name(),
                problem: error.to_string(),
            });
    }
    let error: Option<Value> = serde_json::from_str(printed).ok();
    let text = |key: &str| {
        error
            .as_ref()
            .and_then(|it| it.get(key))
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let code = error
        .as_ref()
        .and_then(|it| it.get("code"))
        .and_then(Value::as_u64);
    let message = match (text("msg"), text("details")) {
        ("", "") => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            format!("{}: {}", output.status, [printed, stderr.trim()].join(" ").trim())
        }
        (message, "") => message.to_owned(),
        (message, details) => format!("{message}; {details}"),
    };
    Err(CniError::Plugin {
        plugin,
        verb: verb.name(),
        code: code.and_then(|code| u32::try_from(code).ok()),
        message,
    })
}
