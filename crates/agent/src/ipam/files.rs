//! The files of the leases.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use podnet_cni::{Attachment, LEASES, PodReference, RELEASED};

use super::{COOL_DOWN, Disk, Lease, LeaseError, LinksInKernel};

/// Directory of the leases whose addresses rest, below the state directory.
const RESTING: &str = "resting";
/// Numbers from here on are no numbers of ours.
const LAST_NUMBER: u64 = 1 << 62;

/// How long a new agent waits for the one before it to end.
const HAND_OVER: Duration = Duration::from_secs(5);

/// What a start finds.
pub(super) struct Found {
    pub(super) held: Vec<Lease>,
    /// Ended, and the link is still in the kernel.
    pub(super) released: Vec<Lease>,
    /// Whose addresses rest, with the time since; the longest first.
    pub(super) resting: Vec<(Duration, Lease)>,
}

/// The directories. Locked for as long as this value lives.
pub(super) struct Directory {
    leases: PathBuf,
    released: PathBuf,
    resting: PathBuf,
    disk: Box<dyn Disk>,
    _lock: File,
}

impl Directory {
    pub(super) fn open(state_dir: &Path, disk_: Box<dyn Disk>) -> Result<Self, LeaseError> {
        let [leases, released, resting] = [LEASES, RELEASED, RESTING].map(|name| state_dir.join(name));
        for directory in [&leases, &released, &resting] {
            fs::create_dir_all(directory).map_err(|source| disk(directory, source))?;
        }
        let lock_path = state_dir.join("leases.lock");
        let lock = File::create(&lock_path).map_err(|source| disk(&lock_path, source))?;
        let begin = Instant::now();
        while let Err(error) = lock.try_lock() {
            match error {
                fs::TryLockError::WouldBlock if begin.elapsed() < HAND_OVER => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                fs::TryLockError::WouldBlock => return Err(LeaseError::Locked(state_dir.into())),
                fs::TryLockError::Error(source) => return Err(disk(&lock_path, source)),
            }
        }
        Ok(Directory {
            leases,
            released,
            resting,
            disk: disk_,
            _lock: lock,
        })
    }

    fn lease_path(&self, attachment: &Attachment) -> PathBuf {
        self.leases.join(attachment.file_name())
    }

    fn released_path(&self, attachment: &Attachment) -> PathBuf {
        self.released.join(attachment.file_name())
    }

    /// Writes a lease so that it is there whole or not at all.
    ///
    /// Nothing is synced: after a power failure the links are gone, and with them the leases.
    pub(super) fn write(&self, lease: &Lease) -> Result<(), LeaseError> {
        let path = self.lease_path(&lease.attachment);
        // Names of leases begin with a letter or digit.
        let aside = self.leases.join(format!(".new-{}", lease.sequence));
        let write = || -> io::Result<()> {
            let bytes = serde_json::to_vec(lease)?;
            self.disk.write(&aside, &bytes)?;
            self.disk.rename(&aside, &path)
        };
        write().map_err(|source| {
            drop(self.disk.remove(&aside));
            disk(&path, source)
        })
    }

    /// Removes a lease that never came to have a link.
    pub(super) fn remove(&self, attachment: &Attachment) -> Result<(), LeaseError> {
        let path = self.lease_path(attachment);
        gone_is_fine(self.disk.remove(&path)).map_err(|source| disk(&path, source))
    }

    /// Ends a lease. No error if somebody has done so before.
    pub(super) fn release(&self, attachment: &Attachment) -> Result<(), LeaseError> {
        let path = self.lease_path(attachment);
        gone_is_fine(self.disk.rename(&path, &self.released_path(attachment)))
            .map_err(|source| disk(&path, source))
    }

    /// Puts the file of an ended lease with those whose addresses rest, unless it is of a later lease of the same
    /// attachment. When it came there says since when they rest, for an agent that is started again meanwhile.
    pub(super) fn forget(&self, lease: &Lease) {
        let path = self.released_path(&lease.attachment);
        if read(&path).is_some_and(|found| found.sequence != lease.sequence) {
            return;
        }
        self.lay_to_rest(&path, lease.sequence);
    }

    fn lay_to_rest(&self, path: &Path, sequence: u64) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let to = self.resting.join(format!("{sequence}-{name}"));
        if let Err(error) = gone_is_fine(self.disk.rename(path, &to)) {
            tracing::warn!(%error, path = %path.display(), "the file of an ended lease stays until the next start");
        }
    }

    /// Takes away the files of leases whose addresses have rested.
    pub(super) fn tidy(&self) {
        for path in listed(&self.resting).unwrap_or_default() {
            if age(&path).is_none_or(|age| age >= COOL_DOWN) {
                drop(self.disk.remove(&path));
            }
        }
    }

    /// The leases that have ended, by us or by a plugin.
    pub(super) fn notes(&self) -> Vec<Lease> {
        let paths = listed(&self.released).unwrap_or_default();
        paths.iter().filter_map(|path| read(path)).collect()
    }

    /// Reads everything, and repairs what is torn.
    pub(super) fn load(&self, boot_id: &str, in_kernel: &LinksInKernel) -> Result<Found, LeaseError> {
        let mut held = Vec::new();
        let mut released = Vec::new();
        for (directory, leases) in [(&self.leases, &mut held), (&self.released, &mut released)] {
            for path in self.files(directory).map_err(|source| disk(directory, source))? {
                let sound = read(&path).filter(|lease| agrees(lease, in_kernel));
                let Some(lease) = sound.or_else(|| self.repaired(&path, boot_id, in_kernel)) else {
                    self.discard(&path, "it is empty or torn, and no link of its name exists");
                    continue;
                };
                if in_kernel.contains_key(&lease.attachment.host_link()) {
                    leases.push(lease);
                } else {
                    let why = match lease.boot_id == boot_id {
                        true => "its link is gone",
                        false => "it is of an earlier boot",
                    };
                    tracing::info!(path = %path.display(), why, "a lease is over");
                    self.lay_to_rest(&path, lease.sequence);
                }
            }
        }
        self.drop_older_twins(&mut held, &mut released);
        self.number(&mut held, &mut released);
        Ok(Found {
            held,
            released,
            resting: self.at_rest(),
        })
    }

    /// A note of a DEL that came while the attachment was added anew is of the earlier lease, whose link is gone: a link
    /// of that name is the later one's.
    fn drop_older_twins(&self, held: &mut [Lease], released: &mut Vec<Lease>) {
        released.retain(|ended| {
            let superseded = held.iter().any(|lease| lease.attachment == ended.attachment);
            if superseded {
                self.lay_to_rest(&self.released_path(&ended.attachment), ended.sequence);
            }
            !superseded
        });
    }

    /// Gives every lease a number of its own. Only what was repaired, or what somebody else wrote, lacks one.
    fn number(&self, held: &mut [Lease], released: &mut [Lease]) {
        let mut seen = BTreeSet::from([0]);
        let mut last = 0;
        let mut without = Vec::new();
        let places = held.iter_mut().map(|lease| (&self.leases, lease));
        for (directory, lease) in places.chain(released.iter_mut().map(|lease| (&self.released, lease))) {
            if lease.sequence < LAST_NUMBER && seen.insert(lease.sequence) {
                last = last.max(lease.sequence);
            } else {
                without.push((directory.join(lease.attachment.file_name()), lease));
            }
        }
        for (path, lease) in without {
            last += 1;
            lease.sequence = last;
            if let Err(error) = self.rewrite(&path, lease) {
                tracing::warn!(%error, path = %path.display(), "cannot write a repaired lease; it is kept in memory");
            }
        }
    }

    fn rewrite(&self, path: &Path, lease: &Lease) -> io::Result<()> {
        let aside = path.with_file_name(".new-0");
        self.disk.write(&aside, &serde_json::to_vec(lease)?)?;
        self.disk.rename(&aside, path)
    }

    fn at_rest(&self) -> Vec<(Duration, Lease)> {
        let mut found = Vec::new();
        for path in listed(&self.resting).unwrap_or_default() {
            let lease = fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok());
            match (age(&path), lease) {
                (Some(age), Some(lease)) if is_warm(age, &lease) => found.push((age, lease)),
                _ => drop(self.disk.remove(&path)),
            }
        }
        found.sort_by_key(|(age, _): &(Duration, Lease)| std::cmp::Reverse(*age));
        found
    }

    fn discard(&self, path: &Path, why: &str) {
        tracing::info!(path = %path.display(), why, "a lease is over");
        if let Err(error) = gone_is_fine(self.disk.remove(path)) {
            tracing::warn!(%error, path = %path.display(), "cannot remove the file of a lease that is over");
        }
    }

    /// The leases' files of a directory; remains of interrupted writes are removed.
    fn files(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = listed(directory)?;
        for path in &paths {
            if name_of(path).starts_with(".new-") {
                // Only `load` meets these: `notes` reads the other directory.
                gone_is_fine(self.disk.remove(path))?;
            }
        }
        paths.retain(|path| !name_of(path).starts_with('.') && name_of(path).contains(':'));
        Ok(paths)
    }

    /// A lease whose content is lost, told again from its name and from the routes to its link.
    fn repaired(&self, path: &Path, boot_id: &str, in_kernel: &LinksInKernel) -> Option<Lease> {
        let attachment = Attachment::from_file_name(path.file_name()?.to_str()?)?;
        let addresses: &Vec<IpAddr> = in_kernel
            .get(&attachment.host_link())
            .filter(|found| !found.is_empty())?;
        let lease = Lease {
            attachment,
            addresses: addresses.clone(),
            network: String::new(),
            pod: PodReference::default(),
            port_mappings: Vec::new(),
            bandwidth: podnet_cni::Bandwidth::default(),
            netns: 0,
            netns_cookie: 0,
            boot_id: boot_id.into(),
            sequence: 0,
        };
        tracing::warn!(path = %path.display(), ?addresses, "an empty or torn lease was repaired from the kernel's routes");
        Some(lease)
    }
}

fn disk(path: &Path, source: io::Error) -> LeaseError {
    LeaseError::Disk {
        path: path.into(),
        source,
    }
}

fn gone_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_warm(age: Duration, lease: &Lease) -> bool {
    age < COOL_DOWN && lease.sequence < LAST_NUMBER
}

fn name_of(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

fn listed(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// How long ago a file was put where it is. A clock that was set back makes it new.
fn age(path: &Path) -> Option<Duration> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let seconds = u64::try_from(metadata.ctime()).unwrap_or_default();
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or_default();
    let since = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    Some(SystemTime::now().duration_since(since).unwrap_or_default())
}

/// Whether a lease has all addresses that are routed to its link. Else its file is not what was written.
fn agrees(lease: &Lease, in_kernel: &LinksInKernel) -> bool {
    let routed = in_kernel.get(&lease.attachment.host_link());
    routed
        .into_iter()
        .flatten()
        .all(|address| lease.addresses.contains(address))
}

fn read(path: &Path) -> Option<Lease> {
    let lease: Lease = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let name = path.file_name()?.to_str()?;
    (lease.attachment.file_name() == name && !lease.addresses.is_empty()).then_some(lease)
}
