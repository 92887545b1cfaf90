use super::table::{Edit, Ground, Place, Table};
use podnet_core::cluster::{Affinity, Algorithm, Family, ObjectName, Protocol};
use podnet_core::service::{Backend, Entry, Frontend, NodePort, PortName};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4u8).prop_map(|last| IpAddr::from([10, 96, 0, last])),
        (0..4u16).prop_map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])),
    ]
}

fn range() -> impl Strategy<Value = ipnet::IpNet> {
    (address(), 0..=32u8).prop_map(|(address, length)| ipnet::IpNet::new(address, length).unwrap())
}

fn port() -> impl Strategy<Value = NonZeroU16> {
    (1..4u16).prop_map(|port| NonZeroU16::new(port).unwrap())
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)]
}

fn place() -> impl Strategy<Value = Place> {
    let service = (address(), protocol(), port()).prop_map(|(address, protocol, port)| {
        Place::Service(Frontend {
            address,
            protocol,
            port,
        })
    });
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let node = (family, protocol(), port()).prop_map(|(family, protocol, port)| {
        Place::Node(NodePort {
            family,
            protocol,
            port,
        })
    });
    prop_oneof![service, node]
}

fn backend() -> impl Strategy<Value = Backend> {
    let socket = || (address(), port()).prop_map(|(address, port)| SocketAddr::new(address, port.get()));
    let sockets = |least| proptest::collection::btree_set(socket(), least..4);
    let balance = (sockets(1), sockets(0)).prop_map(|(endpoints, draining)| Backend::Balance {
        endpoints: endpoints.into_iter().collect(),
        draining: draining.into_iter().collect(),
    });
    prop_oneof![Just(Backend::Refuse), Just(Backend::Drop), balance]
}

fn entry() -> impl Strategy<Value = Entry> {
    let affinity = prop_oneof![
        Just(Affinity::None),
        (1..9u32).prop_map(|seconds| Affinity::ClientIp { seconds })
    ];
    let algorithm = prop_oneof![Just(Algorithm::Random), Just(Algorithm::Maglev)];
    let sources = proptest::option::of(proptest::collection::btree_set(range(), 0..3));
    let backends = (backend(), proptest::option::of(backend()));
    (protocol(), port(), affinity, algorithm, sources, backends).prop_map(
        |(protocol, port, affinity, algorithm, sources, (inside, outside))| Entry {
            affinity,
            algorithm,
            sources: sources.map(Arc::new),
            outside: outside.map(Arc::new),
            ..Entry::new(
                PortName {
                    service: ObjectName::new("default", "web"),
                    protocol,
                    port,
                },
                inside,
            )
        },
    )
}

fn table() -> impl Strategy<Value = Table> {
    let ground = (
        proptest::collection::btree_set(range(), 0..3),
        proptest::collection::btree_set(address(), 0..3),
        proptest::option::of(proptest::collection::btree_set(range(), 0..3)),
    );
    let ground = ground.prop_map(|(pods, node, node_ports_on)| Ground {
        pods,
        node,
        node_ports_on,
    });
    let ports = proptest::collection::vec((place(), entry().prop_map(Arc::new)), 0..6);
    let addresses = proptest::collection::vec(address(), 0..4);
    let borrowed = proptest::collection::btree_map(address(), "[a-z0-9./ ]{0,12}", 0..3);
    (ground, addresses, borrowed, ports).prop_map(|(ground, addresses, borrowed, ports)| {
        let mut table = Table {
            ground,
            borrowed,
            addresses: addresses.into_iter().collect(),
            ..Table::default()
        };
        for (place, entry) in ports {
            table.edit(Edit::Port(place, entry));
        }
        table
    })
}

proptest! {
    #[test]
    fn edits_lead_from_any_table_to_any_other_as_text(have in table(), want in table()) {
        for edits in [want.edits_from(&have), want.whole()] {
            let mut table = have.clone();
            for edit in edits {
                table.edit(edit.to_string().parse::<Edit>().unwrap());
            }
            prop_assert_eq!(&table, &want);
        }
        prop_assert_eq!(want.edits_from(&want), vec![]);
    }

    #[test]
    fn an_address_leads_to_the_proxy_while_it_or_a_port_of_it_is_in_use_and_nobody_else_has_it(table in table(), address in address()) {
        let of_port = |place: Place| matches!(place, Place::Service(frontend) if frontend.address == address);
        let used = table.addresses.contains(&address) || table.places().any(of_port);
        prop_assert_eq!(table.leads(address), used && !table.borrowed.contains_key(&address));
    }

    #[test]
    fn no_line_breaks_the_parser(line in "(whole|ground|address|borrowed|port|no-port)? ?[a-z0-9:./,~ -]{0,60}") {
        if let Ok(edit) = line.parse::<Edit>() {
            prop_assert_eq!(edit.to_string().parse::<Edit>(), Ok(edit));
        }
    }
}

#[test]
fn lines_say_what_is_served() {
    let line = "port tcp 10.96.0.1:80 default/web/tcp/80 600 maglev 10.0.0.0/8 \
                10.244.0.2:8080,10.244.1.2:8080~10.244.0.3:8080 drop";
    let Edit::Port(place, entry) = line.parse().unwrap() else {
        panic!("it is a port");
    };
    assert_eq!(place.to_string(), "tcp 10.96.0.1:80");
    assert_eq!(
        entry.to_string(),
        "to 10.244.0.2:8080 10.244.1.2:8080 (draining 10.244.0.3:8080); from outside drop; \
         only from 10.0.0.0/8; by Maglev hashing; clients stay for 600 s"
    );
    assert_eq!(Edit::Port(place, entry).to_string(), line);
    for wrong in [
        "",
        "port tcp 10.96.0.1:0 default/web/tcp/80 0 random any refuse same",
        "port tcp 10.96.0.1:80 default/web/tcp/80 0 random any ~ same",
        "port tcp 10.96.0.1:80 default/web/tcp/80 0 random any refuse same more",
        "port tcp 10.96.0.1:80 default/web 0 any refuse same",
        "no-port tcp node5:80",
    ] {
        assert!(wrong.parse::<Edit>().is_err(), "{wrong}");
    }
}
