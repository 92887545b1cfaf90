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
    /// The same of a proxy in user space; 0 where none carries them.
    #[serde(default)]
    proxy_mebibytes: f64,
    /// What a pod pays for a service among them, and without one.
    service: Cost,
    direct: Cost,
}

/// What it costs to reach something.
#[derive(Debug, Serialize, Deserialize)]
struct Cost {
    /// From a first packet to its answer, in microseconds.
    first_p50: f64,
    first_p99: f64,
    /// Connections in a second, client and server on one CPU.
    connects: f64,
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
            proxy_mebibytes,
            service,
            direct,
        } = self;
        write!(
            f,
            "{services:>6} services by {dataplane}: all of them {full:.1} ms; a restart {restart:.1} ms; one endpoint's change p50 \
             {change_p50:.1} ms, p99 {change_p99:.1} ms (of it {compute:.1} ms to work out the state); {mebibytes:.1} MiB"
        )?;
        if *proxy_mebibytes > 0.0 {
            write!(f, ", its proxy {proxy_mebibytes:.1} MiB")?;
        }
        writeln!(
            f,
            "; a first packet there and back p50 {:.0} µs, p99 {:.0} µs ({:.0} and {:.0} to the endpoint itself), {:.0} connections a second \
             ({:.2} of the endpoint's)",
            service.first_p50,
            service.first_p99,
            direct.first_p50,
            direct.first_p99,
            service.connects,
            service.connects / direct.connects
        )
    }
}
