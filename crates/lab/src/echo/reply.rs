//! The one JSON object with which every request is answered.

use std::collections::BTreeMap;
use std::env;
use std::net::SocketAddr;

use serde::Serialize;

/// Who answers.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Identity {
    pub(super) pod: String,
    pub(super) namespace: String,
    pub(super) node: String,
}

impl Identity {
    /// From the variables that the lab's runtime sets, as a pod's downward API would.
    pub(super) fn from_environment() -> Identity {
        let read = |name| env::var(name).unwrap_or_default();
        let pod = env::var("POD_NAME")
            .or_else(|_| env::var("HOSTNAME"))
            .unwrap_or_default();
        Identity {
            pod,
            namespace: read("POD_NAMESPACE"),
            node: read("NODE_NAME"),
        }
    }
}

/// One answer.
#[derive(Debug, Serialize)]
pub(super) struct Reply<'request> {
    #[serde(flatten)]
    pub(super) identity: &'request Identity,
    pub(super) client: String,
    pub(super) server: String,
    pub(super) protocol: &'static str,
    #[serde(flatten)]
    pub(super) content: Content,
}

/// What was asked.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum Content {
    Http {
        method: String,
        path: String,
        host: String,
        headers: BTreeMap<String, String>,
    },
    Data {
        received: String,
    },
}

impl Reply<'_> {
    /// One line.
    pub(super) fn line(&self) -> Vec<u8> {
        // Strings and maps with string keys cannot fail to become JSON.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// `address:port`, as IPv4 where that was spoken.
pub(super) fn show(address: SocketAddr) -> String {
    SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
}
