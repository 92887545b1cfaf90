//! Namespaces as file descriptors: open them, make them, run code in them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The kinds of namespace podnet uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// User IDs and capabilities.
    User,
    /// Mounts.
    Mount,
    /// Process IDs.
    Pid,
    /// Links, addresses, routes, firewall, sockets.
    Net,
    /// Hostname.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
}

impl Kind {
    /// The name under `/proc/PID/ns`.
    pub fn proc_name(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Mount => "mnt",
            Kind::Pid => "pid",
            Kind::Net => "net",
            Kind::Uts => "uts",
            Kind::Ipc => "ipc",
        }
    }

    /// The `CLONE_NEW*` flag.
    pub fn flag(self) -> libc::c_int {
        match self {
            Kind::User => libc::CLONE_NEWUSER,
            Kind::Mount => libc::CLONE_NEWNS,
            Kind::Pid => libc::CLONE_NEWPID,
            Kind::Net => libc::CLONE_NEWNET,
            Kind::Uts => libc::CLONE_NEWUTS,
            Kind::Ipc => libc::CLONE_NEWIPC,
        }
    }
}

/// An open namespace. It lives at least as long as this value.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    /// Opens a namespace file, such as `/proc/PID/ns/net` or one under `/run/netns`.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Namespace {
            fd: File::open(path)?.into(),
        })
    }

    /// The namespace of `kind` that the calling thread is in.
    pub fn current(kind: Kind) -> io::Result<Self> {
        Self::open(format!("/proc/thread-self/ns/{}", kind.proc_name()))
    }

    /// The namespace of `kind` that process `pid` is in, as this process's /proc sees it.
    pub fn of_pid(pid: u32, kind: Kind) -> io::Result<Self> {
        Self::open(format!("/proc/{pid}/ns/{}", kind.proc_name()))
    }

    /// A new namespace of `kind`, made by a thread that ends at once.
    ///
    /// Only for kinds that one thread may unshare alone: [`Kind::Net`], [`Kind::Uts`], [`Kind::Ipc`],
    /// [`Kind::Mount`].
    pub fn create(kind: Kind) -> io::Result<Self> {
        on_own_thread(move || {
            unshare(kind.flag())?;
            Self::current(kind)
        })?
    }

    /// Moves the calling thread into this namespace.
    ///
    /// The move is per thread (and for users and mounts needs a process of one thread): never call it on a
    /// worker of an async runtime. See [`Namespace::run`].
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: setns takes a descriptor that we own and changes only kernel state of this thread.
        if unsafe { libc::setns(self.fd.as_raw_fd(), 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Runs `work` on a thread of its own inside this namespace. Sockets opened there stay there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_own_thread(|| {
            self.enter()?;
            Ok(work())
        })?
    }

    /// The cookie of a network namespace; see [`net_cookie`].
    pub fn cookie(&self) -> io::Result<u64> {
        self.run(net_cookie)?
    }

    /// The inode number: two descriptors of one namespace have the same.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.fd)?.st_ino)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Namespace {
    fn from(fd: OwnedFd) -> Self {
        Namespace { fd }
    }
}

impl From<Namespace> for OwnedFd {
    fn from(namespace: Namespace) -> Self {
        namespace.fd
    }
}

/// The cookie of the network namespace that the calling thread is in: a number that no other has until the machine starts
/// again. Needs Linux 5.14.
pub fn net_cookie() -> io::Result<u64> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option's value is a u64 on this stack frame, and its size is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// Of include/uapi/asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `unshare(2)` for the calling thread, with the `CLONE_NEW*` flags given.
pub fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: unshare takes flags by value and changes only kernel state of this thread.
    if unsafe { libc::unshare(flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Runs `work` on a new thread and waits for it; what it does to its namespaces ends with it.
pub fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("namespace".into())
            .spawn_scoped(scope, work)?
            .join()
            .map_err(|_| io::Error::other("the thread in the namespace panicked"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_is_another_one_and_the_caller_stays_where_it_was() {
        let before = Namespace::current(Kind::Net).unwrap().inode().unwrap();
        let made = Namespace::create(Kind::Net).unwrap();
        assert_ne!(made.inode().unwrap(), before);
        let inside = made
            .run(|| Namespace::current(Kind::Net).unwrap().inode().unwrap())
            .unwrap();
        assert_eq!(inside, made.inode().unwrap());
        assert_eq!(Namespace::current(Kind::Net).unwrap().inode().unwrap(), before);
    }
}
