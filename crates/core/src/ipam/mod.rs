//! Which address a pod gets. No clock, no disk.
//!
//! - [`Pools`]: which pools are in force, and for whom.
//! - [`grant`]: which node holds which block of a pool; decided once for the cluster.
//! - [`Addressing`]: what one node may hand out, and to the pods of which namespace.
//! - [`Allocator`]: hands it out.

mod addressing;
mod allocator;
mod bounds;
mod grant;
mod netset;
mod pools;
mod statics;

pub(crate) use addressing::compute;
pub use addressing::{Addressing, HeldRange, PoolId, Sources};
pub use allocator::{Allocator, Refused, Slot, Usage};
pub(crate) use bounds::next;
pub use bounds::{Bounds, hosts};
pub use grant::{Claim, Grant, grant};
pub use netset::NetSet;
pub use pools::{Pools, Standing};
pub(crate) use pools::{occupied, ranges_of_pools};
pub use statics::{STATIC_ANNOTATIONS, static_addresses};

#[cfg(test)]
mod pool_tests;
