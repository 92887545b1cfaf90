//! The machine's root, directory by directory.

use std::fs::{self, DirEntry, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use podnet_linux::mount;

use super::Scratch;

/// Mounted anew elsewhere, or of no use in a view.
const LEFT_OUT: [&str; 4] = ["proc", "sys", "dev", "lost+found"];
/// Empty at the start, as after a boot: what is there belongs to the machine's own services, and to labs.
const EMPTY: [(&str, u32); 2] = [("run", 0o755), ("tmp", 0o1777)];
/// How deep to look for directories that can be overlaid.
const MAX_DEPTH: usize = 3;
/// A directory with more children is shown read-only rather than by that many overlays.
const MAX_CHILDREN: usize = 128;

/// Fills the root of `scratch` with what the machine's root has.
pub(super) fn mirror(scratch: &Scratch) -> io::Result<()> {
    let root = scratch.root();
    for (name, mode) in EMPTY {
        fs::create_dir(root.join(name))?;
        fs::set_permissions(root.join(name), Permissions::from_mode(mode))?;
    }
    for entry in fs::read_dir("/")? {
        let entry = entry?;
        let name = entry.file_name();
        let taken = LEFT_OUT
            .iter()
            .chain(EMPTY.iter().map(|(name, _)| name))
            .any(|&other| name == other);
        if !taken {
            show(scratch, &entry, 1)?;
        }
    }
    Ok(())
}

fn show(scratch: &Scratch, entry: &DirEntry, depth: usize) -> io::Result<()> {
    let path = entry.path();
    let target = scratch.root().join(inside(&path));
    let kind = entry.file_type()?;
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(&path)?, target)
    } else if kind.is_dir() {
        directory(scratch, &path, &target, depth)
    } else if kind.is_file() {
        File::create(&target)?;
        mount::bind(&path, &target)?;
        mount::set_read_only_at(&target)
    } else {
        Ok(()) // a socket, a pipe or a device of the machine's own
    }
}

/// Overlays one directory; failing that, its children; failing that, shows it read-only; failing that, empty.
fn directory(scratch: &Scratch, path: &Path, target: &Path, depth: usize) -> io::Result<()> {
    let (upper, work) = (scratch.upper().join(inside(path)), scratch.work(path));
    fs::create_dir(target)?;
    same_mode(path, target)?;
    // Closed to us (another user's home): an overlay would only give errors.
    let Ok(children) = fs::read_dir(path) else {
        return Ok(());
    };
    fs::create_dir_all(&upper)?;
    same_mode(path, &upper)?;
    fs::create_dir_all(&work)?;
    if mount::overlay(path, &upper, &work, target).is_ok() {
        return Ok(());
    }
    let children: Vec<DirEntry> = children.take(MAX_CHILDREN + 1).collect::<io::Result<_>>()?;
    if depth < MAX_DEPTH && children.len() <= MAX_CHILDREN {
        return children
            .iter()
            .try_for_each(|child| show(scratch, child, depth + 1));
    }
    match mount::bind_recursive(path, target) {
        Ok(()) => mount::set_read_only_at(target),
        Err(_) => Ok(()),
    }
}

/// A path without its leading slash, for joining to another root.
pub(super) fn inside(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

/// Gives `to` the mode of `from`, and its owner where the kernel lets us.
pub(super) fn same_mode(from: &Path, to: &Path) -> io::Result<()> {
    let like: Metadata = fs::metadata(from)?;
    // In a user namespace of one user, everybody else's directories become that user's own.
    let owned = std::os::unix::fs::chown(to, Some(like.uid()), Some(like.gid()));
    drop(owned);
    fs::set_permissions(to, Permissions::from_mode(like.mode() & 0o7777))
}
