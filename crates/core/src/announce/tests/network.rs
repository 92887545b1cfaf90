//! Announcers on one link that is cut in two and mended, whose nodes die, sleep and come back.

use std::time::Duration;

use proptest::prelude::*;

use super::super::wire;
use super::*;

/// So finely time passes.
const TICK: Duration = Duration::from_millis(10);
const NODES: usize = 4;

fn address(number: usize) -> IpAddr {
    match number % 2 {
        0 => IpAddr::from([192, 0, 2, number as u8]),
        _ => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16]),
    }
}

fn mac(node: usize) -> Mac {
    Mac([2, 0, 0, 0, 0, node as u8])
}

fn node(number: usize) -> NodeName {
    name(&format!("n{number}"))
}

/// What happens to the network.
#[derive(Debug, Clone)]
enum Event {
    /// A node's agent dies without a word.
    Kill(usize),
    /// It says goodbye.
    Leave(usize),
    /// It starts.
    Start(usize),
    /// It does not run for so many milliseconds.
    Sleep(usize, u16),
    /// Each node is on this side of the cut.
    Cut([bool; NODES]),
    Mend,
    /// Its kernel cannot be put right, or can.
    Standing(usize, Standing),
    /// Only these nodes can serve the address from now on.
    Serve(usize, [bool; NODES]),
    Wait(u16),
}

fn any_event() -> impl Strategy<Value = Event> {
    let node = || 0..NODES;
    prop_oneof![
        2 => node().prop_map(Event::Kill),
        1 => node().prop_map(Event::Leave),
        4 => node().prop_map(Event::Start),
        2 => (node(), 0u16..1500).prop_map(|(node, time)| Event::Sleep(node, time)),
        2 => any::<[bool; NODES]>().prop_map(Event::Cut),
        2 => Just(Event::Mend),
        1 => (node(), any::<bool>()).prop_map(|(node, fine)| {
            Event::Standing(node, if fine { Standing::InForce } else { Standing::Behind })
        }),
        2 => (0..4usize, any::<[bool; NODES]>()).prop_map(|(address, nodes)| Event::Serve(address, nodes)),
        6 => (0u16..1300).prop_map(Event::Wait),
    ]
}

struct Host {
    announcer: Option<Announcer>,
    sleeps_until: Duration,
    standing: Standing,
    /// Frames that have come and were not read yet.
    inbox: Vec<Vec<u8>>,
    /// What a client on this side of the cut believes of each address.
    client: BTreeMap<IpAddr, Mac>,
    side: bool,
    /// It was cut off when it died, so that nobody could notice.
    died_apart: bool,
}

struct Network {
    now: Duration,
    hosts: Vec<Host>,
    wanted: Candidates,
    /// When all were on one side for as long as it takes to hear each other.
    whole_at: Duration,
}

impl Network {
    fn new() -> Self {
        let host = |_| Host {
            announcer: None,
            sleeps_until: Duration::ZERO,
            standing: Standing::InForce,
            inbox: Vec::new(),
            client: BTreeMap::new(),
            side: true,
            died_apart: false,
        };
        let all: Arc<BTreeSet<NodeName>> = Arc::new((0..NODES).map(node).collect());
        let mut network = Network {
            now: Duration::from_secs(1),
            hosts: (0..NODES).map(host).collect(),
            whole_at: Duration::ZERO,
            wanted: (0..4).map(|number| (address(number), Arc::clone(&all))).collect(),
        };
        (0..NODES).for_each(|number| network.start(number));
        network
    }

    fn tell(&mut self, number: usize) {
        let nodes = (0..NODES).map(|number| (node(number), IpAddr::from([10, 0, 0, number as u8])));
        let host = &mut self.hosts[number];
        if let Some(announcer) = &mut host.announcer {
            announcer.want(
                self.now,
                self.wanted.clone(),
                Arc::new(nodes.collect()),
                host.standing,
            );
        }
    }

    fn start(&mut self, number: usize) {
        if self.hosts[number].announcer.is_none() {
            self.hosts[number].announcer = Some(Announcer::new(self.now, node(number), mac(number)));
            self.hosts[number].inbox.clear();
            self.tell(number);
        }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Kill(number) => {
                self.hosts[number].died_apart |= self.now < self.whole_at;
                self.hosts[number].announcer = None;
            }
            Event::Leave(number) => {
                self.hosts[number].died_apart |= self.now < self.whole_at;
                let announcer = self.hosts[number].announcer.take();
                let farewell = announcer.and_then(|mut announcer| announcer.leave());
                farewell.into_iter().for_each(|frame| self.send(number, &frame));
            }
            Event::Start(number) => self.start(number),
            Event::Sleep(number, time) => {
                self.hosts[number].sleeps_until = self.now + Duration::from_millis(time.into());
            }
            Event::Cut(sides) => self.cut(sides),
            Event::Mend => self.cut([true; NODES]),
            Event::Standing(number, standing) => {
                self.hosts[number].standing = standing;
                self.tell(number);
            }
            Event::Serve(number, nodes) => {
                let nodes = (0..NODES).filter(|number| nodes[*number]).map(node);
                self.wanted.insert(address(number), Arc::new(nodes.collect()));
                (0..NODES).for_each(|number| self.tell(number));
            }
            Event::Wait(time) => self.run(Duration::from_millis(time.into())),
        }
    }

    fn cut(&mut self, sides: [bool; NODES]) {
        let apart = |sides: &[bool]| sides.iter().any(|side| *side != sides[0]);
        let were_apart = apart(&self.hosts.iter().map(|host| host.side).collect::<Vec<_>>());
        for (host, side) in self.hosts.iter_mut().zip(sides) {
            host.side = side;
        }
        match (were_apart, apart(&sides)) {
            (_, true) => self.whole_at = Duration::MAX,
            (true, false) => self.whole_at = self.now + DEAD + 2 * BEAT,
            (false, false) => {}
        }
    }

    /// To all hosts and clients on the sender's side.
    fn send(&mut self, from: usize, frame: &[u8]) {
        let side = self.hosts[from].side;
        for (number, host) in self
            .hosts
            .iter_mut()
            .enumerate()
            .filter(|(_, host)| host.side == side)
        {
            if number != from {
                host.inbox.push(frame.to_vec());
            }
            for number in 0..4 {
                if frame == wire::announcement(address(number), mac(from)) {
                    host.client.insert(address(number), mac(from));
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            for number in 0..NODES {
                let (now, host) = (self.now, &mut self.hosts[number]);
                let inbox = std::mem::take(&mut host.inbox);
                let Some(announcer) = &mut host.announcer else {
                    continue;
                };
                if host.sleeps_until > now {
                    // It will find them when it wakes.
                    host.inbox = inbox;
                    continue;
                }
                for frame in inbox {
                    announcer.received(now, &frame);
                }
                if announcer.next().is_some_and(|next| next <= now) {
                    let frames = announcer.poll(now);
                    frames.iter().for_each(|frame| self.send(number, frame));
                }
            }
        }
    }

    /// The node that answers a host's client for an address; all that do.
    fn speakers(&self, client: usize, address: IpAddr) -> Vec<usize> {
        let side = self.hosts[client].side;
        let there = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| host.side == side);
        let speaks = |host: &Host| {
            let announcer = host.announcer.as_ref();
            announcer.is_some_and(|announcer| announcer.speaks_for().any(|own| own == address))
        };
        there
            .filter(|(_, host)| speaks(host))
            .map(|(number, _)| number)
            .collect()
    }

    /// The node that should, by the rule alone.
    fn due(&self, client: usize, address: IpAddr) -> Option<NodeName> {
        let side = self.hosts[client].side;
        let there = (0..NODES).filter(|number| {
            let host = &self.hosts[*number];
            host.side == side && host.announcer.is_some()
        });
        let names: Vec<(NodeName, Standing)> = there
            .map(|number| (node(number), self.hosts[number].standing))
            .filter(|(name, _)| self.wanted[&address].contains(name))
            .collect();
        speaker(address, names.iter().map(|(name, standing)| (name, *standing))).cloned()
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for client in 0..NODES {
            for number in 0..4 {
                let address = address(number);
                let speakers = self.speakers(client, address);
                let names: Vec<NodeName> = speakers.iter().map(|number| node(*number)).collect();
                let due: Vec<NodeName> = self.due(client, address).into_iter().collect();
                prop_assert_eq!(&names, &due, "{}", address);
                // Who has just come to this side believes nothing, or is noticed by the node it is with.
                let noticed = self.hosts[client].announcer.is_some();
                let believed = self.hosts[client].client.get(&address).filter(|_| noticed);
                // Whom it believed in may be gone without a trace; it notices by itself, since nobody is there.
                let side = self.hosts[client].side;
                let gone = |host: &Host| host.died_apart || host.side != side;
                let lost = (0..NODES).filter(|number| gone(&self.hosts[*number]));
                let lost = lost.map(mac).any(|mac| believed == Some(&mac));
                if let ([speaker], Some(believed), false) = (&speakers[..], believed, lost) {
                    prop_assert_eq!(*believed, mac(*speaker), "{}", address);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_second_after_whatever_happens_every_address_has_one_speaker_and_all_clients_know_it(
        events in proptest::collection::vec(any_event(), 0..25),
    ) {
        let mut network = Network::new();
        for event in &events {
            network.happen(event);
        }
        for host in &mut network.hosts {
            host.sleeps_until = host.sleeps_until.min(network.now);
        }
        network.run(Duration::from_secs(1));
        network.check()?;
    }
}

#[test]
fn an_address_moves_within_a_second_when_its_node_dies_and_at_once_when_it_leaves() {
    for event in [Event::Kill, Event::Leave] {
        let mut network = Network::new();
        network.run(Duration::from_secs(2));
        let before = network.speakers(0, address(0))[0];
        let began = network.now;
        network.happen(&event(before));
        while network.speakers(0, address(0)).is_empty() {
            network.run(TICK);
        }
        let took = network.now - began;
        match event(before) {
            Event::Leave(_) => assert_eq!(took, TICK),
            _ => assert!(took <= DEAD + TICK, "{took:?}"),
        }
        network.run(BEAT);
        network.check().unwrap();
    }
}

#[test]
fn who_slept_answers_nothing_before_it_has_listened_again() {
    let mut network = Network::new();
    network.run(Duration::from_secs(2));
    let sleeper = network.speakers(0, address(0))[0];
    network.happen(&Event::Sleep(sleeper, 700));
    network.run(Duration::from_millis(690));
    let others = network.speakers(0, address(0));
    assert_eq!(
        others.len(),
        2,
        "the sleeper cannot know, and one more: {others:?}"
    );
    // An ARP request that came meanwhile.
    let question = [
        &[0xff; 6][..],
        &[2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9],
        &[192, 0, 2, 99, 0, 0, 0, 0, 0, 0, 192, 0, 2, 0],
    ]
    .concat();
    let now = network.now + TICK;
    let announcer = network.hosts[sleeper].announcer.as_mut().unwrap();
    assert_eq!(announcer.received(now, &question), None);
    network.run(Duration::from_secs(1));
    network.check().unwrap();
    let now = network.now;
    let announcer = network.hosts[sleeper].announcer.as_mut().unwrap();
    assert!(announcer.received(now, &question).is_some());
}

#[test]
fn a_namesake_in_another_cluster_is_not_heard() {
    let mut network = Network::new();
    network.run(Duration::from_secs(2));
    let heartbeat = |address: IpAddr| {
        let heartbeat = wire::Heartbeat {
            node: node(1),
            address,
            standing: Some(Standing::InForce),
            taken: 0,
        };
        heartbeat.write(mac(9))
    };
    network.happen(&Event::Kill(1));
    network.run(Duration::from_secs(1));
    let (now, announcer) = (network.now, network.hosts[0].announcer.as_mut().unwrap());
    announcer.received(now, &heartbeat(IpAddr::from([10, 9, 9, 9])));
    assert!(announcer.hears().all(|name| *name != node(1)));
    announcer.received(now, &heartbeat(IpAddr::from([10, 0, 0, 1])));
    assert!(announcer.hears().any(|name| *name == node(1)));
}
