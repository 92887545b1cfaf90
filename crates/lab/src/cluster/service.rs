//! The lab's own processes, which init starts and starts again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use podnet_linux::ns::Namespace;
use podnet_linux::{cgroup, enter};
use serde::{Deserialize, Serialize};

use super::layout::LabDir;
use super::record::write_json;

/// One process to keep running.
#[derive(Debug)]
pub struct Service {
    /// Unique in the lab: `apiserver`, `node1-agent`, ...
    pub name: String,
    /// The executable, as seen from inside `namespaces`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it runs; empty is where init runs.
    pub namespaces: Vec<Arc<Namespace>>,
    /// The control group it is in; that of init where there is none.
    pub group: Option<PathBuf>,
    /// Listening sockets that it finds as its descriptors 0 and 1. Standard input and output are the two
    /// descriptors that reach a child without a moment in which another child could inherit them too.
    pub sockets: Option<(std::net::TcpListener, std::net::TcpListener)>,
}

/// `services.json`: what init knows of one service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceState {
    /// PID inside the lab; none while it waits to be started again.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
}

/// The services of a lab.
#[derive(Debug)]
pub struct Supervisor {
    dir: LabDir,
    entries: Mutex<BTreeMap<String, Entry>>,
}

#[derive(Debug)]
struct Entry {
    service: Service,
    state: ServiceState,
    started: Instant,
    quick_ends: u32,
}

/// A service that ran this long is taken to have been well.
const WELL: Duration = Duration::from_secs(60);

impl Supervisor {
    /// No services yet.
    pub fn new(dir: LabDir) -> Arc<Self> {
        Arc::new(Supervisor {
            dir,
            entries: Mutex::default(),
        })
    }

    /// Starts `service` and keeps it running; its first PID.
    pub fn start(&self, service: Service) -> io::Result<u32> {
        let pid = self.spawn(&service)?;
        let mut entries = self.entries.lock();
        let state = ServiceState {
            pid: Some(pid),
            restarts: 0,
        };
        entries.insert(
            service.name.clone(),
            Entry {
                service,
                state,
                started: Instant::now(),
                quick_ends: 0,
            },
        );
        self.write(&entries)?;
        Ok(pid)
    }

    /// To be told of every process that was reaped; starts a service again that has ended.
    pub fn reaped(self: &Arc<Self>, pid: u32) -> io::Result<()> {
        let mut entries = self.entries.lock();
        let Some((name, entry)) = entries.iter_mut().find(|(_, entry)| entry.state.pid == Some(pid)) else {
            return Ok(());
        };
        entry.state.pid = None;
        entry.quick_ends = if entry.started.elapsed() > WELL {
            0
        } else {
            entry.quick_ends + 1
        };
        let pause = back_off(entry.quick_ends);
        let (name, supervisor) = (name.clone(), Arc::clone(self));
        std::thread::Builder::new()
            .name(format!("restart-{name}"))
            .spawn(move || {
                std::thread::sleep(pause);
                supervisor.restart(&name);
            })?;
        self.write(&entries)
    }

    fn restart(&self, name: &str) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(name) else {
            return;
        };
        match self.spawn(&entry.service) {
            Ok(pid) => {
                entry.state = ServiceState {
                    pid: Some(pid),
                    restarts: entry.state.restarts + 1,
                };
                entry.started = Instant::now();
            }
            Err(error) => eprintln!("{name} could not be started again: {error}"),
        }
        if let Err(error) = self.write(&entries) {
            eprintln!("{}: {error}", self.dir.services().display());
        }
    }

    fn spawn(&self, service: &Service) -> io::Result<u32> {
        let log = self.log(&service.name)?;
        let mut command = Command::new(&service.program);
        command
            .args(&service.args)
            .current_dir("/")
            .stderr(log.try_clone()?);
        match &service.sockets {
            Some((first, second)) => {
                command.stdin(Stdio::from(std::os::fd::OwnedFd::from(first.try_clone()?)));
                command.stdout(Stdio::from(std::os::fd::OwnedFd::from(second.try_clone()?)));
            }
            None => {
                command.stdin(Stdio::null()).stdout(log);
            }
        }
        let namespaces: Vec<&Namespace> = service.namespaces.iter().map(Arc::as_ref).collect();
        let does_not_start = |error: io::Error| {
            io::Error::new(error.kind(), format!("{} does not start: {error}", service.name))
        };
        let mut child = enter::spawn(&namespaces, &mut command).map_err(does_not_start)?;
        if let Some(group) = &service.group
            && let Err(error) = cgroup::enter(group, child.id())
        {
            // Nobody would know of it.
            let _ = child.kill();
            return Err(does_not_start(error));
        }
        Ok(child.id())
    }

    fn log(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.log(name))
    }

    fn write(&self, entries: &BTreeMap<String, Entry>) -> io::Result<()> {
        let states: BTreeMap<_, _> = entries.iter().map(|(name, entry)| (name, &entry.state)).collect();
        write_json(&self.dir.services(), &states)
    }
}

/// A log may grow to this size; what it held before is kept once beside it.
const LOG_LIMIT: u64 = 16 * 1024 * 1024;
/// So often the sizes of logs are looked at.
const LOG_PAUSE: Duration = Duration::from_secs(5);

/// Keeps the logs in `dir` within bounds for as long as the process lives.
pub fn bound_logs(dir: PathBuf) -> io::Result<()> {
    let watch = move || {
        loop {
            std::thread::sleep(LOG_PAUSE);
            if let Err(error) = turn_over(&dir, LOG_LIMIT) {
                eprintln!("the logs in {} cannot be bounded: {error}", dir.display());
            }
        }
    };
    std::thread::Builder::new()
        .name("logs".to_owned())
        .spawn(watch)
        .map(drop)
}

/// Moves what is in a log larger than `limit` to `NAME.0.log`. The file itself stays: its process has it open, and goes on
/// at its beginning since it appends.
fn turn_over(dir: &Path, limit: u64) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(name) = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".log"))
        else {
            continue;
        };
        if name.ends_with(".0") || std::fs::metadata(&path)?.len() <= limit {
            continue;
        }
        std::fs::copy(&path, dir.join(format!("{name}.0.log")))?;
        OpenOptions::new().write(true).open(&path)?.set_len(0)?;
    }
    Ok(())
}

/// The pause before a start: one second, doubling to sixteen while the service keeps ending soon.
fn back_off(quick_ends: u32) -> Duration {
    Duration::from_secs(1 << quick_ends.saturating_sub(1).min(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_too_large_is_turned_over_under_its_writer() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path("a.log"))
            .unwrap();
        std::fs::write(path("small.log"), "12345").unwrap();
        for round in 0..3 {
            write!(log, "round {round}, ").unwrap();
            write!(log, "and more").unwrap();
            turn_over(dir.path(), 10).unwrap();
            assert_eq!(std::fs::read_to_string(path("a.log")).unwrap(), "");
            let before = std::fs::read_to_string(path("a.0.log")).unwrap();
            assert_eq!(before, format!("round {round}, and more"));
        }
        write!(log, "little").unwrap();
        turn_over(dir.path(), 10).unwrap();
        assert_eq!(std::fs::read_to_string(path("a.log")).unwrap(), "little");
        assert_eq!(std::fs::read_to_string(path("small.log")).unwrap(), "12345");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn the_pause_doubles_and_is_bounded() {
        let seconds: Vec<u64> = (0..8).map(|n| back_off(n).as_secs()).collect();
        assert_eq!(seconds, [1, 1, 2, 4, 8, 16, 16, 16]);
    }
}
