//! How pods are wired, by name: the agent's flag, and the key `wiring` of a network's configuration.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A way to wire pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WiringName {
    /// A netkit pair where the kernel has it, else a veth pair.
    Auto,
    /// A veth pair of its own.
    Ptp,
    /// A netkit pair of its own (Linux 6.7).
    Netkit,
    /// A port of the node's bridge.
    Bridge,
}

impl WiringName {
    const ALL: [WiringName; 4] = [
        WiringName::Auto,
        WiringName::Ptp,
        WiringName::Netkit,
        WiringName::Bridge,
    ];
}

impl fmt::Display for WiringName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WiringName::Auto => "auto",
            WiringName::Ptp => "ptp",
            WiringName::Netkit => "netkit",
            WiringName::Bridge => "bridge",
        })
    }
}

impl FromStr for WiringName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|name| name.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is no way to wire pods; choose auto, ptp, netkit or bridge"))
    }
}
