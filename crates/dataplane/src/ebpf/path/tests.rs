//! Who is on the path, without a kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use podnet_core::NodeState;
use podnet_core::cluster::{self, Wired};
use podnet_core::route::{self as routing, Hop, Mac};
use podnet_ebpf_abi::Address;
use podnet_ebpf_abi::path::{Pod, Range, Way};
use podnet_ebpf_abi::tunnel::Tunnel;
use podnet_linux::MacAddr;
use podnet_linux::netlink::{Link, LinkKind, Neighbour, Vxlan};
use proptest::prelude::*;

use super::rows::{Places, Row, Rows, Side, Step, Underlay, Underway};

fn link(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        index,
        name: name.into(),
        mac: Some(MacAddr([2, 0, 0, 0, 0, index as u8])),
        mtu: 1450,
        up: true,
        running: true,
        loopback: false,
        master: None,
        lower: None,
        link_namespace: None,
        group: 0,
        kind,
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A node with a pod behind each of these links, 10.244.0.INDEX and fd00:10:244::INDEX, and another node.
fn scene(names: &[&str]) -> (NodeState, Places) {
    let mut state = crate::services::any::state(&[]);
    let own = [
        ("10.244.0.0/24", Hop::Unreachable),
        ("fd00:10:244::/64", Hop::Unreachable),
    ];
    let there = [
        ("10.244.1.0/24", Hop::Via(address("172.30.0.12"))),
        ("10.244.2.0/24", Hop::Via(address("172.30.0.13"))),
        ("10.96.0.10/32", Hop::Sink),
    ];
    let routes = own.into_iter().chain(there);
    state.routing.routes = routes.map(|(net, hop)| (net.parse().unwrap(), hop)).collect();
    state.routing.path_mtu = [("10.244.1.0/24".parse().unwrap(), 1400)].into();
    let mut places = Places {
        links: vec![link(2, "eth0", LinkKind::Device)],
        // Not of 10.244.2.0/24, which the kernel does not have yet.
        routes: [(("10.244.1.0/24".parse().unwrap(), address("172.30.0.12")), 2)].into(),
        ..Places::default()
    };
    let mut wired = BTreeSet::new();
    for (index, name) in (10..).zip(names) {
        let addresses = [format!("10.244.0.{index}"), format!("fd00:10:244::{index}")];
        let addresses = addresses.map(|text| address(&text));
        let mac = MacAddr([6, 0, 0, 0, 0, index as u8]);
        let neighbours = addresses.map(|address| Neighbour::permanent(index, address, mac));
        places.neighbours.extend(neighbours);
        places.links.push(link(index, name, LinkKind::Veth));
        wired.insert(Wired {
            addresses: addresses.into(),
            link: Some((*name).to_owned()),
            ..Wired::default()
        });
    }
    state.wired = Arc::new(wired);
    (state, places)
}

#[test]
fn what_is_in_the_maps() {
    let (state, places) = scene(&["one", "other"]);
    insta::assert_snapshot!(Rows::of(&state, &places));
    let attached = places.attachments(&state);
    assert_eq!(
        attached,
        [(2, Side::Nodes), (10, Side::Pod), (11, Side::Pod)].into()
    );
}

/// Each has programs at its link all the same: what is translated for it is noted from the beginning.
#[test]
fn who_is_not_on_the_path() {
    let all = [
        "open",
        "policed",
        "strange",
        "shaped",
        "bridged",
        "moved",
        "elsewhere",
        "gone",
    ];
    let (mut state, mut places) = scene(&all);
    let policy = Arc::make_mut(&mut state.policy);
    policy.strangers = [address("10.244.0.12")].into();
    let pods = podnet_core::policy::LocalPod {
        label_set: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        addresses: [address("10.244.0.11"), address("fd00:10:244::11")].into(),
    };
    policy
        .pods
        .insert(podnet_core::cluster::ObjectName::new("shop", "web"), pods);
    places.qdiscs.queued = [13].into();
    for link in &mut places.links {
        if link.name == "bridged" {
            link.master = Some(3);
        }
    }
    places.neighbours.retain(|of| of.link != 15);
    let mut wired = (*state.wired).clone();
    for mut of in state.wired.iter().cloned() {
        if of.link.as_deref() == Some("elsewhere") {
            wired.remove(&of);
            of.addresses = [address("192.0.2.16")].into();
            wired.insert(of);
        }
    }
    state.wired = Arc::new(wired);
    places.links.retain(|link| link.name != "gone");
    let rows = Rows::of(&state, &places);
    let on: Vec<IpAddr> = rows.pods.keys().map(|address| (*address).into()).collect();
    let open = ["10.244.0.10", "fd00:10:244::10", "fd00:10:244::12"].map(address);
    assert_eq!(on.into_iter().collect::<BTreeSet<_>>(), open.into());
    let attached: BTreeSet<u32> = places.attachments(&state).into_keys().collect();
    assert_eq!(attached, [2, 10, 11, 12, 13, 14, 15, 16].into());
}

fn any_rows() -> impl Strategy<Value = Rows> {
    let pods = proptest::collection::btree_map(0..12_u8, 1..4_u32, 0..8);
    let ways = proptest::collection::btree_map(0..8_u8, 0..3_u32, 0..8);
    let tunnel = proptest::option::of(1..4_u16);
    (pods, ways, tunnel).prop_map(|(pods, ways, tunnel)| {
        let pod = |(host, link): (u8, u32)| {
            let address = Address::v4([10, 244, 0, host]);
            (address, Pod::new(link, 1450, [6; 6], [2; 6]))
        };
        let way = |(node, link): (u8, u32)| {
            let range = Range::new(Address::v4([10, 244, node, 0]), 24);
            let router = Address::v4([172, 30, 0, node]);
            let there = match link {
                0 => Way::HERE,
                link => Way::by(link, 1500, router),
            };
            let is_inside = link > 0 && tunnel.is_some();
            (
                range,
                if is_inside {
                    there.inside(9, router, [8; 6])
                } else {
                    there
                },
            )
        };
        Rows {
            pods: pods.into_iter().map(pod).collect(),
            ways: ways.into_iter().map(way).collect(),
            tunnel: tunnel.map(|port| Tunnel::new(Address::v4([172, 30, 0, 1]), 1, port, [4; 6])),
        }
    })
}

proptest! {
    /// Whoever goes is gone before anybody comes, and nobody comes before the ranges are known.
    #[test]
    fn any_rows_become_any_others(old in any_rows(), new in any_rows()) {
        let mut rows = old.clone();
        let (mut someone_came, mut something_led) = (false, false);
        for step in new.steps_from(&old) {
            match &step {
                Step::Remove(Row::Pod(..)) => prop_assert!(!someone_came && !something_led),
                Step::Put(Row::Pod(..)) => someone_came = true,
                Step::Put(Row::Way(_, way)) if way.link == 0 => prop_assert!(!someone_came && !something_led),
                Step::Put(Row::Way(..)) | Step::Remove(Row::Way(..)) => {
                    prop_assert!(!someone_came);
                    something_led = true;
                }
                Step::Put(Row::Tunnel(_)) | Step::Remove(Row::Tunnel(_)) => prop_assert!(!someone_came),
            }
            rows.take(&step);
            let leads_inside = rows.ways.values().any(|way| way.underlay != 0);
            prop_assert!(!leads_inside || rows.tunnel.is_some());
        }
        prop_assert_eq!(rows, new);
    }

    #[test]
    fn an_address_is_a_pods_where_some_range_has_it(rows in any_rows(), node in 0..10_u8, host: u8) {
        let address = Address::v4([10, 244, node, host]);
        let naive = rows.ways.keys().any(|range| {
            let Address(octets) = range.address;
            octets[14] == node
        });
        prop_assert_eq!(rows.is_within(&rows.lengths(), &address), naive);
    }
}

/// The table knows what is meant by it, and other nodes do not.
#[test]
fn a_services_address_in_a_pods_range_leads_to_no_pod() {
    let (mut state, places) = scene(&["one", "other"]);
    for borrowed in ["10.244.0.10/32", "10.244.1.9/32"] {
        state.routing.routes.insert(borrowed.parse().unwrap(), Hop::Sink);
    }
    let rows = Rows::of(&state, &places);
    assert!(!rows.pods.contains_key(&address("10.244.0.10").into()));
    let borrowed = Range::new(address("10.244.1.9").into(), 32);
    assert_eq!(rows.ways.get(&borrowed), Some(&Way::HERE));
    // One elsewhere is no pods' range.
    let elsewhere = Range::new(address("10.96.0.10").into(), 32);
    assert_eq!(rows.ways.get(&elsewhere), None);
}

#[test]
fn links_where_others_have_filters_are_not_passed() {
    let (state, mut places) = scene(&["one"]);
    places.qdiscs.filtered = [2].into();
    let rows = Rows::of(&state, &places);
    assert!(rows.ways.values().all(|way| *way == Way::HERE), "{rows}");
    assert_eq!(places.attachments(&state), [(10, Side::Pod)].into());
}

/// The same scene with the other nodes in a tunnel; one of them by two links.
fn tunnelled() -> (NodeState, Places) {
    let (mut state, mut places) = scene(&["one"]);
    let macs = [12, 13].map(|last| Mac([6, 6, 6, 6, 6, last]));
    let nodes = ["172.30.0.12", "172.30.0.13"].map(address);
    let ranges = ["10.244.1.0", "10.244.2.0"];
    state.routing.tunnel = Some(routing::Tunnel {
        vxlan: cluster::Vxlan { vni: 7, port: 4789 },
        mac: Mac([6, 6, 6, 6, 6, 11]),
        local: address("172.30.0.11"),
        addresses: BTreeSet::new(),
        checksum_offload: true,
    });
    places.links.push(link(
        3,
        "podnet.vxlan",
        LinkKind::Vxlan(Vxlan::new(7, 4789, address("172.30.0.11"))),
    ));
    places.routes.clear();
    for ((mac, node), range) in macs.into_iter().zip(nodes).zip(ranges) {
        let net = format!("{range}/24").parse().unwrap();
        state.routing.routes.insert(net, Hop::Tunnel(address(range)));
        state.routing.neighbours.insert(address(range), mac);
        state.routing.forwarding.insert(mac, node);
        places.routes.insert((net, address(range)), 3);
    }
    places.underlay.ways = [(nodes[0], Underway { link: 2, mtu: None })].into();
    (state, places)
}

#[test]
fn programs_put_into_the_tunnel_what_one_link_leads_to() {
    let (state, places) = tunnelled();
    insta::assert_snapshot!(Rows::of(&state, &places));
    assert_eq!(
        places.attachments(&state),
        [(2, Side::Underlay), (3, Side::Nodes), (10, Side::Pod)].into()
    );
}

/// The kernel would cut the outer packet where it sends it itself; nobody does for programs.
#[test]
fn a_packet_in_the_tunnel_is_as_large_as_its_link_and_route_take() {
    let (state, mut places) = tunnelled();
    let range = Range::new(address("10.244.1.0").into(), 24);
    let node = address("172.30.0.12");
    for (link, route, largest) in [
        (1450, None, 1400),
        (1440, None, 1390),
        (1450, Some(1430), 1380),
        (1420, Some(9000), 1370),
        (9000, None, 1400),
    ] {
        places.links[0].mtu = link;
        places
            .underlay
            .ways
            .insert(node, Underway { link: 2, mtu: route });
        let rows = Rows::of(&state, &places);
        assert_eq!(rows.ways[&range].mtu, largest, "{link} {route:?}");
        assert!(rows.ways[&range].underlay != 0);
    }
}

#[test]
fn nodes_are_looked_at_some_at_a_time_and_all_in_turn() {
    for count in [0, 1, 63, 64, 65, 128, 200] {
        let node = |number: u8| IpAddr::from([172, 30, 1, number]);
        let ways = (0..count).map(|number| (node(number), Underway { link: 2, mtu: None }));
        let underlay = Underlay {
            tunnel: None,
            ways: ways.collect(),
        };
        let (mut seen, mut last) = (BTreeMap::new(), None);
        for _ in 0..count.div_ceil(64) {
            let some = underlay.some_after(last, 64);
            assert!(some.len() <= 64);
            last = some.last().map(|(node, _)| *node);
            seen.extend(some);
        }
        assert_eq!(seen, underlay.ways);
        // And from the first on.
        assert_eq!(underlay.some_after(last, 64), underlay.some_after(None, 64));
    }
}

#[test]
fn the_device_does_what_programs_cannot() {
    let change: [fn(&mut NodeState, &mut Places); 5] = [
        |state, _| state.routing.tunnel.as_mut().unwrap().checksum_offload = false,
        |state, _| state.routing.tunnel.as_mut().unwrap().local = address("fd30::11"),
        |_, places| places.qdiscs.filtered = [2].into(),
        |_, places| places.underlay.ways.clear(),
        // As of a link without Ethernet's headers.
        |_, places| places.links[0].mac = None,
    ];
    for (number, change) in change.into_iter().enumerate() {
        let (mut state, mut places) = tunnelled();
        change(&mut state, &mut places);
        let rows = Rows::of(&state, &places);
        assert_eq!(rows.tunnel, None, "{number}");
        let range = Range::new(address("10.244.1.0").into(), 24);
        let by_device = Way::by(3, 1400, address("10.244.1.0").into());
        assert_eq!(rows.ways[&range], by_device, "{number}");
        assert_eq!(
            places.attachments(&state),
            [(3, Side::Nodes), (10, Side::Pod)].into(),
            "{number}"
        );
    }
}

#[test]
fn of_a_pod_that_makes_way_nothing_else_goes() {
    let (state, places) = scene(&["one", "other"]);
    let have = Rows::of(&state, &places);
    let going = [address("10.244.0.10")].map(Address::from).into();
    let steps: Vec<String> = have
        .without(&going)
        .steps_from(&have)
        .iter()
        .map(|step| match step {
            Step::Put(row) => format!("+ {row}"),
            Step::Remove(row) => format!("- {row}"),
        })
        .collect();
    assert_eq!(
        steps,
        ["- pod 10.244.0.10 at 06:00:00:00:00:0a behind link 10 mtu 1450"]
    );
}
