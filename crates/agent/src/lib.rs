//! The node loop: watch, compute, apply; and the socket the CNI plugin calls

pub mod announce;
pub mod blocks;
pub mod busy_ports;
pub mod cleanup;
pub mod cli;
pub mod cni_server;
pub mod dropins;
pub mod health_checks;
pub mod host_ports;
pub mod ipam;
pub mod metrics;
pub mod node;
pub mod orphans;
pub mod parse;
pub mod paths;
pub mod policy;
pub mod report;
pub mod service;
pub mod settings;
pub mod status;
pub mod sysctls;
pub mod watch;
mod web;
pub mod wiring;
