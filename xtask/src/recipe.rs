//! What recipes are made of: commands run in the workspace, shown before they run.

use std::path::{Path, PathBuf};
use std::process::Command;

use miette::{IntoDiagnostic, miette};

/// The target everything is built for (.cargo/config.toml).
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default()
}

/// Where release builds are.
pub(crate) fn release() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| "target".into());
    root().join(target).join(TARGET).join("release")
}

/// Executables that users and tests find on one path: podnet, podnet-cni, kubectl, tools.
pub(crate) fn bin() -> PathBuf {
    root().join("target/bin")
}

/// Where programs are looked for.
pub(crate) fn path() -> String {
    format!(
        "{}:{}",
        bin().display(),
        std::env::var("PATH").unwrap_or_default()
    )
}

/// Runs a command line in the workspace; its failure is the recipe's.
pub(crate) fn run(words: &[&str]) -> miette::Result<()> {
    println!("+ {}", words.join(" "));
    let [program, args @ ..] = words else {
        return Err(miette!("no command"));
    };
    let status = Command::new(program)
        .args(args)
        .current_dir(root())
        .env("PATH", path())
        .status()
        .into_diagnostic()?;
    if status.success() {
        Ok(())
    } else {
        Err(miette!("`{}` failed: {status}", words.join(" ")))
    }
}

/// Builds `what` for release, the executables that ship among it, and puts links to these into [`bin`].
pub(crate) fn build(what: &[&str]) -> miette::Result<()> {
    run(&[&["cargo", "build", "--release"], what].concat())?;
    for name in ["podnet", "podnet-cni"] {
        let link = bin().join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(release().join(name), &link).into_diagnostic()?;
    }
    Ok(())
}
