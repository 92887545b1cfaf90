//! Places in a root where something is mounted: found, or made, without ever leaving that root.

use std::fs::{self, File};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::host;

/// What stands at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file. A symlink there is followed.
    File,
    /// A file. A symlink there is replaced: `/etc/resolv.conf` is often one, to what a pod does not have.
    OwnFile,
}

impl Kind {
    /// The kind of what is at `source`, for mounting it elsewhere.
    pub fn of(source: &Path) -> io::Result<Kind> {
        let metadata = fs::metadata(source).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot mount {}: {error}", source.display()),
            )
        })?;
        Ok(if metadata.is_dir() {
            Kind::Directory
        } else {
            Kind::File
        })
    }
}

/// A path in a root, and what shall stand there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'path> {
    /// Absolute.
    pub path: &'path str,
    /// What is made there when it is missing.
    pub kind: Kind,
}

impl<'path> Place<'path> {
    /// A directory.
    pub fn directory(path: &'path str) -> Self {
        Place {
            path,
            kind: Kind::Directory,
        }
    }
}

/// Makes in an overlay's upper directory what the machine's root lacks of `place`.
///
/// Without root the directories of the machine belong to users that do not exist in the user namespace, and
/// nothing can be made in them through the overlay; what is above belongs to us.
pub(super) fn seed(upper: &Path, place: &Place<'_>) -> io::Result<()> {
    let mut existing = Path::new(place.path);
    let mut missing = Vec::new();
    while !existing.exists() {
        let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else {
            return Err(io::Error::other(format!("{:?} is no absolute path", place.path)));
        };
        missing.push(name);
        existing = parent;
    }
    if missing.is_empty() {
        return Ok(());
    }
    let real = fs::canonicalize(existing)?;
    let mut below = PathBuf::from("/");
    for component in real.components().skip(1) {
        below.push(component);
        let above = upper.join(host::inside(&below));
        if !above.exists() {
            fs::create_dir(&above)?;
            host::same_mode(&below, &above)?;
        }
    }
    let mut above = upper.join(host::inside(&real));
    let last = missing.len() - 1;
    for (index, name) in missing.into_iter().rev().enumerate() {
        above.push(name);
        match place.kind {
            _ if above.exists() => {}
            Kind::File | Kind::OwnFile if index == last => drop(File::create(&above)?),
            _ => fs::create_dir(&above)?,
        }
    }
    Ok(())
}

/// Opens `place` in `root`; makes it, and the directories above it, where they are missing.
pub(super) fn open(root: BorrowedFd<'_>, place: &Place<'_>) -> io::Result<OwnedFd> {
    if !place.path.starts_with('/')
        || Path::new(place.path)
            .components()
            .any(|part| part.as_os_str() == "..")
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not an absolute path without `..`",
        ));
    }
    open_or_make(root, Path::new(place.path), place.kind)
}

fn open_or_make(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    if kind == Kind::OwnFile {
        replace_symlink(root, path)?;
    }
    match resolve(root, path) {
        Err(Errno::NOENT) => {}
        found => return Ok(found?),
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::NOENT.into());
    };
    let above = open_or_make(root, above, Kind::Directory)?;
    match kind {
        Kind::Directory => rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755))?,
        Kind::File | Kind::OwnFile => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::openat(&above, name, flags, Mode::from_raw_mode(0o644))?;
        }
    }
    Ok(resolve(root, path)?)
}

fn replace_symlink(root: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let above = match resolve(root, above) {
        Err(Errno::NOENT) => return Ok(()),
        found => found?,
    };
    match rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
            Ok(rustix::fs::unlinkat(&above, name, AtFlags::empty())?)
        }
        _ => Ok(()),
    }
}

fn resolve(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), inside)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap().into();
        (dir, fd)
    }

    #[test]
    fn a_missing_place_is_made_with_the_directories_above_it() {
        let (dir, fd) = root();
        open(
            fd.as_fd(),
            &Place {
                path: "/a/b/c",
                kind: Kind::File,
            },
        )
        .unwrap();
        open(fd.as_fd(), &Place::directory("/a/d")).unwrap();
        assert!(dir.path().join("a/b/c").is_file());
        assert!(dir.path().join("a/d").is_dir());
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let (dir, fd) = root();
        fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("abs")).unwrap();
        std::os::unix::fs::symlink("../../../..", dir.path().join("up")).unwrap();
        open(fd.as_fd(), &Place::directory("/abs/made-by-podnet-test")).unwrap();
        open(fd.as_fd(), &Place::directory("/up/made-by-podnet-test")).unwrap();
        assert!(dir.path().join("etc/made-by-podnet-test").is_dir());
        assert!(dir.path().join("made-by-podnet-test").is_dir());
        assert!(open(fd.as_fd(), &Place::directory("/../x")).is_err());
        assert!(open(fd.as_fd(), &Place::directory("relative")).is_err());
    }

    #[test]
    fn a_dangling_link_is_replaced_by_a_file_of_our_own() {
        let (dir, fd) = root();
        std::os::unix::fs::symlink("/run/nothing", dir.path().join("resolv.conf")).unwrap();
        open(
            fd.as_fd(),
            &Place {
                path: "/resolv.conf",
                kind: Kind::OwnFile,
            },
        )
        .unwrap();
        assert!(
            fs::symlink_metadata(dir.path().join("resolv.conf"))
                .unwrap()
                .is_file()
        );
    }
}
