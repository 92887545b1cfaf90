//! What sockets are led to, without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;

use podnet_core::cluster::{NetnsCookie, Wired};
use podnet_core::service::{Backend, Entry};
use podnet_ebpf_abi::connect::{Balance, Services, Serving, Slot, connection};
use podnet_ebpf_abi::{Endpoint, Frontend};
use proptest::prelude::*;

use super::rows::{Row, Rows, Step};
use crate::services::any::{any_state, everything};

const NODE: NetnsCookie = NetnsCookie(NonZeroU64::MIN);

impl Services for Rows {
    fn balance(&self, frontend: &Frontend) -> Option<Balance> {
        self.balances.get(frontend).copied()
    }

    fn endpoint(&self, slot: &Slot) -> Option<Endpoint> {
        self.slots.get(slot).copied()
    }

    fn serves(&self, serving: &Serving) -> bool {
        self.serving.contains_key(serving)
    }
}

/// Where a connection to a service may come.
fn led_to(rows: &Rows, frontend: &Frontend) -> BTreeSet<Endpoint> {
    let lots = (0..64).map(|lot| lot << 26);
    lots.filter_map(|lot| connection(rows, frontend, lot)).collect()
}

fn all_led(rows: &Rows) -> BTreeMap<Frontend, BTreeSet<Endpoint>> {
    let frontends = rows.balances.keys();
    frontends
        .map(|frontend| (*frontend, led_to(rows, frontend)))
        .collect()
}

#[test]
fn what_is_in_the_maps() {
    let mut state = everything();
    let pods = [7, 8].map(|cookie| Wired {
        namespace: NonZeroU64::new(cookie).map(NetnsCookie),
        ..Wired::default()
    });
    state.wired = Arc::new(pods.into());
    insta::assert_snapshot!(Rows::of(&state, NODE));
}

#[test]
fn how_an_endpoint_in_the_middle_goes() {
    let of = |endpoints: &[&str]| {
        let state = crate::services::any::state(&[("UDP 10.96.0.10:53", Some(endpoints))]);
        Rows::of(&state, NODE)
    };
    let three = of(&["10.244.0.2:53", "10.244.0.3:53", "10.244.0.4:53"]);
    let two = of(&["10.244.0.2:53", "10.244.0.4:53"]);
    let steps: Vec<String> = two.steps_from(&three).iter().map(Step::to_string).collect();
    insta::assert_snapshot!(steps.join("\n"));
}

fn is_led(entry: &Entry) -> bool {
    matches!(*entry.inside, Backend::Balance { .. })
        && entry.sources.is_none()
        && entry.affinity == podnet_core::cluster::Affinity::None
        && entry.algorithm == podnet_core::cluster::Algorithm::Random
}

proptest! {
    /// And what is left out is what needs more than a choice.
    #[test]
    fn sockets_are_led_to_what_clients_inside_get(state in any_state()) {
        let rows = Rows::of(&state, NODE);
        let mut led = 0;
        for (frontend, entry) in state.services.frontends.iter() {
            let endpoints: BTreeSet<Endpoint> = entry.inside.endpoints().iter().map(|socket| (*socket).into()).collect();
            let key = Frontend::new(
                frontend.address.into(),
                frontend.port.get().to_be_bytes(),
                super::rows::protocol(frontend.protocol),
            );
            let is_carried = frontend.protocol != podnet_core::cluster::Protocol::Sctp;
            if is_led(entry) && is_carried {
                prop_assert_eq!(led_to(&rows, &key), endpoints);
                led += 1;
            } else {
                prop_assert_eq!(led_to(&rows, &key), BTreeSet::new());
            }
        }
        let addresses = |family| state.routing.node_addresses.iter().filter(move |address| podnet_core::cluster::Family::of(**address) == family).count();
        for (node_port, entry) in state.services.node_ports.iter() {
            let is_carried = node_port.protocol != podnet_core::cluster::Protocol::Sctp;
            led += if is_led(entry) && is_carried { addresses(node_port.family) } else { 0 };
        }
        prop_assert_eq!(rows.balances.len(), led);
    }

    /// At every moment, too, between any two states: nobody is led to what neither of them has.
    #[test]
    fn any_rows_become_any_others_and_lead_nowhere_else_in_between(old in any_state(), new in any_state()) {
        let (old, new) = (Rows::of(&old, NODE), Rows::of(&new, NODE));
        let (before, after) = (all_led(&old), all_led(&new));
        let mut rows = old.clone();
        for step in new.steps_from(&old) {
            rows.take(&step);
            for (frontend, led) in all_led(&rows) {
                let nobody = BTreeSet::new();
                let (before, after) = (before.get(&frontend), after.get(&frontend));
                let either: BTreeSet<_> = before.unwrap_or(&nobody).union(after.unwrap_or(&nobody)).copied().collect();
                prop_assert!(led.is_subset(&either), "{step}: {led:?}");
                let serves = |endpoint: &Endpoint| rows.serves(&Serving { frontend, endpoint: *endpoint });
                let is_udp = frontend.protocol == podnet_ebpf_abi::Protocol::UDP;
                prop_assert!(!is_udp || led.iter().all(serves), "{step}: {led:?}");
                // Who has endpoints before and after has some all the time.
                prop_assert!(before.is_none() || after.is_none() || !led.is_empty(), "{step}");
            }
            let both = before.keys().filter(|frontend| after.contains_key(frontend));
            for frontend in both {
                prop_assert!(rows.balances.contains_key(frontend), "{step}");
            }
        }
        prop_assert_eq!(&rows, &new);
        prop_assert!(new.steps_from(&rows).is_empty());
    }

    /// What follows a state costs what changed, and comes to the same.
    #[test]
    fn following_is_the_same_as_beginning(old in any_state(), new in any_state()) {
        let mut rows = Rows::of(&old, NODE);
        let changed = Rows::changed(&old, &new);
        let steps = Rows::of_some(&new, NODE, &changed).steps_from(&rows.some(&changed));
        steps.iter().for_each(|step| rows.take(step));
        prop_assert_eq!(rows, Rows::of(&new, NODE));
    }

    #[test]
    fn a_service_that_is_forgotten_leaves_nothing(state in any_state(), which in any::<prop::sample::Index>()) {
        let mut rows = Rows::of(&state, NODE);
        prop_assume!(!rows.balances.is_empty());
        let frontend = *which.get(&rows.balances.keys().copied().collect::<Vec<_>>());
        rows.forget(&[frontend].into());
        let of_it = |row: &Row| row.frontend() == Some(frontend);
        let left = Rows::default().steps_from(&rows);
        let found = left.iter().any(|step| of_it(step.row()));
        prop_assert!(!found);
    }
}
