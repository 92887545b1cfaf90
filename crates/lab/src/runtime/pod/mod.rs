//! The life of a pod as pure functions: what there is and what is wanted, to what is to be done and what is
//! reported.
//!
//! [`decide::decide`] gives the next actions and [`status::pod_status`] the status, both from the pod as the
//! API has it and the [`state::PodState`] as the runtime knows it. Neither does I/O nor reads a clock.

pub mod backoff;
pub mod conditions;
pub mod decide;
pub mod env;
pub mod fields;
pub mod files;
pub mod identity;
pub mod service_env;
pub mod spec;
pub mod state;
pub mod status;

#[cfg(test)]
pub(crate) mod testing;
