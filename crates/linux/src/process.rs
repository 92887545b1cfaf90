//! Processes: fork, identity, signals, ends.
//!
//! Everything here that changes the calling process is for processes of one thread, such as a pod's pause
//! process and the children it forks.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, WaitOptions};
use rustix::thread::{Gid, Uid};

/// Proof that the process had one thread when asked.
#[derive(Debug)]
pub struct SingleThreaded(());

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The process that forked, and the child's ID as it sees it.
    Parent(u32),
    /// The new process.
    Child,
}

impl SingleThreaded {
    /// Counts the process's threads; errs when there are more than this one.
    pub fn claim() -> io::Result<Self> {
        match std::fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(SingleThreaded(())),
            count => Err(io::Error::other(format!(
                "the process has {count} threads and must have one"
            ))),
        }
    }

    /// `fork(2)`. The child goes on as a copy of this process.
    pub fn fork(&self) -> io::Result<Fork> {
        // SAFETY: the process has one thread, so that no lock is held by a thread the child lacks, and the
        // child may do whatever the parent might.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(Fork::Child),
            child => Ok(Fork::Parent(child as u32)),
        }
    }
}

/// A process, without fear that its ID is given to another.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// The process with this ID in the calling process's PID namespace.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Pidfd(rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: all arguments are plain values, and the absent siginfo is a null pointer as the call allows.
        let result = unsafe {
            let no_info = std::ptr::null::<libc::siginfo_t>();
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                no_info,
                0,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Joins namespaces of the process, `CLONE_NEW*` flags together. `CLONE_NEWPID` is for children only.
    pub fn enter(&self, flags: libc::c_int) -> io::Result<()> {
        // SAFETY: setns takes a descriptor that we own and changes only kernel state of this thread.
        if unsafe { libc::setns(self.0.as_raw_fd(), flags) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The process's ID in the PID namespace whose /proc is mounted here, which may be an ancestor of the
    /// caller's. None when the process has ended or is not in it.
    pub fn id_in_proc(&self) -> io::Result<Option<u32>> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        let id = info.lines().find_map(|line| line.strip_prefix("Pid:"));
        Ok(id.and_then(|id| id.trim().parse().ok()).filter(|&id| id > 0))
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl End {
    /// The exit code a shell would show: 128 + signal when a signal ended it.
    pub fn code(self) -> i32 {
        match self {
            End::Exited(code) => code,
            End::Signaled(signal) => 128 + signal,
        }
    }

    /// The signal that ended it.
    pub fn signal(self) -> Option<i32> {
        match self {
            End::Exited(_) => None,
            End::Signaled(signal) => Some(signal),
        }
    }
}

/// Takes one ended child, whichever it is; None when none has ended.
pub fn reap() -> io::Result<Option<(u32, End)>> {
    take_child(WaitOptions::NOHANG)
}

/// Waits for one child to end, whichever it is; None when there is none.
pub fn wait_any() -> io::Result<Option<(u32, End)>> {
    take_child(WaitOptions::empty())
}

fn take_child(options: WaitOptions) -> io::Result<Option<(u32, End)>> {
    loop {
        match rustix::process::wait(options) {
            Ok(Some((pid, status))) => {
                let end = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => End::Exited(code),
                    (_, Some(signal)) => End::Signaled(signal),
                    _ => continue,
                };
                return Ok(Some((pid.as_raw_nonzero().get() as u32, end)));
            }
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for one child to end.
pub fn wait(child: u32) -> io::Result<End> {
    loop {
        match rustix::process::waitpid(Pid::from_raw(child as i32), WaitOptions::empty()) {
            Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => return Ok(End::Exited(code)),
                (_, Some(signal)) => return Ok(End::Signaled(signal)),
                _ => {}
            },
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends a signal to a process group by its leader's ID.
pub fn signal_group(leader: u32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes plain values.
    if unsafe { libc::kill(-(leader as i32), signal) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Kills every process in the caller's PID namespace and those below it but the caller, which must be the
/// namespace's PID 1: in any other process this would reach strangers.
pub fn kill_everyone() -> io::Result<()> {
    if std::process::id() != 1 || rustix::process::getppid().is_some() {
        return Err(io::Error::other(
            "only PID 1 of a PID namespace of its own may kill everyone",
        ));
    }
    // SAFETY: kill takes plain values.
    if unsafe { libc::kill(-1, libc::SIGKILL) } != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ESRCH) {
            Ok(())
        } else {
            Err(error)
        };
    }
    Ok(())
}

/// Signals that are read from a descriptor instead of interrupting the process.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks `signals` for the calling thread and opens a descriptor that is readable when one is pending.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        // SAFETY: the set lives on this stack frame and is initialised by sigemptyset before use; the descriptor
        // that signalfd returns is new and owned by nobody else.
        unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&raw mut set);
            for &signal in signals {
                libc::sigaddset(&raw mut set, signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(SignalFd(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The next pending signal.
    pub fn next(&self) -> io::Result<Option<i32>> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            // ssi_signo is the structure's first field.
            Ok(_) => Ok(info.first_chunk::<4>().map(|number| i32::from_ne_bytes(*number))),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Lets no signal be blocked, and the broken pipe kill: what a program expects when it is executed.
pub fn restore_signals() {
    // SAFETY: the set lives on this stack frame and is initialised before use; SIG_DFL is no function of ours.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Marks every descriptor from `first` on to be closed when a program is executed.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    let (last, flags) = (u32::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_uint);
    // SAFETY: the call only sets a flag on descriptors; none is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Executes the program at `path`, which is not looked up in PATH. Returns only with an error.
pub fn exec(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: path and strings are C strings that outlive the call; both lists end in a null pointer.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Starts a session without a terminal.
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Makes `terminal` the controlling terminal of the session that the caller leads.
pub fn control_terminal(terminal: impl AsFd) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(terminal)?)
}

/// Takes on a user, a group and further groups, for good.
///
/// In a user namespace of one user the further groups cannot be set and are left out.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    let groups: Vec<Gid> = groups.iter().map(|&group| Gid::from_raw(group)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) if in_user_namespace() => {}
        set => set?,
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Whether the process is in a user namespace that does not have all of the machine's users.
pub fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = [0, 0, u64::from(u32::MAX)];
    map.split_whitespace()
        .filter_map(|number| number.parse::<u64>().ok())
        .ne(whole)
}

/// Becomes root of the new user namespace that the caller is in, with its own user and group outside
/// (`uid`, `gid` as they were before) as the only ones.
pub fn map_root_to(uid: u32, gid: u32) -> io::Result<()> {
    // Without this a user could drop a group that keeps it out of something (user_namespaces(7)).
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Has the kernel kill this process when the thread that forked it ends.
///
/// Executing a set-user-ID program undoes it.
pub fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(
        rustix::process::Signal::KILL,
    ))?)
}

/// Has orphans among the descendants given to this process instead of to the namespace's PID 1.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(
        rustix::process::getpid(),
    ))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pidfd_knows_its_process_and_signals_it() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pidfd = Pidfd::open(child.id()).unwrap();
        assert_eq!(pidfd.id_in_proc().unwrap(), Some(child.id()));
        pidfd.signal(libc::SIGKILL).unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(pidfd.id_in_proc().unwrap(), None);
    }

    #[test]
    fn a_process_of_several_threads_is_not_taken_for_one_of_one() {
        assert!(
            SingleThreaded::claim().is_err(),
            "the test harness runs tests on threads"
        );
    }

    #[test]
    fn an_end_is_told_as_a_shell_does() {
        assert_eq!(End::Exited(3).code(), 3);
        assert_eq!(End::Signaled(9).code(), 137);
        assert_eq!(End::Signaled(9).signal(), Some(9));
    }
}
