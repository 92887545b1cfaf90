//! Errors as the specification wants them: a JSON object with a code (section 5, "Error").

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The specification's error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u32", from = "u32")]
pub enum Code {
    /// 1: the plugin does not speak the version of the configuration
    IncompatibleVersion,
    /// 2: a field of the configuration that the plugin does not support
    UnsupportedField,
    /// 3: the container is unknown
    UnknownContainer,
    /// 4: a wrong or missing environment variable
    InvalidEnvironment,
    /// 5: reading or writing failed
    Io,
    /// 6: the configuration is not JSON
    Decoding,
    /// 7: a wrong value in the configuration
    InvalidConfig,
    /// 8: CNI_NETNS is no network namespace, or not one of a container
    InvalidNetns,
    /// 11: it may work later
    TryAgainLater,
    /// 50: the plugin cannot serve an ADD now
    NotAvailable,
    /// 51: pods would have limited connectivity
    LimitedConnectivity,
    /// 100: the kernel refused to wire the pod
    Wiring,
    /// 101: the pod is not as ADD left it
    CheckFailed,
    /// Another one
    Other(u32),
}

impl From<Code> for u32 {
    fn from(code: Code) -> u32 {
        match code {
            Code::IncompatibleVersion => 1,
            Code::UnsupportedField => 2,
            Code::UnknownContainer => 3,
            Code::InvalidEnvironment => 4,
            Code::Io => 5,
            Code::Decoding => 6,
            Code::InvalidConfig => 7,
            Code::InvalidNetns => 8,
            Code::TryAgainLater => 11,
            Code::NotAvailable => 50,
            Code::LimitedConnectivity => 51,
            Code::Wiring => 100,
            Code::CheckFailed => 101,
            Code::Other(code) => code,
        }
    }
}

impl From<u32> for Code {
    fn from(number: u32) -> Self {
        const KNOWN: [Code; 13] = [
            Code::IncompatibleVersion,
            Code::UnsupportedField,
            Code::UnknownContainer,
            Code::InvalidEnvironment,
            Code::Io,
            Code::Decoding,
            Code::InvalidConfig,
            Code::InvalidNetns,
            Code::TryAgainLater,
            Code::NotAvailable,
            Code::LimitedConnectivity,
            Code::Wiring,
            Code::CheckFailed,
        ];
        KNOWN
            .into_iter()
            .find(|code| u32::from(*code) == number)
            .unwrap_or(Code::Other(number))
    }
}

/// What went wrong, for the runtime and for the person reading its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// The kind of error.
    pub code: Code,
    /// What failed.
    pub msg: String,
    /// Why, and what to do about it.
    pub details: String,
}

impl CniError {
    /// An error whose message says it all.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        CniError {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// Adds why, or what to do.
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The object to print, in the version of the request (as text: it may be one that we do not speak).
    pub fn to_json(&self, version: &str) -> Value {
        let mut object = json!({ "cniVersion": version, "code": u32::from(self.code), "msg": self.msg });
        if !self.details.is_empty() {
            object["details"] = json!(self.details);
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_both_ways() {
        for number in [1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 100, 101, 999] {
            assert_eq!(u32::from(Code::from(number)), number);
        }
    }

    #[test]
    fn an_error_prints_as_the_specification_says() {
        let error = CniError::new(Code::TryAgainLater, "no agent").with_details("start it");
        assert_eq!(
            error.to_json("1.0.0").to_string(),
            r#"{"cniVersion":"1.0.0","code":11,"msg":"no agent","details":"start it"}"#
        );
        assert_eq!(error.to_string(), "no agent: start it");
    }
}
