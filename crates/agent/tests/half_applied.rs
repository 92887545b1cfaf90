//! What is in force of an application that failed half-way is the node's own: a real kernel, a real proxy.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpStream};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podnet_agent::cni_server::{CniServerConfig, Readiness};
use podnet_agent::metrics::Metrics;
use podnet_agent::node::{NodeConfig, NodeLoop, Outlets};
use podnet_agent::status::NodeStatus;
use podnet_agent::watch::{Change, Update};
use podnet_cni::WiringName;
use podnet_core::cluster::{
    AddressFamily, ClusterConfig, DataplaneName, Endpoint, EndpointPort, EndpointSlice, Family, Node,
    NodeName, ObjectName, PodRanges, Protocol, Service, ServicePort,
};
use podnet_dataplane::userspace::{Site, proxy};
use podnet_dataplane::{Dataplane, Kernel};
use podnet_linux::netlink::{Address, LinkChange, Netlink, NewLink, NewLinkKind};
use podnet_linux::ns::{Kind, Namespace};
use tokio::sync::{mpsc, oneshot, watch};

const ADDRESS: [u8; 4] = [172, 30, 0, 11];
const NODE_PORT: u16 = 30_001;

fn me() -> NodeName {
    NodeName::new("node1").unwrap()
}

/// The node with an address, which its link need not have.
fn node(address: impl Into<IpAddr>) -> Node {
    let range = "10.244.0.0/24".parse().unwrap();
    Node::new(me(), &[address.into()], PodRanges::new([range]).unwrap())
}

fn moved(address: impl Into<IpAddr>) -> Update {
    Update::Nodes(Change::Set(me(), Box::new(Ok(node(address)))))
}

fn service() -> [Update; 2] {
    let name = ObjectName::new("default", "web");
    let of = ServicePort {
        node_port: NonZeroU16::new(NODE_PORT),
        ..ServicePort::new("web", Protocol::Tcp, NonZeroU16::new(80).unwrap())
    };
    let service = Service::new(["10.96.0.1".parse().unwrap()].into(), vec![of]).unwrap();
    let of = EndpointPort {
        name: "web".into(),
        protocol: Protocol::Tcp,
        port: NonZeroU16::new(8080),
    };
    let endpoint = Endpoint::ready("10.244.0.2".parse().unwrap(), Some(me()));
    let family = AddressFamily::Ip(Family::V4);
    let slice = EndpointSlice::new(Some(name.clone()), family, vec![of], vec![endpoint]).unwrap();
    [
        Update::Slices(Change::Set(name.clone(), Box::new(Ok(slice)))),
        Update::Services(Change::Set(name, Box::new(Ok(service)))),
    ]
}

fn nothing() -> [Update; 6] {
    [
        Update::Services(Change::All(Vec::new())),
        Update::Slices(Change::All(Vec::new())),
        Update::Pools(Change::All(Vec::new())),
        Update::ServiceCidrs(Change::All(Vec::new())),
        Update::NetworkPolicies(Change::All(Vec::new())),
        Update::ClusterNetworkPolicies(Change::All(Vec::new())),
    ]
}

/// A machine with a link that has the address.
fn machine() -> Namespace {
    let machine = Namespace::create(Kind::Net).unwrap();
    let set_up = || {
        let mut netlink = Netlink::open().unwrap();
        let up = |link: &str| LinkChange::named(link).up(true).apply();
        let link = NewLink::new("eth0", NewLinkKind::Bridge);
        netlink.apply([link.create(), up("eth0"), up("lo")]).unwrap();
        let link = netlink.link("eth0").unwrap().unwrap().index;
        let net = "172.30.0.11/24".parse().unwrap();
        netlink.request(Address::new(link, net).add()).unwrap();
    };
    machine.run(set_up).unwrap();
    machine
}

/// An agent's loop that has services carried in user space.
struct Agent {
    updates: mpsc::UnboundedSender<Update>,
    status: watch::Receiver<NodeStatus>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _files: tempfile::TempDir,
}

impl Agent {
    fn start(machine: &Namespace) -> Agent {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name);
        std::fs::write(path("podnet-cni"), "").unwrap();
        let config = NodeConfig {
            name: me(),
            cluster: ClusterConfig {
                cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
                service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
                ..ClusterConfig::default()
            },
            dns: Vec::new(),
            cni_bin_dir: path("bin"),
            cni_conf_dir: path("net.d"),
            cni: CniServerConfig {
                socket: path("cni.sock"),
                state_dir: path("state"),
                node: me().to_string(),
                wiring: WiringName::Ptp,
                allowed_sysctls: Vec::new(),
                settings: Default::default(),
            },
            plugin: path("podnet-cni"),
        };
        let site = Site {
            socket: path("proxy.sock"),
            identity: Arc::new(|| "this".to_owned()),
            start: Arc::new(|socket| {
                let socket = socket.to_owned();
                std::thread::spawn(move || proxy::run(&socket, "this"));
                Ok(())
            }),
        };
        let (updates, changes) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let machine = Namespace::from(std::os::fd::AsFd::as_fd(machine).try_clone_to_owned().unwrap());
        let thread = std::thread::spawn(move || {
            machine.enter().unwrap();
            let open = || Kernel::open(None, DataplaneName::Userspace).unwrap();
            let kernel = open().with_proxy(site.clone()).unwrap();
            let (services, in_force) = watch::channel(Default::default());
            let out = Outlets {
                metrics: Arc::new(Metrics::new(in_force)),
                readiness: watch::channel(Readiness::NotReady("starting".into())).0,
                problems: watch::channel(BTreeSet::new()).0,
                health: watch::channel(Default::default()).0,
                services,
                repairs: watch::channel(None).0,
            };
            let node = NodeLoop::new(config, kernel, Default::default(), out);
            tell.send(node.status()).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            // Nobody tells of disturbances.
            let (_tell, disturbed) = mpsc::channel(1);
            let running = runtime.spawn(node.run(changes, disturbed));
            let _ = runtime.block_on(ended);
            running.abort();
            open().with_proxy(site).unwrap().clean().unwrap();
        });
        Agent {
            updates,
            status: told.recv().unwrap(),
            end: Some(end),
            thread: Some(thread),
            _files: files,
        }
    }

    fn tell(&self, updates: impl IntoIterator<Item = Update>) {
        updates
            .into_iter()
            .for_each(|update| self.updates.send(update).unwrap());
    }

    fn until(&self, what: &str, holds: impl Fn(&NodeStatus) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !holds(&self.status.borrow()) {
            assert!(Instant::now() < end, "not {what}: {:#?}", *self.status.borrow());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end.take().map(|end| end.send(()));
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn a_node_port_that_the_proxy_has_already_is_nobody_elses_when_the_rest_is_tried_again() {
    let machine = machine();
    let agent = Agent::start(&machine);
    let listens = || {
        let connect = || TcpStream::connect((IpAddr::from(ADDRESS), NODE_PORT)).is_ok();
        machine.run(connect).unwrap()
    };
    agent.tell(nothing());
    agent.tell([Update::Nodes(Change::All(vec![(me(), Ok(node(ADDRESS)))]))]);
    agent.until("in force", |status| status.generation.is_some());
    assert!(!listens());
    // Routes fail, and the proxy has the port by then.
    agent.tell([moved([192, 0, 2, 99])]);
    agent.until("failed", |status| !status.failures.is_empty());
    agent.tell(service());
    let end = Instant::now() + Duration::from_secs(60);
    while !listens() {
        assert!(Instant::now() < end, "nobody listens");
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = agent.status.borrow().generation;
    assert_eq!(agent.status.borrow().problems, Vec::<String>::new());
    agent.tell([moved(ADDRESS)]);
    agent.until("in force again", |status| {
        status.failures.is_empty() && status.generation > before
    });
    assert_eq!(agent.status.borrow().problems, Vec::<String>::new());
    assert!(listens());
}
