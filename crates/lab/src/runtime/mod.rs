//! The runtime of a lab node: what kubelet and a container runtime do on a real one.
//!
//! [`pods`] follows the API and gives every pod a task, [`worker`]. What that task does is decided by pure
//! functions in [`pod`]; the rest carries it out: [`crate::sandbox`] for processes, [`cni`] for the network,
//! [`volumes`], [`probe`]. [`node`] keeps the node's own objects, [`streaming`] serves logs and exec.
//!
//! Everything that a pod needs beyond the life of this process is in its directory below
//! `LABDIR/nodes/NODE/pods/UID`; a runtime that starts finds the pods there and goes on with them.

pub mod cli;
pub mod cni;
pub mod containers;
mod disk;
pub mod events;
pub mod host;
pub mod node;
pub mod objects;
pub mod pod;
pub mod pods;
pub mod probe;
pub mod report;
pub mod streaming;
pub mod volumes;
pub mod worker;
