//! Which endpoint a client gets. Nothing here has a socket or a clock.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podnet_core::cluster::{Affinity, Algorithm, Family};
use podnet_core::service::{Backend, Entry, PortName, maglev};

use super::recent::Recent;

/// Most clients that are remembered to stay with their endpoint.
const MOST_CLIENTS: usize = 1 << 16;
/// Most tables of slots for Maglev hashing that are kept.
const MOST_TABLES: usize = 256;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its address and port.
    pub client: SocketAddr,
    /// It is the node itself or one of its pods.
    pub inside: bool,
}

/// What is to become of a connection or flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// It goes there.
    To(SocketAddr),
    /// It is refused at once.
    Refuse,
    /// It is dropped in silence.
    Drop,
}

/// Chooses endpoints, and remembers who stays with which.
#[derive(Debug)]
pub struct Chooser {
    /// By service port, not by address: a client stays by whichever of the service's addresses it comes.
    stays: Recent<(Arc<PortName>, IpAddr), (SocketAddr, Duration)>,
    /// By service port, family, and whether it is for callers inside: these have endpoints of their own each.
    tables: Recent<(Arc<PortName>, Family, bool), Slots>,
}

/// A table of slots, filled for some endpoints: which of them each slot leads to.
#[derive(Debug)]
struct Slots {
    endpoints: Box<[SocketAddr]>,
    places: Vec<usize>,
}

impl Default for Chooser {
    fn default() -> Self {
        Chooser {
            stays: Recent::new(MOST_CLIENTS),
            tables: Recent::new(MOST_TABLES),
        }
    }
}

/// What such a caller gets.
pub fn backend(entry: &Entry, inside: bool) -> &Backend {
    if inside { &entry.inside } else { entry.outside() }
}

impl Chooser {
    /// Chooses for a new connection or flow. `draw` is a random number; endpoints in `not` have just failed.
    pub fn choose(
        &mut self,
        entry: &Entry,
        caller: Caller,
        not: &[SocketAddr],
        now: Instant,
        draw: u64,
    ) -> Choice {
        if !entry.admits(caller.client.ip()) {
            return Choice::Drop;
        }
        let endpoints = match backend(entry, caller.inside) {
            Backend::Refuse => return Choice::Refuse,
            Backend::Drop => return Choice::Drop,
            Backend::Balance { endpoints, .. } => endpoints,
        };
        let Affinity::ClientIp { seconds } = entry.affinity else {
            return self.pick(entry, endpoints, caller, not, now, draw);
        };
        let (key, patience) = (
            (entry.port.clone(), caller.client.ip()),
            Duration::from_secs(u64::from(seconds)),
        );
        if let Some(&((stays, _), used)) = self.stays.peek(&key).as_ref()
            && now.saturating_duration_since(used) < patience
            && endpoints.binary_search(stays).is_ok()
            && !not.contains(stays)
        {
            let stays = *stays;
            self.stays.touch(&key, now);
            return Choice::To(stays);
        }
        let choice = self.pick(entry, endpoints, caller, not, now, draw);
        if let Choice::To(endpoint) = choice {
            self.stays.insert(key, (endpoint, patience), now);
        }
        choice
    }

    /// By lot, or by the client's hash.
    fn pick(
        &mut self,
        entry: &Entry,
        endpoints: &[SocketAddr],
        caller: Caller,
        not: &[SocketAddr],
        now: Instant,
        draw: u64,
    ) -> Choice {
        if entry.algorithm == Algorithm::Random {
            return drawn(endpoints, not, draw);
        }
        // Where a client is to stay its port does not matter.
        let mut client = caller.client;
        if entry.affinity != Affinity::None {
            client.set_port(0);
        }
        let key = (entry.port.clone(), Family::of(client.ip()), caller.inside);
        let known = self.tables.touch(&key, now);
        if known.is_none_or(|known| *known.endpoints != *endpoints) {
            let slots = Slots {
                endpoints: endpoints.into(),
                places: maglev::slots(endpoints, maglev::size(endpoints.len())),
            };
            self.tables.insert(key.clone(), slots, now);
        }
        let slots = self.tables.peek(&key).map_or(&[][..], |(slots, _)| &slots.places);
        hashed(endpoints, slots, not, maglev::of_client(client))
    }

    /// Forgets clients that have been idle for long enough.
    pub fn expire(&mut self, now: Instant) {
        self.stays.expire(now, |(_, patience)| *patience);
    }
}

/// The endpoint of the client's slot, or of the next one whose endpoint has not failed.
fn hashed(endpoints: &[SocketAddr], slots: &[usize], not: &[SocketAddr], hash: u64) -> Choice {
    let first = (hash % slots.len().max(1) as u64) as usize;
    let (before, after) = slots.split_at(first.min(slots.len()));
    let mut leads_to = after
        .iter()
        .chain(before)
        .filter_map(|place| endpoints.get(*place));
    let endpoint = leads_to.find(|endpoint| !not.contains(endpoint));
    endpoint.map_or(Choice::Refuse, |endpoint| Choice::To(*endpoint))
}

/// Each of the endpoints that have not failed is as likely as the others.
fn drawn(endpoints: &[SocketAddr], not: &[SocketAddr], draw: u64) -> Choice {
    let left = || endpoints.iter().filter(|endpoint| !not.contains(endpoint));
    let count = left().count() as u64;
    if count == 0 {
        return Choice::Refuse;
    }
    let drawn = left().nth((draw % count) as usize);
    drawn.map_or(Choice::Refuse, |endpoint| Choice::To(*endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use podnet_core::cluster::{ObjectName, Protocol};
    use std::num::NonZeroU16;

    fn socket(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn balance(endpoints: &[&str]) -> Backend {
        Backend::Balance {
            endpoints: endpoints.iter().map(|text| socket(text)).collect(),
            draining: Box::new([]),
        }
    }

    fn entry(endpoints: &[&str], affinity: Affinity) -> Entry {
        let port = PortName {
            service: ObjectName::new("default", "web"),
            protocol: Protocol::Tcp,
            port: NonZeroU16::MIN,
        };
        Entry {
            affinity,
            ..Entry::new(port, balance(endpoints))
        }
    }

    fn caller(address: &str) -> Caller {
        Caller {
            client: SocketAddr::new(address.parse().unwrap(), 4000),
            inside: false,
        }
    }

    const A: &str = "10.0.0.1:80";
    const B: &str = "10.0.0.2:80";

    #[test]
    fn every_endpoint_gets_its_share_and_one_that_failed_none() {
        let (mut chooser, entry, now) = (Chooser::default(), entry(&[A, B], Affinity::None), Instant::now());
        let mut to = |not: &[SocketAddr], draw| chooser.choose(&entry, caller("1.1.1.1"), not, now, draw);
        let first = (0..100).filter(|draw| to(&[], *draw) == Choice::To(socket(A)));
        assert_eq!(first.count(), 50);
        assert!((0..100).all(|draw| to(&[socket(A)], draw) == Choice::To(socket(B))));
        assert_eq!(to(&[socket(A), socket(B)], 7), Choice::Refuse);
    }

    #[test]
    fn by_maglev_hashing_every_node_chooses_the_same_and_one_that_fails_moves_nobody_else() {
        let now = Instant::now();
        let c = "10.0.0.3:80";
        let hashing = |endpoints: &[&str]| Entry {
            algorithm: Algorithm::Maglev,
            ..entry(endpoints, Affinity::None)
        };
        let all = hashing(&[A, B, c]);
        let choices = |not: &[SocketAddr], seed: u64| -> Vec<Choice> {
            let mut node = Chooser::default();
            let clients = (1..=300).map(|port| Caller {
                client: SocketAddr::from(([192, 0, 2, 1], port)),
                inside: false,
            });
            clients
                .map(|caller| node.choose(&all, caller, not, now, seed))
                .collect()
        };
        let first = choices(&[], 1);
        assert_eq!(choices(&[], 2), first);
        for endpoint in [A, B, c] {
            let share = first
                .iter()
                .filter(|choice| **choice == Choice::To(socket(endpoint)));
            assert!((70..130).contains(&share.count()), "{first:?}");
        }
        for (before, after) in first.iter().zip(choices(&[socket(c)], 1)) {
            assert_ne!(after, Choice::To(socket(c)));
            assert!(*before == Choice::To(socket(c)) || *before == after);
        }
        // A service of both families has a table for each.
        let six = hashing(&["[fd00::1]:80", "[fd00::2]:80"]);
        let mut node = Chooser::default();
        for (entry, client) in [(&all, "192.0.2.1"), (&six, "2001:db8::1"), (&all, "192.0.2.1")] {
            node.choose(entry, caller(client), &[], now, 0);
        }
        assert_eq!(node.tables.len(), 2);
        // Others than those that the table was filled for.
        let mut node = Chooser::default();
        node.choose(&all, caller("192.0.2.1"), &[], now, 0);
        let left = node.choose(&hashing(&[B]), caller("192.0.2.1"), &[], now, 0);
        assert_eq!(left, Choice::To(socket(B)));
    }

    #[test]
    fn a_client_stays_until_it_was_idle_or_its_endpoint_is_gone() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut chooser = Chooser::default();
        let stay = Affinity::ClientIp { seconds: 10 };
        let both = entry(&[A, B], stay);
        let mut ask =
            |entry: &Entry, seconds, draw| chooser.choose(entry, caller("1.1.1.1"), &[], at(seconds), draw);
        assert_eq!(ask(&both, 0, 0), Choice::To(socket(A)));
        // Each use counts anew.
        assert_eq!(ask(&both, 9, 1), Choice::To(socket(A)));
        assert_eq!(ask(&both, 18, 1), Choice::To(socket(A)));
        assert_eq!(ask(&both, 28, 1), Choice::To(socket(B)));
        assert_eq!(ask(&entry(&[A], stay), 29, 0), Choice::To(socket(A)));
        // The other one is back, and it does not move again.
        assert_eq!(ask(&both, 30, 1), Choice::To(socket(A)));
        // Switched off.
        assert_eq!(ask(&entry(&[A, B], Affinity::None), 31, 1), Choice::To(socket(B)));
    }

    #[test]
    fn who_may_not_come_is_dropped_and_who_asks_makes_a_difference() {
        let mut guarded = entry(&[A], Affinity::None);
        guarded.sources = Some(Arc::new(["10.0.0.0/8".parse().unwrap()].into()));
        guarded.outside = Some(Arc::new(Backend::Drop));
        let mut chooser = Chooser::default();
        let mut ask = |address: &str, inside| {
            let caller = Caller {
                inside,
                ..caller(address)
            };
            chooser.choose(&guarded, caller, &[], Instant::now(), 0)
        };
        assert_eq!(ask("10.1.1.1", true), Choice::To(socket(A)));
        assert_eq!(ask("10.1.1.1", false), Choice::Drop);
        assert_eq!(ask("11.1.1.1", true), Choice::Drop);
        assert_eq!(ask("fd00::1", true), Choice::Drop);
    }
}
