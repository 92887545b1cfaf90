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
    lint(&[])?;
    // Helpers of tests may unwrap and be public to their siblings.
    lint(&[
        "--all-targets",
        "--",
        "-A",
        "clippy::unwrap_used",
        "-A",
        "unreachable_pub",
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

/// Clippy with every warning an error.
fn lint(more: &[&str]) -> miette::Result<()> {
    let (targets, allowed) = more.split_at(more.iter().position(|word| *word == "--").unwrap_or(0));
    let mut words = vec!["cargo", "clippy", "--quiet", "--release", "--workspace"];
    words.extend(targets);
    words.extend(["--", "--deny", "warnings"]);
    words.extend(allowed.iter().skip(1));
    recipe::run(&words)
}
