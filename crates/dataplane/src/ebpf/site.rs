//! Where a node's programs are.

use std::fs;
use std::path::{Path, PathBuf};

use podnet_linux::{cgroup, mount};

use super::{EbpfError, Site};

/// What everything of ours is below, in the file system of pins.
const DIRECTORY: &str = "podnet";
/// What all that is at links is below, in that directory.
pub(super) const PATH: &str = "path";

/// The number of the hierarchy's own root; in a control group namespace what is mounted as root has another.
const ROOT: u64 = 1;

impl Site {
    /// Where hooks are attached.
    pub(super) fn group(&self) -> Result<PathBuf, EbpfError> {
        if let Some(group) = &self.cgroup {
            return Ok(group.clone());
        }
        let root = cgroup::root().map_err(EbpfError::at(Path::new("/proc/self/mountinfo")))?;
        let root = root.ok_or(EbpfError::NoGroups)?;
        match cgroup::id(&root).map_err(EbpfError::at(&root))? {
            ROOT => Ok(root),
            _ => Err(EbpfError::NotTheRoot(root)),
        }
    }

    /// Below which everything is pinned, which must be in a file system for that.
    pub(super) fn directory(&self) -> Result<PathBuf, EbpfError> {
        match mount::is_bpffs(&self.bpffs) {
            Ok(true) => Ok(self.bpffs.join(DIRECTORY)),
            Ok(false) => Err(EbpfError::NoPins(self.bpffs.clone())),
            Err(error) => Err(EbpfError::at(&self.bpffs)(error)),
        }
    }

    /// What there is of ours.
    pub(super) fn present(&self) -> Option<PathBuf> {
        let directory = self.directory().ok()?;
        directory.exists().then_some(directory)
    }

    /// Detaches and removes everything; says where it was.
    pub(super) fn remove(&self) -> Result<Option<PathBuf>, EbpfError> {
        let Some(directory) = self.present() else {
            return Ok(None);
        };
        fs::remove_dir_all(&directory).map_err(EbpfError::at(&directory))?;
        Ok(Some(directory))
    }
}
