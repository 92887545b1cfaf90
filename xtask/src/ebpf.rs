//! `cargo xtask ebpf`: the programs for the kernel, from their source to the objects in the tree.
//!
//! The objects are committed, so that building podnet takes no other compiler. They are the same bytes wherever they are
//! built: paths are mapped to names, and what is only for debuggers is taken out.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{Context, IntoDiagnostic, miette};

use crate::recipe;

/// Where the sources are.
const SOURCES: &str = "crates/ebpf";
/// Where the objects are.
const OBJECTS: &str = "crates/ebpf/objects";
/// By the names of their sources.
const PROGRAMS: [&str; 2] = ["connect", "path"];
const TARGET: &str = "bpfel-unknown-none";
/// What links; other versions may make other bytes. `.ci/setup` installs it.
const LINKER: &str = "0.10.3";

/// Command-line arguments.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only say whether the objects in the tree are what their source makes
    #[arg(long)]
    pub(crate) check: bool,
}

/// Builds all objects, and puts them into the tree or compares them with it.
pub(crate) fn run(args: &Args) -> miette::Result<()> {
    let directory = build()?;
    let strip = llvm_strip()?;
    let mut stale = Vec::new();
    for name in PROGRAMS {
        let built = directory.join(format!("{name}.o"));
        std::fs::copy(directory.join(name), &built).into_diagnostic()?;
        // Debugging information of DWARF goes, that of BTF stays: the kernel reads it.
        run_in(
            &recipe::root(),
            Command::new(&strip).arg("--strip-debug").arg(&built),
        )?;
        let kept = recipe::root().join(OBJECTS).join(format!("{name}.o"));
        let bytes = std::fs::read(&built).into_diagnostic()?;
        if std::fs::read(&kept).is_ok_and(|kept| kept == bytes) {
            println!("{} is what its source makes", shown(&kept));
        } else if args.check {
            stale.push(shown(&kept));
        } else {
            std::fs::create_dir_all(kept.parent().unwrap_or(Path::new("."))).into_diagnostic()?;
            std::fs::write(&kept, bytes).into_diagnostic()?;
            println!("{} is new", shown(&kept));
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    Err(miette!(
        help = "run `cargo xtask ebpf` and commit what it writes",
        "{} is not what its source makes",
        stale.join(", ")
    ))
}

/// Builds the crate; returns where its programs are.
fn build() -> miette::Result<PathBuf> {
    let linker = Command::new("bpf-linker")
        .arg("--version")
        .env("PATH", recipe::path())
        .output();
    let version = linker
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    if version.trim() != format!("bpf-linker {LINKER}") {
        return Err(miette!(
            help = "run .ci/setup, which installs it below target/",
            "bpf-linker {LINKER} is needed, and {}",
            if version.is_empty() {
                "there is none".to_owned()
            } else {
                format!("this is {}", version.trim())
            }
        ));
    }
    let target = recipe::root().join("target/ebpf");
    let mut cargo = Command::new("cargo");
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "-Z",
            "build-std=core",
            "--target",
            TARGET,
        ])
        .env("CARGO_TARGET_DIR", &target)
        // The pinned compiler knows what building its own core library takes, and hides it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags()?.join(OsStr::new("\x1f")))
        .env("PATH", recipe::path());
    run_in(&recipe::root().join(SOURCES), &mut cargo)?;
    Ok(target.join(TARGET).join("release"))
}

fn flags() -> miette::Result<Vec<OsString>> {
    let mut flags: Vec<OsString> = [
        "-Clinker=bpf-linker",
        "-Clink-arg=--btf",
        // Comparisons of 32 bits (Linux 5.1): a tenth of the programs' time.
        "-Ctarget-cpu=v3",
        "-Cdebuginfo=2",
        // The architecture whose registers the kernel's contexts are of; nothing here reads any.
        "--cfg=bpf_target_arch=\"x86_64\"",
    ]
    .map(OsString::from)
    .into();
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registries = home.into_iter().map(|home| home.join("registry/src"));
    let registries = registries
        .filter_map(|sources| std::fs::read_dir(sources).ok())
        .flatten()
        .flatten();
    let mut names: Vec<(PathBuf, &str)> = registries.map(|entry| (entry.path(), "/crates")).collect();
    names.push((sysroot()?.join("lib/rustlib/src/rust"), "/rust"));
    names.push((recipe::root(), ""));
    for (path, name) in names {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(path);
        flag.push("=");
        flag.push(name);
        flags.push(flag);
    }
    Ok(flags)
}

fn sysroot() -> miette::Result<PathBuf> {
    let output = Command::new("rustc")
        .args(["--print", "sysroot"])
        .output()
        .into_diagnostic()?;
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// The one of the compiler's own LLVM.
fn llvm_strip() -> miette::Result<PathBuf> {
    let libraries = sysroot()?.join("lib/rustlib");
    let hosts = std::fs::read_dir(&libraries).into_diagnostic()?.flatten();
    let mut strips = hosts.map(|host| host.path().join("bin/llvm-strip"));
    strips.find(|strip| strip.exists()).ok_or_else(|| {
        miette!(
            help = "rustup component add llvm-tools rust-src",
            "the compiler's llvm-strip is not installed"
        )
    })
}

fn run_in(directory: &Path, command: &mut Command) -> miette::Result<()> {
    let status = command
        .current_dir(directory)
        .status()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if status.success() {
        return Ok(());
    }
    Err(miette!(
        "{} failed: {status}",
        command.get_program().to_string_lossy()
    ))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(recipe::root())
        .unwrap_or(path)
        .display()
        .to_string()
}
