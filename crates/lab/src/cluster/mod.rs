//! The lab: its namespaces, its processes, its files.
//!
//! `podnet lab up` is the [`launch`] side: it asks, waits and reports. Everything that stands afterwards is a
//! descendant of one process, [`init`], PID 1 of the lab's own PID namespace: when that process dies, however it
//! dies, the kernel ends all others and frees their namespaces, links and mounts. What remains are files under
//! one directory ([`layout::LabDir`]), and those [`teardown`] removes.

pub mod api;
pub mod create;
pub mod enter;
pub mod exec;
mod group;
pub mod init;
pub mod launch;
pub mod layout;
pub mod node;
pub mod plan;
pub mod precondition;
pub mod ready;
pub mod record;
pub mod service;
pub mod status;
pub mod teardown;
pub mod underlay;
