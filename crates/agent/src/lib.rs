//! The node loop: watch, compute, apply; and the socket the CNI plugin calls

pub mod cli;
pub mod cni_server;
pub mod ipam;
pub mod wiring;
pub mod cleanup;
