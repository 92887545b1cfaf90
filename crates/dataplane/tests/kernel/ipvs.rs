//! What only IPVS does: schedulers, connections that end by themselves, others' virtual services.

use podnet_core::cluster::DataplaneName;
use podnet_dataplane::Dataplane;
use podnet_linux::ipvs::Ipvs;

use crate::common::{BackEnd, Lab};
use podnet_core::cluster::{Family, Routing};

/// Whether it has IPVS or not, a kernel says what to do.
#[test]
fn a_kernel_without_ipvs_is_told_from_one_that_refuses() {
    let mut lab = Lab::new(1, Routing::default(), Family::V4, 1500).carried_by(BackEnd::Ipvs);
    lab.service(1, &[(0, 2)]);
    let state = lab.state(0);
    let node = &lab.nodes[0];
    let (has_ipvs, applied) = node.run(|| {
        let applied = node.kernel(DataplaneName::Ipvs).apply(&state);
        (Ipvs::open().is_ok(), applied.map_err(|error| error.to_string()))
    });
    match applied {
        Ok(_) => assert!(has_ipvs),
        Err(error) => {
            assert!(!has_ipvs, "{error}");
            let cause = "this kernel has no IPVS: load the module ip_vs, or choose another --dataplane";
            assert!(error.ends_with(cause), "{error}");
            // What came before it was found out is removed with all else.
            let kernel = || node.kernel(DataplaneName::Nftables);
            node.run(|| kernel().clean().unwrap());
            assert!(node.run(|| kernel().present().unwrap()).is_empty());
        }
    }
}

mod linux_6_12 {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
    use std::sync::mpsc;
    use std::time::Duration;

    use podnet_core::cluster::{Endpoint, EndpointSlice, IpvsScheduler, ObjectName};
    use podnet_dataplane::{Applied, Kernel};
    use podnet_linux::ipvs::{Scheduling, Virtual};
    use podnet_linux::netfilter::Netfilter;
    use podnet_linux::sysctl;

    use super::*;
    use crate::back_ends::Connection;
    use crate::common::{Machine, PATIENCE, answerers, ask, eventually, slice_name};

    /// Two nodes, each with a pod that a service with a node port leads to, and a client on the first.
    struct Scene {
        lab: Lab,
        client: Machine,
        _pods: [Machine; 2],
    }

    const BOTH: [(usize, u8); 2] = [(0, 2), (1, 3)];

    impl Scene {
        fn new() -> Self {
            let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500).carried_by(BackEnd::Ipvs);
            let pods = [lab.pod(0, 2), lab.pod(1, 3)];
            pods[0].serve("a", 8080);
            pods[1].serve("b", 8080);
            let client = lab.pod(0, 9);
            lab.exposed(1, &BOTH, |_| {});
            Scene {
                lab,
                client,
                _pods: pods,
            }
        }

        fn kernel(&self, scheduler: IpvsScheduler) -> Kernel {
            let node = &self.lab.nodes[0];
            node.run(|| {
                let kernel = node.kernel(DataplaneName::Ipvs);
                kernel.with_scheduler(scheduler).unwrap()
            })
        }

        fn apply(&self, kernel: &mut Kernel) -> Applied {
            let state = self.lab.state(0);
            self.lab.nodes[0].run(|| kernel.apply(&state).unwrap())
        }

        fn follow(&self, kernel: &mut Kernel) -> Applied {
            let state = self.lab.state(0);
            self.lab.nodes[0].run(|| kernel.follow(&state).unwrap())
        }

        /// What IPVS has on the first node: virtual services, and their destinations with weights.
        fn held(&self) -> BTreeMap<Virtual, BTreeMap<SocketAddr, u32>> {
            self.lab.nodes[0].run(|| {
                let mut ipvs = Ipvs::open().unwrap();
                let services = ipvs.services().unwrap().into_iter();
                let held = services.map(|(key, _)| {
                    let found = ipvs.destinations(key).unwrap().into_iter();
                    (key, found.map(|found| (found.socket, found.weight)).collect())
                });
                held.collect()
            })
        }

        /// Hears of others' changes from now on.
        fn watched(&self, kernel: &mut Kernel) -> mpsc::Receiver<()> {
            let (tell, told) = mpsc::channel();
            let mut monitor = self.lab.nodes[0].run(move || kernel.monitor().unwrap());
            std::thread::spawn(move || while monitor.wait().is_ok() && tell.send(()).is_ok() {});
            told
        }
    }

    fn tcp(address: &str, port: u16) -> Virtual {
        Virtual::Address {
            address: address.parse().unwrap(),
            protocol: 6,
            port,
        }
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn every_scheduler_carries_connections_and_a_change_of_it_cuts_none() {
        let scene = Scene::new();
        scene.lab.apply(1);
        let mut kept: Vec<(Connection, String)> = Vec::new();
        for scheduler in IpvsScheduler::ALL {
            assert!(
                scene.apply(&mut scene.kernel(scheduler)).service_changes > 0,
                "{scheduler}"
            );
            // Who has fewer connections is not a matter of turns.
            let by_count = ["lc", "wlc"].contains(&scheduler.as_str());
            for to in ["10.96.0.1:80", "[fd00:10:96::1]:80"] {
                let tcp = answerers(16, || scene.client.tcp(to));
                let udp = answerers(16, || scene.client.udp(to));
                assert!(
                    by_count || (tcp.len(), udp.len()) == (2, 2),
                    "{scheduler} {to}: {tcp:?} {udp:?}"
                );
            }
            let mut connection = Connection::open(&scene.client, "10.96.0.1:80");
            let who = connection.ask();
            kept.push((connection, who));
            for (connection, who) in &mut kept {
                assert_eq!(connection.ask(), *who, "{scheduler}");
            }
        }
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn the_fewest_connections_get_the_next_one() {
        let scene = Scene::new();
        scene.lab.apply(1);
        scene.apply(&mut scene.kernel(IpvsScheduler::LeastConnection));
        let open = || {
            let mut connection = Connection::open(&scene.client, "10.96.0.1:80");
            let who = connection.ask();
            (connection, who)
        };
        let kept: Vec<(Connection, String)> = (0..6).map(|_| open()).collect();
        let of_a = kept.iter().filter(|(_, who)| who.starts_with('a')).count();
        assert_eq!(of_a, 3);
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn by_maglev_hashing_every_node_chooses_the_same_endpoint() {
        let scene = Scene::new();
        for node in &scene.lab.nodes {
            let index = usize::from(!std::ptr::eq(node, &scene.lab.nodes[0]));
            let state = scene.lab.state(index);
            node.run(|| {
                let kernel = node.kernel(DataplaneName::Ipvs);
                let mut kernel = kernel.with_scheduler(IpvsScheduler::MaglevHashing).unwrap();
                kernel.apply(&state).unwrap();
            });
        }
        let ask_from = |port: u16, to: &str| {
            let to: SocketAddr = to.parse().unwrap();
            scene.lab.underlay.run(move || {
                let socket = UdpSocket::bind(("172.30.0.1", port)).unwrap();
                socket.connect(to).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                ask(&socket).unwrap().0
            })
        };
        let mut seen = BTreeSet::new();
        for port in 20_000..20_024 {
            let chosen = ["172.30.0.11:30001", "172.30.0.12:30001"].map(|to| ask_from(port, to));
            assert_eq!(chosen[0], chosen[1], "{port}");
            seen.extend(chosen);
        }
        assert_eq!(seen.len(), 2);
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn an_endpoint_that_goes_keeps_its_connections_and_is_removed_after_the_last() {
        let mut scene = Scene::new();
        scene.lab.apply(1);
        let mut kernel = scene.kernel(IpvsScheduler::RoundRobin);
        scene.apply(&mut kernel);
        let told = scene.watched(&mut kernel);
        let mut connection = Connection::open(&scene.client, "10.96.0.1:80");
        while !connection.ask().starts_with('b') {
            connection.reset();
            connection = Connection::open(&scene.client, "10.96.0.1:80");
        }
        scene.lab.endpoints(1, &BOTH[..1], &[]);
        scene.follow(&mut kernel);
        let b: SocketAddr = "10.244.1.3:8080".parse().unwrap();
        let weight_of_b = |scene: &Scene| scene.held()[&tcp("10.96.0.1", 80)].get(&b).copied();
        assert_eq!(weight_of_b(&scene), Some(0));
        let only_a = BTreeSet::from(["a".to_owned()]);
        assert_eq!(answerers(10, || scene.client.tcp("10.96.0.1:80")), only_a);
        assert!(connection.ask().starts_with('b'));
        // The whole service goes, and another agent comes.
        let name = ObjectName::new("default", "svc1");
        let service = scene.lab.cluster.services.remove(&name).unwrap();
        scene.follow(&mut kernel);
        assert!(connection.ask().starts_with('b'));
        let mut other = scene.kernel(IpvsScheduler::RoundRobin);
        assert!(scene.apply(&mut other).is_nothing());
        assert!(scene.client.tcp("10.96.0.1:80").is_err());
        // It comes back, and so does the endpoint.
        scene.lab.cluster.services.insert(name, service);
        scene.lab.endpoints(1, &BOTH, &[]);
        scene.apply(&mut kernel);
        assert_eq!(weight_of_b(&scene), Some(1));
        assert!(connection.ask().starts_with('b'));
        scene.lab.endpoints(1, &BOTH[..1], &[]);
        scene.follow(&mut kernel);
        connection.reset();
        let begin = std::time::Instant::now();
        while weight_of_b(&scene).is_some() {
            // IPVS itself forgets a connection that was reset after ten seconds, one that was closed after two minutes.
            assert!(begin.elapsed() < Duration::from_secs(150), "{:?}", scene.held());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(told.try_recv().is_err(), "a disturbance of our own");
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn an_endpoint_that_the_kernel_refuses_hurts_itself_only() {
        let mut scene = Scene::new();
        scene.lab.apply(1);
        scene.lab.service(2, &BOTH[..1]);
        let name = slice_name(1, Family::V4);
        let slice = scene.lab.cluster.slices[&name].clone().unwrap();
        let mut endpoints = slice.endpoints().to_vec();
        // The broadcast address of the nodes' link.
        endpoints.push(Endpoint::ready("172.30.0.255".parse().unwrap(), None));
        let slice = EndpointSlice::new(
            slice.service.clone(),
            slice.family(),
            slice.ports.clone(),
            endpoints,
        );
        scene.lab.cluster.slices.insert(name.clone(), Ok(slice.unwrap()));
        let mut kernel = scene.kernel(IpvsScheduler::RoundRobin);
        let applied = scene.apply(&mut kernel);
        // Over TCP and UDP, by address and by node port.
        assert_eq!(applied.left_out.len(), 4, "{:?}", applied.left_out);
        assert!(applied.left_out[0].contains("the endpoint 172.30.0.255:8080"));
        let both = BTreeSet::from(["a", "b"].map(str::to_owned));
        assert_eq!(answerers(16, || scene.client.tcp("10.96.0.1:80")), both);
        assert_eq!(scene.client.tcp("10.96.0.2:80").unwrap().0, "a");
        // It is told as long as it is there.
        assert_eq!(scene.follow(&mut kernel).left_out.len(), 4);
        scene.lab.endpoints(1, &BOTH, &[]);
        assert_eq!(scene.follow(&mut kernel).left_out, Vec::<String>::new());
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn others_changes_are_seen_and_put_back_and_their_virtual_services_stay() {
        let scene = Scene::new();
        let node = &scene.lab.nodes[0];
        let theirs = tcp("192.0.2.1", 80);
        let scheduling = Scheduling {
            scheduler: "rr".into(),
            flags: 0,
            stays: None,
        };
        node.run(|| {
            let mut ipvs = Ipvs::open().unwrap();
            ipvs.add_service(theirs, &scheduling).unwrap();
            ipvs.add_destination(theirs, "192.0.2.2:80".parse().unwrap(), 7)
                .unwrap();
            // At an address that is a service's.
            ipvs.add_service(tcp("10.96.0.1", 80), &scheduling).unwrap();
        });
        let mut kernel = scene.kernel(IpvsScheduler::RoundRobin);
        let applied = scene.apply(&mut kernel);
        assert_eq!(applied.left_out.len(), 1, "{applied:?}");
        assert!(
            applied.left_out[0].contains("10.96.0.1:80 protocol 6 is somebody else's"),
            "{applied:?}"
        );
        node.run(|| {
            Ipvs::open()
                .unwrap()
                .delete_service(tcp("10.96.0.1", 80))
                .unwrap()
        });
        assert_eq!(scene.apply(&mut kernel).left_out, Vec::<String>::new());
        scene.lab.apply(1);
        let told = scene.watched(&mut kernel);
        let (want, held) = (scene.lab.dump(0), scene.held());
        assert!(
            told.recv_timeout(Duration::from_millis(1500)).is_err(),
            "whoever looks disturbs nothing"
        );
        let damages: [(&str, &(dyn Fn() + Sync)); 8] = [
            ("a virtual service", &|| {
                let mut ipvs = Ipvs::open().unwrap();
                ipvs.delete_service(tcp("10.96.0.1", 80)).unwrap();
            }),
            ("a destination", &|| {
                let mut ipvs = Ipvs::open().unwrap();
                let a = "10.244.0.2:8080".parse().unwrap();
                ipvs.delete_destination(tcp("10.96.0.1", 80), a).unwrap();
            }),
            ("a weight", &|| {
                let mut ipvs = Ipvs::open().unwrap();
                let a = "10.244.0.2:8080".parse().unwrap();
                ipvs.change_destination(tcp("10.96.0.1", 80), a, 0).unwrap();
            }),
            ("a scheduler", &|| {
                let mut ipvs = Ipvs::open().unwrap();
                let mut found = ipvs.services().unwrap().into_iter();
                let (key, other) = found.find(|(key, _)| *key == tcp("10.96.0.1", 80)).unwrap();
                let other = Scheduling {
                    scheduler: "lc".into(),
                    ..other
                };
                ipvs.change_service(key, &other).unwrap();
            }),
            ("a set", &|| {
                let mut sets = Netfilter::open().unwrap();
                let elements = sets.set_elements("PODNET-IPVS4").unwrap();
                sets.remove_from_set("PODNET-IPVS4", &elements).unwrap();
            }),
            ("the rule", &|| command("ip rule del fwmark 0x10/0x10")),
            ("routes", &|| command("ip route flush table 28750")),
            ("chains", &|| command("iptables -t mangle -F PODNET-IPVS")),
        ];
        for (what, damage) in damages {
            node.run(damage);
            let begin = std::time::Instant::now();
            told.recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("nobody saw: {what}"));
            println!("{what}: seen after {:?}", begin.elapsed());
            assert!(scene.apply(&mut kernel).service_changes > 0, "{what}");
            assert_eq!(scene.lab.dump(0), want, "{what}");
            assert_eq!(scene.held(), held, "{what}");
            assert!(scene.client.tcp("10.96.0.1:80").is_ok(), "{what}");
            // What came of putting it back.
            while told.recv_timeout(Duration::from_millis(1200)).is_ok() {}
        }
        node.run(|| kernel.clean().unwrap());
        let left = scene.held();
        assert!(left.keys().eq([&theirs]), "{left:?}");
    }

    fn command(text: &str) {
        let status = std::process::Command::new("sh").args(["-ec", text]).status();
        assert!(status.unwrap().success(), "{text}");
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn connections_outlive_the_switch_to_ipvs_and_away_from_it_and_nothing_stays() {
        let scene = Scene::new();
        scene.lab.apply(1);
        let node = &scene.lab.nodes[0];
        let state = scene.lab.state(0);
        let open_kernel = |name: DataplaneName| node.run(|| node.kernel(name));
        let ways = [
            (&scene.client, "10.96.0.1:80"),
            (&scene.client, "[fd00:10:96::1]:80"),
            (node, "10.96.0.1:80"),
            (&scene.lab.underlay, "172.30.0.11:30001"),
            (&scene.lab.underlay, "[fd30::11]:30001"),
        ];
        let mut connections: Vec<(Connection, String)> = Vec::new();
        let mut last = None;
        use DataplaneName::{Iptables, Ipvs, Nftables};
        for name in [Nftables, Ipvs, Iptables, Ipvs, Nftables] {
            let mut kernel = open_kernel(name);
            let applied = node.run(|| kernel.apply(&state).unwrap());
            assert_eq!(applied.refused, Vec::<String>::new(), "{name}");
            for (from, to) in ways {
                let mut connection = Connection::open(from, to);
                let who = connection.ask();
                connections.push((connection, who));
            }
            for (connection, who) in &mut connections {
                assert_eq!(connection.ask(), *who, "after {name}");
            }
            assert!(
                node.run(|| open_kernel(name).apply(&state).unwrap()).is_nothing(),
                "{name}"
            );
            last = Some(kernel);
        }
        // Those that IPVS has go on with what they need, and nothing else.
        let present = || node.run(|| open_kernel(Nftables).present().unwrap().join("\n"));
        assert!(present().contains("virtual services of IPVS"), "{}", present());
        assert!(!present().contains("sets of ipset"), "{}", present());
        for (connection, _) in connections {
            connection.reset();
        }
        let mut kernel = last.unwrap();
        let begin = std::time::Instant::now();
        while present().contains("IPVS") {
            assert!(begin.elapsed() < Duration::from_secs(150), "{}", present());
            std::thread::sleep(Duration::from_millis(500));
            node.run(|| kernel.apply(&state).unwrap());
        }
        assert!(!present().contains("iptables"), "{}", present());
        assert!(!present().contains("routing table"), "{}", present());
        let saved = node.command("iptables-nft-save; iptables-legacy-save; ip rule");
        assert!(!saved.contains("PODNET") && !saved.contains("28750"), "{saved}");
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn services_addresses_are_on_no_link_and_the_nodes_programs_are_not_there() {
        let mut scene = Scene::new();
        scene.lab.exposed(2, &BOTH, |service| {
            service.external.ips = vec!["172.30.0.200".parse().unwrap()];
        });
        scene.lab.apply_all();
        let node = &scene.lab.nodes[0];
        let addresses = node.command("ip address; ip route show table local");
        for address in ["10.96.0.1", "172.30.0.200"] {
            assert!(!addresses.contains(address), "{addresses}");
        }
        // The node answers for no external address on its link: that is up to whoever announces it.
        assert!(!scene.lab.underlay.ping("172.30.0.200"));
        let _program = node.run(|| TcpListener::bind("0.0.0.0:8443").unwrap());
        for from in [&scene.client, node] {
            let refused = from.tcp("10.96.0.1:8443").unwrap_err().kind();
            assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
        }
        assert!(scene.client.ping("10.96.0.1"));
        let source: IpAddr = "172.30.0.11".parse().unwrap();
        assert_eq!(
            answerers_and_sources(node, "10.96.0.1:80").1,
            BTreeSet::from([source])
        );
    }

    fn answerers_and_sources(from: &Machine, to: &str) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
        (0..4)
            .map(|_| from.tcp(to).unwrap())
            .filter(|(who, _)| who == "a")
            .unzip()
    }

    #[test]
    #[ignore = "needs Linux 6.12: cargo xtask vm"]
    fn settings_are_put_back() {
        let scene = Scene::new();
        let node = &scene.lab.nodes[0];
        let state = scene.lab.state(0);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("settings");
        let keys = ["conntrack", "expire_nodest_conn"].map(|key| format!("net/ipv4/vs/{key}"));
        let settings = || {
            let timeout = Ipvs::open().unwrap().tcp_timeout().unwrap();
            (keys.clone().map(|key| sysctl::get(&key).unwrap()), timeout)
        };
        let open = |name| {
            let mut kernel = node.kernel(name);
            kernel.keep_settings_in(&file).unwrap();
            kernel
        };
        node.run(|| {
            let before = settings();
            open(DataplaneName::Ipvs).apply(&state).unwrap();
            assert_eq!(settings(), (["1", "1"].map(str::to_owned), 432_000));
            open(DataplaneName::Ipvs).clean().unwrap();
            assert_eq!(settings(), before);
            // So they are when another back end takes over.
            open(DataplaneName::Ipvs).apply(&state).unwrap();
            open(DataplaneName::Nftables).apply(&state).unwrap();
            assert_eq!(settings(), before);
        });
        eventually("the way is gone", || !node.command("ip rule").contains("0x10"));
    }
}
