use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

/// A network that does to probes what it is told.
struct Network {
    prober: Prober,
    now: Time,
    /// Packets in flight back to us.
    replies: Vec<(Time, IpAddr, Vec<u8>)>,
    mtu: u32,
    /// A router says when a packet is too big.
    honest: bool,
    up: bool,
    agent: bool,
    offload: bool,
    delay: Duration,
    /// Those that have a checksum take three seconds more.
    slow_checksums: bool,
    /// Of a hundred packets so many are lost.
    loss: u64,
    sent: u64,
    bytes: usize,
}

fn key(peer: u16) -> PathKey {
    let [high, low] = peer.to_be_bytes();
    PathKey {
        peer: NodeName::new(format!("node{peer}")).unwrap(),
        range: format!("10.{high}.{low}.0/24").parse().unwrap(),
    }
}

fn target(peer: u16, link_mtu: u32) -> Target {
    Target {
        from: "10.99.0.0".parse().unwrap(),
        to: key(peer).range.addr(),
        link_mtu,
        known_mtu: None,
        tunnel: true,
    }
}

impl Network {
    fn new(peers: u16, link_mtu: u32) -> Self {
        let mut prober = Prober::new(Settings::default(), 7);
        let targets = (0..peers).map(|peer| (key(peer), target(peer, link_mtu)));
        prober.set_targets(Time::ZERO, targets.collect());
        Network {
            prober,
            now: Time::ZERO,
            replies: Vec::new(),
            mtu: link_mtu,
            honest: false,
            up: true,
            agent: true,
            offload: true,
            delay: Duration::from_millis(1),
            slow_checksums: false,
            loss: 0,
            sent: 0,
            bytes: 0,
        }
    }

    fn carry(&mut self, transmit: Transmit) {
        self.sent += 1;
        self.bytes += transmit.bytes.len();
        let size = transmit.bytes.len() as u32 + 28;
        if size > self.mtu && self.honest {
            self.prober.too_big(self.now, &transmit.bytes);
        }
        let lost = mix(self.sent) % 100 < self.loss;
        if !self.up || lost || size > self.mtu || (transmit.checksum && !self.offload) {
            return;
        }
        if !self.agent {
            return self.prober.refused(self.now, &transmit.bytes[..wire::HEADER]);
        }
        let reply = wire::answer(&transmit.bytes).unwrap();
        let more = Duration::from_secs(if transmit.checksum && self.slow_checksums {
            3
        } else {
            0
        });
        self.replies
            .push((self.now + self.delay + more, transmit.to, reply));
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        loop {
            let arrival = self.replies.iter().map(|(at, ..)| *at).min();
            let next = self.prober.next().into_iter().chain(arrival).min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            // A poll that has nothing to do and says that it is due would go on for ever.
            self.now = self.now.max(next);
            let (come, rest) = self.replies.drain(..).partition(|(at, ..)| *at <= self.now);
            self.replies = rest;
            let come: Vec<(Time, IpAddr, Vec<u8>)> = come;
            let quiet = come.is_empty();
            for (_, from, reply) in come {
                self.prober.received(self.now, from, &reply);
            }
            let transmits = self.prober.poll(self.now);
            let stuck = quiet && transmits.is_empty() && self.prober.next() == Some(next);
            assert!(!stuck, "due at {next:?}, and nothing happens");
            transmits.into_iter().for_each(|transmit| self.carry(transmit));
        }
        self.now = end;
    }

    fn report(&self) -> Report {
        self.prober.reports().remove(0)
    }
}

#[test]
fn a_good_path_is_seen_to_be_good() {
    let mut network = Network::new(1, 1450);
    network.run(3);
    let report = network.report();
    assert_eq!(report.verdict(), (Reach::Reachable, None, Checksums::Right));
    assert_eq!((report.mtu, report.latency), (Some(1450), Some(network.delay)));
    assert!(network.prober.narrow().is_empty());
}

#[test]
fn a_path_that_breaks_is_noticed_and_so_is_its_return() {
    let mut network = Network::new(2, 1450);
    network.run(10);
    network.prober.take_changed();
    network.up = false;
    network.run(20);
    assert_eq!(network.report().reach, Reach::Unreachable);
    assert!(network.prober.take_changed());
    network.run(60);
    assert!(!network.prober.take_changed(), "told once");
    network.up = true;
    network.run(7);
    assert_eq!(
        network.report().verdict(),
        (Reach::Reachable, None, Checksums::Right)
    );
}

#[test]
fn a_lost_packet_or_two_are_no_verdict() {
    let mut network = Network::new(1, 1450);
    network.run(10);
    network.prober.take_changed();
    network.loss = 10;
    network.run(600);
    assert_eq!(network.report().reach, Reach::Reachable);
    assert_eq!(network.report().checksums, Checksums::Right);
}

#[test]
fn answers_that_come_late_are_answers() {
    let mut network = Network::new(1, 1450);
    network.run(10);
    let well = network.report().verdict();
    network.prober.take_changed();
    network.delay = Duration::from_secs(3);
    network.run(600);
    assert_eq!(
        (network.report().verdict(), network.prober.take_changed()),
        (well, false)
    );
    assert!(
        network
            .report()
            .latency
            .is_some_and(|latency| latency > Duration::from_secs(2))
    );
    // So they are when nothing else ever came.
    let mut network = Network::new(1, 1450);
    network.delay = Duration::from_secs(3);
    network.run(10);
    assert_eq!(network.report().verdict(), well);
    // And one in which only those without a checksum are in time says nothing of checksums.
    network.delay = Duration::from_millis(1);
    network.run(60);
    network.slow_checksums = true;
    network.run(600);
    assert_eq!(network.report().verdict(), well);
}

#[test]
fn what_could_not_be_sent_is_no_verdict() {
    let mut prober = Prober::new(Settings::default(), 1);
    prober.set_targets(Time::ZERO, [(key(0), target(0, 1450))].into());
    for _ in 0..10 {
        let due = prober.next().unwrap();
        for transmit in prober.poll(due) {
            prober.unsent(due, &transmit.bytes);
        }
        assert!(prober.next().unwrap() > due, "not again at once");
    }
    assert_eq!(prober.reports()[0].reach, Reach::Unknown);
}

#[test]
fn an_agent_that_is_away_breaks_no_path() {
    let mut network = Network::new(1, 1450);
    network.run(10);
    network.agent = false;
    network.run(10);
    assert_eq!(network.report().reach, Reach::NoAgent);
    assert_eq!(network.report().mtu, Some(1450), "what was known stays");
    network.agent = true;
    network.run(10);
    assert_eq!(network.report().reach, Reach::Reachable);
}

#[test]
fn wrong_checksums_are_told_from_no_path_and_sizes_are_found_all_the_same() {
    let mut network = Network::new(1, 1450);
    (network.offload, network.mtu) = (false, 1400);
    network.run(30);
    assert_eq!(
        network.report().verdict(),
        (Reach::Reachable, Some(1400), Checksums::Wrong)
    );
    assert!(network.prober.broken_checksums());
    network.offload = true;
    network.run(10);
    assert_eq!(network.report().checksums, Checksums::Right);
    assert!(!network.prober.broken_checksums());
}

#[test]
fn a_link_that_is_made_smaller_makes_the_path_smaller() {
    let mut network = Network::new(1, 1450);
    network.run(10);
    network
        .prober
        .set_targets(network.now, [(key(0), target(0, 1350))].into());
    network.mtu = 1350;
    network.run(10);
    assert_eq!(network.report().mtu, Some(1350));
    assert!(!network.report().is_narrow());
}

#[test]
fn what_was_known_before_a_restart_holds_until_it_is_seen_otherwise() {
    let mut prober = Prober::new(Settings::default(), 1);
    let known = Target {
        known_mtu: Some(1300),
        ..target(0, 1450)
    };
    prober.set_targets(Time::ZERO, [(key(0), known)].into());
    assert_eq!(prober.narrow(), [(key(0).range, 1300)].into());
}

#[test]
fn a_reply_from_somebody_else_is_none() {
    let mut prober = Prober::new(Settings::default(), 1);
    prober.set_targets(Time::ZERO, [(key(0), target(0, 1450))].into());
    let transmit = prober.poll(Time::ZERO).remove(0);
    let reply = wire::answer(&transmit.bytes).unwrap();
    prober.received(Time::ZERO, "10.0.0.66".parse().unwrap(), &reply);
    assert_eq!(prober.reports()[0].reach, Reach::Unknown);
    prober.received(Time::ZERO, transmit.to, &reply);
    assert_eq!(prober.reports()[0].reach, Reach::Reachable);
}

#[test]
fn five_hundred_peers_cost_what_the_settings_allow() {
    let settings = Settings::default();
    for (up, mtu) in [(true, 1450), (false, 1450), (true, 1300)] {
        let mut network = Network::new(1000, 1450);
        (network.up, network.mtu) = (up, mtu);
        network.run(60);
        let most = u64::from(settings.probes_per_second) * 61;
        assert!(network.sent <= most, "{} probes in a minute", network.sent);
        // In the long run it is two probes a round, three where the path is narrow.
        let begun = (network.sent, network.bytes);
        network.run(600);
        let (sent, bytes) = (network.sent - begun.0, network.bytes - begun.1);
        assert!(sent <= 3 * 660 * u64::from(settings.rounds_per_second), "{sent}");
        assert!(bytes < 600 * 130_000, "{bytes}");
        let seen = network
            .prober
            .reports()
            .iter()
            .filter(|report| report.reach != Reach::Unknown)
            .count();
        assert_eq!(seen, 1000);
        let narrow = if up && mtu < 1450 { 1000 } else { 0 };
        assert_eq!(network.prober.narrow().len(), narrow);
    }
}

#[test]
fn paths_that_go_leave_nothing() {
    let mut network = Network::new(20, 1450);
    network.run(2);
    network.prober.set_targets(network.now, BTreeMap::new());
    assert_eq!(network.prober.next(), None);
    assert!(network.prober.reports().is_empty());
    network.run(10);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_largest_packet_is_found_whatever_it_was_before(
        sizes in prop::collection::vec((576..=1450_u32, any::<bool>()), 1..5), loss in 0..3_u64,
    ) {
        let mut network = Network::new(1, 1450);
        for (mtu, honest) in sizes {
            (network.mtu, network.honest) = (mtu, honest);
            network.loss = loss;
            network.run(60);
            network.loss = 0;
            // Up to the link's own size at once; to one in between when the round for it comes.
            network.run(6 * 60);
            prop_assert_eq!(network.report().mtu, Some(mtu));
        }
    }
}
