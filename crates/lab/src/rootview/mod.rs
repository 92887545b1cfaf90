//! Root file systems for nodes and containers, built inside a private mount namespace.
//!
//! A view of the machine's root cannot be one overlay of `/`: in a user namespace the kernel refuses a lower
//! directory that has mounts below it. So each top-level directory gets an overlay of its own, and where even
//! that has mounts below it, its children do. Changes go to a tmpfs that ends with the mount namespace:
//! nothing is left to clean up, and no upper directory lies inside its own lower one.
//!
//! `/run` and `/tmp` start empty; `/proc`, `/sys` and `/dev` are new. Mounts below a top-level directory of the
//! machine are not part of the view when the directory itself could be overlaid.

mod devices;
mod host;
mod place;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use podnet_linux::mount;
use rustix::fs::{Mode, OFlags};

pub use place::{Kind, Place};

/// A root file system under construction. See the module's text.
#[derive(Debug)]
pub struct RootView {
    root: PathBuf,
    fd: OwnedFd,
}

impl RootView {
    /// The machine's root, complete with `/proc`, `/sys` and `/dev` of the calling process's namespaces: what a
    /// node sees.
    ///
    /// To be called by a process of one thread in a new mount namespace, after [`mount::make_private`]. A tmpfs
    /// is mounted on the directory `dir`. `places` are paths that must exist in the view for [`RootView::bind`].
    pub fn build(dir: &Path, places: &[Place<'_>]) -> io::Result<RootView> {
        let view = Self::of_machine(dir, places)?;
        view.add_proc(Kernel::Writable)?;
        view.add_sys(Kernel::Writable)?;
        view.add_cgroups();
        view.add_pins();
        view.add_dev(None)?;
        Ok(view)
    }

    /// The machine's root without `/proc`, `/sys` and `/dev`.
    pub(crate) fn of_machine(dir: &Path, places: &[Place<'_>]) -> io::Result<RootView> {
        let scratch = Scratch::mount(dir)?;
        for place in places {
            place::seed(&scratch.upper(), place)?;
        }
        mount::bind(&scratch.root(), &scratch.root())?;
        host::mirror(&scratch)?;
        Self::open(scratch.root())
    }

    /// An unpacked image without `/proc`, `/sys` and `/dev`.
    pub(crate) fn of_image(dir: &Path, image: &Path) -> io::Result<RootView> {
        let scratch = Scratch::mount(dir)?;
        let (upper, work) = (scratch.upper(), scratch.work(Path::new("image")));
        fs::create_dir_all(&work)?;
        host::same_mode(image, &upper)?;
        mount::overlay(image, &upper, &work, &scratch.root())?;
        Self::open(scratch.root())
    }

    fn open(root: PathBuf) -> io::Result<RootView> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&root, flags, Mode::empty())?;
        Ok(RootView { root, fd })
    }

    /// Where the view is before it is entered.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Shows a file or directory of the machine at `target` in the view, with all mounts below it.
    pub fn bind(&self, source: &Path, target: &str) -> io::Result<()> {
        let kind = Kind::of(source)?;
        self.attach(&mount::clone_tree(source)?, &Place { path: target, kind })
    }

    /// Attaches a mount that was taken with [`mount::clone_tree`]; the place is made when it is missing.
    pub fn attach(&self, tree: impl AsFd, target: &Place<'_>) -> io::Result<()> {
        let at = self.place(target)?;
        mount::attach(tree, at).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput => {
                    ": are you trying to mount a directory onto a file (or vice-versa)?"
                }
                _ => "",
            };
            io::Error::new(
                error.kind(),
                format!("cannot mount at {:?}: {error}{hint}", target.path),
            )
        })
    }

    /// Opens a file or directory of the view for mounting over it, and makes it first where it is missing.
    pub(crate) fn place(&self, target: &Place<'_>) -> io::Result<OwnedFd> {
        place::open(self.fd.as_fd(), target).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    " (the directory belongs to another user of this machine, and the lab runs without root)"
                }
                _ => "",
            };
            io::Error::new(
                error.kind(),
                format!("cannot make {:?} in the root: {error}{hint}", target.path),
            )
        })
    }

    /// Makes everything that is in the view so far read-only.
    pub(crate) fn set_read_only(&self) -> io::Result<()> {
        // Their mount points are to be made while that is possible.
        for name in ["proc", "sys", "dev"] {
            self.directory(name, 0o755)?;
        }
        mount::set_read_only_at(&self.root)
    }

    /// Makes the view the root of the mount namespace. The machine's mounts are gone from it afterwards.
    pub fn enter(self) -> io::Result<()> {
        mount::pivot_root(&self.root)
    }
}

/// Whether the kernel's settings can be changed through the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    Writable,
    ReadOnly,
}

/// The tmpfs that holds what is changed and, for the machine's root, the root directory itself.
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn mount(dir: &Path) -> io::Result<Scratch> {
        mount::tmpfs_root(dir)?;
        let scratch = Scratch { dir: dir.to_owned() };
        for made in [scratch.upper(), scratch.root()] {
            fs::create_dir(made)?;
        }
        Ok(scratch)
    }

    fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// An overlay's work directory, which it shares with no other.
    fn work(&self, of: &Path) -> PathBuf {
        self.dir
            .join("work")
            .join(of.to_string_lossy().trim_start_matches('/').replace('/', "\u{1}"))
    }
}
