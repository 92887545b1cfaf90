//! The node's loop, from updates to the kernel: real kernels in namespaces of the tests, and of an API server no more
//! than a stub.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod forbidden;
mod half_applied;
mod paths;
mod waiting;
