//! Policies from manifests to verdicts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clusterwide;
mod network;
mod world;
