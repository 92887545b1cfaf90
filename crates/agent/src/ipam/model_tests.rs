//! The lease store against a naive model: random ADDs, DELs, GCs, kills at any change of a file, reboots, exhaustion and
//! torn files. Never one address twice, never one lost.
//!
//! The links are a map here, made and removed in one step each as the kernel does it; the plugin's DEL without an agent
//! is the real one. A kill is a disk on which nothing happens any more from some step on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use podnet_fuzz::Random;

use super::*;

const STEPS: usize = 10_000;
const RANGES: [&str; 2] = ["10.0.0.0/28", "fd00::/124"];
/// Addresses of the smaller range that a pod can have.
const CAPACITY: usize = 13;
const CONTAINERS: usize = 40;

/// A disk that does so many more steps and then nothing; the write at which it ends is left half done.
#[derive(Clone)]
struct Fuse(Arc<AtomicI64>);

impl Fuse {
    fn burn(&self) -> io::Result<()> {
        match self.0.fetch_sub(1, Ordering::Relaxed) {
            left if left > 0 => Ok(()),
            _ => Err(io::Error::other("killed")),
        }
    }

    fn is_burnt(&self) -> bool {
        self.0.load(Ordering::Relaxed) < 0
    }
}

impl Disk for Fuse {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let was_burnt = self.is_burnt();
        if let Err(killed) = self.burn() {
            if !was_burnt {
                FileSystem.write(path, &bytes[..bytes.len() / 2])?;
            }
            return Err(killed);
        }
        FileSystem.write(path, bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.burn()?;
        FileSystem.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.burn()?;
        FileSystem.remove(path)
    }
}

struct World {
    dir: tempfile::TempDir,
    /// The kernel: links with the addresses that pods have.
    links: LinksInKernel,
    boot: u64,
    fuse: Fuse,
    /// None while no agent runs.
    leases: Option<Leases>,
    random: Random,
    seen: BTreeMap<&'static str, usize>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = World {
            dir: tempfile::tempdir_in("/dev/shm")
                .or_else(|_| tempfile::tempdir())
                .unwrap(),
            links: LinksInKernel::new(),
            boot: 0,
            fuse: Fuse(Arc::new(AtomicI64::new(i64::MAX))),
            leases: None,
            random: Random::new(seed),
            seen: BTreeMap::new(),
        };
        world.start();
        world
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// An agent starts; that may be killed too.
    fn start(&mut self) {
        self.leases = None;
        let boot = format!("boot-{}", self.boot);
        let opened = Leases::open_on(Box::new(self.fuse.clone()), self.dir.path(), &boot, &self.links);
        if let Ok(leases) = opened {
            let ranges = RANGES.map(|range| range.parse().unwrap());
            leases.set(&Addressing::of_node(&ranges).into());
            for lease in leases.ended() {
                self.links.remove(&lease.attachment.host_link());
                leases.forget(&lease);
            }
            self.leases = Some(leases);
        }
        if self.fuse.is_burnt() {
            self.note("kill");
            self.fuse.0.store(i64::MAX, Ordering::Relaxed);
            self.start();
        }
    }

    fn attachment(&mut self) -> Attachment {
        Attachment::new(&format!("c{}", self.random.below(CONTAINERS)), "eth0").unwrap()
    }

    fn step(&mut self) {
        let attachment = self.attachment();
        match self.random.below(100) {
            0..62 => self.add(&attachment),
            62..70 => self.del(&attachment),
            70..74 => self.del_without_agent(&attachment),
            74..77 => self.gc(),
            77..82 => self.vanish(&attachment),
            82..90 => {
                let steps = self.random.below(6) as i64;
                self.fuse.0.store(steps, Ordering::Relaxed);
            }
            90..93 => self.start(),
            93 => self.reboot(),
            94..98 => self.tear(&attachment),
            _ => self.collect(),
        }
        if self.fuse.is_burnt() {
            self.note("kill");
            self.fuse.0.store(i64::MAX, Ordering::Relaxed);
            self.start();
        }
        self.judge();
    }

    fn add(&mut self, attachment: &Attachment) {
        let Some(leases) = &self.leases else { return };
        if self.links.contains_key(&attachment.host_link()) {
            return;
        }
        if leases.get(attachment).is_some() {
            // Its container vanished, and nobody has looked since.
            self.collect();
            return;
        }
        match leases.lease(&Ask::any(attachment, "podnet", &PodReference::default())) {
            Err(LeaseError::Refused { .. }) => {
                let used: BTreeSet<IpAddr> = self.links.values().flatten().copied().collect();
                let waiting = leases.all().len() + leases.ended().len();
                assert!(
                    waiting == CAPACITY,
                    "refused with {} in use, {waiting} leases",
                    used.len()
                );
                self.note("exhausted");
            }
            // Killed, or about to be.
            Err(_) => {}
            Ok(_) if self.fuse.is_burnt() => {}
            Ok(lease) => {
                if self.random.below(20) == 0 {
                    leases.give_up(&lease);
                    self.note("failed ADD");
                    return;
                }
                let taken: BTreeSet<IpAddr> = self.links.values().flatten().copied().collect();
                for address in &lease.addresses {
                    assert!(!taken.contains(address), "{address} was given twice");
                }
                self.links.insert(attachment.host_link(), lease.addresses.clone());
                leases.wired(&lease);
                self.note("ADD");
            }
        }
    }

    fn del(&mut self, attachment: &Attachment) {
        let Some(leases) = &self.leases else { return };
        match leases.release(attachment) {
            Ok(Some(lease)) => {
                if self.fuse.is_burnt() {
                    return;
                }
                self.links.remove(&attachment.host_link());
                leases.forget(&lease);
                self.note("DEL");
            }
            Ok(None) => _ = self.links.remove(&attachment.host_link()),
            Err(_) => {}
        }
    }

    /// What the plugin does: with an agent that does not answer, and without one.
    fn del_without_agent(&mut self, attachment: &Attachment) {
        podnet_cni::note_release(self.dir.path(), attachment).unwrap();
        self.links.remove(&attachment.host_link());
        self.note("DEL without agent");
    }

    fn gc(&mut self) {
        let Some(leases) = &self.leases else { return };
        let all = leases.all();
        self.note("GC");
        for lease in all {
            if self.random.below(3) == 0 {
                self.del(&lease.attachment);
            }
        }
    }

    /// The container's namespace is destroyed without a DEL.
    fn vanish(&mut self, attachment: &Attachment) {
        if self.links.remove(&attachment.host_link()).is_some() {
            self.note("vanished");
        }
    }

    fn reboot(&mut self) {
        self.leases = None;
        self.links.clear();
        self.boot += 1;
        self.start();
        let leases = self.leases.as_ref().unwrap();
        assert!(
            leases.all().is_empty() && leases.ended().is_empty(),
            "a reboot ends all leases"
        );
        self.note("reboot");
    }

    /// A file loses its end, or all, while no agent runs: a power failure that the links survived is none, but disks lie.
    fn tear(&mut self, attachment: &Attachment) {
        self.leases = None;
        for directory in [podnet_cni::LEASES, podnet_cni::RELEASED] {
            let path = self.dir.path().join(directory).join(attachment.file_name());
            if let Ok(bytes) = fs::read(&path) {
                let length = self.random.below(bytes.len() + 1);
                fs::write(&path, &bytes[..length]).unwrap();
                self.note("torn");
            }
        }
        self.start();
    }

    fn collect(&mut self) {
        let Some(leases) = &self.leases else { return };
        let links = self.links.clone();
        let ended = leases
            .collect(|| Ok::<_, std::convert::Infallible>(links))
            .unwrap();
        for lease in ended {
            if self.fuse.is_burnt() {
                return;
            }
            self.links.remove(&lease.attachment.host_link());
            leases.forget(&lease);
        }
    }

    /// Whatever has happened: no address is on two links, and every link's addresses are in use.
    fn judge(&self) {
        let Some(leases) = &self.leases else { return };
        let mut seen = BTreeSet::new();
        for address in self.links.values().flatten() {
            assert!(seen.insert(*address), "{address} is on two links");
        }
        let inner = leases.inner();
        let used = inner.allocator.in_use();
        assert!(
            seen.is_subset(used),
            "{:?} is in use and free",
            seen.difference(used)
        );
    }

    /// After a look around nothing but the links' addresses is in use, and all others can be had.
    fn settle(&mut self) {
        self.fuse.0.store(i64::MAX, Ordering::Relaxed);
        self.collect();
        let Some(leases) = &self.leases else { return };
        let linked: BTreeSet<IpAddr> = self.links.values().flatten().copied().collect();
        assert_eq!(*leases.inner().allocator.in_use(), linked, "an address is lost");
        let spare = |n: usize| Attachment::new(&format!("spare{n}"), "eth0").unwrap();
        let mut free = Vec::new();
        while let Ok(lease) = leases.lease(&Ask::any(&spare(free.len()), "podnet", &PodReference::default()))
        {
            free.push(lease);
        }
        assert_eq!(self.links.len() + free.len(), CAPACITY, "an address is lost");
        for lease in free {
            leases.give_up(&lease);
        }
        for (directory, expected) in [(podnet_cni::LEASES, self.links.len()), (podnet_cni::RELEASED, 0)] {
            let files = fs::read_dir(self.dir.path().join(directory)).unwrap().count();
            // A link that has no lease any more, since its file was torn beyond repair, has no file.
            assert!(
                files <= expected,
                "{files} files in {directory} for {expected} links"
            );
        }
    }
}

#[test]
fn ten_thousand_random_steps_neither_double_nor_lose_an_address() {
    let mut world = World::new(0x9e37_79b9_7f4a_7c15);
    for step in 1..=STEPS {
        world.step();
        if step % 50 == 0 {
            world.settle();
        }
    }
    println!("{:?}", world.seen);
    for what in [
        "ADD",
        "DEL",
        "GC",
        "DEL without agent",
        "exhausted",
        "failed ADD",
        "kill",
        "reboot",
        "torn",
        "vanished",
    ] {
        let times = world.seen.get(what).copied().unwrap_or_default();
        assert!(times >= 50, "{what} was seen {times} times only");
    }
}

#[test]
fn a_kill_at_every_single_step_of_an_add_and_a_del() {
    for kill_at in 0..12 {
        let mut world = World::new(1 + kill_at as u64);
        world.add(&Attachment::new("c1", "eth0").unwrap());
        world.fuse.0.store(kill_at, Ordering::Relaxed);
        world.add(&Attachment::new("c2", "eth0").unwrap());
        if !world.fuse.is_burnt() {
            world.del(&Attachment::new("c1", "eth0").unwrap());
        }
        world.fuse.0.store(i64::MAX, Ordering::Relaxed);
        world.start();
        world.judge();
        world.settle();
    }
}
