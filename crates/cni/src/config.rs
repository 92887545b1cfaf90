//! The network configuration that a runtime writes to the plugin's standard input.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::attachment::Attachment;
use crate::error::{CniError, Code};
use crate::pod_settings::PodSettings;
use crate::result::AddResult;
use crate::runtime_config::RuntimeConfig;
use crate::version::CniVersion;

const DEFAULT_SOCKET: &str = "/run/podnet/cni.sock";
const DEFAULT_STATE_DIR: &str = "/var/lib/podnet";

/// The configuration, as far as podnet uses it. Unknown keys belong to others.
///
/// What only some verbs need is read when they ask for it: a DEL must not fail on what it does not use.
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
    /// CHECK is not wanted (key `disableCheck` of a network's list).
    pub check_disabled: bool,
    /// GC is not wanted (key `disableGC` of a network's list).
    pub gc_disabled: bool,
    document: Map<String, Value>,
}

impl NetworkConfig {
    /// The version to write an error in, even if the document is wrong: its own, if it has one.
    pub fn version_text(document: &[u8]) -> String {
        let Ok(Value::Object(object)) = serde_json::from_slice(document) else {
            return CniVersion::NEWEST.to_string();
        };
        match (version(&object), object.get("cniVersion")) {
            (Ok(version), _) => version.to_string(),
            (Err(_), Some(Value::String(text))) => text.clone(),
            _ => CniVersion::NEWEST.to_string(),
        }
    }

    /// Reads a document. What is not JSON gets code 6, a wrong value code 7, a version we do not speak code 1.
    pub fn parse(document: &[u8]) -> Result<Self, CniError> {
        let object = json_object(document)?;
        Ok(NetworkConfig {
            version: version(&object)?,
            name: name(&object)?,
            socket: path(&object, "socket", DEFAULT_SOCKET)?,
            state_dir: path(&object, "stateDir", DEFAULT_STATE_DIR)?,
            check_disabled: flag(&object, "disableCheck")?,
            gc_disabled: flag(&object, "disableGC")?,
            document: object,
        })
    }

    /// What the ADD of this attachment, or the plugin before us, answered (key `prevResult`).
    pub fn previous(&self) -> Result<Option<AddResult>, CniError> {
        match self.document.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => AddResult::from_json(value)
                .map(Some)
                .map_err(|error| invalid("prevResult", error)),
        }
    }

    /// What the pod wishes (key `runtimeConfig`).
    pub fn runtime_config(&self) -> Result<RuntimeConfig, CniError> {
        RuntimeConfig::parse(&self.document)
    }

    /// Settings and routes of the network's pods (keys `sysctl` and `routes`).
    pub fn pod_settings(&self) -> Result<PodSettings, CniError> {
        PodSettings::parse(&self.document)
    }

    /// GC: the attachments that are alive (key `cni.dev/valid-attachments`).
    pub fn valid_attachments(&self) -> Result<Option<Vec<Attachment>>, CniError> {
        valid_attachments(&self.document)
    }
}

/// The document as an object, or code 6.
pub(crate) fn json_object(document: &[u8]) -> Result<Map<String, Value>, CniError> {
    let value: Value = serde_json::from_slice(document).map_err(|error| {
        CniError::new(
            Code::Decoding,
            "the network configuration on standard input is not JSON",
        )
        .with_details(error.to_string())
    })?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(CniError::new(
            Code::Decoding,
            "the network configuration on standard input is not a JSON object",
        )
        .with_details(
            "it is what the runtime makes of a file in its CNI configuration directory: see there",
        )),
    }
}

pub(crate) fn invalid(key: &str, why: impl std::fmt::Display) -> CniError {
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

/// Early configurations write flags as text.
fn flag(object: &Map<String, Value>, key: &str) -> Result<bool, CniError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(set)) => Ok(*set),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.is_empty() || text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(invalid(key, format!("{other} is neither true nor false"))),
    }
}

/// `cniVersion`, which a runtime sets to what it wants an answer in. Without it a network that lists `cniVersions` is
/// spoken to in the newest of them that we know.
fn version(object: &Map<String, Value>) -> Result<CniVersion, CniError> {
    let wanted = text(object, "cniVersion")?;
    let listed = versions(object)?;
    // The specification's first versions had no such key, so a document without it means 0.1.0.
    let only = wanted.map(CniVersion::parse);
    let newest = || listed.iter().filter_map(|text| CniVersion::parse(text)).max();
    only.unwrap_or_else(newest).ok_or_else(|| {
        let spoken: Vec<_> = CniVersion::ALL.iter().map(|version| version.as_str()).collect();
        let wanted = wanted.unwrap_or(listed.first().copied().unwrap_or("0.1.0"));
        CniError::new(
            Code::IncompatibleVersion,
            format!("podnet does not speak CNI version {wanted:?}"),
        )
        .with_details(format!("set cniVersion to one of {}", spoken.join(", ")))
    })
}

fn versions(object: &Map<String, Value>) -> Result<Vec<&str>, CniError> {
    const KEY: &str = "cniVersions";
    let Some(value) = object.get(KEY).filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let texts = value.as_array().and_then(|list| {
        let texts = list.iter().map(Value::as_str);
        texts.collect::<Option<Vec<_>>>()
    });
    texts.ok_or_else(|| invalid(KEY, format!("{value} is not a list of strings")))
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

fn valid_attachments(object: &Map<String, Value>) -> Result<Option<Vec<Attachment>>, CniError> {
    const KEY: &str = "cni.dev/valid-attachments";
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "containerID")]
        container_id: String,
        ifname: String,
    }
    let Some(value) = object.get(KEY).filter(|value| !value.is_null()) else {
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
        assert_eq!(config.previous().unwrap().unwrap().ips.len(), 1);
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
                r#"{"cniVersions":["0.2.0","9.0.0"],"name":"n"}"#,
                Code::IncompatibleVersion,
                "0.2.0",
            ),
            (
                r#"{"cniVersion":"1.0.0","cniVersions":"1.0.0","name":"n"}"#,
                Code::InvalidConfig,
                "cniVersions",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","disableGC":"perhaps"}"#,
                Code::InvalidConfig,
                "disableGC",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","disableCheck":1}"#,
                Code::InvalidConfig,
                "disableCheck",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"mac":"x"}}"#,
                Code::InvalidConfig,
                "runtimeConfig.mac",
            ),
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
            let parsed = NetworkConfig::parse(document.as_bytes());
            let error = parsed
                .and_then(|config| {
                    config.previous()?;
                    config.runtime_config()?;
                    config.valid_attachments()
                })
                .unwrap_err();
            assert_eq!(error.code, code, "{document}: {error}");
            assert!(error.msg.contains(key), "{document}: {error}");
        }
    }

    #[test]
    fn a_network_that_lists_versions_is_spoken_to_in_the_one_asked_for_or_the_newest() {
        let version = |text: &str| NetworkConfig::parse(text.as_bytes()).unwrap().version;
        assert_eq!(
            version(r#"{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0"],"name":"n"}"#),
            CniVersion::V0_4_0
        );
        let listed = r#"{"cniVersions":["0.4.0","1.0.0","9.0.0"],"name":"n"}"#;
        assert_eq!(version(listed), CniVersion::V1_0_0);
        assert_eq!(NetworkConfig::version_text(listed.as_bytes()), "1.0.0");
        assert_eq!(NetworkConfig::version_text(br#"{"cniVersion":"7"}"#), "7");
        assert_eq!(NetworkConfig::version_text(b"["), "1.1.0");
    }

    #[test]
    fn an_empty_list_of_the_living_is_not_the_same_as_none() {
        let parse = |text: &str| {
            let config = NetworkConfig::parse(text.as_bytes()).unwrap();
            config.valid_attachments().unwrap()
        };
        assert_eq!(
            parse(r#"{"cniVersion":"1.1.0","name":"n","cni.dev/valid-attachments":[]}"#),
            Some(vec![])
        );
        assert_eq!(parse(r#"{"cniVersion":"1.1.0","name":"n"}"#), None);
    }
}
