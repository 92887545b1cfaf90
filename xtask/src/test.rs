//! `cargo xtask test`: everything CI checks.

use crate::{edges, recipe};

/// Installs what the tests need, checks the house, runs the tests.
///
/// One profile serves for everything, so that the dependencies are built once and the executables under test are
/// the ones that `cargo xtask demo` builds.
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
    recipe::build()?;
    recipe::run(&[
        "cargo",
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ])?;
    recipe::run(&[
        "cargo",
        "nextest",
        "run",
        "--release",
        "--workspace",
        "--no-fail-fast",
    ])
}
