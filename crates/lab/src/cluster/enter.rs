//! `podnet lab node`: runs a command in a node's namespaces.

use std::process::{Command, ExitCode, ExitStatus};

use miette::{Context, IntoDiagnostic, miette};
use podnet_linux::ns::{Kind, Namespace};
use tokio::signal::unix::{SignalKind, signal};

use super::group;
use super::layout::LabDir;
use super::record::Record;

/// Runs `command` inside `node` (or `underlay`, the network that joins the nodes) and returns its exit code.
///
/// Must be called while the process has one thread: a user namespace is entered by none other.
pub fn run(record: &Record, node: &str, command: &[String]) -> miette::Result<ExitCode> {
    let pid = record.init.pid;
    let spaces = spaces(record, node)?;
    // Open all of them before entering any: afterwards this /proc is not ours to read.
    let mut opened = Vec::new();
    if !rustix::process::geteuid().is_root() {
        opened.push(Namespace::of_pid(pid, Kind::User).into_diagnostic()?);
    }
    opened.push(Namespace::of_pid(pid, Kind::Pid).into_diagnostic()?);
    for fd in spaces {
        opened.push(Namespace::open(format!("/proc/{pid}/fd/{fd}")).into_diagnostic()?);
    }
    // Where its node has a group, programs there see what is run.
    if let Err(error) = group::enter(&LabDir::of(&record.request.name), node) {
        eprintln!("podnet: this command is not in the control group of {node}: {error}");
    }
    for namespace in &opened {
        namespace
            .enter()
            .into_diagnostic()
            .wrap_err_with(|| format!("entering {node}"))?;
    }
    let [program, args @ ..] = command else {
        return Err(miette!("no command given after --"));
    };
    let mut command = Command::new(program);
    command.args(args).current_dir("/").env("HOSTNAME", node);
    match wait_for(command)? {
        Ok(status) => Ok(exit_code(status)),
        Err(error) => {
            eprintln!("podnet: {program}: {error}");
            Ok(ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound {
                127
            } else {
                126
            }))
        }
    }
}

/// Runs the command. ^C and ^\ are for it: this process only waits to pass its exit code on.
///
/// The signals are caught rather than ignored, because a command inherits what is ignored. All of this happens on
/// one thread: a process that has entered a PID namespace can start no other.
fn wait_for(command: Command) -> miette::Result<std::io::Result<ExitStatus>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .into_diagnostic()?;
    runtime.block_on(async {
        let _interrupt = signal(SignalKind::interrupt()).into_diagnostic()?;
        let _quit = signal(SignalKind::quit()).into_diagnostic()?;
        Ok(tokio::process::Command::from(command).status().await)
    })
}

fn spaces(record: &Record, node: &str) -> miette::Result<Vec<i32>> {
    if node == "underlay" {
        return Ok(record.underlay.into_iter().collect());
    }
    match record.nodes.get(node) {
        Some(spaces) => Ok(vec![spaces.net, spaces.uts, spaces.mnt]),
        None => {
            let names: Vec<&str> = record.nodes.keys().map(String::as_str).collect();
            Err(miette!(
                help = format!(
                    "nodes: {}; and underlay, the network between them",
                    names.join(", ")
                ),
                "the lab {} has no node {node}",
                record.request.name
            ))
        }
    }
}

/// The code a shell would report: 128 and the signal for a command that was killed.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
