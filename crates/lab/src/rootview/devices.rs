//! /proc, /sys and /dev of a view.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use podnet_linux::mount;
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use super::{Kernel, RootView};

/// Character devices every program may expect: name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];
/// Parts of /proc that belong to the whole machine.
const OF_THE_MACHINE: [&str; 5] = ["sys", "sysrq-trigger", "irq", "bus", "fs"];

impl RootView {
    /// The processes of the caller's PID namespace.
    pub(crate) fn add_proc(&self, kernel: Kernel) -> io::Result<()> {
        let proc = self.directory("proc", 0o555)?;
        mount::proc(&proc)?;
        if kernel == Kernel::Writable {
            return Ok(());
        }
        for part in OF_THE_MACHINE
            .map(|part| proc.join(part))
            .iter()
            .filter(|part| part.exists())
        {
            mount::bind(part, part)?;
            mount::set_read_only_at(part)?;
        }
        Ok(())
    }

    /// The devices of the caller's network namespace; the machine's, read-only, where that is not allowed.
    pub(crate) fn add_sys(&self, kernel: Kernel) -> io::Result<()> {
        let sys = self.directory("sys", 0o555)?;
        let own = mount::sysfs(&sys);
        let shown = own.is_ok();
        own.or_else(|_| mount::bind_recursive(Path::new("/sys"), &sys))?;
        if kernel == Kernel::ReadOnly || !shown {
            mount::set_read_only_at(&sys)
        } else {
            Ok(())
        }
    }

    /// The machine's cgroups, where it has them: a node's agent attaches programs there.
    pub(super) fn add_cgroups(&self) {
        let cgroups = self.root.join("sys/fs/cgroup");
        if cgroups.is_dir() {
            // A node without them is one whose agent says what it lacks.
            drop(mount::bind_recursive(Path::new("/sys/fs/cgroup"), &cgroups));
        }
    }

    /// A place for pins of the node's own, where the kernel allows it: programs and maps go on there without the agent.
    pub(super) fn add_pins(&self) {
        let pins = self.root.join("sys/fs/bpf");
        if pins.is_dir() {
            // A node without it is one whose agent says what it lacks.
            drop(mount::bpffs(&pins));
        }
    }

    /// A minimal /dev. `shared_memory` is shown as /dev/shm; without it that is a tmpfs.
    pub(crate) fn add_dev(&self, shared_memory: Option<&Path>) -> io::Result<()> {
        let dev = self.directory("dev", 0o755)?;
        mount::tmpfs_root(&dev)?;
        for (name, major, minor) in DEVICES {
            device(&dev.join(name), &Path::new("/dev").join(name), major, minor)?;
        }
        if Path::new("/dev/net/tun").exists() {
            fs::create_dir(dev.join("net"))?;
            device(&dev.join("net/tun"), Path::new("/dev/net/tun"), 10, 200)?;
        }
        for (name, to) in LINKS {
            std::os::unix::fs::symlink(to, dev.join(name))?;
        }
        for name in ["pts", "shm", "mqueue"] {
            fs::create_dir(dev.join(name))?;
        }
        mount::devpts(&dev.join("pts"))?;
        match shared_memory {
            Some(shared) => mount::bind(shared, &dev.join("shm"))?,
            None => mount::tmpfs(&dev.join("shm"), 0o1777)?,
        }
        // Not every kernel has message queues, and few programs use them.
        drop(mount::mqueue(&dev.join("mqueue")));
        Ok(())
    }

    /// A directory at the top of the view for mounting on; an image's symlink there is not followed.
    pub(super) fn directory(&self, name: &str, mode: u32) -> io::Result<PathBuf> {
        let path = self.root.join(name);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return Ok(path),
            Ok(_) => {
                return Err(io::Error::other(format!(
                    "the image's /{name} is not a directory"
                )));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::create_dir(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(path)
    }
}

/// Makes a device, or shows the machine's where making one is not allowed.
fn device(target: &Path, machine: &Path, major: u32, minor: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o666);
    match rustix::fs::mknodat(
        CWD,
        target,
        FileType::CharacterDevice,
        mode,
        rustix::fs::makedev(major, minor),
    ) {
        Ok(()) => fs::set_permissions(target, Permissions::from_mode(0o666)),
        Err(Errno::PERM) => {
            File::create(target)?;
            mount::bind(machine, target)
        }
        Err(error) => Err(error.into()),
    }
}
