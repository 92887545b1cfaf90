//! A versioned store of Kubernetes objects, and list, watch and patch over HTTP

pub mod api;
pub mod bootstrap;
pub mod cli;
pub mod kinds;
pub mod patch;
pub mod pki;
pub mod registry;
pub mod rest;
pub mod select;
pub mod services;
pub mod status;
pub mod store;
