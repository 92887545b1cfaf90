//! Whose turn it is to read and change what iptables has.
//!
//! A program that an agent starts outlives an agent that is killed, and may do what it was told after the next agent has
//! read what there is. So whoever reads in order to change has a locked file, which its programs inherit and keep until
//! they end: the next waits for all of them.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

/// The file's name in the directory that agents of one node share.
const FILE: &str = "iptables.lock";
/// After so long those before are given up: it is longer than iptables' programs wait for each other and then work, at
/// ten thousand services.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// Why one has no turn.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// Those before do not end.
    #[error(
        "programs of iptables that an agent before this one has started are still at work after {} s: `fuser -v {}` \
         names them",
        PATIENCE.as_secs(),
        file.display()
    )]
    Busy {
        /// What they hold.
        file: PathBuf,
    },
    /// The file cannot be made or locked.
    #[error("cannot lock {}: {source}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Where turns are taken. Without a directory, or where it is not there yet, nobody has been before.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turns(Option<PathBuf>);

impl Turns {
    pub(crate) fn within(directory: &Path) -> Self {
        Turns(Some(directory.join(FILE)))
    }

    /// Waits for those before.
    pub(crate) fn take(&self) -> Result<Turn, TurnError> {
        let Some(path) = &self.0 else {
            return Ok(Turn(None));
        };
        let failed = |source| TurnError::File {
            file: path.clone(),
            source,
        };
        let end = Instant::now() + PATIENCE;
        loop {
            let file = match open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Turn(None)),
                other => other.map_err(failed)?,
            };
            match file.try_lock() {
                // Else it was removed by the one before, and the next has another of that name.
                Ok(()) if is_at(&file, path).map_err(failed)? => {
                    let path = path.clone();
                    return Ok(Turn(Some(Held { file, path })));
                }
                Ok(()) => {}
                Err(TryLockError::Error(source)) => return Err(failed(source)),
                Err(TryLockError::WouldBlock) if Instant::now() > end => {
                    return Err(TurnError::Busy { file: path.clone() });
                }
                Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
            }
        }
    }
}

/// Nobody else may lock it: who can open it could keep services from being changed.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let of = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => Ok(of(other?) == of(file.metadata()?)),
    }
}

/// A turn, for as long as it lives and programs that have its [`Turn::stdout`].
#[derive(Debug)]
pub(crate) struct Turn(Option<Held>);

#[derive(Debug)]
struct Held {
    file: File,
    path: PathBuf,
}

impl Turn {
    /// For a program that prints nothing there.
    pub(crate) fn stdout(&self) -> io::Result<Stdio> {
        Ok(match &self.0 {
            Some(held) => held.file.try_clone()?.into(),
            None => Stdio::null(),
        })
    }
}

impl Drop for Held {
    /// Leaves nothing. The lock is still held, so that nobody else's file goes.
    fn drop(&mut self) {
        // A file that stays is locked by the next like any other.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_at_a_time_has_it_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let (at_it, most) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _turn = Turns::within(directory.path()).take().unwrap();
                        most.fetch_max(at_it.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::sleep(Duration::from_micros(100));
                        at_it.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.into_inner(), 1);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn where_there_is_no_directory_nobody_is_before() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Turns::within(&directory.path().join("none")).take().is_ok());
        assert!(Turns::default().take().is_ok());
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(FILE)).unwrap();
        let error = Turns::within(directory.path()).take().unwrap_err().to_string();
        assert!(
            error.contains(FILE) && error.contains("Is a directory"),
            "{error}"
        );
    }
}
