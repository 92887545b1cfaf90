//! Random clusters with policies. They are small and dense, so that selectors meet labels and rules meet each other.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use podnet_core::cluster::{
    Action, Cluster, ClusterConfig, ClusterMatch, ClusterNetworkPolicy, ClusterPeer, ClusterPort,
    ClusterRule, Direction, Existing, Invalid, IpBlock, LabelTest, Labels, NamedPort, Namespace,
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule, Node, NodeName, ObjectName,
    ObjectRef, Parsed, Part, Pod, PodRanges, PodSelection, PolicyPort, PortRange, Protocol, Requirement,
    Selector, Tier, Unread,
};
use podnet_core::flow::{Flow, Traffic};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::select;

pub(crate) const PODS: u8 = 7;
const NODES: u8 = 2;

pub(crate) fn node_name(index: u8) -> NodeName {
    NodeName::new(format!("node{index}")).unwrap()
}

pub(crate) fn pod_v4(index: u8) -> IpAddr {
    Ipv4Addr::new(10, 244, index % 4, 2 + index).into()
}

pub(crate) fn pod_v6(index: u8) -> IpAddr {
    Ipv6Addr::new(
        0xfd00,
        0x10,
        0,
        u16::from(index % 4),
        0,
        0,
        0,
        2 + u16::from(index),
    )
    .into()
}

fn node_v4(index: u8) -> IpAddr {
    Ipv4Addr::new(172, 30, 0, 10 + index).into()
}

fn node_v6(index: u8) -> IpAddr {
    Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, 10 + u16::from(index)).into()
}

/// Addresses at either end of a flow: pods', nodes', others'.
pub(crate) fn addresses() -> [Vec<IpAddr>; 2] {
    let v4 = (0..PODS).map(pod_v4).chain((0..NODES).map(node_v4));
    let v6 = (0..PODS).map(pod_v6).chain((0..NODES).map(node_v6));
    [
        v4.chain(["203.0.113.7".parse().unwrap()]).collect(),
        v6.chain(["2001:db8::7".parse().unwrap()]).collect(),
    ]
}

pub(crate) fn traffics() -> Vec<Traffic> {
    let numbers = [80, 81, 90].map(|number| NonZeroU16::new(number).unwrap());
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let ports = protocols
        .into_iter()
        .flat_map(|protocol| numbers.map(|number| Traffic::Port(protocol, number)));
    ports.chain([Traffic::Icmp]).collect()
}

/// Every flow between any two addresses of one family.
pub(crate) fn flows() -> impl Iterator<Item = Flow> {
    let pairs = addresses().into_iter().flat_map(|of_family| {
        let to = of_family.clone();
        of_family
            .into_iter()
            .flat_map(move |from| to.clone().into_iter().map(move |to| (from, to)))
    });
    pairs.flat_map(|(from, to)| {
        traffics().into_iter().flat_map(move |traffic| {
            let plain = Flow::new(from, to, traffic);
            let mut through = plain.clone();
            through.through_service = true;
            // A stranger has a name, and what is not oneself is reached through a service alike.
            if to == "203.0.113.7".parse::<IpAddr>().unwrap() {
                through.names.insert("www.example.com".into());
            }
            [plain, through]
        })
    })
}

fn label_set(keys: &'static [&'static str]) -> impl Strategy<Value = Labels> {
    vec((select(keys), select(&["x", "y"][..])), 0..3).prop_map(|pairs| {
        pairs
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    })
}

const POD_KEYS: &[&str] = &["app", "tier"];
const NAMESPACE_KEYS: &[&str] = &["team", "env"];
const NAMESPACES: &[&str] = &["a", "b", "c"];

pub(crate) fn selector(keys: &'static [&'static str]) -> BoxedStrategy<Selector> {
    let values = || btree_set(select(vec!["x".to_owned(), "y".to_owned()]), 1..3);
    let test = prop_oneof![
        4 => values().prop_map(LabelTest::In),
        1 => values().prop_map(LabelTest::NotIn),
        1 => Just(LabelTest::Exists),
        1 => Just(LabelTest::Missing),
    ];
    let requirement = (select(keys), test).prop_map(|(key, test)| Requirement::new(key, test).unwrap());
    vec(requirement, 0..3).prop_map(Selector::new).boxed()
}

pub(crate) fn namespaces() -> BoxedStrategy<Selector> {
    prop_oneof![
        3 => selector(NAMESPACE_KEYS),
        1 => select(NAMESPACES).prop_map(Selector::namespace),
    ]
    .boxed()
}

pub(crate) fn pods_selector() -> BoxedStrategy<Selector> {
    selector(POD_KEYS)
}

fn selection() -> impl Strategy<Value = PodSelection> {
    (namespaces(), pods_selector()).prop_map(|(namespaces, pods)| PodSelection { namespaces, pods })
}

/// A part that now and then cannot be read.
fn part<T: std::fmt::Debug + Clone + 'static>(
    strategy: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Part<T>> {
    prop_oneof![
        19 => strategy.prop_map(Ok),
        1 => Just(Err(Unread("spec.field: unknown".into()))),
    ]
    .boxed()
}

pub(crate) fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

pub(crate) fn range() -> impl Strategy<Value = PortRange> {
    (79..92_u16, 0..12_u16).prop_map(|(first, more)| {
        let of = |number| NonZeroU16::new(number).unwrap();
        PortRange::new(of(first), of(first + more)).unwrap()
    })
}

pub(crate) fn port_name() -> impl Strategy<Value = String> {
    select(vec!["http".to_owned(), "dns".to_owned()])
}

fn policy_port() -> impl Strategy<Value = PolicyPort> {
    prop_oneof![
        2 => range().prop_map(PolicyPort::Numbers),
        1 => port_name().prop_map(PolicyPort::Named),
    ]
}

pub(crate) fn block() -> impl Strategy<Value = IpBlock> {
    select(vec![
        ("0.0.0.0/0", vec![]),
        ("::/0", vec!["fd00:10::/46"]),
        ("10.244.0.0/16", vec!["10.244.1.0/24"]),
        ("10.244.0.0/16", vec![]),
        ("10.244.1.3/32", vec![]),
        ("fd00:10::/46", vec!["fd00:10:0:2::/64", "fd00:10::/64"]),
        ("0.0.0.0/0", vec!["10.0.0.0/8", "172.30.0.0/24"]),
        ("172.30.0.10/31", vec![]),
        ("203.0.113.0/24", vec![]),
    ])
    .prop_map(|(cidr, except)| {
        let except = except.into_iter().map(|text| text.parse().unwrap());
        IpBlock::new(cidr.parse().unwrap(), except).unwrap()
    })
}

fn network_peer() -> impl Strategy<Value = NetworkPolicyPeer> {
    let pods = (prop::option::of(namespaces()), prop::option::of(pods_selector()));
    prop_oneof![
        3 => pods.prop_map(|(namespaces, pods)| NetworkPolicyPeer::Pods { namespaces, pods }),
        1 => block().prop_map(NetworkPolicyPeer::Block),
    ]
}

fn network_rule() -> impl Strategy<Value = NetworkPolicyRule> {
    let port = (
        prop::option::of(protocol()),
        prop::option::weighted(0.8, policy_port()),
    );
    let port = port.prop_map(|(protocol, port)| NetworkPolicyPort { protocol, port });
    (vec(part(network_peer()), 0..3), vec(part(port), 0..3))
        .prop_map(|(peers, ports)| NetworkPolicyRule { peers, ports })
}

fn existing() -> BoxedStrategy<Part<Existing>> {
    part(select(vec![Existing::Cut, Existing::Keep]))
}

fn network_policy() -> impl Strategy<Value = NetworkPolicy> {
    let direction = select(vec![Direction::Ingress, Direction::Egress]);
    let rules = || prop::option::weighted(0.7, vec(network_rule(), 0..3));
    let types = prop::option::of(part(btree_set(direction, 0..3)));
    (part(pods_selector()), types, rules(), rules(), existing()).prop_map(
        |(pods, types, ingress, egress, existing)| NetworkPolicy {
            pods,
            types,
            ingress,
            egress,
            existing,
        },
    )
}

fn cluster_port() -> impl Strategy<Value = ClusterPort> {
    prop_oneof![
        3 => (protocol(), range()).prop_map(|(protocol, range)| ClusterPort::Numbers(protocol, range)),
        1 => port_name().prop_map(ClusterPort::Named),
    ]
}

fn cluster_peer(direction: Direction) -> BoxedStrategy<ClusterPeer> {
    let pods = prop_oneof![
        namespaces().prop_map(ClusterPeer::Namespaces),
        selection().prop_map(ClusterPeer::Pods),
    ];
    if direction == Direction::Ingress {
        return pods.boxed();
    }
    let name = select(vec![
        "*.example.com",
        "www.example.com",
        "example.com",
        "*.www.example.com",
    ]);
    let names = vec(name.prop_map(|name| name.parse().unwrap()), 1..3);
    prop_oneof![
        3 => pods,
        1 => selector(&["zone"]).prop_map(ClusterPeer::Nodes),
        1 => vec(block().prop_map(|block| block.cidr()), 1..3).prop_map(ClusterPeer::Networks),
        1 => names.prop_map(ClusterPeer::DomainNames),
    ]
    .boxed()
}

fn cluster_rule(direction: Direction) -> impl Strategy<Value = ClusterRule> {
    let action = select(vec![Action::Accept, Action::Deny, Action::Pass]);
    let protocols = prop::option::of(vec(cluster_port(), 1..3));
    let matches = (vec(cluster_peer(direction), 1..3), protocols);
    let matches = matches.prop_map(|(peers, protocols)| ClusterMatch { peers, protocols });
    (select(vec!["", "a \"rule\""]), part(action), part(matches)).prop_map(|(name, action, matches)| {
        ClusterRule {
            name: name.into(),
            action,
            matches,
        }
    })
}

fn cluster_policy() -> impl Strategy<Value = ClusterNetworkPolicy> {
    let tier = part(select(vec![Tier::Admin, Tier::Baseline]));
    let priority = part(select(vec![0_u16, 1, 1000]));
    let rules = |direction| vec(cluster_rule(direction), 0..3);
    let unknown = prop_oneof![
        19 => Just(vec![]),
        1 => Just(vec![Unread("spec.audit: unknown".into())]),
    ];
    let rules = (rules(Direction::Ingress), rules(Direction::Egress));
    (tier, priority, part(selection()), rules, unknown, existing()).prop_map(
        |(tier, priority, subject, (ingress, egress), unknown, existing)| ClusterNetworkPolicy {
            tier,
            priority,
            subject,
            ingress,
            egress,
            unknown,
            existing,
        },
    )
}

pub(crate) fn pod(index: u8) -> impl Strategy<Value = Pod> {
    let port = (port_name(), protocol(), select(vec![80_u16, 81, 90]));
    let port = port.prop_map(|(name, protocol, number)| NamedPort {
        name,
        protocol,
        port: NonZeroU16::new(number).unwrap(),
    });
    let kind = (
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.8),
    );
    let place = (select(NAMESPACES), 0..NODES);
    (place, label_set(POD_KEYS), btree_set(port, 0..3), kind).prop_map(
        move |((namespace, node), labels, ports, (host_network, ended, dual))| {
            let mut pod = Pod::new(ObjectName::new(namespace, format!("pod{index}")));
            pod.node = Some(node_name(node));
            pod.labels = labels;
            pod.ports = ports;
            pod.host_network = host_network;
            pod.ended = ended;
            pod.addresses = if host_network {
                vec![node_v4(node), node_v6(node)]
            } else if dual {
                vec![pod_v4(index), pod_v6(index)]
            } else {
                vec![pod_v4(index)]
            };
            pod
        },
    )
}

fn node(index: u8) -> impl Strategy<Value = Node> {
    label_set(&["zone"]).prop_map(move |labels| {
        let internal = [node_v4(index), node_v6(index)];
        let mut node = Node::new(node_name(index), &internal, PodRanges::default());
        node.labels = labels;
        node
    })
}

/// An object that now and then cannot be read at all.
fn parsed<T: Clone>(object: T, readable: bool, name: &str) -> Parsed<T> {
    if readable {
        return Ok(object);
    }
    Err(Invalid {
        object: ObjectRef::node(name),
        why: "unreadable".into(),
    })
}

pub(crate) fn cluster() -> impl Strategy<Value = Cluster> {
    // What has ended may share its address with one that lives: the last pod has the first one's.
    let pods = (0..PODS).map(|index| pod(index).boxed()).collect::<Vec<_>>();
    let nodes = (0..NODES).map(|index| node(index).boxed()).collect::<Vec<_>>();
    let namespaces = NAMESPACES
        .iter()
        .map(|_| prop::option::weighted(0.9, label_set(NAMESPACE_KEYS)))
        .collect::<Vec<_>>();
    let readable = || prop::bool::weighted(0.97);
    let policies = vec((select(NAMESPACES), network_policy(), readable()), 0..5);
    let cluster_policies = vec((cluster_policy(), readable()), 0..4);
    (pods, nodes, namespaces, policies, cluster_policies).prop_map(
        |(mut pods, nodes, namespaces, policies, cluster_policies)| {
            let mut cluster = Cluster::new(ClusterConfig::default());
            if let [first, .., last] = &mut pods[..]
                && last.ended
            {
                last.addresses.clone_from(&first.addresses);
            }
            for pod in pods {
                cluster.pods.insert(pod.name.clone(), Ok(pod));
            }
            for node in nodes {
                cluster.nodes.insert(node.name.clone(), Ok(node));
            }
            for (name, labels) in NAMESPACES.iter().zip(namespaces) {
                if let Some(labels) = labels {
                    cluster
                        .namespaces
                        .insert((*name).into(), Namespace::new(name, labels));
                }
            }
            for (index, (namespace, policy, readable)) in policies.into_iter().enumerate() {
                let name = format!("policy{index}");
                let policy = parsed(policy, readable, &name);
                cluster
                    .network_policies
                    .insert(ObjectName::new(namespace, name), policy);
            }
            for (index, (policy, readable)) in cluster_policies.into_iter().enumerate() {
                let name = format!("cluster{index}");
                let policy = parsed(policy, readable, &name);
                cluster.cluster_network_policies.insert(name, policy);
            }
            cluster
        },
    )
}

/// The nodes of a cluster.
pub(crate) fn nodes() -> BTreeSet<NodeName> {
    (0..NODES).map(node_name).collect()
}
