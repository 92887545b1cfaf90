//! The child's side: from a fork of pause to the program.
//!
//! Both functions run in a forked child and end in `exec`. What goes wrong before that is written to the
//! report, a pipe that closes when the program is executed; pause hands it on.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use podnet_linux::ns::{self, Kind as NamespaceKind};
use podnet_linux::{mount, process};
use rustix::fs::{FileType, Mode};

use super::program::{self, Environment, User};
use crate::image::{ECHO_PROGRAM, ImageRef};
use crate::rootview::{Kernel, Kind, Place, RootView};
use crate::sandbox::spec::ContainerSpec;

/// Standard streams of a child.
#[derive(Debug)]
pub(super) struct Stdio {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    /// They are a terminal, to be the controlling one.
    pub(super) tty: bool,
}

/// A container's first process, as far as it is known before the fork.
pub(super) struct Container<'spec> {
    pub(super) spec: &'spec ContainerSpec,
    pub(super) command: Vec<String>,
    pub(super) env: Environment,
    /// The sandbox's directory.
    pub(super) dir: &'spec Path,
    /// File for the termination message.
    pub(super) last_words: PathBuf,
}

/// A further process in a container.
pub(super) struct Further<'spec> {
    pub(super) spec: &'spec ContainerSpec,
    pub(super) command: Vec<String>,
    pub(super) env: Environment,
    /// The container's first process.
    pub(super) first: &'spec process::Pidfd,
}

/// Becomes a container's first process.
pub(super) fn container(container: Container<'_>, stdio: Stdio, report: File) -> ! {
    let outcome = take_streams(&stdio)
        .map_err(|error| format!("cannot take on the standard streams: {error}"))
        .and_then(|()| make_root(&container).map_err(|error| format!("error during container init: {error}")))
        .and_then(|()| execute(container.spec, &container.command, container.env, &stdio));
    give_up(outcome, report)
}

/// Becomes a further process in a container.
pub(super) fn further(further: Further<'_>, stdio: Stdio, report: File) -> ! {
    let outcome = take_streams(&stdio)
        // The PID namespace was entered before the fork; this one moves root and working directory too.
        .and_then(|()| further.first.enter(NamespaceKind::Mount.flag()))
        .map_err(|error| format!("cannot enter the container: {error}"))
        .and_then(|()| execute(further.spec, &further.command, further.env, &stdio));
    give_up(outcome, report)
}

fn give_up(outcome: Result<std::convert::Infallible, String>, mut report: File) -> ! {
    let Err(why) = outcome;
    // Nobody is left to be told when the pipe is broken too.
    drop(report.write_all(why.as_bytes()));
    std::process::exit(127)
}

fn take_streams(stdio: &Stdio) -> io::Result<()> {
    process::new_session()?;
    rustix::stdio::dup2_stdin(&stdio.stdin)?;
    rustix::stdio::dup2_stdout(&stdio.stdout)?;
    rustix::stdio::dup2_stderr(&stdio.stderr)?;
    if stdio.tty {
        process::control_terminal(rustix::stdio::stdin())
    } else {
        Ok(())
    }
}

/// A mount taken from outside, and where it goes.
struct Volume {
    tree: OwnedFd,
    target: String,
    kind: Kind,
}

fn make_root(container: &Container<'_>) -> io::Result<()> {
    let spec = container.spec;
    ns::unshare(NamespaceKind::Mount.flag())?;
    mount::make_private()?;
    rustix::process::umask(Mode::empty());
    let mut volumes = take_volumes(container)?;
    let view = view(container, &volumes)?;
    volumes.extend(files(container)?);
    // Parents before what is mounted inside them.
    volumes.sort_by_key(|volume| Path::new(&volume.target).components().count());
    for volume in &volumes {
        view.place(&Place {
            path: &volume.target,
            kind: volume.kind,
        })?;
    }
    if spec.read_only_root {
        view.set_read_only()?;
    }
    let kernel = if spec.privileged {
        Kernel::Writable
    } else {
        Kernel::ReadOnly
    };
    view.add_proc(kernel)?;
    view.add_sys(kernel)?;
    view.add_dev(Some(&container.dir.join("shm")))?;
    for volume in &volumes {
        view.attach(
            &volume.tree,
            &Place {
                path: &volume.target,
                kind: volume.kind,
            },
        )?;
    }
    view.enter()
}

fn view(container: &Container<'_>, volumes: &[Volume]) -> io::Result<RootView> {
    let scratch = container.dir.join("root");
    if let Some(image) = &container.spec.image.root {
        return RootView::of_image(&scratch, image);
    }
    let own = container.spec.files.iter().map(|(path, _)| Place {
        path,
        kind: Kind::OwnFile,
    });
    let places = volumes.iter().map(|volume| Place {
        path: &volume.target,
        kind: volume.kind,
    });
    RootView::of_machine(&scratch, &places.chain(own).collect::<Vec<_>>())
}

fn take_volumes(container: &Container<'_>) -> io::Result<Vec<Volume>> {
    let mut volumes = Vec::new();
    for mount in &container.spec.mounts {
        volumes.push(take(&mount.source, &mount.target, mount.read_only)?);
    }
    if container.spec.image.reference == ImageRef::Echo {
        volumes.push(take(&std::env::current_exe()?, ECHO_PROGRAM, true)?);
    }
    if let Some(path) = &container.spec.termination_message_path {
        volumes.push(take(&container.last_words, path, false)?);
    }
    Ok(volumes)
}

/// /etc/hosts and its like: files of this container's own, beside its root.
fn files(container: &Container<'_>) -> io::Result<Vec<Volume>> {
    let dir = container.dir.join("root/files");
    fs::create_dir(&dir)?;
    let mut files = Vec::new();
    for (index, (target, contents)) in container.spec.files.iter().enumerate() {
        let file = dir.join(index.to_string());
        fs::write(&file, contents)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        files.push(Volume {
            kind: Kind::OwnFile,
            ..take(&file, target, false)?
        });
    }
    Ok(files)
}

fn take(source: &Path, target: &str, read_only: bool) -> io::Result<Volume> {
    let kind = Kind::of(source)?;
    let tree = mount::clone_tree(source)?;
    if read_only {
        mount::set_read_only(&tree)?;
    }
    Ok(Volume {
        tree,
        target: target.to_owned(),
        kind,
    })
}

/// From inside the container: directory, user, program.
fn execute(
    spec: &ContainerSpec,
    command: &[String],
    mut env: Environment,
    stdio: &Stdio,
) -> Result<std::convert::Infallible, String> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    change_directory(spec)?;
    let user = program::user(spec, Path::new("/etc"))?;
    become_user(&user, stdio)?;
    env.entry("HOME".into()).or_insert(user.home);
    let found = program::find(&command[0], env.get("PATH").map_or("", String::as_str))?;
    let strings = |words: &mut dyn Iterator<Item = String>| -> Result<Vec<CString>, String> {
        words
            .map(|word| CString::new(word).map_err(|_| "a zero byte in command or environment".to_owned()))
            .collect()
    };
    let arguments = strings(&mut command.iter().cloned())?;
    let environment = strings(&mut env.iter().map(|(name, value)| format!("{name}={value}")))?;
    let path = strings(&mut std::iter::once(found.clone()))?.remove(0);
    process::restore_signals();
    process::close_on_exec_from(3).map_err(|error| format!("cannot close descriptors: {error}"))?;
    let error = process::exec(&path, &arguments, &environment);
    Err(format!("exec {found}: {}", program::told(&error)))
}

fn change_directory(spec: &ContainerSpec) -> Result<(), String> {
    let directory = spec
        .working_dir
        .as_deref()
        .or(spec.image.config.working_dir.as_deref())
        .unwrap_or("/");
    let failed = |error: io::Error| {
        format!(
            "chdir to cwd ({directory:?}) set in config.json failed: {}",
            program::told(&error)
        )
    };
    // runc makes it too.
    match fs::create_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed(error));
        }
        _ => {}
    }
    rustix::process::chdir(directory).map_err(|error| failed(error.into()))
}

/// All capabilities stay with user 0: a lab's containers may do what they like inside their namespaces. Any
/// other user has none, as the kernel takes them with the user ID.
fn become_user(user: &User, stdio: &Stdio) -> Result<(), String> {
    if (user.uid, user.gid) != (0, 0) {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(user.uid),
            rustix::fs::Gid::from_raw(user.gid),
        );
        for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
            // So that /dev/stdout can be opened. Never a device such as /dev/null, which is the machine's.
            let kind = rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode));
            if stdio.tty || matches!(kind, Ok(FileType::Fifo | FileType::Socket)) {
                let _ = rustix::fs::fchown(fd, Some(uid), Some(gid));
            }
        }
    }
    process::become_user(user.uid, user.gid, &user.groups).map_err(|error| {
        let rootless = error.kind() == io::ErrorKind::InvalidInput && process::in_user_namespace();
        let hint = match rootless {
            true => {
                ": this lab runs without root, and user 0 is the only one in it; start it as root for others"
            }
            false => "",
        };
        format!(
            "cannot run as user {} and group {}: {}{hint}",
            user.uid,
            user.gid,
            program::told(&error)
        )
    })
}
