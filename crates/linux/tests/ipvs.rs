//! IPVS, which the kernel that tests run on may not have: `cargo xtask vm` runs these.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod linux_6_12 {
    use std::collections::BTreeMap;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use podnet_linux::ipvs::{Ipvs, Scheduling, Virtual};
    use podnet_linux::netlink::{Address, LinkChange, Netlink, NewLink, Route};
    use podnet_linux::ns::{Kind, Namespace};
    use podnet_linux::sysctl;

    const TCP: u8 = 6;

    fn address(text: &str, protocol: u8) -> Virtual {
        let socket: SocketAddr = text.parse().unwrap();
        Virtual::Address {
            address: socket.ip(),
            protocol,
            port: socket.port(),
        }
    }

    fn scheduling(scheduler: &str) -> Scheduling {
        Scheduling {
            scheduler: scheduler.into(),
            flags: 0,
            stays: None,
        }
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn what_was_made_is_read_back_and_what_was_removed_is_gone() {
        let namespace = Namespace::create(Kind::Net).unwrap();
        let open = || {
            // Destinations are looked up as any address is, for which there have to be routes.
            let mut netlink = Netlink::open().unwrap();
            netlink.request(LinkChange::named("lo").up(true).apply()).unwrap();
            Ipvs::open().unwrap()
        };
        let mut ipvs = namespace.run(open).unwrap();
        let mut made = BTreeMap::new();
        for (number, scheduler) in ["rr", "wrr", "lc", "wlc", "sh", "mh"].into_iter().enumerate() {
            let mark = 0x100 + u32::try_from(number).unwrap();
            for key in [
                address(&format!("10.96.0.{number}:80"), TCP),
                address(&format!("[fd00:10:96::{number}]:53"), 17),
                Virtual::Mark { six: false, mark },
                Virtual::Mark { six: true, mark },
            ] {
                let six = matches!(key, Virtual::Mark { six: true, .. })
                    || matches!(key, Virtual::Address { address, .. } if address.is_ipv6());
                let sockets = if six {
                    ["[fd00:10:244::2]:8080", "[fd00:10:244:1::2]:8081"]
                } else {
                    ["10.244.0.2:8080", "10.244.1.2:8081"]
                };
                let scheduling = Scheduling {
                    // The fallback and port flags of sh and mh.
                    flags: if matches!(scheduler, "sh" | "mh") { 0x18 } else { 0 },
                    stays: (number % 2 == 1).then_some(600),
                    ..scheduling(scheduler)
                };
                ipvs.add_service(key, &scheduling).unwrap();
                let weighted: BTreeMap<SocketAddr, u32> = sockets
                    .into_iter()
                    .map(|socket| socket.parse().unwrap())
                    .zip([1, 7])
                    .collect();
                for (socket, weight) in &weighted {
                    ipvs.add_destination(key, *socket, *weight).unwrap();
                }
                made.insert(key, (scheduling, weighted));
            }
        }
        let read = |ipvs: &mut Ipvs| {
            let services = ipvs.services().unwrap();
            let services = services.into_iter().map(|(key, scheduling)| {
                let destinations = ipvs.destinations(key).unwrap();
                let weighted = destinations
                    .iter()
                    .map(|found| (found.socket, found.weight))
                    .collect();
                (key, (scheduling, weighted))
            });
            services.collect::<BTreeMap<_, (_, BTreeMap<_, _>)>>()
        };
        assert_eq!(read(&mut ipvs), made);
        for (key, (scheduling, _)) in &made {
            assert_eq!(ipvs.service(*key).unwrap().as_ref(), Some(scheduling), "{key}");
        }

        let (key, (scheduling, weighted)) = made.iter_mut().next().unwrap();
        scheduling.scheduler = "wlc".into();
        scheduling.stays = Some(10);
        ipvs.change_service(*key, scheduling).unwrap();
        let mut sockets = weighted.iter_mut();
        let (socket, weight) = sockets.next().unwrap();
        *weight = 0;
        ipvs.change_destination(*key, *socket, 0).unwrap();
        let gone = *sockets.next().unwrap().0;
        weighted.remove(&gone);
        ipvs.delete_destination(*key, gone).unwrap();
        let again = ipvs.delete_destination(*key, gone).unwrap_err();
        assert!(again.is_not_found(), "{again}");
        assert_eq!(read(&mut ipvs), made);
        for key in made.keys() {
            ipvs.delete_service(*key).unwrap();
        }
        let gone = *made.keys().next().unwrap();
        assert_eq!(ipvs.service(gone).unwrap(), None);
        let again = ipvs.delete_service(gone).unwrap_err();
        assert!(again.is_not_found(), "{again}");
        assert!(ipvs.services().unwrap().is_empty());
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn what_another_namespace_changes_hides_no_virtual_service() {
        const COUNT: usize = 2000;
        let service = |port: usize| address(&format!("10.96.0.1:{port}"), TCP);
        let [here, there] = [(); 2].map(|()| Namespace::create(Kind::Net).unwrap());
        let mut ipvs = here.run(|| Ipvs::open().unwrap()).unwrap();
        let mut others = there.run(|| Ipvs::open().unwrap()).unwrap();
        for port in 1..=COUNT {
            ipvs.add_service(service(port), &scheduling("rr")).unwrap();
        }
        let is_over = AtomicBool::new(false);
        let lists: Vec<(usize, usize)> = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    (1..100).for_each(|port| others.add_service(service(port), &scheduling("rr")).unwrap());
                    (1..100).for_each(|port| others.delete_service(service(port)).unwrap());
                }
            });
            let mut count = || Some((ipvs.glance().ok()?.len(), ipvs.services().ok()?.len()));
            let lists = (0..50).map_while(|_| count()).collect();
            is_over.store(true, Ordering::Relaxed);
            lists
        });
        assert_eq!(lists.len(), 50);
        assert!(lists.iter().all(|(_, all)| *all == COUNT), "{lists:?}");
        let short = lists.iter().filter(|(glance, _)| *glance < COUNT).count();
        assert!(short > 0, "no single list was short, so that nothing was tried");
    }

    /// A namespace with the link `name` to `peer`, which has `theirs`; here is `ours`.
    fn join(here: &Namespace, ours: &str, there: &Namespace, theirs: &str, name: &str) {
        here.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let pair = NewLink {
                up: true,
                ..NewLink::veth(name, "eth0", Some(there.as_fd()))
            };
            netlink.request(pair.create()).unwrap();
        })
        .unwrap();
        for (namespace, link, address) in [(here, name, ours), (there, "eth0", theirs)] {
            namespace
                .run(|| {
                    let mut netlink = Netlink::open().unwrap();
                    for link in ["lo", link] {
                        netlink.request(LinkChange::named(link).up(true).apply()).unwrap();
                    }
                    let index = netlink.link(link).unwrap().unwrap().index;
                    netlink
                        .request(Address::new(index, address.parse().unwrap()).add())
                        .unwrap();
                })
                .unwrap();
        }
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn a_destination_without_weight_keeps_its_connections_and_gets_no_others() {
        let [node, server] = [(); 2].map(|()| Namespace::create(Kind::Net).unwrap());
        join(&node, "10.0.1.1/24", &server, "10.0.1.2/24", "veth0");
        server
            .run(|| {
                let back = Route::via("0.0.0.0/0".parse().unwrap(), "10.0.1.1".parse().unwrap(), None, 3);
                Netlink::open().unwrap().request(back.add()).unwrap();
            })
            .unwrap();
        let listener = server.run(|| TcpListener::bind("0.0.0.0:8080").unwrap()).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read(&mut byte).is_ok_and(|length| length == 1) {
                        stream.write_all(&byte).unwrap();
                    }
                });
            }
        });
        let (key, to) = (address("10.96.0.1:80", TCP), "10.0.1.2:8080".parse().unwrap());
        let mut ipvs = node
            .run(|| {
                let mut netlink = Netlink::open().unwrap();
                let lo = netlink.link("lo").unwrap().unwrap().index;
                netlink
                    .request(Address::new(lo, "10.96.0.1/32".parse().unwrap()).add())
                    .unwrap();
                let ipvs = Ipvs::open().unwrap();
                sysctl::set("net/ipv4/vs/conntrack", "1").unwrap();
                ipvs
            })
            .unwrap();
        ipvs.add_service(key, &scheduling("rr")).unwrap();
        ipvs.add_destination(key, to, 1).unwrap();
        let connect = || {
            let target: SocketAddr = "10.96.0.1:80".parse().unwrap();
            node.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(10)))
                .unwrap()
        };
        let mut stream = connect().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let echo = |stream: &mut TcpStream| {
            stream.write_all(b"x")?;
            stream.read_exact(&mut [0])
        };
        echo(&mut stream).unwrap();
        let found = ipvs.destinations(key).unwrap();
        assert_eq!((found[0].active, found[0].inactive), (1, 0));
        ipvs.change_destination(key, to, 0).unwrap();
        echo(&mut stream).unwrap();
        let refused = connect().unwrap_err().kind();
        assert!(
            matches!(refused, ErrorKind::ConnectionRefused | ErrorKind::TimedOut),
            "{refused}"
        );
        echo(&mut stream).unwrap();
    }
}
