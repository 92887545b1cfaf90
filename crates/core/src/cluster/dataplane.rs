//! What carries services on a node.

use std::fmt;
use std::str::FromStr;

/// A back end for services. The nftables table that podnet has on every node does everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DataplaneName {
    /// Maps of that table.
    Nftables,
    /// The same, and in front of it programs that give sockets of the node and its pods an endpoint when they connect.
    Ebpf,
    /// Virtual services of IPVS, with chains of iptables and sets of ipset around them.
    Ipvs,
    /// Chains of iptables, with sets of ipset.
    Iptables,
    /// A process that accepts clients' connections and makes others to endpoints.
    Userspace,
}

/// Why a name stands for no back end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataplaneNameError {
    /// None at all.
    #[error("{0:?} is no data plane; choose {choices}", choices = choices())]
    Unknown(String),
}

impl DataplaneName {
    /// Those there are.
    pub const ALL: [DataplaneName; 5] = [
        DataplaneName::Nftables,
        DataplaneName::Ebpf,
        DataplaneName::Ipvs,
        DataplaneName::Iptables,
        DataplaneName::Userspace,
    ];

    /// As it is written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            DataplaneName::Nftables => "nftables",
            DataplaneName::Ebpf => "ebpf",
            DataplaneName::Ipvs => "ipvs",
            DataplaneName::Iptables => "iptables",
            DataplaneName::Userspace => "userspace",
        }
    }
}

/// `auto, nftables or ...`.
fn choices() -> String {
    let mut names: Vec<&str> = DataplaneName::ALL.iter().map(|name| name.as_str()).collect();
    let last = names.pop().unwrap_or_default();
    let others = names.iter().map(|name| format!(", {name}"));
    format!("auto{} or {last}", others.collect::<String>())
}

impl FromStr for DataplaneName {
    type Err = DataplaneNameError;

    /// `auto` is the best that this version has: what a node lacks for it is told, and done without.
    fn from_str(text: &str) -> Result<Self, DataplaneNameError> {
        if text == "auto" {
            return Ok(DataplaneName::Ebpf);
        }
        let known = DataplaneName::ALL.into_iter().find(|name| name.as_str() == text);
        known.ok_or_else(|| DataplaneNameError::Unknown(text.into()))
    }
}

/// How IPVS chooses an endpoint for a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IpvsScheduler {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The same by weight; all endpoints weigh the same.
    WeightedRoundRobin,
    /// The one with the fewest connections.
    LeastConnection,
    /// The same by weight.
    WeightedLeastConnection,
    /// By a hash of the client's address and port.
    SourceHashing,
    /// By Maglev's hash of these: every node chooses the same, and when endpoints change few clients get another.
    MaglevHashing,
}

/// The name stands for no scheduler of IPVS'.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no scheduler of IPVS that podnet knows; choose rr, wrr, lc, wlc, sh or mh")]
pub struct UnknownScheduler(String);

impl IpvsScheduler {
    /// Those there are.
    pub const ALL: [IpvsScheduler; 6] = [
        IpvsScheduler::RoundRobin,
        IpvsScheduler::WeightedRoundRobin,
        IpvsScheduler::LeastConnection,
        IpvsScheduler::WeightedLeastConnection,
        IpvsScheduler::SourceHashing,
        IpvsScheduler::MaglevHashing,
    ];

    /// As IPVS calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            IpvsScheduler::RoundRobin => "rr",
            IpvsScheduler::WeightedRoundRobin => "wrr",
            IpvsScheduler::LeastConnection => "lc",
            IpvsScheduler::WeightedLeastConnection => "wlc",
            IpvsScheduler::SourceHashing => "sh",
            IpvsScheduler::MaglevHashing => "mh",
        }
    }
}

impl FromStr for IpvsScheduler {
    type Err = UnknownScheduler;

    fn from_str(text: &str) -> Result<Self, UnknownScheduler> {
        let known = IpvsScheduler::ALL.into_iter().find(|name| name.as_str() == text);
        known.ok_or_else(|| UnknownScheduler(text.to_owned()))
    }
}

impl fmt::Display for IpvsScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for DataplaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_refused_with_what_is() {
        assert_eq!("auto".parse(), Ok(DataplaneName::Ebpf));
        for name in DataplaneName::ALL {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for scheduler in IpvsScheduler::ALL {
            assert_eq!(scheduler.to_string().parse(), Ok(scheduler));
        }
        assert_eq!(
            "sed".parse::<IpvsScheduler>().unwrap_err().to_string(),
            "\"sed\" is no scheduler of IPVS that podnet knows; choose rr, wrr, lc, wlc, sh or mh"
        );
        let error = "pigeon".parse::<DataplaneName>().unwrap_err().to_string();
        assert_eq!(
            error,
            "\"pigeon\" is no data plane; choose auto, nftables, ebpf, ipvs, iptables or userspace"
        );
    }
}
