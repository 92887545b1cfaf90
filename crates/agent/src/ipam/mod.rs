//! Leases: which attachment has which addresses, on disk so that SIGKILL at any instruction loses none.
//!
//! Every attachment that has addresses has one file, `leases/ID:IFNAME`, written aside and renamed into place
//! before its link is made. A lease ends by moving its file to `released/`, which whoever does the DEL can do,
//! the plugin without an agent too. The file goes, and the address is free again, when the kernel has let go of
//! the link. So at every moment a lease whose link exists has its file in one of the two directories, and
//! what a crash leaves is told from the kernel: a lease without a link is over, a link without a lease still
//! holds its addresses.

mod ask;
mod disk;
mod error;
mod files;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podnet_cni::{Attachment, Bandwidth, PodReference, PortMapping};
use podnet_core::ipam::{Addressing, Allocator, PoolId, Refused, Slot, Usage};
use serde::{Deserialize, Serialize};

pub use ask::Ask;
use disk::{Disk, FileSystem};
pub use error::{Holder, LeaseError};
use files::Directory;

/// How long an address rests before it is given again, as long as there are others.
const COOL_DOWN: Duration = Duration::from_secs(30);
/// How long an ADD waits for the end of a DEL of the same attachment, and a DEL for that of an ADD.
const TURN: Duration = Duration::from_secs(10);
/// How long an ADD waits for a block of a pool that is on its way.
const BLOCK_WAIT: Duration = Duration::from_secs(5);
/// How long an ADD waits for another block when those that the node holds are full.
const MORE_WAIT: Duration = Duration::from_secs(2);
/// On the clock of this process: the moment it opened the leases. Whatever rests has begun to before.
const OPENED: Duration = Duration::from_secs(1 << 20);

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
    /// The number of its network namespace; 0 if that is not known.
    #[serde(default)]
    pub netns: u64,
    /// The cookie of the same, which no other has in this boot; 0 if that is not known.
    #[serde(default)]
    pub netns_cookie: u64,
    /// The boot in which it was given.
    #[serde(default)]
    pub boot_id: String,
    /// Leases are numbered in the order in which they were given.
    #[serde(default)]
    pub sequence: u64,
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
    addressing: Arc<Addressing>,
    /// Blocks that are being given back.
    closing: BTreeSet<IpNet>,
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

impl std::fmt::Debug for Leases {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leases").finish_non_exhaustive()
    }
}

impl Leases {
    /// Opens the leases of a state directory and repairs what a crash left there.
    ///
    /// Only one process at a time can have them open.
    pub fn open(state_dir: &Path, boot_id: &str, in_kernel: &LinksInKernel) -> Result<Self, LeaseError> {
        Leases::open_on(Box::new(FileSystem), state_dir, boot_id, in_kernel)
    }

    fn open_on(
        disk: Box<dyn Disk>,
        state_dir: &Path,
        boot_id: &str,
        in_kernel: &LinksInKernel,
    ) -> Result<Self, LeaseError> {
        let directory = Directory::open(state_dir, disk)?;
        let found = directory.load(boot_id, in_kernel)?;
        let mut inner = Inner {
            allocator: Allocator::new(COOL_DOWN),
            addressing: Arc::default(),
            closing: BTreeSet::new(),
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
                inner.allocator.take(address);
            }
        }
        for (age, lease) in found.resting {
            inner.sequence = inner.sequence.max(lease.sequence);
            for address in lease.addresses {
                inner.allocator.rest(address, OPENED.saturating_sub(age));
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

    /// This is what the node may hand out from now on.
    pub fn set(&self, addressing: &Arc<Addressing>) {
        let mut inner = self.inner();
        // Equal is most often the same, which is seen at a glance.
        if inner.addressing == *addressing {
            return;
        }
        let first = *inner.addressing == Addressing::default();
        inner.addressing = addressing.clone();
        let held: BTreeSet<IpNet> = addressing.ranges.iter().map(|range| range.range).collect();
        inner.closing.retain(|range| held.contains(range));
        inner.apply();
        if first {
            inner.resume();
        }
        self.changed.notify_all();
    }

    /// Whether some pod could have addresses.
    pub fn check(&self) -> Result<(), LeaseError> {
        let inner = self.inner();
        if inner.addressing.ranges.is_empty() {
            return Err(LeaseError::NoRange);
        }
        let mut first = None;
        for sources in inner.addressing.all_sources() {
            let slots: Vec<Slot> = ask::any(sources).collect();
            match inner.allocator.check(&slots) {
                Ok(()) => return Ok(()),
                // A block comes when a pod needs it.
                Err(Refused::NoBlock(_)) => return Ok(()),
                Err(refused) => _ = first.get_or_insert(refused),
            }
        }
        first.map_or(Ok(()), |refused| Err(inner.refused(refused)))
    }

    /// Gives addresses to an attachment, for an ADD that is now at work.
    pub fn lease(&self, ask: &Ask<'_>) -> Result<Lease, LeaseError> {
        let attachment = ask.attachment;
        let ending = |inner: &Inner| {
            let mut released = inner.released.values();
            released.any(|lease| {
                let wanted = |address| ask.addresses.contains(address);
                lease.attachment == *attachment || lease.addresses.iter().any(wanted)
            })
        };
        let mut inner = self.wait_while(ending);
        if ending(&inner) {
            return Err(LeaseError::Busy(attachment.clone()));
        }
        if inner.held.contains_key(attachment) {
            return Err(LeaseError::Held(attachment.clone()));
        }
        let begin = Instant::now();
        let addresses = loop {
            let error = match inner.allocate(ask, self.now()) {
                Ok(addresses) => break addresses,
                Err(error) => error,
            };
            // What the cluster's controller does for this pod may be on its way.
            let left = inner.patience(&error).saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Err(error);
            }
            let waited = self.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            if inner.held.contains_key(attachment) {
                return Err(LeaseError::Held(attachment.clone()));
            }
        };
        inner.sequence += 1;
        let lease = Lease {
            attachment: attachment.clone(),
            addresses,
            network: ask.network.into(),
            pod: ask.pod.clone(),
            port_mappings: Vec::new(),
            bandwidth: Bandwidth::default(),
            netns: ask.netns,
            netns_cookie: ask.netns_cookie,
            boot_id: self.boot_id.clone(),
            sequence: inner.sequence,
        };
        if let Err(error) = self.directory.write(&lease) {
            inner.take_back(&lease);
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
        inner.take_back(lease);
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
        self.directory.tidy();
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
            let leased = inner.leases().any(|lease| lease.addresses.contains(&address));
            if !leased {
                inner.allocator.release(address, now);
            }
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

    /// How much of every pool is in use.
    pub fn usage(&self) -> Vec<Usage> {
        self.inner().allocator.usage(self.now())
    }

    /// Whether no pod has an address of a range.
    pub fn is_empty(&self, range: IpNet) -> bool {
        self.inner().is_empty(range)
    }

    /// Hands nothing out of a block any more, for good, if no pod has an address of it; false if one has. A block that
    /// is no longer among those that the node holds may come back as a new one.
    pub fn close(&self, block: IpNet) -> bool {
        let mut inner = self.inner();
        let empty = inner.is_empty(block);
        if empty && inner.closing.insert(block) {
            inner.apply();
        }
        empty
    }

    fn now(&self) -> Duration {
        OPENED + self.origin.elapsed()
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
            if !self.allocator.take(*address) {
                tracing::error!(%address, lease = %lease.attachment, "two leases have one address; delete one of the pods");
            }
        }
    }

    /// Tells the allocator what it may hand out of.
    fn apply(&mut self) {
        let mut addressing = Addressing::clone(&self.addressing);
        for range in &mut addressing.ranges {
            range.open &= !self.closing.contains(&range.range);
        }
        self.allocator.set(&addressing);
    }

    /// Goes on behind the address given last, so that one which was freed shortly before a restart rests too.
    fn resume(&mut self) {
        let held = self.held.values().map(|(_, lease)| lease);
        let newest = held
            .chain(self.released.values())
            .max_by_key(|lease| lease.sequence);
        for address in newest.map(|lease| lease.addresses.clone()).unwrap_or_default() {
            self.allocator.resume_after(address);
        }
    }

    fn allocate(&mut self, ask: &Ask<'_>, now: Duration) -> Result<Vec<IpAddr>, LeaseError> {
        if self.addressing.ranges.is_empty() {
            return Err(LeaseError::NoRange);
        }
        let namespace = &ask.pod.namespace;
        let addressing = Arc::clone(&self.addressing);
        let sources = addressing
            .sources(namespace)
            .ok_or_else(|| LeaseError::UnknownNamespace(namespace.clone()))?;
        let slots = ask.slots(sources);
        let outcome = self.allocator.allocate(now, &slots);
        outcome.map_err(|refused| self.refused(refused))
    }

    /// How long to wait for what may be on its way.
    fn patience(&self, error: &LeaseError) -> Duration {
        match error {
            LeaseError::UnknownNamespace(_) => BLOCK_WAIT,
            LeaseError::Refused { refused, .. } => match &**refused {
                Refused::NoBlock(PoolId::Pool(_)) => BLOCK_WAIT,
                Refused::Elsewhere { .. } if ask::has_pools(&self.addressing) => BLOCK_WAIT,
                Refused::Exhausted {
                    pool: PoolId::Pool(_),
                    ..
                } => MORE_WAIT,
                _ => Duration::ZERO,
            },
            _ => Duration::ZERO,
        }
    }

    fn end(&mut self, attachment: &Attachment) -> Option<Lease> {
        let (_, lease) = self.held.remove(attachment)?;
        self.released.insert(lease.sequence, lease.clone());
        Some(lease)
    }

    fn leases(&self) -> impl Iterator<Item = &Lease> {
        let held = self.held.values().map(|(_, lease)| lease);
        held.chain(self.released.values())
    }

    /// The addresses of a lease that no other lease has: files may say nonsense, but an address is free only when
    /// nobody has it.
    fn only_of(&self, lease: &Lease) -> Vec<IpAddr> {
        let others = |address: &IpAddr| {
            let mut leases = self.leases();
            let strange = self.strangers.values().flatten().any(|other| other == address);
            strange
                || leases.any(|other| other.sequence != lease.sequence && other.addresses.contains(address))
        };
        let addresses = lease.addresses.iter().copied();
        addresses.filter(|address| !others(address)).collect()
    }

    fn free(&mut self, lease: &Lease, now: Duration) {
        for address in self.only_of(lease) {
            self.allocator.release(address, now);
        }
    }

    /// No pod ever had these addresses: they need no rest.
    fn take_back(&mut self, lease: &Lease) {
        for address in self.only_of(lease) {
            self.allocator.take_back(address);
        }
    }

    fn is_empty(&self, range: IpNet) -> bool {
        let mut used = self.allocator.in_use().range(range.network()..=range.broadcast());
        used.next().is_none()
    }

    /// Adds who is in the way.
    fn refused(&self, refused: Refused) -> LeaseError {
        let holder = match &refused {
            Refused::Exhausted { ranges, .. } => self.most(ranges),
            Refused::Taken(address) => {
                let lease = self.leases().find(|lease| lease.addresses.contains(address));
                lease.map(|lease| match lease.pod.name.is_empty() {
                    true => Holder::Container(lease.attachment.container_id().into()),
                    false => Holder::Pod(lease.pod.clone()),
                })
            }
            _ => None,
        };
        LeaseError::Refused {
            refused: Box::new(refused),
            holder: holder.map(Box::new),
        }
    }

    /// The namespace that has most addresses of these ranges.
    fn most(&self, ranges: &[IpNet]) -> Option<Holder> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for lease in self.leases().filter(|lease| !lease.pod.namespace.is_empty()) {
            let within = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
            if lease.addresses.iter().any(within) {
                *counts.entry(&lease.pod.namespace).or_default() += 1;
            }
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        most.map(|(namespace, count)| Holder::Most(namespace.to_owned(), count))
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod model_tests;

#[cfg(test)]
mod fuzz_tests;
