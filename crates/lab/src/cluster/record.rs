//! What is written down about a lab, so that another command finds it, alive or dead.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::layout::LabDir;
use super::plan::Request;

/// A process that cannot be mistaken for a later one with the same PID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The PID as the machine sees it.
    pub pid: u32,
    /// Clock ticks after boot at which it started (/proc/PID/stat, field 22).
    pub started: u64,
}

impl ProcessIdentity {
    /// The identity of a running process.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(ProcessIdentity {
            pid,
            started: start_time(pid)?,
        })
    }

    /// Whether this very process still runs. A zombie does not; one that was killed does until it is one.
    pub fn is_alive(&self) -> bool {
        self.stat().is_some_and(|stat| !stat.zombie)
    }

    /// What the kernel says of it, unless it is gone and its PID free or another's.
    fn stat(&self) -> Option<Stat> {
        let stat = Stat::read(self.pid).ok()?;
        (stat.started == self.started).then_some(stat)
    }

    /// Whether it runs and will go on to. A killed init does not: the kernel ends all of its PID namespace before it is
    /// a zombie, and it serves nobody meanwhile.
    pub fn is_well(&self) -> bool {
        self.stat().is_some_and(|stat| !stat.zombie && !stat.exiting)
    }

    /// Kills it and waits until it, and with it its PID namespace, is gone. Nothing to do is success.
    pub fn kill_and_wait(&self) -> io::Result<()> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // Only now does the number surely mean what we hold open. A zombie is waited for, too: a process that ends by
        // itself is one as soon as its first thread is, while another of its threads still ends its PID namespace.
        if self.stat().is_none() {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec {
            tv_sec: 30,
            tv_nsec: 0,
        };
        match rustix::event::poll(&mut polled, Some(&limit))? {
            0 => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("process {} does not end", self.pid),
            )),
            _ => Ok(()),
        }
    }
}

fn start_time(pid: u32) -> io::Result<u64> {
    match Stat::read(pid)? {
        Stat { zombie: true, .. } => Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended")),
        stat => Ok(stat.started),
    }
}

/// What /proc/PID/stat says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// Field 22.
    started: u64,
    /// Its first thread has ended: field 3. Others may not have.
    zombie: bool,
    /// It is on its way out: PF_EXITING in its flags, field 9.
    exiting: bool,
}

const PF_EXITING: u64 = 0x4;

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
    }

    fn parse(line: &str) -> io::Result<Self> {
        let unexpected = || io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is not as expected");
        // The second field is the command in parentheses and may hold anything, so count from its end.
        let (_, rest) = line.rsplit_once(") ").ok_or_else(unexpected)?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The third field is the first of the rest.
        let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
        let zombie = matches!(fields.first(), Some(&"Z" | &"X"));
        let (flags, started) = number(9).zip(number(22)).ok_or_else(unexpected)?;
        let exiting = flags & PF_EXITING != 0;
        Ok(Stat {
            started,
            zombie,
            exiting,
        })
    }
}

/// `lab.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What was asked for.
    pub request: Request,
    /// PID 1 of the lab, as the machine sees it.
    pub init: ProcessIdentity,
    /// The namespaces of each node, as descriptors that init holds open; empty until the lab stands.
    #[serde(default)]
    pub nodes: BTreeMap<String, NodeNamespaces>,
    /// The same for the namespace of the underlay.
    #[serde(default)]
    pub underlay: Option<i32>,
}

/// Descriptor numbers in the process init.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeNamespaces {
    /// Network.
    pub net: i32,
    /// Hostname.
    pub uts: i32,
    /// Mounts.
    pub mnt: i32,
}

/// What there is of a lab.
#[derive(Debug)]
pub enum Lab {
    /// No directory: no such lab.
    None,
    /// Its init runs.
    Alive(Box<Record>),
    /// A directory without a running init: it was killed, or `up` was. With what is still known of it.
    Dead(Option<Box<Record>>),
}

impl Lab {
    /// Looks at `dir`.
    pub fn find(dir: &LabDir) -> io::Result<Self> {
        if !dir.exists() {
            return Ok(Lab::None);
        }
        match read_json::<Record>(&dir.record()) {
            Ok(record) if record.init.is_well() => Ok(Lab::Alive(Box::new(record))),
            Ok(record) => Ok(Lab::Dead(Some(Box::new(record)))),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                Ok(Lab::Dead(None))
            }
            Err(error) => Err(error),
        }
    }
}

/// Reads a JSON file; torn contents are `InvalidData`.
pub fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes a JSON file whole or not at all.
pub fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_is_killed_and_never_mistaken_for_another() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        assert!(identity.is_alive());
        let other = ProcessIdentity {
            started: identity.started + 1,
            ..identity
        };
        assert!(!other.is_alive());
        other.kill_and_wait().unwrap();
        assert!(identity.is_alive(), "another identity must not kill it");
        identity.kill_and_wait().unwrap();
        assert!(!identity.is_alive());
        child.wait().unwrap();
        identity.kill_and_wait().unwrap();
    }

    #[test]
    fn a_process_is_waited_for_until_its_last_thread_has_ended() {
        // Its first thread ends, another goes on.
        let script = "import ctypes, threading, time\n\
            threading.Thread(target=time.sleep, args=(60,)).start()\n\
            ctypes.CDLL(None).pthread_exit(None)";
        let mut child = std::process::Command::new("python3")
            .args(["-c", script])
            .spawn()
            .unwrap();
        let identity = ProcessIdentity::of(child.id()).unwrap();
        while identity.is_alive() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert!(child.try_wait().unwrap().is_none(), "a thread of it still runs");
        identity.kill_and_wait().unwrap();
        assert!(child.try_wait().unwrap().is_some());
    }

    #[test]
    fn a_process_on_its_way_out_is_not_well() {
        let line = |state: &str, flags: u64| {
            format!("7 (a) b) {state} 1 7 7 0 -1 {flags} 1 0 0 0 3 4 0 0 20 0 1 0 4711 123 45")
        };
        let stat = |zombie, exiting| Stat {
            started: 4711,
            zombie,
            exiting,
        };
        assert_eq!(Stat::parse(&line("S", 0x40_0100)).unwrap(), stat(false, false));
        // PID 1 of a PID namespace sleeps while the others in it are ended.
        assert_eq!(Stat::parse(&line("S", 0x40_0104)).unwrap(), stat(false, true));
        assert_eq!(Stat::parse(&line("Z", 0x40_0104)).unwrap(), stat(true, true));
        assert!(Stat::parse("7 (a) S 1").is_err() && Stat::parse("").is_err());
        let mine = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(mine.is_alive() && mine.is_well());
    }

    #[test]
    fn a_torn_record_is_a_dead_lab() {
        let dir = tempfile::tempdir().unwrap();
        let lab = LabDir::at(dir.path());
        std::fs::write(lab.record(), "{\"request\":").unwrap();
        assert!(matches!(Lab::find(&lab).unwrap(), Lab::Dead(None)));
        assert!(matches!(
            Lab::find(&LabDir::at(dir.path().join("no"))).unwrap(),
            Lab::None
        ));
    }
}
