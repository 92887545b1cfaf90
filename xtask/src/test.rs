//! `cargo xtask test`: everything CI checks.

use crate::{edges, fuzz, recipe, vm};

/// Installs what the tests need, checks the house, runs the tests.
///
/// One profile, one build: tests and executables together, because cargo would build most crates twice for
/// executables alone and then with the tests' own dependencies.
pub(crate) fn run() -> miette::Result<()> {
    recipe::run(&["./.ci/setup"])?;
    recipe::run(&["cargo", "fmt", "--all", "--check"])?;
    recipe::run(&[
        "cargo",
        "deny",
        "--offline",
        "check",
        "licenses",
        "bans",
        "sources",
    ])?;
    edges::run()?;
    recipe::run(&[
        "cargo",
        "clippy",
        "--quiet",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ])?;
    recipe::build(&["--workspace", "--all-targets"])?;
    recipe::run(&[
        "cargo",
        "nextest",
        "run",
        "--release",
        "--workspace",
        "--no-fail-fast",
    ])?;
    vm::run(&vm::Args::for_tests("6.12"))?;
    fuzz::run(&fuzz::Args::for_seconds(30))
}
