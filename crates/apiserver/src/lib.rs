//! A versioned store of Kubernetes objects, and list, watch and patch over HTTP

pub mod cli;
pub mod kinds;
