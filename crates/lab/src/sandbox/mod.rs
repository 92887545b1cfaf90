//! Pod sandboxes: a pause process that holds the namespaces and its containers.

pub mod pause;
