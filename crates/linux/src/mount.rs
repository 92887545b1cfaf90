//! Mounts: what a private mount namespace is furnished with.
//!
//! Errors name the operation and the place. Nothing here makes directories.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, unmount,
};

use crate::process;

/// Cuts the calling thread's mount namespace off from the one it was copied from: mounts made in either are
/// not seen in the other. The first thing to do in a new mount namespace.
pub fn make_private() -> io::Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    told(mount_change("/", flags), "make the mounts private of", "/")
}

/// A file system that programs and maps of BPF are pinned in, where one is to be seen at no path: it lives as long as
/// what is returned.
pub fn bpffs_unattached() -> io::Result<OwnedFd> {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
    let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    Ok(fsmount(
        context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

/// The same at `target`.
pub fn bpffs(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    told(
        rustix::mount::mount("bpf", target, "bpf", flags, c"mode=700"),
        "mount a bpffs at",
        target.display(),
    )
}

/// Whether `path` is in a file system that programs and maps of BPF are pinned in.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    /// Of include/uapi/linux/magic.h.
    const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
    Ok(rustix::fs::statfs(path)?.f_type as u64 & 0xffff_ffff == BPF_FS_MAGIC)
}

/// Shows `source` (a file or a directory, without mounts below it) at `target`.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    told(
        rustix::mount::mount_bind(source, target),
        &format!("bind {} to", source.display()),
        target.display(),
    )
}

/// Shows `source` and all mounts below it at `target`.
pub fn bind_recursive(source: &Path, target: &Path) -> io::Result<()> {
    let bound = rustix::mount::mount_bind_recursive(source, target);
    told(bound, &format!("bind {} to", source.display()), target.display())
}

/// A new, empty file system in memory. `mode` is that of its root.
pub fn tmpfs(target: &Path, mode: u32) -> io::Result<()> {
    let data = c_string(&format!("mode={mode:o}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    told(
        rustix::mount::mount("tmpfs", target, "tmpfs", flags, &*data),
        "mount a tmpfs at",
        target.display(),
    )
}

/// A tmpfs on which set-user-ID programs and device nodes work, as a root directory needs.
pub fn tmpfs_root(target: &Path) -> io::Result<()> {
    let made = rustix::mount::mount("tmpfs", target, "tmpfs", MountFlags::empty(), c"mode=755");
    told(made, "mount a tmpfs at", target.display())
}

/// The processes of the calling thread's PID namespace.
pub fn proc(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    told(
        rustix::mount::mount("proc", target, "proc", flags, None),
        "mount proc at",
        target.display(),
    )
}

/// The devices of the calling thread's network namespace.
pub fn sysfs(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    told(
        rustix::mount::mount("sysfs", target, "sysfs", flags, None),
        "mount sysfs at",
        target.display(),
    )
}

/// A new set of pseudo terminals.
pub fn devpts(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let mount = |data| rustix::mount::mount("devpts", target, "devpts", flags, Some(data));
    // The group tty does not exist in a user namespace of one user.
    let made = mount(c"newinstance,ptmxmode=0666,mode=0620,gid=5")
        .or_else(|_| mount(c"newinstance,ptmxmode=0666,mode=0620"));
    told(made, "mount devpts at", target.display())
}

/// The POSIX message queues of the calling thread's IPC namespace.
pub fn mqueue(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    told(
        rustix::mount::mount("mqueue", target, "mqueue", flags, None),
        "mount mqueue at",
        target.display(),
    )
}

/// `lower` at `target`, with changes going to `upper`. `work` is an empty directory beside `upper`.
///
/// In a user namespace the overlay keeps its marks in `user.*` attributes: it may not write `trusted.*`.
pub fn overlay(lower: &Path, upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let [lower, upper, work] = [lower, upper, work].map(|path| escape(&path.to_string_lossy()));
    let marks = if process::in_user_namespace() {
        ",userxattr"
    } else {
        ""
    };
    let data = c_string(&format!(
        "lowerdir={lower},upperdir={upper},workdir={work}{marks}"
    ))?;
    let made = rustix::mount::mount("overlay", target, "overlay", MountFlags::empty(), &*data);
    told(made, &format!("mount an overlay of {lower} at"), target.display())
}

/// A copy of the mount at `source` that is attached nowhere yet, with the mounts below it.
///
/// Take it before the root changes, attach it after: so neither path is looked up in the wrong root.
pub fn clone_tree(source: &Path) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    told(
        rustix::mount::open_tree(CWD, source, flags),
        "take the mount",
        source.display(),
    )
}

/// Attaches what [`clone_tree`] gave to the file or directory that `target` holds open.
pub fn attach(tree: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, c"", target, c"", flags)?)
}

/// Makes the mount that `mount` is the root of, and every mount below it, read-only.
pub fn set_read_only(mount: impl AsFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a constant C string, the attributes live on this stack frame and their size is given;
    // the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes the mount at `target`, and every mount below it, read-only.
pub fn set_read_only_at(target: &Path) -> io::Result<()> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let opened = rustix::fs::open(target, flags, rustix::fs::Mode::empty()).map_err(io::Error::from);
    told(opened.and_then(set_read_only), "make read-only", target.display())
}

/// Makes `new_root`, which must be a mount point, the root of the mount namespace and the working directory,
/// and lets go of the old root.
pub fn pivot_root(new_root: &Path) -> io::Result<()> {
    let pivoted = rustix::process::chdir(new_root)
        // With both the same, the old root ends up on top of the new one, and no directory is needed for it.
        .and_then(|()| rustix::process::pivot_root(".", "."))
        .and_then(|()| unmount(".", UnmountFlags::DETACH))
        .and_then(|()| rustix::process::chdir("/"));
    told(pivoted, "make the root", new_root.display())
}

/// Takes the mount at `target` out of the tree; it ends when nobody uses it any more.
pub fn detach(target: &Path) -> io::Result<()> {
    told(unmount(target, UnmountFlags::DETACH), "unmount", target.display())
}

/// Overlay's options are separated by commas, its layers by colons.
fn escape(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for c in path.chars() {
        if matches!(c, '\\' | ',' | ':') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

fn c_string(text: &str) -> io::Result<std::ffi::CString> {
    Ok(std::ffi::CString::new(text)?)
}

fn told<T>(result: Result<T, impl Into<io::Error>>, what: &str, place: impl Display) -> io::Result<T> {
    result.map_err(|error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("cannot {what} {place}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ns::Kind;

    /// In a mount namespace that ends with the thread.
    fn privately(work: impl FnOnce(&Path) + Send) {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                crate::ns::unshare(Kind::Mount.flag()).unwrap();
                make_private().unwrap();
                tmpfs_root(dir.path()).unwrap();
                work(dir.path());
            });
        });
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "a mount leaked"
        );
    }

    #[test]
    fn an_overlay_keeps_changes_out_of_its_lower_directory() {
        privately(|dir| {
            for name in ["lo,wer:1", "upper", "work", "merged"] {
                std::fs::create_dir(dir.join(name)).unwrap();
            }
            let [lower, merged] = ["lo,wer:1", "merged"].map(|name| dir.join(name));
            std::fs::write(lower.join("a"), "below").unwrap();
            overlay(&lower, &dir.join("upper"), &dir.join("work"), &merged).unwrap();
            std::fs::write(merged.join("a"), "above").unwrap();
            assert_eq!(std::fs::read_to_string(lower.join("a")).unwrap(), "below");
            assert_eq!(std::fs::read_to_string(dir.join("upper/a")).unwrap(), "above");
        });
    }

    #[test]
    fn a_cloned_tree_is_attached_elsewhere_and_read_only() {
        privately(|dir| {
            for name in ["from", "to"] {
                std::fs::create_dir(dir.join(name)).unwrap();
            }
            std::fs::write(dir.join("from/file"), "x").unwrap();
            let tree = clone_tree(&dir.join("from")).unwrap();
            set_read_only(&tree).unwrap();
            attach(&tree, std::fs::File::open(dir.join("to")).unwrap()).unwrap();
            assert_eq!(std::fs::read_to_string(dir.join("to/file")).unwrap(), "x");
            let refused = std::fs::write(dir.join("to/file"), "y").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
            std::fs::write(dir.join("from/file"), "y").unwrap();
        });
    }
}
