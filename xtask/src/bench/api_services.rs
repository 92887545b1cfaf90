//! What it takes from a write to the API until it is in force.

use std::fmt;
use std::path::Path;

use miette::IntoDiagnostic;
use serde::{Deserialize, Serialize};

/// What `api_services` of the crate `agent` prints: one for each number of services, times in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Times {
    /// How many services, each with five endpoints.
    services: u32,
    /// From the start of the agent to its being ready: it has listed all objects, and the kernel has them.
    start: f64,
    /// From sending one endpoint's change to the API server to its being in force.
    change_p50: f64,
    change_p99: f64,
    /// The agent's own memory then, and at its most.
    mebibytes: f64,
    peak_mebibytes: f64,
    /// The pages of the executable, which all podnet processes of a node share.
    executable_mebibytes: f64,
    /// From somebody's flushing all of the node's rules to the last one's being there again.
    repair: f64,
}

/// Measures with that executable on that CPU.
pub(super) fn measure(podnet: &Path, cpu: usize) -> miette::Result<Vec<Times>> {
    let podnet = podnet.canonicalize().into_diagnostic()?;
    super::example::run(
        "podnet-agent",
        "api_services",
        cpu,
        &[podnet.display().to_string()],
    )
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Times {
            services,
            start,
            change_p50,
            change_p99,
            mebibytes,
            peak_mebibytes,
            executable_mebibytes,
            repair,
        } = self;
        writeln!(
            f,
            "{services:>6} services through the API: an agent starts in {start:.0} ms; one endpoint's change p50 \
             {change_p50:.1} ms, p99 {change_p99:.1} ms from sending it; agent {mebibytes:.0} MiB of its own (at \
             most {peak_mebibytes:.0}) and {executable_mebibytes:.0} of the executable; what somebody flushes is back in {repair:.0} ms"
        )
    }
}
