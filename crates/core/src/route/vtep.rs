//! Link-layer addresses of tunnel endpoints.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::cluster::NodeName;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of the tunnel endpoint of a node: 46 bits of a hash of its name, as a locally administered
    /// unicast address (IEEE 802, U/L bit set, I/G bit clear).
    pub fn of_node(name: &NodeName) -> Self {
        let hash = Sha256::new()
            .chain_update(b"podnet tunnel endpoint\0")
            .chain_update(name.as_str())
            .finalize();
        let mut mac = [0; 6];
        mac.copy_from_slice(&hash[..6]);
        mac[0] = mac[0] & 0b1111_1100 | 0b10;
        Mac(mac)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
