//! Leases: which attachment has which addresses, on disk so that SIGKILL at any instruction loses none.
//!
//! Every attachment that has addresses has one file, `leases/ID:IFNAME`, written aside and renamed into place
//! before its link is made. A lease ends by moving its file to `released/`, which whoever does the DEL can do,
//! the plugin without an agent too. The file goes, and the address is free again, when the kernel has let go of
//! the link. So at every moment a lease whose link exists has its file in one of the two directories, and
//! what a crash leaves is told from the kernel: a lease without a link is over, a link without a lease still
//! holds its addresses.

mod files;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podnet_cni::{Attachment, Bandwidth, PodReference, PortMapping};
use podnet_core::ipam::{Allocator, Exhausted};
use serde::{Deserialize, Serialize};

use files::Directory;

/// How long an address rests before it is given again, as long as there are others.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// How long an ADD waits for the end of a DEL of the same attachment, and a DEL for that of an ADD.
const TURN: Duration = Duration::from_secs(10);

/// The node's ends of pods' links that exist, with the addresses that are routed to each.
pub type LinksInKernel = BTreeMap<String, Vec<IpAddr>>;

/// The addresses of an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lease {
    /// Which interface of which container.
    pub attachment: Attachment,
    /// Its addresses, one of each family.
    pub addresses: Vec<IpAddr>,
    /// The CNI network.
    #[serde(default)]
    pub network: String,
    /// The pod, for people.
    #[serde(default)]
    pub pod: PodReference,
    /// Ports of the node that lead to the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Limits on its traffic.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// The boot in which it was given.
    #[serde(default)]
    pub boot_id: String,
    /// Leases are numbered in the order in which they were given.
    #[serde(default)]
    pub sequence: u64,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Somebody has it.
    #[error("{0} has a lease already: it was added before and not deleted since")]
    Held(Attachment),
    /// What was asked for before has not ended.
    #[error("the ADD or DEL of {0} that came before is still at work")]
    Busy(Attachment),
    /// No address is left.
    #[error("{exhausted}{}", Holder(.holder))]
    Exhausted {
        /// The pool.
        exhausted: Exhausted,
        /// The namespace whose pods have most of it, and how many.
        holder: Option<(String, usize)>,
    },
    /// The node has no range.
    #[error("this node has no range of pod addresses")]
    NoRange,
    /// The state directory failed.
    #[error("cannot keep leases in {}: {source}", path.display())]
    Disk {
        /// What was written or read.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process keeps the leases.
    #[error("another agent keeps the leases in {}; stop it first", .0.display())]
    Locked(PathBuf),
}

struct Holder<'a>(&'a Option<(String, usize)>);

impl std::fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some((namespace, count)) => write!(f, "; most ({count}) by pods of namespace {namespace}"),
            None => Ok(()),
        }
    }
}

/// How far an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// An ADD is at work.
    Wiring,
    /// Wired.
    Held,
}

struct Inner {
    allocator: Allocator,
    held: BTreeMap<Attachment, (Stage, Lease)>,
    /// Ended, but the kernel may still have the link. By sequence.
    released: BTreeMap<u64, Lease>,
    /// Links in the kernel that have no lease.
    strangers: LinksInKernel,
    sequence: u64,
}

/// All leases of the node.
pub struct Leases {
    directory: Directory,
    boot_id: String,
    origin: Instant,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Leases {
    /// Opens the leases of a state directory and repairs what a crash left there.
    ///
    /// Only one process at a time can have them open.
    pub fn open(state_dir: &Path, boot_id: &str, in_kernel: &LinksInKernel) -> Result<Self, LeaseError> {
        let directory = Directory::open(state_dir)?;
        let found = directory.load(boot_id, in_kernel)?;
        let mut inner = Inner {
            allocator: Allocator::new(COOL_DOWN),
            held: BTreeMap::new(),
            released: BTreeMap::new(),
            strangers: in_kernel.clone(),
            sequence: 0,
        };
        for lease in found.released {
            inner.strangers.remove(&lease.attachment.host_link());
            inner.adopt(&lease);
            inner.released.insert(lease.sequence, lease);
        }
        for lease in found.held {
            inner.strangers.remove(&lease.attachment.host_link());
            inner.adopt(&lease);
            inner.held.insert(lease.attachment.clone(), (Stage::Held, lease));
        }
        for (link, addresses) in inner.strangers.clone() {
            tracing::warn!(
                link,
                ?addresses,
                "a pod's link has no lease; its addresses stay in use until it is gone"
            );
            for address in addresses {
                drop(inner.allocator.take(address));
            }
        }
        Ok(Leases {
            directory,
            boot_id: boot_id.into(),
            origin: Instant::now(),
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change of the state is made whole before anything that can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node has these ranges from now on.
    pub fn set_ranges(&self, ranges: &[IpNet]) {
        let mut inner = self.inner();
        let current: Vec<_> = inner.allocator.pools().iter().map(|pool| pool.range()).collect();
        if current == ranges {
            return;
        }
        inner.allocator.set_ranges(ranges);
        // Goes on behind the address given last, so that one which was freed shortly before a restart rests too.
        let released = inner.released.values();
        let newest = inner
            .held
            .values()
            .map(|(_, lease)| lease)
            .chain(released)
            .max_by_key(|lease| lease.sequence);
        for address in newest.map(|lease| lease.addresses.clone()).unwrap_or_default() {
            inner.allocator.resume_after(address);
        }
    }

    /// Whether another pod could have addresses.
    pub fn check(&self) -> Result<(), LeaseError> {
        let inner = self.inner();
        if inner.allocator.pools().is_empty() {
            return Err(LeaseError::NoRange);
        }
        inner
            .allocator
            .check()
            .map_err(|exhausted| inner.exhausted(exhausted))
    }

    /// Gives addresses to an attachment, for an ADD that is now at work.
    pub fn lease(
        &self,
        attachment: &Attachment,
        network: &str,
        pod: &PodReference,
    ) -> Result<Lease, LeaseError> {
        let ending = |inner: &Inner| {
            inner
                .released
                .values()
                .any(|lease| lease.attachment == *attachment)
        };
        let mut inner = self.wait_while(ending);
        if ending(&inner) {
            return Err(LeaseError::Busy(attachment.clone()));
        }
        if inner.held.contains_key(attachment) {
            return Err(LeaseError::Held(attachment.clone()));
        }
        if inner.allocator.pools().is_empty() {
            return Err(LeaseError::NoRange);
        }
        let addresses = inner
            .allocator
            .allocate(self.now())
            .map_err(|exhausted| inner.exhausted(exhausted))?;
        inner.sequence += 1;
        let lease = Lease {
            attachment: attachment.clone(),
            addresses,
            network: network.into(),
            pod: pod.clone(),
            port_mappings: Vec::new(),
            bandwidth: Bandwidth::default(),
            boot_id: self.boot_id.clone(),
            sequence: inner.sequence,
        };
        if let Err(error) = self.directory.write(&lease) {
            inner.free(&lease, self.now());
            return Err(error);
        }
        inner
            .held
            .insert(attachment.clone(), (Stage::Wiring, lease.clone()));
        Ok(lease)
    }

    /// Notes what else the node does for the attachment, so that it is known after a restart. For an ADD that is at work.
    pub fn equip(
        &self,
        lease: &mut Lease,
        port_mappings: &[PortMapping],
        bandwidth: Bandwidth,
    ) -> Result<(), LeaseError> {
        if port_mappings.is_empty() && bandwidth.is_unlimited() {
            return Ok(());
        }
        lease.port_mappings = port_mappings.to_vec();
        lease.bandwidth = bandwidth;
        let mut inner = self.inner();
        self.directory.write(lease)?;
        if let Some((_, held)) = inner.held.get_mut(&lease.attachment) {
            held.clone_from(lease);
        }
        Ok(())
    }

    /// The ADD is done.
    pub fn wired(&self, lease: &Lease) {
        if let Some((stage, held)) = self.inner().held.get_mut(&lease.attachment)
            && held.sequence == lease.sequence
        {
            *stage = Stage::Held;
        }
        self.changed.notify_all();
    }

    /// The ADD has failed and left no link.
    pub fn give_up(&self, lease: &Lease) {
        if let Err(error) = self.directory.remove(&lease.attachment) {
            tracing::warn!(%error, "a lease without a link stays until the next start");
        }
        let mut inner = self.inner();
        inner.held.remove(&lease.attachment);
        inner.free(lease, self.now());
        self.changed.notify_all();
    }

    /// Ends the lease of an attachment. Its addresses are free after [`Leases::forget`], to be called when the
    /// link is gone. None if there is no lease.
    pub fn release(&self, attachment: &Attachment) -> Result<Option<Lease>, LeaseError> {
        let wiring = |inner: &Inner| matches!(inner.held.get(attachment), Some((Stage::Wiring, _)));
        let mut inner = self.wait_while(wiring);
        if wiring(&inner) {
            return Err(LeaseError::Busy(attachment.clone()));
        }
        if !inner.held.contains_key(attachment) {
            return Ok(None);
        }
        self.directory.release(attachment)?;
        Ok(inner.end(attachment))
    }

    /// The link of an ended lease is gone.
    pub fn forget(&self, lease: &Lease) {
        self.directory.forget(lease);
        let mut inner = self.inner();
        if inner.released.remove(&lease.sequence).is_some() {
            inner.free(lease, self.now());
        }
        self.changed.notify_all();
    }

    /// Finds what has ended without us: notes of DELs that were done without an agent, and leases whose link is
    /// gone (the container's namespace was destroyed without a DEL). Returns the ended leases whose link may
    /// still be there.
    ///
    /// `look` reads the links in the kernel.
    pub fn collect<E>(&self, look: impl FnOnce() -> Result<LinksInKernel, E>) -> Result<Vec<Lease>, E> {
        // Only what was wired before the look can be missed by it.
        let before: Vec<(Attachment, u64)> = {
            let inner = self.inner();
            let wired = inner.held.values().filter(|(stage, _)| *stage == Stage::Held);
            wired
                .map(|(_, lease)| (lease.attachment.clone(), lease.sequence))
                .collect()
        };
        let in_kernel = look()?;
        let notes = self.directory.notes();
        let mut inner = self.inner();
        for (attachment, sequence) in before {
            let same = inner
                .held
                .get(&attachment)
                .is_some_and(|(_, lease)| lease.sequence == sequence);
            let noted = notes
                .iter()
                .any(|note| note.attachment == attachment && note.sequence == sequence);
            let gone = !in_kernel.contains_key(&attachment.host_link());
            if !same || !(noted || gone) {
                continue;
            }
            match self.directory.release(&attachment) {
                Ok(()) => drop(inner.end(&attachment)),
                Err(error) => tracing::warn!(%error, %attachment, "a lease that is over stays for now"),
            }
        }
        let (gone, strangers) = std::mem::take(&mut inner.strangers)
            .into_iter()
            .partition::<LinksInKernel, _>(|(link, _)| !in_kernel.contains_key(link));
        inner.strangers = strangers;
        let now = self.now();
        for address in gone.into_values().flatten() {
            inner.allocator.release(address, now);
        }
        Ok(inner.released.values().cloned().collect())
    }

    /// The lease of an attachment.
    pub fn get(&self, attachment: &Attachment) -> Option<Lease> {
        self.inner().held.get(attachment).map(|(_, lease)| lease.clone())
    }

    /// All leases that have not ended.
    pub fn all(&self) -> Vec<Lease> {
        self.inner()
            .held
            .values()
            .map(|(_, lease)| lease.clone())
            .collect()
    }

    /// All leases that have ended but whose link may still be there.
    pub fn ended(&self) -> Vec<Lease> {
        self.inner().released.values().cloned().collect()
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn wait_while(&self, busy: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        let waited = self
            .changed
            .wait_timeout_while(self.inner(), TURN, |inner| busy(inner));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Inner {
    /// Takes over a lease from disk.
    fn adopt(&mut self, lease: &Lease) {
        self.sequence = self.sequence.max(lease.sequence);
        for address in &lease.addresses {
            if let Err(error) = self.allocator.take(*address) {
                tracing::error!(%error, lease = %lease.attachment, "two leases have one address; delete one of the pods");
            }
        }
    }

    fn end(&mut self, attachment: &Attachment) -> Option<Lease> {
        let (_, lease) = self.held.remove(attachment)?;
        self.released.insert(lease.sequence, lease.clone());
        Some(lease)
    }

    fn free(&mut self, lease: &Lease, now: Duration) {
        for address in &lease.addresses {
            self.allocator.release(*address, now);
        }
    }

    fn exhausted(&self, exhausted: Exhausted) -> LeaseError {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, lease) in self
            .held
            .values()
            .filter(|(_, lease)| !lease.pod.namespace.is_empty())
        {
            *counts.entry(&lease.pod.namespace).or_default() += 1;
        }
        let holder = counts.into_iter().max_by_key(|(_, count)| *count);
        LeaseError::Exhausted {
            exhausted,
            holder: holder.map(|(name, count)| (name.to_owned(), count)),
        }
    }
}

#[cfg(test)]
mod tests;
