//! The node's loop, from updates to the kernel: real kernels in namespaces of the tests, and no API server.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod half_applied;
mod paths;
mod waiting;
