//! One path: what its probes say of it, and what is to be asked next.

use std::collections::VecDeque;
use std::time::Duration;

use super::prober::Transmit;
use super::search::Search;
use super::wire::{self, HEADER};
use super::{Checksums, PathKey, Reach, Report, Target, Time};

/// A path is judged by this many rounds in succession.
const ROUNDS: u8 = 3;
/// An answer that takes longer than this comes late.
const LONGEST: Duration = Duration::from_secs(2);
/// Added to what an answer usually takes.
const GRACE: Duration = Duration::from_millis(500);
/// Late answers are known for so many probes: both of each round that decides, once more.
const GIVEN_UP: usize = 4 * ROUNDS as usize;
/// Among so many rounds of a narrow path one searches for a size between what passes and what the link takes.
const SEARCH_ROUNDS: u32 = 24;

/// A path that is watched.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) target: Target,
    pub(super) due: Time,
    pub(super) open: Option<Open>,
    /// Small probes that were not answered in time. An answer may come all the same, and then it counts.
    pub(super) given_up: VecDeque<Open>,
    pub(super) next: Ask,
    /// Rounds in which nothing came back.
    lost: u8,
    /// Rounds in which only the probe without a checksum came back.
    checksum_lost: u8,
    /// Large probes that were lost.
    large_lost: u8,
    pub(super) rounds: u32,
    search: Option<Search>,
    pub(super) reach: Reach,
    pub(super) checksums: Checksums,
    latency: Option<Duration>,
    pub(super) mtu: Option<u32>,
    pub(super) corrupt: u64,
}

/// A probe that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open {
    pub(super) nonce: u64,
    pub(super) ask: Ask,
    pub(super) sent: Time,
}

/// What a probe asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Does anything arrive?
    Checksum,
    /// Does anything arrive that has no checksum?
    Bare,
    /// Does a packet of that size arrive?
    Size(u32),
}

/// What became of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    /// Nothing came back in time.
    Lost,
    TooBig,
    /// It arrived, and nobody listened.
    NoListener,
}

/// What a path does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Ask(Ask),
    /// The round is over; the next begins soon, because this one decides nothing yet.
    Soon,
    /// The round is over.
    Rest,
}

impl Path {
    pub(super) fn new(now: Time, target: Target) -> Self {
        Path {
            due: now,
            open: None,
            given_up: VecDeque::new(),
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
    pub(super) fn retarget(&mut self, target: Target) {
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

    pub(super) fn transmit(&mut self, now: Time, nonce: u64) -> Transmit {
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
    pub(super) fn took(&mut self, latency: Duration) {
        self.latency = Some(match self.latency {
            None => latency,
            Some(smoothed) => smoothed * 7 / 8 + latency / 8,
        });
    }

    /// What may be worth telling.
    pub(super) fn verdict(&self) -> (Reach, Option<u32>, Checksums) {
        (self.reach, self.mtu, self.checksums)
    }

    /// Keeps a probe that was not answered in time; returns one for which none is waited any longer.
    pub(super) fn give_up(&mut self, open: Open) -> Option<Open> {
        self.given_up.push_back(open);
        let too_many = self.given_up.len() > GIVEN_UP;
        too_many.then(|| self.given_up.pop_front()).flatten()
    }

    /// An answer to a probe that was given up. A machine that has no time, ours or the peer's, is no broken path.
    pub(super) fn late(&mut self, ask: Ask, outcome: Outcome) {
        match outcome {
            Outcome::Passed => self.reach = Reach::Reachable,
            Outcome::NoListener => self.reach = Reach::NoAgent,
            Outcome::Lost | Outcome::TooBig => return,
        }
        self.lost = 0;
        if ask == Ask::Checksum {
            (self.checksum_lost, self.checksums) = (0, Checksums::Right);
        }
    }

    pub(super) fn judge(&mut self, ask: Ask, outcome: Outcome) -> Next {
        match (ask, outcome) {
            (_, Outcome::NoListener) => {
                (self.reach, self.lost, self.search) = (Reach::NoAgent, 0, None);
                Next::Rest
            }
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
                _ => search.lost(outcome == Outcome::TooBig),
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

    pub(super) fn report(&self, key: &PathKey) -> Report {
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
