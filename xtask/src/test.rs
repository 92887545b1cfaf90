//! `cargo xtask test`: everything CI checks.

use crate::{ebpf, edges, fuzz, recipe, vm};

/// Installs what the tests need, checks the house, runs the tests.
///
/// One profile, one build: tests and executables together, because cargo would build most crates twice for
/// executables alone and then with the tests' own dependencies.
pub(crate) fn run() -> miette::Result<()> {
    recipe::run(&["./.ci/setup"])?;
    recipe::run(&["cargo", "fmt", "--all", "--check"])?;
    recipe::run(&[
        "cargo",
        "fmt",
        "--manifest-path",
        "crates/ebpf/Cargo.toml",
        "--check",
    ])?;
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
    ebpf::run(&ebpf::Args { check: true })?;
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
    // It is built: no test need build it again, alone and therefore with other features of what it depends on.
    let plugin = format!("PODNET_CNI={}", recipe::release().join("podnet-cni").display());
    recipe::run(&[
        "env",
        &plugin,
        "cargo",
        "nextest",
        "run",
        "--release",
        "--workspace",
        "--no-fail-fast",
    ])?;
    // Fuzzers run for a time, not for an amount of work: another kernel's tests beside them cost nothing.
    std::thread::scope(|scope| {
        let other_kernel = scope.spawn(|| vm::run(&vm::Args::for_tests("6.12")));
        let fuzzers = fuzz::run(&fuzz::Args::for_seconds(30));
        let other_kernel = other_kernel
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        other_kernel.and(fuzzers)
    })
}
