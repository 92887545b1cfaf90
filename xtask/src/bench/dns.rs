//! What answering the cluster's names costs, without the sockets.

use std::process::{Command, Stdio};

use miette::{Context, IntoDiagnostic, miette};
use serde::{Deserialize, Serialize};

/// What `questions` of the crate `dns` prints.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Figures {
    pub(super) table_mebibytes: f64,
    pub(super) table_made_in_milliseconds: f64,
    pub(super) questions: Vec<Rate>,
}

/// Questions of one kind.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Rate {
    pub(super) kind: String,
    /// A second of CPU time.
    pub(super) per_second: f64,
}

/// Measures on that CPU.
pub(super) fn measure(cpu: usize, seconds: f64) -> miette::Result<Figures> {
    let build = [
        "--quiet",
        "--release",
        "--package",
        "podnet-dns",
        "--example",
        "questions",
    ];
    let output = Command::new("taskset")
        .args(["-c", &cpu.to_string(), "cargo", "run"])
        .args(build)
        .args(["--", &seconds.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .into_diagnostic()
        .wrap_err("cannot run taskset and cargo")?;
    if !output.status.success() {
        return Err(miette!("the measurement of DNS failed: {}", output.status));
    }
    serde_json::from_slice(&output.stdout)
        .into_diagnostic()
        .wrap_err("the measurement of DNS says something new")
}
