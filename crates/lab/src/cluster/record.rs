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

    /// Whether this very process still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid).is_ok_and(|started| started == self.started)
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
        // Only now does the number surely mean what we hold open.
        if !self.is_alive() {
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
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the command in parentheses and may hold anything, so count from its end.
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    let mut fields = rest.split(' ');
    if matches!(fields.next(), Some("Z" | "X")) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended"));
    }
    fields
        .nth(18)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat is not as expected"),
            )
        })
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
    /// A directory without a running init: it was killed, or `up` was.
    Dead,
}

impl Lab {
    /// Looks at `dir`.
    pub fn find(dir: &LabDir) -> io::Result<Self> {
        if !dir.exists() {
            return Ok(Lab::None);
        }
        match read_json::<Record>(&dir.record()) {
            Ok(record) if record.init.is_alive() => Ok(Lab::Alive(Box::new(record))),
            Ok(_) => Ok(Lab::Dead),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                Ok(Lab::Dead)
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
    fn a_torn_record_is_a_dead_lab() {
        let dir = tempfile::tempdir().unwrap();
        let lab = LabDir::at(dir.path());
        std::fs::write(lab.record(), "{\"request\":").unwrap();
        assert!(matches!(Lab::find(&lab).unwrap(), Lab::Dead));
        assert!(matches!(
            Lab::find(&LabDir::at(dir.path().join("no"))).unwrap(),
            Lab::None
        ));
    }
}
