//! What this machine must allow before a lab can be, asked before anything is made.

use std::fs;
use std::process::Command;

use podnet_core::cluster::DataplaneName;
use podnet_linux::cgroup;
use podnet_linux::ipvs::{Ipvs, IpvsError};

/// What is missing, and how to get it.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum Missing {
    /// Root without a capability, as in a container.
    #[error("podnet runs as root here, but without {0}, which it needs to make namespaces and their links")]
    #[diagnostic(help(
        "in a container start it with --privileged (or --cap-add {0}); or run podnet as an ordinary user, if the \
         kernel allows user namespaces"
    ))]
    Capability(&'static str),
    /// An ordinary user on a kernel that lets only root make namespaces.
    #[error("this kernel does not let an ordinary user make namespaces: {0}")]
    #[diagnostic(help(
        "run podnet as root, or allow it: sysctl -w user.max_user_namespaces=10000, and where they exist \
         kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0"
    ))]
    UserNamespaces(String),
    /// Only root may attach programs.
    #[error("--dataplane ebpf needs root: the kernel takes programs from nobody else")]
    #[diagnostic(help("run podnet as root; without --dataplane an ordinary user gets nftables"))]
    Programs,
    /// What services are to be carried by is not there.
    #[error(transparent)]
    #[diagnostic(help(
        "`modprobe ip_vs` loads it where the kernel was built with it; without --dataplane it is not needed"
    ))]
    Ipvs(#[from] IpvsError),
}

/// Capabilities root needs, with their numbers (linux/capability.h).
const NEEDED: [(&str, u32); 4] = [
    ("NET_ADMIN", 12),
    ("NET_RAW", 13),
    ("SYS_CHROOT", 18),
    ("SYS_ADMIN", 21),
];

/// Checks this process and this kernel, for a lab that is to have this `--dataplane`; says which one its agents are given.
pub fn checked(dataplane: String) -> Result<String, Missing> {
    may_make_namespaces()?;
    if dataplane == "auto" {
        // Programs see the sockets of a control group, and those of other groups are none of the lab's business.
        let may_attach = rustix::process::geteuid().is_root() && may_make_groups();
        let best = if may_attach {
            DataplaneName::Ebpf
        } else {
            DataplaneName::Nftables
        };
        return Ok(best.to_string());
    }
    match dataplane.parse() {
        Ok(DataplaneName::Ipvs) => drop(Ipvs::open()?),
        Ok(DataplaneName::Ebpf) if !rustix::process::geteuid().is_root() => return Err(Missing::Programs),
        _ => {}
    }
    Ok(dataplane)
}

/// Whether there may be control groups below this process's: only trying tells.
fn may_make_groups() -> bool {
    let Ok(Some(own)) = cgroup::own() else {
        return false;
    };
    let group = own.join(format!("podnet-lab-probe-{}", std::process::id()));
    fs::create_dir(&group)
        .and_then(|()| fs::remove_dir(&group))
        .is_ok()
}

fn may_make_namespaces() -> Result<(), Missing> {
    if rustix::process::geteuid().is_root() {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        return missing_capability(&status).map_or(Ok(()), |name| Err(Missing::Capability(name)));
    }
    // Only trying tells: four different knobs can forbid it.
    let outcome = Command::new("/proc/self/exe")
        .args(["lab-init", "--dir", "/", "--probe"])
        .output();
    match outcome {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Missing::UserNamespaces(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
        Err(error) => Err(Missing::UserNamespaces(error.to_string())),
    }
}

/// The first needed capability that the `CapEff` line of /proc/PID/status lacks.
fn missing_capability(status: &str) -> Option<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())?;
    NEEDED
        .iter()
        .find(|(_, bit)| effective & (1 << bit) == 0)
        .map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_capability_is_named() {
        assert_eq!(missing_capability("CapEff:\t000001ffffffffff\n"), None);
        assert_eq!(
            missing_capability("Name:\tx\nCapEff:\t00000000a80425fb\n"),
            Some("NET_ADMIN")
        );
        assert_eq!(
            missing_capability("CapEff:\t000001ffffdfffff\n"),
            Some("SYS_ADMIN")
        );
    }
}
