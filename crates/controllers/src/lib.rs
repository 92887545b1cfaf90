//! The control loops that a Kubernetes network needs once per cluster.
//!
//! Every controller is a pure function from the objects that exist (a [`world::World`]) to the actions that bring
//! them nearer to what they ask for. [`engine::Engine`] decides which controller looks at what and when; it is a
//! state machine without sockets or clocks. [`drive`] is the only part that talks: it feeds watches in and carries
//! actions out.
//!
//! ```text
//!  API ──watch──▶ World ──Change──▶ affected keys ──plan──▶ Actions ──▶ API
//!                   ▲                                          │
//!                   └────────── answers, before the watch ─────┘
//! ```

pub mod action;
pub mod claim;
pub mod cli;
pub mod control;
pub mod deployment;
pub mod drive;
pub mod election;
pub mod endpoints;
pub mod engine;
pub mod execute;
pub mod garbage;
pub mod ip_pools;
pub mod load_balancers;
pub mod namespace;
pub mod node_lifecycle;
pub mod node_ranges;
mod own_kind;
pub mod pod;
pub mod pod_gc;
pub mod replicaset;
pub mod resource;
pub mod scheduler;
pub mod selector;
pub mod store;
pub mod world;
