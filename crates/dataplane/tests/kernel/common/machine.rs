//! A machine is a network namespace; what its processes ask and answer.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podnet_core::NodeState;
use podnet_core::cluster::{DataplaneName, NetnsCookie};
use podnet_dataplane::userspace::{SOCKET, Site, proxy};
use podnet_dataplane::{Dataplane, Kernel, ebpf};
use podnet_linux::mount;
use podnet_linux::netlink::{Address, AddressFlags, Link, LinkChange, Netlink, NewLink, NewLinkKind};
use podnet_linux::ns::{self, Kind, Namespace};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::PATIENCE;
use super::group::Group;

pub(crate) struct Machine {
    pub(crate) namespace: Namespace,
    /// Where the sockets of its processes are.
    pub(crate) run_dir: TempDir,
    /// Where its programs are, once it has any: the group, and a file system for pins that goes with the test.
    programs: OnceLock<(Arc<Group>, OwnedFd)>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let machine = Machine {
            namespace: Namespace::create(Kind::Net).unwrap(),
            run_dir: tempfile::tempdir().unwrap(),
            programs: OnceLock::new(),
        };
        machine.netlink(|netlink| netlink.request(LinkChange::named("lo").up(true).apply()).unwrap());
        machine
    }

    /// A node on an underlay that nobody else is on.
    pub(crate) fn alone(addresses: &[&str]) -> Self {
        let machine = Machine::new();
        let eth0 = NewLink {
            up: true,
            ..NewLink::new("eth0", NewLinkKind::Bridge)
        };
        machine.netlink(|netlink| netlink.request(eth0.create()).unwrap());
        for address in addresses {
            machine.address("eth0", address);
        }
        machine
    }

    /// The same machine.
    pub(crate) fn again(&self) -> Self {
        let namespace = self.namespace.as_fd().try_clone_to_owned().unwrap();
        Machine {
            namespace: namespace.into(),
            run_dir: tempfile::tempdir().unwrap(),
            programs: OnceLock::new(),
        }
    }

    /// Runs `work` on a thread in the machine.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work).unwrap()
    }

    pub(crate) fn netlink<T: Send>(&self, work: impl FnOnce(&mut Netlink) -> T + Send) -> T {
        self.run(|| work(&mut Netlink::open().unwrap()))
    }

    pub(crate) fn link(&self, name: &str) -> Link {
        self.netlink(|netlink| netlink.link(name).unwrap().unwrap())
    }

    /// Waits until a link carries packets: for a moment after it is up the kernel drops them.
    pub(super) fn until_running(&self, link: &str) {
        let end = Instant::now() + 10 * PATIENCE;
        while !self.link(link).running {
            assert!(Instant::now() < end, "{link} carries nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn address(&self, link: &str, net: &str) {
        let net: IpNet = net.parse().unwrap();
        let index = self.link(link).index;
        let flags = AddressFlags {
            nodad: net.addr().is_ipv6(),
            ..AddressFlags::default()
        };
        self.netlink(|netlink| {
            netlink
                .request(
                    Address {
                        flags,
                        ..Address::new(index, net)
                    }
                    .add(),
                )
                .unwrap();
            let end = Instant::now() + 10 * PATIENCE;
            while netlink.is_tentative(index).unwrap() {
                assert!(Instant::now() < end, "{net} on {link} is tentative");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }

    /// A data plane of this machine, which knows nothing yet. A proxy, where there is one, is a thread of this process.
    /// To be called on a thread in the machine.
    pub(crate) fn kernel(&self, name: DataplaneName) -> Kernel {
        self.kernel_of("this", name)
    }

    /// The same by an agent of the build `identity`.
    pub(crate) fn kernel_of(&self, identity: &'static str, name: DataplaneName) -> Kernel {
        let namespace = File::from(self.namespace.as_fd().try_clone_to_owned().unwrap());
        let own = File::open("/proc/thread-self/ns/net").unwrap();
        let number = |file: File| file.metadata().unwrap().ino();
        // The rules would be those of the machine that runs the tests.
        assert_eq!(
            number(own),
            number(namespace),
            "this thread is not in the machine"
        );
        let site = Site {
            socket: self.run_dir.path().join(SOCKET),
            identity: Arc::new(move || identity.to_owned()),
            start: Arc::new(move |socket| {
                let socket = socket.to_owned();
                std::thread::spawn(move || proxy::run(&socket, identity));
                Ok(())
            }),
        };
        let mut kernel = Kernel::open(None, name).unwrap().with_proxy(site).unwrap();
        if name == DataplaneName::Ebpf || self.programs.get().is_some() {
            kernel = kernel.with_programs(self.programs()).unwrap();
        }
        kernel.take_turns_in(self.run_dir.path()).unwrap();
        kernel
    }

    /// A data plane with programs that has applied a state, and what is heard from then on of others' changes to that.
    pub(crate) fn watched(&self, state: &NodeState) -> (Kernel, Receiver<()>) {
        let (tell, disturbed) = mpsc::channel();
        let mut kernel = self.run(|| self.kernel(DataplaneName::Ebpf));
        self.run(|| kernel.apply(state).unwrap());
        let mut monitor = self.run(|| kernel.monitor().unwrap());
        let namespace = self.again();
        std::thread::spawn(move || {
            namespace.run(move || while monitor.wait().is_ok() && tell.send(()).is_ok() {});
        });
        (kernel, disturbed)
    }

    /// Where its programs are.
    pub(crate) fn programs(&self) -> ebpf::Site {
        let make = || (Group::of_this_process(), mount::bpffs_unattached().unwrap());
        let (group, pins) = self.programs.get_or_init(make);
        ebpf::Site {
            cgroup: Some(group.path().to_owned()),
            // For child processes as well.
            bpffs: format!("/proc/{}/fd/{}", std::process::id(), pins.as_raw_fd()).into(),
            sizes: ebpf::Sizes::default(),
        }
    }

    /// The cookie of its network namespace.
    pub(crate) fn cookie(&self) -> NetnsCookie {
        NetnsCookie(NonZeroU64::new(self.run(|| ns::net_cookie().unwrap())).unwrap())
    }

    /// Runs a command, which must succeed; returns what it printed.
    pub(crate) fn command(&self, text: &str) -> String {
        let output = self.run(|| {
            std::process::Command::new("sh")
                .args(["-ec", text])
                .output()
                .unwrap()
        });
        assert!(output.status.success(), "{text}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn nft(&self) -> String {
        let list = || {
            std::process::Command::new("nft")
                .args(["-n", "list", "ruleset"])
                .output()
                .unwrap()
        };
        let output = self.run(list);
        assert!(output.status.success(), "nft: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Answers every TCP line and UDP datagram on a port with `name` and the caller's address, for as long as the test
    /// process lives.
    pub(crate) fn serve(&self, name: &str, port: u16) {
        self.serve_at(name, (Ipv6Addr::UNSPECIFIED, port).into());
    }

    /// The same at one address: a machine with several would answer datagrams from another.
    pub(crate) fn serve_at(&self, name: &str, at: SocketAddr) {
        let (tcp, udp) = self.run(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
        let answer = |name: &str, client: SocketAddr| format!("{name} {}\n", client.ip().to_canonical());
        let tcp_name = name.to_owned();
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let name = tcp_name.clone();
                std::thread::spawn(move || {
                    let client = stream.peer_addr().unwrap();
                    let mut writer = stream.try_clone().unwrap();
                    for line in BufReader::new(stream).lines() {
                        if line.is_err() || writer.write_all(answer(&name, client).as_bytes()).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let udp_name = name.to_owned();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((_, client)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(answer(&udp_name, client).as_bytes(), client);
            }
        });
    }

    /// One TCP exchange from here: who answered, and the address it saw; or why not.
    pub(crate) fn tcp(&self, to: &str) -> std::io::Result<(String, IpAddr)> {
        self.tcp_by(0, to)
    }

    /// The same from this port; 0 leaves the choice to the kernel.
    pub(crate) fn tcp_by(&self, port: u16, to: &str) -> std::io::Result<(String, IpAddr)> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            if port > 0 {
                socket.bind(&any(to, port).into())?;
            }
            socket.connect_timeout(&to.into(), PATIENCE)?;
            let mut stream = TcpStream::from(socket);
            // Who has accepted answers at last, however busy the machine.
            stream.set_read_timeout(Some(4 * PATIENCE))?;
            stream.write_all(b"?\n")?;
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line)?;
            parse(&line)
        })
    }

    /// One UDP exchange from here, from a new port.
    pub(crate) fn udp(&self, to: &str) -> std::io::Result<(String, IpAddr)> {
        self.udp_by(0, to)
    }

    /// The same from this port; 0 leaves the choice to the kernel.
    pub(crate) fn udp_by(&self, port: u16, to: &str) -> std::io::Result<(String, IpAddr)> {
        ask(&self.udp_socket_by(port, to))
    }

    /// The same by a socket that is not connected, which takes no answer but from whom it asked.
    pub(crate) fn udp_unconnected_by(&self, port: u16, to: &str) -> std::io::Result<(String, IpAddr)> {
        let to: SocketAddr = to.parse().unwrap();
        let socket = self.run(move || UdpSocket::bind(any(to, port)).unwrap());
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(b"?", to)?;
        let mut buffer = [0; 2048];
        let (length, from) = socket.recv_from(&mut buffer)?;
        assert_eq!(from, to, "the answer to a datagram comes from somebody else");
        parse(std::str::from_utf8(&buffer[..length]).unwrap())
    }

    pub(crate) fn udp_socket(&self, to: &str) -> UdpSocket {
        self.udp_socket_by(0, to)
    }

    fn udp_socket_by(&self, port: u16, to: &str) -> UdpSocket {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || {
            let socket = UdpSocket::bind(any(to, port)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }

    /// How many segments of TCP this machine has sent a second time.
    pub(crate) fn tcp_segments_sent_again(&self) -> u64 {
        self.counted("Tcp: ", "RetransSegs")
    }

    /// How often this machine was told that what it sent cannot be delivered, in either family.
    pub(crate) fn told_unreachable(&self) -> u64 {
        let counters = self.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap());
        let mut lines = counters.lines();
        let six = lines.find_map(|line| line.strip_prefix("Icmp6InDestUnreachs"));
        self.counted("Icmp: ", "InDestUnreachs") + six.unwrap().trim().parse::<u64>().unwrap()
    }

    /// How often this machine was told that what it sent has passed too many routers (IPv4).
    pub(crate) fn told_time_exceeded(&self) -> u64 {
        self.counted("Icmp: ", "InTimeExcds")
    }

    /// A figure of one of the kernel's protocols.
    fn counted(&self, protocol: &str, what: &str) -> u64 {
        let counters = self.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let mut of_protocol = counters.lines().filter_map(|line| line.strip_prefix(protocol));
        let (names, figures) = (of_protocol.next().unwrap(), of_protocol.next().unwrap());
        let mut all = names.split(' ').zip(figures.split(' '));
        let (_, figure) = all.find(|(name, _)| *name == what).unwrap();
        figure.parse().unwrap()
    }

    pub(crate) fn ping(&self, to: &str) -> bool {
        let ping = || {
            std::process::Command::new("ping")
                .args(["-c", "1", "-W", "2", to])
                .output()
                .unwrap()
        };
        self.run(ping).status.success()
    }
}

/// Any address of the same family.
pub(crate) fn any(of: SocketAddr, port: u16) -> SocketAddr {
    let address: IpAddr = match of {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(address, port)
}

pub(crate) fn ask(socket: &UdpSocket) -> std::io::Result<(String, IpAddr)> {
    match socket.send(b"?") {
        // A rule stopped it before it left: whether that was a refusal, the socket hears next.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        sent => drop(sent?),
    }
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    parse(std::str::from_utf8(&buffer[..length]).unwrap())
}

pub(crate) fn parse(line: &str) -> std::io::Result<(String, IpAddr)> {
    let mut words = line.split_whitespace();
    match (words.next(), words.next()) {
        (Some(name), Some(address)) => Ok((name.to_owned(), address.parse().unwrap())),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}
