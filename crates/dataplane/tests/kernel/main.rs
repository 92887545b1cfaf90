//! What was applied, as the kernel carries it out: in network namespaces, with real packets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod node_ports;
mod paths;
mod peers;
mod rolling;
mod services;
mod states;
mod traffic;
mod untranslated;
mod walks;
