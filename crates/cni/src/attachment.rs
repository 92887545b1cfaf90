//! One interface of one container, and the names that follow from it.

use std::fmt;

use podnet_linux::MacAddr;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How the names of our ends of pods' links begin.
pub const HOST_LINK_PREFIX: &str = "podnet";
/// Longest interface name (`IFNAMSIZ` less the closing zero).
const LONGEST_LINK_NAME: usize = 15;
/// Longest container ID that a lease's file is named by as it is; file names end at 255 bytes.
const LONGEST_PLAIN_ID: usize = 200;

/// One interface of one container: what the specification calls an attachment, within one network.
///
/// Everything that is named by it can be found again by anyone who knows it, with no agent and no state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", rename_all = "camelCase")]
pub struct Attachment {
    container_id: String,
    ifname: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Unchecked {
    container_id: String,
    ifname: String,
}

impl TryFrom<Unchecked> for Attachment {
    type Error = AttachmentError;

    fn try_from(unchecked: Unchecked) -> Result<Self, Self::Error> {
        Attachment::new(&unchecked.container_id, &unchecked.ifname)
    }
}

/// A name that no attachment can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentError {
    /// The container ID.
    #[error(
        "CNI_CONTAINERID is {0:?}; it begins with a letter or digit, and letters, digits, '_', '.' and '-' follow"
    )]
    ContainerId(String),
    /// The interface's name.
    #[error("CNI_IFNAME is {0:?}; an interface's name has 1 to 15 bytes, none of them '/', ':' or a space")]
    Ifname(String),
}

impl Attachment {
    /// Checks both names: the ID by the specification's pattern, the interface by the kernel's rules
    /// (`dev_valid_name`).
    pub fn new(container_id: &str, ifname: &str) -> Result<Self, AttachmentError> {
        let mut bytes = container_id.bytes();
        let begins_well = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !begins_well || !bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
            return Err(AttachmentError::ContainerId(container_id.into()));
        }
        let valid = !ifname.is_empty()
            && ifname.len() <= LONGEST_LINK_NAME
            && ifname != "."
            && ifname != ".."
            && ifname
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
        if !valid {
            return Err(AttachmentError::Ifname(ifname.into()));
        }
        Ok(Attachment {
            container_id: container_id.into(),
            ifname: ifname.into(),
        })
    }

    /// The container.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The interface inside the container.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }

    fn digest(&self, purpose: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [purpose, "\0", &self.container_id, "\0", &self.ifname] {
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// The name of the node's end of the link: 15 bytes.
    pub fn host_link(&self) -> String {
        const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let hash = self.digest("link");
        let mut name = String::from(HOST_LINK_PREFIX);
        name.extend(
            hash[..LONGEST_LINK_NAME - HOST_LINK_PREFIX.len()]
                .iter()
                .map(|byte| char::from(DIGITS[usize::from(byte % 32)])),
        );
        name
    }

    /// The Ethernet address of the node's end.
    pub fn host_mac(&self) -> MacAddr {
        self.mac("host")
    }

    /// The Ethernet address of the container's end.
    pub fn pod_mac(&self) -> MacAddr {
        self.mac("pod")
    }

    fn mac(&self, end: &str) -> MacAddr {
        let [a, b, c, d, e, f, ..] = self.digest(end);
        MacAddr::locally_administered([a, b, c, d, e, f])
    }

    /// The name of its files among the leases. The colon is in no container ID and in no interface's name, so
    /// that it can be read back.
    pub fn file_name(&self) -> String {
        if self.container_id.len() <= LONGEST_PLAIN_ID {
            return format!("{}:{}", self.container_id, self.ifname);
        }
        let digest = self.digest("file");
        let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256-{hash}:{}", self.ifname)
    }

    /// The attachment that a file is named by. None for foreign files and for hashed container IDs.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (id, ifname) = name.split_once(':')?;
        let attachment = Attachment::new(id, ifname).ok()?;
        (!id.starts_with("sha256-")).then_some(attachment)
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "interface {} of container {}", self.ifname, self.container_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_fit_the_kernel() {
        let one = Attachment::new("0123456789abcdef", "eth0").unwrap();
        let two = Attachment::new("0123456789abcdef", "eth1").unwrap();
        assert_eq!(one.host_link().len(), 15);
        assert_eq!(one.host_link(), one.clone().host_link());
        assert_ne!(one.host_link(), two.host_link());
        assert_ne!(one.host_mac(), one.pod_mac());
        assert_eq!(
            one.pod_mac().0[0] & 0b11,
            0b10,
            "unicast and locally administered"
        );
    }

    #[test]
    fn a_file_name_reads_back() {
        let plain = Attachment::new("a.b-c_d", "net1").unwrap();
        assert_eq!(Attachment::from_file_name(&plain.file_name()), Some(plain));
        let long = Attachment::new(&"a".repeat(4000), "eth0").unwrap();
        assert!(long.file_name().len() < 255);
        assert_eq!(Attachment::from_file_name(&long.file_name()), None);
        for foreign in ["", "lost+found", ".tmp", "a:", ":b", "a/b:eth0"] {
            assert_eq!(Attachment::from_file_name(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_document_cannot_smuggle_in_a_wrong_name() {
        let wrong = r#"{"containerId":"../x","ifname":"eth0"}"#;
        assert!(serde_json::from_str::<Attachment>(wrong).is_err());
    }
}
