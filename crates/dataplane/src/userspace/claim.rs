//! Which process serves a proxy's socket: the one that holds the lock on the file beside it.
//!
//! A socket's file says nothing of who is behind it: one that is ending would remove the file of the one that follows.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::lock::{Identity, LockFile, at};

/// The right to serve a socket. It ends with the process that has it, and leaves no file behind when it is let go.
#[derive(Debug)]
pub(super) struct Claim {
    socket: PathBuf,
    /// One's own socket.
    bound: Option<Identity>,
    /// Let go after the socket.
    _lock: LockFile,
}

impl Claim {
    /// Takes the right to serve `socket`; nothing while somebody else has it.
    pub(super) fn take(socket: &Path) -> io::Result<Option<Claim>> {
        let lock = LockFile::take(&socket.with_extension("lock"))?;
        Ok(lock.map(|lock| Claim {
            socket: socket.to_owned(),
            bound: None,
            _lock: lock,
        }))
    }

    /// Serves the socket.
    pub(super) fn bind(&mut self) -> io::Result<UnixListener> {
        // Nobody is behind what is there.
        remove(&self.socket)?;
        let listener = UnixListener::bind(&self.socket)?;
        self.bound = at(&self.socket)?;
        std::fs::set_permissions(&self.socket, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// Removes one's own socket, or what a dead process left.
    pub(super) fn unbind(&mut self) -> io::Result<()> {
        match self.bound {
            Some(bound) if at(&self.socket)? != Some(bound) => Ok(()),
            _ => remove(&self.socket),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A file that stays is in nobody's way.
        let _ = self.unbind();
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn one_at_a_time_has_it_and_nothing_is_left_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("proxy.sock");
        let mut first = Claim::take(&socket).unwrap().unwrap();
        assert!(Claim::take(&socket).unwrap().is_none());
        let _listener = first.bind().unwrap();
        UnixStream::connect(&socket).unwrap();
        drop(first);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        assert!(Claim::take(&socket).unwrap().is_some());
    }

    #[test]
    fn what_a_dead_one_left_is_in_nobodys_way_and_what_is_anothers_stays() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("proxy.sock");
        drop(UnixListener::bind(&socket).unwrap());
        std::fs::write(socket.with_extension("lock"), "").unwrap();
        let mut claim = Claim::take(&socket).unwrap().unwrap();
        let _dead = claim.bind().unwrap();
        // Somebody who does not ask for the right.
        std::fs::remove_file(&socket).unwrap();
        let _other = UnixListener::bind(&socket).unwrap();
        drop(claim);
        UnixStream::connect(&socket).unwrap();
        assert!(!socket.with_extension("lock").exists());
    }
}
