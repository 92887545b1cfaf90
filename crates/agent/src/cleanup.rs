//! Takes everything of podnet off this node.

use std::io;
use std::path::{Path, PathBuf};

use miette::miette;
use podnet_core::cluster::DataplaneName;
use podnet_dataplane::{Dataplane, Kernel};

use crate::cli::NodePaths;
use crate::{cni_server, dropins, proxy, wiring};

/// In the state directory: what settings of the node were before the agent changed them.
pub(crate) const SETTINGS: &str = "settings";

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    paths: NodePaths,
}

/// Removes and says what. Goes on after a failure, and reports them all at the end.
pub fn run(args: Args) -> miette::Result<()> {
    let socket = args.paths.socket();
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
    sweep.plugin(&args.paths.cni_bin_dir, &args.paths.cni_conf_dir);
    sweep.pod_links();
    sweep.bridge();
    let put_back = sweep.kernel(&args.paths);
    sweep.drop_ins(&args.paths.host_etc);
    // Until all of that is done, what settings were before is kept, and the lock that programs of iptables may have still.
    if put_back {
        sweep.directory(&args.paths.run_dir);
        sweep.directory(&args.paths.state_dir);
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

    fn bridge(&mut self) {
        match wiring::remove_bridge(!self.dry_run) {
            Ok(true) => self.say(&format!("link {}", wiring::BRIDGE)),
            Ok(false) => {}
            Err(error) => self.failures.push(format!("link {}: {error}", wiring::BRIDGE)),
        }
    }

    fn drop_ins(&mut self, etc: &Path) {
        for file in dropins::installed(etc) {
            let outcome = if self.dry_run {
                Ok(())
            } else {
                std::fs::remove_file(&file)
            };
            self.outcome(&format!("file {}", file.display()), outcome);
        }
    }

    /// Whether nothing of it is left.
    fn kernel(&mut self, paths: &NodePaths) -> bool {
        let dry_run = self.dry_run;
        let swept = Kernel::open(None, DataplaneName::Nftables).and_then(|kernel| {
            let kernel = kernel.with_proxy(proxy::site(&paths.run_dir))?;
            let mut kernel = kernel.with_programs(paths.programs(None))?;
            kernel.keep_settings_in(&paths.state_dir.join(SETTINGS))?;
            kernel.take_turns_in(&paths.run_dir)?;
            if dry_run { kernel.present() } else { kernel.clean() }
        });
        match &swept {
            Ok(removed) => removed.iter().for_each(|what| self.say(what)),
            Err(error) => self.failures.push(error.to_string()),
        }
        swept.is_ok()
    }
}

fn remove_file(path: &PathBuf) -> io::Result<()> {
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni_server::CniServerConfig;

    #[test]
    fn the_plugin_goes_with_its_configuration_and_what_stays_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, conf) = (dir.path().join("bin"), dir.path().join("net.d"));
        let plugin = dir.path().join("plugin");
        std::fs::write(&plugin, "#!/bin/true").unwrap();
        let config = CniServerConfig {
            socket: "/run/podnet/cni.sock".into(),
            state_dir: "/var/lib/podnet".into(),
            node: "node1".into(),
            wiring: podnet_cni::WiringName::Bridge,
            allowed_sysctls: Vec::new(),
            settings: Default::default(),
            programs: None,
        };
        cni_server::install_from(&plugin, &bin, &conf, &config).unwrap();
        std::fs::write(conf.join("20-other.conflist"), "{}").unwrap();
        let sweep = |dry_run| {
            let mut sweep = Sweep {
                dry_run,
                removed: 0,
                failures: Vec::new(),
            };
            sweep.plugin(&bin, &conf);
            sweep
        };
        let dry = sweep(true);
        assert_eq!((dry.removed, cni_server::installed(&bin, &conf).len()), (2, 2));
        let wet = sweep(false);
        assert_eq!((wet.removed, cni_server::installed(&bin, &conf).len()), (2, 0));
        assert!(conf.join("20-other.conflist").exists(), "another network's stays");
        assert_eq!(sweep(false).removed, 0);

        // What cannot be removed as a file is told, and the rest goes all the same.
        cni_server::install_from(&plugin, &bin, &conf, &config).unwrap();
        std::fs::remove_file(conf.join("10-podnet.conflist")).unwrap();
        std::fs::create_dir(conf.join("10-podnet.conflist")).unwrap();
        let half = sweep(false);
        assert_eq!(half.removed, 1);
        assert!(
            half.failures[0].contains("10-podnet.conflist: "),
            "{:?}",
            half.failures
        );
        assert!(!bin.join("podnet-cni").exists());
    }
}
