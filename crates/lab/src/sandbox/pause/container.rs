//! One container as pause knows it, from its fork to its last words.

use std::fs::{self, File, Permissions};
use std::io::{self, PipeReader, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use podnet_linux::ns::{self, Kind, Namespace};
use podnet_linux::process::{End, Fork, Pidfd, SingleThreaded};
use rustix::pty::OpenptFlags;

use super::launch::{self, Stdio};
use super::log::{Log, Stream};
use super::output::{Output, Read};
use super::{libc_signals, program};
use crate::sandbox::error::Refusal;
use crate::sandbox::spec::{ContainerSpec, ContainerState, Finished};
use crate::sandbox::wire::ExecRequest;

/// kubelet shows no more of a termination message.
const MAX_MESSAGE: u64 = 4096;
/// A log entry is made of at most this much at once.
const READ: usize = 64 << 10;

/// What every fork needs of the sandbox.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) dir: PathBuf,
    pub(super) hostname: String,
    pub(super) shared_pids: bool,
    pub(super) alone: SingleThreaded,
    /// Pause itself: the way back into its own PID namespace.
    pub(super) own: Pidfd,
}

/// A container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) spec: ContainerSpec,
    pub(super) first: Pidfd,
    pub(super) pid: u32,
    pid_outside: Option<u32>,
    started_at: Timestamp,
    finished: Option<Finished>,
    /// Held open where it says which processes are the container's, so that no other namespace gets its number.
    mounts: Option<Namespace>,
    log: Log,
    pub(super) outputs: Vec<Output>,
    /// The write end of its stdin, or its terminal's master side.
    pub(super) stdin: Option<OwnedFd>,
    last_words: PathBuf,
}

/// A process between its fork and the execution of its program.
#[derive(Debug)]
pub(super) struct Forked {
    pub(super) pid: u32,
    /// Ends when the program is executed; says why it could not be, before.
    pub(super) report: PipeReader,
}

impl Sandbox {
    /// Forks a container's first process.
    pub(super) fn start(&self, spec: ContainerSpec) -> Result<(Container, Forked), Refusal> {
        let command = program::command_line(&spec).map_err(Refusal::Start)?;
        let env = program::environment(&spec, &self.hostname);
        let failed =
            |error: io::Error| Refusal::Start(format!("cannot start container {}: {error}", spec.name));
        let last_words = self.dir.join("last-words").join(&spec.id);
        File::create(&last_words).map_err(failed)?;
        fs::set_permissions(&last_words, Permissions::from_mode(0o666)).map_err(failed)?;
        let log = Log::open(&spec.log_path).map_err(|error| {
            Refusal::Start(format!(
                "cannot open its log {}: {error}",
                spec.log_path.display()
            ))
        })?;
        let streams = Streams::new(&spec).map_err(failed)?;
        let (report, tell) = io::pipe().map_err(failed)?;
        let enter = |own: &Self| match own.shared_pids {
            true => Ok(()),
            false => ns::unshare(Kind::Pid.flag()),
        };
        let pid = match self.fork(enter).map_err(failed)? {
            Fork::Parent(pid) => pid,
            Fork::Child => launch::container(
                launch::Container {
                    spec: &spec,
                    command,
                    env,
                    dir: &self.dir,
                    last_words,
                },
                streams.child,
                OwnedFd::from(tell).into(),
            ),
        };
        let first = Pidfd::open(pid).map_err(failed)?;
        let container = Container {
            pid_outside: first.id_in_proc().map_err(failed)?,
            spec,
            first,
            pid,
            started_at: Timestamp::now(),
            finished: None,
            mounts: None,
            log,
            outputs: streams.outputs,
            stdin: streams.stdin,
            last_words,
        };
        Ok((container, Forked { pid, report }))
    }

    /// Forks a further process in a container; gives its ID outside too.
    pub(super) fn exec(
        &self,
        container: &Container,
        request: ExecRequest,
        fds: Vec<OwnedFd>,
    ) -> Result<(u32, Forked), Refusal> {
        let failed = |error: io::Error| Refusal::Start(format!("cannot exec in the container: {error}"));
        if request.command.is_empty() {
            return Err(Refusal::Start("exec needs a command".into()));
        }
        let mut fds = fds.into_iter();
        let mut stream = |given: bool| match given.then(|| fds.next()).flatten() {
            Some(fd) => Ok(fd),
            None => File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map(OwnedFd::from),
        };
        let stdio = Stdio {
            stdin: stream(request.stdin).map_err(failed)?,
            stdout: stream(request.stdout).map_err(failed)?,
            stderr: stream(request.stderr).map_err(failed)?,
            tty: request.tty,
        };
        let mut env = program::environment(&container.spec, &self.hostname);
        if request.tty {
            env.insert("TERM".into(), "xterm".into());
        }
        env.extend(request.env);
        let (report, tell) = io::pipe().map_err(failed)?;
        let enter = |own: &Self| match own.shared_pids {
            true => Ok(()),
            false => container.first.enter(Kind::Pid.flag()),
        };
        // A PID namespace whose first process ends takes no further one.
        let ending = |error: &io::Error| {
            error.kind() == io::ErrorKind::OutOfMemory
                || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
        };
        let pid = match self.fork(enter).map_err(|error| match ending(&error) {
            true => Refusal::NotRunning(container.spec.id.clone()),
            false => failed(error),
        })? {
            Fork::Parent(pid) => pid,
            Fork::Child => launch::further(
                launch::Further {
                    spec: &container.spec,
                    command: request.command,
                    env,
                    first: &container.first,
                },
                stdio,
                OwnedFd::from(tell).into(),
            ),
        };
        let outside = Pidfd::open(pid)
            .and_then(|child| child.id_in_proc())
            .map_err(failed)?;
        Ok((outside.unwrap_or(0), Forked { pid, report }))
    }

    /// Forks with another PID namespace for the child. Only children are in it: pause stays PID 1 of its own,
    /// and its next child is born there again.
    fn fork(&self, enter: impl FnOnce(&Self) -> io::Result<()>) -> io::Result<Fork> {
        enter(self)?;
        let forked = self.alone.fork();
        if matches!(forked, Ok(Fork::Parent(_)) | Err(_)) {
            self.own.enter(Kind::Pid.flag())?;
        }
        forked
    }
}

impl Container {
    pub(super) fn state(&self) -> ContainerState {
        ContainerState {
            id: self.spec.id.clone(),
            name: self.spec.name.clone(),
            attempt: self.spec.attempt,
            pid: self.pid_outside.filter(|_| self.finished.is_none()),
            started_at: self.started_at,
            finished: self.finished.clone(),
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.finished.is_none()
    }

    /// Its program was executed.
    pub(super) fn executed(&mut self, shared_pids: bool) {
        self.started_at = Timestamp::now();
        let first = self.pid_outside.filter(|_| shared_pids);
        self.mounts = first.and_then(|pid| Namespace::of_pid(pid, Kind::Mount).ok());
    }

    /// Reads what is there of one output.
    pub(super) fn read(&mut self, index: usize) {
        let mut buffer = [0; READ];
        self.read_once(index, &mut buffer);
    }

    /// Its first process has ended.
    pub(super) fn finish(&mut self, end: End, shared_pids: bool) {
        if shared_pids {
            self.kill_others();
        }
        // With its PID namespace everything that could still write has ended already, so this is all of it.
        let mut buffer = [0; READ];
        for index in 0..self.outputs.len() {
            while self.read_once(index, &mut buffer) {}
            if !shared_pids {
                self.end_output(index);
            }
        }
        self.stdin = None;
        let message = self.message();
        self.finished = Some(Finished {
            exit_code: end.code(),
            signal: end.signal(),
            at: Timestamp::now(),
            message,
        });
    }

    /// True when something was read.
    fn read_once(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        let Some(output) = self.outputs.get_mut(index) else {
            return false;
        };
        match output.read(buffer) {
            Read::Bytes(count) => {
                // A full disk costs lines, not the pod.
                drop(self.log.write(output.stream, &buffer[..count], Timestamp::now()));
                true
            }
            Read::Nothing => false,
            Read::End => {
                self.end_output(index);
                false
            }
        }
    }

    fn end_output(&mut self, index: usize) {
        let output = &mut self.outputs[index];
        output.end();
        drop(self.log.finish(output.stream, Timestamp::now()));
    }

    fn message(&self) -> String {
        let mut message = Vec::new();
        if let Ok(file) = File::open(&self.last_words) {
            drop(file.take(MAX_MESSAGE).read_to_end(&mut message));
        }
        drop(fs::remove_file(&self.last_words));
        String::from_utf8_lossy(&message).into_owned()
    }

    /// In a shared PID namespace a container's other processes outlive its first one. They are those with its
    /// mount namespace.
    fn kill_others(&mut self) {
        // Until it is dropped at the end of this, the number is no other namespace's.
        let Some(mounts) = self.mounts.take() else {
            return;
        };
        let Ok(number) = mounts.inode() else {
            return;
        };
        let Ok(entries) = fs::read_dir("/proc") else {
            return;
        };
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let has_its_mounts = |id: u32| {
            let its = Namespace::of_pid(id, Kind::Mount).and_then(|its| its.inode());
            its.is_ok_and(|its| its == number)
        };
        // The process is held before it is looked at: its ID may be another's soon.
        for (id, other) in ids.filter_map(|id| Some((id, of_this_pod(id)?))) {
            if !has_its_mounts(id) {
                continue;
            }
            // It may have ended by itself since.
            drop(other.signal(libc_signals::KILL));
        }
        drop(mounts);
    }
}

/// The process with this ID in the /proc mounted here, if it is in pause's PID namespace: in another pod's, another
/// process may have the same ID as one of ours. In `NSpid` IDs go from the outermost namespace inwards, and pause's own
/// line tells how deep pause is.
fn of_this_pod(outside: u32) -> Option<Pidfd> {
    let ids = |process: &str| -> Option<Vec<u32>> {
        let status = fs::read_to_string(Path::new("/proc").join(process).join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        Some(line.split_whitespace().filter_map(|id| id.parse().ok()).collect())
    };
    let depth = ids("self")?.len() - 1;
    let inside = ids(&outside.to_string())?
        .get(depth)
        .copied()
        .filter(|&id| id > 1)?;
    let process = Pidfd::open(inside).ok()?;
    (process.id_in_proc().ok()? == Some(outside)).then_some(process)
}

/// The two sides of a container's standard streams.
struct Streams {
    child: Stdio,
    outputs: Vec<Output>,
    stdin: Option<OwnedFd>,
}

impl Streams {
    fn new(spec: &ContainerSpec) -> io::Result<Streams> {
        if spec.tty {
            Self::terminal()
        } else {
            Self::pipes(spec.stdin)
        }
    }

    fn pipes(with_stdin: bool) -> io::Result<Streams> {
        let (stdin, input) = match with_stdin {
            true => io::pipe().map(|(read, write)| (OwnedFd::from(read), Some(OwnedFd::from(write))))?,
            false => (File::open("/dev/null")?.into(), None),
        };
        let (out, stdout) = io::pipe()?;
        let (err, stderr) = io::pipe()?;
        Ok(Streams {
            child: Stdio {
                stdin,
                stdout: stdout.into(),
                stderr: stderr.into(),
                tty: false,
            },
            outputs: vec![
                Output::new(out.into(), Stream::Stdout)?,
                Output::new(err.into(), Stream::Stderr)?,
            ],
            stdin: input,
        })
    }

    fn terminal() -> io::Result<Streams> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&master)?;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let reader = rustix::io::fcntl_dupfd_cloexec(master.as_fd(), 3)?;
        Ok(Streams {
            child: Stdio {
                stdin: slave.try_clone()?,
                stdout: slave.try_clone()?,
                stderr: slave,
                tty: true,
            },
            outputs: vec![Output::new(reader, Stream::Stdout)?],
            stdin: Some(master),
        })
    }
}
