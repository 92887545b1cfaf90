//! A file that one process at a time has locked, and that goes when it is let go.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The lock on a file. It ends with the last process that has the file open, which may be a child that inherited it.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    /// Which file is locked.
    locked: Identity,
    file: File,
}

/// Of another's file there is nothing to be locked here.
const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// Device and inode.
pub(crate) type Identity = (u64, u64);

impl LockFile {
    /// Takes it, unless somebody else has it.
    pub(crate) fn take(path: &Path) -> io::Result<Option<LockFile>> {
        loop {
            // Nobody else may open it: who can, can lock it.
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .custom_flags(NOFOLLOW)
                .open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let locked = identity(&file.metadata()?);
            // Else whoever had it before removed it meanwhile, and somebody may have made another.
            if at(path)? == Some(locked) {
                let path = path.to_owned();
                return Ok(Some(LockFile { path, locked, file }));
            }
        }
    }

    /// The file, for a child that is to have the lock, too. Whoever lets the lock go waits for such children first: the
    /// file is gone then, and the next to come makes another.
    pub(crate) fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // It is still locked, so that nobody else's file goes. One that stays is in nobody's way.
        if at(&self.path).is_ok_and(|there| there == Some(self.locked)) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(metadata: &std::fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// What file is there.
pub(crate) fn at(path: &Path) -> io::Result<Option<Identity>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(identity(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
