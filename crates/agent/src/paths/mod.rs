//! Probes the paths to other nodes, and answers theirs.
//!
//! A thread of its own sends and receives; what is sent and what it means is [`podnet_core::path`]'s. The sockets are at
//! this node's addresses among its pods, so that probes go the way pods' packets go.

mod port;
pub mod report;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podnet_core::path::{PathKey, Prober, Report, Settings, Target};
use podnet_linux::probe;
use tokio::sync::watch;

use port::Port;

/// What changes from probe to probe is published so often.
const PUBLISH: Duration = Duration::from_secs(1);
/// A port that could not be opened is tried again after so long.
const REOPEN: Duration = Duration::from_secs(10);

/// What routing is to take from the paths.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// The largest packet, by range, where it is less than the link takes.
    pub narrow: BTreeMap<IpNet, u32>,
    /// Checksums that the tunnel leaves to a device arrive wrong.
    pub broken_checksums: bool,
}

/// The thread, from outside. It ends with this value.
#[derive(Debug)]
pub struct Paths {
    targets: mpsc::Sender<BTreeMap<PathKey, Target>>,
    wake: UnixStream,
    /// What routing is to take from it; nothing before the first targets.
    pub findings: watch::Receiver<Option<Findings>>,
    /// What is known of each path.
    pub reports: watch::Receiver<Arc<Vec<Report>>>,
}

struct Thread {
    inbox: mpsc::Receiver<BTreeMap<PathKey, Target>>,
    wake: UnixStream,
    findings: watch::Sender<Option<Findings>>,
    reports: watch::Sender<Arc<Vec<Report>>>,
    begin: Instant,
    prober: Prober,
    ports: BTreeMap<IpAddr, Port>,
    sources: BTreeSet<IpAddr>,
    /// Who is answered: the peers, by their addresses among their pods.
    askers: BTreeSet<IpAddr>,
    reopen: Option<Duration>,
    published: Duration,
    /// Something came or went since.
    stale: bool,
}

impl Paths {
    /// Starts the thread, in the network namespace of the calling one.
    pub fn start(settings: Settings) -> io::Result<Paths> {
        let (targets, inbox) = mpsc::channel();
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let (findings, found) = watch::channel(None);
        let (reports, reported) = watch::channel(Arc::default());
        let seed = RandomState::new().build_hasher().finish();
        let mut thread = Thread {
            inbox,
            wake: woken,
            findings,
            reports,
            begin: Instant::now(),
            prober: Prober::new(settings, seed),
            ports: BTreeMap::new(),
            sources: BTreeSet::new(),
            askers: BTreeSet::new(),
            reopen: None,
            published: Duration::ZERO,
            stale: false,
        };
        std::thread::Builder::new()
            .name("paths".into())
            .spawn(move || thread.run())?;
        Ok(Paths {
            targets,
            wake,
            findings: found,
            reports: reported,
        })
    }

    /// Probes these paths from now on. To be called when the addresses they are probed from are there.
    pub fn set(&self, targets: BTreeMap<PathKey, Target>) {
        // A thread that has ended has said why.
        if self.targets.send(targets).is_ok() {
            let _ = (&self.wake).write(&[0]);
        }
    }
}

impl Thread {
    fn run(&mut self) {
        loop {
            match self.targets() {
                Err(mpsc::TryRecvError::Disconnected) => return,
                Err(mpsc::TryRecvError::Empty) | Ok(()) => {}
            }
            if let Err(error) = self.wait() {
                tracing::error!(%error, "paths to other nodes are no longer probed");
                return;
            }
            self.receive();
            self.send();
            self.publish();
        }
    }

    fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Takes the newest targets.
    fn targets(&mut self) -> Result<(), mpsc::TryRecvError> {
        let mut newest = self.inbox.try_recv()?;
        while let Ok(newer) = self.inbox.try_recv() {
            newest = newer;
        }
        self.sources = newest.values().map(|target| target.from).collect();
        self.askers = newest.values().map(|target| target.to).collect();
        self.ports.retain(|address, _| self.sources.contains(address));
        self.open();
        let now = self.now();
        self.prober.set_targets(now, newest);
        self.publish_findings();
        Ok(())
    }

    fn open(&mut self) {
        let again = self.reopen.take().is_some();
        for address in &self.sources {
            if self.ports.contains_key(address) {
                continue;
            }
            match Port::open(*address) {
                Ok(port) => _ = self.ports.insert(*address, port),
                Err(error) => {
                    if !again {
                        tracing::warn!("cannot probe other nodes from {address}: {error}; trying again");
                    }
                    self.reopen = Some(self.begin.elapsed() + REOPEN);
                }
            }
        }
    }

    /// Until something comes or is due. A wakeup comes for new targets; the end, which closes the stream, wakes for good.
    fn wait(&mut self) -> io::Result<()> {
        let now = self.now();
        let publish = self.stale.then_some(self.published + PUBLISH);
        let due = [self.prober.next(), self.reopen, publish]
            .into_iter()
            .flatten()
            .min();
        let mut descriptors = vec![self.wake.as_fd()];
        descriptors.extend(self.ports.values().flat_map(Port::descriptors));
        probe::wait(&descriptors, due.map(|due| due.saturating_sub(now)))?;
        let mut bytes = [0; 64];
        while matches!((&self.wake).read(&mut bytes), Ok(1..)) {}
        if self.reopen.is_some_and(|due| due <= self.now()) {
            self.open();
        }
        Ok(())
    }

    fn receive(&mut self) {
        let now = self.begin.elapsed();
        for port in self.ports.values() {
            port.answer(&self.askers);
            self.stale |= port.collect(now, &mut self.prober);
        }
    }

    fn send(&mut self) {
        let now = self.now();
        for transmit in self.prober.poll(now) {
            let Some(port) = self.ports.get(&transmit.from) else {
                self.prober.unsent(now, &transmit.bytes);
                continue;
            };
            match port.send(&transmit) {
                Ok(true) => {}
                Ok(false) => self.prober.too_big(now, &transmit.bytes),
                // No way there: that is what losing it means.
                Err(error) => tracing::debug!(to = %transmit.to, %error, "no probe"),
            }
        }
    }

    fn publish(&mut self) {
        let now = self.now();
        let changed = self.prober.take_changed();
        if changed {
            self.publish_findings();
        }
        if changed || (self.stale && now >= self.published + PUBLISH) {
            self.reports.send_replace(Arc::new(self.prober.reports()));
            self.published = now;
            self.stale = false;
        }
    }

    fn publish_findings(&mut self) {
        let found = Some(Findings {
            narrow: self.prober.narrow(),
            broken_checksums: self.prober.broken_checksums(),
        });
        self.findings.send_if_modified(|published| {
            let changed = *published != found;
            *published = found;
            changed
        });
    }
}
