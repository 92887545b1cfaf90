//! What to send when, and what the answers mean.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::search::Search;
use super::wire::{self, HEADER};
use super::{Checksums, PathKey, Reach, Report, Target, Time, mix};

/// A path is judged by this many rounds in succession.
const ROUNDS: u8 = 3;
/// Pause between the rounds that decide.
const AGAIN: Duration = Duration::from_secs(1);
/// An answer that takes longer than this is none.
const LONGEST: Duration = Duration::from_secs(1);
/// Added to what an answer usually takes.
const GRACE: Duration = Duration::from_millis(200);
/// Among so many rounds of a narrow path one searches for a size between what passes and what the link takes.
const SEARCH_ROUNDS: u32 = 24;

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
    open: HashMap<u64, PathKey>,
    /// Probes that may be sent at once, and when that was worked out.
    allowance: f64,
    counted: Time,
    changed: bool,
}

#[derive(Debug)]
struct Path {
    target: Target,
    due: Time,
    open: Option<Open>,
    next: Ask,
    /// Rounds in which nothing came back.
    lost: u8,
    /// Rounds in which only the probe without a checksum came back.
    checksum_lost: u8,
    /// Large probes that were lost.
    large_lost: u8,
    rounds: u32,
    search: Option<Search>,
    reach: Reach,
    checksums: Checksums,
    latency: Option<Duration>,
    mtu: Option<u32>,
    corrupt: u64,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    nonce: u64,
    ask: Ask,
    sent: Time,
}

/// What a probe asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// Does anything arrive?
    Checksum,
    /// Does anything arrive that has no checksum?
    Bare,
    /// Does a packet of that size arrive?
    Size(u32),
}

/// What became of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Lost,
    TooBig,
}

/// What a path does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Ask(Ask),
    /// The round is over; the next begins soon, because this one decides nothing yet.
    Soon,
    /// The round is over.
    Rest,
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
            if let Some(open) = path.open {
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
        let Some(key) = wire::nonce(bytes).and_then(|nonce| self.open.remove(&nonce)) else {
            return;
        };
        if let Some(path) = self.paths.get_mut(&key) {
            self.changed |= path.reach != Reach::NoAgent;
            path.reach = Reach::NoAgent;
            path.open = None;
            path.lost = 0;
            path.search = None;
            self.schedule(now, &key, Next::Rest);
        }
    }

    /// The datagram that began with `bytes` was too big for this node or one on the way.
    pub fn too_big(&mut self, now: Time, bytes: &[u8]) {
        if let Some(nonce) = wire::nonce(bytes) {
            self.outcome(now, nonce, Outcome::TooBig);
        }
    }

    fn outcome(&mut self, now: Time, nonce: u64, outcome: Outcome) {
        let Some(key) = self.open.remove(&nonce) else {
            return;
        };
        let Some(path) = self.paths.get_mut(&key) else {
            return;
        };
        let Some(open) = path.open.take() else {
            return;
        };
        let before = (path.reach, path.mtu, path.checksums);
        if outcome == Outcome::Passed && !matches!(open.ask, Ask::Size(_)) {
            path.took(now.saturating_sub(open.sent));
        }
        let next = path.judge(open.ask, outcome);
        self.changed |= before != (path.reach, path.mtu, path.checksums);
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

impl Path {
    fn new(now: Time, target: Target) -> Self {
        Path {
            due: now,
            open: None,
            next: Ask::Checksum,
            lost: 0,
            checksum_lost: 0,
            large_lost: 0,
            rounds: 0,
            search: None,
            reach: Reach::Unknown,
            checksums: Checksums::Unknown,
            latency: None,
            mtu: target.known_mtu.filter(|mtu| *mtu < target.link_mtu),
            corrupt: 0,
            target,
        }
    }

    /// The path leads elsewhere, or its link has another size.
    fn retarget(&mut self, target: Target) {
        let link_mtu = self.target.link_mtu;
        // What was narrow stays so until it is seen to be wider: wider than it is loses packets.
        self.mtu = self.mtu.filter(|mtu| *mtu < link_mtu && *mtu < target.link_mtu);
        self.search = None;
        self.large_lost = 0;
        self.target = target;
    }

    /// IP and UDP headers.
    fn headers(&self) -> u32 {
        if self.target.to.is_ipv4() { 28 } else { 48 }
    }

    /// What every link must carry (RFC 791, where hosts accept 576; RFC 8200).
    fn least_mtu(&self) -> u32 {
        let least = if self.target.to.is_ipv4() { 576 } else { 1280 };
        least.min(self.target.link_mtu)
    }

    fn transmit(&mut self, now: Time, nonce: u64) -> Transmit {
        let length = match self.next {
            Ask::Checksum | Ask::Bare => HEADER as u32,
            Ask::Size(size) => size.saturating_sub(self.headers()),
        };
        // What is known to arrive is used to find out about sizes.
        let checksum = match self.next {
            Ask::Checksum => true,
            Ask::Bare => false,
            Ask::Size(_) => self.checksum_lost == 0,
        };
        let patience = self.latency.map_or(LONGEST, |latency| latency * 4 + GRACE);
        self.open = Some(Open {
            nonce,
            ask: self.next,
            sent: now,
        });
        self.due = now + patience.min(LONGEST);
        Transmit {
            from: self.target.from,
            to: self.target.to,
            bytes: wire::probe(nonce, u16::try_from(length).unwrap_or(u16::MAX)),
            checksum,
        }
    }

    /// RFC 6298's smoothing.
    fn took(&mut self, latency: Duration) {
        self.latency = Some(match self.latency {
            None => latency,
            Some(smoothed) => smoothed * 7 / 8 + latency / 8,
        });
    }

    fn judge(&mut self, ask: Ask, outcome: Outcome) -> Next {
        match (ask, outcome) {
            (Ask::Checksum, Outcome::Passed) => {
                (self.lost, self.checksum_lost) = (0, 0);
                (self.reach, self.checksums) = (Reach::Reachable, Checksums::Right);
                Next::Ask(self.size())
            }
            (Ask::Checksum, _) => Next::Ask(Ask::Bare),
            (Ask::Bare, Outcome::Passed) => {
                self.lost = 0;
                self.reach = Reach::Reachable;
                self.checksum_lost = self.checksum_lost.saturating_add(1);
                if self.checksum_lost < ROUNDS {
                    return Next::Soon;
                }
                self.checksums = Checksums::Wrong;
                Next::Ask(self.size())
            }
            (Ask::Bare, _) => {
                self.lost = self.lost.saturating_add(1);
                self.search = None;
                if self.lost < ROUNDS {
                    return Next::Soon;
                }
                self.reach = Reach::Unreachable;
                Next::Rest
            }
            (Ask::Size(size), _) if self.search.is_some() => self.searched(size, outcome),
            (Ask::Size(size), Outcome::Passed) => self.large_passed(size),
            (Ask::Size(size), _) => self.large_lost(size, outcome),
        }
    }

    /// The size that should pass.
    fn size(&self) -> Ask {
        match &self.search {
            Some(search) => Ask::Size(search.size().unwrap_or(search.found())),
            None => Ask::Size(self.mtu.unwrap_or(self.target.link_mtu)),
        }
    }

    fn large_passed(&mut self, size: u32) -> Next {
        self.large_lost = 0;
        let link_mtu = self.target.link_mtu;
        if size >= link_mtu {
            self.mtu = Some(link_mtu);
            return Next::Rest;
        }
        if self.rounds % SEARCH_ROUNDS == SEARCH_ROUNDS - 1 {
            return self.search_between(size, link_mtu + 1);
        }
        // Perhaps everything passes again.
        Next::Ask(Ask::Size(link_mtu))
    }

    fn large_lost(&mut self, size: u32, outcome: Outcome) -> Next {
        let believed = self.mtu.unwrap_or(self.target.link_mtu);
        if size > believed {
            // Still narrow.
            return Next::Rest;
        }
        self.large_lost += 1;
        if self.large_lost < ROUNDS && outcome == Outcome::Lost {
            return Next::Ask(Ask::Size(size));
        }
        self.large_lost = 0;
        self.search_between(self.least_mtu(), size)
    }

    fn search_between(&mut self, passes: u32, fails: u32) -> Next {
        let search = Search::new(passes, fails);
        let next = search.size();
        self.search = Some(search);
        match next {
            Some(size) => Next::Ask(Ask::Size(size)),
            None => self.found(),
        }
    }

    fn searched(&mut self, size: u32, outcome: Outcome) -> Next {
        let Some(search) = &mut self.search else {
            return Next::Rest;
        };
        // The answer to a question of before.
        if search.size() == Some(size) {
            match outcome {
                Outcome::Passed => search.passed(),
                Outcome::Lost => search.lost(false),
                Outcome::TooBig => search.lost(true),
            }
        }
        match search.size() {
            Some(size) => Next::Ask(Ask::Size(size)),
            None => self.found(),
        }
    }

    fn found(&mut self) -> Next {
        if let Some(search) = self.search.take() {
            self.mtu = Some(search.found().min(self.target.link_mtu));
        }
        Next::Rest
    }

    fn report(&self, key: &PathKey) -> Report {
        Report {
            key: key.clone(),
            to: self.target.to,
            reach: self.reach,
            latency: self.latency,
            mtu: self.mtu,
            link_mtu: self.target.link_mtu,
            checksums: self.checksums,
            corrupt: self.corrupt,
            tunnel: self.target.tunnel,
        }
    }
}
