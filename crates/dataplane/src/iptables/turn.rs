//! Whose turn it is to read and change what iptables has.
//!
//! A program that an agent starts outlives an agent that is killed, and may do what it was told after the next agent has
//! read what there is. So whoever reads in order to change has a locked file, which its programs inherit and keep until
//! they end: the next waits for all of them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::lock::LockFile;

/// The file's name in the directory that agents of one node share.
const FILE: &str = "iptables.lock";
/// After so long others get a turn, too: whoever asked tries again.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// Why one has no turn.
#[derive(Debug, thiserror::Error)]
pub enum TurnError {
    /// It is somebody else's, and stays so.
    #[error(
        "somebody else has {} for {} s already: another agent, or programs of iptables that one before has started and \
         that are still at work (`fuser -v` names them)",
        file.display(),
        PATIENCE.as_secs()
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
            match LockFile::take(path) {
                Ok(Some(lock)) => return Ok(Turn(Some(lock))),
                Ok(None) if Instant::now() > end => return Err(TurnError::Busy { file: path.clone() }),
                Ok(None) => thread::sleep(PAUSE),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Turn(None)),
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

/// A turn, for as long as it lives and programs that have its [`Turn::stdout`].
#[derive(Debug)]
pub(crate) struct Turn(Option<LockFile>);

impl Turn {
    /// For a program that prints nothing there.
    pub(crate) fn stdout(&self) -> io::Result<Stdio> {
        Ok(match &self.0 {
            Some(lock) => lock.share()?.into(),
            None => Stdio::null(),
        })
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
