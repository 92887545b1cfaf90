//! What carries services on a node.

use std::fmt;
use std::str::FromStr;

/// A back end for services. The nftables table that podnet has on every node does everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum DataplaneName {
    /// Maps of that table.
    #[default]
    Nftables,
    /// Chains of iptables, with sets of ipset.
    Iptables,
}

/// Why a name stands for no back end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DataplaneNameError {
    /// One of the design that this version does not have.
    #[error("data plane {0:?} is not supported by this version; choose {choices}", choices = choices())]
    NotSupported(String),
    /// None at all.
    #[error("{0:?} is no data plane; choose {choices}", choices = choices())]
    Unknown(String),
}

impl DataplaneName {
    /// Those there are.
    pub const ALL: [DataplaneName; 2] = [DataplaneName::Nftables, DataplaneName::Iptables];

    /// As it is written on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            DataplaneName::Nftables => "nftables",
            DataplaneName::Iptables => "iptables",
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

    /// `auto` is the best that this version has.
    fn from_str(text: &str) -> Result<Self, DataplaneNameError> {
        if text == "auto" {
            return Ok(DataplaneName::default());
        }
        let known = DataplaneName::ALL.into_iter().find(|name| name.as_str() == text);
        known.ok_or_else(|| match text {
            "ebpf" | "ipvs" | "userspace" => DataplaneNameError::NotSupported(text.into()),
            _ => DataplaneNameError::Unknown(text.into()),
        })
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
        assert_eq!("auto".parse(), Ok(DataplaneName::Nftables));
        for name in DataplaneName::ALL {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        for (text, why) in [
            (
                "ebpf",
                "data plane \"ebpf\" is not supported by this version; choose auto",
            ),
            ("pigeon", "\"pigeon\" is no data plane; choose auto"),
        ] {
            let error = text.parse::<DataplaneName>().unwrap_err().to_string();
            assert!(
                error.starts_with(why) && error.ends_with("nftables or iptables"),
                "{error}"
            );
        }
    }
}
