//! Probes: when a container counts as started, as ready, as alive.

pub mod check;
mod grpc;
mod http;
pub mod verdict;

pub use check::{Check, Target};
pub use verdict::{Kind, Settings, Verdict};
