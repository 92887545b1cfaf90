//! `podnet proxy`: carries this node's services in user space, where the kernel cannot.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use miette::{Context, IntoDiagnostic};
use podnet_dataplane::userspace::{self, SOCKET, Site, proxy};

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where its socket is, as the agent has it
    #[arg(long, default_value = "/run/podnet", value_name = "DIR")]
    run_dir: PathBuf,
}

/// Runs until an agent or `podnet cleanup` ends it.
pub fn run(args: Args) -> miette::Result<()> {
    std::fs::create_dir_all(&args.run_dir)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot make {}", args.run_dir.display()))?;
    proxy::run(&args.run_dir.join(SOCKET), &identity())
        .into_diagnostic()
        .wrap_err("the service proxy ended")
}

/// Where this node's proxy is. One that has to be started is this executable once more.
pub(crate) fn site(run_dir: &Path) -> Site {
    Site {
        socket: run_dir.join(SOCKET),
        identity: Arc::new(identity),
        start: Arc::new(start),
    }
}

fn identity() -> String {
    userspace::identity().unwrap_or_else(|error| {
        tracing::warn!("cannot read this executable, whose version must do to tell it from others: {error}");
        env!("CARGO_PKG_VERSION").to_owned()
    })
}

/// Not a part of the agent: it goes on when that ends, and signals to the agent's group are not for it.
fn start(socket: &Path) -> io::Result<()> {
    let run_dir = socket.parent().unwrap_or(Path::new("/"));
    let mut child = Command::new("/proc/self/exe")
        .arg0("podnet")
        .arg("proxy")
        .arg("--run-dir")
        .arg(run_dir)
        .stdin(Stdio::null())
        .process_group(0)
        .spawn()?;
    tracing::info!(pid = child.id(), "started the service proxy");
    let wait = move || match child.wait() {
        Ok(status) => tracing::info!(%status, "the service proxy ended"),
        Err(error) => tracing::warn!(%error, "cannot wait for the service proxy"),
    };
    std::thread::Builder::new().name("proxy".into()).spawn(wait)?;
    Ok(())
}
