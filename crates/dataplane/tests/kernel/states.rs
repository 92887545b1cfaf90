//! Any state to any state, and one agent after another, without a packet lost.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::{Lab, Machine, PATIENCE, ask};
use podnet_core::cluster::{Cluster, DataplaneName, Family, ObjectName, Protocol, Routing};
use podnet_core::service::{Backend, Entry, Frontend, PortName};
use podnet_dataplane::{Dataplane, Dump, Kernel};
use podnet_fuzz::Random;
use podnet_linux::sysctl;

/// A cluster of up to four nodes and some services, either routing mode.
fn shuffle(lab: &mut Lab, all: &Cluster, dice: &mut Random) {
    lab.cluster = Cluster::new(all.config.clone());
    lab.cluster.config.routing = if dice.below(3) == 0 {
        Routing::Direct
    } else {
        Routing::default()
    };
    for (index, (name, node)) in all.nodes.iter().enumerate() {
        if index == 0 || dice.below(2) == 0 {
            lab.cluster.nodes.insert(name.clone(), node.clone());
        }
    }
    for host in 1..6 {
        if dice.below(3) > 0 {
            let count = dice.below(5);
            let pods: Vec<(usize, u8)> = (0..count).map(|pod| (dice.below(4), 2 + pod as u8)).collect();
            lab.service(host, &pods);
        }
    }
}

fn fresh(lab: &Lab) -> Dump {
    // The same underlay, a node that never had anything.
    let clean = |kernel: &mut Kernel| drop(kernel.clean().unwrap());
    let state = lab.state(0);
    lab.nodes[0].run(|| {
        let mut kernel = Kernel::open(None, DataplaneName::Nftables).unwrap();
        clean(&mut kernel);
        kernel.apply(&state).unwrap();
        kernel.dump().unwrap()
    })
}

#[test]
fn any_state_becomes_any_other_and_is_what_a_fresh_start_makes() {
    let mut lab = Lab::new(4, Routing::default(), Family::V4, 1500);
    let all = lab.cluster.clone();
    let mut dice = Random::new(1);
    let mut kernel = lab.nodes[0].run(|| Kernel::open(None, DataplaneName::Nftables).unwrap());
    for step in 0..40 {
        shuffle(&mut lab, &all, &mut dice);
        let state = lab.state(0);
        // The thread does not matter to sockets, but sysctls are the thread's namespace's.
        let applied = lab.nodes[0].run(|| kernel.apply(&state).unwrap());
        assert_eq!(applied.refused, Vec::<String>::new(), "step {step}");
        assert!(
            lab.nodes[0].run(|| kernel.apply(&state).unwrap()).is_nothing(),
            "step {step}"
        );
        // Another agent finds nothing to do, and the same things.
        assert!(lab.apply(0).is_nothing(), "step {step}");
        let reached = lab.dump(0);
        if step % 4 == 0 {
            let (rules, fresh) = (lab.nodes[0].nft(), fresh(&lab));
            assert_eq!(reached.to_string(), fresh.to_string(), "step {step}");
            assert_eq!(sorted(&rules), sorted(&lab.nodes[0].nft()), "step {step}");
        }
    }
}

/// nft prints elements in the order of the kernel's hash.
fn sorted(rules: &str) -> Vec<String> {
    let mut words: Vec<String> = rules
        .split([',', '\n'])
        .map(|line| line.trim().to_owned())
        .collect();
    for word in &mut words {
        *word = word.replace("elements = { ", "").replace(" }", "");
    }
    words.sort();
    words
}

#[test]
fn what_somebody_else_changed_is_put_back_and_what_is_theirs_stays() {
    let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500);
    lab.service(1, &[(0, 2), (1, 2)]);
    let node = &lab.nodes[0];
    let command = |line: &str| {
        let mut words = line.split(' ');
        let status = node.run(|| {
            std::process::Command::new(words.next().unwrap())
                .args(words)
                .status()
                .unwrap()
        });
        assert!(status.success(), "{line}");
    };
    command("nft add table inet theirs");
    command("ip route add 10.244.1.0/24 via 172.30.0.1 proto static metric 9");
    let state = lab.state(0);
    let mut kernel = node.run(|| Kernel::open(None, DataplaneName::Nftables).unwrap());
    node.run(|| kernel.apply(&state).unwrap());
    let want = lab.dump(0);
    for damage in [
        "nft flush table inet podnet",
        "nft delete table inet podnet",
        "nft flush ruleset",
        "nft delete element inet podnet service4 { 10.96.0.1 . tcp . 80 }",
        "nft add rule inet podnet guard drop",
        "nft insert rule inet podnet services drop",
        "nft flush set inet podnet cluster6",
        "nft add chain inet podnet other { type filter hook input priority 0; }",
        "ip link del podnet.vxlan",
        "ip link set podnet.vxlan down",
        "ip link set podnet.vxlan mtu 1300",
        "ip route del 10.244.1.0/24 proto 112",
        "ip neigh flush dev podnet.vxlan nud permanent",
        "ip link del podnet.sink",
        "ip link set podnet.sink down",
        "ip route del 10.96.0.0/16",
        "ip neigh flush dev podnet.sink nud permanent",
        "sysctl -q -w net.ipv4.ip_forward=0",
        "sysctl -q -w net.netfilter.nf_conntrack_tcp_be_liberal=0",
    ] {
        let _ = node.run(|| {
            std::process::Command::new("nft")
                .args(["add", "table", "inet", "theirs"])
                .status()
        });
        command(damage);
        assert!(
            !node.run(|| kernel.apply(&state).unwrap()).is_nothing(),
            "{damage}"
        );
        assert_eq!(lab.dump(0).to_string(), want.to_string(), "{damage}");
        assert!(
            node.run(|| kernel.apply(&state).unwrap()).is_nothing(),
            "{damage}"
        );
    }
    let removed = node.run(|| kernel.clean().unwrap());
    for link in ["link podnet.vxlan", "link podnet.sink"] {
        assert!(removed.contains(&link.to_owned()), "{removed:?}");
    }
    assert_eq!(node.run(|| kernel.clean().unwrap()), Vec::<String>::new());
    assert_eq!(lab.dump(0), Dump::default());
    let routes = node.run(|| {
        std::process::Command::new("ip")
            .args(["route", "show", "proto", "static"])
            .output()
    });
    assert!(
        String::from_utf8(routes.unwrap().stdout)
            .unwrap()
            .contains("10.244.1.0/24 via 172.30.0.1")
    );
}

/// Asks again and again until told to stop; says how often it asked, and panics at the first missing answer.
pub(crate) fn talk(from: &Machine, to: &str, stop: &AtomicBool, asked: &AtomicUsize) {
    let udp = from.udp_socket(to);
    // A machine that has no time is no lost datagram.
    udp.set_read_timeout(Some(4 * PATIENCE)).unwrap();
    let tcp = from.run(|| TcpStream::connect(to).unwrap());
    let mut reader = BufReader::new(tcp.try_clone().unwrap());
    while !stop.load(Ordering::Relaxed) {
        ask(&udp).expect("a datagram was lost");
        (&tcp).write_all(b"?\n").unwrap();
        reader.read_line(&mut String::new()).unwrap();
        // New connections, too.
        from.tcp(to).expect("a connection was lost");
        asked.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn agents_that_come_and_go_lose_no_packet() {
    for routing in [Routing::default(), Routing::Direct] {
        let mut lab = Lab::new(2, routing, Family::V4, 1500);
        let (a, b, client) = (lab.pod(0, 2), lab.pod(1, 2), lab.pod(0, 9));
        a.serve("a", 8080);
        b.serve("b", 8080);
        lab.service(1, &[(0, 2), (1, 2)]);
        lab.apply_all();
        let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for to in [
                "10.96.0.1:80",
                "[fd00:10:96::1]:80",
                "10.244.1.2:8080",
                "[fd00:10:244:1::2]:8080",
            ] {
                let (client, stop, asked) = (&client, &stop, &asked);
                scope.spawn(move || talk(client, to, stop, asked));
            }
            for round in 0..30 {
                // Each a new agent with nothing in its memory. Every third finds other services changed.
                if round % 3 == 0 {
                    lab.service(2, &[(0, 2), (1, 2)][..(round / 3) % 3]);
                }
                lab.apply_all();
                std::thread::sleep(Duration::from_millis(20));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(
            asked.load(Ordering::Relaxed) > 20,
            "{}",
            asked.load(Ordering::Relaxed)
        );
    }
}

#[test]
fn thousands_of_services_go_in_at_once() {
    let lab = Lab::new(1, Routing::default(), Family::V4, 1500);
    let state = |last: u8| {
        let mut state = lab.state(0);
        for number in 0..5000_u16 {
            let [high, low] = number.to_be_bytes();
            let address = std::net::IpAddr::from([10, 96, high + 1, low]);
            let endpoints = (2..7).map(|pod| {
                std::net::SocketAddr::from(([10, 244, high, if pod == 6 { last } else { pod }], 80))
            });
            let backend = Backend::Balance {
                endpoints: endpoints.collect(),
                draining: Default::default(),
            };
            let frontend = Frontend {
                address,
                protocol: Protocol::Tcp,
                port: std::num::NonZeroU16::new(80).unwrap(),
            };
            let port = PortName {
                service: ObjectName::new("default", format!("svc{number}")),
                protocol: frontend.protocol,
                port: frontend.port,
            };
            let services = std::sync::Arc::make_mut(&mut state.services);
            services.cluster_ips.insert(address);
            let entry = Entry::new(port, backend);
            services.frontends.insert(frontend, entry.into());
        }
        state
    };
    let (before, after) = (state(6), state(7));
    let mut kernel = lab.nodes[0].run(|| Kernel::open(None, DataplaneName::Nftables).unwrap());
    for state in [&before, &after] {
        let begin = std::time::Instant::now();
        let applied = lab.nodes[0].run(|| kernel.apply(state).unwrap());
        println!("{} changes in {:?}", applied.service_changes, begin.elapsed());
        assert!(applied.service_changes >= 5000);
        // Read back by one that knows nothing.
        let again = lab.nodes[0].run(|| {
            Kernel::open(None, DataplaneName::Nftables)
                .unwrap()
                .apply(state)
                .unwrap()
        });
        assert!(again.is_nothing(), "{again:?}");
    }
}

#[test]
fn settings_are_put_back() {
    let lab = Lab::new(1, Routing::default(), Family::V4, 1500);
    let state = lab.state(0);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state/settings");
    let keys = [
        "net/ipv4/ip_forward",
        "net/ipv4/conf/lo/forwarding",
        "net/ipv4/conf/all/accept_redirects",
        "net/ipv6/conf/all/forwarding",
        "net/ipv6/conf/eth0/forwarding",
        "net/ipv6/conf/eth0/accept_ra",
        "net/ipv6/conf/lo/forwarding",
        "net/netfilter/nf_conntrack_tcp_be_liberal",
    ];
    let settings = || keys.map(|key| sysctl::get(key).unwrap());
    lab.nodes[0].run(|| {
        // One link forwarded already; and switching IPv4's forwarding off again would switch redirects on.
        sysctl::set("net/ipv4/conf/lo/forwarding", "1").unwrap();
        sysctl::set("net/ipv4/conf/all/accept_redirects", "0").unwrap();
        sysctl::set("net/ipv6/conf/lo/forwarding", "1").unwrap();
        let before = settings();
        assert_eq!(before, ["0", "1", "0", "0", "0", "1", "1", "0"]);
        let open = || {
            let mut kernel = Kernel::open(None, DataplaneName::Nftables).unwrap();
            kernel.keep_settings_in(&file).unwrap();
            kernel
        };
        open().apply(&state).unwrap();
        assert_eq!(settings(), ["1", "1", "0", "1", "1", "2", "1", "1"]);
        // Another agent finds what the first has written, and does not take it for what was before.
        open().apply(&state).unwrap();
        let present = open().present().unwrap();
        for text in [
            "setting net/ipv4/ip_forward = 1, which was 0",
            "setting net/ipv6/conf/all/forwarding = 1, which was 0",
            "setting net/ipv6/conf/eth0/accept_ra = 2, which was 1",
            "setting net/netfilter/nf_conntrack_tcp_be_liberal = 1, which was 0",
        ] {
            assert!(present.contains(&text.to_owned()), "{present:?}");
        }
        open().clean().unwrap();
        assert_eq!(settings(), before);
        assert_eq!(open().clean().unwrap(), Vec::<String>::new());
        // What somebody else has changed since is theirs.
        open().apply(&state).unwrap();
        sysctl::set("net/ipv6/conf/eth0/accept_ra", "0").unwrap();
        open().clean().unwrap();
        assert_eq!(settings(), ["0", "1", "0", "0", "0", "0", "1", "0"]);
    });
}
