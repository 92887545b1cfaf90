//! The containers of pod sandboxes, as exec and attach need them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Attached, Execute, Process, Stdio};
use crate::sandbox::{Attachment, Exec, ExecSpec, Sandbox};

/// A container of a pod sandbox.
#[derive(Debug, Clone)]
pub struct InSandbox {
    /// Its pod.
    pub sandbox: Sandbox,
    /// Its identifier there.
    pub container: String,
}

impl Execute for InSandbox {
    fn exec(&self, command: Vec<String>, stdio: Stdio) -> BoxFuture<'_, Result<Box<dyn Process>, String>> {
        let Stdio {
            stdin,
            stdout,
            stderr,
            tty,
        } = stdio;
        let spec = ExecSpec {
            command,
            env: Vec::new(),
            stdin,
            stdout,
            stderr,
            tty,
        };
        let started = async move {
            let exec = self.sandbox.exec(&self.container, &spec).await;
            exec.map(|exec| Box::new(exec) as Box<dyn Process>)
                .map_err(|error| error.to_string())
        };
        started.boxed()
    }

    fn terminals(&self) -> BoxFuture<'_, Option<PathBuf>> {
        let found = async {
            let states = self.sandbox.containers().await.ok()?;
            let pid = states.into_iter().find(|state| state.id == self.container)?.pid?;
            Some(PathBuf::from(format!("/proc/{pid}/root/dev/pts/ptmx")))
        };
        found.boxed()
    }

    fn attach(
        &self,
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
    ) -> BoxFuture<'_, Result<Attached, String>> {
        let to = Attachment { stdout, stderr };
        let attached = async move {
            let attached = self.sandbox.attach_container(&self.container, &to).await;
            let attached = attached.map_err(|error| error.to_string())?;
            Ok(Attached {
                stdin: attached.stdin,
                tty: attached.tty,
            })
        };
        attached.boxed()
    }

    fn close_stdin(&self) -> BoxFuture<'_, Result<(), String>> {
        async {
            self.sandbox
                .close_stdin(&self.container)
                .await
                .map_err(|error| error.to_string())
        }
        .boxed()
    }
}

impl Process for Exec {
    fn wait(&mut self) -> BoxFuture<'_, Result<i32, String>> {
        async { Exec::wait(self).await.map_err(|error| error.to_string()) }.boxed()
    }
}
