//! Kernel settings under /proc/sys.
//!
//! What is below `net` belongs to the network namespace of the calling thread.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} the kernel setting {key}: {source}")]
pub struct SysctlError {
    verb: &'static str,
    key: String,
    /// The cause.
    pub source: io::Error,
}

impl SysctlError {
    /// The kernel has no such setting (an interface that is gone, or IPv6 switched off).
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}

/// The value of `key`, such as `net/ipv4/ip_forward`, without the line's end.
pub fn get(key: &str) -> Result<String, SysctlError> {
    let value = std::fs::read_to_string(path(key)).map_err(|source| SysctlError {
        verb: "read",
        key: key.into(),
        source,
    })?;
    Ok(value.trim_end().to_owned())
}

/// Gives `key` a value.
pub fn set(key: &str, value: &str) -> Result<(), SysctlError> {
    // Never creates: in a directory that is not the kernel's, that would leave a file behind.
    OpenOptions::new()
        .write(true)
        .open(path(key))
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| SysctlError {
            verb: "set",
            key: key.into(),
            source,
        })
}

/// Gives `key` a value unless it has it, so that a read-only /proc/sys which is right already is no error.
pub fn ensure(key: &str, value: &str) -> Result<(), SysctlError> {
    if get(key)? == value {
        Ok(())
    } else {
        set(key, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ns::{Kind, Namespace};

    #[test]
    fn a_setting_of_a_namespace_is_its_own() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        let before = get("net/ipv4/ip_forward").unwrap();
        namespace
            .run(|| {
                set("net/ipv4/ip_forward", "1").unwrap();
                ensure("net/ipv4/ip_forward", "1").unwrap();
                assert_eq!(get("net/ipv4/ip_forward").unwrap(), "1");
            })
            .unwrap();
        assert_eq!(get("net/ipv4/ip_forward").unwrap(), before);
    }

    #[test]
    fn a_missing_setting_says_its_name() {
        let error = get("net/ipv4/conf/nosuchlink/rp_filter").unwrap_err();
        assert!(error.is_not_found());
        assert!(error.to_string().contains("nosuchlink"));
    }
}
