//! The node as the API sees it: its object, its heartbeat, and whether its network is ready.

mod machine;
mod netd;
mod object;
mod register;

pub use machine::Machine;
pub use netd::watch_directory;
pub use object::{NodeFacts, node_object, node_status};
pub use register::{NodeApi, heartbeat};
