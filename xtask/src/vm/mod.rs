//! `cargo xtask vm`: tests that need another kernel, in a virtual machine that boots one of Debian's.
//!
//! The guest sees this machine's files read-only under an overlay in memory, so that a test's executable and the tools it
//! calls are where they are here. It is slow (nothing is assumed of the processor, all of it is emulated), and it has no
//! network but what tests make.

mod cpio;
mod tests;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use miette::{Context, IntoDiagnostic, miette};

use crate::recipe;
use cpio::Archive;

/// Arguments of the recipe.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The kernel, as a series of Debian 12's
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Only the tests of these packages
    #[arg(long, short)]
    package: Vec<String>,
    /// Only tests whose name has this in it
    #[arg(long, short)]
    test: Option<String>,
    /// A command to run there, after --, instead of tests
    #[arg(last = true)]
    command: Vec<String>,
}

impl Args {
    /// All tests that are for this kernel.
    pub(crate) fn for_tests(kernel: &str) -> Self {
        Args {
            kernel: kernel.into(),
            package: Vec::new(),
            test: None,
            command: Vec::new(),
        }
    }
}

/// What the guest needs to see its files.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// What stands before the exit code in the guest's last line.
const MARK: &str = "podnet-vm: the command ended with";
/// After so many seconds a guest that has not ended is stuck.
const PATIENCE: &str = "1800";

/// Runs the command, or the tests.
pub(crate) fn run(args: &Args) -> miette::Result<()> {
    let kernel = Kernel::fetch(&args.kernel)?;
    if args.command.is_empty() {
        return kernel.run(&tests::script(args)?);
    }
    let words: Vec<String> = args.command.iter().map(|word| quoted(word)).collect();
    kernel.run(&words.join(" "))
}

/// Where [`fetch.sh`](../fetch.sh) unpacks.
fn unpacked() -> PathBuf {
    recipe::root().join("target/vm")
}

/// A kernel of Debian's, unpacked from its package.
struct Kernel {
    /// What has boot/ and lib/modules/.
    directory: PathBuf,
    /// As `uname -r` says.
    version: String,
}

impl Kernel {
    /// A series of Debian's kernels, unpacked unless it has been before.
    fn fetch(series: &str) -> miette::Result<Self> {
        let plain = |c: char| c.is_ascii_digit() || c == '.';
        if series.is_empty() || !series.chars().all(plain) {
            return Err(miette!("{series:?} is no series of kernels: say 6.1 or 6.12"));
        }
        let place = unpacked();
        let words = [
            "bash",
            "xtask/src/vm/fetch.sh",
            series,
            &place.display().to_string(),
        ];
        recipe::run(&words)?;
        let directory = place.join(series);
        let modules = fs::read_dir(directory.join("lib/modules")).into_diagnostic()?;
        let version = modules
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .next()
            .ok_or_else(|| {
                miette!(
                    help = "remove it, to have it unpacked again",
                    "{} has no modules",
                    directory.display()
                )
            })?;
        Ok(Kernel { directory, version })
    }

    fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules").join(&self.version)
    }

    /// Boots, runs `command` in a shell there, shows what it prints, and fails when it does.
    fn run(&self, command: &str) -> miette::Result<()> {
        let initramfs = recipe::root().join(format!("target/initramfs-{}", std::process::id()));
        fs::write(&initramfs, self.initramfs(command)?).into_diagnostic()?;
        let mut ended = self.boot(&initramfs);
        if matches!(ended, Ok(Ended::ByTheEmulator)) {
            println!(
                "the emulated CPU ran an instruction that the kernel was replacing: once more, from the start"
            );
            ended = self.boot(&initramfs);
        }
        fs::remove_file(&initramfs).into_diagnostic()?;
        match ended? {
            Ended::With(0) => Ok(()),
            Ended::With(code) => Err(miette!("the command in the virtual machine ended with {code}")),
            Ended::ByTheEmulator | Ended::Before => Err(miette!(
                "the virtual machine ended before the command: what it said last is above"
            )),
        }
    }

    fn boot(&self, initramfs: &Path) -> miette::Result<Ended> {
        let image = self
            .directory
            .join("boot")
            .join(format!("vmlinuz-{}", self.version));
        let mut machine = qemu()
            .args([
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "2G",
                "-nodefaults",
            ])
            .args(["-display", "none", "-serial", "stdio", "-no-reboot"])
            .args([
                "-virtfs",
                "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
            ])
            .arg("-kernel")
            .arg(image)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", "console=ttyS0 loglevel=3 panic=-1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .into_diagnostic()
            .wrap_err("cannot start qemu")?;
        let output = machine.stdout.take().into_iter();
        let mut ended = Ended::Before;
        for line in output.flat_map(|output| BufReader::new(output).split(b'\n')) {
            let line = line.into_diagnostic()?;
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            match line.split_once(MARK) {
                Some((_, number)) => ended = number.trim().parse().map_or(Ended::Before, Ended::With),
                None => println!("{line}"),
            }
            if line.contains(REPLACED) {
                ended = Ended::ByTheEmulator;
            }
        }
        machine.wait().into_diagnostic()?;
        Ok(ended)
    }

    fn initramfs(&self, command: &str) -> miette::Result<Vec<u8>> {
        let script = include_str!("run.sh")
            .replace("@VERSION@", &self.version)
            .replace("@KERNEL@", &quoted(&self.directory.display().to_string()))
            .replace("@DIRECTORY@", &quoted(&recipe::root().display().to_string()))
            .replace("@MARK@", MARK);
        let mut archive = Archive::default();
        archive.file("init", include_bytes!("init.sh"));
        archive.file("run.sh", script.as_bytes());
        archive.file("command.sh", command.as_bytes());
        archive.directory("bin");
        let busybox = fs::read(unpacked().join("machine/bin/busybox")).into_diagnostic()?;
        archive.file("bin/busybox", &busybox);
        archive.directory("modules");
        let dependencies = fs::read_to_string(self.modules().join("modules.dep"))
            .into_diagnostic()
            .wrap_err("the kernel's modules")?;
        let mut names = String::new();
        for path in in_order(&dependencies, MODULES.iter())? {
            let name = path.rsplit('/').next().unwrap_or(path);
            let module = fs::read(self.modules().join(path)).into_diagnostic()?;
            archive.file(&format!("modules/{name}"), &module);
            names.push_str(&format!("{name}\n"));
        }
        archive.file("modules/order", names.as_bytes());
        Ok(archive.finish())
    }
}

/// How a machine ended.
enum Ended {
    /// After its command, with that code.
    With(i32),
    /// In a way in which no CPU ends that is not emulated.
    ByTheEmulator,
    /// Before its command, for whatever reason.
    Before,
}

/// What a kernel says when it meets a breakpoint of its own. It sets one for the moment in which it replaces an
/// instruction, and knows those; but an emulated CPU may still run what it translated before that was over.
const REPLACED: &str = "Oops: int3:";

/// Debian's, with the libraries that came with it. It gives way to other work: emulating takes all of a CPU.
fn qemu() -> Command {
    let root = unpacked().join("machine");
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| root.join(path));
    let mut command = Command::new("nice");
    command
        .args(["-n", "10", "timeout", "--foreground", "--kill-after=10", PATIENCE])
        .arg(root.join("usr/bin/qemu-system-x86_64"))
        .env(
            "LD_LIBRARY_PATH",
            std::env::join_paths(libraries).unwrap_or_default(),
        );
    for firmware in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(root.join(firmware));
    }
    command
}

/// The paths of modules and of what they need, each after what it needs. `dependencies` is modules.dep, in which the ones
/// that must come last stand first; a module that is built in has no line.
fn in_order<'a>(
    dependencies: &'a str,
    modules: impl Iterator<Item = &'a &'a str>,
) -> miette::Result<Vec<&'a str>> {
    let mut order: Vec<&str> = Vec::new();
    for module in modules {
        let named = |path: &str| {
            path.rsplit('/')
                .next()
                .is_some_and(|file| file.split('.').next() == Some(module))
        };
        let line = dependencies.lines().find_map(|line| {
            let (path, needs) = line.split_once(':')?;
            named(path).then_some((path, needs))
        });
        let Some((path, needs)) = line else { continue };
        for path in needs.split_whitespace().rev().chain([path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    if order.is_empty() {
        return Err(miette!(
            "modules.dep names none of the modules that a guest needs"
        ));
    }
    Ok(order)
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn a_module_comes_after_what_it_needs() {
        let dependencies = "kernel/net/9p/9pnet.ko:\n\
                            kernel/fs/9p/9p.ko: kernel/fs/netfs.ko kernel/net/9p/9pnet.ko\n\
                            kernel/net/9p/9pnet_virtio.ko: kernel/drivers/virtio.ko kernel/net/9p/9pnet.ko\n";
        let modules = ["built_in", "9pnet_virtio", "9p"];
        assert_eq!(
            in_order(dependencies, modules.iter()).unwrap(),
            [
                "kernel/net/9p/9pnet.ko",
                "kernel/drivers/virtio.ko",
                "kernel/net/9p/9pnet_virtio.ko",
                "kernel/fs/netfs.ko",
                "kernel/fs/9p/9p.ko",
            ]
        );
        assert!(in_order("", modules.iter()).is_err());
    }

    #[test]
    fn a_word_is_quoted_for_the_shell() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
