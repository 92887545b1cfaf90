//! Pod sandboxes through the real executable. Needs root.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod containers;
mod echo;
mod images;
mod pod;
mod rootless;
