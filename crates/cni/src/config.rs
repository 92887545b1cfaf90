//! The network configuration that a runtime writes to the plugin's standard input.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::attachment::Attachment;
use crate::error::{CniError, Code};
use crate::result::AddResult;
use crate::version::CniVersion;

const DEFAULT_SOCKET: &str = "/run/podnet/cni.sock";
const DEFAULT_STATE_DIR: &str = "/var/lib/podnet";

/// The configuration, as far as podnet uses it. Unknown keys belong to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Version of the specification that the answer is written in.
    pub version: CniVersion,
    /// The network's name.
    pub name: String,
    /// The agent's socket (key `socket`).
    pub socket: PathBuf,
    /// Where the agent keeps its leases (key `stateDir`).
    pub state_dir: PathBuf,
    /// What the ADD of this attachment, or the plugin before us, answered.
    pub previous: Option<AddResult>,
    /// GC: the attachments that are alive (key `cni.dev/valid-attachments`).
    pub valid_attachments: Option<Vec<Attachment>>,
}

impl NetworkConfig {
    /// The version a document asks for, as text, even if the rest of it is wrong: errors are written in it.
    pub fn version_text(document: &[u8]) -> String {
        serde_json::from_slice::<Value>(document)
            .ok()
            .and_then(|value| value.get("cniVersion")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| CniVersion::NEWEST.to_string())
    }

    /// Reads a document. What is not JSON gets code 6, a wrong value code 7, a version we do not speak code 1.
    pub fn parse(document: &[u8]) -> Result<Self, CniError> {
        let value: Value = serde_json::from_slice(document).map_err(|error| {
            CniError::new(
                Code::Decoding,
                "the network configuration on standard input is not JSON",
            )
            .with_details(error.to_string())
        })?;
        let Value::Object(object) = value else {
            return Err(CniError::new(
                Code::Decoding,
                "the network configuration is not a JSON object",
            ));
        };
        Ok(NetworkConfig {
            version: version(&object)?,
            name: name(&object)?,
            socket: path(&object, "socket", DEFAULT_SOCKET)?,
            state_dir: path(&object, "stateDir", DEFAULT_STATE_DIR)?,
            previous: previous(&object)?,
            valid_attachments: valid_attachments(&object)?,
        })
    }
}

fn invalid(key: &str, why: impl std::fmt::Display) -> CniError {
    CniError::new(
        Code::InvalidConfig,
        format!("the network configuration's {key:?} is wrong"),
    )
    .with_details(why.to_string())
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, CniError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(invalid(key, format!("{other} is not a string"))),
    }
}

fn version(object: &Map<String, Value>) -> Result<CniVersion, CniError> {
    // The specification's first versions had no such key, so a document without it means 0.1.0.
    let wanted = text(object, "cniVersion")?.unwrap_or("0.1.0");
    CniVersion::parse(wanted).ok_or_else(|| {
        let spoken: Vec<_> = CniVersion::ALL.iter().map(|version| version.as_str()).collect();
        CniError::new(
            Code::IncompatibleVersion,
            format!("podnet does not speak CNI version {wanted:?}"),
        )
        .with_details(format!("set cniVersion to one of {}", spoken.join(", ")))
    })
}

fn name(object: &Map<String, Value>) -> Result<String, CniError> {
    let name = text(object, "name")?.unwrap_or_default();
    let mut bytes = name.bytes();
    let valid = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid {
        return Ok(name.into());
    }
    Err(invalid(
        "name",
        format!("{name:?} does not begin with a letter or digit, or has more than those, '_', '.', '-'"),
    ))
}

fn path(object: &Map<String, Value>, key: &str, default: &str) -> Result<PathBuf, CniError> {
    let path = PathBuf::from(text(object, key)?.unwrap_or(default));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(invalid(key, format!("{path:?} is not an absolute path")))
    }
}

fn previous(object: &Map<String, Value>) -> Result<Option<AddResult>, CniError> {
    match object.get("prevResult") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => AddResult::from_json(value)
            .map(Some)
            .map_err(|error| invalid("prevResult", error)),
    }
}

fn valid_attachments(object: &Map<String, Value>) -> Result<Option<Vec<Attachment>>, CniError> {
    const KEY: &str = "cni.dev/valid-attachments";
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "containerID")]
        container_id: String,
        ifname: String,
    }
    let Some(value) = object.get(KEY) else {
        return Ok(None);
    };
    let entries = Vec::<Entry>::deserialize(value).map_err(|error| invalid(KEY, error))?;
    let attachments = entries
        .iter()
        .map(|entry| Attachment::new(&entry.container_id, &entry.ifname))
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(KEY, error))?;
    Ok(Some(attachments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_with_keys_of_others() {
        let config = NetworkConfig::parse(
            br#"{"cniVersion":"1.0.0","name":"podnet","type":"podnet-cni","socket":"/s","capabilities":{"x":true},
                 "prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/32"}]}}"#,
        )
        .unwrap();
        assert_eq!(config.version, CniVersion::V1_0_0);
        assert_eq!(config.socket.to_str(), Some("/s"));
        assert_eq!(config.state_dir.to_str(), Some("/var/lib/podnet"));
        assert_eq!(config.previous.unwrap().ips.len(), 1);
    }

    #[test]
    fn what_is_wrong_has_its_code_and_names_its_key() {
        for (document, code, key) in [
            ("", Code::Decoding, "not JSON"),
            ("{", Code::Decoding, "not JSON"),
            ("[]", Code::Decoding, "object"),
            (r#"{"name":"n"}"#, Code::IncompatibleVersion, "0.1.0"),
            (
                r#"{"cniVersion":"0.2.0","name":"n"}"#,
                Code::IncompatibleVersion,
                "0.2.0",
            ),
            (
                r#"{"cniVersion":"9.9.9","name":"n"}"#,
                Code::IncompatibleVersion,
                "9.9.9",
            ),
            (
                r#"{"cniVersion":1,"name":"n"}"#,
                Code::InvalidConfig,
                "cniVersion",
            ),
            (r#"{"cniVersion":"1.0.0"}"#, Code::InvalidConfig, "name"),
            (
                r#"{"cniVersion":"1.0.0","name":"a b"}"#,
                Code::InvalidConfig,
                "name",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","socket":"relative"}"#,
                Code::InvalidConfig,
                "socket",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","stateDir":7}"#,
                Code::InvalidConfig,
                "stateDir",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","prevResult":{"ips":[{"address":"x"}]}}"#,
                Code::InvalidConfig,
                "prevResult",
            ),
            (
                r#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[{"containerID":"/","ifname":"e"}]}"#,
                Code::InvalidConfig,
                "cni.dev/valid-attachments",
            ),
        ] {
            let error = NetworkConfig::parse(document.as_bytes()).unwrap_err();
            assert_eq!(error.code, code, "{document}: {error}");
            assert!(error.msg.contains(key), "{document}: {error}");
        }
    }

    #[test]
    fn an_empty_list_of_the_living_is_not_the_same_as_none() {
        let parse = |text: &str| NetworkConfig::parse(text.as_bytes()).unwrap().valid_attachments;
        assert_eq!(
            parse(r#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[]}"#),
            Some(vec![])
        );
        assert_eq!(parse(r#"{"cniVersion":"1.1.0","name":"n"}"#), None);
    }
}
