//! What to send when, and what the answers mean.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::watched::{Ask, Next, Open, Outcome, Path};
use super::{Checksums, PathKey, Report, Target, Time, mix, wire};

/// Pause between the rounds that decide.
const AGAIN: Duration = Duration::from_secs(1);

/// How much is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Each path is probed so often, while there are few.
    pub interval: Duration,
    /// At most so many rounds begin in a second: with many paths each waits longer.
    pub rounds_per_second: u32,
    /// At most so many probes are sent in a second.
    pub probes_per_second: u32,
}

impl Default for Settings {
    /// With 1,000 paths (500 peers, both families): a round every 25 s, 80 probes and 60 kB a second.
    fn default() -> Self {
        Settings {
            interval: Duration::from_secs(5),
            rounds_per_second: 40,
            probes_per_second: 200,
        }
    }
}

/// A probe to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// From this node's address.
    pub from: IpAddr,
    /// To the peer's, port [`wire::PORT`].
    pub to: IpAddr,
    /// What.
    pub bytes: Vec<u8>,
    /// With a UDP checksum that is left to the device; otherwise without any.
    pub checksum: bool,
}

/// Watches paths.
#[derive(Debug)]
pub struct Prober {
    settings: Settings,
    seed: u64,
    sent: u64,
    paths: BTreeMap<PathKey, Path>,
    /// When each path is to be looked at.
    agenda: BTreeSet<(Time, PathKey)>,
    /// By nonce, what is asked of whom: the probes that are under way, and those that were given up lately.
    open: HashMap<u64, PathKey>,
    /// Probes that may be sent at once, and when that was worked out.
    allowance: f64,
    counted: Time,
    changed: bool,
}

impl Prober {
    /// Watches nothing yet. The nonces of probes follow from `seed`, which should not be guessed.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Prober {
            settings,
            seed,
            sent: 0,
            paths: BTreeMap::new(),
            agenda: BTreeSet::new(),
            open: HashMap::new(),
            allowance: f64::from(settings.probes_per_second),
            counted: Time::ZERO,
            changed: false,
        }
    }

    /// Watches these paths. What is known of those that stay is kept.
    pub fn set_targets(&mut self, now: Time, mut targets: BTreeMap<PathKey, Target>) {
        let gone: Vec<PathKey> = self
            .paths
            .keys()
            .filter(|key| !targets.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            self.forget(&key);
        }
        for (key, path) in &mut self.paths {
            if let Some(mut target) = targets.remove(key) {
                // That is what was found here.
                target.known_mtu = path.target.known_mtu;
                if path.target != target {
                    self.changed = true;
                    path.retarget(target);
                }
            }
        }
        for (key, target) in targets {
            self.agenda.insert((now, key.clone()));
            self.paths.insert(key, Path::new(now, target));
            self.changed = true;
        }
    }

    fn forget(&mut self, key: &PathKey) {
        if let Some(path) = self.paths.remove(key) {
            self.agenda.remove(&(path.due, key.clone()));
            for open in path.open.iter().chain(&path.given_up) {
                self.open.remove(&open.nonce);
            }
            self.changed = true;
        }
    }

    /// When [`Prober::poll`] has something to do, if it ever has.
    pub fn next(&self) -> Option<Time> {
        let (due, _) = self.agenda.first()?;
        if self.allowance >= 1.0 {
            return Some(*due);
        }
        let missing = (1.0 - self.allowance) / f64::from(self.settings.probes_per_second);
        // Rounded up: a moment early would find nothing to do.
        let allowed = self.counted + Duration::from_secs_f64(missing) + Duration::from_micros(1);
        Some((*due).max(allowed))
    }

    /// Notes what has not been answered in time, and says what is to be sent now.
    pub fn poll(&mut self, now: Time) -> Vec<Transmit> {
        let most = f64::from(self.settings.probes_per_second);
        let passed = now.saturating_sub(self.counted).as_secs_f64();
        self.allowance = (self.allowance + passed * most).min(most / 4.0 + 1.0);
        self.counted = now;
        let mut transmits = Vec::new();
        while let Some((due, key)) = self.agenda.first().cloned() {
            if due > now {
                break;
            }
            let Some(path) = self.paths.get_mut(&key) else {
                self.agenda.pop_first();
                continue;
            };
            if let Some(open) = path.open {
                self.outcome(now, open.nonce, Outcome::Lost);
                continue;
            }
            if self.allowance < 1.0 {
                break;
            }
            self.allowance -= 1.0;
            self.sent += 1;
            let nonce = mix(self.seed ^ mix(self.sent));
            transmits.push(path.transmit(now, nonce));
            self.open.insert(nonce, key.clone());
            let due = path.due;
            self.agenda.pop_first();
            self.agenda.insert((due, key));
        }
        transmits
    }

    /// A datagram came back from a peer.
    pub fn received(&mut self, now: Time, from: IpAddr, bytes: &[u8]) {
        let Some(reply) = wire::reply(bytes) else {
            return;
        };
        let Some(path) = self
            .open
            .get(&reply.nonce)
            .and_then(|key| self.paths.get_mut(key))
        else {
            return;
        };
        if path.target.to != from {
            return;
        }
        if !reply.intact {
            path.corrupt += 1;
            self.changed = true;
        }
        self.outcome(now, reply.nonce, Outcome::Passed);
    }

    /// The peer said that nobody listens (ICMP port unreachable) about the datagram that began with `bytes`. So packets
    /// arrive.
    pub fn refused(&mut self, now: Time, bytes: &[u8]) {
        if let Some(nonce) = wire::nonce(bytes) {
            self.outcome(now, nonce, Outcome::NoListener);
        }
    }

    /// The datagram that began with `bytes` was too big for this node or one on the way.
    pub fn too_big(&mut self, now: Time, bytes: &[u8]) {
        if let Some(nonce) = wire::nonce(bytes) {
            self.outcome(now, nonce, Outcome::TooBig);
        }
    }

    /// The datagram could not be sent, for a reason that says nothing of the path.
    pub fn unsent(&mut self, now: Time, bytes: &[u8]) {
        if let Some((key, ..)) = wire::nonce(bytes).and_then(|nonce| self.take(nonce)) {
            self.schedule(now, &key, Next::Rest);
        }
    }

    /// Takes a probe out of what is open; says whether its path still waited for it, or had given it up.
    fn take(&mut self, nonce: u64) -> Option<(PathKey, Open, bool)> {
        let key = self.open.remove(&nonce)?;
        let path = self.paths.get_mut(&key)?;
        if let Some(open) = path.open.take_if(|open| open.nonce == nonce) {
            return Some((key, open, true));
        }
        let at = path.given_up.iter().position(|open| open.nonce == nonce)?;
        let open = path.given_up.remove(at)?;
        Some((key, open, false))
    }

    fn outcome(&mut self, now: Time, nonce: u64, outcome: Outcome) {
        let Some((key, open, awaited)) = self.take(nonce) else {
            return;
        };
        let Some(path) = self.paths.get_mut(&key) else {
            return;
        };
        let before = path.verdict();
        if outcome == Outcome::Passed && !matches!(open.ask, Ask::Size(_)) {
            path.took(now.saturating_sub(open.sent));
        }
        if !awaited {
            path.late(open.ask, outcome);
            self.changed |= before != path.verdict();
            return;
        }
        if outcome == Outcome::Lost && !matches!(open.ask, Ask::Size(_)) {
            self.open.insert(nonce, key.clone());
            if let Some(forgotten) = path.give_up(open) {
                self.open.remove(&forgotten.nonce);
            }
        }
        let next = path.judge(open.ask, outcome);
        self.changed |= before != path.verdict();
        self.schedule(now, &key, next);
    }

    fn schedule(&mut self, now: Time, key: &PathKey, next: Next) {
        let interval = self.interval();
        let Some(path) = self.paths.get_mut(key) else {
            return;
        };
        let old = path.due;
        (path.next, path.due) = match next {
            Next::Ask(ask) => (ask, now),
            Next::Soon => (Ask::Checksum, now + AGAIN.min(interval)),
            Next::Rest => {
                path.rounds = path.rounds.wrapping_add(1);
                // A tenth more or less, so that agents which started together do not stay together.
                let jitter = mix(self.seed ^ self.sent) % 200;
                (
                    Ask::Checksum,
                    now + interval.mul_f64(0.9 + jitter as f64 / 1000.0),
                )
            }
        };
        self.agenda.remove(&(old, key.clone()));
        self.agenda.insert((path.due, key.clone()));
    }

    fn interval(&self) -> Duration {
        let shared = self.paths.len() as f64 / f64::from(self.settings.rounds_per_second);
        self.settings.interval.max(Duration::from_secs_f64(shared))
    }

    /// Whether a verdict has changed since this was asked last.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What is known of each path.
    pub fn reports(&self) -> Vec<Report> {
        let reports = self.paths.iter().map(|(key, path)| path.report(key));
        reports.collect()
    }

    /// By range, the largest packet that passes, where the link takes more.
    pub fn narrow(&self) -> BTreeMap<IpNet, u32> {
        let narrow = self.paths.iter().filter_map(|(key, path)| {
            let mtu = path.mtu.filter(|mtu| *mtu < path.target.link_mtu)?;
            Some((key.range, mtu))
        });
        narrow.collect()
    }

    /// Whether checksums that our tunnel leaves to a device arrive wrong anywhere.
    pub fn broken_checksums(&self) -> bool {
        let mut paths = self.paths.values();
        paths.any(|path| path.target.tunnel && path.checksums == Checksums::Wrong)
    }
}
