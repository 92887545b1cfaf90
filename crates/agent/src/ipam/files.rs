//! The files of the leases.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podnet_cni::{Attachment, LEASES, PodReference, RELEASED};

use super::{Lease, LeaseError, LinksInKernel};

/// How long a new agent waits for the one before it to end.
const HAND_OVER: Duration = Duration::from_secs(5);

/// What a start finds.
pub(super) struct Found {
    pub(super) held: Vec<Lease>,
    /// Ended, and the link is still in the kernel.
    pub(super) released: Vec<Lease>,
}

/// The two directories. Locked for as long as this value lives.
pub(super) struct Directory {
    leases: PathBuf,
    released: PathBuf,
    _lock: File,
}

impl Directory {
    pub(super) fn open(state_dir: &Path) -> Result<Self, LeaseError> {
        let (leases, released) = (state_dir.join(LEASES), state_dir.join(RELEASED));
        for directory in [&leases, &released] {
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
            File::create(&aside)?.write_all(&bytes)?;
            fs::rename(&aside, &path)
        };
        write().map_err(|source| {
            drop(fs::remove_file(&aside));
            disk(&path, source)
        })
    }

    /// Removes a lease that never came to have a link.
    pub(super) fn remove(&self, attachment: &Attachment) -> Result<(), LeaseError> {
        let path = self.lease_path(attachment);
        gone_is_fine(fs::remove_file(&path)).map_err(|source| disk(&path, source))
    }

    /// Ends a lease. No error if somebody has done so before.
    pub(super) fn release(&self, attachment: &Attachment) -> Result<(), LeaseError> {
        let path = self.lease_path(attachment);
        gone_is_fine(fs::rename(&path, self.released_path(attachment))).map_err(|source| disk(&path, source))
    }

    /// Takes away the file of an ended lease, unless it is of a later lease of the same attachment.
    pub(super) fn forget(&self, lease: &Lease) {
        let path = self.released_path(&lease.attachment);
        if read(&path).is_some_and(|found| found.sequence != lease.sequence) {
            return;
        }
        if let Err(error) = gone_is_fine(fs::remove_file(&path)) {
            tracing::warn!(%error, path = %path.display(), "the file of an ended lease stays until the next start");
        }
    }

    /// The leases that have ended, by us or by a plugin.
    pub(super) fn notes(&self) -> Vec<Lease> {
        files(&self.released)
            .unwrap_or_default()
            .iter()
            .filter_map(|path| read(path))
            .collect()
    }

    /// Reads everything, and repairs what is torn.
    pub(super) fn load(&self, boot_id: &str, in_kernel: &LinksInKernel) -> Result<Found, LeaseError> {
        let mut found = Found {
            held: Vec::new(),
            released: Vec::new(),
        };
        for (directory, leases) in [
            (&self.leases, &mut found.held),
            (&self.released, &mut found.released),
        ] {
            for path in files(directory).map_err(|source| disk(directory, source))? {
                let Some(lease) = read(&path).or_else(|| repaired(&path, boot_id, in_kernel)) else {
                    discard(&path, "it is empty or torn, and no link of its name exists");
                    continue;
                };
                if in_kernel.contains_key(&lease.attachment.host_link()) {
                    leases.push(lease);
                } else if lease.boot_id != boot_id {
                    discard(&path, "it is of an earlier boot");
                } else {
                    discard(&path, "its link is gone");
                }
            }
        }
        Ok(found)
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

fn discard(path: &Path, why: &str) {
    tracing::info!(path = %path.display(), why, "a lease is over");
    if let Err(error) = gone_is_fine(fs::remove_file(path)) {
        tracing::warn!(%error, path = %path.display(), "cannot remove the file of a lease that is over");
    }
}

/// The leases' files of a directory; remains of interrupted writes are removed.
fn files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".new-") {
            // Only `load` meets these: `notes` reads the other directory.
            gone_is_fine(fs::remove_file(entry.path()))?;
        } else if name.contains(':') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Option<Lease> {
    let lease: Lease = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let name = path.file_name()?.to_str()?;
    (lease.attachment.file_name() == name && !lease.addresses.is_empty()).then_some(lease)
}

/// A lease whose content is lost, told again from its name and from the routes to its link.
fn repaired(path: &Path, boot_id: &str, in_kernel: &LinksInKernel) -> Option<Lease> {
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
        boot_id: boot_id.into(),
        sequence: 0,
    };
    tracing::warn!(path = %path.display(), ?addresses, "an empty or torn lease was repaired from the kernel's routes");
    let aside = path.with_file_name(".new-0");
    let rewrite = || -> io::Result<()> {
        fs::write(&aside, serde_json::to_vec(&lease)?)?;
        fs::rename(&aside, path)
    };
    if let Err(error) = rewrite() {
        tracing::warn!(%error, path = %path.display(), "cannot write the repaired lease; it is kept in memory");
    }
    Some(lease)
}
