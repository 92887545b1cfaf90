//! IP pools (`IPPool`, podnet.io/v1alpha1): ranges besides those of the nodes, for pods of chosen namespaces on chosen
//! nodes.
//!
//! A pool is cut into blocks. Which node holds which block stands in the pool's status, which is written with the
//! version that was read: there is one truth about every block, and no block has two holders. A node hands out of the
//! blocks it holds; every other node routes them to it.

mod wire;

use std::fmt;

use ipnet::IpNet;

use super::{NodeName, ObjectRef, Selector};

/// An `IPPool` object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpPool {
    /// Its name.
    pub name: String,
    /// When it was created, in seconds since 1970: of two that overlap, the older counts.
    pub created: i64,
    /// Whether its deletion was asked for. It goes when no node holds a block of it any more.
    pub deleting: bool,
    /// What its owner wants, or why that cannot be.
    pub spec: Result<PoolSpec, String>,
    /// The blocks that nodes hold, in the order of their addresses. They hold them whatever becomes of `spec`: pods may
    /// live there.
    pub blocks: Vec<Block>,
    /// What its status says that cannot be read.
    pub torn: Vec<String>,
}

/// What the owner of a pool wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolSpec {
    /// Its ranges; none of them overlaps another.
    pub ranges: Vec<IpNet>,
    /// Prefix length of a block in IPv4 and in IPv6. A range that is smaller is one block.
    pub block_lengths: (u8, u8),
    /// Whose pods it is for; all, where there is none.
    pub namespaces: Option<Selector>,
    /// On which nodes; all, where there is none.
    pub nodes: Option<Selector>,
    /// Never handed out, from whichever range.
    pub reserved: Vec<IpNet>,
    /// Nothing is to be handed out of it any more. What was, stays.
    pub disabled: bool,
}

/// A part of a pool, and the node that hands out of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// Its addresses.
    pub range: IpNet,
    /// The node.
    pub node: NodeName,
    /// Since when the node does not exist any more (RFC 3339). The block is free again some time later.
    pub gone: Option<String>,
}

impl PoolSpec {
    /// The prefix length of blocks cut from a range.
    pub fn block_length(&self, range: IpNet) -> u8 {
        let wanted = match range {
            IpNet::V4(_) => self.block_lengths.0,
            IpNet::V6(_) => self.block_lengths.1,
        };
        wanted.max(range.prefix_len())
    }
}

impl ObjectRef {
    /// A reference to a pool.
    pub fn pool(name: impl fmt::Display) -> Self {
        ObjectRef {
            kind: "IPPool",
            namespace: None,
            name: name.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
