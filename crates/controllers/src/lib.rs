//! The control loops that a Kubernetes network needs once per cluster

pub mod cli;
