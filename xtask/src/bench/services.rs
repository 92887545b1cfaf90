//! What it takes until a change of services is in force.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What `services` of the crate `dataplane` prints, in milliseconds: one for each number of services.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Times {
    /// What carries services.
    dataplane: String,
    /// How many services, each with five endpoints.
    services: u32,
    /// From the objects to the state that a node should have.
    compute: f64,
    /// From the objects to the last element, where there was none.
    full: f64,
    /// The same for an agent that starts and finds all of it there.
    restart: f64,
    /// From one endpoint's change to its being in force.
    change_p50: f64,
    change_p99: f64,
    /// What objects, states and tables take in memory.
    mebibytes: f64,
}

/// Measures on that CPU.
pub(super) fn measure(cpu: usize) -> miette::Result<Vec<Times>> {
    super::example::run("podnet-dataplane", "services", cpu, &[])
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Times {
            dataplane,
            services,
            compute,
            full,
            restart,
            change_p50,
            change_p99,
            mebibytes,
        } = self;
        writeln!(
            f,
            "{services:>6} services by {dataplane}: all of them {full:.1} ms; a restart {restart:.1} ms; one endpoint's change p50 \
             {change_p50:.1} ms, p99 {change_p99:.1} ms (of it {compute:.1} ms to work out the state); {mebibytes:.1} MiB"
        )
    }
}
