//! The decisions at connect time, over maps of the standard library.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::{align_of, size_of};
use std::net::{IpAddr, SocketAddr};

use podnet_ebpf_abi::connect::{
    Answers, Asked, Balance, Datagrams, Peer, Services, Serving, Slot, answer, connection, datagram,
};
use podnet_ebpf_abi::{Address, Endpoint, Frontend, Protocol};
use proptest::prelude::*;

#[derive(Default)]
struct Tables {
    services: BTreeMap<Frontend, Vec<Endpoint>>,
    serving: BTreeSet<Serving>,
    chosen: RefCell<BTreeMap<Asked, Endpoint>>,
    answers: RefCell<BTreeMap<Answers, Endpoint>>,
    is_full: bool,
}

impl Tables {
    fn serve(&mut self, frontend: Frontend, endpoints: &[Endpoint], draining: &[Endpoint]) {
        self.services.insert(frontend, endpoints.to_vec());
        self.serving.retain(|serving| serving.frontend != frontend);
        let serving = endpoints.iter().chain(draining).map(|endpoint| Serving {
            frontend,
            endpoint: *endpoint,
        });
        self.serving.extend(serving);
    }
}

impl Services for Tables {
    fn balance(&self, frontend: &Frontend) -> Option<Balance> {
        let endpoints = self.services.get(frontend)?.len() as u32;
        Some(Balance { endpoints })
    }

    fn endpoint(&self, slot: &Slot) -> Option<Endpoint> {
        self.services
            .get(&slot.frontend)?
            .get(slot.number as usize)
            .copied()
    }

    fn serves(&self, serving: &Serving) -> bool {
        self.serving.contains(serving)
    }
}

impl Datagrams for Tables {
    fn chosen(&self, asked: &Asked) -> Option<Endpoint> {
        self.chosen.borrow().get(asked).copied()
    }

    fn choose(&self, asked: &Asked, endpoint: Endpoint) -> bool {
        if self.is_full {
            return false;
        }
        self.chosen.borrow_mut().insert(*asked, endpoint);
        let answers = Answers::new(asked.socket, endpoint);
        self.answers.borrow_mut().insert(answers, asked.frontend.socket());
        true
    }

    fn asked(&self, answers: &Answers) -> Option<Endpoint> {
        self.answers.borrow().get(answers).copied()
    }

    fn forget(&self, answers: &Answers) {
        self.answers.borrow_mut().remove(answers);
    }
}

fn frontend(text: &str, protocol: Protocol) -> Frontend {
    let Endpoint { address, port, .. } = endpoint(text);
    Frontend::new(address, port, protocol)
}

fn endpoint(text: &str) -> Endpoint {
    text.parse::<SocketAddr>().unwrap().into()
}

fn endpoints(count: u16) -> Vec<Endpoint> {
    (0..count)
        .map(|number| endpoint(&format!("10.244.0.2:{}", 8000 + number)))
        .collect()
}

#[test]
fn layouts_have_no_bytes_that_nobody_sets() {
    assert_eq!(size_of::<Address>(), 16);
    assert_eq!((size_of::<Frontend>(), align_of::<Frontend>()), (20, 1));
    assert_eq!((size_of::<Endpoint>(), align_of::<Endpoint>()), (20, 1));
    assert_eq!((size_of::<Slot>(), size_of::<Balance>()), (24, 4));
    assert_eq!(size_of::<Serving>(), 40);
    assert_eq!((size_of::<Asked>(), size_of::<Answers>()), (32, 32));
    assert_eq!(size_of::<Peer>(), 40);
}

#[test]
fn what_is_no_service_is_left_alone() {
    let tables = Tables::default();
    let other = frontend("10.96.0.1:80", Protocol::TCP);
    assert_eq!(connection(&tables, &other, 0), None);
    assert_eq!(datagram(&tables, 1, &other, 0), None);
    assert_eq!(answer(&tables, 1, other.socket()), None);
}

#[test]
fn a_port_of_another_protocol_is_another_service() {
    let mut tables = Tables::default();
    tables.serve(frontend("10.96.0.1:53", Protocol::UDP), &endpoints(1), &[]);
    assert_eq!(
        connection(&tables, &frontend("10.96.0.1:53", Protocol::TCP), 0),
        None
    );
}

#[test]
fn lots_fall_on_endpoints_alike() {
    let mut tables = Tables::default();
    let web = frontend("10.96.0.1:80", Protocol::TCP);
    tables.serve(web, &endpoints(3), &[]);
    let mut fell: BTreeMap<Endpoint, u32> = BTreeMap::new();
    for lot in (0..30_000).map(|number| (u32::MAX / 30_000) * number) {
        *fell.entry(connection(&tables, &web, lot).unwrap()).or_default() += 1;
    }
    assert_eq!(fell.len(), 3);
    assert!(
        fell.values().all(|count| (9_999..=10_001).contains(count)),
        "{fell:?}"
    );
    // The ends of the range are of the first and the last.
    assert_eq!(connection(&tables, &web, 0), Some(endpoints(3)[0]));
    assert_eq!(connection(&tables, &web, u32::MAX), Some(endpoints(3)[2]));
}

#[test]
fn a_moment_without_the_endpoint_leads_nowhere() {
    struct Half;
    impl Services for Half {
        fn balance(&self, _: &Frontend) -> Option<Balance> {
            Some(Balance { endpoints: 2 })
        }
        fn endpoint(&self, _: &Slot) -> Option<Endpoint> {
            None
        }
        fn serves(&self, _: &Serving) -> bool {
            false
        }
    }
    assert_eq!(
        connection(&Half, &frontend("10.96.0.1:80", Protocol::TCP), 7),
        None
    );
}

#[test]
fn datagrams_of_a_socket_stay_until_their_endpoint_serves_no_more() {
    let mut tables = Tables::default();
    let dns = frontend("10.96.0.10:53", Protocol::UDP);
    let three = endpoints(3);
    tables.serve(dns, &three, &[]);
    let first = datagram(&tables, 1, &dns, 0).unwrap();
    assert_eq!(first, three[0]);
    assert_eq!(datagram(&tables, 1, &dns, u32::MAX), Some(first));
    // Another socket chooses for itself.
    assert_eq!(datagram(&tables, 2, &dns, u32::MAX), Some(three[2]));
    // It gets no new ones, but goes on with those it has.
    tables.serve(dns, &three[1..], &three[..1]);
    assert_eq!(datagram(&tables, 1, &dns, u32::MAX), Some(first));
    assert_eq!(datagram(&tables, 3, &dns, 0), Some(three[1]));
    // It is gone.
    tables.serve(dns, &three[1..], &[]);
    assert_eq!(datagram(&tables, 1, &dns, u32::MAX), Some(three[2]));
}

#[test]
fn answers_come_from_the_service_that_was_asked() {
    let mut tables = Tables::default();
    let (one, other) = (
        frontend("10.96.0.10:53", Protocol::UDP),
        frontend("10.96.0.11:53", Protocol::UDP),
    );
    tables.serve(one, &endpoints(1), &[]);
    tables.serve(other, &endpoints(1), &[]);
    let pod = datagram(&tables, 1, &one, 0).unwrap();
    assert_eq!(answer(&tables, 1, pod), Some(one.socket()));
    // Nobody else's socket asked it.
    assert_eq!(answer(&tables, 2, pod), None);
    // The same endpoint by another service: its answers are that one's now, and the first's again when it is asked again.
    datagram(&tables, 1, &other, 0).unwrap();
    assert_eq!(answer(&tables, 1, pod), Some(other.socket()));
    datagram(&tables, 1, &one, 0).unwrap();
    assert_eq!(answer(&tables, 1, pod), Some(one.socket()));
}

#[test]
fn an_endpoint_that_is_asked_by_its_own_address_answers_for_itself() {
    let mut tables = Tables::default();
    let dns = frontend("10.96.0.10:53", Protocol::UDP);
    tables.serve(dns, &endpoints(1), &[]);
    let pod = datagram(&tables, 1, &dns, 0).unwrap();
    let direct = Frontend::new(pod.address, pod.port, Protocol::UDP);
    assert_eq!(datagram(&tables, 1, &direct, 0), None);
    assert_eq!(answer(&tables, 1, pod), None);
    // And for the service when that is asked again, by the same choice.
    assert_eq!(datagram(&tables, 1, &dns, 0), Some(pod));
    assert_eq!(answer(&tables, 1, pod), Some(dns.socket()));
}

#[test]
fn what_cannot_be_remembered_is_not_led() {
    let mut tables = Tables {
        is_full: true,
        ..Tables::default()
    };
    let dns = frontend("10.96.0.10:53", Protocol::UDP);
    tables.serve(dns, &endpoints(1), &[]);
    assert_eq!(datagram(&tables, 1, &dns, 0), None);
}

#[test]
fn a_socket_that_is_connected_again_has_the_peer_it_has() {
    let peer = Peer {
        asked: endpoint("10.96.0.1:80"),
        endpoint: endpoint("10.244.0.2:8080"),
    };
    assert_eq!(
        peer.seen(endpoint("10.244.0.2:8080")),
        Some(endpoint("10.96.0.1:80"))
    );
    assert_eq!(peer.seen(endpoint("192.0.2.1:8080")), None);
}

proptest! {
    #[test]
    fn addresses_are_read_back(octets: [u8; 16], four: [u8; 4], port: u16) {
        for address in [IpAddr::from(four), IpAddr::from(octets)] {
            let socket = SocketAddr::new(address, port);
            let back = SocketAddr::from(Endpoint::from(socket));
            prop_assert_eq!((back.ip().to_canonical(), back.port()), (address.to_canonical(), port));
        }
        prop_assert_eq!(Address::v4(four).as_v4(), Some(four));
    }

    #[test]
    fn a_lot_is_always_one_of_the_endpoints(count in 1..300_u16, lot: u32) {
        let mut tables = Tables::default();
        let web = frontend("[fd00:10:96::1]:80", Protocol::TCP);
        tables.serve(web, &endpoints(count), &[]);
        let chosen = connection(&tables, &web, lot).unwrap();
        prop_assert!(endpoints(count).contains(&chosen));
    }
}
