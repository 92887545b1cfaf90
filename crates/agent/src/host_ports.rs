//! Host ports, between those who add pods and the loop that changes the kernel's tables.
//!
//! What is wanted follows from the leases, so that it survives a restart with them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use podnet_cni::{Attachment, PortMapping};
use podnet_core::service::HostPort;
use tokio::sync::Notify;

use crate::ipam::Lease;

/// The host ports that are wanted, and which of them are in force.
#[derive(Debug, Default)]
pub struct HostPorts {
    inner: Mutex<Inner>,
    in_force: Condvar,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    wanted: BTreeMap<HostPort, (Attachment, SocketAddr)>,
    /// Counts the changes of what is wanted.
    version: Version,
    /// The version that the kernel has.
    applied: Version,
}

/// Which of a sequence of changes.
pub type Version = u64;

/// Why a host port cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("host port {port} belongs to {holder}")]
pub struct Clash {
    /// The port.
    pub port: HostPort,
    /// Who has it.
    pub holder: Attachment,
}

impl HostPorts {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change is made whole before anything that can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims the host ports of a lease, all or none. The answer is for [`HostPorts::wait`]; none if there is nothing to
    /// wait for.
    pub fn claim(&self, lease: &Lease) -> Result<Option<Version>, Clash> {
        let wanted: Vec<_> = of_lease(lease).collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        let mut inner = self.inner();
        for (port, _) in &wanted {
            if let Some((holder, _)) = inner.wanted.get(port)
                && *holder != lease.attachment
            {
                let (port, holder) = (*port, holder.clone());
                return Err(Clash { port, holder });
            }
        }
        let held = wanted
            .into_iter()
            .map(|(port, target)| (port, (lease.attachment.clone(), target)));
        inner.wanted.extend(held);
        Ok(Some(self.change(&mut inner)))
    }

    /// Gives back the host ports of an attachment.
    pub fn release(&self, attachment: &Attachment) -> Option<Version> {
        let mut inner = self.inner();
        let before = inner.wanted.len();
        inner.wanted.retain(|_, (holder, _)| holder != attachment);
        (inner.wanted.len() < before).then(|| self.change(&mut inner))
    }

    fn change(&self, inner: &mut Inner) -> Version {
        inner.version += 1;
        self.changed.notify_one();
        inner.version
    }

    /// What is wanted now.
    pub fn wanted(&self) -> (Version, BTreeMap<HostPort, SocketAddr>) {
        let inner = self.inner();
        let wanted = inner.wanted.iter().map(|(port, (_, target))| (*port, *target));
        (inner.version, wanted.collect())
    }

    /// Returns when what is wanted has changed since the last time.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The kernel has what was wanted as of `version`.
    pub fn applied(&self, version: Version) {
        let mut inner = self.inner();
        inner.applied = inner.applied.max(version);
        self.in_force.notify_all();
    }

    /// Waits until the kernel has `version`; false if that takes longer than `patience`.
    pub fn wait(&self, version: Version, patience: Duration) -> bool {
        let waited = self
            .in_force
            .wait_timeout_while(self.inner(), patience, |inner| inner.applied < version);
        waited.unwrap_or_else(PoisonError::into_inner).0.applied >= version
    }
}

/// Whether the node reaches one of the lease's host ports on 127.0.0.1.
pub fn is_on_loopback(lease: &Lease) -> bool {
    of_lease(lease).any(|(port, _)| port.address.is_on_loopback())
}

/// The host ports that a lease asks for.
pub fn of_lease(lease: &Lease) -> impl Iterator<Item = (HostPort, SocketAddr)> {
    let mapped = |mapping: &PortMapping| {
        HostPort::mapped(
            mapping.host_ip,
            mapping.protocol,
            mapping.host_port,
            &lease.addresses,
            mapping.container_port,
        )
        .collect::<Vec<_>>()
    };
    lease.port_mappings.iter().flat_map(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: &str, host_ip: Option<&str>) -> Lease {
        let mapping = serde_json::json!({
            "hostIp": host_ip, "hostPort": 8080, "containerPort": 80, "protocol": "TCP",
        });
        serde_json::from_value(serde_json::json!({
            "attachment": { "containerId": id, "ifname": "eth0" },
            "addresses": ["10.244.0.2", "fd00::2"],
            "portMappings": [mapping],
        }))
        .unwrap()
    }

    #[test]
    fn a_host_port_has_one_holder_until_it_is_given_back() {
        let ports = HostPorts::default();
        let (one, two) = (lease("one", None), lease("two", None));
        assert_eq!(ports.claim(&one), Ok(Some(1)));
        assert_eq!(ports.claim(&two).unwrap_err().holder, one.attachment);
        // Another address, another port.
        assert_eq!(ports.claim(&lease("three", Some("127.0.0.1"))), Ok(Some(2)));
        assert_eq!(ports.wanted().1.len(), 3);
        assert_eq!(ports.release(&one.attachment), Some(3));
        assert_eq!(ports.release(&one.attachment), None);
        assert_eq!(ports.claim(&two), Ok(Some(4)));
    }

    #[test]
    fn whoever_waits_is_told_when_the_kernel_has_it() {
        let ports = HostPorts::default();
        let version = ports.claim(&lease("one", None)).unwrap().unwrap();
        assert!(!ports.wait(version, Duration::ZERO));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ports.wait(version, Duration::from_secs(20)));
            ports.applied(ports.wanted().0);
            assert!(waiting.join().unwrap());
        });
    }
}
