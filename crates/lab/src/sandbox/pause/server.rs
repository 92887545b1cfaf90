//! Pause's poll loop: requests, outputs, ends of processes.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use podnet_linux::process::{self, End, Pidfd, SignalFd, SingleThreaded};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::container::{Container, Forked, Sandbox};
use super::{libc_signals, signals};
use crate::sandbox::error::Refusal;
use crate::sandbox::spec::{ContainerState, SandboxSpec};
use crate::sandbox::wire::{self, ExecRequest, Inbox, Reply, Request};

/// Ended containers that are remembered of each name.
const REMEMBERED: usize = 3;

pub(super) struct Server {
    sandbox: Sandbox,
    /// Process ID as the /proc mounted here shows it.
    pid_outside: u32,
    signals: SignalFd,
    listener: UnixListener,
    connections: BTreeMap<u64, Connection>,
    last_connection: u64,
    containers: Vec<Container>,
    /// By process ID: between fork and exec, and for whom.
    starting: BTreeMap<u32, Starting>,
    /// By process ID: the connection that waits for the end of an exec, if it still does.
    execs: BTreeMap<u32, u64>,
    /// Counts changes of container states.
    generation: u64,
    stopping: bool,
}

struct Connection {
    stream: UnixStream,
    inbox: Inbox,
    /// Waits for another generation than this.
    watches: Option<u64>,
}

struct Starting {
    forked: Forked,
    connection: u64,
    /// An exec's ID outside; None for a container.
    exec: Option<u32>,
}

/// What a descriptor in the poll set is. A container's index may be stale when an earlier source of the same
/// round removed one; reads and writes do not wait, so that costs nothing.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Connection(u64),
    Starting(u32),
    Output(usize, usize),
    Sinks(usize, usize),
}

impl Server {
    pub(super) fn new(
        spec: &SandboxSpec,
        listener: UnixListener,
        alone: SingleThreaded,
    ) -> io::Result<Server> {
        let itself = std::fs::read_link("/proc/self")?;
        let pid_outside = itself.to_string_lossy().parse().map_err(io::Error::other)?;
        let hostname = match spec.hostname.as_str() {
            "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            name => name.to_owned(),
        };
        let sandbox = Sandbox {
            dir: std::path::absolute(&spec.dir)?,
            hostname,
            shared_pids: spec.share_process_namespace,
            alone,
            own: Pidfd::open(std::process::id())?,
        };
        Ok(Server {
            sandbox,
            pid_outside,
            signals: signals()?,
            listener,
            connections: BTreeMap::new(),
            last_connection: 0,
            containers: Vec::new(),
            starting: BTreeMap::new(),
            execs: BTreeMap::new(),
            generation: 0,
            stopping: false,
        })
    }

    /// Serves until told to stop; then all of the pod has ended.
    pub(super) fn serve(&mut self) -> io::Result<()> {
        while !self.stopping {
            for source in self.poll()? {
                self.handle(source)?;
            }
            self.tell_watchers();
        }
        self.end_all()
    }

    fn poll(&self) -> io::Result<Vec<Source>> {
        let (sources, mut fds): (Vec<Source>, Vec<PollFd<'_>>) = self.sources().into_iter().unzip();
        match rustix::event::poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            polled => polled?,
        };
        let ready = sources
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty());
        let mut ready: Vec<Source> = ready.map(|(source, _)| source).collect();
        // Ends last: outputs and reports that came before an end are taken before it.
        ready.sort_by_key(|source| matches!(source, Source::Signals));
        Ok(ready)
    }

    fn sources(&self) -> Vec<(Source, PollFd<'_>)> {
        let input = |source, fd| (source, PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let mut sources = vec![
            input(Source::Signals, self.signals.as_fd()),
            input(Source::Listener, self.listener.as_fd()),
        ];
        for (&id, connection) in &self.connections {
            sources.push(input(Source::Connection(id), connection.stream.as_fd()));
        }
        for (&pid, starting) in &self.starting {
            sources.push(input(Source::Starting(pid), starting.forked.report.as_fd()));
        }
        for (at, container) in self.containers.iter().enumerate() {
            for (index, output) in container.outputs.iter().enumerate() {
                sources.extend(output.source().map(|fd| input(Source::Output(at, index), fd)));
                let blocked = output
                    .blocked_sinks()
                    .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT));
                sources.extend(blocked.map(|fd| (Source::Sinks(at, index), fd)));
            }
        }
        sources
    }

    fn handle(&mut self, source: Source) -> io::Result<()> {
        match source {
            Source::Signals => self.take_signals()?,
            Source::Listener => self.accept()?,
            Source::Connection(id) => self.receive(id),
            Source::Starting(pid) => self.started(pid),
            Source::Output(at, index) => {
                if let Some(container) = self.containers.get_mut(at) {
                    container.read(index);
                }
            }
            Source::Sinks(at, index) => {
                let container = self.containers.get_mut(at);
                if let Some(output) = container.and_then(|container| container.outputs.get_mut(index)) {
                    output.flush();
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                self.last_connection += 1;
                let connection = Connection {
                    stream,
                    inbox: Inbox::default(),
                    watches: None,
                };
                self.connections.insert(self.last_connection, connection);
                Ok(())
            }
            // Whoever it was has gone again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let request = match connection.inbox.fill(&connection.stream) {
            Ok(0) => return self.close(id),
            Ok(_) => connection.inbox.take::<Request>(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.close(id),
        };
        match request {
            Ok(None) => {}
            Ok(Some(request)) => {
                let fds = connection.inbox.take_fds();
                self.answer(id, request, fds);
            }
            Err(error) => self.reply(id, &Reply::Refused(Refusal::Other(error.to_string())), None),
        }
    }

    /// A client that goes takes its exec with it.
    fn close(&mut self, id: u64) {
        self.connections.remove(&id);
        let pids = self
            .execs
            .iter()
            .filter(|&(_, &waiting)| waiting == id)
            .map(|(&pid, _)| pid);
        for pid in pids.collect::<Vec<_>>() {
            // Every exec leads a session and so a group; it may have ended, and be about to be reaped.
            drop(process::signal_group(pid, libc_signals::KILL));
        }
    }

    fn answer(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) {
        let reply = match request {
            Request::Hello => Ok(Reply::Hello {
                pid: self.pid_outside,
            }),
            Request::Containers => Ok(Reply::Containers(self.states())),
            Request::Start(spec) => match self.sandbox.start(*spec) {
                Ok((container, forked)) => {
                    self.containers.push(container);
                    self.starting.insert(
                        forked.pid,
                        Starting {
                            forked,
                            connection: id,
                            exec: None,
                        },
                    );
                    return;
                }
                Err(refusal) => Err(refusal),
            },
            Request::Watch { seen } => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.watches = Some(seen);
                }
                return;
            }
            Request::Signal { container, signal } => self.signal(&container, signal),
            Request::Exec(request) => match self.exec(id, request, fds) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Request::Attach {
                container,
                stdout,
                stderr,
            } => match self.attach(&container, [stdout, stderr], fds) {
                Ok((reply, stdin)) => return self.reply(id, &reply, stdin),
                Err(refusal) => Err(refusal),
            },
            Request::CloseStdin { container } => self.running(&container).map(|container| {
                if !container.spec.tty {
                    container.stdin = None;
                }
                Reply::Done
            }),
            Request::Stop => {
                self.stopping = true;
                Ok(Reply::Done)
            }
        };
        self.reply(id, &reply.unwrap_or_else(Reply::Refused), None);
    }

    fn states(&self) -> Vec<ContainerState> {
        let started = self
            .containers
            .iter()
            .filter(|container| !self.starting.contains_key(&container.pid));
        started.map(Container::state).collect()
    }

    fn running(&mut self, id: &str) -> Result<&mut Container, Refusal> {
        match self
            .containers
            .iter_mut()
            .rev()
            .find(|container| container.spec.id == id)
        {
            None => Err(Refusal::NoContainer(id.to_owned())),
            Some(container) if container.is_running() => Ok(container),
            Some(_) => Err(Refusal::NotRunning(id.to_owned())),
        }
    }

    fn signal(&mut self, id: &str, signal: i32) -> Result<Reply, Refusal> {
        let sent = self.running(id)?.first.signal(signal);
        sent.map(|()| Reply::Done)
            .map_err(|error| match error.raw_os_error() {
                // It has ended, and is about to be reaped.
                Some(code) if code == rustix::io::Errno::SRCH.raw_os_error() => {
                    Refusal::NotRunning(id.to_owned())
                }
                _ => Refusal::Other(format!("cannot send signal {signal}: {error}")),
            })
    }

    fn exec(&mut self, id: u64, request: ExecRequest, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        self.running(&request.container)?;
        let container = self
            .containers
            .iter()
            .rev()
            .find(|container| container.spec.id == request.container);
        let Some(container) = container else {
            return Err(Refusal::NoContainer(request.container));
        };
        let (outside, forked) = self.sandbox.exec(container, request, fds)?;
        self.execs.insert(forked.pid, id);
        self.starting.insert(
            forked.pid,
            Starting {
                forked,
                connection: id,
                exec: Some(outside),
            },
        );
        Ok(())
    }

    fn attach(
        &mut self,
        id: &str,
        wanted: [bool; 2],
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Option<OwnedFd>), Refusal> {
        let failed = |error: io::Error| Refusal::Other(format!("cannot attach: {error}"));
        let container = self.running(id)?;
        let mut fds = fds.into_iter();
        for (index, wanted) in wanted.into_iter().enumerate() {
            let fd = if wanted { fds.next() } else { None };
            if let (Some(fd), Some(output)) = (fd, container.outputs.get_mut(index)) {
                output.attach(fd).map_err(failed)?;
            }
        }
        let open = container.spec.stdin || container.spec.tty;
        let stdin = container.stdin.as_ref().filter(|_| open).map(OwnedFd::try_clone);
        let stdin = stdin.transpose().map_err(failed)?;
        Ok((
            Reply::Attached {
                stdin: stdin.is_some(),
                tty: container.spec.tty,
            },
            stdin,
        ))
    }

    /// The report of a forked process has something to read, or has ended.
    fn started(&mut self, pid: u32) {
        let Some(mut starting) = self.starting.remove(&pid) else {
            return;
        };
        let mut why = Vec::new();
        // The child writes its whole report at once and ends, or closes it by executing its program.
        let read = starting.forked.report.read_to_end(&mut why);
        let refusal = match read {
            Ok(0) => None,
            Ok(_) => Some(String::from_utf8_lossy(&why).into_owned()),
            Err(error) => Some(format!("its report cannot be read: {error}")),
        };
        let reply = match (refusal, starting.exec) {
            (Some(why), _) => {
                self.containers.retain(|container| container.pid != pid);
                self.execs.remove(&pid);
                Reply::Refused(Refusal::Start(why))
            }
            (None, Some(outside)) => Reply::ExecStarted { pid: outside },
            (None, None) => match self.containers.iter_mut().find(|container| container.pid == pid) {
                Some(container) => {
                    container.executed(self.sandbox.shared_pids);
                    self.generation += 1;
                    Reply::Container(container.state())
                }
                None => return,
            },
        };
        self.reply(starting.connection, &reply, None);
        // Its client went while it started.
        if starting.exec.is_some() && !self.connections.contains_key(&starting.connection) {
            drop(process::signal_group(pid, libc_signals::KILL));
        }
    }

    fn take_signals(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.next()? {
            if signal != libc_signals::CHILD {
                self.stopping = true;
            }
        }
        self.reap()
    }

    /// Takes every ended child; those that are none of ours are orphans of a shared PID namespace.
    fn reap(&mut self) -> io::Result<()> {
        while let Some((pid, end)) = process::reap()? {
            if self.starting.contains_key(&pid) {
                self.started(pid);
            }
            if let Some(connection) = self.execs.remove(&pid) {
                self.reply(
                    connection,
                    &Reply::ExecEnded {
                        exit_code: end.code(),
                    },
                    None,
                );
            }
            self.container_ended(pid, end);
        }
        Ok(())
    }

    fn container_ended(&mut self, pid: u32, end: End) {
        let shared = self.sandbox.shared_pids;
        let ended = self
            .containers
            .iter_mut()
            .find(|container| container.pid == pid && container.is_running());
        let Some(container) = ended else { return };
        container.finish(end, shared);
        self.generation += 1;
        let name = container.spec.name.clone();
        let of_name = |container: &Container| container.spec.name == name && !container.is_running();
        let mut surplus = self
            .containers
            .iter()
            .filter(|c| of_name(c))
            .count()
            .saturating_sub(REMEMBERED);
        self.containers.retain(|container| {
            let forget = surplus > 0 && of_name(container);
            surplus -= usize::from(forget);
            !forget
        });
    }

    fn tell_watchers(&mut self) {
        let generation = self.generation;
        let due = |connection: &Connection| connection.watches.is_some_and(|seen| seen != generation);
        let ids: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| due(c))
            .map(|(&id, _)| id)
            .collect();
        for id in ids {
            self.reply(id, &Reply::Changed { generation }, None);
            self.connections.remove(&id);
        }
    }

    /// A client that does not take its answer loses its connection.
    fn reply(&mut self, id: u64, reply: &Reply, fd: Option<OwnedFd>) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let fds: Vec<BorrowedFd<'_>> = fd.as_ref().map(AsFd::as_fd).into_iter().collect();
        if send(&connection.stream, reply, &fds).is_err() {
            self.close(id);
        }
    }

    /// Kills everything in the pod, takes the last outputs, and waits until all of it is gone.
    fn end_all(&mut self) -> io::Result<()> {
        process::kill_everyone()?;
        while let Some((pid, end)) = process::wait_any()? {
            self.container_ended(pid, end);
        }
        Ok(())
    }
}

fn send(stream: &UnixStream, reply: &Reply, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let frame = wire::encode(reply)?;
    let mut sent = 0;
    while sent < frame.len() {
        match wire::send(stream, &frame[sent..], if sent == 0 { fds } else { &[] }) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut writable = [PollFd::new(stream, PollFlags::OUT)];
                let patience = Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                };
                if rustix::event::poll(&mut writable, Some(&patience))? == 0 {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
