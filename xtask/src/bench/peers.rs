//! What it takes until a node's kernel has what it needs to reach many others.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What `peers` of the crate `dataplane` prints: medians, in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Times {
    /// How many other nodes, each with a range of either family.
    peers: u32,
    /// From the objects to the last entry, where there was none.
    applied: f64,
    /// The same entries, ready-made, over one netlink socket.
    bare: f64,
    /// When there is nothing to do.
    unchanged: f64,
    /// When one of them has another address.
    one_moved: f64,
}

/// Measures on that CPU.
pub(super) fn measure(cpu: usize) -> miette::Result<Times> {
    super::example::run("podnet-dataplane", "peers", cpu, &[])
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Times {
            peers,
            applied,
            bare,
            unchanged,
            one_moved,
        } = self;
        writeln!(
            f,
            "{peers} other nodes applied in one pass: {applied:.1} ms; the bare netlink work: {bare:.1} ms ({:.2}); \
             one that moves: {one_moved:.1} ms; nothing to do: {unchanged:.1} ms",
            bare / applied
        )
    }
}
