//! Measurements that are examples of a crate of ours.

use std::process::{Command, Stdio};

use miette::{Context, IntoDiagnostic, miette};
use serde::de::DeserializeOwned;

/// Runs `example` of the crate `package` on that CPU, and reads what it prints.
pub(super) fn run<T: DeserializeOwned>(
    package: &str,
    example: &str,
    cpu: usize,
    arguments: &[String],
) -> miette::Result<T> {
    let output = Command::new("taskset")
        .args(["-c", &cpu.to_string(), "cargo", "run", "--quiet", "--release"])
        .args(["--package", package, "--example", example, "--"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .into_diagnostic()
        .wrap_err("cannot run taskset and cargo")?;
    if !output.status.success() {
        return Err(miette!("the measurement {example} failed: {}", output.status));
    }
    serde_json::from_slice(&output.stdout)
        .into_diagnostic()
        .wrap_err_with(|| format!("the measurement {example} says something new"))
}
