//! A node's part on one link: it says that it is there, hears who else is, and answers for the addresses that are its.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::wire::{self, Heard, Heartbeat, Mac};
use super::{Standing, speaker};
use crate::cluster::NodeName;

/// How often a node says that it is there.
pub const BEAT: Duration = Duration::from_millis(100);
/// A node that was not heard for so long is gone.
pub const DEAD: Duration = Duration::from_millis(500);
/// When an address is announced, counted from when it was taken over. The first may be lost, and some hosts take no news of
/// a neighbour within a second of the last.
const ANNOUNCED: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(1200),
    Duration::from_millis(3000),
    Duration::from_millis(10_000),
];

/// The nodes that may have each address.
pub type Candidates = BTreeMap<IpAddr, Arc<BTreeSet<NodeName>>>;

/// A node's part on one link. Time is counted from any beginning, and never goes back.
///
/// It answers for an address only while it is the one that [`speaker()`] chooses from those it hears, and while it has
/// listened for long enough to have heard everybody. A node that could not run for a while was taken for gone by the
/// others: it listens again before it says anything.
#[derive(Debug)]
pub struct Announcer {
    me: NodeName,
    mac: Mac,
    wanted: Candidates,
    nodes: Arc<BTreeMap<NodeName, IpAddr>>,
    standing: Standing,
    peers: BTreeMap<NodeName, Peer>,
    speaking: BTreeMap<IpAddr, Announced>,
    /// It only listens, until then.
    listening: Option<Duration>,
    next_beat: Duration,
    /// How often it has begun to speak.
    taken: u32,
    /// When it ran last.
    ran: Duration,
}

/// Another node, as it was heard.
#[derive(Debug, Clone, Copy)]
struct Peer {
    heard: Duration,
    standing: Standing,
    taken: u32,
}

/// How often an address was announced, since when.
#[derive(Debug, Clone, Copy)]
struct Announced {
    since: Duration,
    times: usize,
}

impl Announced {
    fn due(&self) -> Option<Duration> {
        ANNOUNCED.get(self.times).map(|after| self.since + *after)
    }
}

impl Announcer {
    /// On a link that has just come up, or that is new to us.
    pub fn new(now: Duration, me: NodeName, mac: Mac) -> Self {
        Announcer {
            me,
            mac,
            wanted: Candidates::new(),
            nodes: Arc::default(),
            standing: Standing::Behind,
            peers: BTreeMap::new(),
            speaking: BTreeMap::new(),
            listening: Some(now + DEAD),
            next_beat: now,
            taken: 0,
            ran: now,
        }
    }

    /// From now on these addresses are announced on the link. `nodes` has every node's own address.
    pub fn want(
        &mut self,
        now: Duration,
        wanted: Candidates,
        nodes: Arc<BTreeMap<NodeName, IpAddr>>,
        standing: Standing,
    ) {
        self.wake(now);
        if self.wanted.is_empty() {
            // Nobody was listened to.
            self.begin(now);
        }
        if standing != self.standing {
            // The others are to know at once.
            self.next_beat = now;
        }
        self.peers.retain(|name, _| nodes.contains_key(name));
        self.wanted = wanted;
        self.nodes = nodes;
        self.standing = standing;
        self.decide(now);
    }

    /// Takes in a frame; what is to be answered.
    pub fn received(&mut self, now: Duration, frame: &[u8]) -> Option<Vec<u8>> {
        self.wake(now);
        match wire::read(frame)? {
            Heard::Heartbeat(heartbeat) => {
                self.heard(now, heartbeat);
                None
            }
            Heard::Question(question) => {
                let mine = self.speaking.contains_key(&question.target);
                mine.then(|| wire::answer(&question, self.mac)).flatten()
            }
        }
    }

    /// What is to be sent by now.
    pub fn poll(&mut self, now: Duration) -> Vec<Vec<u8>> {
        self.wake(now);
        let before = self.peers.len();
        self.peers.retain(|_, peer| now < peer.heard + DEAD);
        let heard_enough = self.listening.is_some_and(|until| now >= until);
        if heard_enough {
            self.listening = None;
            self.next_beat = now;
        }
        if heard_enough || self.peers.len() < before {
            self.decide(now);
        }
        let mut frames = Vec::new();
        if now >= self.next_beat {
            self.next_beat = now + BEAT;
            // Who does not speak yet is not to keep others from it.
            let beats = self.listening.is_none();
            frames.extend(beats.then(|| self.heartbeat(Some(self.standing))).flatten());
        }
        for (address, announced) in &mut self.speaking {
            if announced.due().is_some_and(|due| now >= due) {
                announced.times += 1;
                frames.push(wire::announcement(*address, self.mac));
            }
        }
        frames
    }

    /// When [`Announcer::poll`] is to be called, whatever happens before; never, where there is nothing to announce.
    pub fn next(&self) -> Option<Duration> {
        if self.wanted.is_empty() {
            return None;
        }
        let deaths = self.peers.values().map(|peer| peer.heard + DEAD);
        let announcements = self.speaking.values().filter_map(Announced::due);
        deaths.chain(announcements).chain([self.next_beat]).min()
    }

    /// Says goodbye: what is to be sent so that others take over at once.
    pub fn leave(&mut self) -> Option<Vec<u8>> {
        self.speaking.clear();
        self.heartbeat(None)
    }

    /// The addresses it answers for.
    pub fn speaks_for(&self) -> impl Iterator<Item = IpAddr> {
        self.speaking.keys().copied()
    }

    /// The nodes that it hears.
    pub fn hears(&self) -> impl Iterator<Item = &NodeName> {
        self.peers.keys()
    }

    /// Who was away for so long that the others have taken its place begins anew.
    fn wake(&mut self, now: Duration) {
        if now >= self.ran + DEAD {
            self.begin(now);
        }
        self.ran = now;
    }

    fn begin(&mut self, now: Duration) {
        self.peers.clear();
        self.speaking.clear();
        self.listening = Some(now + DEAD);
        self.next_beat = now + BEAT;
    }

    fn heartbeat(&self, standing: Option<Standing>) -> Option<Vec<u8>> {
        if self.wanted.is_empty() {
            return None;
        }
        let heartbeat = Heartbeat {
            node: self.me.clone(),
            address: *self.nodes.get(&self.me)?,
            standing,
            taken: self.taken,
        };
        Some(heartbeat.write(self.mac))
    }

    fn heard(&mut self, now: Duration, heartbeat: Heartbeat) {
        let Heartbeat {
            node,
            address,
            standing,
            taken,
        } = heartbeat;
        if node == self.me || self.nodes.get(&node) != Some(&address) {
            return;
        }
        let before = match standing {
            Some(standing) => {
                let peer = Peer {
                    heard: now,
                    standing,
                    taken,
                };
                self.peers.insert(node, peer)
            }
            None => self.peers.remove(&node),
        };
        if before.map(|peer| peer.standing) != standing {
            self.decide(now);
        }
        // It may have answered for what is ours, to those who did not hear us.
        if standing.is_some() && before.map(|peer| peer.taken) != Some(taken) {
            self.remind(now);
        }
    }

    /// Announces again what another node, or one that it heard and we did not, may have answered for meanwhile.
    fn remind(&mut self, now: Duration) {
        for announced in self.speaking.values_mut() {
            *announced = Announced { since: now, times: 0 };
        }
    }

    /// Begins and ends to speak, as what is known of the others has it.
    fn decide(&mut self, now: Duration) {
        if self.listening.is_some() || !self.nodes.contains_key(&self.me) {
            self.speaking.clear();
            return;
        }
        let mine = self.wanted.iter().filter(|(address, nodes)| {
            let peers = self.peers.iter().map(|(name, peer)| (name, peer.standing));
            let there = peers.chain([(&self.me, self.standing)]);
            let may = there.filter(|(name, _)| nodes.contains(*name));
            speaker(**address, may) == Some(&self.me)
        });
        let mine: BTreeSet<IpAddr> = mine.map(|(address, _)| *address).collect();
        self.speaking.retain(|address, _| mine.contains(address));
        let before = self.speaking.len();
        for address in mine {
            let new = Announced { since: now, times: 0 };
            self.speaking.entry(address).or_insert(new);
        }
        if self.speaking.len() > before {
            self.taken = self.taken.wrapping_add(1);
        }
    }
}
