//! The environment a runtime calls the plugin with (specification section 2, "Parameters").

use std::path::PathBuf;

use crate::attachment::Attachment;
use crate::cni_args::CniArgs;
use crate::error::{CniError, Code};

/// What the runtime asks for, with what it must say for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Connect a container.
    Add {
        /// Which container and interface.
        attachment: Attachment,
        /// The container's network namespace.
        netns: PathBuf,
    },
    /// Undo an ADD, as often as it takes.
    Del {
        /// Which container and interface.
        attachment: Attachment,
        /// The container's network namespace, unless it is gone.
        netns: Option<PathBuf>,
    },
    /// Compare a container with what ADD left.
    Check {
        /// Which container and interface.
        attachment: Attachment,
        /// The container's network namespace.
        netns: PathBuf,
    },
    /// Say whether an ADD could succeed.
    Status,
    /// Free what belongs to no container that is known.
    Gc,
    /// List the versions spoken.
    Version,
}

/// The whole environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// What is asked for.
    pub command: Command,
    /// For which pod, and what else a runtime says of it.
    pub args: CniArgs,
}

impl Invocation {
    /// Reads the environment through `variable`. What is wrong gets code 4.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let attachment = || {
            let id = get("CNI_CONTAINERID").ok_or_else(|| missing("CNI_CONTAINERID"))?;
            let ifname = get("CNI_IFNAME").ok_or_else(|| missing("CNI_IFNAME"))?;
            Attachment::new(&id, &ifname).map_err(|error| wrong(error.to_string()))
        };
        let netns = || get("CNI_NETNS").map(PathBuf::from);
        let command = match get("CNI_COMMAND").ok_or_else(|| missing("CNI_COMMAND"))?.as_str() {
            "ADD" => {
                let attachment = attachment()?;
                Command::Add {
                    attachment,
                    netns: netns().ok_or_else(|| missing("CNI_NETNS"))?,
                }
            }
            "CHECK" => {
                let attachment = attachment()?;
                Command::Check {
                    attachment,
                    netns: netns().ok_or_else(|| missing("CNI_NETNS"))?,
                }
            }
            "DEL" => Command::Del {
                attachment: attachment()?,
                netns: netns(),
            },
            "STATUS" => Command::Status,
            "GC" => Command::Gc,
            "VERSION" => Command::Version,
            other => {
                return Err(wrong(format!(
                    "CNI_COMMAND is {other:?}; it can be ADD, DEL, CHECK, STATUS, GC or VERSION"
                )));
            }
        };
        let args = get("CNI_ARGS").map(|text| CniArgs::parse(&text)).transpose();
        let args = match command {
            Command::Add { .. } | Command::Check { .. } => args?,
            // The others need nothing of it: what is wrong in it must keep no pod from being deleted.
            _ => args.unwrap_or_default(),
        };
        Ok(Invocation {
            command,
            args: args.unwrap_or_default(),
        })
    }
}

fn missing(name: &str) -> CniError {
    wrong(format!("the environment variable {name} is missing"))
}

/// Whoever calls the plugin has to put it right.
pub(crate) fn wrong(msg: String) -> CniError {
    CniError::new(Code::InvalidEnvironment, msg)
        .with_details("a container runtime sets the CNI_ variables: see its log for what it asked for")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Invocation, CniError> {
        Invocation::read(|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_whole_environment() {
        let invocation = read(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_NETNS", "/proc/7/ns/net"),
            ("CNI_IFNAME", "eth0"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=1-2",
            ),
        ])
        .unwrap();
        let Command::Add { attachment, netns } = invocation.command else {
            panic!()
        };
        assert_eq!((attachment.container_id(), attachment.ifname()), ("abc", "eth0"));
        assert_eq!(netns.to_str(), Some("/proc/7/ns/net"));
        assert_eq!(
            (
                invocation.args.pod.name.as_str(),
                invocation.args.pod.uid.as_str()
            ),
            ("web", "1-2")
        );
    }

    #[test]
    fn a_delete_needs_no_namespace_and_a_status_needs_nothing() {
        read(&[
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_IFNAME", "eth0"),
        ])
        .unwrap();
        read(&[("CNI_COMMAND", "STATUS")]).unwrap();
        read(&[("CNI_COMMAND", "GC")]).unwrap();
    }

    #[test]
    fn what_is_wrong_is_code_4_and_named() {
        let base = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_NETNS", "/n"),
            ("CNI_IFNAME", "eth0"),
        ];
        for (name, value) in [
            ("CNI_COMMAND", ""),
            ("CNI_COMMAND", "EXPLODE"),
            ("CNI_CONTAINERID", ""),
            ("CNI_CONTAINERID", "../etc"),
            ("CNI_NETNS", ""),
            ("CNI_IFNAME", ""),
            ("CNI_IFNAME", "a-name-far-too-long"),
            ("CNI_IFNAME", "eth/0"),
            ("CNI_IFNAME", "eth 0"),
            ("CNI_IFNAME", "eth:0"),
            ("CNI_IFNAME", "."),
            ("CNI_IFNAME", ".."),
        ] {
            let pairs: Vec<_> = base
                .iter()
                .map(|(key, good)| (*key, if *key == name { value } else { *good }))
                .collect();
            let error = read(&pairs).unwrap_err();
            assert_eq!(error.code, Code::InvalidEnvironment, "{name}={value:?}");
            assert!(error.msg.contains(name), "{error}");
        }
        let mut pairs = base.to_vec();
        pairs.push(("CNI_ARGS", "nonsense"));
        assert!(read(&pairs).unwrap_err().msg.contains("CNI_ARGS"));
        // A pod that was never added is deleted all the same.
        pairs[0].1 = "DEL";
        assert_eq!(read(&pairs).unwrap().args, CniArgs::default());
    }
}
