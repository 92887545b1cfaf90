//! Rendered policies.

use std::fmt::Write;

use podnet_core::cluster::{
    Cluster, ClusterMatch, ClusterNetworkPolicy, ClusterPeer, ClusterRule, Direction, Existing, IpBlock,
    NamedPort, Node, NodeName, ObjectName, Pod, PodRanges, PodSelection, PolicyPort, PortRange, Selector,
    Tier, Wired,
};
use podnet_core::cluster::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicyRule, Protocol,
};
use podnet_core::compute;

use super::*;

fn port(number: u16) -> std::num::NonZeroU16 {
    std::num::NonZeroU16::new(number).unwrap()
}

fn tcp(first: u16, last: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: None,
        port: PortRange::new(port(first), port(last)).map(PolicyPort::Numbers),
    }
}

fn rule_of(peers: Vec<NetworkPolicyPeer>, ports: Vec<NetworkPolicyPort>) -> NetworkPolicyRule {
    NetworkPolicyRule {
        peers: peers.into_iter().map(Ok).collect(),
        ports: ports.into_iter().map(Ok).collect(),
    }
}

fn block(cidr: &str, except: &[&str]) -> NetworkPolicyPeer {
    let except = except.iter().map(|text| text.parse().unwrap());
    NetworkPolicyPeer::Block(IpBlock::new(cidr.parse().unwrap(), except).unwrap())
}

fn labelled(pods: &str) -> NetworkPolicyPeer {
    NetworkPolicyPeer::Pods {
        namespaces: None,
        pods: Some(pods.parse().unwrap()),
    }
}

/// A node with a pod app=web and, on another node, one app=client; and one that nobody knows.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for (index, app) in ["web", "client"].into_iter().enumerate() {
        let node = NodeName::new(format!("node{index}")).unwrap();
        let address = format!("172.30.0.{index}").parse().unwrap();
        let object = Node::new(node.clone(), &[address], PodRanges::default());
        cluster.nodes.insert(node.clone(), Ok(object));
        let mut pod = Pod::new(ObjectName::new("shop", app));
        pod.node = Some(node);
        pod.labels = [("app".to_owned(), app.to_owned())].into();
        pod.addresses = vec![
            format!("10.244.{index}.2").parse().unwrap(),
            format!("fd00:10:244:{index}::2").parse().unwrap(),
        ];
        pod.ports = [NamedPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: port(8080),
        }]
        .into();
        cluster.pods.insert(pod.name.clone(), Ok(pod));
    }
    let stranger = Wired {
        uid: "1".into(),
        addresses: ["10.244.0.9".parse().unwrap()].into(),
        ..Wired::default()
    };
    let name = ObjectName::new("shop", "stranger");
    cluster.local.pods.insert(name, vec![stranger]);
    cluster
}

fn about_web(ingress: Vec<NetworkPolicyRule>, egress: Vec<NetworkPolicyRule>) -> NetworkPolicy {
    NetworkPolicy {
        pods: Ok("app=web".parse().unwrap()),
        types: None,
        ingress: Some(ingress),
        egress: Some(egress),
        existing: Ok(Existing::Cut),
    }
}

fn with(policy: NetworkPolicy) -> Cluster {
    let mut cluster = cluster();
    cluster
        .network_policies
        .insert(ObjectName::new("shop", "web"), Ok(policy));
    cluster
}

fn rendered(cluster: &Cluster) -> Table {
    render(&compute(cluster, &NodeName::new("node0").unwrap()).policy)
}

#[test]
fn policies_stand_in_the_table_by_pod_by_port_and_by_peer() {
    let named = NetworkPolicyPort {
        protocol: None,
        port: Some(PolicyPort::Named("http".into())),
    };
    let mut cluster = with(about_web(
        vec![
            rule_of(vec![labelled("app=client")], vec![tcp(80, 443)]),
            rule_of(vec![block("0.0.0.0/0", &["10.0.0.0/8"])], vec![tcp(443, 443)]),
            rule_of(vec![block("fd30::/64", &[])], vec![]),
        ],
        vec![rule_of(vec![labelled("app=client")], vec![named])],
    ));
    let everywhere = ClusterMatch {
        peers: vec![
            ClusterPeer::Nodes(Selector::everything()),
            ClusterPeer::DomainNames(vec!["example.com".parse().unwrap()]),
        ],
        protocols: None,
    };
    let pass = ClusterRule {
        name: "to nodes".into(),
        action: Ok(Action::Pass),
        matches: Ok(everywhere),
    };
    let admin = ClusterNetworkPolicy {
        tier: Ok(Tier::Admin),
        priority: Ok(1),
        subject: Ok(PodSelection::default()),
        ingress: Vec::new(),
        egress: vec![pass],
        unknown: Vec::new(),
        existing: Ok(Existing::Cut),
    };
    cluster.cluster_network_policies.insert("admin".into(), Ok(admin));
    insta::assert_snapshot!(rendered(&cluster));
}

#[test]
fn no_policy_no_rule() {
    assert_eq!(rendered(&cluster()), Table::default());
    // About others.
    let mut elsewhere = with(about_web(vec![], vec![]));
    elsewhere.local.pods.clear();
    elsewhere.pods.remove(&ObjectName::new("shop", "web"));
    assert_eq!(rendered(&elsewhere), Table::default());
}

fn rules_in_pod_chains(table: &Table) -> usize {
    let of_pods = |name: &&String| name.starts_with("ingress-") && name.len() > 30;
    let chains = table.chains.iter().filter(|(name, _)| of_pods(name));
    chains.map(|(_, chain)| chain.rules.len()).sum()
}

#[test]
fn a_thousand_rules_are_as_many_to_a_packet_as_one() {
    let rules = |count: u16| {
        let one = |number: u16| {
            let net = format!("10.{}.{}.0/24", number / 250, number % 250);
            rule_of(vec![block(&net, &[])], vec![tcp(1000 + number, 1000 + number)])
        };
        rendered(&with(about_web((0..count).map(one).collect(), vec![])))
    };
    assert_eq!(rules_in_pod_chains(&rules(1000)), rules_in_pod_chains(&rules(1)));
}

#[test]
fn rules_whose_pieces_would_be_too_many_are_gone_through() {
    let one = |number: u16| {
        let net = format!("10.{}.{}.0/24", number / 250, number % 250);
        rule_of(vec![block(&net, &[])], vec![tcp(1000 + number, 9000 - number)])
    };
    let table = rendered(&with(about_web((0..1000).map(one).collect(), vec![])));
    assert!(rules_in_pod_chains(&table) > 1000);
    let elements: usize = table.elements.values().map(|elements| elements.len()).sum();
    assert!(elements < 5000, "{elements}");
}

/// What `classes` says of a port, against all rules one after the other.
#[test]
fn every_port_is_in_the_piece_of_those_who_may_connect_to_it() {
    let mut random = podnet_fuzz::Random::new(3);
    for _ in 0..50 {
        let rules: Vec<NetworkPolicyRule> = (0..random.below(8))
            .map(|_| {
                let first = 1 + random.below(20) as u16;
                let last = first + random.below(10) as u16;
                let net = format!("10.{}.0.0/16", random.below(4));
                rule_of(vec![block(&net, &[])], vec![tcp(first, last)])
            })
            .collect();
        let state = compute(&with(about_web(rules, vec![])), &NodeName::new("node0").unwrap());
        let isolation = state
            .policy
            .rules
            .values()
            .find_map(|rules| rules.of(Direction::Ingress).network.as_ref())
            .unwrap();
        let rules: Vec<_> = isolation.rules.iter().collect();
        let classes = ports::classes(&rules).unwrap();
        let pieces = classes.get(&Protocol::Tcp).map(Vec::as_slice).unwrap_or_default();
        for number in 0..40_u16 {
            let by_piece = pieces
                .iter()
                .find(|((first, last), _)| (*first..=*last).contains(&number))
                .map(|(_, whom)| whom.text())
                .unwrap_or_default();
            let matching = rules.iter().filter(|rule| match &rule.ports {
                Ports::OneOf(ports) => ports.iter().any(|port| match port {
                    podnet_core::policy::PortMatch::Numbers(_, range) => {
                        std::num::NonZeroU16::new(number).is_some_and(|port| range.contains(port))
                    }
                    _ => false,
                }),
                Ports::Any => true,
            });
            let one_by_one = Union::of(matching.map(|rule| &rule.peers)).text();
            assert_eq!(by_piece, one_by_one, "port {number}");
        }
    }
}

#[test]
fn a_difference_has_what_differs_and_nothing_else() {
    let old = rendered(&with(about_web(
        vec![rule_of(vec![labelled("app=client")], vec![])],
        vec![],
    )));
    let mut cluster = with(about_web(
        vec![rule_of(vec![labelled("app=client")], vec![])],
        vec![],
    ));
    let mut another = cluster.pods[&ObjectName::new("shop", "client")].clone().unwrap();
    another.name = ObjectName::new("shop", "another");
    another.addresses = vec!["10.244.1.3".parse().unwrap()];
    cluster.pods.insert(another.name.clone(), Ok(another));
    let new = rendered(&cluster);
    let (before, after) = difference(&old, &new);
    assert_eq!(before.sets.len(), 1);
    assert!(before.chains.is_empty() && after.chains.is_empty());
    let mut text = String::new();
    write!(
        text,
        "{}",
        crate::nftables::Transaction::between(&after, Some(&crate::nftables::Found::of(&before)))
    )
    .unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("10.244.1.3"), "{text}");
}
