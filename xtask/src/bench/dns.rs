//! What answering the cluster's names costs, without the sockets.

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
    super::example::run("podnet-dns", "questions", cpu, &[seconds.to_string()])
}
