//! Whole clusters and their parts, end to end: through the real executables and in real namespaces.
//!
//! One program, because every further one is linked with everything again. Its tests are processes of their own all the same.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod announcing;
mod clients;
mod control_plane;
mod controllers;
mod kubectl;
mod lab;
mod load_balancers;
mod node_changes;
mod nodes;
mod pods;
mod policies;
mod pools;
mod repairs;
mod runtimes;
mod sandbox;
mod service_cidrs;
mod service_kinds;
mod services;
mod streaming;
mod support;
mod uplink;
mod wiring;
