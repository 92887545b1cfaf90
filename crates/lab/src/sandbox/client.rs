//! The async client of one pause process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::error::SandboxError;
use super::spec::{Attachment, ContainerSpec, ContainerState, ExecSpec, SandboxSpec};
use super::wire::{self, ExecRequest, Inbox, Reply, Request};

/// A pod sandbox: the client of its pause process. Cheap to clone.
#[derive(Debug)]
pub struct Sandbox {
    dir: Arc<PathBuf>,
    pid: u32,
    /// The generation [`Sandbox::changed`] last told of; each clone has its own.
    seen: AtomicU64,
}

impl Clone for Sandbox {
    fn clone(&self) -> Self {
        let seen = AtomicU64::new(self.seen.load(Ordering::Relaxed));
        Sandbox {
            dir: Arc::clone(&self.dir),
            pid: self.pid,
            seen,
        }
    }
}

impl Sandbox {
    /// Starts `podnet pause` from the running executable and waits until it is ready.
    pub async fn create(spec: &SandboxSpec) -> Result<Sandbox, SandboxError> {
        let program = std::env::current_exe().map_err(|source| SandboxError::Spawn {
            program: "/proc/self/exe".into(),
            source,
        })?;
        Self::create_with(&program, spec).await
    }

    /// Like [`Sandbox::create`], with the `podnet` executable given.
    pub async fn create_with(program: &Path, spec: &SandboxSpec) -> Result<Sandbox, SandboxError> {
        let failed = |source| SandboxError::Io {
            dir: spec.dir.clone(),
            source,
        };
        write_spec(spec).map_err(failed)?;
        // The process started here forks the one that stays, waits until that is ready, and tells its end
        // by exit code; so nothing is left for this process to reap later.
        let output = tokio::process::Command::new(program)
            .arg("pause")
            .arg("--dir")
            .arg(&spec.dir)
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|source| SandboxError::Spawn {
                program: program.into(),
                source,
            })?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr);
            return Err(SandboxError::NotReady(match told.trim() {
                "" => format!("the pause process ended with {}", output.status),
                told => told.to_owned(),
            }));
        }
        Self::attach(&spec.dir).await
    }

    /// Finds the sandbox of `dir` again, as after a restart of the runtime.
    pub async fn attach(dir: &Path) -> Result<Sandbox, SandboxError> {
        let sandbox = Sandbox {
            dir: Arc::new(dir.to_owned()),
            pid: 0,
            seen: AtomicU64::new(0),
        };
        match sandbox.ask(&Request::Hello).await? {
            Reply::Hello { pid } => Ok(Sandbox { pid, ..sandbox }),
            other => Err(sandbox.unexpected(other)),
        }
    }

    /// The sandbox's private directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Process ID of pause, as the /proc of its mount namespace shows it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The pod's network namespace.
    pub fn netns_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid))
    }

    /// Starts a container; returns when its program was executed, or says why it could not be.
    pub async fn start_container(&self, spec: &ContainerSpec) -> Result<ContainerState, SandboxError> {
        match self.ask(&Request::Start(Box::new(spec.clone()))).await? {
            Reply::Container(state) => Ok(state),
            other => Err(self.unexpected(other)),
        }
    }

    /// All containers that run, and of each name the last few that ended, oldest first.
    pub async fn containers(&self) -> Result<Vec<ContainerState>, SandboxError> {
        match self.ask(&Request::Containers).await? {
            Reply::Containers(states) => Ok(states),
            other => Err(self.unexpected(other)),
        }
    }

    /// Resolves when some container's state is another than at the last call on this clone (at once on the
    /// first call, if there ever was a change). Errs when pause is gone.
    pub async fn changed(&self) -> Result<(), SandboxError> {
        let seen = self.seen.load(Ordering::Relaxed);
        match self.ask(&Request::Watch { seen }).await? {
            Reply::Changed { generation } => {
                self.seen.store(generation, Ordering::Relaxed);
                Ok(())
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// Sends a signal to a container's first process.
    pub async fn signal(&self, container_id: &str, signal: i32) -> Result<(), SandboxError> {
        self.order(&Request::Signal {
            container: container_id.to_owned(),
            signal,
        })
        .await
    }

    /// Runs a process in a container; returns when its program was executed.
    pub async fn exec(&self, container_id: &str, exec: &ExecSpec) -> Result<Exec, SandboxError> {
        let request = Request::Exec(ExecRequest {
            container: container_id.to_owned(),
            command: exec.command.clone(),
            env: exec.env.clone(),
            tty: exec.tty,
            stdin: exec.stdin.is_some(),
            stdout: exec.stdout.is_some(),
            stderr: exec.stderr.is_some(),
        });
        let fds = [&exec.stdin, &exec.stdout, &exec.stderr];
        let fds: Vec<_> = fds.into_iter().flatten().map(AsFd::as_fd).collect();
        let mut connection = self.connect().await?;
        connection.send(&request, &fds).await?;
        match connection.receive().await? {
            Reply::ExecStarted { pid } => Ok(Exec { connection, pid }),
            other => Err(self.unexpected(other)),
        }
    }

    /// Copies a running container's output from now on, and gives its stdin when the container has one.
    pub async fn attach_container(
        &self,
        container_id: &str,
        to: &Attachment,
    ) -> Result<Attached, SandboxError> {
        let request = Request::Attach {
            container: container_id.to_owned(),
            stdout: to.stdout.is_some(),
            stderr: to.stderr.is_some(),
        };
        let fds: Vec<_> = [&to.stdout, &to.stderr]
            .into_iter()
            .flatten()
            .map(AsFd::as_fd)
            .collect();
        let mut connection = self.connect().await?;
        connection.send(&request, &fds).await?;
        match connection.receive().await? {
            Reply::Attached { stdin, tty } => {
                let stdin = connection.inbox.take_fds().into_iter().next().filter(|_| stdin);
                Ok(Attached { stdin, tty })
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// Gives a container the end of its stdin (`stdinOnce`, after the client went).
    pub async fn close_stdin(&self, container_id: &str) -> Result<(), SandboxError> {
        self.order(&Request::CloseStdin {
            container: container_id.to_owned(),
        })
        .await
    }

    /// Kills what is left in the pod and ends pause; returns when all of it is gone.
    ///
    /// Nothing is left then but the directory: all mounts were in namespaces that ended.
    pub async fn stop(&self) -> Result<(), SandboxError> {
        let pid = Pid::from_raw(self.pid as i32).ok_or_else(|| self.gone())?;
        let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        match self.order(&Request::Stop).await {
            Ok(()) => {}
            Err(SandboxError::Gone { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let failed = |source| SandboxError::Io {
            dir: self.dir.to_path_buf(),
            source,
        };
        // A pidfd becomes readable when its process has ended.
        let ended = tokio::task::spawn_blocking(move || {
            rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None)
        });
        ended
            .await
            .map_err(io::Error::other)
            .and_then(|polled| Ok(polled.map(drop)?))
            .map_err(failed)
    }

    async fn order(&self, request: &Request) -> Result<(), SandboxError> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    async fn ask(&self, request: &Request) -> Result<Reply, SandboxError> {
        let mut connection = self.connect().await?;
        connection.send(request, &[]).await?;
        connection.receive().await
    }

    async fn connect(&self) -> Result<Connection, SandboxError> {
        match open(&self.dir).await {
            Ok(stream) => Ok(Connection {
                stream,
                inbox: Inbox::default(),
                dir: Arc::clone(&self.dir),
            }),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Err(self.gone())
            }
            Err(source) => Err(SandboxError::Io {
                dir: self.dir.to_path_buf(),
                source,
            }),
        }
    }

    fn gone(&self) -> SandboxError {
        SandboxError::Gone {
            dir: self.dir.to_path_buf(),
        }
    }

    fn unexpected(&self, reply: Reply) -> SandboxError {
        match reply {
            Reply::Refused(refusal) => refusal.into(),
            other => SandboxError::Refused(format!(
                "the pause process gave an answer out of place: {other:?}"
            )),
        }
    }
}

/// What [`Sandbox::attach_container`] gives.
#[derive(Debug)]
pub struct Attached {
    /// Write here what the container shall read: the write end of a pipe, or the pty's master side (on which
    /// the window size can be set; do not read from it).
    pub stdin: Option<OwnedFd>,
    /// Whether the container has a terminal.
    pub tty: bool,
}

/// A process that runs in a container. Dropping it kills the process with its process group.
#[derive(Debug)]
pub struct Exec {
    connection: Connection,
    pid: u32,
}

impl Exec {
    /// Waits for the end: the exit code, or 128 + signal.
    pub async fn wait(&mut self) -> Result<i32, SandboxError> {
        match self.connection.receive().await? {
            Reply::ExecEnded { exit_code } => Ok(exit_code),
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(SandboxError::Refused(format!(
                "an answer out of place: {other:?}"
            ))),
        }
    }

    /// Process ID as the runtime's /proc shows it.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    inbox: Inbox,
    dir: Arc<PathBuf>,
}

impl Connection {
    async fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), SandboxError> {
        let frame = wire::encode(request).map_err(|source| self.failed(source))?;
        let mut sent = 0;
        while sent < frame.len() {
            let fds = if sent == 0 { fds } else { &[] };
            let stream = &self.stream;
            let write = stream
                .async_io(Interest::WRITABLE, || wire::send(stream, &frame[sent..], fds))
                .await;
            sent += write.map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    async fn receive(&mut self) -> Result<Reply, SandboxError> {
        loop {
            if let Some(reply) = self.inbox.take().map_err(|source| self.failed(source))? {
                return Ok(reply);
            }
            let (stream, inbox) = (&self.stream, &mut self.inbox);
            let filled = stream.async_io(Interest::READABLE, || inbox.fill(stream)).await;
            if filled.map_err(|source| self.failed(source))? == 0 {
                return Err(SandboxError::Gone {
                    dir: self.dir.to_path_buf(),
                });
            }
        }
    }

    fn failed(&self, source: io::Error) -> SandboxError {
        match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => SandboxError::Gone {
                dir: self.dir.to_path_buf(),
            },
            _ => SandboxError::Io {
                dir: self.dir.to_path_buf(),
                source,
            },
        }
    }
}

/// Connects through the directory's descriptor: a socket's path may have 107 bytes at most, and a lab's
/// directories are deep.
async fn open(dir: &Path) -> io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    let directory = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY).bits() as i32)
        .open(dir)?;
    let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), wire::SOCKET);
    UnixStream::connect(path).await
}

fn write_spec(spec: &SandboxSpec) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&spec.dir)?;
    let json = serde_json::to_vec_pretty(spec).map_err(io::Error::other)?;
    std::fs::write(spec.dir.join(wire::SPEC), json)
}
