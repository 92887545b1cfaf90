//! Applies one layer of an image to a root directory, as the OCI image layer specification says.
//!
//! Archives are not trusted: every path is resolved inside the root by the kernel (`RESOLVE_IN_ROOT`), `..` is
//! refused, and the last component is never followed.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::EntryType;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Applies the layer read from `reader` to `root`.
pub(super) fn apply(reader: &mut impl Read, root: &Path) -> io::Result<()> {
    let root = File::open(root)?;
    let mut layer = Layer {
        root: root.into(),
        made: HashSet::new(),
    };
    for entry in tar::Archive::new(reader).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        layer
            .entry(&path, &mut entry)
            .map_err(|error| at(&path, &error))?;
    }
    Ok(())
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

struct Layer {
    root: OwnedFd,
    /// What this layer made; an opaque mark hides only what came from below.
    made: HashSet<PathBuf>,
}

/// A directory inside the root, held by descriptor.
struct Parent(OwnedFd);

impl Parent {
    /// The path of `name` in it, through the descriptor: no symlink is on the way.
    fn join(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.0.as_raw_fd().to_string())
            .join(name)
    }
}

impl Layer {
    fn entry<R: Read>(&mut self, path: &Path, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let Some((dir, name)) = split(path)? else {
            return Ok(()); // the root itself
        };
        let parent = self.parent(&dir)?;
        if name.as_bytes() == OPAQUE {
            return self.clear(&dir, &parent);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return remove(&parent.join(OsStr::from_bytes(hidden)));
        }
        self.made.insert(dir.join(&name));
        self.made.insert(dir);
        let target = parent.join(&name);
        let is_dir = fs::symlink_metadata(&target).map(|m| m.is_dir());
        if let Ok(is_dir) = is_dir
            && !(is_dir && entry.header().entry_type().is_dir())
        {
            remove(&target)?;
        }
        self.make(&target, entry)
    }

    fn make<R: Read>(&self, target: &Path, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
        let mode = entry.header().mode()? & 0o7777;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory => match fs::create_dir(target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            },
            EntryType::Symlink => std::os::unix::fs::symlink(link(entry)?, target)?,
            EntryType::Link => return self.hard_link(&link(entry)?, target),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                if !make_node(target, kind, entry.header())? {
                    return Ok(());
                }
            }
            kind if kind.is_file() => {
                let mut file = File::options()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(target)?;
                io::copy(entry, &mut file)?;
            }
            _ => return Ok(()), // pax headers and the like
        }
        let (uid, gid) = (entry.header().uid()? as u32, entry.header().gid()? as u32);
        chown(target, uid, gid)?;
        if kind != EntryType::Symlink {
            // Without root nothing could be put into, or removed from, a directory closed to its owner.
            let own = if kind.is_dir() && !rustix::process::geteuid().is_root() {
                0o700
            } else {
                0
            };
            fs::set_permissions(target, Permissions::from_mode(mode | own))?;
        }
        set_mtime(target, entry.header().mtime().unwrap_or(0))
    }

    fn hard_link(&self, to: &Path, target: &Path) -> io::Result<()> {
        let (dir, name) = split(to)?.ok_or_else(|| io::Error::other("a hard link to the root"))?;
        fs::hard_link(self.parent(&dir)?.join(&name), target)
    }

    /// Opens a directory of the root; makes what is missing of it.
    fn parent(&self, dir: &Path) -> io::Result<Parent> {
        match self.open(dir) {
            Err(Errno::NOENT) => {}
            opened => return Ok(Parent(opened?)),
        }
        let Some((above, name)) = split(dir)? else {
            return Err(Errno::NOENT.into());
        };
        let above = self.parent(&above)?;
        fs::create_dir(above.join(&name))?;
        Ok(Parent(self.open(dir)?))
    }

    fn open(&self, dir: &Path) -> Result<OwnedFd, Errno> {
        let dir = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, dir, flags, Mode::empty(), resolve)
    }

    fn clear(&self, dir: &Path, parent: &Parent) -> io::Result<()> {
        for child in fs::read_dir(parent.join(OsStr::new(".")))? {
            let name = child?.file_name();
            if !self.made.contains(&dir.join(&name)) {
                remove(&parent.join(&name))?;
            }
        }
        Ok(())
    }
}

/// The directory and the name of an entry, without a leading `/` or `./`; None for the root itself.
fn split(path: &Path) -> io::Result<Option<(PathBuf, OsString)>> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            _ => return Err(io::Error::other("the path leads out of the image")),
        }
    }
    let Some(name) = clean.file_name().map(OsStr::to_owned) else {
        return Ok(None);
    };
    clean.pop();
    Ok(Some((clean, name)))
}

fn link<R: Read>(entry: &tar::Entry<'_, R>) -> io::Result<PathBuf> {
    let to = entry
        .link_name()?
        .ok_or_else(|| io::Error::other("a link without a target"))?;
    Ok(to.into_owned())
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// False where the kernel does not let us make devices: a container gets its own /dev anyway.
fn make_node(target: &Path, kind: EntryType, header: &tar::Header) -> io::Result<bool> {
    let file_type = match kind {
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = match kind {
        EntryType::Fifo => 0, // has none, and some archives leave the fields blank
        _ => rustix::fs::makedev(
            header.device_major()?.unwrap_or(0),
            header.device_minor()?.unwrap_or(0),
        ),
    };
    match rustix::fs::mknodat(CWD, target, file_type, Mode::from_raw_mode(0o600), device) {
        Err(Errno::PERM) => Ok(false),
        made => made.map(|()| true).map_err(io::Error::from),
    }
}

/// Without root, or in a user namespace of one user, everything belongs to that user.
fn chown(target: &Path, uid: u32, gid: u32) -> io::Result<()> {
    match std::os::unix::fs::lchown(target, Some(uid), Some(gid)) {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::PERM | Errno::INVAL)) => Ok(()),
        other => other,
    }
}

fn set_mtime(target: &Path, seconds: u64) -> io::Result<()> {
    let time = Timespec {
        tv_sec: seconds as i64,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        CWD,
        target,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}
