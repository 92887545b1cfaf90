//! The pause process: holds a pod's namespaces, and is the parent of everything that runs in the pod.
//!
//! `podnet pause` forks: the child is PID 1 of a new PID namespace and stays; the parent waits until it is
//! ready, and ends. All containers live in that PID namespace or in one below it, so when pause ends, however
//! it ends, the kernel ends them, and their mount namespaces with all mounts.
//!
//! The process has one thread and one poll loop ([`server`]): fork is only then safe.

mod container;
mod launch;
mod log;
mod output;
mod program;
mod server;

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use miette::{Context, IntoDiagnostic, miette};
use podnet_linux::netlink::{LinkChange, Netlink};
use podnet_linux::ns::{self, Kind};
use podnet_linux::process::{self, Fork, SignalFd, SingleThreaded};
use podnet_linux::sysctl;
use rustix::fs::Mode;

use super::spec::SandboxSpec;
use super::wire;

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The sandbox's private directory, with its specification
    #[arg(long)]
    dir: PathBuf,
}

/// What pause says on its pipe when it serves.
const READY: &[u8] = b"ready";

/// Starts the process that stays; returns when it is ready.
pub fn run(args: Args) -> miette::Result<()> {
    let json = fs::read(args.dir.join(wire::SPEC))
        .into_diagnostic()
        .wrap_err_with(|| {
            format!(
                "cannot read the sandbox's specification in {}",
                args.dir.display()
            )
        })?;
    let spec: SandboxSpec = serde_json::from_slice(&json).into_diagnostic()?;
    let alone = SingleThreaded::claim().into_diagnostic()?;
    // Nothing that the runtime holds open may be held by a pod that outlives it.
    process::close_on_exec_from(3).into_diagnostic()?;
    let (mut ready, tell) = io::pipe().into_diagnostic()?;
    ns::unshare(Kind::Pid.flag())
        .into_diagnostic()
        .wrap_err("cannot make a PID namespace for the pod")?;
    match alone.fork().into_diagnostic()? {
        Fork::Child => {
            drop(ready);
            hold(&spec, alone, tell)
        }
        Fork::Parent(_) => {
            drop(tell);
            let mut told = Vec::new();
            ready.read_to_end(&mut told).into_diagnostic()?;
            match told.as_slice() {
                READY => Ok(()),
                b"" => Err(miette!("it was killed before it was ready")),
                why => Err(miette!("{}", String::from_utf8_lossy(why))),
            }
        }
    }
}

/// PID 1 of the pod: never returns, or the whole program would go on twice.
fn hold(spec: &SandboxSpec, alone: SingleThreaded, mut tell: io::PipeWriter) -> ! {
    let sandbox = match prepare(spec) {
        Ok(listener) => server::Server::new(spec, listener, alone),
        Err(error) => Err(error),
    };
    let mut server = match sandbox {
        Ok(server) => server,
        Err(error) => {
            drop(tell.write_all(error.to_string().as_bytes()));
            std::process::exit(1)
        }
    };
    if tell.write_all(READY).is_err() {
        std::process::exit(1); // whoever asked for this pod is gone
    }
    drop(tell);
    match server.serve() {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("pause: {error}");
            std::process::exit(1)
        }
    }
}

fn prepare(spec: &SandboxSpec) -> io::Result<UnixListener> {
    detach(&spec.dir)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let of_node = if spec.host_network {
        0
    } else {
        Kind::Net.flag() | Kind::Uts.flag()
    };
    ns::unshare(Kind::Ipc.flag() | of_node).map_err(|error| step("make the pod's namespaces", error))?;
    if !spec.host_network {
        furnish_network(spec)?;
    }
    for (name, value) in &spec.sysctls {
        sysctl::set(&name.replace('.', "/"), value).map_err(io::Error::other)?;
    }
    for (name, mode) in [("shm", 0o1777), ("last-words", 0o755), ("root", 0o755)] {
        let dir = spec.dir.join(name);
        fs::create_dir_all(&dir)?;
        fs::set_permissions(dir, Permissions::from_mode(mode))?;
    }
    listen(&spec.dir)
}

fn furnish_network(spec: &SandboxSpec) -> io::Result<()> {
    rustix::system::sethostname(spec.hostname.as_bytes()).map_err(|error| step("set the hostname", error))?;
    let up = LinkChange::named("lo").up(true).apply();
    Netlink::open()
        .and_then(|mut netlink| netlink.request(up))
        .map_err(io::Error::other)?;
    // As containerd does for pods: ping and low ports need no capability inside a network of one's own. Kernels
    // without one of the protocols lack the setting.
    let groups = if process::in_user_namespace() {
        "0 0"
    } else {
        "0 2147483647"
    };
    drop(sysctl::set("net/ipv4/ping_group_range", groups));
    drop(sysctl::set("net/ipv4/ip_unprivileged_port_start", "0"));
    Ok(())
}

/// Away from the session and the streams of whoever started this.
fn detach(dir: &Path) -> io::Result<()> {
    process::new_session()?;
    let null = File::open("/dev/null")?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("pause.log"))?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&log)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}

/// Listens in the sandbox's directory, by a name that is short however deep the directory lies.
fn listen(dir: &Path) -> io::Result<UnixListener> {
    std::env::set_current_dir(dir)?;
    match fs::remove_file(wire::SOCKET) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(wire::SOCKET).map_err(|error| step("listen on its socket", error))?;
    listener.set_nonblocking(true)?;
    // A working directory would keep its file system from being unmounted.
    std::env::set_current_dir("/")?;
    Ok(listener)
}

fn step(what: &str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("cannot {what}: {error}"))
}

/// The signals that the server reads instead of being interrupted by them.
fn signals() -> io::Result<SignalFd> {
    SignalFd::new(&[libc_signals::CHILD, libc_signals::TERM, libc_signals::INT])
}

/// Numbers of signals, for a crate that does not call libc.
mod libc_signals {
    use rustix::process::Signal;

    pub(super) const CHILD: i32 = Signal::CHILD.as_raw();
    pub(super) const TERM: i32 = Signal::TERM.as_raw();
    pub(super) const INT: i32 = Signal::INT.as_raw();
    pub(super) const KILL: i32 = Signal::KILL.as_raw();
}
