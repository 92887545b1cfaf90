//! Names of objects.

use std::fmt;
use std::str::FromStr;

/// Why a name is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid name: use lower-case letters, digits, '-' and '.', 253 characters at most")]
pub struct NameError(String);

/// A node's name: an RFC 1123 subdomain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// Parses a name.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        let whole = !name.is_empty() && name.len() <= 253;
        if whole && name.split('.').all(is_label_of_any_length) {
            Ok(NodeName(name))
        } else {
            Err(NameError(name))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether it is a label of RFC 1123, but for its length.
fn is_label_of_any_length(label: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !label.is_empty() && label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

/// Whether it is a label of RFC 1123: what Kubernetes asks of services', namespaces' and hosts' names.
pub(crate) fn is_label(label: &str) -> bool {
    label.len() <= 63 && is_label_of_any_length(label)
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        NodeName::new(name)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Namespace and name of a namespaced object, as the API server gave them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectName {
    /// A name from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        ObjectName {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::NodeName;

    #[test]
    fn node_names_are_subdomains() {
        for good in ["node1", "a", "ip-10-0-0-1.eu.internal", "0"] {
            assert!(NodeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "Node", "a..b", "a_b", "a/b", &"a".repeat(254)] {
            assert!(NodeName::new(bad).is_err(), "{bad}");
        }
    }
}
