//! Nodes made of network namespaces: an underlay with a bridge, and per node an `eth0` and pods of one veth pair each.

mod back_end;
mod group;
mod machine;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podnet_core::cluster::{
    AddressFamily, Cluster, ClusterConfig, Endpoint, EndpointPort, EndpointSlice, Family, Node, NodeName,
    ObjectName, Parsed, PodRanges, Protocol, Routing, Service, ServicePort, Wired,
};
use podnet_core::{NodeState, compute};
use podnet_dataplane::{Applied, Dataplane, Dump, Kernel};
use podnet_linux::netlink::{LinkChange, Neighbour, NewLink, NewLinkKind, Route};
use podnet_linux::sysctl;

pub(crate) use back_end::{BackEnd, Lack};
pub(crate) use machine::{Machine, any, ask, parse};

/// The protocol number of the wiring's routes.
const WIRING: u8 = 113;
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// An underlay and nodes on it.
pub(crate) struct Lab {
    /// What carries services.
    pub(crate) on: BackEnd,
    pub(crate) underlay: Machine,
    pub(crate) nodes: Vec<Machine>,
    pub(crate) cluster: Cluster,
    /// Their pods' networks.
    wired: Mutex<Vec<(usize, Wired)>>,
    /// The data planes of the nodes, where they stay.
    agents: Option<Vec<Mutex<Option<Kernel>>>>,
}

const NAMED: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

pub(crate) fn node_name(index: usize) -> NodeName {
    NodeName::new(format!("node{}", index + 1)).unwrap()
}

/// The slice that the service HOST has of a family.
pub(crate) fn slice_name(host: u8, family: Family) -> ObjectName {
    ObjectName::new("default", format!("svc{host}-{family:?}"))
}

/// So many other nodes, each with an address and a range of either family. There may be up to 1,000.
pub(crate) fn peers(count: u16) -> impl Iterator<Item = (NodeName, Parsed<Node>)> {
    (0..count).map(|number| {
        let name = NodeName::new(format!("peer{number}")).unwrap();
        let [high, low] = (number + 1).to_be_bytes();
        // From 10.244.4.0 on, 64 addresses each.
        let v4 = 0x0af4_0400 + 64 * u32::from(number);
        let ranges = [
            format!("{}/26", Ipv4Addr::from_bits(v4)),
            format!("fd00:10:244:ff:{number:x}::/80"),
        ];
        let ranges = PodRanges::new(ranges.iter().map(|text| text.parse().unwrap())).unwrap();
        let address = IpAddr::from([172, 31, high, low]);
        (name.clone(), Ok(Node::new(name, &[address], ranges)))
    })
}

impl Lab {
    /// Nodes with addresses 172.30.0.11.. and fd30::11.., on one link of that MTU; `primary` is the family they prefer.
    pub(crate) fn new(nodes: usize, routing: Routing, primary: Family, mtu: u32) -> Lab {
        let underlay = Machine::new();
        underlay.netlink(|netlink| {
            let bridge = NewLink {
                up: true,
                ..NewLink::new("br0", NewLinkKind::Bridge)
            };
            netlink.request(bridge.create()).unwrap();
        });
        underlay.address("br0", "172.30.0.1/24");
        underlay.address("br0", "fd30::1/64");
        let config = ClusterConfig {
            cluster_cidrs: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00:10:244::/56".parse().unwrap(),
            ],
            service_cidrs: vec![
                "10.96.0.0/16".parse().unwrap(),
                "fd00:10:96::/112".parse().unwrap(),
            ],
            routing,
            masquerade: Some(Vec::new()),
            ..ClusterConfig::default()
        };
        let mut lab = Lab {
            on: BackEnd::Nftables,
            underlay,
            nodes: Vec::new(),
            cluster: Cluster::new(config),
            wired: Mutex::default(),
            agents: None,
        };
        for index in 0..nodes {
            lab.add_node(index, primary, mtu);
        }
        lab
    }

    /// The same with services carried by that.
    pub(crate) fn carried_by(self, on: BackEnd) -> Lab {
        self.nodes.iter().for_each(|node| on.prime(node));
        IS_SLOW.fetch_or(on == BackEnd::Ipvs, Ordering::Relaxed);
        Lab { on, ..self }
    }

    /// The same with agents that stay, and follow the cluster from state to state.
    pub(crate) fn followed(self) -> Lab {
        let agents = self.nodes.iter().map(|_| Mutex::new(None)).collect();
        Lab {
            agents: Some(agents),
            ..self
        }
    }

    fn add_node(&mut self, index: usize, primary: Family, mtu: u32) {
        let node = Machine::new();
        let bridge = self.underlay.link("br0").index;
        self.underlay.netlink(|netlink| {
            let port = format!("port{index}");
            let veth = NewLink {
                mtu: Some(mtu),
                up: true,
                ..NewLink::veth(&port, "eth0", Some(node.namespace.as_fd()))
            };
            netlink.request(veth.create()).unwrap();
            netlink
                .request(LinkChange::named(&port).master(Some(bridge)).apply())
                .unwrap();
        });
        // A node's own link has been up for long: its link-local address is in use, and neighbours can be asked from it.
        node.run(|| sysctl::set("net/ipv6/conf/eth0/accept_dad", "0").unwrap());
        node.netlink(|netlink| {
            netlink
                .request(LinkChange::named("eth0").up(true).apply())
                .unwrap()
        });
        node.until_running("eth0");
        self.underlay.until_running(&format!("port{index}"));
        let v4 = format!("172.30.0.{}", 11 + index);
        let v6 = format!("fd30::{}", 11 + index);
        node.address("eth0", &format!("{v4}/24"));
        node.address("eth0", &format!("{v6}/64"));
        let eth0 = node.link("eth0").index;
        node.netlink(|netlink| {
            for (all, gateway) in [("0.0.0.0/0", "172.30.0.1"), ("::/0", "fd30::1")] {
                let route = Route::via(all.parse().unwrap(), gateway.parse().unwrap(), Some(eth0), 3);
                netlink.request(route.add()).unwrap();
            }
        });
        let mut addresses: Vec<IpAddr> = vec![v4.parse().unwrap(), v6.parse().unwrap()];
        if primary == Family::V6 {
            addresses.reverse();
        }
        let ranges = [
            format!("10.244.{index}.0/24"),
            format!("fd00:10:244:{index}::/64"),
        ];
        let ranges = PodRanges::new(ranges.iter().map(|text| text.parse().unwrap())).unwrap();
        let object = Node::new(node_name(index), &addresses, ranges);
        self.cluster.nodes.insert(object.name.clone(), Ok(object));
        self.nodes.push(node);
    }

    /// A pod on a node: 10.244.NODE.HOST and fd00:10:244:NODE::HOST, wired as the plugin wires it.
    pub(crate) fn pod(&self, node: usize, host: u8) -> Machine {
        let pod = Machine::new();
        let (v4, v6) = (
            format!("10.244.{node}.{host}"),
            format!("fd00:10:244:{node}::{host}"),
        );
        let name = format!("pod{host}");
        let (inside, outside) = ("fe80::2", "fe80::1");
        self.nodes[node].netlink(|netlink| {
            let veth = NewLink {
                up: true,
                ..NewLink::veth(&name, "eth0", Some(pod.namespace.as_fd()))
            };
            netlink.request(veth.create()).unwrap();
            let link = netlink.link(&name).unwrap().unwrap();
            let pod_mac = pod.link("eth0").mac.unwrap();
            for address in [&v4, &v6] {
                let address: IpAddr = address.parse().unwrap();
                netlink
                    .request(Neighbour::permanent(link.index, address, pod_mac).replace())
                    .unwrap();
                let route = Route::on_link(IpNet::from(address), link.index, WIRING);
                netlink.request(route.add()).unwrap();
            }
            let _ = inside;
        });
        let host_mac = self.nodes[node].link(&name).mac.unwrap();
        pod.netlink(|netlink| {
            netlink
                .request(LinkChange::named("eth0").up(true).apply())
                .unwrap()
        });
        let wired = Wired {
            addresses: [&v4, &v6].map(|address| address.parse().unwrap()).into(),
            namespace: Some(pod.cookie()),
            link: Some(name.clone()),
            ..Wired::default()
        };
        self.wired.lock().unwrap().push((node, wired));
        pod.until_running("eth0");
        self.nodes[node].until_running(&name);
        pod.address("eth0", &format!("{v4}/32"));
        pod.address("eth0", &format!("{v6}/128"));
        let eth0 = pod.link("eth0").index;
        pod.netlink(|netlink| {
            for (all, gateway) in [("0.0.0.0/0", "169.254.1.1"), ("::/0", outside)] {
                let gateway: IpAddr = gateway.parse().unwrap();
                netlink
                    .request(Neighbour::permanent(eth0, gateway, host_mac).replace())
                    .unwrap();
                let route = Route {
                    onlink: true,
                    ..Route::via(all.parse().unwrap(), gateway, Some(eth0), WIRING)
                };
                netlink.request(route.add()).unwrap();
            }
        });
        pod
    }

    /// A pod is gone from its node.
    pub(crate) fn unplug(&self, node: usize, host: u8) {
        self.nodes[node].netlink(|netlink| {
            let link = netlink.link(&format!("pod{host}")).unwrap().unwrap();
            netlink.request(link.delete()).unwrap();
        });
    }

    /// A service at 10.96.0.HOST and fd00:10:96::HOST, port 80, TCP and UDP, in front of port 8080 of those pods.
    pub(crate) fn service(&mut self, host: u8, pods: &[(usize, u8)]) {
        let ports = NAMED.map(|(name, protocol)| ServicePort::new(name, protocol, port(80)));
        self.add_service(host, ports, pods);
    }

    /// The same with the node port 30000 + HOST, and whatever else `change` gives it.
    pub(crate) fn exposed(&mut self, host: u8, pods: &[(usize, u8)], change: impl FnOnce(&mut Service)) {
        let ports = NAMED.map(|(name, protocol)| ServicePort {
            node_port: Some(port(30_000 + u16::from(host))),
            ..ServicePort::new(name, protocol, port(80))
        });
        let name = self.add_service(host, ports, pods);
        change(self.cluster.services.get_mut(&name).unwrap().as_mut().unwrap());
    }

    /// The same with its TCP port as one of another protocol.
    pub(crate) fn exposed_by(&mut self, protocol: Protocol, host: u8, pods: &[(usize, u8)]) {
        let of = ServicePort {
            node_port: Some(port(30_000 + u16::from(host))),
            ..ServicePort::new("tcp", protocol, port(80))
        };
        let udp = ServicePort::new("udp", Protocol::Udp, port(80));
        self.add_service(host, [of, udp], pods);
        for family in [Family::V4, Family::V6] {
            let name = slice_name(host, family);
            let mut slice = self.cluster.slices[&name].clone().unwrap();
            let named = slice.ports.iter_mut().filter(|of| of.name == "tcp");
            named.for_each(|of| of.protocol = protocol);
            self.cluster.slices.insert(name, Ok(slice));
        }
    }

    fn add_service(&mut self, host: u8, ports: [ServicePort; 2], pods: &[(usize, u8)]) -> ObjectName {
        let name = ObjectName::new("default", format!("svc{host}"));
        let addresses = [format!("10.96.0.{host}"), format!("fd00:10:96::{host}")];
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.cluster
            .services
            .insert(name.clone(), Ok(Service::new(addresses, ports.to_vec()).unwrap()));
        self.endpoints(host, pods, &[]);
        name
    }

    /// The service's endpoints from now on; `terminating` serve still, but are on their way out.
    pub(crate) fn endpoints(&mut self, host: u8, ready: &[(usize, u8)], terminating: &[(usize, u8)]) {
        let service = ObjectName::new("default", format!("svc{host}"));
        for of in [Family::V4, Family::V6] {
            let ports = NAMED.map(|(name, protocol)| EndpointPort {
                name: name.into(),
                protocol,
                port: Some(port(8080)),
            });
            let endpoint = |(node, pod): &(usize, u8)| {
                let address = match of {
                    Family::V4 => format!("10.244.{node}.{pod}").parse().unwrap(),
                    Family::V6 => format!("fd00:10:244:{node}::{pod}").parse().unwrap(),
                };
                Endpoint::ready(address, Some(node_name(*node)))
            };
            let going = |pod| Endpoint {
                ready: false,
                terminating: true,
                ..endpoint(pod)
            };
            let endpoints = ready.iter().map(endpoint).chain(terminating.iter().map(going));
            let family = AddressFamily::Ip(of);
            let slice =
                EndpointSlice::new(Some(service.clone()), family, ports.to_vec(), endpoints.collect());
            self.cluster
                .slices
                .insert(slice_name(host, of), Ok(slice.unwrap()));
        }
    }

    /// The target port of the service's endpoints in slices of that family from now on.
    pub(crate) fn target_port(&mut self, host: u8, family: Family, number: u16) {
        let name = slice_name(host, family);
        let mut slice = self.cluster.slices[&name].clone().unwrap();
        slice.ports.iter_mut().for_each(|of| of.port = Some(port(number)));
        self.cluster.slices.insert(name, Ok(slice));
    }

    /// The slice of one service becomes one of another, under another name.
    pub(crate) fn lend_slice(&mut self, from: u8, to: u8, family: Family) {
        let mut slice = self
            .cluster
            .slices
            .remove(&slice_name(from, family))
            .unwrap()
            .unwrap();
        slice.service = Some(ObjectName::new("default", format!("svc{to}")));
        let name = ObjectName::new("default", format!("svc{to}-{family:?}-more"));
        self.cluster.slices.insert(name, Ok(slice));
    }

    /// What a node should have.
    pub(crate) fn state(&self, node: usize) -> NodeState {
        let mut state = compute(&self.cluster, &node_name(node));
        if self.on == BackEnd::Ebpf {
            let wired = self.wired.lock().unwrap();
            let of_node = wired.iter().filter(|(of, _)| *of == node);
            state.wired = Arc::new(of_node.map(|(_, wired)| wired.clone()).collect());
        }
        state
    }

    /// A new data plane applies the cluster's state on a node, or the one that stays there goes on to it.
    pub(crate) fn apply(&self, node: usize) -> Applied {
        let state = self.state(node);
        let agent = self.agents.as_ref().map(|agents| &agents[node]);
        let node = &self.nodes[node];
        let open = || node.kernel(self.on.name());
        let applied = node.run(|| match agent.map(|agent| agent.lock().unwrap()) {
            None => open().apply(&state),
            Some(mut agent) => match &mut *agent {
                Some(kernel) => kernel.follow(&state),
                none => none.insert(open()).apply(&state),
            },
        });
        let applied = applied.unwrap();
        let is_left = |told: &String| {
            // Which Linux 6.1 does not have.
            told.contains("sockets are not led") || (told.contains("do not go past") && !told.contains("tcx"))
        };
        let is_led = !applied.left_out.iter().any(is_left);
        assert!(is_led, "{:?}", applied.left_out);
        applied
    }

    pub(crate) fn apply_all(&self) {
        for node in 0..self.nodes.len() {
            let applied = self.apply(node);
            assert_eq!(applied.refused, Vec::<String>::new());
        }
    }

    pub(crate) fn dump(&self, node: usize) -> Dump {
        let node = &self.nodes[node];
        node.run(|| node.kernel(self.on.name()).dump().unwrap())
    }
}

/// Waits for what others do in their own time.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + 2 * PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Everything takes ten times as long in the virtual machine.
static IS_SLOW: AtomicBool = AtomicBool::new(false);

/// Who answers of so many asked; in the virtual machine no more are asked than it takes to hear two.
pub(crate) fn answerers(
    asked: usize,
    mut ask: impl FnMut() -> std::io::Result<(String, IpAddr)>,
) -> BTreeSet<String> {
    let mut heard = BTreeSet::new();
    for _ in 0..asked {
        heard.insert(ask().unwrap().0);
        if heard.len() == 2 && IS_SLOW.load(Ordering::Relaxed) {
            break;
        }
    }
    heard
}
