//! What podnet's programs in the kernel decide, and the layouts of the maps they share with the agent.
//!
//! The programs (`crates/ebpf`) only fetch and store; every decision is a function here, over a trait for the maps, so
//! that ordinary tests run the code that runs in the kernel. Nothing here allocates, panics or loops without a bound.
//!
//! All layouts are `repr(C)` without padding the compiler makes: what looks like padding is a field that is zero, because
//! the kernel compares keys byte by byte.

#![no_std]

mod address;
pub mod connect;
pub mod packet;
pub mod path;
pub mod tunnel;

pub use address::{Address, Endpoint, Frontend, Protocol};
