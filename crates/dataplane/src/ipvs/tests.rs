use podnet_core::cluster::Protocol;
use podnet_core::service::Backend;
use proptest::prelude::*;

use super::*;
use crate::iptables::{self, Found};
use crate::services::any::{any_state, entry, everything, frontend, services_of, state};

#[test]
fn virtual_services_are_by_address_and_node_ports_by_mark() {
    insta::assert_snapshot!(render(&any_everything().services));
}

/// With node ports of either kind, and an endpoint on its way out.
fn any_everything() -> NodeState {
    let mut state = everything();
    let services = services_of(&mut state);
    let draining = Backend::Balance {
        endpoints: ["10.244.0.2:80".parse().unwrap(), "10.244.1.2:80".parse().unwrap()].into(),
        draining: ["10.244.2.2:80".parse().unwrap()].into(),
    };
    let external = frontend("TCP 203.0.113.8:80");
    let everybody = Arc::new(entry(&external, draining.clone()));
    let mut outside = entry(&external, draining);
    outside.outside = Some(Arc::new(Backend::Balance {
        endpoints: ["10.244.0.2:80".parse().unwrap()].into(),
        draining: Box::default(),
    }));
    for (number, protocol, entry) in [
        (30_081, Protocol::Tcp, everybody.clone()),
        (30_082, Protocol::Udp, Arc::new(outside)),
    ] {
        let node_port = podnet_core::service::NodePort {
            family: podnet_core::cluster::Family::V4,
            protocol,
            port: std::num::NonZeroU16::new(number).unwrap(),
        };
        services.node_ports.insert(node_port, entry);
    }
    services.frontends.insert(external, everybody);
    state
}

#[test]
fn a_change_costs_what_it_changes_and_cuts_nothing_but_datagrams() {
    let service = |tcp: &[&str], udp: Option<&[&str]>| {
        let mut state = state(&[
            ("TCP 10.96.0.1:80", Some(tcp)),
            ("TCP 10.96.0.3:80", Some(&["10.244.0.9:80"])),
        ]);
        let udp_frontend = frontend("UDP 10.96.0.2:53");
        if let Some(udp) = udp {
            let of_udp = entry(&udp_frontend, crate::services::any::backend(Some(udp)));
            services_of(&mut state)
                .frontends
                .insert(udp_frontend, of_udp.into());
        }
        state
    };
    let before = service(
        &["10.244.0.2:80", "10.244.0.3:80"],
        Some(&["10.244.0.2:53", "10.244.0.3:53"]),
    );
    let mut holding = Holding::new();
    follow(&mut holding, &ServiceState::default(), &before.services);
    let after = service(&["10.244.0.3:80", "10.244.0.4:80"], Some(&["10.244.0.3:53"]));
    let change = follow(&mut holding, &before.services, &after.services);
    let gone = service(&[], None);
    let last = follow(&mut holding, &after.services, &gone.services);
    let back = follow(&mut holding, &gone.services, &before.services);
    insta::assert_snapshot!(format!("{change}--\n{last}--\n{back}"));
}

#[test]
fn what_others_changed_is_counted_by_virtual_services_and_destinations() {
    let both: &[&str] = &["10.244.0.2:80", "10.244.0.3:80"];
    let state = state(&[("TCP 10.96.0.1:80", Some(both)), ("TCP 10.96.0.2:80", Some(both))]);
    let mut left = Holding::new();
    follow(&mut left, &ServiceState::default(), &state.services);
    assert_eq!(change::damage(&left, &left), 0);
    let keys: Vec<Virtual> = left.keys().copied().collect();
    let (first, second) = (keys[0], keys[1]);
    let (one, third) = (both[0].parse().unwrap(), "10.244.0.9:80".parse().unwrap());
    for (steps, count) in [
        (vec![Step::Delete(first)], 3),
        (vec![Step::Leave(first, one)], 1),
        (vec![Step::Rest(first, one), Step::Join(second, third)], 2),
        (vec![Step::Delete(first), Step::Leave(second, one)], 4),
    ] {
        let mut found = left.clone();
        steps.iter().for_each(|step| step.note(&mut found));
        assert_eq!(change::damage(&left, &found), count, "{steps:?}");
        assert_eq!(change::damage(&found, &left), count, "{steps:?}");
    }
    let mut found = left.clone();
    found.get_mut(&first).unwrap().is_scheduled = false;
    assert_eq!(change::damage(&left, &found), 1);
}

/// Does a step as the kernel would, with connections to everybody.
fn follow(holding: &mut Holding, old: &ServiceState, new: &ServiceState) -> Change {
    let change = between(old, new, holding);
    for step in change.grow.iter().chain(&change.shrink) {
        step.note(holding);
    }
    change
}

/// What new connections get.
fn chosen(holding: &Holding) -> Vec<(Virtual, Vec<std::net::SocketAddr>)> {
    let chosen = holding.iter().map(|(key, held)| {
        let weights = held.weights.iter().filter(|(_, weight)| **weight > 0);
        (*key, weights.map(|(socket, _)| *socket).collect::<Vec<_>>())
    });
    chosen.filter(|(_, chosen)| !chosen.is_empty()).collect()
}

proptest! {
    #[test]
    fn with_what_is_beside_it_ipvs_answers_as_the_state_says(before in any_state(), after in any_state()) {
        let mut holding = Holding::new();
        follow(&mut holding, &ServiceState::default(), &before.services);
        follow(&mut holding, &before.services, &after.services);
        let rules = iptables::beside_ipvs(&after);
        prop_assert_eq!(dump::services(&Found::of(&rules), &holding), Services::of(&after.services));
    }

    #[test]
    fn whatever_is_held_becomes_what_is_wanted_and_needs_nothing_more(before in any_state(), after in any_state()) {
        let mut holding = Holding::new();
        follow(&mut holding, &ServiceState::default(), &before.services);
        let had = holding.clone();
        let change = between_all(&after.services, &holding);
        for step in change.grow.iter().chain(&change.shrink) {
            // Who has connections keeps them, but for datagrams.
            prop_assert!(!matches!(step, Step::Leave(key, _) | Step::Delete(key) if !render::is_of_datagrams(*key)));
            step.note(&mut holding);
        }
        let wanted = render(&after.services).0.into_iter();
        let wanted: Vec<_> = wanted.map(|(key, service)| (key, service.endpoints.into_iter().collect())).collect();
        prop_assert_eq!(chosen(&holding), wanted);
        prop_assert!(between_all(&after.services, &holding).is_empty());
        // By what differs between the states it is the same.
        let mut stepwise = had;
        follow(&mut stepwise, &before.services, &after.services);
        prop_assert_eq!(stepwise, holding);
    }
}
