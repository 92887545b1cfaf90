//! Takes everything of podnet off this node.

use std::io;
use std::path::{Path, PathBuf};

use miette::miette;
use podnet_dataplane::{Dataplane, Kernel};

use crate::{cni_server, wiring};

/// In the state directory: what settings of the node were before the agent changed them.
pub(crate) const SETTINGS: &str = "settings";

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Where the CNI plugin was put
    #[arg(long, default_value = "/opt/cni/bin", value_name = "DIR")]
    cni_bin_dir: PathBuf,
    /// Where the CNI configuration was put
    #[arg(long, default_value = "/etc/cni/net.d", value_name = "DIR")]
    cni_conf_dir: PathBuf,
    /// Address leases
    #[arg(long, default_value = "/var/lib/podnet", value_name = "DIR")]
    state_dir: PathBuf,
    /// Sockets
    #[arg(long, default_value = "/run/podnet", value_name = "DIR")]
    run_dir: PathBuf,
}

/// Removes and says what. Goes on after a failure, and reports them all at the end.
pub fn run(args: Args) -> miette::Result<()> {
    crate::cli::logging();
    let socket = args.run_dir.join("cni.sock");
    if !args.dry_run && std::os::unix::net::UnixStream::connect(&socket).is_ok() {
        return Err(miette!(
            help = "stop `podnet agent` first: it would put back what is removed",
            "an agent is running on this node: it answers at {}",
            socket.display()
        ));
    }
    let mut sweep = Sweep {
        dry_run: args.dry_run,
        removed: 0,
        failures: Vec::new(),
    };
    // First what makes the runtime ask for more.
    sweep.plugin(&args.cni_bin_dir, &args.cni_conf_dir);
    sweep.pod_links();
    sweep.kernel(&args.state_dir);
    for directory in [&args.run_dir, &args.state_dir] {
        sweep.directory(directory);
    }
    if sweep.removed == 0 && sweep.failures.is_empty() {
        println!("there is nothing of podnet here");
    }
    if sweep.failures.is_empty() {
        return Ok(());
    }
    Err(miette!(
        help = "run it again as root, in the node's network namespace, with the agent stopped",
        "not everything could be removed:\n{}",
        sweep.failures.join("\n")
    ))
}

struct Sweep {
    dry_run: bool,
    removed: usize,
    failures: Vec<String>,
}

impl Sweep {
    fn say(&mut self, what: &str) {
        self.removed += 1;
        let verb = if self.dry_run { "would remove" } else { "removed" };
        println!("{verb} {what}");
    }

    fn outcome<E: std::fmt::Display>(&mut self, what: &str, outcome: Result<(), E>) {
        match outcome {
            Ok(()) => self.say(what),
            Err(error) => self.failures.push(format!("{what}: {error}")),
        }
    }

    fn plugin(&mut self, cni_bin_dir: &Path, cni_conf_dir: &Path) {
        let files = if self.dry_run {
            let files = cni_server::installed(cni_bin_dir, cni_conf_dir).into_iter();
            files.map(|file| (file, Ok(()))).collect()
        } else {
            cni_server::uninstall(cni_bin_dir, cni_conf_dir)
        };
        for (file, outcome) in files {
            self.outcome(&format!("file {}", file.display()), outcome);
        }
    }

    /// The directory's contents, and the directory where it is not a mount point.
    fn directory(&mut self, path: &Path) {
        let Ok(entries) = std::fs::read_dir(path) else {
            return;
        };
        for entry in entries.flatten() {
            let (path, is_directory) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let remove = if is_directory {
                std::fs::remove_dir_all
            } else {
                remove_file
            };
            let outcome = if self.dry_run { Ok(()) } else { remove(&path) };
            self.outcome(&path.display().to_string(), outcome);
        }
        if !self.dry_run {
            match std::fs::remove_dir(path) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::ResourceBusy | io::ErrorKind::NotFound
                    ) =>
                {
                    self.failures.push(format!("{}: {error}", path.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
    }

    fn pod_links(&mut self) {
        let links: Vec<String> = match wiring::in_kernel() {
            Ok(links) => links.into_keys().collect(),
            Err(error) => return self.failures.push(format!("pods' links: {error}")),
        };
        if links.is_empty() {
            return;
        }
        let outcome = if self.dry_run {
            Ok(())
        } else {
            wiring::remove(&links)
        };
        match outcome {
            Ok(()) => links.iter().for_each(|link| self.say(&format!("link {link}"))),
            Err(error) => self.failures.push(format!("pods' links: {error}")),
        }
    }

    fn kernel(&mut self, state_dir: &Path) {
        let mut kernel = match Kernel::open(None) {
            Ok(kernel) => kernel,
            Err(error) => return self.failures.push(error.to_string()),
        };
        if let Err(error) = kernel.keep_settings_in(&state_dir.join(SETTINGS)) {
            let what = format!(
                "settings of the node stay changed: {}: {error}",
                state_dir.display()
            );
            self.failures.push(what);
        }
        let swept = if self.dry_run {
            kernel.present()
        } else {
            kernel.clean()
        };
        match swept {
            Ok(removed) => removed.iter().for_each(|what| self.say(what)),
            Err(error) => self.failures.push(error.to_string()),
        }
    }
}

fn remove_file(path: &PathBuf) -> io::Result<()> {
    std::fs::remove_file(path)
}
