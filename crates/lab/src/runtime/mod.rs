//! The runtime of a lab node: what kubelet and a container runtime do on a real one.

pub mod cli;
pub mod cni;
pub mod pod;
pub mod streaming;
