use super::*;
use crate::ns::{Kind, Namespace};
use ipnet::IpNet;
use std::os::fd::AsFd;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

/// A fresh namespace and a socket in it. The socket keeps the namespace alive.
fn fresh() -> (Namespace, Netlink) {
    let namespace = Namespace::create(Kind::Net).unwrap();
    let netlink = Netlink::open_in(&namespace).unwrap();
    (namespace, netlink)
}

/// A veth pair a-b in one namespace, both up.
fn with_pair() -> (Netlink, Link, Link) {
    let (_, mut netlink) = fresh();
    let a = netlink
        .apply_and_get([NewLink::veth("a", "b", None).create()], "a")
        .unwrap();
    let b = netlink.link("b").unwrap().unwrap();
    netlink
        .apply([a.change().up(true).apply(), b.change().up(true).apply()])
        .unwrap();
    (netlink, a, b)
}

#[test]
fn a_veth_pair_spans_two_namespaces() {
    let (_here, mut netlink) = fresh();
    let (there, mut other) = fresh();
    let mut pair = NewLink::veth("host0", "eth0", Some(there.as_fd()));
    pair.mtu = Some(1400);
    pair.mac = Some(mac(1));
    if let NewLinkKind::Veth(peer) = &mut pair.kind {
        peer.mac = Some(mac(2));
    }
    pair.up = true;
    let host = netlink.apply_and_get([pair.create()], "host0").unwrap();
    assert_eq!(
        (host.mtu, host.mac, host.up, &host.kind),
        (1400, Some(mac(1)), true, &LinkKind::Veth)
    );
    let pod = other.link("eth0").unwrap().unwrap();
    assert_eq!((pod.mtu, pod.mac, pod.up), (1400, Some(mac(2)), false));
    assert_eq!((host.lower, pod.lower), (Some(pod.index), Some(host.index)));
    assert!(host.link_namespace.is_some());

    let taken = netlink.request(pair.create()).unwrap_err();
    assert!(taken.is_exists(), "{taken}");
    netlink.request(host.delete()).unwrap();
    assert_eq!(other.link("eth0").unwrap(), None);
    assert!(netlink.request(host.delete()).unwrap_err().is_not_found());
}

#[test]
fn links_change_and_are_listed() {
    let (mut netlink, a, b) = with_pair();
    netlink
        .request(NewLink::new("br0", NewLinkKind::Bridge).create())
        .unwrap();
    let bridge = netlink.link("br0").unwrap().unwrap();
    netlink
        .apply([
            a.change().up(false).apply(),
            a.change().name("renamed").mtu(1300).mac(mac(7)).group(42).apply(),
            b.change().master(Some(bridge.index)).apply(),
            LinkChange::named("br0").up(true).apply(),
        ])
        .unwrap();
    let links = netlink.links().unwrap();
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(names, ["lo", "b", "renamed", "br0"], "{links:#?}");
    let renamed = netlink.link_by_index(a.index).unwrap().unwrap();
    assert_eq!(
        (renamed.mtu, renamed.mac, renamed.group),
        (1300, Some(mac(7)), 42)
    );
    assert_eq!(netlink.link("b").unwrap().unwrap().master, Some(bridge.index));
    netlink.request(b.change().master(None).apply()).unwrap();
    assert_eq!(netlink.link("b").unwrap().unwrap().master, None);
    assert_eq!(netlink.link_by_index(4000).unwrap(), None);
    assert_eq!(netlink.link("nosuchlink").unwrap(), None);
}

#[test]
fn a_link_moves_to_another_namespace() {
    let (mut netlink, a, _) = with_pair();
    let (there, mut other) = fresh();
    netlink
        .request(a.change().namespace(there.as_fd()).apply())
        .unwrap();
    assert_eq!(netlink.link("a").unwrap(), None);
    assert!(other.link("a").unwrap().is_some());
}

#[test]
fn vxlan_settings_read_back() {
    let (_, mut netlink) = fresh();
    for (name, vni, local) in [("v4", 1, "172.30.0.10"), ("v6", 2, "fd30::a")] {
        let vxlan = Vxlan::new(vni, 8472, ip(local));
        let link = netlink
            .apply_and_get(
                [NewLink::new(name, NewLinkKind::Vxlan(vxlan.clone())).create()],
                name,
            )
            .unwrap();
        let LinkKind::Vxlan(read) = link.kind else {
            panic!("{link:?}")
        };
        assert_eq!(
            (read.vni, read.port, read.local, read.learning),
            (vni, 8472, vxlan.local, false)
        );
    }
}

#[test]
fn addresses_go_both_ways() {
    let (mut netlink, a, b) = with_pair();
    let mut flagged = Address::new(a.index, net("fd00::5/64"));
    flagged.flags = AddressFlags {
        nodad: true,
        noprefixroute: true,
    };
    let plain = Address::new(a.index, net("10.1.2.3/24"));
    let other = Address::new(b.index, net("10.9.0.1/32"));
    netlink.apply([flagged.add(), plain.add(), other.add()]).unwrap();
    assert!(netlink.request(plain.add()).unwrap_err().is_exists());
    netlink.request(plain.replace()).unwrap();
    let on_a = netlink.addresses(Some(a.index)).unwrap();
    assert!(
        on_a.contains(&flagged) && on_a.contains(&plain) && !on_a.contains(&other),
        "{on_a:#?}"
    );
    assert!(netlink.addresses(None).unwrap().contains(&other));
    netlink.apply([flagged.delete(), plain.delete()]).unwrap();
    assert!(netlink.request(plain.delete()).unwrap_err().is_not_found());
}

#[test]
fn routes_go_both_ways() {
    const PROTOCOL: u8 = 113;
    let (mut netlink, a, _) = with_pair();
    let mut routes = vec![
        Route::on_link(net("10.5.0.1/32"), a.index, PROTOCOL),
        Route::on_link(net("fd00::1/128"), a.index, PROTOCOL),
        Route {
            onlink: true,
            ..Route::via(net("0.0.0.0/0"), ip("169.254.1.1"), Some(a.index), PROTOCOL)
        },
        Route {
            onlink: true,
            ..Route::via(net("fd01::/64"), ip("fe80::1"), Some(a.index), PROTOCOL)
        },
        Route {
            onlink: true,
            ..Route::via(net("10.6.0.0/24"), ip("fe80::1"), Some(a.index), PROTOCOL)
        },
        Route {
            kind: RouteKind::Blackhole,
            metric: Some(4096),
            ..Route::new(net("10.7.0.0/16"), PROTOCOL)
        },
        Route {
            table: 1000,
            mtu: Some(1350),
            metric: Some(7),
            source: Some(ip("10.1.2.3")),
            ..Route::on_link(net("10.8.0.0/24"), a.index, PROTOCOL)
        },
    ];
    netlink
        .request(Address::new(a.index, net("10.1.2.3/32")).add())
        .unwrap();
    netlink.apply(routes.iter().map(Route::add)).unwrap();
    assert!(netlink.request(routes[0].add()).unwrap_err().is_exists());
    netlink.apply(routes.iter().map(Route::replace)).unwrap();
    let filter = RouteFilter {
        protocol: Some(PROTOCOL),
        ..RouteFilter::default()
    };
    let mut read = netlink.routes(filter).unwrap();
    for route in &mut routes {
        if route.destination.addr().is_ipv6() {
            route.metric = Some(1024);
        }
    }
    let key = |route: &Route| route.destination.to_string();
    routes.sort_by_key(key);
    read.sort_by_key(key);
    assert_eq!(read, routes);
    let in_table = netlink
        .routes(RouteFilter {
            table: Some(1000),
            ..filter
        })
        .unwrap();
    assert_eq!(in_table.len(), 1);
    assert!(
        netlink
            .routes(RouteFilter {
                table: Some(1001),
                ..filter
            })
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        netlink
            .routes(RouteFilter {
                link: Some(a.index),
                ..filter
            })
            .unwrap()
            .len(),
        routes.len() - 1
    );
    netlink.apply(routes.iter().map(Route::delete)).unwrap();
    assert!(netlink.routes(filter).unwrap().is_empty());
    assert!(netlink.request(routes[0].delete()).unwrap_err().is_not_found());
}

#[test]
fn neighbours_and_proxies_go_both_ways() {
    let (mut netlink, a, _) = with_pair();
    let entries = [
        Neighbour::permanent(a.index, ip("169.254.1.1"), mac(9)),
        Neighbour::permanent(a.index, ip("fe80::1"), mac(9)),
    ];
    let proxies = [
        Neighbour::proxy(a.index, ip("10.0.0.9")),
        Neighbour::proxy(a.index, ip("fd00::9")),
    ];
    netlink
        .apply(entries.iter().chain(&proxies).map(Neighbour::replace))
        .unwrap();
    assert!(netlink.request(entries[0].add()).unwrap_err().is_exists());
    let read = netlink.neighbours(Some(a.index)).unwrap();
    assert!(entries.iter().all(|entry| read.contains(entry)), "{read:#?}");
    assert_eq!(netlink.proxy_neighbours(Some(a.index)).unwrap(), proxies);
    netlink
        .apply(entries.iter().chain(&proxies).map(Neighbour::delete))
        .unwrap();
    assert!(
        netlink
            .neighbours(Some(a.index))
            .unwrap()
            .iter()
            .all(|entry| !entry.permanent)
    );
    assert!(netlink.proxy_neighbours(None).unwrap().is_empty());
}

#[test]
fn forwarding_entries_of_a_tunnel_go_both_ways() {
    let (_, mut netlink) = fresh();
    let tunnel = NewLink::new("vx", NewLinkKind::Vxlan(Vxlan::new(5, 8472, ip("172.30.0.10"))));
    let link = netlink.apply_and_get([tunnel.create()], "vx").unwrap();
    let one = FdbEntry::vxlan(link.index, mac(1), ip("172.30.0.11"));
    netlink.request(one.add()).unwrap();
    assert!(netlink.request(one.add()).unwrap_err().is_exists());
    let moved = FdbEntry {
        destination: Some(ip("172.30.0.12")),
        ..one
    };
    let flood =
        [13, 14].map(|last| FdbEntry::vxlan(link.index, MacAddr([0; 6]), ip(&format!("172.30.0.{last}"))));
    netlink
        .apply([moved.replace(), flood[0].append(), flood[1].append()])
        .unwrap();
    let read = netlink.fdb(Some(link.index)).unwrap();
    assert_eq!(read.len(), 3, "{read:#?}");
    assert!(
        [&moved, &flood[0], &flood[1]]
            .iter()
            .all(|entry| read.contains(entry)),
        "{read:#?}"
    );
    netlink.apply([moved.delete(), flood[0].delete()]).unwrap();
    assert_eq!(
        netlink
            .fdb(None)
            .unwrap()
            .iter()
            .filter(|entry| entry.link == link.index)
            .count(),
        1
    );
}

#[test]
fn a_large_batch_is_acknowledged_to_the_last_request() {
    let (mut netlink, a, _) = with_pair();
    let routes: Vec<_> = (0..1000u32)
        .map(|n| {
            let address = std::net::Ipv4Addr::from(0x0a20_0000 + n);
            Route::on_link(IpNet::new(address.into(), 32).unwrap(), a.index, 113)
        })
        .collect();
    let mut requests: Vec<_> = routes.iter().map(Route::add).collect();
    // A refusal in the middle stops nothing.
    requests.insert(500, routes[0].add());
    let outcomes = netlink.apply_each(requests).unwrap();
    let refused: Vec<_> = outcomes
        .iter()
        .enumerate()
        .filter(|(_, outcome)| outcome.is_err())
        .collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, 500);
    let filter = RouteFilter {
        protocol: Some(113),
        ..RouteFilter::default()
    };
    assert_eq!(netlink.routes(filter).unwrap().len(), 1000);
}

#[test]
fn a_refusal_says_what_was_asked_and_why() {
    let (mut netlink, a, _) = with_pair();
    let error = netlink
        .request(Route::via(net("10.0.0.0/8"), ip("192.0.2.1"), Some(a.index), 113).add())
        .unwrap_err()
        .to_string();
    assert!(error.contains("add route 10.0.0.0/8 via 192.0.2.1"), "{error}");
    assert!(
        error.contains("invalid gateway"),
        "the kernel's words are missing: {error}"
    );
}

#[test]
fn a_token_bucket_goes_both_ways() {
    let (mut netlink, a, b) = with_pair();
    for (link, rate, burst) in [(&a, 1_250_000, 100_000), (&b, 12_500_000_000, 4_000_000)] {
        let bucket = TokenBucket {
            link: link.index,
            rate,
            burst,
            limit: burst + 50_000,
        };
        netlink.request(bucket.replace()).unwrap();
        // Again, in its own place.
        netlink.request(bucket.replace()).unwrap();
        let found = netlink.token_buckets().unwrap();
        let found = found.iter().find(|found| found.link == link.index).unwrap();
        assert_eq!((found.rate, found.limit), (rate, bucket.limit));
        assert!(found.burst.abs_diff(burst) <= burst / 100, "{found:?}");
    }
    assert_eq!(netlink.token_buckets().unwrap().len(), 2);
}

/// What is sent for a netkit pair, which not every kernel has.
#[test]
fn a_netkit_pair_is_asked_for_as_the_kernel_reads_it() {
    let peer = VethPeer {
        name: "p".into(),
        mac: Some(mac(2)),
        namespace: None,
    };
    let pair = NewLink::new("n", NewLinkKind::Netkit(peer));
    let mut bytes = Vec::new();
    pair.create().encode(0, 1, &mut bytes);
    let hex: String = bytes[16..].iter().map(|byte| format!("{byte:02x}")).collect();
    insta::assert_snapshot!(hex);
}

#[test]
fn rules_about_marks_are_listed_until_they_are_removed() {
    let (mut netlink, _, _) = with_pair();
    let rule = MarkRule {
        mark: 0x10,
        mask: 0x30,
        table: 4711,
        priority: 99,
    };
    for six in [false, true] {
        assert_eq!(netlink.mark_rules(six).unwrap(), []);
        netlink.request(rule.add_for(six)).unwrap();
        assert!(netlink.request(rule.add_for(six)).unwrap_err().is_exists());
        assert_eq!(netlink.mark_rules(six).unwrap(), [rule]);
        netlink.request(rule.delete_for(six)).unwrap();
        assert_eq!(netlink.mark_rules(six).unwrap(), []);
    }
}

#[test]
fn the_routes_to_addresses_are_told_one_by_one() {
    let (mut netlink, a, _) = with_pair();
    for address in ["192.0.2.1/24", "2001:db8::1/64"] {
        let address = Address {
            flags: AddressFlags {
                nodad: true,
                ..AddressFlags::default()
            },
            ..Address::new(a.index, net(address))
        };
        netlink.request(address.add()).unwrap();
    }
    let blackhole = Route {
        kind: RouteKind::Blackhole,
        ..Route::new(net("198.51.100.0/24"), 113)
    };
    let router = Route::via(net("203.0.113.0/24"), ip("192.0.2.9"), Some(a.index), 113);
    netlink.apply([blackhole.add(), router.add()]).unwrap();
    let asked = [
        "192.0.2.7",
        "203.0.113.7",
        "198.51.100.7",
        "192.0.2.1",
        "8.8.8.8",
        "2001:db8::7",
        "2001:db8:1::",
    ];
    let [four, six]: [Vec<_>; 2] = [true, false].map(|is_v4| {
        let of_family = asked
            .map(ip)
            .into_iter()
            .filter(|address| address.is_ipv4() == is_v4);
        of_family.collect()
    });
    let mut found = netlink.routes_to(&four, ip("192.0.2.1"), 4789).unwrap();
    found.extend(netlink.routes_to(&six, ip("2001:db8::1"), 4789).unwrap());
    let told: Vec<Vec<_>> = found
        .iter()
        .map(|routes| {
            let routes = routes.iter();
            routes
                .map(|route| (route.kind, route.destination.to_string(), route.via, route.link))
                .collect()
        })
        .collect();
    let unicast = |to: &str, via| vec![(RouteKind::Unicast, to.to_owned(), via, Some(a.index))];
    assert_eq!(told[0], unicast("192.0.2.0/24", None));
    assert_eq!(told[1], unicast("203.0.113.0/24", Some(ip("192.0.2.9"))));
    // The kernel does not tell of a route that nobody may take.
    assert_eq!(told[2], []);
    assert_eq!(told[3][0].0, RouteKind::Local);
    assert_eq!((&told[4], &told[6]), (&vec![], &vec![]));
    assert_eq!(told[5], unicast("2001:db8::/64", None));
}

/// By rules that are about what is asked for.
#[test]
fn a_route_is_that_of_the_source_and_port_that_are_asked_for() {
    let (namespace, mut netlink) = fresh();
    let pair = NewLink {
        up: true,
        ..NewLink::veth("a", "b", None)
    };
    let a = netlink.apply_and_get([pair.create()], "a").unwrap();
    let b = netlink.link("b").unwrap().unwrap();
    netlink.request(b.change().up(true).apply()).unwrap();
    netlink
        .request(Address::new(a.index, net("192.0.2.1/24")).add())
        .unwrap();
    let other = Route {
        table: 100,
        mtu: Some(1400),
        ..Route::on_link(net("192.0.2.0/24"), a.index, 113)
    };
    netlink.request(other.add()).unwrap();
    let mut mtu = |port| {
        netlink
            .routes_to(&[ip("192.0.2.7")], ip("192.0.2.1"), port)
            .unwrap()[0][0]
            .mtu
    };
    assert_eq!((mtu(4789), mtu(8472)), (None, None));
    let rule = "rule add from 192.0.2.1 ipproto udp dport 4789 lookup 100 priority 10";
    let ip_rule = || {
        std::process::Command::new("ip")
            .args(rule.split(' '))
            .status()
            .unwrap()
    };
    assert!(namespace.run(ip_rule).unwrap().success());
    assert_eq!((mtu(4789), mtu(8472)), (Some(1400), None));
}
