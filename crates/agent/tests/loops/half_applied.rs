//! What is in force of an application that failed half-way is the node's own: a real kernel, a real proxy.

use std::net::{IpAddr, TcpStream};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podnet_agent::node::NodeLoop;
use podnet_agent::watch::{Change, Update};
use podnet_core::cluster::{
    AddressFamily, ClusterConfig, DataplaneName, Endpoint, EndpointPort, EndpointSlice, Family, ObjectName,
    ObjectRef, Protocol, Service, ServicePort,
};
use podnet_core::state::Problem;
use podnet_dataplane::Kernel;
use podnet_dataplane::userspace::{Site, proxy};
use podnet_linux::ns::Namespace;
use tokio::sync::mpsc;

use crate::agent::{ADDRESS, Agent, Files, machine, me, node, nothing_but_nodes};

const NODE_PORT: u16 = 30_001;

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

/// An agent's loop that has services carried in user space; nobody tells it of disturbances.
fn start(machine: &Namespace) -> Agent<mpsc::Sender<()>> {
    let files = Files::new();
    let cluster = ClusterConfig {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        ..ClusterConfig::default()
    };
    let config = files.config(me(), cluster);
    let site = Site {
        socket: files.path("proxy.sock"),
        identity: Arc::new(|| "this".to_owned()),
        start: Arc::new(|socket| {
            let socket = socket.to_owned();
            std::thread::spawn(move || proxy::run(&socket, "this"));
            Ok(())
        }),
    };
    Agent::start(machine, files, |out| {
        let kernel = Kernel::open(None, DataplaneName::Userspace).unwrap();
        let kernel = kernel.with_proxy(site).unwrap();
        let (tell, disturbed) = mpsc::channel(1);
        (
            NodeLoop::new(config, kernel, Default::default(), out),
            disturbed,
            tell,
        )
    })
}

#[test]
fn a_node_port_that_the_proxy_has_already_is_nobody_elses_when_the_rest_is_tried_again() {
    let machine = machine();
    let agent = start(&machine);
    let listens = || {
        let connect = || TcpStream::connect((IpAddr::from(ADDRESS), NODE_PORT)).is_ok();
        machine.run(connect).unwrap()
    };
    agent.tell(nothing_but_nodes());
    agent.tell([Update::Nodes(Change::All(vec![(me(), Ok(node(ADDRESS)))]))]);
    agent.until("in force", |status| status.generation.is_some());
    assert!(!listens());
    // Routes fail, and the proxy has the port by then.
    agent.tell([moved([192, 0, 2, 99])]);
    agent.until("failed", |status| !status.failures.is_empty());
    // Which the node's owner hears of.
    let reported: Vec<_> = agent.problems.borrow().iter().cloned().collect();
    let why = agent.status.borrow().failures[0].clone();
    let object = ObjectRef::node(me());
    assert_eq!(reported, [Problem { object, why }]);
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
    assert_eq!(*agent.problems.borrow(), [].into());
    assert_eq!(agent.status.borrow().problems, Vec::<String>::new());
    assert!(listens());
}
