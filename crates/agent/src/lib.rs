//! The node loop: watch, compute, apply; and the socket the CNI plugin calls

pub mod cleanup;
pub mod cli;
pub mod cni_server;
pub mod ipam;
pub mod metrics;
pub mod node;
pub mod parse;
pub mod paths;
pub mod report;
pub mod status;
pub mod watch;
pub mod wiring;
