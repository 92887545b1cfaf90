//! SCTP, in a kernel that has it: sockets of one association each, which are read and written like TCP's.
//!
//! They are bound to one address each. One that is not tells its peer all addresses of its machine, and the peer probes them
//! past the service when some seconds have passed (RFC 9260 section 5.4): who gets such a probe knows of no association with
//! that port, and its ABORT ends the one there is. No translation of addresses can mend that.

mod linux_6_12 {
    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::time::Duration;

    use podnet_core::cluster::{ExternalPolicy, Family, InternalPolicy, ObjectName, Protocol, Routing};
    use rustix::fd::OwnedFd;
    use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};

    use crate::common::{BackEnd, Lab, Machine, PATIENCE, answerers, any};

    fn bound(to: SocketAddr) -> OwnedFd {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = rustix::net::socket(family, SocketType::STREAM, Some(ipproto::SCTP)).unwrap();
        rustix::net::bind(&socket, &to).unwrap();
        socket
    }

    /// The address that packets to another one come from.
    fn source(to: SocketAddr) -> SocketAddr {
        let socket = UdpSocket::bind(any(to, 0)).unwrap();
        socket.connect(to).unwrap();
        SocketAddr::new(socket.local_addr().unwrap().ip(), 0)
    }

    /// Tells every client who answers, and whom it sees.
    fn serve(pod: &Machine, (node, host): (usize, u8), name: &'static str) {
        for address in [
            format!("10.244.{node}.{host}:8080"),
            format!("[fd00:10:244:{node}::{host}]:8080"),
        ] {
            let listener = pod.run(|| {
                let socket = bound(address.parse().unwrap());
                rustix::net::listen(&socket, 16).unwrap();
                TcpListener::from(socket)
            });
            std::thread::spawn(move || {
                while let Ok((mut stream, client)) = listener.accept() {
                    // A client that is gone needs no answer.
                    let _ = stream.write_all(format!("{name} {}\n", client.ip()).as_bytes());
                }
            });
        }
    }

    fn ask(client: &Machine, to: &str) -> std::io::Result<(String, IpAddr)> {
        ask_for(PATIENCE, client, to)
    }

    /// Whether it is refused: a socket of SCTP goes on asking, but the message that nobody is there has come.
    fn is_refused(client: &Machine, to: &str) -> bool {
        let before = client.told_unreachable();
        ask_for(Duration::from_secs(1), client, to).unwrap_err();
        client.told_unreachable() > before
    }

    fn ask_for(patience: Duration, client: &Machine, to: &str) -> std::io::Result<(String, IpAddr)> {
        let to: SocketAddr = to.parse().unwrap();
        client.run(|| {
            let socket = bound(source(to));
            // It limits connecting, too.
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(patience))?;
            rustix::net::connect(&socket, &to)?;
            let mut line = String::new();
            BufReader::new(TcpStream::from(socket)).read_line(&mut line)?;
            crate::common::parse(&line)
        })
    }

    fn associations_reach_every_endpoint_from_inside_and_outside(on: BackEnd) {
        let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500).carried_by(on);
        let pods = [(0, 2), (1, 3)].map(|at| (lab.pod(at.0, at.1), at));
        for ((pod, at), name) in pods.iter().zip(["a", "b"]) {
            serve(pod, *at, name);
        }
        let client = lab.pod(0, 9);
        lab.exposed_by(Protocol::Sctp, 1, &[(0, 2), (1, 3)]);
        lab.apply_all();
        let everybody = BTreeSet::from(["a", "b"].map(str::to_owned));
        for (from, targets) in [
            (&client, ["10.96.0.1:80", "[fd00:10:96::1]:80"]),
            (&lab.underlay, ["172.30.0.11:30001", "[fd30::11]:30001"]),
        ] {
            for to in targets {
                assert_eq!(answerers(16, || ask(from, to)), everybody, "{to}");
            }
        }
        // Within the cluster endpoints see their client.
        let seen = ask(&client, "10.96.0.1:80").unwrap().1;
        assert_eq!(seen, IpAddr::from([10, 244, 0, 9]));
    }

    fn who_has_no_endpoint_or_no_such_port_refuses_and_nobody_far_is_asked(on: BackEnd) {
        let mut lab = Lab::new(2, Routing::default(), Family::V4, 1500).carried_by(on);
        let pods = [(0, 2), (1, 3)].map(|at| (lab.pod(at.0, at.1), at));
        for ((pod, at), name) in pods.iter().zip(["a", "b"]) {
            serve(pod, *at, name);
        }
        let client = lab.pod(0, 9);
        let local = |lab: &mut Lab, host: u8| {
            let name = ObjectName::new("default", format!("svc{host}"));
            let service = lab.cluster.services.get_mut(&name).unwrap().as_mut().unwrap();
            service.external.policy = ExternalPolicy::Local;
            service.internal_policy = InternalPolicy::Local;
        };
        lab.exposed_by(Protocol::Sctp, 1, &[(0, 2), (1, 3)]);
        lab.exposed_by(Protocol::Sctp, 2, &[]);
        lab.exposed_by(Protocol::Sctp, 3, &[(0, 2), (1, 3)]);
        local(&mut lab, 3);
        lab.exposed_by(Protocol::Sctp, 4, &[(1, 3)]);
        local(&mut lab, 4);
        lab.apply_all();
        let inside = |host: u8, port: u16| {
            [
                format!("10.96.0.{host}:{port}"),
                format!("[fd00:10:96::{host}]:{port}"),
            ]
        };
        let outside = |host: u8| {
            [
                format!("172.30.0.11:3000{host}"),
                format!("[fd30::11]:3000{host}"),
            ]
        };
        for from in [&client, &lab.nodes[0]] {
            for to in inside(2, 80).into_iter().chain(inside(1, 81)) {
                assert!(is_refused(from, &to), "{to}");
            }
            let [near, far] = [inside(3, 80), inside(4, 80)];
            for to in near {
                assert_eq!(
                    answerers(8, || ask(from, &to)),
                    BTreeSet::from(["a".to_owned()]),
                    "{to}"
                );
            }
            for to in far {
                assert!(!is_refused(from, &to), "{to}");
            }
        }
        for to in outside(2) {
            assert!(is_refused(&lab.underlay, &to), "{to}");
        }
        for (to, own) in outside(3).into_iter().zip(["172.30.0.1", "fd30::1"]) {
            let expected = ("a".to_owned(), own.parse().unwrap());
            assert_eq!(ask(&lab.underlay, &to).unwrap(), expected, "{to}");
        }
        for to in outside(4) {
            assert!(!is_refused(&lab.underlay, &to), "{to}");
        }
    }

    macro_rules! on {
        ($($module:ident $on:ident),* $(,)?) => {$(
            mod $module {
                #[test]
                #[ignore = "needs Linux 6.12: cargo xtask vm"]
                fn associations_reach_every_endpoint_from_inside_and_outside() {
                    super::associations_reach_every_endpoint_from_inside_and_outside(super::BackEnd::$on)
                }

                #[test]
                #[ignore = "needs Linux 6.12: cargo xtask vm"]
                fn who_has_no_endpoint_or_no_such_port_refuses_and_nobody_far_is_asked() {
                    super::who_has_no_endpoint_or_no_such_port_refuses_and_nobody_far_is_asked(super::BackEnd::$on)
                }
            }
        )*};
    }
    on!(
        nftables Nftables,
        ipvs Ipvs,
        iptables_legacy IptablesLegacy,
        iptables_nft IptablesNft,
    );
}
