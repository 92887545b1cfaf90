//! An agent's loop of a test: a thread in one of the test's namespaces.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podnet_agent::cni_server::{CniServerConfig, Readiness};
use podnet_agent::metrics::Metrics;
use podnet_agent::node::{NodeConfig, NodeLoop, Outlets};
use podnet_agent::status::NodeStatus;
use podnet_agent::watch::{Change, Update};
use podnet_cni::WiringName;
use podnet_core::cluster::{ClusterConfig, Node, NodeName, PodRanges};
use podnet_core::state::Problem;
use podnet_linux::netlink::{Address, LinkChange, Netlink, NewLink, NewLinkKind};
use podnet_linux::ns::{Kind, Namespace};
use tokio::sync::{mpsc, oneshot, watch};

/// The address of the node that [`machine`] makes.
pub(crate) const ADDRESS: [u8; 4] = [172, 30, 0, 11];

pub(crate) fn me() -> NodeName {
    NodeName::new("node1").unwrap()
}

/// The node with an address, which its link need not have.
pub(crate) fn node(address: impl Into<IpAddr>) -> Node {
    let range = "10.244.0.0/24".parse().unwrap();
    Node::new(me(), &[address.into()], PodRanges::new([range]).unwrap())
}

/// A machine with a link that has the address.
pub(crate) fn machine() -> Namespace {
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

/// The files of one agent, gone with it.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        std::fs::write(files.path("podnet-cni"), "").unwrap();
        files
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// A node's configuration, all of whose files are these.
    pub(crate) fn config(&self, name: NodeName, cluster: ClusterConfig) -> NodeConfig {
        NodeConfig {
            cni: CniServerConfig {
                socket: self.path("cni.sock"),
                state_dir: self.path("state"),
                node: name.to_string(),
                wiring: WiringName::Ptp,
                allowed_sysctls: Vec::new(),
                settings: Default::default(),
                programs: None,
            },
            name,
            cluster,
            dns: Vec::new(),
            cni_bin_dir: self.path("bin"),
            cni_conf_dir: self.path("net.d"),
            plugin: self.path("podnet-cni"),
        }
    }
}

/// Outlets into which nobody looks, but for the problems.
fn outlets() -> (Outlets, watch::Receiver<BTreeSet<Problem>>) {
    let (services, in_force) = watch::channel(Default::default());
    let (problems, reported) = watch::channel(BTreeSet::new());
    let out = Outlets {
        metrics: Arc::new(Metrics::new(in_force)),
        readiness: watch::channel(Readiness::NotReady("starting".into())).0,
        problems,
        health: watch::channel(Default::default()).0,
        services,
        repairs: watch::channel(None).0,
    };
    (out, reported)
}

/// A cluster with nodes and nothing else: what a loop waits for before it does anything.
pub(crate) fn nothing_but_nodes() -> [Update; 6] {
    [
        Update::Services(Change::All(Vec::new())),
        Update::Slices(Change::All(Vec::new())),
        Update::Pools(Change::All(Vec::new())),
        Update::ServiceCidrs(Change::All(Vec::new())),
        Update::NetworkPolicies(Change::All(Vec::new())),
        Update::ClusterNetworkPolicies(Change::All(Vec::new())),
    ]
}

/// A loop that runs until it is dropped. `Seen` is what else the test looks at.
pub(crate) struct Agent<Seen> {
    updates: mpsc::UnboundedSender<Update>,
    pub(crate) status: watch::Receiver<NodeStatus>,
    /// What becomes Events.
    pub(crate) problems: watch::Receiver<BTreeSet<Problem>>,
    pub(crate) seen: Seen,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _files: Files,
}

impl<Seen: Send + 'static> Agent<Seen> {
    /// Starts the loop that `make` makes inside the namespace, with the channel that tells it of disturbances.
    pub(crate) fn start(
        namespace: &Namespace,
        files: Files,
        make: impl FnOnce(Outlets) -> (NodeLoop, mpsc::Receiver<()>, Seen) + Send + 'static,
    ) -> Agent<Seen> {
        let namespace = Namespace::from(namespace.as_fd().try_clone_to_owned().unwrap());
        let (updates, changes) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            namespace.enter().unwrap();
            let (out, problems) = outlets();
            let (node, disturbed, seen) = make(out);
            tell.send((node.status(), problems, seen)).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let running = runtime.spawn(node.run(changes, disturbed));
            // Ended by the sender's end.
            let _ = runtime.block_on(ended);
            running.abort();
        });
        let (status, problems, seen) = told.recv().unwrap();
        Agent {
            updates,
            status,
            problems,
            seen,
            end: Some(end),
            thread: Some(thread),
            _files: files,
        }
    }

    pub(crate) fn tell(&self, updates: impl IntoIterator<Item = Update>) {
        updates
            .into_iter()
            .for_each(|update| self.updates.send(update).unwrap());
    }
}

impl<Seen> Agent<Seen> {
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&NodeStatus) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !holds(&self.status.borrow()) {
            assert!(Instant::now() < end, "not {what}: {:#?}", *self.status.borrow());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl<Seen> Drop for Agent<Seen> {
    fn drop(&mut self) {
        drop(self.end.take());
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}
