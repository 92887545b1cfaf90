//! A whole cluster on one machine: nodes, pods and the runtime that runs them

pub mod cli;
pub mod cluster;
pub mod echo;
pub mod image;
pub mod rootview;
pub mod runtime;
pub mod sandbox;
pub mod uplink;
