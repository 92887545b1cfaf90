//! What the cluster's DNS answers, asked and read with a library that shares no code with it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ask;
mod autopath;
mod cluster;
mod oracle;
mod properties;
mod specification;
mod wire;
