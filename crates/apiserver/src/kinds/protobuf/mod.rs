//! Reading `application/vnd.kubernetes.protobuf`, which kubectl and client-go send for the kinds they are compiled with.
//!
//! A body is four magic bytes and a `runtime.Unknown` that names the kind and holds its message. What comes out is the
//! object as its JSON would have been; from there on it goes the way of every other body. Answers stay JSON, which
//! those clients accept as their second choice.

use serde_json::{Map, Value};

mod message;
mod table;
mod wire;

#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;

/// The media type of bodies that [`decode`] reads.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// What such a body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The bytes are no message of the kind they name (400).
    #[error("{0}")]
    Malformed(String),
    /// There is no table for this kind (415).
    #[error("{kind:?} in version {api_version:?} is not read from protobuf: send it as JSON or YAML")]
    UnknownKind {
        /// `v1` or `apps/v1`, as the body says.
        api_version: String,
        /// The kind, as the body says.
        kind: String,
    },
}

impl From<wire::WireError> for ProtobufError {
    fn from(error: wire::WireError) -> Self {
        ProtobufError::Malformed(format!("the body's protobuf is broken: {error}"))
    }
}

/// The object that a body holds, with its apiVersion and kind.
pub fn decode(body: &[u8]) -> Result<Value, ProtobufError> {
    let unknown = body.strip_prefix(MAGIC).ok_or_else(|| {
        ProtobufError::Malformed(
            "provided data does not appear to be a protobuf message, expected prefix 6b 38 73 00".into(),
        )
    })?;
    let Unknown {
        api_version,
        kind,
        raw,
    } = Unknown::read(unknown)?;
    let Some(root) = root(&api_version, &kind) else {
        return Err(ProtobufError::UnknownKind { api_version, kind });
    };
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    message::read(root, raw, &mut object)?;
    Ok(Value::Object(object))
}

/// Message `k8s.io.apimachinery.pkg.runtime.Unknown`.
struct Unknown<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
}

impl<'a> Unknown<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ProtobufError> {
        let mut unknown = Unknown {
            api_version: String::new(),
            kind: String::new(),
            raw: &[],
        };
        for field in wire::fields(bytes) {
            match field? {
                (1, value) => unknown.type_meta(value.bytes()?)?,
                (2, value) => unknown.raw = value.bytes()?,
                (3, value) if !value.bytes()?.is_empty() => {
                    let message = format!("content encoding {:?} is not read: send none", value.text()?);
                    return Err(ProtobufError::Malformed(message));
                }
                _ => {}
            }
        }
        Ok(unknown)
    }

    fn type_meta(&mut self, bytes: &[u8]) -> Result<(), ProtobufError> {
        for field in wire::fields(bytes) {
            match field? {
                (1, value) => self.api_version = value.text()?.to_owned(),
                (2, value) => self.kind = value.text()?.to_owned(),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The message of a kind. DeleteOptions come under the version of whatever is to be deleted.
fn root(api_version: &str, kind: &str) -> Option<&'static table::Message> {
    if kind == "DeleteOptions" {
        return table::message("meta.DeleteOptions");
    }
    let group = match api_version.split_once('/') {
        None if api_version == "v1" => "core",
        Some((group, "v1")) => group.strip_suffix(".k8s.io").unwrap_or(group),
        _ => return None,
    };
    table::message(&format!("{group}.{kind}")).filter(|message| message.is_kind())
}
